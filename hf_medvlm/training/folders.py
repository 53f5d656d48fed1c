"""Where a run writes: the next numbered folder, or the one that was named, never over a finished run."""

from __future__ import annotations

from pathlib import Path

from hf_medvlm.data.files import check_folder
from hf_medvlm.data.locks import take
from hf_medvlm.training.checkpoints import last_checkpoint

RUNS = Path("runs")
RUN_FILE = "run.json"
"""Written last: a folder that holds it holds a finished run."""


def choose_output_dir(
    named: str | None, recipe: str, resume: str | None, overwrite: bool, option: str = "--output_dir"
) -> str:
    """The output folder of a run.

    Without a name it is `runs/<recipe>/<next number>`, or the last one where `resume` asks for it.

    Args:
        option: what names it; only one called `--output_dir` has a `--overwrite_output_dir` beside it.

    Raises:
        ValueError: the folder holds a finished run, or checkpoints of one that was stopped and is not to be resumed,
            and `overwrite` is false; nothing to resume.
    """
    resume = None if str(resume).lower() in ("none", "false", "") else resume
    if named is not None:
        check_folder(named, option)
        chosen = Path(named)
    elif resume and str(resume).lower() != "true":
        chosen = Path(resume).parent
    else:
        folder = RUNS / recipe
        taken = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.is_dir() else []
        if not resume:
            return str(folder / str(taken[-1] + 1 if taken else 1))
        if not taken:
            raise ValueError(f"--resume_from_checkpoint: there is no earlier run in {folder}; name its --output_dir")
        chosen = folder / str(taken[-1])
    if overwrite:
        return str(chosen)
    if resume and is_finished(chosen):
        raise ValueError(
            f"--resume_from_checkpoint: the run in {chosen} has ended ({RUN_FILE}), so that there is nothing to go on "
            "with. Score its model with recipes/evaluate_run.py, train it further in another folder with "
            f"--model_name_or_path {chosen}, or add --overwrite_output_dir to go on in this one"
        )
    if not resume and (chosen / RUN_FILE).exists():
        raise ValueError(
            f"{option} {chosen} holds a finished run ({RUN_FILE}); name another folder"
            + (", or add --overwrite_output_dir" if option == "--output_dir" else "")
        )
    checkpoint = None if resume else last_checkpoint(chosen)
    if checkpoint is not None:
        raise ValueError(
            f"{option} {chosen} holds a run that was stopped ({Path(checkpoint).name}); go on with it by "
            "--resume_from_checkpoint True, name another folder, or add --overwrite_output_dir to start anew"
        )
    return str(chosen)


def reserve_output_dir(
    named: str | None, recipe: str, resume: str | None, overwrite: bool, option: str = "--output_dir"
) -> str:
    """`choose_output_dir`, and the folder is this process's from now on: two runs started at once never share one.

    Raises:
        ValueError: as `choose_output_dir`; another run that is still going writes to the folder.
        OSError: the folder cannot be made.
    """
    while True:
        folder = Path(choose_output_dir(named, recipe, resume, overwrite, option))
        if named is None and not resume:
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue  # another run has just taken this number
            except OSError as error:
                raise OSError(
                    f"could not make the folder {folder}: {error.strerror}; name another with {option}"
                ) from error
        take(folder, f"; wait until it has ended, or name another {option}")
        return str(folder)


def is_finished(folder: str | Path) -> bool:
    """Whether a run has ended in this folder, its page too."""
    return (Path(folder) / RUN_FILE).exists() and (Path(folder) / "report.html").exists()
