"""Shapes and random numbers for drawing phantoms: pure functions of coordinate grids. Knows no anatomy.

Everything is made of additions, products, divisions, square roots and comparisons, which IEEE 754 rounds the same
everywhere; sines, exponentials and matrix products differ between processors. Random numbers are raw words of PCG64, a
stream that NumPy keeps from version to version. Hence a seed gives the same pixels on every machine.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Grid = np.ndarray
"""(H, W) float32: one number for each pixel."""
Point = tuple[float, float]


def soft(distance: Grid, width: float) -> Grid:
    """A smooth step: 0 where `distance` is below -width/2, 1 where it is above width/2."""
    t = distance * (1 / width)
    t += 0.5
    np.clip(t, 0, 1, out=t)
    rest = 3 - 2 * t
    rest *= t
    rest *= t
    return rest


def blob(x: Grid, y: Grid, centre: Point, radius: Point) -> Grid:
    """A hill without an edge: 1 in the middle, 0 from the ellipse's border outwards."""
    t = np.maximum(1 - (((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2), 0)
    return t * t


def disc(x: Grid, y: Grid, centre: Point, radius: Point, edge: float) -> Grid:
    """A filled ellipse with an edge of about that width."""
    r = np.sqrt(((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2)
    return soft(1 - r, edge / min(radius))


def stroke(x: Grid, y: Grid, start: Point, end: Point, thickness: float) -> Grid:
    """A straight line between two points, with round ends."""
    (ax, ay), (bx, by) = start, end
    length = (bx - ax) ** 2 + (by - ay) ** 2
    t = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length, 0, 1)
    r = np.sqrt((x - ax - t * (bx - ax)) ** 2 + (y - ay - t * (by - ay)) ** 2)
    return soft(thickness / 2 - r, thickness * 0.6)


def path(x: Grid, y: Grid, points: list[Point], thickness: float) -> Grid:
    """Strokes from point to point."""
    strokes = [stroke(x, y, a, b, thickness) for a, b in zip(points, points[1:], strict=False)]
    return np.maximum.reduce(strokes)


def stripes(phase: Grid) -> Grid:
    """0.5 half-way between two whole numbers, 0 at each: repeats a bar without a loop."""
    return 0.5 - np.abs(phase - np.floor(phase) - 0.5)


@lru_cache(maxsize=4)
def _pixels(size: int) -> tuple[Grid, Grid]:
    places = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(places, places)
    return x, y


def posed_grid(size: int, shift: Point, tilt: float, scale: float) -> tuple[Grid, Grid]:
    """The body's coordinates (x, y) at every pixel of a square picture, in shares of its side.

    Args:
        shift: how far the body is moved; scale: how much it is magnified, about the middle.
        tilt: tangent of half the angle by which it is turned (so that no sine is needed).
    """
    x, y = _pixels(size)
    cos, sin = (1 - tilt**2) / (1 + tilt**2) / scale, 2 * tilt / (1 + tilt**2) / scale
    x, y = x - (0.5 + shift[0]), y - (0.5 + shift[1])
    return cos * x + sin * y + 0.5, cos * y - sin * x + 0.5


def random_bytes(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Independent uniform bytes."""
    count = int(np.prod(shape))
    words = np.random.PCG64(seed).random_raw((count + 7) // 8).astype("<u8")
    return words.view(np.uint8)[:count].reshape(shape)


def grain(size: int, seed: int) -> Grid:
    """White noise of variance 1: four bytes a pixel added up are close to a normal distribution."""
    total = random_bytes((4, size, size), seed).astype(np.float32)
    return (total[0] + total[1] + total[2] + total[3] - 510) / 147.8


def texture(x: Grid, y: Grid, cells: int, seed: int) -> Grid:
    """Smooth random hills in [0, 1], `cells` across the picture, fixed to the body's coordinates."""
    nodes = random_bytes((cells + 2, cells + 2), seed).astype(np.float32) / 255
    u, v = np.clip(x, 0, 1) * cells, np.clip(y, 0, 1) * cells
    i, j = u.astype(np.int32), v.astype(np.int32)
    u, v = u - i.astype(np.float32), v - j.astype(np.float32)
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    corner = j * (cells + 2) + i
    west, east = nodes.take(corner), nodes.take(corner + 1)
    south_west, south_east = nodes.take(corner + cells + 2), nodes.take(corner + cells + 3)
    top, bottom = west + u * (east - west), south_west + u * (south_east - south_west)
    return top + v * (bottom - top)
