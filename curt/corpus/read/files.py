"""Files as people have them: packed, of another encoding, one JSON array, a table, a document.

JSON lines in UTF-8 or GB18030 and Parquet are read as streams. What else can be told by its first
bytes is read as a whole here, or refused with what to do.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curt.corpus.read.cail import COLUMNS

SAMPLE_BYTES = 1 << 20
MOST_BYTES = 1 << 30
"""Of a file that is read as a whole, unpacked."""
PARQUET = b"PAR1"

_TEXTS = {"conversations", "document", "fact", "messages", *COLUMNS["document"], *COLUMNS["fact"]}
_POINTER, _PACKED, _ZIP = b"version https://git-lfs", b"\x1f\x8b", b"PK\x03\x04"
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# PDF, old Office files, 7z, rar, zstd, bzip2, xz, UTF-32
_FOREIGN = (b"%PDF", b"\xd0\xcf\x11\xe0", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd", b"BZh",
            b"\xfd7zXZ", codecs.BOM_UTF32_LE)  # fmt: skip
_TABLES = {".csv": ",", ".tsv": "\t"}
_DOCUMENTS = (".txt", ".html", ".htm")
_HIDDEN = re.compile(r"<w:(delText|instrText)\b.*?</w:\1>", re.DOTALL)


def read_head(path: Path) -> bytes:
    """The first megabyte of a file. Raises ValueError with the remedy where nothing can be read."""
    if not path.is_file():
        raise ValueError(f"no file {path}: see --help for the names that are looked for")
    with open(path, "rb") as file:
        head = file.read(SAMPLE_BYTES)
    if not head.removeprefix(codecs.BOM_UTF8).strip():
        raise ValueError(f"{path} is empty: give a file with records")
    if head.startswith(_POINTER):
        raise ValueError(f"{path} is a Git LFS pointer: fetch the file itself with git lfs pull")
    known = (PARQUET, _PACKED, _ZIP, *_WIDE)
    if head.startswith(_FOREIGN) or (b"\0" in head and not head.startswith(known)):
        raise ValueError(f"{path} is no text: unpack it, or save it as UTF-8 text, CSV or DOCX")
    return head


def read_whole(path: Path) -> list[Any] | None:
    """The records of a file that is no stream: values, or lines of JSON; None for a stream.

    A text that is no JSON is one record, its `document`. Raises ValueError with the remedy.
    """
    head = read_head(path)
    packed = head.startswith(_PACKED)
    kind = (path.with_suffix("") if packed and path.suffix == ".gz" else path).suffix.lower()
    if head.startswith(_ZIP):
        return [{"document": _read_docx(path)}]
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    first, _, rest = start.partition(b"\n")
    opens = start.startswith(b"{") and not (rest.strip() and first.rstrip().endswith(b"}"))
    whole = packed or opens or start.startswith((b"[", b"<", *_WIDE)) or kind in _TABLES
    if not (whole or (kind in _DOCUMENTS and not start.startswith(b"{"))):
        if not re.search(rb"(?m)^(?:\xef\xbb\xbf)?[ \t]*[\[{0-9]", head):
            raise ValueError(f"{path} holds no JSON: give JSON lines, CSV, Parquet or plain .txt")
        return None
    data = _unpack(path) if packed else path.read_bytes()
    encoding = "utf-16" if data.startswith(_WIDE) else encoding_of(data.splitlines())
    try:
        text = data.decode(encoding).lstrip("\ufeff\r\n")
    except UnicodeDecodeError:
        if not start.startswith((b"{", _PACKED)):
            raise ValueError(f"{path} is not {encoding.upper()}: save it as UTF-8") from None
        return data.splitlines() if packed else None  # the broken lines are set aside
    if mark := _cell_mark(text, kind):
        csv.field_size_limit(MOST_BYTES)
        text = text.removeprefix(f"sep={mark}").lstrip("\r\n")  # as Excel may begin it
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark)
        return [{name.strip(): cell for name, cell in row.items() if name} for row in rows]
    plain = text.lstrip()
    if not plain.startswith(("[", "{")):
        if "<table" in plain.lower() and not re.search(r"判\s*决", plain):
            raise ValueError(f"{path} is a page with a table: save that as CSV")
        return [{"document": plain}]
    line, _, after = plain.partition("\n")
    try:
        if not (line[0] == "{" and line.rstrip().endswith("}") and after.strip()):  # JSON lines
            values = list(_read_values(plain))
            return _find_records(values[0]) if len(values) == 1 else values
    except (ValueError, RecursionError):
        if re.match(r"\[\s*\{", plain):
            raise ValueError(f"{path} is a damaged JSON array: give a whole file") from None
    stream = not packed and encoding != "utf-16"
    return None if stream else [line.encode() for line in plain.split("\n")]


def encoding_of(lines: list[bytes]) -> str:
    """UTF-8, or GB18030 where most lines that are not ASCII are that alone.

    A few bad bytes do not make a UTF-8 file another one.
    """

    def decodes(line: bytes, name: str) -> bool:
        return line.decode(name, "ignore").encode(name) == line

    other = sum(not decodes(line, "utf-8") and decodes(line, "gb18030") for line in lines)
    return "utf-8" if other * 2 <= sum(not line.isascii() for line in lines) else "gb18030"


def _cell_mark(text: str, kind: str) -> str:
    """What parts the cells of a table; nothing where the text is none."""
    first, second = [*text.split("\n", 2), ""][:2]
    if kind in _TABLES:
        return max(f"{_TABLES[kind]},;\t", key=first.count)
    return "\t" if second.count("\t") == first.count("\t") > 1 else ""


def _read_values(text: str) -> Iterator[Any]:
    """The values of JSON, one after another. Raises ValueError where one is none."""
    end = 0
    while end < len(text):
        value, end = json.JSONDecoder().raw_decode(text, end)
        yield value
        while text[end : end + 1] in {" ", ",", "\t", "\r", "\n", "\ufeff"}:
            end += 1


def _find_records(value: Any) -> list[Any]:
    """A JSON array's items, those that an object holds by name, key or column, or itself."""
    if not isinstance(value, dict):
        return list(value)
    parts = list(value.values())
    if _TEXTS & value.keys() or any(isinstance(p, str) and len(p) > 60 for p in parts):
        columns = all(isinstance(p, list) and p and not isinstance(p[0], dict) for p in parts)
        if not columns or len(set(map(len, parts))) > 1:
            return [value]
        return [dict(zip(value, row, strict=True)) for row in zip(*parts, strict=True)]
    lists = [p for p in parts if isinstance(p, list) and p and isinstance(p[0], dict)]
    objects = [p for p in parts if isinstance(p, dict)]
    if len(inner := lists or objects) == 1:
        return _find_records(inner[0])
    return parts if len(objects) == len(parts) else [value]


def _unpack(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        raise ValueError(f"{path} is packed and damaged: give a whole file") from None
    if len(data) > MOST_BYTES or (b"\0" in data and not data.startswith(_WIDE)):
        raise ValueError(f"{path} is a packed table or archive, or over 1 GiB: unpack it")
    return data


def _read_docx(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("word/document.xml")
            if member.file_size > 64 * SAMPLE_BYTES:
                raise ValueError(f"{path} holds over 64 MiB of text: give a judgment a file")
            text = archive.read(member).decode("utf-8")
    except (KeyError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{path} is no DOCX file: unpack it, or save a table as CSV") from None
    return _HIDDEN.sub("", text).replace("</w:p>", "\n")
