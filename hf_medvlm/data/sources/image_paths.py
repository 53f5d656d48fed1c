"""Image cells of a table -> files in the image folder, however somebody else has written them.

Nothing outside the image folder is ever looked at. A path that is right as it stands is taken as it stands; only for
one that is not there are the names of the folder read, once.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from hf_medvlm.data.images.dicom import DICOM_SUFFIXES
from hf_medvlm.data.images.members import shard_of
from hf_medvlm.data.sources.base import EntryError, parse_path
from hf_medvlm.data.sources.cells import IMAGE_SUFFIXES

UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "AccessionNumber")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|[\\/]{2}")


class ImagePaths:
    """Finds the file that an image cell means.

    Args:
        folder: the image folder; without one, paths are only checked.

    `notes()` says how many paths were found other than as they were written.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = Path(folder) if folder else None
        self.changed: Counter[str] = Counter()
        self.example: dict[str, tuple[str, str]] = {}
        self._names: dict[str, list[str]] | None = None
        self._uids: dict[str, list[tuple[str, str | None]]] | None = None

    def find(self, text: str, near: Sequence[str] = ()) -> list[tuple[str, str | None]]:
        """(path relative to the folder, view where a DICOM file says it) of the image that a cell names.

        Several where it is the UID of a study or a folder. A path that no file answers to is returned as it is: that
        it is missing is for the check of the images to count.

        Args:
            near: names of folders (of the patient, the study): of several files, the one in such a folder is meant.

        Raises:
            EntryError: no path, one that leaves the folder, or one that fits several files.
        """
        if not text:
            raise EntryError("no image", "the image cell is empty")
        windows = _DRIVE.match(text)
        if windows or ("\\" in text and not self._is_file(text)):
            return [(self._from_windows(text, bool(windows)), None)]
        path = parse_path(text, self.folder)
        if self._is_file(path):
            return [(path, None)]
        matches = self._matches(path)
        if not matches and "%" in path and self._is_file(spelt := parse_path(unquote(path), self.folder)):
            return [(self._say("spelling, that of an address", text, spelt), None)]
        if not matches and (inside := self._images_in(path)):
            self._say("name, that of a folder of images", text, inside[0])
            return [(image, None) for image in inside]
        closest = [name for name in matches if set(name.split("/")[:-1]) & set(near)]
        if len(matches) == 1 or len(closest) == 1:
            return [(self._say("ending, case or folder", text, (closest or matches)[0]), None)]
        if len(matches) > 1:
            raise EntryError("ambiguous image", f"{text!r:.300} fits {len(matches)} files: {', '.join(matches[:3])}")
        return self._by_uid(text) or [(path, None)]

    def notes(self) -> list[str]:
        """One sentence for each way in which paths were found."""
        return [
            f"{count} image paths were found by another {way}; {written!r} is {path!r}"
            for way, count in self.changed.items()
            for written, path in (self.example[way],)
        ]

    def _is_file(self, path: str) -> bool:
        if self.folder is None:
            return False
        try:
            return (self.folder / (shard_of(path) or path)).is_file()
        except (OSError, ValueError):  # a name that no file can have
            return False

    def _say(self, way: str, written: str, path: str) -> str:
        self.changed[way] += 1
        self.example.setdefault(way, (written, path))
        return path

    def _from_windows(self, text: str, absolute: bool) -> str:
        """`images\\x.png`, or what of `C:\\pacs\\images\\x.png` is a file in the folder."""
        parts = [part for part in text.replace("\\", "/").split("/") if part]
        parts = parts[1:] if absolute and parts and parts[0].endswith(":") else parts
        starts = range(len(parts)) if absolute else range(1)
        for start in starts:
            path = parse_path("/".join(parts[start:]) or text)
            matches = [path] if self._is_file(path) else self._matches(path, whole=True)
            if len(matches) == 1:
                return self._say("separator", text, matches[0])
        if absolute:
            raise EntryError(
                "path leaves the image folder",
                f"{text!r:.300} lies on another computer, and no file in --image_folder ends like it",
            )
        return parse_path("/".join(parts))

    def _matches(self, path: str, whole: bool = False) -> list[str]:
        """Files that the path may mean: the same but for case or ending, below other folders, or without its first.

        Args:
            whole: the path must begin in the folder.
        """
        wanted = path.lower()
        stem = wanted[: -len(PurePosixPath(wanted).suffix)] if wanted.endswith(IMAGE_SUFFIXES) else wanted
        names = self._index().get(PurePosixPath(stem).name, [])
        exact = [name for name in names if name.lower() == wanted] or [
            name for name in names if _without_suffix(name) == stem
        ]
        if exact or whole:
            return exact
        below = [name for name in names if _without_suffix(name).endswith(f"/{stem}")]
        return below or [name for name in names if stem.endswith(f"/{_without_suffix(name)}")] or self._padded(stem)

    def _padded(self, stem: str) -> list[str]:
        """Files whose name is the number `stem` with the leading zeros that a spreadsheet has taken off."""
        if not stem.isdecimal():
            return []
        index = self._index()
        return [path for name in index if name.isdecimal() and int(name) == int(stem) for path in index[name]]

    def _images_in(self, path: str) -> list[str]:
        """The images in a folder of the image folder, where `path` is one; not those of the folders below it."""
        if self.folder is None or not (place := self.folder / path).is_dir():
            return []
        names = [name for name in sorted(os.listdir(place)) if _is_image(name)]
        return [f"{path.rstrip('/')}/{name}" for name in names if (place / name).is_file()]

    def _index(self) -> dict[str, list[str]]:
        """Name without ending, in lower case -> the images of the folder that are called so."""
        if self._names is None:
            self._names = defaultdict(list)
            for path in _images_below(self.folder) if self.folder else ():
                self._names[PurePosixPath(_without_suffix(path)).name].append(path)
        return self._names

    def _by_uid(self, text: str) -> list[tuple[str, str | None]]:
        """The DICOM files whose header holds this UID or accession number."""
        matches = self._read_uids().get(text.strip(), [])
        if matches:
            self._say("name, a UID in the DICOM header", text, matches[0][0])
        return matches

    def _read_uids(self) -> dict[str, list[tuple[str, str | None]]]:
        if self._uids is None:
            self._uids = defaultdict(list)
            folder = self.folder or Path()  # without a folder there are no paths
            paths = [path for paths in self._index().values() for path in paths]
            for path in sorted(p for p in paths if p.lower().endswith(DICOM_SUFFIXES) or "." not in p.split("/")[-1]):
                uids, view = _header(folder / path)
                for uid in dict.fromkeys(uids):
                    self._uids[uid].append((path, view))
        return self._uids


def _is_image(name: str) -> bool:
    """Whether a file may be an image by its name; DICOM files often have no ending, and macOS leaves `._` files."""
    return not name.startswith(".") and (name.lower().endswith(IMAGE_SUFFIXES) or "." not in name)


def _without_suffix(path: str) -> str:
    lower = path.lower()
    return lower[: -len(PurePosixPath(lower).suffix)] if lower.endswith(IMAGE_SUFFIXES) else lower


def _images_below(folder: Path) -> Iterator[str]:
    """Paths of the images below a folder, hidden folders left out; a file without an ending may be a DICOM file."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if _is_image(name):
                yield (Path(place) / name).relative_to(folder).as_posix()


def _header(path: Path) -> tuple[list[str], str | None]:
    """The UIDs and the view of a DICOM file; none where it cannot be read. No name or date of a patient is read."""
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*UIDS, "ViewPosition"])
    except Exception:  # on bytes that others wrote, pydicom raises any kind of error; such a file has no UID
        return [], None
    return [str(header.get(name)) for name in UIDS if header.get(name)], str(header.get("ViewPosition") or "") or None
