"""text8: the first 100 million characters of cleaned Wikipedia, in 27 symbols."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator

from flm_jax import errors
from flm_jax.data import base as data_base
from flm_jax.data.published import base, files, streams
from flm_jax.host.download import Download

_ADDRESS = "http://mattmahoney.net/dc/text8.zip"
_OTHER = re.compile(rb"[^a-z ]")


class Text8(base.Published):
    """The usual split: 90 million characters of training text, 5 million each of the others.

    The text has no documents; it is cut into pieces of `piece` characters, and what is left at the
    end of a split is dropped, as in the published protocol. With data.packing=one_per_row and
    data.length=piece+2 a row is one piece between BOS and EOS.
    """

    name = "text8"
    kind = "English Wikipedia of 2006 in lower-case letters and spaces"
    licence = "CC BY-SA (Wikipedia)"
    wanted = "text8 or text8.zip"
    address = _ADDRESS
    downloads = (Download(_ADDRESS, "text8.zip", size=31_344_016),)

    def __init__(
        self,
        path: str = "",
        piece: int = 256,
        characters: tuple[int, ...] = (90_000_000, 5_000_000, 5_000_000),
        download: bool = False,
    ):
        """See `Published`.

        Args:
          path: the file, or its folder.
          piece: characters per document.
          characters: sizes of train, valid and test; they must be the whole file.
          download: fetch the file if it is nowhere.
        """
        if len(characters) != 3 or piece < 1 or min(characters) < piece:
            raise errors.UserError(
                f"options.characters={characters} must be three sizes (train, valid, test), none "
                f"smaller than options.piece={piece}, which must be at least 1"
            )
        self._piece, self._characters = piece, tuple(characters)
        super().__init__(path, download)

    def recognise(self, place: pathlib.Path) -> base.Parts | None:
        found = base.first_of(place, "text8", "text8.zip", "text8.txt")
        if found is None and place.is_file():
            found = place
        if found is None:
            return None
        member = ""
        if found.suffix == ".zip":
            names = files.members(found)
            if "text8" not in names:
                raise errors.UserError(f"{found} holds no file text8; download it from {_ADDRESS}")
            member = "text8"
        parts, start = {}, 0
        for split, size in zip(data_base.SPLITS, self._characters, strict=True):
            whole = sum(self._characters)
            parts[split] = (Pieces(found, member, start, size, self._piece, whole),)
            start += size
        return parts


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces of one split: `size` characters of the file from `start` on.

    Attributes:
      whole: characters that the file must have.
    """

    path: pathlib.Path
    member: str
    start: int
    size: int
    piece: int
    whole: int

    def documents(self) -> Iterator[str]:
        with files.opened(self.path, self.member) as file:
            end = file.seek(0, 2)
            # Published copies end without a line break; one that an editor added is no harm.
            if end != self.whole and not (end == self.whole + 1 and _last(file) == b"\n"):
                raise errors.UserError(
                    f"{self.path} has {end:,} characters, not {self.whole:,}; download it again, "
                    "or set options.characters to sizes of train, valid and test that add up"
                )
            file.seek(self.start)
            for number in range(self.count()):
                data = file.read(self.piece)
                if wrong := _OTHER.search(data):
                    place = self.start + number * self.piece + wrong.start()
                    raise errors.UserError(
                        f"{self.path} has the byte 0x{wrong.group()[0]:02x} at {place:,}, but "
                        "text8 is a-z and space only; download it again"
                    )
                yield data.decode("ascii")

    def fingerprint(self) -> str:
        facts = (self.member, self.start, self.size, self.piece)
        return streams.combined("Pieces", *facts, streams.file_hash(self.path))

    def count(self) -> int:
        return self.size // self.piece


def _last(file) -> bytes:
    file.seek(-1, 2)
    return file.read(1)
