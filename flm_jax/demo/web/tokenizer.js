/* From text to tokens, as flm_jax/tokenizers/ does it; `told` is what demo/tokenizer.py wrote. */

const SPACE = "\u2581";  // what SentencePiece writes for a space
const UNKNOWN_PENALTY = 10;

/** A function from text to ids without special tokens; null where the page has no such tokenizer. */
export function tokenizer(told) {
  if (told.why) return null;
  const ids = new Map(Object.entries(told.ids));
  const id = (piece) => ids.get(piece) ?? told.unknown;
  if (told.kind === "characters") return (text) => Array.from(text, id);
  if (told.kind === "whitespace_words") {
    return (text) => text.split(WHITE).filter(Boolean).map(id);
  }
  return unigram(told, ids);
}

// What Python's str.split takes for white space.
const WHITE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/;

/** SentencePiece's unigram model: the most probable way to cut the text into pieces. */
function unigram(told, ids) {
  const { scores, unknown, bytes } = told;
  const known = [...ids.values()].map((i) => scores[i]);
  const ofUnknown = Math.fround(Math.min(...known) - UNKNOWN_PENALTY);
  const longest = Math.max(...[...ids.keys()].map((piece) => Array.from(piece).length));

  return (text) => {
    text = text.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "?");
    if (told.stand_in) text = text.replaceAll(SPACE, told.stand_in);
    if (text && told.prefix) text = ` ${text}`;
    const letters = Array.from(text.replaceAll(" ", SPACE)), end = letters.length;
    const best = new Float32Array(end + 1), from = new Int32Array(end + 1).fill(-1);
    const chosen = new Int32Array(end + 1);
    const offer = (begin, stop, token, score) => {
      const whole = Math.fround(best[begin] + score);
      if (from[stop] >= 0 && whole <= best[stop]) return;
      [best[stop], from[stop], chosen[stop]] = [whole, begin, token];
    };
    for (let begin = 0; begin < end; begin++) {
      let piece = "", single = false;
      for (let stop = begin + 1; stop <= Math.min(end, begin + longest); stop++) {
        piece += letters[stop - 1];
        const token = ids.get(piece);
        if (token === undefined) continue;
        offer(begin, stop, token, scores[token]);
        single ||= stop === begin + 1;
      }
      if (!single) offer(begin, begin + 1, unknown, ofUnknown);
    }
    const found = [];
    for (let at = end; at > 0; at = from[at]) found.unshift([chosen[at], from[at], at]);
    return found.flatMap(([token, begin, stop], i) => {
      if (token !== unknown) return [token];
      if (bytes) {
        const letter = letters.slice(begin, stop).join("");
        return Array.from(new TextEncoder().encode(letter), (byte) => bytes[byte]);
      }
      return i && found[i - 1][0] === unknown ? [] : [unknown];  // one for a run of them
    });
  };
}
