"""What a file's first bytes say it is, where its name or the options say text."""

import re

SIZE = 1 << 16  # bytes that are looked at

_NO_TEXT = {
    b"\x1f\x8b": "a gzip file; give its name the ending .gz",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it (zstd -d)",
    b"BZh91AY&SY": "a bzip2 file; unpack it (bunzip2)",
    b"\xfd7zXZ\0": "an xz file; unpack it (unxz)",
    b"PK\x03\x04": "a zip archive (as .docx, .xlsx and .epub are); unpack it, or save it as text",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"PAR1\x15": "a Parquet file; use data.name=huggingface, or write its text as JSON lines",
    b"ARROW1\0": "an Arrow file; use data.name=huggingface, or write its text as JSON lines",
    b"%PDF-": "a PDF; save it as text (pdftotext)",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a document of an office program; save it as text",
    b"\x93NUMPY": "a numpy array; write its text to a file",
}
_NO_UTF8 = {  # the longer marks first
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_BOM = rb"\A(?:\xef\xbb\xbf)?\s*"
_MEMBER = rb'\{\s*"(?:[^"\\\n]|\\.)*"\s*:'
_OBJECT = re.compile(_BOM + _MEMBER)
_ARRAY = re.compile(_BOM + rb"\[\s*" + _MEMBER)
_SPREAD = re.compile(_BOM + rb"\{[ \t\r]*\n")
_AS_LINES = (
    "write an object per line (jq -c '.[]' FILE > FILE.jsonl makes them of an array, jq -c . of "
    "objects)"
)


def complaint(head: bytes, kind: str, guessed: bool, document: str) -> str:
    """Why a file is not what it is taken for, to be read after its name; "" if nothing is wrong.

    Args:
      head: its first SIZE bytes, unzipped.
      kind: "txt" or "jsonl", what it is taken for.
      guessed: whether that is only what the name says; text that is JSON is right if asked for.
      document: the option, see `text_files`.
    """
    for magic, what in _NO_TEXT.items():
        if head.startswith(magic):
            return f"is not text but {what}"
    if head[257:262] == b"ustar":
        return "is not text but a tar archive; unpack it"
    for mark, code in _NO_UTF8.items():
        if head.startswith(mark):
            return f"is not UTF-8 but {code}; save it as UTF-8 (iconv -f {code} -t UTF-8)"
    if b"\n" not in head and b"\r" in head.strip() and (kind == "jsonl" or "\r" not in document):
        return (
            "ends its lines by carriage returns alone, so that all of it would be one line; "
            "write line feeds (tr '\\r' '\\n' < OLD > NEW)"
        )
    anyway = ", or set options.format=text to train on the JSON itself"
    if kind == "jsonl":
        anyway = ""
    elif not guessed:
        return ""
    if _ARRAY.match(head):
        return f"is one JSON array, not JSON lines; {_AS_LINES}{anyway}"
    if _SPREAD.match(head) and _OBJECT.match(head):
        return f"has JSON objects over several lines, not JSON lines; {_AS_LINES}{anyway}"
    if kind == "txt" and _OBJECT.match(head):
        return f"looks like JSON lines; name it .jsonl or set options.format=jsonl{anyway}"
    return ""
