/* The diffusion transformer of flm_jax/models/dit.py on one text, forward only.

   D width, L tokens, V vocabulary, H heads, K their width, C width of the time conditioning. A
   network of two times (a flow map) is told tau_s and tau_t, a denoiser tau_s, a causal one none. */

import { Arena } from "./arrays.js";

const FREQUENCIES = 128, MAX_PERIOD = 10000, ROTARY_BASE = 10000, EPSILON = 1e-5, TINY = 1e-30;
const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const capped = (x, cap) => (cap ? cap * (1 - 2 / (Math.exp(2 * x / cap) + 1)) : x);

export class Network {
  /** `model` is model.json, `tensors` the arrays of model.safetensors. Then `settle` it. */
  constructor(model, tensors) {
    const { settings } = model, { width, depth, heads } = settings, length = model.length;
    const vocab = model.vocab_size, inner = tensors["blocks/mlp_in/kernel"].shape[2];
    Object.assign(this, { model, settings, tensors, length, vocab, arena: new Arena() });
    Object.assign(this, { headWidth: width / heads, onehot: settings.onehot === true });
    this.stateWidth = this.onehot ? vocab : width;
    this.layers = Array.from({ length: depth }, (_, layer) => this.blockWeights(layer));
    this.table = this.kernel("embed/table");
    this.noise = "noise" in tensors ? this.kernel("noise") : null;
    this.head = settings.tied_head
      ? this.arena.matrix(width, vocab, transposed(tensors["embed/table"].data, vocab, width))
      : this.kernel("head/kernel");
    this.estimate = settings.self_conditioning ? this.kernel("estimate/kernel") : null;
    const sized = (rows, columns) => this.arena.matrix(rows, columns);
    if (!settings.causal) {
      this.times = [this.timeWeights("time_embed")];
      if (settings.two_times) this.times.push(this.timeWeights("time_embed_to"));
      this.finalModulation = this.kernel("final/modulation/kernel");
      this.waves = sized(2, 2 * FREQUENCIES);
      this.hidden = sized(2, settings.cond_dim);
      this.conditioning = sized(2, settings.cond_dim);
      this.embedded = sized(2, settings.cond_dim);
      this.modulation = sized(2, 6 * width);
    }
    this.h = sized(length, width);
    this.u = sized(length, width);
    this.told = sized(length, this.stateWidth);
    this.view = sized(length, width);
    this.qkv = sized(length, 3 * width);
    this.mlp = sized(length, inner);
    this.gate = settings.mlp === "gelu" ? null : sized(length, inner);
    this.query = sized(length, this.headWidth);
    this.scores = sized(length, length);
    this.read = sized(length, this.headWidth);
    this.logits = sized(length, vocab);
    // Keys (K, L) and values (L, K) of a head: of every layer where they are kept for later tokens.
    const kept = settings.causal ? depth : 1;
    const pair = () => ({ keys: sized(this.headWidth, length), values: sized(length, this.headWidth) });
    this.caches = Array.from({ length: kept }, () => Array.from({ length: heads }, pair));
    this.rotary = rotary(length, this.headWidth);
    const power = tensors["embed/table"].data.reduce((sum, x) => sum + x * x, 0) / width;
    this.power = power;
  }

  async settle(wasm) { await this.arena.settle(wasm); return this; }

  // Weights.

  vector(name, layer = null) {
    const found = this.tensors[name];
    if (!found || layer === null) return found ? found.data : null;
    const size = found.shape[1];
    return found.data.subarray(layer * size, (layer + 1) * size);
  }

  kernel(name, layer = null) {
    const { shape, data } = this.tensors[name], [rows, columns] = shape.slice(-2);
    const size = rows * columns, begin = (layer ?? 0) * size;
    return this.arena.matrix(rows, columns, data.subarray(begin, begin + size));
  }

  blockWeights(layer) {
    const found = {};
    for (const name in this.tensors) {
      if (!name.startsWith("blocks/")) continue;
      const short = name.slice("blocks/".length);
      found[short] = short.endsWith("/kernel") ? this.kernel(name, layer) : this.vector(name, layer);
    }
    return found;
  }

  timeWeights(name) {
    const part = (end) => ({
      kernel: this.kernel(`${name}/${end}/kernel`), bias: this.vector(`${name}/${end}/bias`),
    });
    return [part("in"), part("out")];
  }

  // What is asked of it.

  /** What the network says of a state, a plain (L, W): tokens, confidence and mean, p as a state.

      `given` is {tokens, mask} or null, and in the state already; `t` the time of tau_s by the clock, `estimate` the last mean
      (zeros at first) of a network with self-conditioning. */
  predict(state, { tauS, tauT, t, given = null, estimate = null }) {
    const { length, settings, stateWidth } = this, mask = given ? given.mask : null;
    this.condition(tauS, tauT, mask !== null);
    this.seen(state, this.h);
    if (settings.input_scale) this.scale(this.h, (l) => (mask && mask[l] ? 1 : t));
    if (estimate && this.estimate) {
      this.seen(estimate, this.view);
      if (settings.input_scale) this.scale(this.view, () => 1);
      this.arena.product(this.view, this.estimate, this.u);
      add(this.h, this.u, length);
    }
    this.forward(length, 0, mask);
    this.arena.product(this.u, this.head, this.logits);
    const { tokens, confidence } = this.softmax(length);
    let mean = null;
    if (this.onehot) {
      mean = this.logits.plain();
    } else {
      this.arena.product(this.logits, this.table, this.view);
      mean = this.view.plain();
    }
    for (let l = 0; given && l < length; l++) {
      if (!mask[l]) continue;
      tokens[l] = given.tokens[l];
      confidence[l] = 1;
      mean.set(state.subarray(l * stateWidth, (l + 1) * stateWidth), l * stateWidth);
    }
    return { tokens, confidence, mean };
  }

  /** Capped logits, a view of V of them, for the token after `token`, the one at `position`. */
  advance(token, position) {
    const { width } = this.settings;
    const row = this.table.data.subarray(token * this.table.stride, token * this.table.stride + width);
    this.h.data.set(row);
    this.forward(1, position, null);
    this.arena.product(this.u, this.head, this.logits, 1);
    const logits = this.logits.data.subarray(0, this.vocab), bias = this.vector("head/bias");
    for (let v = 0; v < this.vocab; v++) logits[v] = this.capped(logits[v] + bias[v]);
    return logits;
  }

  /** The state of a token in one row of a state. */
  clean(token, row) {
    if (this.onehot) row.fill(0)[token] = 1;
    else row.set(this.table.data.subarray(token * this.table.stride, token * this.table.stride + row.length));
  }

  /** The state of raw noise, a plain (L, W). */
  scattered(raw, scale = 1) {
    if (this.noise) {
      this.told.set(raw);
      this.arena.product(this.told, this.noise, this.view);
      raw = this.view.plain();
    }
    return scale === 1 ? raw : raw.map((x) => x * scale);
  }

  // Parts.

  capped(x) { return capped(x, this.settings.logit_cap) / this.model.denoiser_temperature; }

  /** Tokens and their probability of the first logits, which become probabilities. */
  softmax(rows) {
    const { vocab, logits } = this, bias = this.vector("head/bias");
    const tokens = new Int32Array(rows), confidence = new Float32Array(rows);
    for (let r = 0; r < rows; r++) {
      const row = logits.data.subarray(r * logits.stride, r * logits.stride + vocab);
      let best = 0;
      for (let v = 0; v < vocab; v++) {
        row[v] += bias[v];
        if (row[v] > row[best]) best = v;
      }
      const most = this.capped(row[best]);
      let sum = 0;
      for (let v = 0; v < vocab; v++) sum += row[v] = Math.exp(this.capped(row[v]) - most);
      for (let v = 0; v < vocab; v++) row[v] /= sum;
      tokens[r] = best;
      confidence[r] = row[best];
    }
    return { tokens, confidence };
  }

  /** h = x @ E. */
  seen(state, to) {
    if (!this.onehot) { to.set(state); return; }
    this.arena.product(this.told.set(state), this.table, to);
  }

  scale(h, timeOf) {
    const { vocab, settings: { width, input_scale: deviation } } = this;
    for (let l = 0; l < this.length; l++) {
      const t = timeOf(l), variance = this.power * ((1 - t) ** 2 + t * t / vocab) + TINY;
      const factor = deviation / Math.sqrt(variance), at = l * h.stride;
      for (let d = 0; d < width; d++) h.data[at + d] *= factor;
    }
  }

  /** What the times say to every block: row 0, and in row 1 the time 1 of given tokens. */
  condition(tauS, tauT, some) {
    const rows = some ? 2 : 1, { conditioning } = this;
    conditioning.data.fill(0);
    this.times.forEach(([first, last], which) => {
      [which ? tauT : tauS, 1].slice(0, rows).forEach((tau, r) => {
        for (let f = 0; f < FREQUENCIES; f++) {
          const angle = Math.fround(tau) * Math.exp(-Math.log(MAX_PERIOD) * f / FREQUENCIES);
          this.waves.data[r * this.waves.stride + f] = Math.cos(angle);
          this.waves.data[r * this.waves.stride + FREQUENCIES + f] = Math.sin(angle);
        }
      });
      this.linear(this.waves, first.kernel, first.bias, this.hidden, rows);
      each(this.hidden, rows, (x) => x * sigmoid(x));
      this.linear(this.hidden, last.kernel, last.bias, this.embedded, rows);
      add(conditioning, this.embedded, rows);
    });
    each(conditioning, rows, (x) => x * sigmoid(x));
    this.conditions = rows;
  }

  linear(a, kernel, bias, c, rows) {
    this.arena.product(a, kernel, c, rows);
    if (!bias) return;
    for (let r = 0; r < rows; r++) {
      const at = r * c.stride;
      for (let n = 0; n < kernel.columns; n++) c.data[at + n] += bias[n];
    }
  }

  /** u = features of h, whose first row is at position `first`. */
  forward(rows, first, mask) {
    const { settings: { width }, h } = this, positions = this.vector("positions");
    for (let r = 0; positions && r < rows; r++) {
      const at = r * h.stride, place = (first + r) * width;
      for (let d = 0; d < width; d++) h.data[at + d] += positions[place + d];
    }
    this.layers.forEach((layer, i) => this.block(layer, i, rows, first, mask));
    const modulated = !this.settings.causal;
    if (modulated) {
      this.linear(
        this.conditioning, this.finalModulation, this.vector("final/modulation/bias"),
        this.modulation, this.conditions);
    }
    this.normalised(this.vector("final/norm/scale"), rows, modulated ? 0 : null, mask);
  }

  block(layer, i, rows, first, mask) {
    const modulated = !this.settings.causal, { width } = this.settings;
    if (modulated) {
      this.linear(
        this.conditioning, layer["modulation/kernel"], layer["modulation/bias"], this.modulation,
        this.conditions);
    }
    this.normalised(layer["norm_attention/scale"], rows, modulated ? 0 : null, mask);
    this.linear(this.u, layer["qkv/kernel"], null, this.qkv, rows);
    this.attention(layer, this.caches[this.settings.causal ? i : 0], rows, first);
    this.linear(this.u, layer["attention_out/kernel"], null, this.view, rows);
    this.gated(rows, modulated ? 2 * width : null, mask);

    this.normalised(layer["norm_mlp/scale"], rows, modulated ? 3 * width : null, mask);
    this.linear(this.u, layer["mlp_in/kernel"], layer["mlp_in/bias"], this.mlp, rows);
    if (this.gate) {
      this.linear(this.u, layer["mlp_gate/kernel"], layer["mlp_gate/bias"], this.gate, rows);
      const { gate, mlp } = this;
      for (let n = 0; n < rows * mlp.stride; n++) mlp.data[n] *= gate.data[n] * sigmoid(gate.data[n]);
    } else {
      const slope = 2 * Math.sqrt(2 / Math.PI);  // the tanh form of gelu
      each(this.mlp, rows, (x) => x * sigmoid(slope * (x + 0.044715 * x * x * x)));
    }
    this.linear(this.mlp, layer["mlp_out/kernel"], layer["mlp_out/bias"], this.view, rows);
    this.gated(rows, modulated ? 5 * width : null, mask);
  }

  /** h += gate * view; the gate is at that place of the modulation. */
  gated(rows, gate, mask) {
    const { h, view, modulation } = this, { width } = this.settings;
    if (gate === null) { add(h, view, rows); return; }
    for (let r = 0; r < rows; r++) {
      const at = r * h.stride, own = (mask && mask[r] ? modulation.stride : 0) + gate;
      for (let d = 0; d < width; d++) h.data[at + d] += modulation.data[own + d] * view.data[at + d];
    }
  }

  /** u = norm(h), modulated by shift and scale from that place of the modulation on. */
  normalised(scale, rows, shift, mask) {
    const { h, u, modulation } = this, { width, norm } = this.settings;
    for (let r = 0; r < rows; r++) {
      const at = r * h.stride;
      let mean = 0, square = 0;
      if (norm !== "rms") {
        for (let d = 0; d < width; d++) mean += h.data[at + d];
        mean /= width;
      }
      for (let d = 0; d < width; d++) square += (h.data[at + d] - mean) ** 2;
      const factor = 1 / Math.sqrt(square / width + EPSILON);
      const own = (mask && mask[r] ? modulation.stride : 0) + (shift ?? 0);
      for (let d = 0; d < width; d++) {
        const x = (h.data[at + d] - mean) * factor * scale[d];
        u.data[at + d] = shift === null
          ? x : x * (1 + modulation.data[own + width + d]) + modulation.data[own + d];
      }
    }
  }

  /** u = what the rows of qkv read, with a cache also from earlier positions. */
  attention(layer, cache, rows, first) {
    const { qkv, query, scores, read, u, headWidth } = this;
    const { width, heads, attention_cap: cap, causal } = this.settings, seen = first + rows;
    for (let head = 0; head < heads; head++) {
      const { keys, values } = cache[head], at = head * headWidth;
      for (let r = 0; r < rows; r++) {
        const row = r * qkv.stride + at, position = first + r;
        for (const [begin, name] of [[row, "q_norm/scale"], [row + width, "k_norm/scale"]]) {
          if (this.settings.qk_norm) rootMeanSquare(qkv.data, begin, layer[name]);
          this.rotate(qkv.data, begin, position);
        }
        for (let k = 0; k < headWidth; k++) {
          query.data[r * query.stride + k] = qkv.data[row + k] / Math.sqrt(headWidth);
          keys.data[k * keys.stride + position] = qkv.data[row + width + k];
          values.data[position * values.stride + k] = qkv.data[row + 2 * width + k];
        }
      }
      this.arena.product(query, keys, scores, rows);
      for (let r = 0; r < rows; r++) {
        const row = scores.data.subarray(r * scores.stride, r * scores.stride + scores.columns);
        if (seen < row.length) row.fill(0, seen);
        softmaxed(row.subarray(0, seen), causal ? 0 : cap);
      }
      this.arena.product(scores, values, read, rows);
      for (let r = 0; r < rows; r++) {
        const row = read.data.subarray(r * read.stride, r * read.stride + headWidth);
        u.data.set(row, r * u.stride + at);
      }
    }
  }

  rotate(data, begin, position) {
    const half = this.headWidth / 2, { cos, sin } = this.rotary;
    for (let k = 0; k < half; k++) {
      const a = data[begin + k], b = data[begin + half + k];
      const c = cos[position * half + k], s = sin[position * half + k];
      data[begin + k] = a * c - b * s;
      data[begin + half + k] = a * s + b * c;
    }
  }
}

function rotary(length, headWidth) {
  const half = headWidth / 2, cos = new Float32Array(length * half), sin = cos.slice();
  for (let k = 0; k < half; k++) {
    const wavelength = Math.fround(ROTARY_BASE ** Math.fround((2 * k) / headWidth));
    const frequency = Math.fround(1 / wavelength);
    for (let p = 0; p < length; p++) {
      const angle = Math.fround(p * frequency);
      cos[p * half + k] = Math.cos(angle);
      sin[p * half + k] = Math.sin(angle);
    }
  }
  return { cos, sin };
}

function rootMeanSquare(data, begin, scale) {
  let square = 0;
  for (let k = 0; k < scale.length; k++) square += data[begin + k] ** 2;
  const factor = 1 / Math.sqrt(square / scale.length + EPSILON);
  for (let k = 0; k < scale.length; k++) data[begin + k] *= factor * scale[k];
}

function softmaxed(row, cap) {
  let most = -Infinity, sum = 0;
  for (let n = 0; n < row.length; n++) {
    row[n] = capped(row[n], cap);
    if (row[n] > most) most = row[n];
  }
  for (let n = 0; n < row.length; n++) sum += row[n] = Math.exp(row[n] - most);
  for (let n = 0; n < row.length; n++) row[n] /= sum;
}

function add(to, from, rows) {
  for (let n = 0; n < rows * to.stride; n++) to.data[n] += from.data[n];
}

function each(matrix, rows, change) {
  const { data } = matrix, count = rows * matrix.stride;
  for (let n = 0; n < count; n++) data[n] = change(data[n]);
}

function transposed(data, rows, columns) {
  const found = new Float32Array(data.length);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) found[c * rows + r] = data[r * columns + c];
  }
  return found;
}
