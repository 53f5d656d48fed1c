"""The rows of a table of any kind: separated text, JSON, JSON Lines, Excel, Parquet, a folder, a Hub data set.

Knows no study. A row is a dictionary of cells with its file and line (or row); a row that is broken becomes a
`Rejected`, a file that is broken a `ValueError`.
"""

from __future__ import annotations

import csv
import datetime
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_medvlm.data.fields import SPLIT_NAMES
from hf_medvlm.data.files import check_regular, open_text, read_json
from hf_medvlm.data.images import DICOM_SUFFIXES
from hf_medvlm.data.sources.base import Rejected, read_csv, refuse_repeated
from hf_medvlm.data.sources.hub import hub_rows
from hf_medvlm.errors import clipped

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SEPARATED = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t", ".psv": "|"}
JSON_LINES, JSON_LIST = (".jsonl", ".ndjson"), (".json",)
EXCEL = (".xlsx", ".xlsm")
PACKED = (".zip", ".bz2", ".xz", ".7z", ".rar", ".tar", ".tgz", ".zst")
PARQUET = (b"PAR1",)
MAGIC = {
    b"PK\x03\x04": "an Excel file or a ZIP; if it is Excel's, let its name end in .xlsx",
    b"\xd0\xcf\x11\xe0": "an old Excel file; save it as .xlsx or .csv",
    b"PAR1": "a Parquet file; let its name end in .parquet",
}
"""How files begin that are no text, whatever they are called."""

TITLE_LINES = 20  # lines above the header at most
KINDS = "a .csv, .tsv, .jsonl, .json, .xlsx or .parquet file, a folder, or a Hub id"

Entry = tuple[str, int, dict[str, Any]]
"""File, line (or row), row."""


def table_rows(path: str, encoding: str | None, rejected: list[Rejected], notes: list[str]) -> Iterator[Entry]:
    """The rows of whatever `path` is; the splits of a data set that has several appear as a column `split`.

    Args:
        encoding: of text files; by default UTF-8, or what a byte order mark says.
        rejected: broken rows are added.
        notes: what was guessed (a separator, say) is added, for the user to check.

    Raises:
        ValueError: no such file, or none that is read, or a broken one, or two columns of one name.
    """
    if not path.strip("/. "):
        raise ValueError(f"--dataset {path!r:.300}: name a table, a folder with one, or an id on the Hub")
    if os.path.exists(path) and not os.path.isdir(path):
        check_regular(path)
    suffix = Path(path.lower().removesuffix(".gz")).suffix
    if suffix == ".xls" and _is_separated(path):  # what many a system exports as .xls is text
        suffix = ".tsv"
    if suffix in PACKED and Path(path).is_file():
        raise ValueError(f"{path}: a packed file; unpack it and name the table in it")
    if suffix in SEPARATED:
        yield from _separated(path, SEPARATED[suffix], encoding, rejected, notes)
    elif suffix in JSON_LINES:
        yield from _json_lines(path, encoding, rejected)
    elif suffix in JSON_LIST:
        yield from _json_list(path, encoding, rejected, notes)
    elif suffix in EXCEL:
        yield from _excel(path, rejected, notes)
    elif (suffix == ".parquet" and not Path(path).exists()) or (Path(path).is_file() and not _is_parquet(path)):
        wrong = "no such file" if not Path(path).is_file() else "not a table this reads"
        raise ValueError(f"{path}: {wrong}; give {KINDS} (Excel, pandas and R save .csv files)")
    elif Path(path).is_dir() and (tables := _tables_in(Path(path))):
        yield from _folder(Path(path), tables, encoding, rejected, notes)
    else:
        if Path(path).is_dir():
            _refuse_bare_images(Path(path))
        yield from hub_rows(path)


def _is_separated(path: str) -> bool:
    if not Path(path).is_file():
        return False
    with open(path, "rb") as handle:
        start = handle.read(4096)
    return not any(map(start.startswith, MAGIC)) and any(mark in start for mark in (b"\t", b";", b","))


def _is_parquet(path: str) -> bool:
    check_regular(path)
    with open(path, "rb") as handle:
        return handle.read(4) in PARQUET or path.lower().endswith(".parquet")


def _separated(
    path: str, usual: str, encoding: str | None, rejected: list[Rejected], notes: list[str]
) -> Iterator[Entry]:
    _refuse_no_text(path)
    with open_text(path, encoding) as handle:
        first = handle.readline()
        excel = first.lower().startswith("sep=") and len(first.strip()) == 5  # Excel's own first line
        skip = int(excel)
        if excel:
            delimiter = first.strip()[4]
        else:
            lines = [first, *itertools.islice(handle, TITLE_LINES)]
            skip = _titles(lines, usual)
            delimiter = best_delimiter(_header(lines[skip], [*lines[skip + 1 :], *_some(handle)]), usual)
    name = Path(path).name
    if delimiter != usual:
        notes.append(f"{name}: columns are divided by {DELIMITERS.get(delimiter, repr(delimiter))}")
    if skip > excel:
        notes.append(f"{name}: what stands above line {skip + 1} is passed over; that line holds the columns' names")
    for line, row in read_csv(path, (), rejected, delimiter, encoding, skip, spaces=False):
        if any("\0" in cell for cell in row.values()):
            rejected.append(Rejected(path, line, None, "not text", "a byte 0 stands in it"))
        else:
            yield path, line, {column: _unprotected(cell) for column, cell in row.items()}


def _refuse_no_text(path: str) -> None:
    """Raise `ValueError` where a file of some other kind has the name of a table."""
    check_regular(path)
    with open(path, "rb") as handle:
        start = handle.read(64)
    what = next((what for magic, what in MAGIC.items() if start.startswith(magic)), None)
    if start.lstrip(b"\xef\xbb\xbf \r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<table")):
        what = "a web page (of a log-in or an error?) or XML; export the table as .csv"
    if what:
        raise ValueError(f"{path}: no table of text but {what}")


def _titles(lines: Sequence[str], usual: str) -> int:
    """How many lines stand above the header: blank ones, and titles of one cell where a line of several follows."""
    for number, line in enumerate(lines):
        cells = next(csv.reader([line], delimiter=best_delimiter(line, usual)), [])
        if sum(bool(cell.strip()) for cell in cells) > 1 or line.count('"') % 2:
            return number
    return 0


def _some(handle: Iterable[str]) -> Iterable[str]:
    return itertools.islice(handle, 1000)


def _unprotected(cell: str) -> str:
    """A cell without the `="..."`, or the apostrophe, by which exports keep Excel from reading ids as numbers."""
    if re.fullmatch(r"'[\w.-]+", cell):
        return cell[1:]
    return cell[2:-1] if cell.startswith('="') and cell.endswith('"') and len(cell) > 3 else cell


def _header(first: str, rest: Iterable[str]) -> str:
    """The first record: the first line, and those after it while a quote is open."""
    for line in rest:
        if first.count('"') % 2 == 0 or len(first) > 1 << 16:
            break
        first += line
    return first


def best_delimiter(header: str, usual: str) -> str:
    """The separator that cuts the header into most columns; of equals, the usual one of the file's ending."""
    widths = {}
    for delimiter in (usual, *DELIMITERS):
        try:
            widths[delimiter] = len(next(csv.reader([header], delimiter=delimiter), []))
        except csv.Error:
            widths[delimiter] = 0
    return max(widths, key=lambda delimiter: widths[delimiter])


def _json_lines(path: str, encoding: str | None, rejected: list[Rejected]) -> Iterator[Entry]:
    with open_text(path, encoding) as handle:
        for line, text in enumerate(handle, start=1):
            if not text.strip():
                continue
            try:
                row = read_json(text, path, line)
            except ValueError as error:
                rejected.append(Rejected(path, line, None, "not JSON", str(error).removeprefix(f"{path}:{line}: ")))
                continue
            if isinstance(row, dict):
                yield path, line, row
            else:
                detail = f"an object is wanted, not {type(row).__name__}"
                rejected.append(Rejected(path, line, None, "not JSON", detail))


def _json_list(path: str, encoding: str | None, rejected: list[Rejected], notes: list[str]) -> Iterator[Entry]:
    """A list of objects; an object of such lists, one a split; columns as pandas writes them; or JSON Lines."""
    with open_text(path, encoding) as handle:
        text = handle.read()
    try:
        content = read_json(text, path)
    except ValueError:
        lines = text.strip().splitlines()
        if len(lines) < 2 or not all(line.strip().startswith("{") for line in lines[:2] if line.strip()):
            raise
        try:
            read_json(lines[0], path)
        except ValueError:
            content = None
        else:
            yield from _json_lines(path, encoding, rejected)
            return
        raise
    for split, rows in _tables_of(path, content, notes):
        for number, row in enumerate(rows, start=1):
            if isinstance(row, dict):
                yield path, number, split | row
            else:
                detail = f"an object is wanted, not {type(row).__name__}"
                rejected.append(Rejected(path, number, None, "not JSON", detail))


def _tables_of(path: str, content: Any, notes: list[str]) -> list[tuple[dict[str, str], list[Any]]]:
    """(cells to add, rows) of each table in a JSON document."""
    if isinstance(content, list):
        return [({}, content)]
    named = content if isinstance(content, dict) else {}
    if {"columns", "data"} <= named.keys() and isinstance(named["columns"], list) and isinstance(named["data"], list):
        return [({}, [dict(zip(named["columns"], row, strict=False)) for row in named["data"]])]
    if {"images", "annotations"} <= named.keys():
        raise ValueError(
            f"{path}: images and annotations apart, as in COCO; make one list of objects, each with an image and its "
            "text"
        )
    lists = {name: value for name, value in named.items() if isinstance(value, list)}
    if lists and all(isinstance(row, dict) for rows in lists.values() for row in rows[:3]):
        if len(lists) > 1 or next(iter(lists)).lower() in SPLIT_NAMES:
            notes.append(f"{Path(path).name}: its lists {', '.join(lists)} are taken as splits")
            return [({"split": name}, rows) for name, rows in lists.items()]
        return [({}, rows) for rows in lists.values()]
    if named and all(isinstance(cells, dict) for cells in named.values()):
        keys = list(dict.fromkeys(key for cells in named.values() for key in cells))
        return [({}, [{name: cells.get(key) for name, cells in named.items()} for key in keys])]
    raise ValueError(f"{path}: no table in it; a list of objects, one a row, is read, or an object of such lists")


def _excel(path: str, rejected: list[Rejected], notes: list[str]) -> Iterator[Entry]:
    """The first sheet; its first row holds the names of the columns."""
    check_regular(path)
    try:
        import openpyxl
    except ImportError as error:
        raise ValueError(
            f"{path}: Excel files need openpyxl: pip install 'hf_medvlm[excel]'; or save the sheet as CSV"
        ) from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheet = book.worksheets[0]
        rows = [list(row) for row in sheet.iter_rows(values_only=True)]
    except Exception as error:  # on a broken ZIP or XML openpyxl raises any kind of error
        raise ValueError(
            f"{path}: not an Excel file, or a broken one ({clipped(str(error))}); if it is text, let its name "
            "end in .csv"
        ) from error
    if len(book.worksheets) > 1:
        notes.append(f"{Path(path).name}: of {len(book.worksheets)} sheets the first, {sheet.title!r}, is read")
    filled = [sum(cell is not None for cell in row) for row in rows]
    top = next((n for n, count in enumerate(filled[: TITLE_LINES + 1]) if count > 1), 0)
    if top:
        notes.append(f"{Path(path).name}: what stands above row {top + 1} is passed over; it holds the columns' names")
    header = [str(cell).strip() if cell is not None else "" for cell in (rows[top] if rows else [])]
    while header and not header[-1]:
        header.pop()
    refuse_repeated(path, header)
    for number, cells in enumerate(rows[top + 1 :], start=top + 2):
        values = [_excel_cell(cell) for cell in cells[: len(header)]]
        if any(value is not None for value in cells[len(header) :]):
            rejected.append(Rejected(path, number, None, "wrong number of fields", "a cell beyond the header's last"))
        elif any(value is not None for value in values):
            yield path, number, dict(zip(header, [*values, *[None] * len(header)], strict=False))


def _excel_cell(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ", timespec="seconds").removesuffix(" 00:00:00")
    if isinstance(value, str):
        return re.sub("_x000[dD]_", "\r", value)  # a carriage return, as Excel writes it in XML
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else value


def _tables_in(folder: Path) -> list[Path]:
    """The tables of a folder that `datasets` has not written: `metadata.*` in it or in the folders of its splits (the
    `imagefolder` layout), or else the only table that lies in it."""
    if any((folder / name).exists() for name in ("dataset_dict.json", "state.json", "dataset_info.json")):
        return []
    readable = (*SEPARATED, *JSON_LINES, ".xlsx")
    places = [folder, *(folder / name for name in sorted(os.listdir(folder)) if (folder / name).is_dir())]
    metadata = [place / f"metadata{suffix}" for place in places for suffix in readable]
    there = [path for path in metadata if path.is_file()]
    if there:
        return there
    tables = [folder / name for name in sorted(os.listdir(folder)) if Path(name.lower()).suffix in readable]
    passed_over = ("readme", "licen", ".", "~$")  # the last are what macOS and an open Excel leave
    tables = [path for path in tables if path.is_file() and not path.name.lower().startswith(passed_over)]
    if len(tables) > 1:
        names = {path.stem.lower() for path in tables}
        if names <= SPLIT_NAMES.keys():
            return tables
        raise ValueError(
            f"{folder}: {len(tables)} tables lie in it ({', '.join(path.name for path in tables[:5])}); name one with "
            f"--dataset {tables[0]} --image_folder {folder}"
        )
    return tables


def _folder(
    folder: Path, tables: Sequence[Path], encoding: str | None, rejected: list[Rejected], notes: list[str]
) -> Iterator[Entry]:
    """The tables of a folder; paths in a table of a folder below are relative to that folder."""
    notes.append(f"{folder}: read from {', '.join(path.relative_to(folder).as_posix() for path in tables)}")
    for table in tables:
        below = table.parent.relative_to(folder).as_posix()
        word = table.stem if table.stem.lower() in SPLIT_NAMES else below
        split = {"split": word} if word.lower() in SPLIT_NAMES and len(tables) > 1 else {}
        for file, line, row in table_rows(str(table), encoding, rejected, notes):
            name = next((n for n in ("file_name", "image", "filename") if isinstance(row.get(n), str)), None)
            if below != "." and name:
                row = row | {name: f"{below}/{row[name]}"}
            yield file, line, split | row


def _refuse_bare_images(folder: Path) -> None:
    """Say what is missing where a folder holds nothing but pictures."""
    if any((folder / name).exists() for name in ("dataset_dict.json", "state.json", "dataset_info.json", "data")):
        return
    names = [name for _, _, files in os.walk(folder) for name in files]
    dicom = sum(name.lower().endswith(DICOM_SUFFIXES) for name in names)
    pictures = sum(name.lower().endswith((".png", ".jpg", ".jpeg", ".bmp", ".webp")) for name in names)
    tables = sum(name.lower().endswith((".parquet", ".arrow", *SEPARATED, *JSON_LINES, *JSON_LIST)) for name in names)
    if not tables and (dicom or pictures):
        what = f"{dicom} DICOM files" if dicom >= pictures else f"{pictures} pictures"
        raise ValueError(
            f"{folder}: {what} and no table with their reports; give it with --dataset reports.csv "
            f"--image_folder {folder}; its image column holds file names, or UIDs of the DICOM headers"
        )
    if not names:
        raise ValueError(f"{folder}: the folder is empty")
