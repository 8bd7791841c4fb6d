"""The names of Unicode characters: about 29,000 short documents that come with Python.

"latin small letter a with macron", "black chess knight": English phrases with a strict grammar, so
that a small model visibly learns something in minutes.
"""

import re
import sys
import unicodedata
from collections.abc import Iterator

from flm_jax.data import base

# A serial number of three or more digits ("egyptian hieroglyph a001", "tangut component-017") or a
# code point ("cjk unified ideograph-4e00"): such names say nothing that a model could learn.
_SERIAL = re.compile(
    r"[ -][a-z]*[0-9]{3,}[a-z]?$|(?:ideograph|character|hieroglyph)-[0-9a-f]{4,6}$"
)
# Composed by rule from the parts of the syllable: 11,172 of them.
_COMPOSED = "hangul syllable "


class UnicodeNames(base.MemoryCorpus):
    """Lower-case character names, without the machine-numbered families.

    The names follow the Unicode version of Python's `unicodedata`; each name stays on the same side
    of the 90/5/5 split in every version.
    """

    name = "unicode_names"
    kind = f"names of Unicode {unicodedata.unidata_version} characters, numbered ones left out"
    licence = "Unicode Character Database, (c) Unicode, Inc., Unicode License v3"

    def read(self) -> dict[str, list[str]]:
        return base.split_by_hash((name, name) for name in names())


def names() -> Iterator[str]:
    """Lower-case names in code-point order; serial numbers and composed syllables omitted."""
    for code in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(code), "").lower()
        if name and not name.startswith(_COMPOSED) and not _SERIAL.search(name):
            yield name
