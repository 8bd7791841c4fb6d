"""An English of 293 words: agreement over a distance, and clauses within clauses.

The verb agrees with its subject across relative clauses (of the subject: "the dog that sees two
cats sleeps", of the object: "the dog that two cats see sleeps"), across places ("the dogs near a
tree sleep") and across pairs ("both the dog and the cat sleep"). Clauses nest in "says that ..."
and in "if ... then ...", as deep as the number of words allows.

Each sentence has one derivation: a place and a relative clause exclude each other, and a place
holds neither; "and" either belongs to "both" or joins two clauses, at the top only; "then" belongs
to the last open "if"; and "that" after a verb is told from "that" after a noun.
"""

import dataclasses
from typing import ClassVar

from flm_jax.data.synthetic.derivations import Derivations, Rules
from flm_jax.data.synthetic.grammar import Grammar

_NOUNS = (
    "dog cat bird girl boy teacher farmer doctor king queen sailor painter baker lion horse bear "
    "rabbit fox duck frog cow goat robot pirate wizard giant princess driver singer dancer writer "
    "soldier student neighbor brother sister uncle aunt friend stranger tree house river garden "
    "bridge tower castle boat train market school forest mountain island village"
)
_INTRANSITIVE = (
    "sleep run sing jump laugh cry dance swim fall wait smile work shout rest travel wander dream "
    "listen sneeze whisper grow shine vanish arrive hesitate tremble"
)
_TRANSITIVE = (
    "see like follow help hear find watch visit chase know love hate meet carry push pull paint "
    "draw admire greet remember forget call trust thank surprise warn invite"
)
_SAYING = "say think believe hope claim suppose doubt notice insist"
_ADJECTIVES = (
    "small old clever big young happy sad brave quiet tired hungry angry kind lazy strange red "
    "green blue white black proud gentle noisy famous lonely careful"
)
_ADVERBS = "often alone quickly slowly loudly quietly today again together outside here sometimes"
_PLACES = "near behind beside under above inside around"


def _ranked(words: str) -> tuple[tuple[float, str], ...]:
    """The words with probabilities that fall as 1 / (rank + 2): few frequent, many rare ones."""
    listed = words.split()
    weights = [1 / (rank + 3) for rank in range(len(listed))]
    return tuple(
        (weight / sum(weights), word) for weight, word in zip(weights, listed, strict=True)
    )


def _with_s(words: str) -> str:
    """Every word with the English s: the plural of nouns, the third person of verbs."""
    return " ".join(_one_with_s(word) for word in words.split())


def _one_with_s(word: str) -> str:
    if word.endswith(("s", "sh", "ch", "x")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _of_number(n: str) -> Rules:
    """The rules of singular (n = S) or plural (P) subjects and their verbs."""
    return {
        f"CORE-{n}": ((0.65, f"DET-{n} N-{n}"), (0.28, f"DET-{n} ADJ N-{n}"),
                      (0.07, f"DET-{n} very ADJ N-{n}")),
        f"VERB-{n}": ((0.35, f"I-{n}"), (0.15, f"I-{n} ADV"), (0.4, f"T-{n} OBJECT"),
                      (0.1, f"SAY-{n} that CLAUSE")),
    }  # fmt: skip


def _relative(n: str) -> tuple[tuple[float, str], ...]:
    return (
        (0.1, f"CORE-{n} that VERB-{n}"),
        (0.05, f"CORE-{n} that CORE-S T-S"),
        (0.05, f"CORE-{n} that CORE-P T-P"),
    )


RULES: Rules = {
    "SENTENCE": ((0.9, "CLAUSE"), (0.1, "CLAUSE and CLAUSE")),
    "CLAUSE": ((0.47, "NOUN-S VERB-S"), (0.47, "NOUN-P VERB-P"), (0.06, "if CLAUSE then CLAUSE")),
    "NOUN-S": ((0.68, "CORE-S"), (0.12, "CORE-S PLACE CORE"), *_relative("S")),
    "NOUN-P": (
        (0.6, "CORE-P"), (0.12, "CORE-P PLACE CORE"), (0.08, "both CORE and CORE"), *_relative("P"),
    ),
    "CORE": ((0.6, "CORE-S"), (0.4, "CORE-P")),
    **_of_number("S"),
    **_of_number("P"),
    "OBJECT": ((0.6, "NOUN-S"), (0.4, "NOUN-P")),
    "DET-S": ((0.5, "the"), (0.3, "a"), (0.2, "every")),
    "DET-P": ((0.5, "the"), (0.3, "some"), (0.15, "two"), (0.05, "many")),
    "ADJ": _ranked(_ADJECTIVES),
    "ADV": _ranked(_ADVERBS),
    "PLACE": _ranked(_PLACES),
    "N-S": _ranked(_NOUNS),
    "N-P": _ranked(_with_s(_NOUNS)),
    "I-S": _ranked(_with_s(_INTRANSITIVE)),
    "I-P": _ranked(_INTRANSITIVE),
    "T-S": _ranked(_with_s(_TRANSITIVE)),
    "T-P": _ranked(_TRANSITIVE),
    "SAY-S": _ranked(_with_s(_SAYING)),
    "SAY-P": _ranked(_SAYING),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LargeGrammar(Grammar):
    """Sentences of 293 words, at most `max_words` long: so many that none need occur twice.

    Attributes:
      max_words: longer sentences have probability 0.
    """

    max_words: int = 16

    name = "large_grammar"
    derivations: ClassVar[Derivations] = Derivations(RULES, "SENTENCE")
