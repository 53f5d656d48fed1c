"""The one place where what a library raises on others' bytes and values becomes a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SHOWN = 300
"""Letters of a value or a reason that a message shows."""


@contextmanager
def library_errors(
    what: str, way_out: str, passing: tuple[type[Exception], ...] = (OSError, ImportError, MemoryError)
) -> Iterator[None]:
    """An error that a library raises inside this block becomes a `ValueError` of one line.

    Libraries raise errors of any class on bytes and values that they do not expect. What our own code raises passes as
    it is: a `ValueError` of ours is a sentence already, and anything else is a fault of ours, which should be seen with
    its traceback.

    Args:
        what: what was found and where, with the file or the option.
        way_out: what to do.
        passing: errors of the system, which pass as they are.
    """
    try:
        yield
    except passing:
        raise
    except Exception as error:
        if _is_ours(error):
            raise
        reason = " ".join(str(error).split()) or "no more is said"
        raise ValueError(f"{what} ({type(error).__name__}: {clipped(reason)}); {way_out}") from error


def clipped(value: Any) -> str:
    """A value as a message shows it: on one line, and cut where it is long."""
    text = " ".join(str(value).split()) if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} letters)"


def _is_ours(error: Exception) -> bool:
    """Whether a line of this package raised the error, and not one of a library that it called.

    A library that is no Python leaves no line: its errors are told by their class.
    """
    if type(error).__module__.partition(".")[0] not in ("builtins", "hf_medvlm"):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("hf_medvlm")
