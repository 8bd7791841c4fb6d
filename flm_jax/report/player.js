/* A path from noise to text as the report and the demo play it: a slider, a button and a stage.

   A frame is {at, sequences}: what is written beside the slider, and for each sequence its tokens
   [text, extra class, level of confidence 0..9, title]. */

export function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

export class Player {
  /** `node` holds an input of type range, an output, a button and a .stage. */
  constructor(node) {
    const find = (what) => node.querySelector(what);
    this.slider = find("input[type=range]");
    this.output = find("output");
    this.button = find("button");
    this.stage = find(".stage");
    this.frames = [];
    this.timer = null;
    this.button.addEventListener("click", () => (this.timer ? this.stop() : this.play()));
    this.slider.addEventListener("input", () => { this.stop(); this.draw(); });
  }

  /** Shows frames, at first the last one. */
  show(frames) {
    this.stop();
    this.frames = frames;
    this.slider.max = frames.length - 1;
    this.slider.value = frames.length - 1;
    this.draw();
  }

  get at() { return Number(this.slider.value); }

  draw() {
    const frame = this.frames[this.at];
    this.output.textContent = frame.at;
    this.stage.replaceChildren(...frame.sequences.map((sequence) => {
      const row = element("div", "tokens");
      row.append(...sequence.map(([text, extra, level, title]) => {
        const token = element("i", "c" + level + extra, text);
        token.title = title;
        return token;
      }));
      return row;
    }));
    this.stage.dispatchEvent(new Event("drawn"));
  }

  play() {
    if (this.at === this.frames.length - 1) this.slider.value = 0;
    this.draw();
    this.button.textContent = "pause";
    this.timer = setInterval(() => {
      if (this.at >= this.frames.length - 1) { this.stop(); return; }
      this.slider.value = this.at + 1;
      this.draw();
    }, Math.min(500, Math.max(60, 5000 / this.frames.length)));
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.button.textContent = "play";
  }
}
