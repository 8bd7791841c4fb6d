"""Where the time of a compiled program goes, by kind of work: `jax.profiler`'s trace and the HLO.

The trace says when operations run, the compiled program what they are: opcodes and shapes. The
kinds follow from these alone, so that no model or loss needs to name its parts:

    products of the head        matrix products with an axis of V, and the fusions they are in
    other products              of blocks, attention and time embedding
    passes over logits          else, with an axis of V and none of D (one-hot: its states, too)
    arrays of the table's size  else, with axes of V and D: optimizer, EMA, summed gradients
    random numbers              generators and what turns their bits into normals
    copies                      copies, transposes, slices and their updates
    everything else             norms, activations, softmaxes of attention, sums of gradients

Operations that run at the same time share it: every moment is divided among those that are under
way, loops and branches aside. A CPU's trace marks the end of an operation that went on in other
threads by an event of its own, which comes late: the thread that ends it first runs what waited for
it, a `ThunkExecutor::Execute`, so that the end is where that began. Only one CPU was there to try
this on; programs divided over several devices are not meant.
"""

import bisect
import collections
import dataclasses
import gzip
import itertools
import json
import math
import pathlib
import re
import time
from collections.abc import Callable, Container, Iterable, Mapping

import jax

from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.flow.chunks import Chunks
from flm_jax.host import files
from flm_jax.lab.benchmark import PROFILE
from flm_jax.lab.benchmark.measure import Plan, prepare

KINDS = (
    HEAD, PRODUCTS, LOGITS, TABLE, RANDOM, COPIES, REST,
) = (
    "products of the head", "other products", "passes over logits", "arrays of the table's size",
    "random numbers", "copies", "everything else",
)  # fmt: skip
SHAPE = re.compile(r"\b[a-z]+\d*\[([\d,]*)\]")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (.*)$")
OPCODE = re.compile(r"(?:^|\s)([a-z][\w\-]*)\(")
CALLED = re.compile(r"(?:calls|to_apply)=%([\w.\-]+)")
COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.\-]+) .*\{$")
AROUND = {"while", "conditional"}
END = "end: "
CONTINUATION = "ThunkExecutor::Execute"
LATENESS = 200.0  # microseconds at most between the end of a continuation and the mark
GENERATORS = {"rng-bit-generator", "rng", "erf-inv"}
RANDOM_SOURCES = ("random_bits", "threefry", "erf_inv", "_normal", "_uniform", "_gumbel")
MOVES = {
    "copy", "transpose", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad",
    "bitcast", "reshape", "parameter", "constant", "broadcast", "convert", "tuple",
    "get-tuple-element",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction of the program: its opcode with those of what it calls, and all shapes."""

    opcodes: frozenset[str]
    shapes: frozenset[tuple[int, ...]]
    source: str  # JAX's name of where it comes from

    def kind(self, vocab: int, width: int) -> str:
        axes = [set(shape) for shape in self.shapes]
        of_vocabulary = any(vocab in shape for shape in axes)
        if "dot" in self.opcodes or "dot_general" in self.source.rpartition("/")[2]:
            return HEAD if of_vocabulary else PRODUCTS
        if self.opcodes & GENERATORS or any(word in self.source for word in RANDOM_SOURCES):
            return RANDOM
        if self.opcodes <= MOVES:
            return COPIES
        if any({vocab, width} <= shape for shape in axes):
            return TABLE
        return LOGITS if of_vocabulary else REST


def operations(hlo: str) -> dict[str, Operation]:
    """The instructions of a compiled program's text by name."""
    found: dict[str, tuple[str, str, list[str], str]] = {}
    inside: dict[str, list[str]] = collections.defaultdict(list)
    computation = ""
    for line in hlo.splitlines():
        if opened := COMPUTATION.match(line):
            computation = opened[1]
        elif instruction := INSTRUCTION.match(line):
            name, text = instruction.groups()
            text, _, metadata = text.partition(", metadata={")
            called = CALLED.findall(text)
            source = re.search(r'op_name="([^"]*)"', metadata)
            found[name] = (text, computation, called, source[1] if source else "")
            inside[computation].append(name)
    types = {name: text[: opcode.start() + 1] if (opcode := OPCODE.search(text)) else text
             for name, (text, *_) in found.items()}  # fmt: skip
    shapes = {name: _shapes(text) for name, text in types.items()}

    def opcodes(name: str) -> set[str]:
        text, _, called, _ = found[name]
        own = OPCODE.search(text)
        names = [inner for computation in called for inner in inside[computation]]
        if not names or own is None or own[1] in ("reduce", "scatter", "sort", "reduce-window"):
            return {own[1]} if own else set()
        return set().union(*(opcodes(inner) for inner in names))

    result = {}
    for name, (text, _, _, source) in found.items():
        arguments = text[len(types[name]) :].partition("(")[2].partition(")")[0]
        operands = re.findall(r"%([\w.\-]+)", arguments)
        every = shapes[name].union(*(shapes[operand] for operand in operands if operand in shapes))
        result[name] = Operation(frozenset(opcodes(name)), frozenset(every), source)
    return result


def _shapes(text: str) -> set[tuple[int, ...]]:
    return {tuple(int(n) for n in dims.split(",") if n) for dims in SHAPE.findall(text)}


def seconds(events: Iterable[dict], around: Container[str] = ()) -> dict[str, float]:
    """Time by name of the operation, of a trace's events; those named in ``around`` have none."""
    begun: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    marks: dict[str, list[tuple[float, int]]] = collections.defaultdict(list)
    waiting: dict[int, list[tuple[float, float]]] = collections.defaultdict(list)
    for event in events:
        if event.get("ph") != "X":
            continue
        start, end, label = event["ts"], event["ts"] + event["dur"], event["name"]
        name = event.get("args", {}).get("hlo_op")
        if label.startswith(END):
            marks[label.removeprefix(END)].append((start, event["tid"]))
        elif label == CONTINUATION:
            waiting[event["tid"]].append((end, start))
        elif name is not None and name not in around:
            begun[name].append((start, end))
    for times in (*begun.values(), *marks.values(), *waiting.values()):
        times.sort()

    moments: list[tuple[float, int, str]] = []
    for name, spans in begun.items():
        following = [start for start, _ in spans[1:]] + [math.inf]
        for (start, end), next_start in zip(spans, following, strict=True):
            found = bisect.bisect_left(marks[name], (start, 0))
            if found < len(marks[name]) and marks[name][found][0] <= next_start:
                mark, thread = marks[name][found]
                end = max(end, _before_the_continuation(waiting[thread], start, mark))
            moments += [(start, 1, name), (end, -1, name)]
    moments.sort()

    total: dict[str, float] = dict.fromkeys(begun, 0.0)
    running: collections.Counter[str] = collections.Counter()
    for (now, step, name), later in itertools.pairwise([*moments, (math.inf, 0, "")]):
        running[name] += step
        if not running[name]:
            del running[name]
        if under_way := running.total():
            for other, count in running.items():
                total[other] += 1e-6 * (later[0] - now) * count / under_way
    return total


def _before_the_continuation(
    waiting: list[tuple[float, float]], start: float, mark: float
) -> float:
    """When an operation that started then and was marked as ended at ``mark`` did end.

    ``waiting`` are (end, start) of what its thread ran for operations that waited, in order.
    """
    first = bisect.bisect_left(waiting, (mark - LATENESS, 0.0))
    last = bisect.bisect_right(waiting, (mark, math.inf))
    return min((began for _, began in waiting[first:last] if began >= start), default=mark)


def profile(
    run: Callable[[], None], known: Mapping[str, Operation], folder: pathlib.Path, repeats: int
) -> tuple[dict[str, float], float]:
    """Seconds of one ``run``: by name of the operation, and by the clock; traces in ``folder``."""
    with jax.profiler.trace(str(folder)):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        wall = (time.perf_counter() - start) / repeats
    newest = max(folder.glob("plugins/profile/*/*.trace.json.gz"), key=lambda p: p.stat().st_mtime)
    with gzip.open(newest, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    found = seconds(events, {name for name, op in known.items() if op.opcodes & AROUND})
    return {name: value / repeats for name, value in found.items() if name in known}, wall


def by_kind(
    found: Mapping[str, float], known: Mapping[str, Operation], vocab: int, width: int
) -> dict[str, float]:
    """Seconds by kind of work."""
    kinds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    for name, value in found.items():
        kinds[known[name].kind(vocab, width)] += value
    return kinds


def report(
    found: Mapping[str, float],
    known: Mapping[str, Operation],
    kinds: Mapping[str, float],
    wall: float,
    most: int = 12,
) -> str:
    """Markdown: the kinds of work, and the operations that take longest."""
    total = math.fsum(kinds.values())
    lines = ["| kind of work | ms | share |", "|---|---:|---:|"]
    lines += [f"| {kind} | {1e3 * value:,.1f} | {100 * value / max(total, 1e-9):.1f} % |"
              for kind, value in kinds.items()]  # fmt: skip
    lines += [f"| all | {1e3 * total:,.1f} | 100 % |"]
    lines += [f"| by the clock | {1e3 * wall:,.1f} | |", ""]  # a trace may be cut, or have gaps
    lines += ["| operation | from | shapes | ms |", "|---|---|---|---:|"]
    for name, value in sorted(found.items(), key=lambda item: -item[1])[:most]:
        shapes = sorted(known[name].shapes, key=lambda shape: (-math.prod(shape), shape))[:3]
        text = ", ".join("x".join(map(str, shape)) or "1" for shape in shapes)
        source = "/".join(known[name].source.split("/")[-3:])
        lines.append(f"| {name} | {source} | {text} | {1e3 * value:,.1f} |")
    return "\n".join(lines) + "\n"


def check_devices() -> None:
    """UserError if there are several."""
    if jax.device_count() > 1:
        raise UserError(
            f"profile sorts work by the shapes of one device, but there are {jax.device_count()}; "
            "hide the others (JAX_PLATFORMS=cpu, CUDA_VISIBLE_DEVICES=0)"
        )


def vocabulary_alone(plan: Plan) -> int:
    """The vocabulary of the plan, or the next larger one that is no other axis of its programs.

    Kinds are told by sizes: V is B * L at B 16, L 64, V 1024, and every row would be of the
    vocabulary.
    """
    config = plan.config
    model, batch, length = config.model, config.train.batch_size, config.data.length
    mask = int(model.mask_token)
    size = plan.vocab_size + mask
    rows = jax.ShapeDtypeStruct((batch, length), "float32")
    chunk = Chunks.of(rows, Experiment(config, plan.vocab_size).model.chunk).width
    # Losses and the head also take half of a batch, a quarter ...
    taken = {length, *(batch * places >> half for places in (length, chunk) for half in range(8))}
    taken |= {model.width * times for times in (1, 2, 3, 6, model.mlp_ratio)}
    while size in taken:
        size += 1
    return size - mask


def of_plans(
    plans: Mapping[str, Plan], folder: pathlib.Path
) -> tuple[dict[str, dict[str, float]], str]:
    """({space: {kind of work: seconds}}, the tables, which are also in profile.md of the folder).

    JAX's traces are kept in the folder.
    """
    kinds, tables = {}, []
    for space, asked in plans.items():
        size = vocabulary_alone(asked)
        plan = dataclasses.replace(asked, vocab_size=size)
        prepared = prepare(plan)
        known = operations(prepared.compiled.as_text() or "")
        prepared.run()  # warms up
        found, wall = profile(prepared.run, known, folder / space, plan.repeats)
        model = prepared.experiment.model
        kinds[space] = by_kind(found, known, model.vocab_size, plan.config.model.width)
        note = f" (V is {size}: {asked.vocab_size} is another axis, too)"
        title = space + note * (size != asked.vocab_size)
        tables.append(f"{title}\n\n{report(found, known, kinds[space], wall)}")
    text = "\n".join(tables)
    files.write_atomically(folder / f"{PROFILE}.md", text)
    return kinds, text
