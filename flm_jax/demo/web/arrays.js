/* Float32 matrices in the memory of a small WebAssembly program (product.wat) that multiplies them. */

const PAGE = 65536;
const upTo = (size, step) => Math.ceil(size / step) * step;

/** (rows, columns) with its rows `stride` numbers apart; `data` has room as product.wat wants it. */
export class Matrix {
  constructor(rows, columns, at) {
    Object.assign(this, { rows, columns, at, stride: upTo(columns, 16), data: null });
  }

  get size() { return upTo(this.rows, 4) * this.stride; }

  /** Copies rows of a plain array. */
  set(values, rows = this.rows) {
    const { columns, stride } = this;
    for (let r = 0; r < rows; r++) {
      this.data.set(values.subarray(r * columns, (r + 1) * columns), r * stride);
    }
    return this;
  }

  /** Its rows as a plain array. */
  plain(rows = this.rows) {
    const { columns, stride } = this, found = new Float32Array(rows * columns);
    for (let r = 0; r < rows; r++) {
      found.set(this.data.subarray(r * stride, r * stride + columns), r * columns);
    }
    return found;
  }
}

/** Plans matrices first, and has memory for all of them when it is settled. */
export class Arena {
  constructor() { this.end = 0; this.planned = []; }

  matrix(rows, columns, values = null) {
    const made = new Matrix(rows, columns, this.end);
    this.end += 4 * made.size;
    this.planned.push([made, values]);
    return made;
  }

  /** Allocates everything; `wasm` are the bytes of product.wasm. */
  async settle(wasm) {
    const memory = new WebAssembly.Memory({ initial: Math.max(1, Math.ceil(this.end / PAGE)) });
    const { instance } = await WebAssembly.instantiate(wasm, { page: { memory } });
    for (const [made, values] of this.planned) {
      made.data = new Float32Array(memory.buffer, made.at, made.size);
      if (values) made.set(values);
    }
    this.planned = [];
    this.code = instance.exports;
  }

  /** c = a @ b for the first rows of a. */
  product(a, b, c, rows = a.rows) {
    if (rows === 1) {
      this.code.row(a.at, b.at, c.at, b.rows, b.columns, 4 * b.stride);
    } else {
      this.code.product(
        a.at, b.at, c.at, rows, b.rows, b.columns, 4 * a.stride, 4 * b.stride, 4 * c.stride);
    }
  }
}

/** The arrays of a .safetensors file, all of them F32: name -> {shape, data}. */
export function readSafetensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const found = {};
  for (const [name, { shape, data_offsets: [begin, end] }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    found[name] = { shape, data: new Float32Array(buffer, 8 + length + begin, (end - begin) / 4) };
  }
  return found;
}
