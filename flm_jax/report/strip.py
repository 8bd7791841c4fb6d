"""The denoising strip: a few sequences while a sampler writes them, coloured by confidence."""

import numpy as np

from flm_jax.report.markup import as_json, escape, note, number, tabs

MAX_ROWS = 12  # frames printed one under the other; the slider has more
MAX_FRAMES = 65
MAX_SEQUENCES = 4
MAX_TOKENS = 256
_ENDS = {"<s>", "</s>", "[bos]", "[eos]", "[cls]", "[sep]", "<bos>", "<eos>", "<|endoftext|>"}
_PADS = {"<pad>", "[pad]"}


def strip(data: dict) -> str:
    """Return the strip of results.json: frames {"tau", "t", "sequences": [[[piece, confidence]]]}.

    "tokens_end" (pieces of the finished sequences) may be absent; the last frame stands in for it.
    """
    frames = [data["frames"][i] for i in spread(len(data["frames"]), MAX_FRAMES)]
    if not frames:
        return note("the strip has no frames")
    frames, ends = _space_word_pieces(frames, data.get("tokens_end"))
    count = min(MAX_SEQUENCES, len(frames[0]["sequences"]))
    ends = [_end(ends, frames, i) for i in range(count)]
    panels = [
        (f"sequence {i + 1}", "".join(_row(frame, i, ends[i]) for frame in _rows(frames)))
        for i in range(count)
    ]
    player = _player(frames, count) if len(frames) > MAX_ROWS else ""
    return f'<div class="strip">{_legend()}{player}{tabs("strip", panels)}</div>'


def spread(count: int, most: int) -> list[int]:
    """Indices of at most `most` of `count` things, evenly, with the first and the last."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most)).round()})


def _space_word_pieces(frames: list[dict], ends) -> tuple[list[dict], list | None]:
    """WordPiece marks what continues a word (##) instead of what begins one: turn that round."""
    ends = ends if isinstance(ends, list) else None
    pieces = (t[0] for frame in frames for sequence in frame["sequences"] for t in sequence)
    if not any(len(piece) > 2 and piece.startswith("##") for piece in pieces):
        return frames, ends

    def turn(piece):
        return piece[2:] if piece.startswith("##") else f" {piece}"

    turned = [
        frame | {"sequences": [[(turn(p), c) for p, c in s] for s in frame["sequences"]]}
        for frame in frames
    ]
    return turned, ends and [[turn(piece) for piece in sequence] for sequence in ends]


def _rows(frames: list[dict]) -> list[dict]:
    return [frames[i] for i in spread(len(frames), MAX_ROWS)]


def _end(given, frames: list[dict], index: int) -> list[str]:
    """The pieces of the finished sequence."""
    if isinstance(given, list) and len(given) > index and isinstance(given[index], list):
        pieces = given[index]
        if pieces and all(isinstance(piece, str) for piece in pieces):
            return pieces
    return [piece for piece, _ in frames[-1]["sequences"][index]]


def _row(frame: dict, index: int, end: list[str]) -> str:
    tokens = frame["sequences"][index][:MAX_TOKENS]
    settled = sum(token[0] == last for token, last in zip(tokens, end, strict=False))
    share = f"{100 * settled / max(1, len(tokens)):.0f} % final"
    spans = "".join(_span(piece, confidence) for piece, confidence in tokens)
    return (
        f'<div class="frame"><div class="at"><b>τ {frame["tau"]:.3g}</b> '
        f"<span>t {frame['t']:.3g}</span> <span>{share}</span></div>"
        f'<div class="tokens">{spans}</div></div>'
    )


def shown(piece: str) -> tuple[str, str]:
    """Return (text to show, extra class): word marks as spaces, ends of documents as one sign."""
    if piece.lower().strip() in _ENDS:
        return "¶", " end"
    if piece.lower().strip() in _PADS:
        return "∅", " end"
    text = piece.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "↵").replace("\n", "↵")
    return text or "·", ""


def level(confidence: float) -> int:
    """Return the colour class 0..9 of a confidence."""
    return int(min(9, max(0.0, confidence) * 10)) if confidence == confidence else 0


def _span(piece: str, confidence: float) -> str:
    text, extra = shown(piece)
    title = f"{piece}  {confidence:.2f}"
    return f'<i class="c{level(confidence)}{extra}" title="{escape(title)}">{escape(text)}</i>'


def _legend() -> str:
    scale = "".join(f'<i class="c{i}"></i>' for i in range(10))
    return (
        '<p class="scale"><span>most likely token at each position, by its probability: 0</span>'
        f"{scale}<span>1</span><span>¶ ends a document; rows run from noise (top) to text"
        "</span></p>"
    )


def _player(frames: list[dict], count: int) -> str:
    """A slider through all frames; the script fills and shows it."""
    data = [
        {
            "at": f"{i} · τ {frame['tau']:.3g} · t {frame['t']:.3g}",
            "sequences": [
                [
                    [*shown(piece), level(confidence), f"{piece}  {confidence:.2f}"]
                    for piece, confidence in sequence[:MAX_TOKENS]
                ]
                for sequence in frame["sequences"][:count]
            ],
        }
        for i, frame in enumerate(frames)
    ]
    return (
        f'<div class="player" hidden><label>step <input type="range" min="0" '
        f'max="{len(frames) - 1}" value="{len(frames) - 1}"> <output></output></label>'
        f'<button type="button">play</button><div class="stage"></div>'
        f'<script type="application/json">{as_json(data)}</script>'
        f'<p class="note">{escape(number(len(frames)))} frames; below, some of them in rows</p>'
        "</div>"
    )
