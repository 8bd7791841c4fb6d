"""The user's own text: .txt and JSON lines files, plain or gzipped."""

import hashlib
import json
import pathlib
from collections.abc import Sequence

from absl import logging

from flm_jax import errors
from flm_jax.data import base, documents, paths, pieces
from flm_jax.host import progress

_HASHED_FULLY = 64 << 20  # bytes; of larger files the ends, the size and the date are hashed
_RULES = "2"  # raise it when the same files and options would give other documents


class TextFiles(base.Corpus):
    """Documents from files, folders and globs; encoding UTF-8.

    Files are read in a stream; what is kept is where each document lies, so a corpus may be larger
    than the memory. In a .gz file, jumping backwards decompresses from the start.
    """

    name = "text_files"
    kind = "the user's text files"
    licence = "as the user's files state"

    def __init__(
        self,
        path: str | Sequence[str] = (),
        valid_path: str | Sequence[str] = (),
        test_path: str | Sequence[str] = (),
        document: str = "line",
        json_key: str = "text",
        bad_text: str = "stop",
        longest_document: int = 12_000_000,
        format: str = "auto",
        keep_indentation: bool = False,
    ):
        """Finds the files; nothing is read yet.

        Args:
          path: a file, a folder (its .txt and .jsonl files, plain or .gz, at any depth), a glob,
            or a list of these, for training; see `paths.find`. `~` is the home folder; commas
            separate entries when the whole text finds no file.
          valid_path: the same for validation. Left out: one twentieth of the documents of `path`,
            chosen by their hash.
          test_path: the same for the test split. Left out: another twentieth of `path`, but nothing
            where valid_path is given; then there is no test split and all of `path` is trained on.
          document: of .txt files: "line", "paragraph" (separated by blank lines), "file", or any
            other text, which then is the separator, such as "<|endoftext|>". JSON lines have a
            document per line.
          json_key: where a line of JSON has its text.
          bad_text: what happens to a document that is not UTF-8 or holds a NUL byte: "stop" with
            its line, "replace" what is wrong by U+FFFD, or "skip" the document. A line that is no
            JSON object or has no text under its key (null, a number) is omitted by both of the
            latter. Such documents are counted, and a warning tells how many there were.
          longest_document: bytes a document may have, because it is tokenised as a whole; 0 = any.
          format: "auto": files called .jsonl, .json or .ndjson are JSON lines, all others text, and
            what is visibly something else is refused. "text" or "jsonl" is said of all files.
          keep_indentation: keep blanks and tabs before the first character of a document (of code,
            of verse); omitted otherwise, like blank lines before and all white space behind.

        Raises:
          UserError: `path` is missing, a path finds no file, or an option is not one of these.
        """
        if not path:
            raise errors.UserError(
                "data set 'text_files' needs options.path: a file, a folder or a glob, for example "
                "--config.data.options.path=corpus.txt"
            )
        if not document:
            raise errors.UserError(
                "options.document is empty; use 'line', 'paragraph', 'file' or a separator such "
                "as '<|endoftext|>'"
            )
        if bad_text not in documents.BAD_TEXT:
            raise errors.UserError(
                f"options.bad_text is {bad_text!r}, but must be {', '.join(documents.BAD_TEXT)}"
            )
        if format not in documents.FORMATS:
            raise errors.UserError(
                f"options.format is {format!r}, but must be {', '.join(documents.FORMATS)}"
            )
        self._given = {"valid": bool(valid_path), "test": bool(test_path)}
        no_test = valid_path and not test_path
        self.splits = base.SPLITS[:2] if no_test else base.SPLITS
        self._files = {
            split: paths.find(given) if given else ()
            for split, given in zip(base.SPLITS, (path, valid_path, test_path), strict=True)
        }
        self._document, self._json_key = document, json_key
        self._bad_text, self._longest = bad_text, longest_document
        self._format, self._keep_indentation = format, keep_indentation
        self._hashes: dict[pathlib.Path, bytes] = {}
        self._sources: dict[str, documents.Located] = {}
        self._characters: dict[str, int] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_sources": {}}

    def source(self, split: str) -> Sequence[str]:
        """The documents, found by one pass over the files at first use.

        Raises:
          UserError: a file that cannot be read, is empty, not UTF-8 or of another kind than its
            name says, or holds bad JSON (with its line), or a split without documents.
        """
        base.check_split(self, split)
        # Not in `describe`: rows that were prepared before files were looked at can go on.
        self._reader(split if self._files[split] else "train").check_kinds()
        found = self._found(split)
        if not len(found):
            raise errors.UserError(self._nothing(split))
        return found

    def fingerprint(self, split: str) -> str:
        base.check_split(self, split)
        owner = split if self._files[split] else "train"
        facts = [_RULES, split, self._document, self._json_key, *map(str, self._given.values())]
        facts += [self._bad_text] * (self._bad_text != "stop")
        facts += ["indentation"] * self._keep_indentation
        digest = hashlib.sha256("\0".join(facts).encode())
        for path in self._files[owner]:
            digest.update(self._hash(path))
        return digest.hexdigest()

    def _hash(self, path: pathlib.Path) -> bytes:
        if path not in self._hashes:
            found = _file_hash(path, self._format)
            for other in (other for other, known in self._hashes.items() if known == found):
                logging.warning(
                    "%s has the same content as %s: its text counts twice; leave one of them out",
                    path,
                    other,
                )
                break
            self._hashes[path] = found
        return self._hashes[path]

    def describe(self) -> dict:
        """What `base.description` says, from the counts of the one pass; a split may be empty."""
        counts = {s: (len(self._found(s)), self._characters[s]) for s in self.splits}
        return base.description(self, counts)

    def _found(self, split: str) -> documents.Located:
        base.check_split(self, split)
        if split not in self._sources:
            self._locate(split if self._files[split] else "train")
        return self._sources[split]

    def _reader(self, owner: str) -> documents.Reader:
        return documents.Reader(
            self._files[owner],
            self._document,
            self._json_key,
            self._bad_text,
            self._longest,
            self._format,
            self._keep_indentation,
        )

    def _locate(self, owner: str) -> None:
        """One pass over the files of a split; those of "train" also hold the derived splits."""
        reader = self._reader(owner)
        derived = [s for s in self.splits[1:] if owner == "train" and not self._given[s]]
        places = {split: documents.Places() for split in (owner, *derived)}
        characters = dict.fromkeys(places, 0)
        with progress.bar(desc=f"reading {owner} files", unit="doc", delay=2) as bar:
            for place, text in reader.scan():
                # Copies of a document stay on one side, whatever their indentation.
                side = base.split_of(text.strip()) if derived else owner
                side = side if side in places else owner
                places[side].add(place)
                characters[side] += len(text)
                bar.update()
        if reader.bad:
            logging.warning(
                "%d documents of the %s files were no UTF-8 text or held NUL and were %s "
                "(options.bad_text=%s); the first one: %s",
                reader.bad,
                owner,
                "left out" if self._bad_text == "skip" else "repaired",
                self._bad_text,
                reader.first_bad,
            )
        if reader.missing:
            logging.warning(
                "%d lines of the %s files had no text under %r and were left out "
                "(options.bad_text=%s); the first one: %s",
                reader.missing,
                owner,
                self._json_key,
                self._bad_text,
                reader.first_missing,
            )
        if reader.indented:
            logging.warning(
                "%d documents of the %s files begin with tabs or several blanks, which are left "
                "out; options.keep_indentation=True keeps them",
                reader.indented,
                owner,
            )
        self._characters |= characters
        for split, found in places.items():
            self._sources[split] = documents.Located(reader, found.all_N3())

    def _nothing(self, split: str) -> str:
        if split != "train" and self._given[split]:
            return f"there are no documents in {_listed(self._files[split])}; give files with text"
        where = _listed(self._files["train"])
        total = sum(
            len(self._sources[s]) for s in self.splits if s == "train" or not self._given[s]
        )
        if not total:
            return f"there are no documents in {where}; give files with text"
        option = "test_path" if split == "test" else "valid_path"
        remedy = f"set options.{option}, or cut finer with options.document"
        return (
            f"{total} documents (options.document={self._document!r}) in {where} are too few to "
            f"leave any for the {split!r} split; {remedy}"
        )


def _listed(files: Sequence[pathlib.Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more files"


def _file_hash(path: pathlib.Path, format_: str) -> bytes:
    """Hash of the content; of a large file, of its ends, size and date, because reading it is slow.

    The kind of file is part of it: the same bytes are read differently as .txt and as .jsonl.
    """
    digest = hashlib.sha256(json.dumps(documents.kind_of(path, format_)).encode())
    with pieces.reading(path), path.open("rb") as file:
        size = path.stat().st_size
        if size <= _HASHED_FULLY:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            digest.update(f"{size} {path.stat().st_mtime_ns}".encode())
            digest.update(file.read(1 << 20))
            file.seek(-(1 << 20), 2)
            digest.update(file.read())
    return digest.digest()
