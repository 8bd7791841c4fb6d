"""Programs of published size, and what the compilers of accelerators must say of them.

Each is compiled by the command that a user has, `flm plan --compile`, in a process of its own: what
is set for the other tests (virtual devices, weak optimisation) is not set there.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMPILERS = {"tpu": "libtpu", "gpu": "jax_cuda13_plugin"}
LONGEST_S = 3600  # after which a compiler is taken to hang


@dataclasses.dataclass(frozen=True)
class Program:
    """One program for some chips.

    Attributes:
      chips: as `flm plan --chips` has it; v5p counts cores, so that v5p-128 is 4 x 4 x 4 chips.
      mesh: data, fsdp, tensor.
      config: of configs/, with its stage after a colon.
      steps: of sampling; 0: the training step.
      overrides: of the config, key=value.
    """

    chips: str
    mesh: tuple[int, int, int]
    config: str
    steps: int = 0
    overrides: tuple[str, ...] = ()

    @property
    def platform(self) -> str:
        return "tpu" if self.chips.startswith("v") else "gpu"

    @property
    def name(self) -> str:
        work = f"sample{self.steps}" if self.steps else "train"
        mesh = "x".join(map(str, self.mesh))
        options = [one.rpartition(".")[2] for one in self.overrides]
        return " ".join([self.chips, mesh, self.config, work, *options])

    @property
    def words(self) -> list[str]:
        """The command."""
        name, _, stage = self.config.partition(":")
        sampling = ["--program=sampler", f"--sampling_steps={self.steps}"]
        return [
            "plan",
            f"--config=configs/{name}.py" + (f":{stage}" if stage else ""),
            f"--chips={self.chips}",
            f"--mesh={','.join(map(str, self.mesh))}",
            "--compile",
            "--json",
            *(sampling if self.steps else []),
            *(f"--config.{one}" for one in self.overrides),
        ]


@dataclasses.dataclass(frozen=True)
class Stated:
    """What may be in a program, on one device.

    Attributes:
      arguments, temporaries: GB (1e9 bytes) of what a step is given, and of what it takes besides.
      collectives: of each kind that there may be, how often one runs in a step, and their MB.
      kernels: that must be there, by the beginnings of their names.
    """

    arguments: float
    temporaries: float
    collectives: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    kernels: tuple[str, ...] = ()


SLACK = 1.1  # the compilers of other versions of JAX may need so much more than what is stated


def installed() -> list[str]:
    """The platforms that can be compiled for here."""
    return [one for one, package in COMPILERS.items() if importlib.util.find_spec(package)]


def compiled(program: Program, plant: Sequence[str] = ()) -> dict[str, Any]:
    """What `flm plan --compile` says of a program.

    Args:
      plant: words of Python's command line in the place of "-m flm_jax".

    Raises RuntimeError with what the command printed if it fails.
    """
    words = [sys.executable, *(plant or ("-m", "flm_jax")), *program.words]
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    # Start-up of the CUDA plugin looks for a driver unless JAX is told not to.
    environment = kept | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONGEST_S
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stderr[-4000:]}{done.stdout[-1000:]}")
    (row,) = json.loads(done.stdout.splitlines()[-1])
    found = row["compiled"]
    return found[0] if program.steps else found


def summed(found: Mapping[str, Any]) -> dict[str, tuple[int, float]]:
    """Times and MB of the collectives of each kind."""
    total: dict[str, tuple[int, float]] = {}
    for one in found["collectives"]:
        times, megabytes = total.get(one["kind"], (0, 0.0))
        total[one["kind"]] = times + one["times"], megabytes + one["bytes"] / 1e6
    return total


def described(found: Mapping[str, Any]) -> str:
    """A program in the words of `Stated`."""
    kinds = ", ".join(f'"{k}": ({n}, {mb:.1f})' for k, (n, mb) in summed(found).items())
    sizes = (found[f"{name}_bytes"] / 1e9 for name in ("arguments", "temporaries"))
    kernels = ", ".join(found["kernels"])
    return f"Stated({', '.join(f'{x:.3f}' for x in sizes)}, {{{kinds}}}) kernels: {kernels}"


def problems(found: Mapping[str, Any], stated: Stated) -> list[str]:
    """What of a compiled program is not as stated, in sentences."""
    wrong = []

    def bounded(what: str, value: float, bound: float, unit: str = "") -> None:
        if value > SLACK * bound:
            wrong.append(f"{what}: {value:,.6g}{unit}, stated {bound:,.6g}{unit}")

    bounded("arguments", found["arguments_bytes"] / 1e9, stated.arguments, " GB")
    bounded("temporaries", found["temporaries_bytes"] / 1e9, stated.temporaries, " GB")
    if not found["fits"]:
        wrong.append(f"memory: {found['memory_bytes'] / 1e9:.2f} GB do not fit")
    for array, times in found["arrays_of_the_vocabulary"].items():
        wrong.append(f"an array of all tokens and the vocabulary: {array}, {times} times")
    for kind, (times, megabytes) in summed(found).items():
        if kind not in stated.collectives:
            wrong.append(f"{kind}: {times} times, {megabytes:.1f} MB, stated none")
            continue
        most, most_megabytes = stated.collectives[kind]
        bounded(f"{kind}, times", times, most)
        bounded(f"{kind}, all", megabytes, most_megabytes, " MB")
    wrong += [
        f"no kernel {name}"
        for name in stated.kernels
        if not any(one.startswith(name) for one in found["kernels"])
    ]
    return wrong
