"""Reads files of samples, measures them once, and writes the report: it never samples or trains.

    reference = measuring.reference(data, cache, judges=["gpt2-large"])
    found = [measuring.measure(one, reference) for one in drawn]  # again: from the cache
    points = frontier.choose(found, measuring.real(reference))    # worth a second pass
    measuring.report(folder, drawn, reference)                    # results.json and the rest
    measuring.render(folder)                                      # the same from results.json

What is measured is in `measured`, with whom it is compared in `reference`, what a method reaches in
`frontier`, and what results.json holds in `findings`.
"""

import functools
import hashlib
import io
import math
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flm_jax.errors import UserError
from flm_jax.evals import artefact, diversity, repetition, text_statistics, truth
from flm_jax.evals.diversity import GROUP
from flm_jax.evals.judged import encode_each, score_each
from flm_jax.evals.mauve import mauve
from flm_jax.host import files, progress
from flm_jax.lab.compare import curves, findings, page, sentences, tables
from flm_jax.lab.compare.measured import Measured
from flm_jax.lab.compare.reference import Reference, reference
from flm_jax.lab.compare.results import Drawn, Point
from flm_jax.report import svg
from flm_jax.tokenizers.base import sha256

__all__ = ["Reference", "measure", "real", "reference", "render", "report"]

Latencies = Mapping[tuple[str, int], float]  # (method, evaluations) -> milliseconds a sample
_RULES = "1"  # raise it when a metric below changes, so that caches notice
_BLEU_GROUPS = 1  # a second for each
REAL = "real text"
Arrays = dict[str, np.ndarray]


def measure(drawn: Drawn, reference: Reference) -> Measured:
    """Every metric of one file of samples.

    They are kept beside it (`FILE.measures.npz`) under its SHA-256 and the fingerprint of whoever
    judged: a second call reads them, and another judge measures only what is new.

    Raises UserError if the file is damaged, or its tokens are not those of the reference.
    """
    stored = artefact.read(drawn.samples, [])
    tokens_NL, texts = stored.tokens_NL, stored.texts
    decoded = _texts(reference, tokens_NL[:1]) if _are_known(reference, tokens_NL) else [None]
    if decoded != texts[:1]:
        raise UserError(
            f"{drawn.samples} was written in other tokens than those of "
            f"{reference.tokenizer.name!r}; compare runs that have one tokenizer"
        )
    sha = hashlib.sha256(drawn.samples.read_bytes()).hexdigest()
    kept = drawn.samples.with_name(f"{drawn.samples.name}.measures.npz")
    arrays = _kept(tokens_NL, texts, sha, reference, kept)
    name = str(drawn.samples)
    return Measured(drawn.point, drawn.seed, drawn.evaluations, name, sha, arrays)


def real(reference: Reference) -> Measured:
    """The same of real text, from the cache if it is there."""
    return _of_rows(REAL, reference.real_rows, reference)


def report(
    folder: pathlib.Path,
    drawn: Sequence[Drawn],
    reference: Reference,
    *,
    title: str = "",
    about: Mapping[str, Any] | None = None,
    latencies: Latencies | None = None,
) -> dict[str, Any]:
    """Measures what is not measured yet, and writes results.json and all that `render` makes of it.

    Args:
      folder: of the comparison; names of sample files in results.json are relative to it.
      drawn: all there is; of several files of one point and seed the largest counts.
      about: plain JSON facts for the report: budget, hardware, minutes of training, versions.
      latencies: milliseconds a sample by (method, evaluations), where they were measured.

    Returns: what results.json holds.
    """
    if not drawn:
        raise UserError("there are no samples to report on")
    found: dict[tuple[Point, int], Measured] = {}
    for one in progress.bar(drawn, desc="measuring samples", delay=2):
        made = measure(one, reference)
        before = found.get((made.point, made.seed))
        if before is None or made.count >= before.count:
            found[made.point, made.seed] = made
    landmarks = [_of_rows(*named, reference) for named in reference.landmarks().items()]
    results = findings.gather(
        list(found.values()), real(reference), landmarks, reference, folder, latencies or {}
    )
    results |= {"title": title or folder.name, "about": dict(about or {})}
    findings.write(folder, results)
    render(folder)
    return results


def render(folder: pathlib.Path) -> list[pathlib.Path]:
    """report.html, tables.md, tables.tex and pictures from results.json alone; measures nothing.

    Raises UserError if there is no results.json of a version that this can read.
    """
    results = findings.read(folder)
    said, made = sentences.every(results), tables.every(results)
    contents = {
        "tables.md": tables.markdown(results["title"], said, made),
        "tables.tex": tables.latex(made),
        "report.html": page.render(results, said, made),
        **{f"{one.name}.svg": svg.draw(one) for one in curves.every(results)},
    }
    for name, content in contents.items():
        files.write_atomically(folder / name, content)
    return [folder / name for name in contents]


def _of_rows(name: str, rows: np.ndarray, reference: Reference) -> Measured:
    rows = np.asarray(rows, np.int32)
    sha = sha256(np.ascontiguousarray(rows).tobytes())
    kept = reference.cache / f"{sha[:16]}.measures.npz"
    arrays = _kept(rows, _texts(reference, rows), sha, reference, kept)
    return Measured(Point(name, 0, ""), 0, 0.0, "", sha, arrays)


def _texts(reference: Reference, tokens_NL: np.ndarray) -> list[str]:
    return [reference.tokenizer.decode(row) for row in np.asarray(tokens_NL).tolist()]


def _are_known(reference: Reference, tokens_NL: np.ndarray) -> bool:
    return 0 <= tokens_NL.min() and tokens_NL.max() < reference.tokenizer.vocab_size


def _kept(
    tokens_NL: np.ndarray, texts: list[str], sha: str, reference: Reference, path: pathlib.Path
) -> Arrays:
    """All arrays, from the file `path` where it has them; what is new is added to it."""
    known = _load(path, sha)
    arrays: Arrays = {}
    new = False
    for part, depends, function in _parts(reference):
        key = f"{part}:{sha256(_RULES, *depends)[:16]}:"
        own = {name.removeprefix(key): x for name, x in known.items() if name.startswith(key)}
        if not own:
            own, new = function(tokens_NL, texts), True
            known |= {key + name: x for name, x in own.items()}
        arrays |= {f"{name}{_suffix(part)}": x for name, x in own.items()}
    if new:
        content = io.BytesIO()
        np.savez_compressed(content, **known, sha256=np.array(sha))  # pyright: ignore
        files.write_atomically(path, content.getvalue())
    return arrays


def _suffix(part: str) -> str:
    """Of names of arrays that a judge has made."""
    _, slash, judge = part.partition("/")
    return slash + judge


def _load(path: pathlib.Path, sha: str) -> Arrays:
    """What is kept for a file of that hash; nothing if there is none, or of another one."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}
    return found if str(found.pop("sha256", "")) == sha else {}


def _parts(
    reference: Reference,
) -> list[tuple[str, tuple[str, ...], Callable[[np.ndarray, list[str]], Arrays]]]:
    """What is measured together: its name, what it depends on besides samples, and how."""
    tokens = reference.tokenizer.fingerprint
    parts: list[tuple[str, tuple[str, ...], Callable[[np.ndarray, list[str]], Arrays]]] = [
        ("tokens", (), _of_tokens)
    ]
    for name, fingerprint in reference.fingerprints.items():
        scored = functools.partial(_scores, reference, name)
        parts.append((f"scores/{name}", (fingerprint, tokens), scored))
    for name in reference.featured():
        depends = reference.fingerprints[name], tokens, reference.other_sha256
        parts.append((f"features/{name}", depends, functools.partial(_mauve, reference, name)))
    copied = functools.partial(_copied, reference)
    parts.append(("copied", (reference.train_sha256,), copied))
    if reference.has_bleu:
        parts.append(("bleu", (str(GROUP), str(_BLEU_GROUPS)), _bleu))
    if reference.language is not None:
        known = repr(reference.language), tokens
        parts.append(("language", known, functools.partial(_of_language, reference)))
    return parts


def _of_tokens(tokens_NL: np.ndarray, texts: list[str]) -> Arrays:
    """Entropy and repetition within samples, distinct n-grams of groups."""
    starts = range(0, len(tokens_NL) - GROUP + 1, GROUP)
    made = {"entropy": np.array([text_statistics.unigram_entropy(row) for row in tokens_NL])}
    made |= {f"repetition_{n}": repetition.of_each(tokens_NL, n) for n in repetition.LENGTHS}
    for n in diversity.LENGTHS:
        groups = [diversity.distinct(tokens_NL[start : start + GROUP], n) for start in starts]
        made[f"distinct_{n}"] = np.array(groups, np.float64)
    return made


def _scores(reference: Reference, judge: str, tokens_NL: np.ndarray, texts: list[str]) -> Arrays:
    """Nats, tokens and characters of every sample under a judge."""
    one = reference.judges[judge]
    if reference.reads(judge):
        nats = one.score(tokens_NL).sum(axis=1, dtype=np.float64)
        tokens = np.full(len(tokens_NL), tokens_NL.shape[1] - 1)
        return {"nats": nats, "tokens": tokens, "characters": np.array(list(map(len, texts)))}
    scores = score_each(one, texts)
    return {
        "nats": scores.nats_N,
        "tokens": scores.tokens_N,
        "characters": scores.characters_N,
    }


def _mauve(reference: Reference, judge: str, tokens_NL: np.ndarray, texts: list[str]) -> Arrays:
    first = _features(reference, judge, tokens_NL, texts)
    second = _real_features(reference, judge)
    value = mauve(first, second) if min(len(first), len(second)) > 1 else math.nan
    return {"mauve": np.array([value])}


@functools.lru_cache(maxsize=8)
def _real_features(reference: Reference, judge: str) -> np.ndarray:
    rows = reference.other_rows
    return _features(reference, judge, rows, _texts(reference, rows))


def _features(
    reference: Reference, judge: str, tokens_NL: np.ndarray, texts: list[str]
) -> np.ndarray:
    """At the last token of each sample, (N, D)."""
    one = reference.featured()[judge]
    if reference.reads(judge):
        return one.features(tokens_NL, np.full(len(tokens_NL), tokens_NL.shape[1] - 1))
    rows, lengths_N, _ = encode_each(one, texts)
    return one.features(rows, lengths_N)


def _copied(reference: Reference, tokens_NL: np.ndarray, texts: list[str]) -> Arrays:
    return {"copied": reference.copying.of_each(tokens_NL)}


def _bleu(tokens_NL: np.ndarray, texts: list[str]) -> Arrays:
    starts = range(0, len(texts) - GROUP + 1, GROUP)[:_BLEU_GROUPS]
    values = [diversity.self_bleu(texts[start : start + GROUP]) for start in starts]
    return {"self_bleu": np.array(values, np.float64)}


def _of_language(reference: Reference, tokens_NL: np.ndarray, texts: list[str]) -> Arrays:
    """Whether each sample is a document of the language."""
    assert reference.language is not None  # as `_parts` has it
    language = reference.language
    found = truth.documents(tokens_NL, reference.tokenizer)
    valid = [document is not None and language.contains(document) for document in found]
    return {"valid": np.array(valid, np.float64)}
