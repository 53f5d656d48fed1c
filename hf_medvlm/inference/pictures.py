"""Radiographs however a caller holds them: paths, PIL images, arrays -> studies without a text, and their pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hf_medvlm.data.images import open_radiograph, to_greyscale
from hf_medvlm.data.study import Study, StudyImage

Picture = str | Path | Image.Image | np.ndarray
"""A file (PNG, JPEG, BMP, WebP, DICOM), a PIL image, or an array (H, W) or (H, W, 3)."""


def open_picture(picture: Picture) -> Image.Image:
    """The picture as `open_radiograph` would give it: mode "L", at its own size.

    Args:
        picture: an array holds uint8, uint16, or floats in [0, 1].

    Raises:
        ValueError: a file that cannot be read, an array of another shape or type, values outside [0, 1].
        TypeError: something that is no picture.
    """
    if isinstance(picture, (str, Path)):
        return open_radiograph(picture)
    if isinstance(picture, Image.Image):
        return to_greyscale(picture)
    if isinstance(picture, np.ndarray):
        return to_greyscale(Image.fromarray(_checked(picture)))
    raise TypeError(f"a picture is a path, a PIL image or a NumPy array, got {type(picture).__name__}")


def _checked(values: np.ndarray) -> np.ndarray:
    """uint8 or uint16 (H, W), or uint8 (H, W, 3)."""
    if values.size == 0 or not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))):
        raise ValueError(
            f"an array is one picture, (H, W) or (H, W, 3), got shape {values.shape}; pass several as a list"
        )
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ValueError(
                f"a float array must lie in [0, 1], found {values.min():.4g} to {values.max():.4g}; scale it, or pass "
                "the stored integers"
            )
        values = np.rint(values * 255).astype(np.uint8)
    if values.dtype == np.uint8 or (values.dtype == np.uint16 and values.ndim == 2):
        return np.ascontiguousarray(values)
    raise ValueError(f"an array holds uint8, uint16 (grey only) or floats in [0, 1], got {values.dtype}")


class Pictures(Mapping[str, Image.Image]):
    """Name -> picture, mode "L", opened when it is asked for; a collator's `image_folder`."""

    def __init__(self, pictures: Mapping[str, Picture]) -> None:
        self.pictures = dict(pictures)

    def __getitem__(self, name: str) -> Image.Image:
        return open_picture(self.pictures[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.pictures)

    def __len__(self) -> int:
        return len(self.pictures)


class FolderPictures(Mapping[str, Image.Image]):
    """The pictures of a folder by their path in it, which remembers the sizes, (width, height), of what it opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes: dict[str, tuple[int, int]] = {}

    def __getitem__(self, name: str) -> Image.Image:
        picture = open_radiograph(self.folder / name)
        self.sizes[name] = picture.size
        return picture

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)


def as_studies(
    pictures: Sequence[Picture], previous: Sequence[Picture | None] | None = None
) -> tuple[list[Study], list[Study], Pictures]:
    """One study a picture, the studies before them, and the pictures under the names that both give them.

    Args:
        previous: the earlier radiograph of each patient, None where there is none.

    Raises:
        ValueError: not one previous picture, or None, for each picture.
    """
    if previous is not None and len(previous) != len(pictures):
        raise ValueError(f"{len(previous)} previous images for {len(pictures)} images; give one, or None, for each")
    studies, priors, named = [], [], {}
    for number, picture in enumerate(pictures):
        earlier = None if previous is None else previous[number]
        named[f"{number}"] = picture
        prior_id = None
        if earlier is not None:
            named[f"{number}-previous"] = earlier
            prior_id = f"{number}-previous"
            priors.append(Study(prior_id, f"{number}", images=(StudyImage(prior_id),)))
        studies.append(Study(f"{number}", f"{number}", images=(StudyImage(f"{number}"),), prior_study_id=prior_id))
    return studies, priors, Pictures(named)
