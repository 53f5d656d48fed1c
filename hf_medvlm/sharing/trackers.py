"""The figures of a finished run, sent to the tracker that `--report_to` names. Curves are the Trainer's own business.

Figures that show studies go to a tracker on this machine (tensorboard); to one on somebody's server (wandb, trackio)
only where the data's licence is stated and free: a data use agreement forbids handing studies to others.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hf_medvlm.figures import SHOW_STUDIES
from hf_medvlm.sharing.hub import check_may_be_public
from hf_medvlm.sharing.model_card import read_run

if TYPE_CHECKING:
    from transformers import TrainingArguments


def send_figures(output_dir: str | Path, training: TrainingArguments) -> list[str]:
    """Send `figures/*.png` of a finished run to each tracker of `training.report_to` that takes pictures.

    Returns:
        `tracker: file name` for each picture sent.
    """
    folder = Path(output_dir)
    figures = sorted((folder / "figures").glob("*.png"))
    try:
        check_may_be_public(read_run(folder))
        shareable = figures
    except ValueError:
        shareable = [path for path in figures if path.name not in SHOW_STUDIES]
    senders: dict[str, tuple[Callable, list[Path]]] = {
        "tensorboard": (_tensorboard, figures),
        "wandb": (_wandb, shareable),
        "trackio": (_trackio, shareable),
    }
    sent = []
    for tracker in training.report_to or ():
        if tracker in senders and senders[tracker][1]:
            send, pictures = senders[tracker]
            send(pictures, training)
            sent += [f"{tracker}: {path.name}" for path in pictures]
    return sent


def _tensorboard(pictures: list[Path], training: TrainingArguments) -> None:
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(Path(str(training.output_dir)) / "runs" / "figures") as writer:
        for path in pictures:
            writer.add_image(path.stem, np.asarray(Image.open(path).convert("RGB")), dataformats="HWC")


def _wandb(pictures: list[Path], training: TrainingArguments) -> None:
    import wandb

    run = wandb.run or wandb.init(project=training.project, name=training.run_name)
    run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in pictures})


def _trackio(pictures: list[Path], training: TrainingArguments) -> None:
    import trackio

    # The Trainer's callback has closed the run when training ended.
    run = trackio.init(project=training.project, name=training.run_name, resume="allow")
    run.log({f"figures/{path.stem}": trackio.Image(str(path)) for path in pictures})
    run.finish()
