"""`make compile-all`: the whole matrix of programs by the real compilers, one after the other.

    python tests/accelerators/compile_all.py tpu|gpu      compiles what is not there yet
    python tests/accelerators/compile_all.py table        writes benchmarks/compiled_all.md

What was compiled lies in runs/compile_all/, a line a program, and is not compiled again by the same
version of JAX; an interruption loses one program.
"""

import importlib.metadata
import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

import programs
from programs import Program

FOLDER = programs.ROOT / "runs" / "compile_all"
TABLE = programs.ROOT / "benchmarks" / "compiled_all.md"
MESHES = {
    "v5e-8": [(8, 1, 1), (2, 4, 1), (1, 4, 2)],
    "v5p-128": [(64, 1, 1), (16, 4, 1), (1, 32, 2)],
    "h200x1": [(1, 1, 1)],
    "h200x8": [(8, 1, 1), (2, 4, 1), (1, 4, 2)],
}
CONFIGS = [f"{name}{stage}" for name in ("lm1b", "owt")
           for stage in ("", ":distill", ":any_order", ":mdlm")]  # fmt: skip
STEPS = (0, 1, 32)
TYPES = ((), ("model.dtype=float32",))


def matrix() -> Iterator[Program]:
    """Every program; samplers write so many texts on each chip that logits come in chunks."""
    for chips, meshes in MESHES.items():
        for mesh, config, kind, steps in itertools.product(meshes, CONFIGS, TYPES, STEPS):
            batch = (f"sampler.batch_size={128 * mesh[0] * mesh[1]}",) if steps else ()
            yield Program(chips, mesh, config, steps, (*kind, *batch))


def stored(platform: str) -> dict[str, dict[str, Any]]:
    """What was compiled for a platform, by name of the program."""
    path = FOLDER / f"{platform}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = {}
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # a blank one, or one that a kill has cut
            continue
        found[row["name"]] = row
    return found


def compile_all(platform: str) -> None:
    """Compiles what is not stored, or by another version of JAX."""
    version, known = importlib.metadata.version("jax"), stored(platform)
    left = [p for p in matrix() if p.platform == platform]
    left = [p for p in left if known.get(p.name, {}).get("jax") != version]
    FOLDER.mkdir(parents=True, exist_ok=True)
    for number, program in enumerate(left, 1):
        print(f"{platform} {number} of {len(left)}: {program.name}", flush=True)
        try:
            row = summary(program, programs.compiled(program), version)
        except (RuntimeError, programs.subprocess.TimeoutExpired) as error:  # the others go on
            print(f"  {str(error).strip().splitlines()[-1]}", flush=True)
            continue
        with open(FOLDER / f"{platform}.jsonl", "a") as file:
            file.write(f"\n{json.dumps(row)}\n")  # whatever a kill has left before


def summary(program: Program, found: dict[str, Any], version: str) -> dict[str, Any]:
    """What is kept of a compiled program."""
    kept = ("arguments_bytes", "temporaries_bytes", "memory_bytes", "fits", "kernels",
            "arrays_of_the_vocabulary", "compile_seconds")  # fmt: skip
    collectives = programs.summed(found)
    row = {"name": program.name, "jax": version, "collectives": collectives}
    return row | {name: found[name] for name in kept}


def table() -> str:
    """A page of what is stored."""
    known = stored("tpu") | stored("gpu")
    wanted = list(matrix())
    rows = [known[p.name] for p in wanted if p.name in known]
    versions = ", ".join(sorted({row["jax"] for row in rows}))
    lines = [
        "# All programs by the compilers of accelerators",
        "",
        "    make compile-all",
        "",
        f"{len(rows)} of the {len(wanted)} programs of the matrix have been compiled (jax "
        f"{versions}); the command goes on with the others.",
        "Not measurements of speed: the chips are described to the compilers "
        "([compiled.md](compiled.md)).",
        "Size small, published batches; a mesh is data x fsdp x tensor; GB and MB (1e9 and 1e6 "
        "bytes) are of one chip;",
        "collectives with how often they run in a step. v5p-128 is 4 x 4 x 4 chips.",
        "",
        "| program | state GB | temporaries GB | fits | collectives | V-sized arrays |",
        "|---|---:|---:|---|---|---|",
    ]
    for row in rows:
        collectives = ", ".join(
            f"{kind} {times}: {megabytes:,.0f} MB"
            for kind, (times, megabytes) in row["collectives"].items()
        )
        lines.append(
            f"| {row['name']} | {row['arguments_bytes'] / 1e9:.2f} "
            f"| {row['temporaries_bytes'] / 1e9:.2f} | {'yes' if row['fits'] else 'NO'} "
            f"| {collectives or 'none'} | {', '.join(row['arrays_of_the_vocabulary']) or 'none'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1] == "table":
        TABLE.write_text(table())
    else:
        compile_all(sys.argv[1])
