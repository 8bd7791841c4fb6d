/* The page: what is asked of the models, and their texts. The work is done in worker.js. */

import { Player, element } from "./player.js";
import { ways } from "./sampling.js";
import { gif, save, svg } from "./share.js";
import { tokenizer } from "./tokenizer.js";

const find = (name) => document.getElementById(name);
const worker = new Worker("worker.js", { type: "module" });
const columns = [];
let requests = 0, listener = null;

// The worker's answers.

/** Loads a model into the worker; its model.json. */
function load(folder) {
  return new Promise((resolve, reject) => {
    listener = ({ model, failed }) => (failed ? reject(new Error(failed)) : resolve(model));
    worker.postMessage({ load: folder });
  });
}

/** The frames of one text; `seen` is called with each. False if another request came between. */
function written(column, way, options, seen) {
  const id = ++requests;
  return new Promise((resolve, reject) => {
    listener?.({ id: null });
    listener = (answer) => {
      if (answer.id === null) resolve(false);
      if (answer.id !== id) return;
      if (answer.failed) reject(new Error(answer.failed));
      else if (answer.done) resolve(true);
      else seen(answer.frame, answer.milliseconds);
    };
    worker.postMessage({ id, folder: column.folder, way, options });
  });
}

worker.onmessage = ({ data }) => listener?.(data);
worker.onerror = () => tell("This browser cannot run the page: it lacks module workers.");

function tell(text) {
  const status = find("status") ?? element("p", "note warn");
  status.textContent = text;
  if (!status.isConnected) find("models").before(status);
}

// One model.

class Column {
  constructor(folder, model) {
    Object.assign(this, { folder, model, frames: [], milliseconds: [] });
    this.encode = tokenizer(model.tokenizer);
    this.kept = new Uint8Array(model.length);
    this.node = find("column").content.cloneNode(true).firstElementChild;
    const part = (what) => this.node.querySelector(what);
    part("h2").textContent = model.name;
    part(".facts").textContent = `${model.kind} of ${model.parameters.toLocaleString("en")} parameters, `
      + `${model.length} tokens of ${model.vocab_size.toLocaleString("en")}, `
      + `training step ${model.training_step.toLocaleString("en")}`;
    this.timing = part(".timing");
    this.player = new Player(part(".player"));
    this.player.stage.addEventListener("drawn", () => this.mark());
    this.player.stage.addEventListener("click", (event) => this.toggle(event.target));
    this.player.stage.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      this.toggle(event.target);
    });
    for (const button of this.node.querySelectorAll("[data-do]")) {
      const name = button.dataset.do;
      button.hidden = !this.takesTokens && (name === "all" || name === "none");
      button.addEventListener("click", () => this[name](button));
    }
  }

  /** Whether tokens can be given to it. */
  get takesTokens() { return this.model.given || this.model.settings.causal; }

  /** The way of the page, or its own where it does not have that one. */
  way(asked) { return asked in ways(this.model) ? asked : this.model.way; }

  /** What the prompt gives it: null for nothing. An error has a sentence. */
  prompted(text) {
    if (!text || !this.encode) return null;
    if (!this.takesTokens) throw new Error("It was not trained with given tokens, so it takes no beginning.");
    const { length, bos_id: bos } = this.model, ids = this.encode(text);
    const given = bos === null ? ids : [bos, ...ids];
    if (given.length >= length) {
      throw new Error(`The beginning has ${given.length} tokens, but a text has ${length}: shorten it.`);
    }
    return {
      tokens: Int32Array.from({ length }, (_, l) => given[l] ?? 0),
      mask: Uint8Array.from({ length }, (_, l) => (l < given.length ? 1 : 0)),
    };
  }

  /** What is kept of its text: null for nothing. */
  keeping() {
    const { kept } = this;
    if (!this.finished || !kept.some(Boolean)) return null;
    const open = kept.indexOf(0);
    if (this.model.settings.causal && kept.lastIndexOf(1) > open && open >= 0) {
      throw new Error("It writes from left to right, so only a beginning can be kept.");
    }
    return { tokens: this.finished.tokens, mask: kept.slice() };
  }

  async write(asked, steps, seed, given) {
    const { model } = this, way = this.way(asked), causal = model.settings.causal;
    [this.frames, this.milliseconds, this.finished] = [[], [], null];
    this.kept = given ? given.mask.slice() : new Uint8Array(model.length);
    this.sure = new Float32Array(model.length).fill(1);  // the probability of every token
    let last = null;
    this.timing.ariaBusy = "true";  // read out when it is done
    const rounds = Math.min(steps, model.rounds);
    const whole = await written(this, way, { steps, seed, given, rounds }, (frame, milliseconds) => {
      last = frame;
      this.frames.push(this.shown(frame, milliseconds));
      this.milliseconds.push(milliseconds);
      this.player.show(this.frames);
      this.time(ways(model)[way], causal ? model.length - 1 : steps);
    });
    if (!whole) return false;
    this.finished = last;
    this.timing.ariaBusy = "false";
    if (this.frames.length) this.player.draw();
    return true;
  }

  /** A frame as the player shows it. */
  shown(frame, milliseconds) {
    const { pieces } = this.model;
    const tokens = Array.from(frame.tokens, (token, l) => {
      if (frame.written && !frame.written[l]) return ["·", " unwritten", 0, "not written yet"];
      if (!frame.given?.[l]) this.sure[l] = frame.confidence[l];  // and so a round commits it
      const [text, extra] = pieces[token], sure = this.sure[l];
      const level = Math.min(9, Math.floor(10 * sure));
      return [text, extra, level, `${text}  ${this.kept[l] ? "given" : sure.toFixed(2)}`];
    });
    const round = frame.round === undefined ? "" : `round ${frame.round + 1} · `;
    const tau = Number(frame.tau.toPrecision(2));
    const at = `${this.frames.length + 1} · ${round}τ ${tau} · ${milliseconds.toFixed(0)} ms`;
    return { at, sequences: [tokens] };
  }

  time(way, expected) {
    const count = this.milliseconds.length, all = this.milliseconds.reduce((a, b) => a + b, 0);
    const more = count < expected && !this.finished ? ` of ${expected}` : "";
    this.timing.replaceChildren(
      element("b", "", `${count}${more} evaluation${count === 1 ? "" : "s"}, ${all.toFixed(0)} ms`),
      ` · ${(all / count).toFixed(1)} ms each · ${way}`);
  }

  fail(message) {
    this.timing.replaceChildren(element("span", "warn", message));
  }

  // Tokens that are kept.

  get atEnd() { return this.finished && this.player.at === this.frames.length - 1; }

  mark() {
    const tokens = [...this.player.stage.querySelectorAll("i")];
    tokens.forEach((token, l) => {
      const kept = Boolean(this.kept[l]);
      token.classList.toggle("kept", kept);
      if (!this.atEnd || !this.takesTokens) return;
      token.setAttribute("role", "button");
      token.setAttribute("aria-pressed", kept);
      token.tabIndex = 0;
    });
    find("fill").disabled = !columns.some((column) => column.finished && column.kept.some(Boolean));
  }

  toggle(token) {
    const at = [...this.player.stage.querySelectorAll("i")].indexOf(token);
    if (at < 0 || !this.atEnd || !this.takesTokens) return;
    this.kept[at] ^= 1;
    this.mark();
  }

  all() { this.kept.fill(1); this.mark(); }

  none() { this.kept.fill(0); this.mark(); }

  // What is taken along.

  copy(button) {
    const [tokens] = this.frames.at(-1)?.sequences ?? [[]];
    const text = tokens.map(([text, extra]) => (extra ? "\n" : text.replaceAll("↵", "\n"))).join("");
    navigator.clipboard?.writeText(text.split("\n").map((line) => line.trim()).join("\n").trim());
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy text"; }, 1500);
  }

  svg() { if (this.frames.length) save(svg(this.frames, this.caption), "noise-to-text.svg"); }

  gif() { if (this.frames.length) save(gif(this.frames, this.caption), "noise-to-text.gif"); }

  get caption() { return `${this.model.name} · ${this.timing.textContent}`; }
}

// The controls.

/** Asks every model, one after the other, so that none waits for another's arithmetic. */
async function ask(givenOf) {
  const steps = Number(find("steps").value), seed = Number(find("seed").value) || 0;
  document.body.dataset.state = "busy";
  for (const column of columns) {
    try {
      const whole = await column.write(find("way").value, steps, seed, givenOf(column));
      if (!whole) return;
    } catch (error) {
      column.fail(error.message);
    }
  }
  document.body.dataset.state = "idle";
}

function showSteps() {
  find("steps-shown").textContent = find("steps").value;
}

const begin = () => ask((column) => column.prompted(find("prompt").value));

function anotherSeed() {
  find("seed").value = (Number(find("seed").value) + 1) % 2 ** 32;
}

find("controls").addEventListener("submit", (event) => { event.preventDefault(); begin(); });
find("steps").addEventListener("input", showSteps);
find("steps").addEventListener("change", begin);
find("again").addEventListener("click", () => { anotherSeed(); begin(); });
find("fill").addEventListener("click", () => {
  anotherSeed();
  ask((column) => column.keeping() ?? column.prompted(find("prompt").value));
});

async function start() {
  for (let i = 0; i < 10; i++) find("scale").append(element("i", `c${i}`));
  find("scale").append(element("span", "", "1"), element("span", "", "¶ begins or ends a document"));
  const folders = await (await fetch("models.json")).json();
  for (const [i, folder] of folders.entries()) {
    tell(`loading model ${i + 1} of ${folders.length} …`);
    columns.push(new Column(folder, await load(folder)));
  }
  find("models").replaceChildren(...columns.map((column) => column.node));
  const [{ model }] = columns, known = Object.assign({}, ...columns.map((c) => ways(c.model)));
  delete known.causal;
  find("way").append(...Object.entries(known).map(([name, text]) => {
    const option = element("option", "", text);
    option.value = name;
    return option;
  }));
  const flows = columns.map((c) => c.model).filter((m) => !m.settings.causal);
  find("way").disabled = find("steps").disabled = !flows.length;
  if (flows.length) find("way").value = flows[0].way;
  find("steps").value = (flows[0] ?? model).steps;
  showSteps();
  const cannot = columns.find((column) => !column.encode);
  if (cannot || !columns.some((column) => column.takesTokens)) {
    find("prompt").disabled = true;
    find("prompt-note").hidden = false;
    find("prompt-note").textContent = cannot
      ? `${cannot.model.tokenizer.why}, so nothing can be typed.`
      : "No model here was trained with given tokens, so they take no beginning.";
  }
  find("help").hidden = !columns.some((column) => column.takesTokens);
  find("write").disabled = find("again").disabled = false;
  await begin();
}

start().catch((error) => tell(`The page cannot start: ${error.message}`));
