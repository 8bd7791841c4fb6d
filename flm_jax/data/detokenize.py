"""Undo the tokenisation of word-level corpora, exactly as the official data pipeline does.

Each detokeniser is an ordered list of rules; later rules see what earlier ones left. The rules
keep the official oddities (LM1B's full stop needs a word before it, WikiText has a rule that writes
its own pattern into the text), because published models were trained on the output.
"""

import re
from collections.abc import Callable

# (what to look for: literal text or a pattern, what to put there)
_Rule = tuple[str | re.Pattern, str]


def _inside(opening: str, content: str, closing: str, pad: str) -> _Rule:
    """A rule that drops the padding `pad` (a pattern) just inside a pair of marks."""
    pattern = f"{re.escape(opening)}{pad}({content}){pad}{re.escape(closing)}"
    return re.compile(pattern), f"{opening}\\1{closing}"


_LM1B: tuple[_Rule, ...] = (
    ("http : / / ", "http://"),
    ("https : / / ", "https://"),
    (re.compile(r" '(?=\w)"), "'"),
    (re.compile(r" (\w+) \. "), r" \1. "),
    (re.compile(r" (\w+) \.$"), r" \1."),
    *(
        rule
        for mark in "?!"
        for rule in ((f" {mark} ", f"{mark} "), (re.compile(rf" \{mark}$"), mark))
    ),
    *((f" {mark} ", f"{mark} ") for mark in ",:;"),
    (" / ", "/"),
    _inside('"', '[^"]+', '"', " "),
    _inside("'", "[^']+", "'", " "),
    _inside("(", r"[^()]+", ")", " "),
    _inside("[", r"[^\[\]]+", "]", " "),
    ("$ ", "$"),
    ("£ ", "£"),
)

_WIKITEXT: tuple[_Rule, ...] = (
    ("s '", "s'"),
    (re.compile(r"/' [0-9]/"), "/'[0-9]/"),
    *((f" @{mark}@ ", mark) for mark in "-,."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
    _inside("(", r"[^)]*?", ")", r"\s*"),
    _inside("[", r"[^\]]*?", "]", r"\s*"),
    _inside("{", r"[^}]*?", "}", r"\s*"),
    _inside('"', '[^"]*?', '"', r"\s*"),
    _inside("'", "[^']*?", "'", r"\s*"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)

_PTB: tuple[_Rule, ...] = (
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    ("\\/", "/"),
    (" N ", " 1 "),
    (" N ", " 1 "),  # neighbours share a space, so every other one is left by the first pass
    ("$ 1", "$1"),
    ("# 1", "#1"),
    ("<unk>", "?"),
)


def _apply(rules: tuple[_Rule, ...], text: str) -> str:
    for sought, replacement in rules:
        if isinstance(sought, str):
            text = text.replace(sought, replacement)
        else:
            text = sought.sub(replacement, text)
    return text


def lm1b(text: str) -> str:
    """A sentence of the One Billion Word Benchmark as running text."""
    return _apply(_LM1B, text)


def wikitext(text: str) -> str:
    """A paragraph of WikiText as running text."""
    return _apply(_WIKITEXT, text)


def ptb(text: str) -> str:
    """A sentence of the Penn Treebank as running text; `N` becomes 1 and `<unk>` becomes "?"."""
    return _apply(_PTB, text)


def lambada(text: str) -> str:
    """A LAMBADA passage with straight double quotes, after a line break as in its original form."""
    return "\n" + text.replace("“", '"').replace("”", '"').strip()


def scientific_papers(text: str) -> str:
    """A paragraph of the scientific-papers corpus: WikiText's rules, then LM1B's."""
    return lm1b(wikitext(text))


DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "lm1b": lm1b,
    "wikitext": wikitext,
    "ptb": ptb,
    "lambada": lambada,
    "scientific_papers": scientific_papers,
}
