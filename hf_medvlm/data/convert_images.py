"""A folder of PNG copies of a corpus's images: written once, in parallel, going on where a killed run stopped.

A copy is grey, 8 bits, as `open_radiograph` reads it, and holds pixels alone: no header of a DICOM file, no name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from hf_medvlm.data.files import atomic_open, load_json, write_json
from hf_medvlm.data.images import one_grey, open_radiograph
from hf_medvlm.data.locks import taken

SETTINGS = "cache.json"


def convert_images(
    paths: Iterable[str],
    image_folder: str | Path,
    cache_folder: str | Path,
    size: int | None = None,
    workers: int | None = None,
    shared: object = None,
) -> tuple[dict[str, str], dict[str, str]]:
    """Copy images as PNG, the longer side at most `size` pixels, the aspect kept, nothing enlarged.

    A copy that is there, whole and not older than its image, is left as it is; run again, all bytes are the same.

    Args:
        paths: relative to `image_folder`; a copy has the same path in `cache_folder`, with the suffix ".png".
        workers: processes; by default as many as there are processors.
        shared: anything that is true where other processes write other copies into the folder meanwhile.

    Returns:
        path -> path of its copy; path -> why there is none.

    Raises:
        ValueError: the folder holds copies of another size, or another process is writing to it; two images would have
            the same copy.
    """
    if shared:
        return _convert_all(paths, image_folder, Path(cache_folder), size, workers, shared=True)
    with taken(cache_folder, "; run it again when that has ended, or name another folder"):
        return _convert_all(paths, image_folder, Path(cache_folder), size, workers)


def _convert_all(
    paths: Iterable[str],
    image_folder: str | Path,
    cache: Path,
    size: int | None,
    workers: int | None,
    shared: bool = False,
) -> tuple[dict[str, str], dict[str, str]]:
    from tqdm import tqdm

    wanted = {"format": "png", "size": size}
    if (cache / SETTINGS).exists():
        there = load_json(cache / SETTINGS)
        if there != wanted:
            raise ValueError(f"{cache} holds copies made with {there}, not {wanted}; name another folder")
    if not shared:
        _remove_halves(cache)
    write_json(cache / SETTINGS, wanted)
    unique = list(dict.fromkeys(paths))
    copies = copy_names(unique)
    broken: dict[str, str] = {}
    with ProcessPoolExecutor(workers) as pool:
        convert = partial(_convert, Path(image_folder), cache, size)
        results = pool.map(convert, unique, copies.values(), chunksize=8)
        for path, reason in zip(tqdm(unique, "Converting images", unit="image", disable=None), results, strict=True):
            if reason:
                broken[path] = reason
    return {path: copy for path, copy in copies.items() if path not in broken}, broken


def copy_names(paths: Iterable[str]) -> dict[str, str]:
    """Path -> path of its copy.

    Raises:
        ValueError: two images would have the same copy.
    """
    copies = {path: PurePosixPath(path).with_suffix(".png").as_posix() for path in paths}
    if len(set(copies.values())) < len(copies):
        first_of: dict[str, str] = {}
        first, second = next((first_of[c], p) for p, c in copies.items() if first_of.setdefault(c, p) != p)
        raise ValueError(f"{first} and {second} would both become {copies[second]}; keep one of them")
    return copies


def _remove_halves(cache: Path) -> None:
    """What a killed run was writing (`atomic_open`'s files beside)."""
    for folder, _, names in os.walk(cache):
        for name in names:
            if name.startswith(".") and name.endswith(".part"):
                os.unlink(os.path.join(folder, name))


def _convert(image_folder: Path, cache: Path, size: int | None, path: str, copy: str) -> str | None:
    """Write one copy; return why there is none."""
    source, target = image_folder / path, cache / copy
    try:
        if target.exists() and target.stat().st_mtime_ns >= source.stat().st_mtime_ns:
            return None
        image = open_radiograph(source)
    except ValueError as error:
        return str(error).removeprefix(f"{source}: ")
    except FileNotFoundError:
        return "there is no such file"
    reason = one_grey(image)
    if reason:
        return reason
    if size:
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
    with atomic_open(target, "wb") as handle:
        image.save(handle, format="PNG")
    return None
