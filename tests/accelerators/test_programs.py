"""`make test-accelerators`: programs of table.py by the real compilers, and planted mistakes."""

import dataclasses
import itertools
import os
import pathlib

import programs
import pytest
from programs import Stated
from table import PROGRAMS

from flm_jax.lab.plan import chips

# The Makefile says which compiler must be there; without it, those that are.
PLATFORMS = os.environ.get("FLM_JAX_COMPILER", " ".join(programs.installed())).split()
compiles = pytest.mark.accelerators


def here(rows):
    """Parameters of those that are compiled in this environment."""
    found = [row for row in rows if row[0].platform in PLATFORMS]
    return pytest.mark.parametrize("program, stated", found, ids=[row[0].name for row in found])


@compiles
@here(PROGRAMS.items())
def test_a_program_is_as_stated(program, stated):
    found = programs.compiled(program)
    print(f"{programs.described(found)}\ncompiled in {found['compile_seconds']:.0f} s")
    assert programs.problems(found, stated) == []


# Everything occurs


def axes(program):
    """What of the matrix a program has."""
    yield program.chips
    yield program.config.partition(":")[0]
    data, fsdp, tensor = program.mesh
    yield "tensor" if tensor > 1 else "fsdp" if fsdp > 1 else "data" if data > 1 else "one device"
    yield "float32" if "model.dtype=float32" in program.overrides else "bfloat16"
    stage = program.config.partition(":")[2] or "pretrain"
    yield f"sample {program.steps}" if program.steps else f"train {stage}"


def test_every_target_size_loss_sampler_mesh_type_and_kernel_occurs():
    assert len(PROGRAMS) <= 16
    found = set(itertools.chain.from_iterable(map(axes, PROGRAMS)))
    assert found >= {
        *("v5e-8", "v5p-128", "h200x1", "h200x8"),
        *("lm1b", "owt", "one device", "data", "fsdp", "tensor", "float32", "bfloat16"),
        *("train pretrain", "train distill", "train any_order", "train mdlm"),
        *("sample 1", "sample 32"),
    }
    kernels = {kernel for stated in PROGRAMS.values() for kernel in stated.kernels}
    assert kernels == {"splash_mha_fwd", "splash_mha_dkv", "splash_mha_dq"}
    for program in PROGRAMS:
        assert chips.parse(program.chips)[1] == program.mesh[0] * program.mesh[1] * program.mesh[2]


# What is checked: each bound by itself, then mistakes in real programs

FOUND = {
    "arguments_bytes": 2e9, "temporaries_bytes": 3e9, "memory_bytes": 5e9, "fits": True,
    "arrays_of_the_vocabulary": {}, "kernels": {"splash_mha_fwd": 12},
    "collectives": [
        {"kind": "all-gather", "array": "f32[8]", "times": 12, "bytes": 4e6},
        {"kind": "all-gather", "array": "f32[9]", "times": 1, "bytes": 1e6},
    ],
}  # fmt: skip
STATED = Stated(2.0, 3.0, {"all-gather": (13, 5.0)}, ("splash",))


def test_a_program_that_is_as_stated_has_no_problems():
    assert programs.problems(FOUND, STATED) == []


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"arguments_bytes": 2.3e9}, "arguments: 2.3 GB, stated 2 GB"),
        ({"temporaries_bytes": 3.4e9}, "temporaries: 3.4 GB, stated 3 GB"),
        ({"fits": False}, "memory: 5.00 GB do not fit"),
        ({"arrays_of_the_vocabulary": {"f32[8,4,9]": 2}},
         "an array of all tokens and the vocabulary: f32[8,4,9], 2 times"),
        ({"kernels": {"tpu_custom_call": 1}}, "no kernel splash"),
        ({"collectives": [{"kind": "all-gather", "array": "f32[8]", "times": 15, "bytes": 5e6}]},
         "all-gather, times: 15, stated 13"),
        ({"collectives": [{"kind": "all-gather", "array": "f32[8]", "times": 13, "bytes": 6e6}]},
         "all-gather, all: 6 MB, stated 5 MB"),
        ({"collectives": [{"kind": "all-to-all", "array": "f32[8]", "times": 1, "bytes": 2e6}]},
         "all-to-all: 1 times, 2.0 MB, stated none"),
    ],
)  # fmt: skip
def test_each_bound_is_a_sentence(change, sentence):
    assert programs.problems(FOUND | change, STATED) == [sentence]


def row(text):
    """The one whose name begins so, and what is stated of it."""
    (found,) = (one for one in PROGRAMS if one.name.startswith(text))
    return found, PROGRAMS[found]


PLANTED = [
    (row("h200x8 1x8x1 owt train"), ("replicated_embedding",), (), "arguments: "),
    (row("h200x1 1x1x1 lm1b train"), (), ("model.head_chunk=65536",), "an array of all tokens and"),
    (
        row("v5e-8 8x1x1 owt:distill sample1"),
        (),
        ("model.attention=chunked",),
        "no kernel splash_mha_fwd",
    ),
]


@compiles
@pytest.mark.parametrize(
    "chosen, mistake, overrides, sentence",
    [one for one in PLANTED if one[0][0].platform in PLATFORMS],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_found(chosen, mistake, overrides, sentence):
    """A replicated embedding, logits of all tokens at once, attention without its kernel."""
    program, stated = chosen
    program = dataclasses.replace(program, overrides=(*program.overrides, *overrides))
    script = str(pathlib.Path(__file__).with_name("mistakes.py"))
    found = programs.compiled(program, (script, *mistake) if mistake else ())
    wrong = programs.problems(found, stated)
    assert any(one.startswith(sentence) for one in wrong), wrong
