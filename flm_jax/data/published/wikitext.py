"""WikiText-2 and WikiText-103: good and featured articles of Wikipedia, word-tokenised."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator

from flm_jax import errors
from flm_jax.data import detokenize
from flm_jax.data.published import base, columns, files, streams
from flm_jax.host import folders
from flm_jax.host.download import Download

_SITE = "https://wikitext.smerity.com/"
_TITLE = re.compile(r"^ = [^=].* = \n?$")
_SPLITS = ("train", "valid", "test")


class _WikiText(base.Published):
    """Raw (`wiki.train.raw`) or with rare words as <unk> (`wiki.train.tokens`); raw is preferred.

    Attributes:
      folder: what the archives and the hub call the raw corpus.
    """

    licence = "CC BY-SA 3.0 (Wikipedia)"
    hub_names = ("Salesforce/wikitext", "wikitext")
    distinct = False
    folder = ""

    def __init__(self, path: str = "", document: str = "article", download: bool = False):
        """See `Published`.

        Args:
          path: a folder with wiki.train.raw ... or wiki.train.tokens ..., a .zip of it, or the
            hub's Parquet files.
          document: "article", or "line" as in the official code (a blank line is an empty one).
          download: fetch the archive if it is nowhere.
        """
        if document not in ("article", "line"):
            raise errors.UserError(f"options.document={document!r} must be 'article' or 'line'")
        self._document = document
        super().__init__(path, download)

    def detokenize(self, text: str) -> str:
        return "".join(detokenize.wikitext(line) for line in text.splitlines(keepends=True))

    def recognise(self, place: pathlib.Path) -> base.Parts | None:
        lines = self._files(place) or self._archive(place) or self._columns(place)
        if lines is None or self._document == "line":
            return lines
        return {split: tuple(map(Articles, parts)) for split, parts in lines.items()}

    def _files(self, place: pathlib.Path) -> base.Parts | None:
        folders = [place.parent] if place.is_file() else [place]
        if place.is_dir():
            folders += [place / self.folder, place / self.folder.replace("-raw", "")]
        for folder in folders:
            for kind in ("raw", "tokens"):
                names = [f"wiki.{split}.{kind}" for split in _SPLITS]
                if place.is_file() and place.name not in names:
                    continue
                found = [base.first_of(folder, name) for name in names]
                if found[0] and found[1]:
                    pairs = zip(_SPLITS, found, strict=True)
                    return {s: (files.Lines(p, strip=False),) for s, p in pairs if p}
        return None

    def _archive(self, place: pathlib.Path) -> base.Parts | None:
        names = (f"{self.folder}-v1.zip", f"{self.folder.replace('-raw', '')}-v1.zip")
        found = base.first_of(place, *names)
        if found is None and place.is_file() and place.suffix == ".zip":
            found = place
        if found is None:
            return None
        inside = {pathlib.PurePosixPath(name).name: name for name in files.members(found)}
        parts = {}
        for split in _SPLITS:
            for kind in ("tokens", "raw"):
                if member := inside.get(f"wiki.{split}.{kind}"):
                    parts[split] = (files.Lines(found, member, strip=False),)
        if "train" not in parts:
            raise errors.UserError(
                f"{found} holds no wiki.train.raw or wiki.train.tokens; download {self.address}"
            )
        return parts

    def _columns(self, place: pathlib.Path) -> base.Parts | None:
        """Only folders of the right name: the hub has both corpora side by side."""
        own = f"{self.folder}-v1"
        folder = place if place.name in (own, self.name) else place / own
        return columns.shards(folder) if folder.is_dir() else None

    def _places(self) -> Iterator[pathlib.Path]:
        yield from super()._places()
        if data := os.environ.get(base.FOLDER_VARIABLE):
            yield folders.expanded(data) / self.folder
            yield folders.expanded(data) / self.folder.replace("-raw", "")


class WikiText2(_WikiText):
    name = "wikitext2"
    kind = "600 articles of English Wikipedia, two million words"
    folder = "wikitext-2-raw"
    wanted = "wiki.train.raw (or .tokens) and its siblings, wikitext-2-raw-v1.zip or Parquet files"
    address = _SITE + "wikitext-2-raw-v1.zip"
    downloads = (
        Download(
            address,
            "wikitext-2-raw-v1.zip",
            "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
            4_721_645,
        ),
    )


class WikiText103(_WikiText):
    name = "wikitext103"
    kind = "28,000 articles of English Wikipedia, 103 million words"
    folder = "wikitext-103-raw"
    wanted = (
        "wiki.train.raw (or .tokens) and its siblings, wikitext-103-raw-v1.zip or Parquet files"
    )
    address = _SITE + "wikitext-103-raw-v1.zip"
    downloads = (Download(address, "wikitext-103-raw-v1.zip"),)


@dataclasses.dataclass(frozen=True)
class Articles:
    """The lines of a part joined into articles, which begin with a title line " = Title = "."""

    lines: streams.Part

    def documents(self) -> Iterator[str]:
        article: list[str] = []
        blank = True  # a title follows a blank line; a sentence may look like one
        for line in self.lines.documents():
            if blank and article and _TITLE.match(line):
                yield "".join(article)
                article = []
            blank = not line.strip()
            if not blank:
                article.append(line if line.endswith("\n") else line + "\n")
        if article:
            yield "".join(article)

    def fingerprint(self) -> str:
        return streams.combined("Articles", self.lines.fingerprint())

    def count(self) -> int | None:
        return None
