"""Where a run writes: the next numbered folder, or the one that was named, never over a finished run."""

from __future__ import annotations

from pathlib import Path

RUNS = Path("runs")
RUN_FILE = "run.json"
"""Written last: a folder that holds it holds a finished run."""


def choose_output_dir(named: str | None, recipe: str, resume: str | None, overwrite: bool) -> str:
    """The output folder of a run.

    Without a name it is `runs/<recipe>/<next number>`, or the last one where `resume` asks for it.

    Raises:
        ValueError: the named folder holds a finished run and `overwrite` is false; nothing to resume.
    """
    if named is not None:
        if (Path(named) / RUN_FILE).exists() and not overwrite and not resume:
            raise ValueError(
                f"--output_dir {named} holds a finished run ({RUN_FILE}); name another folder, "
                "or add --overwrite_output_dir"
            )
        return named
    if resume and resume not in ("True", "true"):
        return str(Path(resume).parent)
    folder = RUNS / recipe
    taken = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.is_dir() else []
    if resume:
        if not taken:
            raise ValueError(f"--resume_from_checkpoint: there is no earlier run in {folder}; name its --output_dir")
        return str(folder / str(taken[-1]))
    return str(folder / str(taken[-1] + 1 if taken else 1))


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest `checkpoint-N` that was written to its end, or None."""
    found = [
        path
        for path in Path(folder).glob("checkpoint-*")
        if path.name.partition("-")[2].isdigit() and (path / "trainer_state.json").exists()
    ]
    return str(max(found, key=lambda path: int(path.name.partition("-")[2]))) if found else None
