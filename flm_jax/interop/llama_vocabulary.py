"""The vocabulary of a llama2.c model, as a SentencePiece model: the same pieces, scores and rules.

The file holds the longest piece's length (int32), then for every id its score (float32), the length
of its bytes (int32) and the bytes. Ids 0 to 2 are <unk>, BOS and EOS, then come 256 single bytes
(`<0x00>` ...) for characters that have no piece. It says less than the SentencePiece model that it
was made from; what is missing is the same for all Llama models: pairs are merged by the highest
score, and a space stands before the first word.
"""

import pathlib
import struct

from flm_jax.errors import UserError
from flm_jax.tokenizers.sentencepiece import SentencePiece

_NAMES = ("<unk>", "<s>", "</s>")
_SPECIALS = len(_NAMES)
_BYTES = 256
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
# Numbers of the protocol: kinds of pieces, and BPE among the kinds of models.
_NORMAL, _UNKNOWN, _CONTROL, _BYTE, _BPE = 1, 2, 3, 6, 2


def read(path: pathlib.Path) -> SentencePiece:
    """The tokenizer of a file such as tok512.bin; raises UserError if it is not one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"the vocabulary {path} cannot be read ({error.strerror or error}); a Llama file needs "
            "its vocabulary beside it: tokenizer.bin, or tok and the number of its pieces"
        ) from None
    pieces, place = [], 4
    try:
        while place < len(content):
            score, length = struct.unpack_from("<fi", content, place)
            place += 8 + length
            if length < 0 or place > len(content):
                raise ValueError(f"piece {len(pieces)} is longer than the file")
            pieces.append((content[place - length : place].decode(), score))
        if len(pieces) < _SPECIALS + _BYTES:
            raise ValueError(f"it has only {len(pieces)} pieces")
    except (struct.error, ValueError) as error:
        raise UserError(
            f"{path} is not a vocabulary in the layout of llama2.c ({error}); download it again"
        ) from None
    return SentencePiece(_model(pieces), str(path))


def beside(model: pathlib.Path, size: int) -> pathlib.Path:
    """Where the vocabulary of a model file lies: tokSIZE.bin or tokenizer.bin in its folder."""
    own = model.with_name(f"tok{size}.bin")
    return own if own.exists() else model.with_name("tokenizer.bin")


def _model(pieces: list[tuple[str, float]]) -> bytes:
    """A serialised SentencePiece ModelProto."""
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * _BYTES]
    kinds += [_NORMAL] * (len(pieces) - len(kinds))
    model = b""
    for i, ((piece, score), kind) in enumerate(zip(pieces, kinds, strict=True)):
        text = _NAMES[i] if i < _SPECIALS else piece.replace(" ", _SPACE)
        body = _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
        model += _field(1, body)
    ids = _number(40, 0) + _number(41, 1) + _number(42, 2) + _number(43, -1)
    trainer = _number(3, _BPE) + _number(4, len(pieces)) + _number(35, 1) + ids
    rules = _field(1, b"identity") + _number(3, 1) + _number(4, 0) + _number(5, 1)
    return model + _field(2, trainer) + _field(3, rules)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value % (1 << 64))


def _varint(value: int) -> bytes:
    parts = []
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
