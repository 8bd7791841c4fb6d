"""The detokenisers: rule by rule on small texts, and the recorded outputs of the official ones."""

import json
import pickle

import pytest

from flm_jax.data.detokenize import DETOKENIZERS

EXAMPLES = {
    "lm1b": [
        ("See https : / / a.b / c .", "See https://a.b/c."),
        ("We 've left .", "We've left."),
        ("One . Two . Three .", "One . Two. Three."),
        ("Really ? No ! Why ?", "Really? No! Why?"),
        ("a , b : c ; d", "a, b: c; d"),
        ('" quoted " and ( round ) and [ square ]', '"quoted" and (round) and [square]'),
        ("$ 5 or £ 6", "$5 or £6"),
        ("", ""),
    ],
    "wikitext": [
        ("3 @-@ 2 , 45 @,@ 000 and 1 @.@ 5 .", "3-2, 45,000 and 1.5 ."),
        (" = = Life = = ", " == Life == "),
        (" = = = = Deep = = = = ", " ==== Deep ==== "),
        ("( a ) [ b ] { c } \" d \" ' e '", "(a) [b] {c} \"d\" 'e'"),
        ("at 12 ° 30", "at 12°30"),
        ("one \n two", "one\ntwo"),
        ("x /' 3/ y", "x /'[0-9]/ y"),
        ("it 's N of them", "it's 1 of them"),
    ],
    "ptb": [
        ("it 's n't the dogs ' N N N N N .", "it'sn't the dogs' 1 1 1 1 1 ."),
        ("the <unk> rose $ N to # N \\/ N today", "the ? rose $1 to #1 / 1 today"),
    ],
    "lambada": [("  “ yes ” ", '\n" yes "'), ("", "\n")],
    "scientific_papers": [("the end .", "the end."), ("a @-@ b , c ?", "a-b, c?")],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    for text, expected in EXAMPLES[name]:
        assert DETOKENIZERS[name](text) == expected


@pytest.mark.parametrize("name", DETOKENIZERS)
def test_detokenisers_travel_into_worker_processes(name):
    assert pickle.loads(pickle.dumps(DETOKENIZERS[name])) is DETOKENIZERS[name]


def test_recorded_outputs(shared):
    cases = json.loads((shared / "golden/text/detokenizers.json").read_text(encoding="utf-8"))
    assert len(cases) == 44
    for case in cases:
        for name, detokenize in DETOKENIZERS.items():
            assert detokenize(case["input"]) == case[name], (name, case["input"])
