"""One style for every figure: colours that the colour-blind tell apart, thin frames. Draws no data itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hf_medvlm.data.files import atomic_open

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008, "Color Universal Design", without its yellow, which is too pale on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
INK, MUTED = "#1c1e21", "#6b747d"
MAP_COLOURS = "inferno"  # perceptually uniform, and readable in grey
BOX_COLOUR = "#56B4E9"

RC = {
    "figure.dpi": 130,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # or matplotlib measures every tick, several times, to see whether one is in the title's way
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7ea",
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "image.cmap": "gray",
}


def line_styles(count: int) -> list[dict[str, str]]:
    """`count` pairs of colour and dash; the dash changes where the colours run out, so no two of 28 are the same."""
    dashes = (dash for dash in LINES for _ in PALETTE)
    return [{"color": c, "linestyle": d} for c, d in islice(zip(cycle(PALETTE), cycle(dashes), strict=False), count)]


@contextmanager
def sheet(path: Path, rows: int = 1, columns: int = 1, width: float = 6.4, height: float = 3.8) -> Iterator[list[Axes]]:
    """Axes of one figure, row by row, in the house style; written to `path` as PNG, whole or not at all, at the end.

    Args:
        width, height: inches of the whole figure.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(cast(Any, RC)):  # its stubs list every key
        figure: Figure = Figure(figsize=(width, height))
        canvas = FigureCanvasAgg(figure)
        yield list(figure.subplots(rows, columns, squeeze=False).flat)
        with atomic_open(path, "wb") as handle, warnings.catch_warnings():
            # A name in a script that matplotlib's own font lacks is drawn as boxes; that is no reason to stop a run.
            warnings.filterwarnings("ignore", message=r"Glyph \d+")
            canvas.print_png(handle)


def plain(text: object, limit: int = 60) -> str:
    """A name as literal text: matplotlib reads `$...$` as mathematics, and a long name pushes the axes off the page."""
    text = " ".join(str(text).split()).replace("$", r"\$")
    return text if len(text) <= limit else text[: limit - 1] + "…"
