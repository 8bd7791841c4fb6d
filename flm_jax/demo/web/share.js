/* A text while it is written as a picture: rows of frames (SVG), or one after the other (GIF). */

import { GIFEncoder, applyPalette, quantize } from "./gifenc.js";

const PER_LINE = 76, LINE = 24, FONT = 14, LETTER = 8.4, MARGIN = 16, LABEL = 34, MOST_ROWS = 9;
// How strong the colours of strip.css are, by level of confidence.
const STRENGTH = [0.52, 0.44, 0.36, 0.27, 0.17, 0.08, 0.15, 0.22, 0.3, 0.38];
const MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";

/** Tokens with their place: {text, level, extra, line, column, size}, and the number of lines. */
function placed(frame) {
  let line = 0, column = 0;
  const tokens = frame.sequences[0].map(([text, extra, level]) => {
    const size = Array.from(text).length;
    if (column && column + size > PER_LINE) [line, column] = [line + 1, 0];
    const found = { text, level, extra, line, column, size };
    column += size;
    return found;
  });
  return { tokens, lines: line + 1 };
}

/** The colours that the page has now, light or dark. */
function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  return Object.fromEntries(["paper", "ink", "muted", "unsure", "sure"].map((n) => [n, of(n)]));
}

const escaped = (text) => text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);

/** Rows from noise to text, at most nine of them. */
export function svg(frames, caption) {
  const colour = colours(), parts = [], width = 2 * MARGIN + LABEL + PER_LINE * LETTER;
  const count = Math.min(MOST_ROWS, frames.length);
  const chosen = Array.from({ length: count }, (_, i) =>
    (count === 1 ? 0 : Math.round((i * (frames.length - 1)) / (count - 1))));
  let y = MARGIN + LINE;
  for (const index of chosen) {
    const { tokens, lines } = placed(frames[index]);
    parts.push(`<text x="${MARGIN}" y="${y + 16}" fill="${colour.muted}">${index + 1}</text>`);
    for (const { text, level, extra, line, column, size } of tokens) {
      const x = MARGIN + LABEL + column * LETTER, top = y + line * LINE, wide = size * LETTER;
      parts.push(`<rect x="${x.toFixed(1)}" y="${top}" width="${wide.toFixed(1)}" height="${LINE - 3}" rx="3" `
        + `fill="${level < 5 ? colour.unsure : colour.sure}" fill-opacity="${STRENGTH[level]}"/>`);
      if (!text.trim()) continue;
      parts.push(`<text x="${x.toFixed(1)}" y="${top + 16}" textLength="${wide.toFixed(1)}" xml:space="preserve" `
        + `fill="${extra ? colour.muted : colour.ink}">${escaped(text)}</text>`);
    }
    y += lines * LINE + 8;
  }
  const head = `<text x="${MARGIN}" y="${MARGIN + 12}" fill="${colour.muted}">${escaped(caption)}</text>`;
  const whole = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${y + 4}" width="${width}" `
    + `height="${y + 4}" font-family="${MONO}" font-size="${FONT}">`
    + `<rect width="100%" height="100%" rx="8" fill="${colour.paper}"/>${head}${parts.join("")}</svg>\n`;
  return new Blob([whole], { type: "image/svg+xml" });
}

/** All frames one after the other; the last one stays for three seconds. */
export function gif(frames, caption) {
  const colour = colours(), all = frames.map(placed), encoder = GIFEncoder();
  const canvas = document.createElement("canvas");
  canvas.width = Math.ceil(2 * MARGIN + PER_LINE * LETTER);
  canvas.height = 2 * MARGIN + LINE + LINE * Math.max(...all.map(({ lines }) => lines));
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.font = `${FONT}px ${MONO}`;
  all.forEach(({ tokens }, i) => {
    pen.fillStyle = colour.paper;
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.fillStyle = colour.muted;
    pen.fillText(`${i + 1}  ${caption}`, MARGIN, MARGIN + 12, canvas.width - 2 * MARGIN);
    for (const { text, level, extra, line, column, size } of tokens) {
      const x = MARGIN + column * LETTER, y = MARGIN + LINE + line * LINE;
      pen.globalAlpha = STRENGTH[level];
      pen.fillStyle = level < 5 ? colour.unsure : colour.sure;
      pen.fillRect(x, y, size * LETTER, LINE - 3);
      pen.globalAlpha = 1;
      pen.fillStyle = extra ? colour.muted : colour.ink;
      pen.fillText(text, x, y + 16, size * LETTER);
    }
    const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
    const palette = quantize(data, 64), last = i === all.length - 1;
    const delay = last ? 3000 : Math.max(60, Math.min(500, 4000 / all.length));
    encoder.writeFrame(applyPalette(data, palette), canvas.width, canvas.height, { palette, delay });
  });
  encoder.finish();
  return new Blob([encoder.bytes()], { type: "image/gif" });
}

/** Offers a file to be saved. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
