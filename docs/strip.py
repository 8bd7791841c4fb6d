"""Draws docs/strip.svg, the picture of the README, from a denoiser and its flow map.

    python docs/strip.py stories_denoiser stories > docs/strip.svg

Nothing is selected: all parts show the first sample of seed 0.
"""

import collections
import html
import sys

import numpy as np

import flm_jax
from flm_jax.report.strip import shown

SEEN = 1, 2, 4, 8, 12, 16  # evaluations of the denoiser; the last one is their number
FEW = 1, 2, 4, 8  # those of the flow map, where it has more than one
SHOWN = slice(1, 13)  # positions of the sequence; the first one is always BOS
PIXELS = 8, 3  # of the noise at a position
LEFT, CELL, HEIGHT, GAP = 128, 68, 24, 4
WIDTH = LEFT + (SHOWN.stop - SHOWN.start) * CELL + 12
STYLE = """
  svg { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 13px; }
  .paper { fill: #ffffff; } .ink { fill: #1f2328; } .faint { fill: #656d76; }
  .cell { fill: #2da44e; }
  .label, .title { font-family: system-ui, sans-serif; font-size: 12px; }
  .title { font-size: 14px; font-weight: bold; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #161b22; } .ink { fill: #e6edf3; } .faint { fill: #9198a1; }
  }
"""


class Picture:
    """Rows from top to bottom."""

    def __init__(self):
        self.parts, self.y = [], 10

    def text(self, x: float, y: float, words: str, kind: str, more: str = "") -> None:
        words = html.escape(words)
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}"{more}>{words}</text>')

    def line(self, words: str, kind: str) -> None:
        self.y += 20
        self.text(14, self.y - 4, words, kind)

    def noise(self, state_LW: np.ndarray) -> None:
        """The state that sampling starts from: its first numbers at each position, as greys."""
        self.text(LEFT - 12, self.y + 16, "noise", "faint label", ' text-anchor="end"')
        (across, down), greys = PIXELS, collections.defaultdict(str)
        width, height = (CELL - GAP) / across, (HEIGHT - GAP) / down
        for column, numbers in enumerate(state_LW[:, : across * down]):
            for i, number in enumerate(numbers):
                x, y = LEFT + column * CELL + i % across * width, self.y + i // across * height
                grey = round(float(np.clip(0.5 + number / 4, 0, 1)), 1)
                greys[grey] += f"M{x:g} {y:.1f}h{width:g}v{height:.1f}h-{width:g}"
        for grey, squares in greys.items():
            self.parts.append(f'<path d="{squares}" class="faint" opacity="{grey}"/>')
        self.y += HEIGHT

    def tokens(self, label: str, pieces: list[str], confidence_L: np.ndarray) -> None:
        """The likeliest token at every position, the greener the surer."""
        self.text(LEFT - 12, self.y + 15, label, "faint label", ' text-anchor="end"')
        for column, piece in enumerate(pieces):
            x, sure = LEFT + column * CELL, confidence_L[column]
            self.parts.append(
                f'<rect x="{x}" y="{self.y}" width="{CELL - GAP}" height="{HEIGHT - GAP}" rx="3" '
                f'class="cell" opacity="{0.06 + 0.5 * sure:.2f}"/>'
            )
            words = piece.strip() or "␣"
            squeeze = f' textLength="{CELL - GAP - 6}" lengthAdjust="spacingAndGlyphs"'
            more = ' text-anchor="middle"' + (squeeze if len(words) > 7 else "")
            self.text(x + (CELL - GAP) / 2, self.y + 15, words, "ink", more)
        self.y += HEIGHT

    def reading(self, words: str) -> None:
        self.text(LEFT - 12, self.y + 15, "reads", "faint label", ' text-anchor="end"')
        self.text(LEFT, self.y + 15, " ".join(words.split()), "ink")
        self.y += HEIGHT

    def svg(self) -> str:
        height = self.y + 12
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
                f'width="{WIDTH}" height="{height}">',
                f"<style>{STYLE}</style>",
                '<rect width="100%" height="100%" rx="8" class="paper"/>',
                *self.parts,
                "</svg>",
            ]
        )


def draw(picture: Picture, model: flm_jax.FlowModel, seen: tuple[int, ...]) -> None:
    path = model.generate(num_samples=1, steps=seen[-1], seed=0, trajectory=True).trajectory
    assert path is not None
    picture.noise(np.asarray(path.states[0, 0, SHOWN]))
    pieces = []
    for i in seen:
        tokens_L, confidence_L = (
            path.tokens_SBL[i - 1, 0, SHOWN],
            path.confidence_SBL[i - 1, 0, SHOWN],
        )
        pieces = [shown(model.tokenizer.piece(int(token)))[0] for token in tokens_L]
        picture.tokens(f"evaluation {i}", pieces, np.asarray(confidence_L))
    picture.reading("".join(pieces))


def main(denoiser_run: str, flow_map_run: str) -> None:
    denoiser, flow_map = flm_jax.load(denoiser_run), flm_jax.load(flow_map_run)
    picture = Picture()
    picture.line(f"Denoiser (FLM): {SEEN[-1]} network evaluations", "ink title")
    draw(picture, denoiser, SEEN)
    picture.y += 8
    picture.line("Flow map (FMLM): one network evaluation", "ink title")
    draw(picture, flow_map, (1,))
    picture.y += 8
    picture.line(f"Flow map (FMLM): {FEW[-1]} network evaluations", "ink title")
    draw(picture, flow_map, FEW)
    picture.y += 4
    picture.line(
        "The first sample of the models that come with the package; the greener, the surer. In "
        "rounds: what is sure is kept.",
        "faint label",
    )
    print(picture.svg())


if __name__ == "__main__":
    main(*sys.argv[1:])
