"""Find or fetch the vocabulary files of published tokenizers, and tidy decoded text."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from flm_jax import errors
from flm_jax.host import folders
from flm_jax.host.download import Download, fetch

FOLDER_VARIABLE = "FLM_JAX_TOKENIZERS"

# Spaces that the official decoder takes out of word-level text, in this order.
_TIDIED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


def find(
    title: str,
    folder: str,
    sets_of_names: Sequence[Sequence[str]],
    hub_names: Sequence[str],
    published: Sequence[Download] = (),
    download: bool = False,
    cache_dir: str = "",
) -> dict[str, bytes]:
    """The files of the first complete set of names: file name -> content.

    Looks in `folder` alone if it is given, else in $FLM_JAX_TOKENIZERS/`title`, in the Hugging Face
    cache under each of `hub_names`, and where downloads go, `cache_dir`/tokenizers/`title`. With
    `download` the files that are `published` are fetched there. Raises UserError saying what to put
    where, or why a file cannot be fetched.
    """
    places = [folders.expanded(folder)] if folder else _usual_folders(title, hub_names)
    if found := _first(places, sets_of_names):
        return found
    # Asked for only now: a user without a home may have the files elsewhere.
    own = None if folder else folders.cache(cache_dir) / "tokenizers" / title
    if own is not None and (found := _first([own], sets_of_names)):
        return found
    if download and own is not None:
        return {file.file: _read(fetch(file, own)) for file in published}
    wanted = ", or ".join(" and ".join(names) for names in sets_of_names)
    looked = folder or f"${FOLDER_VARIABLE}/{title}, the Hugging Face cache or {own}"
    itself = "" if folder else ", or set tokenizer.options.download=True"
    raise errors.UserError(
        f"the {title} vocabulary ({wanted}) is not in {looked}; download it from the Hugging Face "
        f"model {hub_names[-1]} into a folder and give that as tokenizer.options.folder{itself}"
    )


def _first(
    places: Sequence[pathlib.Path], sets_of_names: Sequence[Sequence[str]]
) -> dict[str, bytes] | None:
    """The files of the first place that holds all of a set; None if no place does."""
    for place in places:
        for names in sets_of_names:
            if all((place / name).is_file() for name in names):
                return {name: _read(place / name) for name in names}
    return None


def _usual_folders(title: str, hub_names: Sequence[str]) -> list[pathlib.Path]:
    places = []
    if os.environ.get(FOLDER_VARIABLE):
        places.append(folders.expanded(os.environ[FOLDER_VARIABLE]) / title)
    if cache := folders.hugging_face("HF_HUB_CACHE", "hub"):
        for name in hub_names:
            model = cache / f"models--{name.replace('/', '--')}" / "snapshots"
            places += sorted(model.glob("*"))
    return places


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.UserError(
            f"cannot read the vocabulary file {path}: {error.strerror or error}"
        ) from error


def check_ids(vocab: Mapping[str, int], source: str) -> None:
    """UserError unless the ids are 0, 1, 2, ... without gaps or repeats."""
    ids = vocab.values()
    if any(type(i) is not int for i in ids) or sorted(ids) != list(range(len(vocab))):
        raise errors.UserError(
            f"{source} does not number its {len(vocab)} tokens from 0 without gaps; "
            "copy the vocabulary file again"
        )


def tidy(text: str) -> str:
    """`text` without the spaces before punctuation and clitics, as the official decoder has it."""
    for sought, replacement in _TIDIED:
        text = text.replace(sought, replacement)
    return text
