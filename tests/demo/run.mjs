/* What the page's JavaScript answers: node run.mjs [MODEL_FOLDER] < tasks.json > answers.json */

import fs from "node:fs";
import { readSafetensors } from "./arrays.js";
import { Network } from "./network.js";
import { clockOf, write } from "./sampling.js";
import { tokenizer } from "./tokenizer.js";

const here = new URL(".", import.meta.url).pathname;
const plain = (value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);
const listed = (found) => Object.fromEntries(Object.entries(found).map(([k, v]) => [k, plain(v)]));
const floats = (values) => values && Float32Array.from(values);
const given = (told) => told && {
  tokens: Int32Array.from(told.tokens), mask: Uint8Array.from(told.mask, Number),
};

let network = null;
if (process.argv[2]) {
  const folder = process.argv[2];
  const model = JSON.parse(fs.readFileSync(`${folder}/model.json`));
  const file = fs.readFileSync(`${folder}/model.safetensors`);
  const tensors = readSafetensors(file.buffer.slice(file.byteOffset, file.byteOffset + file.length));
  network = await new Network(model, tensors).settle(fs.readFileSync(`${here}/product.wasm`));
}

const answers = {
  predict({ state, estimate, tauS, tauT, given: told }) {
    const t = clockOf(network).toT(tauS);
    const asked = { tauS, tauT, t, given: given(told), estimate: floats(estimate) ?? null };
    return { t, ...listed(network.predict(floats(state), asked)) };
  },
  times({ taus }) {
    return taus.map((tau) => clockOf(network).toT(tau));
  },
  write({ way, raws, ...options }) {
    const raw = raws && ((purpose, i) => floats(raws[`${purpose},${i}`]));
    const frames = write(network, way, { ...options, given: given(options.given) ?? null, raw });
    return [...frames].map(listed);
  },
  encode({ told, texts }) {
    const encode = tokenizer(told);
    return texts.map((text) => encode(text));
  },
};

const tasks = JSON.parse(fs.readFileSync(0));
fs.writeFileSync(1, JSON.stringify(tasks.map(({ what, ...task }) => answers[what](task))));
