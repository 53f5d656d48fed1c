"""MIMIC-CXR's reports: out of `mimic-cxr-reports.zip` unextracted, or out of the folder, as sections.

Knows no metadata, no labels and no images.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

from hf_medvlm.data.files import check_regular
from hf_medvlm.errors import library_errors
from hf_medvlm.language.sections import select_sections

_REPORT = re.compile(r"(?:.*/)?s(\d{8})\.txt")
_BREAK = re.compile(r"\n\s*\n|\n\s*(?=(?:\(?\d{1,2}[.)]|[-*\u2022])\s)")
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # PKWARE APPNOTE 4.3.7: signature ... length of name, of extra field


LARGEST_REPORT = 2**20
"""Bytes of a report; the longest of MIMIC-CXR has some 10,000."""
_TOO_LARGE = f"more than {LARGEST_REPORT:,} bytes, which is no report"


class Report(NamedTuple):
    """The sections of one report, stripped; `error` says why there are none."""

    study_id: str
    findings: str = ""
    impression: str = ""
    last_paragraph: str = ""
    comparison: str = ""
    indication: str = ""
    error: str = ""


Index = dict[str, tuple[int, int, int, int] | str]
"""Study id -> where its report is: offset, packed size, checksum and method in the ZIP, or the path of its file."""


def index_reports(source: Path) -> Index:
    """Find all reports s<study_id>.txt of a ZIP, or of the folder that holds p10/p10000032/s50414267.txt.

    Raises:
        ValueError: the ZIP is broken off, or not a ZIP; there is no report in it, or no access to it.
    """
    index = _index_zip(source) if source.is_file() else _index_folder(source)
    if not index:
        raise ValueError(f"{source}: not one report s<study_id>.txt is in it")
    return index


def read_reports(source: Path, index: Index, study_ids: Iterable[str]) -> Iterator[Report]:
    """The reports of these studies, in this order; one that cannot be read comes with its `error`."""
    read = _read_members if source.is_file() else _read_files
    for study_id, raw in read(source, index, study_ids):
        try:
            yield _cut(study_id, raw) if isinstance(raw, bytes) else Report(study_id, error=raw)
        except UnicodeDecodeError as error:
            yield Report(study_id, error=f"not UTF-8: {error.reason}")


def _index_zip(path: Path) -> Index:
    try:
        with library_errors(f"{path}: not a whole ZIP", "download it again"), zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if any(info.header_offset < 0 for info in infos):  # a piece is missing before the table of contents
        raise ValueError(f"{path}: not a whole ZIP (places that it names are not there); download it again")
    named = ((match[1], info) for info in infos if (match := _REPORT.fullmatch(info.filename)))
    return {name: (i.header_offset, i.compress_size, i.CRC, i.compress_type) for name, i in named}


def _index_folder(folder: Path) -> Index:
    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename}: cannot be read: {error.strerror}") from error

    index: Index = {}
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name.startswith("p")]  # images lie in folders s<study_id>
        index |= {match[1]: os.path.join(parent, name) for name in names if (match := _REPORT.fullmatch(name))}
    return index


def _read_members(path: Path, index: Index, study_ids: Iterable[str]) -> Iterator[tuple[str, bytes | str]]:
    """(study id, content, or why there is none).

    Members are read at their places instead of through `zipfile`, which would read the table of contents of all
    228,000 once more in each process, and takes twice as long for files as small as these.
    """
    with open(path, "rb", buffering=1 << 16) as handle:  # neighbours come out of one read
        for study_id in study_ids:
            offset, size, crc, method = cast("tuple[int, int, int, int]", index[study_id])
            handle.seek(offset)
            header = handle.read(_LOCAL_HEADER.size)
            try:
                if len(header) < _LOCAL_HEADER.size:
                    raise zlib.error("the file ends before it")
                signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
                packed = handle.read(name_length + extra_length + size)[name_length + extra_length :]
                if signature != b"PK\3\4" or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise zlib.error(f"neither stored nor deflated (method {method})")
                unpacking = zlib.decompressobj(-zlib.MAX_WBITS)
                raw = unpacking.decompress(packed, LARGEST_REPORT + 1) if method else packed
                if len(raw) > LARGEST_REPORT:
                    raise zlib.error(_TOO_LARGE)
                if zlib.crc32(raw) != crc:
                    raise zlib.error("its checksum is wrong")
                yield study_id, raw
            except zlib.error as error:
                yield study_id, f"damaged in the ZIP: {error}"


def _read_files(_: Path, index: Index, study_ids: Iterable[str]) -> Iterator[tuple[str, bytes | str]]:
    for study_id in study_ids:
        try:
            check_regular(path := Path(str(index[study_id])))
            with open(path, "rb") as handle:
                raw = handle.read(LARGEST_REPORT + 1)
            yield study_id, raw if len(raw) <= LARGEST_REPORT else _TOO_LARGE
        except (OSError, ValueError) as error:
            yield study_id, f"cannot be read: {getattr(error, 'strerror', None) or error}"


def _cut(study_id: str, raw: bytes) -> Report:
    sections = select_sections(raw.decode("utf-8"))
    indication = sections["indication"] or sections["history"]
    parts = (
        sections["findings"],
        sections["impression"],
        sections["last_paragraph"],
        sections["comparison"],
        indication,
    )
    return Report(study_id, *map(_unwrap, parts))


def _unwrap(text: str) -> str:
    """Lines broken at 79 characters joined again; a blank line stays between paragraphs and between items of a list."""
    return "\n\n".join([_joined(part) for part in _BREAK.split(text)]) if "\n" in text else text


def _joined(text: str) -> str:
    """The words of some lines, one space between them."""
    text = text.replace("\n ", " ")  # as most reports are laid out; cutting them into words takes ten times as long
    return " ".join(text.split()) if "  " in text or "\n" in text or "\t" in text else text.strip()
