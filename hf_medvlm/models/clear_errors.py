"""What goes wrong in reading a checkpoint, in one line that names folder, file and the way out."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_medvlm.errors import clipped
from hf_medvlm.models.convert.checkpoint import read_json


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, or the error's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {clipped(lines[0])}" if lines else type(error).__name__


@contextmanager
def clear_errors(folder: str | Path, part: str) -> Iterator[None]:
    """Whatever goes wrong in reading `part` of a checkpoint becomes a `ValueError` of one line.

    Messages of our own pass as they are. An error of transformers that offers to run the checkpoint's code is answered
    with what to do instead.
    """
    try:
        yield
    except ValueError as error:
        message = str(error)
        if (
            str(folder) in message
            and "trust_remote_code" not in message
            and "\n" not in message
            and len(message) < 2000
        ):
            raise
        raise ValueError(_explain(folder, part, error)) from error
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except ImportError as error:
        raise ImportError(
            f"{folder}: its {part} needs a package that is not installed ({first_line(error)})"
        ) from error
    except Exception as error:
        raise ValueError(_explain(folder, part, error)) from error


def _explain(folder: str | Path, part: str, error: BaseException) -> str:
    if isinstance(error, pickle.UnpicklingError):
        pickles = ", ".join(file.name for file in sorted(Path(folder).glob("*.bin"))[:3])
        return (
            f"{folder}: {pickles} is not a plain file of tensors, and the code in its pickle is not run. Take a "
            "checkpoint you trust, load it where it was made and save it as .safetensors"
        )
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        files = [file.name for file in sorted(Path(folder).glob("*.json")) if "auto_map" in (read_json(file) or {})]
        where = " and ".join(files) or "its configuration"
        return (
            f"{folder}: {where} names Python code of the checkpoint's own (auto_map), which is never run. If the "
            f"{part} is of a class that transformers has, take auto_map out of the file and name that class"
        )
    return f"{folder}: its {part} cannot be used ({first_line(error)}). Compare its files with the published ones"
