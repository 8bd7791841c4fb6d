/* Loads models and writes with them, beside the page, so that the page stays alive. */

import { readSafetensors } from "./arrays.js";
import { Network } from "./network.js";
import { ways, write } from "./sampling.js";

const networks = new Map();
let latest = 0;

onmessage = async ({ data: { load, id, folder, way, options } }) => {
  try {
    if (load) await loaded(load);
    else await written(id, networks.get(folder), way, options);
  } catch (error) {
    postMessage({ id, folder: load ?? folder, failed: error.message });
  }
};

async function loaded(folder) {
  const model = JSON.parse(await fetched(`${folder}/model.json`, "text"));
  const weights = await fetched(`${folder}/model.safetensors`, "arrayBuffer");
  const network = new Network(model, readSafetensors(weights));
  networks.set(folder, await network.settle(await fetched("product.wasm", "arrayBuffer")));
  for (const way of Object.keys(ways(model))) {  // what is timed later is compiled then
    [...write(network, way, { steps: 2, rounds: 1, seed: 0 })];
  }
  postMessage({ folder, model });
}

async function fetched(path, kind) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} is missing (${answer.status}); write the folder again`);
  return answer[kind]();
}

/** Posts every frame with the milliseconds of its evaluation; a later request ends this one. */
async function written(id, network, way, options) {
  latest = id;
  const frames = write(network, way, options);
  while (true) {
    const begin = performance.now(), { value: frame, done } = frames.next();
    postMessage(done ? { id, done } : { id, frame, milliseconds: performance.now() - begin });
    await new Promise((resolve) => setTimeout(resolve));
    if (done || latest !== id) return;
  }
}
