/* How texts are drawn (flm_jax/samplers/): each function yields one frame for every evaluation of
   the network, {tau, tokens, confidence, given}. `options` are

   steps   evaluations                 seed    of the noise
   given   {tokens, mask} or null      rounds  of a refinement
   raw     (purpose, i) -> raw noise, to be used in the place of that of the seed; for tests */

import { Clock, grid } from "./clock.js";

const START = 0, STEP = 1, TOKENS = 2, ROUND = 4;  // purposes, as in samplers/rounds.py
const EPSILON_MAP = 1e-8;

/** Numbers of a seed, the same in every browser (sfc32). */
export class Random {
  constructor(...words) {
    this.state = [0x9e3779b9, 0x243f6a88, 0xb7e15162, 1];
    words.forEach((word, i) => { this.state[i % 3] = (this.state[i % 3] ^ Math.imul(word + 1, 0x85ebca6b)) | 0; });
    for (let i = 0; i < 20; i++) this.next();
  }

  next() {
    let [a, b, c, count] = this.state;
    const found = (a + b + count) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + found) | 0;
    this.state = [a, b, c, (count + 1) | 0];
    return found >>> 0;
  }

  /** In (0, 1). */
  uniform() { return (this.next() + 0.5) / 2 ** 32; }

  normals(count) {
    const found = new Float32Array(count);
    for (let n = 0; n < count; n += 2) {
      const radius = Math.sqrt(-2 * Math.log(this.uniform())), angle = 2 * Math.PI * this.uniform();
      found[n] = radius * Math.cos(angle);
      if (n + 1 < count) found[n + 1] = radius * Math.sin(angle);
    }
    return found;
  }
}

/** The ways in which a model can be asked to write: name -> what the page calls it. */
export function ways(model) {
  if (model.settings.causal) return { causal: "token by token" };
  const flow = model.settings.two_times ? "jumps" : "small steps of the flow";
  const found = { flow, fresh: "fresh noise in every step" };
  return model.given ? { rounds: "rounds that keep what is sure", ...found } : found;
}

/** The frames of a text written in one of the `ways`. */
export function write(network, way, options) {
  if (network.settings.causal) return leftToRight(network, options);
  return way === "rounds" ? inRounds(network, options) : steps(network, way === "fresh", options);
}

export const clockOf = (network) => {
  if (!("clock/knots" in network.tensors)) return new Clock(null);
  const table = (name) => network.tensors[`clock/${name}`].data;
  const names = ["knots", "low", "scale", "coefficients"];
  return new Clock(Object.fromEntries(names.map((name) => [name, table(name)])));
};

function noiseOf(network, options, purpose, i, scale = 1) {
  const count = network.length * network.stateWidth;
  const raw = options.raw?.(purpose, i) ?? new Random(options.seed, purpose, i).normals(count);
  return network.scattered(raw, scale);
}

/** The state with given tokens put in. */
function clean(network, state, given) {
  const width = network.stateWidth, found = state.slice();
  given?.mask.forEach((fixed, l) => {
    if (fixed) network.clean(given.tokens[l], found.subarray(l * width, (l + 1) * width));
  });
  return found;
}

/** keep * state + add * mean + size * noise, but given tokens stay. */
function moved(network, state, mean, { keep, add, size = 0 }, noise, mask) {
  const width = network.stateWidth, found = state.slice();
  for (let l = 0; l < network.length; l++) {
    if (mask?.[l]) continue;
    for (let n = l * width; n < (l + 1) * width; n++) {
      found[n] = keep * state[n] + add * mean[n] + (size ? size * noise[n] : 0);
    }
  }
  return found;
}

/** Even steps: of the flow, jumps of a flow map, or with all noise drawn anew in every step. */
export function* steps(network, fresh, options) {
  const { model } = network, { given = null, steps: count } = options, clock = clockOf(network);
  const twoTimes = model.settings.two_times, times = grid(count, model.grid_power);
  let state = clean(network, noiseOf(network, options, START, 0, model.prior_scale), given);
  let estimate = model.settings.self_conditioning ? new Float32Array(state.length) : null;
  for (let i = 0; i < count; i++) {
    const [tauS, tauT] = [times[i], times[i + 1]], [t, then] = [tauS, tauT].map((x) => clock.toT(x));
    const asked = { tauS, tauT: fresh ? 1 : tauT, t, given, estimate };
    const { tokens, confidence, mean } = network.predict(state, asked);
    if (i < count - 1) {
      const move = twoTimes ? jump(t, fresh ? 1 : then, 0) : euler(t, fresh ? 1 : then, model.eps);
      if (fresh) Object.assign(move, { add: move.add - (1 - then), size: 1 - then });
      const noise = fresh ? noiseOf(network, options, STEP, i) : null;
      state = moved(network, state, mean, move, noise, given?.mask);
      estimate = estimate && mean;
    }
    yield { tau: tauS, tokens, confidence, given: given?.mask ?? null };
  }
}

function euler(t, then, eps) {
  const add = t >= 1 ? 0 : (then - t) / (1 - t + eps);
  return { keep: 1 - add, add };
}

function jump(t, then, eps) {
  if (t >= 1) return { keep: 1, add: 0 };
  return { keep: (1 - then) / (1 - t + eps), add: (then - t) / (1 - t + eps) };
}

/** Posterior refinement (samplers/refinement.py): every round commits what is surest. */
export function* inRounds(network, options) {
  const { model, length } = network, clock = clockOf(network), twoTimes = model.settings.two_times;
  const total = options.steps, rounds = Math.min(options.rounds, total);
  const each = Math.floor(total / rounds), more = total % rounds;
  const mask = Uint8Array.from({ length }, (_, l) => options.given?.mask[l] ?? 0);
  const tokens = Int32Array.from({ length }, (_, l) => options.given?.tokens[l] ?? 0);
  let first = noiseOf(network, options, START, 0, model.prior_scale);
  for (let round = 0; round < rounds; round++) {
    if (mask.every(Boolean)) return;
    const given = { tokens: tokens.slice(), mask: mask.slice() };
    const times = grid(each + (round < more ? 1 : 0), model.grid_power);
    let state = clean(network, first, given), found = null;
    let estimate = model.settings.self_conditioning ? new Float32Array(state.length) : null;
    for (let i = 0; i + 1 < times.length; i++) {
      const [tauS, tauT] = [times[i], times[i + 1]], [t, then] = [tauS, tauT].map((x) => clock.toT(x));
      found = network.predict(state, { tauS, tauT, t, given, estimate });
      if (i + 2 < times.length) {
        const step = round * each + Math.min(round, more) + i;
        const move = twoTimes ? jump(t, then, EPSILON_MAP) : { keep: 0, add: then, size: 1 - then };
        const noise = twoTimes ? null : noiseOf(network, options, STEP, step);
        state = moved(network, state, found.mean, move, noise, mask);
        estimate = estimate && found.mean;
      }
      yield { tau: tauS, round, tokens: found.tokens, confidence: found.confidence, given: given.mask };
    }
    commit(mask, tokens, found, round === rounds - 1, rounds - round, model.threshold);
    first = noiseOf(network, options, ROUND, round, model.prior_scale);
  }
}

/** Marks as given the round's share of the surest open tokens, and what reaches the threshold. */
function commit(mask, tokens, { tokens: likeliest, confidence }, all, roundsLeft, threshold) {
  const open = [...mask.keys()].filter((l) => !mask[l]);
  open.sort((a, b) => confidence[b] - confidence[a] || a - b);
  const share = Math.ceil(open.length / roundsLeft);
  open.forEach((l, rank) => {
    if (!all && rank >= share && !(threshold >= 0 && confidence[l] >= threshold)) return;
    mask[l] = 1;
    tokens[l] = likeliest[l];
  });
}

/** The autoregressive baseline: one token after the other, each drawn given those before it. */
export function* leftToRight(network, options) {
  const { model, length, vocab } = network, { given = null } = options;
  const tokens = new Int32Array(length).fill(model.bos_id), confidence = new Float32Array(length);
  if (given?.mask[0]) tokens[0] = given.tokens[0];
  confidence[0] = 1;
  const written = new Uint8Array(length);
  written[0] = 1;
  for (let i = 0; i < length - 1; i++) {
    const logits = network.advance(tokens[i], i);
    for (const token of model.never) logits[token] = -Infinity;
    const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
    const total = logits.reduce((sum, x) => sum + Math.exp(x - most), 0);
    let next = given?.mask[i + 1] ? given.tokens[i + 1] : null;
    const fixed = next !== null;
    if (!fixed) next = drawn(logits, model.top_p, most, total, options.raw?.(TOKENS, i) ?? null,
      new Random(options.seed, TOKENS, i), vocab);
    tokens[i + 1] = next;
    confidence[i + 1] = fixed ? 1 : Math.exp(logits[next] - most) / total;
    written[i + 1] = 1;
    yield {
      tau: (i + 1) / (length - 1), tokens: tokens.slice(), confidence: confidence.slice(),
      given: given?.mask ?? null, written: written.slice(),
    };
  }
}

/** A token by its probability: the arg max of logits with Gumbel noise, within the nucleus. */
function drawn(logits, topP, most, total, gumbel, random, vocab) {
  let limit = -Infinity;
  if (topP < 1) {
    const sorted = logits.slice().sort().reverse();
    let before = 0;
    for (const x of sorted) {
      if (before >= topP) break;
      limit = x;
      before += Math.exp(x - most) / total;
    }
  }
  let best = -1, highest = -Infinity;
  for (let v = 0; v < vocab; v++) {
    const noise = gumbel ? gumbel[v] : -Math.log(-Math.log(random.uniform()));
    if (logits[v] >= limit && logits[v] + noise > highest) [best, highest] = [v, logits[v] + noise];
  }
  return best;
}
