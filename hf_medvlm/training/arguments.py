"""Options of the recipes: dataclasses, and `parse()`, by which YAML sets defaults and the command line wins.

A name that transformers v5 dropped is mapped to the present one with one warning (`legacy.py`); a name that nobody
knows stops the run and is answered with its nearest neighbour.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import sys
from argparse import Action, ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from accelerate.utils import broadcast_object_list
from transformers import HfArgumentParser, TrainingArguments, set_seed
from transformers.utils import is_torch_bf16_gpu_available, is_torch_tf32_available

from hf_medvlm.data.disk import sentence
from hf_medvlm.data.files import load_json, read_yaml
from hf_medvlm.data.secrets import masked_command
from hf_medvlm.errors import clipped, library_errors
from hf_medvlm.shipped import find_shipped
from hf_medvlm.training.checkpoints import checkpoint_to_resume
from hf_medvlm.training.deepspeed import (
    check_builds,
    check_deepspeed,
    is_main_process,
    join_processes,
    read_deepspeed,
    stand_alone,
)
from hf_medvlm.training.folders import choose_output_dir, reserve_output_dir
from hf_medvlm.training.help import arrange_help
from hf_medvlm.training.legacy import modernise, say
from hf_medvlm.training.values import CHOICES, check_values

# What a tracker of `--report_to` needs installed.
TRACKERS = {name: name for name in ("tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "clearml", "swanlab")}


# What the tiny models of all recipes take: a few minutes on two cores. Each study is seen a handful of times, so that
# augmentation would only slow it down. A recipe's own `TINY` adds its steps and its rate.
TINY = {
    "synthetic_studies": 8000,
    "synthetic_size": 96,
    "image_size": 96,
    "augment": False,
    "eval_studies": 300,
    "warmup_steps": 0.1,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.05,
    "dataloader_num_workers": 1,
}


SECTIONS_HELP = (
    "what the text of a study is: findings, impression, report, indication or comparison, by commas, in this order; "
    "'|' divides alternatives, of which the first that a study has is taken; a study with none of them is left out"
)


def option(default: Any, help: str) -> Any:
    """A dataclass field with its `--help` text."""
    return field(default=default, metadata={"help": help})


@dataclass
class DataArguments:
    """Which studies."""

    dataset: str = option(
        "synthetic",
        "synthetic; a master .jsonl; a table (.csv, .jsonl, .xlsx, .parquet); a folder; a Hub id; shards: a pattern "
        "such as 'shards/*.tar' (WebDataset) or 'shards/*.parquet', in quotation marks",
    )
    image_folder: str | None = option(None, "what image paths are relative to; by default the folder of --dataset")
    image_column: str | None = option(
        None, "table: column with the image path, or the image, or several by commas; else known by name"
    )
    text_columns: str | None = option(None, "table: text columns, by commas; else findings, impression, report, text")
    patient_column: str | None = option(None, "table: patient column; else known by its name (patient_id, subject_id)")
    split_column: str | None = option(None, "table: split column; without one, patients are split 80/10/10 by a hash")
    encoding: str | None = option(None, "table: encoding of a text file, cp1252 say; UTF-8 or its mark by default")
    verify_images: bool = option(True, "decode every image once before training; broken ones are named and left out")
    synthetic_studies: int = option(2000, "how many studies --dataset synthetic makes")
    synthetic_size: int = option(128, "side of the made-up images of --dataset synthetic, in pixels")
    train_studies: int | None = option(None, "use only so many studies of the training split")
    eval_studies: int | None = option(None, "use only so many studies of the validation and of the test split")


@dataclass
class MedVLMArguments(TrainingArguments):
    """transformers' `TrainingArguments`.

    Defaults that differ: a numbered output folder; evaluation and a checkpoint four times a run, the best one kept;
    `logging_steps` 10; `dataloader_drop_last` in training, so that any number of processes sees the same batches;
    private Hub repositories; the CPU where there is no accelerator; workers by the cores (`loading.py`).
    """

    vision_lr: float | None = option(None, "learning rate of the vision tower; --learning_rate by default")
    connector_lr: float | None = option(
        None, "learning rate of what stands between vision and language, heads included; --learning_rate by default"
    )
    augment: bool = option(True, "vary pose, exposure and noise of the training images (never mirrored)")
    image_cache: str | None = option(
        None,
        "folder of prepared pictures, decoded and shrunk once for all runs and processes; what is not in it is added "
        "before training (prepare_data.py --cache fills one too)",
    )
    shuffle_buffer: int | None = option(
        None,
        "mix so many training samples at a time, neighbours in the files together, so that a disk reads on; by default "
        "1000 for shards, and all for files of their own",
    )
    logging_steps: float = option(10, "log every so many steps (below 1: a fraction of the run)")
    eval_strategy: str = option("steps", "when to evaluate: no, steps or epoch")
    eval_steps: float | None = option(0.25, "evaluate every so many steps (below 1: a fraction of the run)")
    save_strategy: str = option("steps", "when to save a checkpoint: no, steps, epoch or best")
    save_steps: float = option(0.25, "save every so many steps (below 1: a fraction of the run)")
    save_total_limit: int | None = option(2, "keep so many checkpoints, the best one among them")
    load_best_model_at_end: bool = option(True, "end on the best checkpoint by --metric_for_best_model")
    remove_unused_columns: bool = option(False, "leave this off: collators read whole studies")
    dataloader_num_workers: int | None = option(  # type: ignore[assignment]  # None until the data are known
        None, "processes that load the data; by default from the cores and processes here, none for a small data set"
    )
    dataloader_drop_last: bool = option(True, "training leaves out an epoch's last, smaller batch")
    hub_private_repo: bool | None = option(True, "push to a private repository")
    hub_public_acknowledged: bool = option(
        False, "yes, weights and words that were learnt of credentialed data may go into a public repository"
    )
    overwrite_output_dir: bool = option(False, "allow an --output_dir that holds a finished run")
    early_stopping_patience: int | None = option(None, "stop after so many evaluations without a better metric")
    evaluate_only: bool = option(False, "score the model as it is; train and save nothing")
    dry_run: bool = option(False, "check everything, say what a run would do, and train nothing")

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled, into the folder's `training_args.bin` too: everything but the token."""
        return vars(self) | {"hub_token": None}

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.tf32 and not is_torch_tf32_available():
            say("--tf32 True: this hardware has no TF32; training goes on without it")
            self.tf32 = None
        if self.bf16 and not self.use_cpu and not is_torch_bf16_gpu_available():
            say("--bf16 True: this GPU has no bfloat16; training goes on in float16")
            self.bf16, self.fp16 = False, True
        if self.fp16 and self.use_cpu:
            say("--fp16 True: float16 training needs a GPU; training goes on in float32")
            self.fp16 = False
        if self.shuffle_buffer is not None and self.shuffle_buffer < 1:
            raise ValueError(f"--shuffle_buffer {self.shuffle_buffer}: at least 1 sample is needed")
        self.workers_asked = self.dataloader_num_workers is not None
        self.dataloader_num_workers = self.dataloader_num_workers or 0
        if "no" in (self.save_strategy, self.eval_strategy):
            self.load_best_model_at_end = False
        # The Trainer's own push sends whatever lies in the folder, report texts among it; ours (hub.py) sends a list.
        self.push_when_done, self.push_to_hub = self.push_to_hub, False
        if self.deepspeed is not None:
            processes = int(os.environ.get("WORLD_SIZE", "1"))
            check_deepspeed(
                self.deepspeed, self.per_device_train_batch_size, self.gradient_accumulation_steps, processes
            )
            self.deepspeed = read_deepspeed(self.deepspeed)
            if os.environ.get("LOCAL_RANK", "0") == "0":
                check_builds()
            stand_alone()
        if self.ddp_backend is not None and "LOCAL_RANK" not in os.environ:
            raise ValueError(
                f"--ddp_backend {self.ddp_backend}: there is one process, and none to talk to; leave it out, "
                "or start several with torchrun or accelerate launch"
            )
        for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):  # a file of them
            value = getattr(self, name, None)
            if isinstance(value, str) and not value.lstrip().startswith("{"):
                setattr(self, name, load_json(value, dict))
        super().__post_init__()
        if self.fsdp_plugin_args:
            from accelerate.utils import FullyShardedDataParallelPlugin

            with library_errors("--fsdp_config", "compare it with ds_configs/fsdp2.yaml"):
                FullyShardedDataParallelPlugin(**self.fsdp_plugin_args)
        if self.deepspeed is not None:
            join_processes()
        for tracker in self.report_to or ():
            if tracker not in TRACKERS:
                raise ValueError(
                    f"--report_to {clipped(tracker)}: no such tracker; there are {', '.join(sorted(TRACKERS))}"
                )
            if importlib.util.find_spec(TRACKERS[tracker]) is None:
                raise ValueError(f"--report_to {tracker}: it is not installed; pip install {TRACKERS[tracker]}")


class _Parser(HfArgumentParser):
    """One whose errors are one line, without the usage of two hundred options."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(f"{self.prog}: {message if len(message) < 900 else clipped(message)}")


def split_names(text: str) -> tuple[str, ...]:
    """`"findings, impression"` -> `("findings", "impression")`."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parse(
    recipe: str | Path,
    argv: Sequence[str] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    tiny: Mapping[str, Any] | None = None,
    **groups: Any,
) -> SimpleNamespace:
    """Options of a recipe: its defaults < `--config` YAML < the command line.

    Args:
        recipe: the recipe's `__file__`; names the run folder.
        argv: the command line without the program; `sys.argv` by default.
        defaults: the recipe's own defaults.
        tiny: further defaults for synthetic studies where no `--model_name_or_path` is given. With a data set of one's
            own none of them applies, whatever the model.
        groups: name -> dataclass; `training` must be a `MedVLMArguments`. It is built last but before any model, as
            ZeRO-3 wants it.

    Returns:
        A namespace with one instance a group; `command`, the command line as it was given, its secrets masked; and
        `explicit`, the names of the options that it or the YAML file sets.

    Raises:
        SystemExit: an unknown option or key, or a value that cannot be; the message names the nearest known name.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(list(groups.values()), prog=Path(recipe).name, allow_abbrev=False)
    parser.add_argument(
        "--config",
        help="YAML file of options, or the name of a shipped one (finetune_blip); the command line wins over it",
    )
    known = {action.dest for action in parser._actions} - {"help"}
    arrange_help(parser, groups, TrainingArguments)
    given = modernise(argv)
    asked = [word for word in given if word not in ("-h", "--help")]  # the help is printed last, with its defaults
    path = parser.parse_known_args([*asked])[0].config
    from_yaml = _typed(path, read_options(path, known), parser) if path else {}
    explicit = set(from_yaml) | {word[2:].split("=")[0].replace("-", "_") for word in given if word.startswith("--")}
    recipe_defaults = dict(defaults or {})
    parser.set_defaults(**from_yaml)
    data = parser.parse_known_args([*asked])[0]
    synthetic = getattr(data, "dataset", "synthetic") == "synthetic" and getattr(data, "data_path", None) is None
    if "model_name_or_path" not in explicit and synthetic:
        recipe_defaults |= tiny or {}
    if "num_train_epochs" in explicit and "max_steps" not in explicit:
        recipe_defaults.pop("max_steps", None)
    parser.set_defaults(**(recipe_defaults | from_yaml))
    values, unknown = parser.parse_known_args(given)
    for word in unknown:
        if word.startswith("--"):
            raise SystemExit(f"{parser.prog}: {unknown_name(word.split('=')[0], [f'--{name}' for name in known])}")
        raise SystemExit(f"{parser.prog}: {word!r:.100} is no option; options begin with '--'")
    if "save_strategy" not in explicit and "eval_strategy" in explicit and values.eval_strategy != "no":
        # The best checkpoint can be kept only where a checkpoint is saved at each evaluation.
        values.save_strategy = values.eval_strategy
    try:
        types = {field.name: field.type for group in groups.values() for field in dataclass_fields(group)}
        check_values({name: value for name, value in vars(values).items() if name in types}, types)
        given_names = ", ".join(f"--{name}" for name in sorted(explicit & types.keys())) or "the defaults"
        built = {}
        for name, group in groups.items():
            fields = {key: value for key, value in vars(values).items() if key in group.__dataclass_fields__}
            if group.__dataclass_fields__.keys() >= TrainingArguments.__dataclass_fields__.keys():
                choose = choose_output_dir if fields["dry_run"] or not is_main_process() else reserve_output_dir
                fields["output_dir"] = choose(
                    fields["output_dir"],
                    Path(recipe).stem,
                    fields["resume_from_checkpoint"],
                    fields["overwrite_output_dir"],
                )
            with library_errors(f"one of {given_names} cannot be", "compare them with --help"):
                built[name] = group(**fields)
        _agree_on_output_dir(built["training"])
        if not built["training"].evaluate_only:
            built["training"].resume_from_checkpoint = checkpoint_to_resume(built["training"])
        set_seed(built["training"].seed)  # the recipe builds its model next, in every process the same one
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"{parser.prog}: {sentence(error, argv, '--output_dir')}") from error
    command = masked_command([Path(recipe).name, *argv])
    return SimpleNamespace(**built, recipe=Path(recipe).stem, command=command, explicit=frozenset(explicit))


def _agree_on_output_dir(training: TrainingArguments) -> None:
    """Give every process the main one's folder: each has counted the runs for itself, one perhaps too late."""
    if training.world_size > 1:
        training.output_dir = broadcast_object_list([training.output_dir])[0]


def read_options(path: str, known: set[str]) -> dict[str, Any]:
    """The options of a YAML file, by their present names; a name like `finetune_blip` means the shipped file.

    Raises:
        SystemExit: no such file, no mapping, or a key that is none of `known` (with its line and nearest neighbour).
    """
    try:
        path = str(find_shipped(path, "recipes", ".yaml"))
        content = read_yaml(path)
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError) as error:
        raise SystemExit(f"--config {error}") from error
    options = {}
    for key, value in content.items():
        words = modernise([f"--{key}", str(value)])
        for option_name, new in zip(words[::2], words[1::2], strict=True):  # none where the option is gone
            name = option_name[2:]
            if name not in known:
                line = next((n for n, row in enumerate(text.splitlines(), 1) if row.startswith(str(key))), "?")
                raise SystemExit(f"{path}:{line}: {unknown_name(str(key), sorted(known))}")
            if name == words[0][2:]:
                options[name] = value if name == key else new
            else:  # what an old option stood for besides gives way to an option of its own
                options.setdefault(name, new)
    return options


def _typed(path: str, options: Mapping[str, Any], parser: HfArgumentParser) -> dict[str, Any]:
    """The values of a YAML file as the command line would give them: `seed: 1.5` is no whole number there either.

    Raises:
        SystemExit: a value that is none of the option's type; the message names file and option.
    """
    typed: dict[str, Any] = {}
    actions = {action.dest: action for action in parser._actions}
    for name, value in options.items():
        action = actions[name]
        try:
            if value is None:
                if action.default is not None:
                    raise ValueError("a value is needed")
                typed[name] = None
            elif isinstance(value, dict):
                if isinstance(action.default, (int, float)) or action.nargs is not None or action.choices is not None:
                    raise ValueError("a single value is needed")
                typed[name] = json.dumps(value)
            elif isinstance(value, list):
                if action.nargs not in ("*", "+"):
                    raise ValueError("a single value is needed, not a list")
                typed[name] = [_converted(action, part) for part in value]
            else:
                word = _converted(action, value)
                typed[name] = [word] if action.nargs in ("*", "+") else word
        except (ValueError, TypeError, ArgumentTypeError) as error:
            raise SystemExit(f"--config {path}: {name}: {value!r:.100}: {clipped(str(error))}") from error
    return typed


def _converted(action: Action, value: Any) -> Any:
    """A scalar of a YAML file through the type of an option; `no`, which YAML takes for false, is a name of some."""
    if value is False and "no" in CHOICES.get(action.dest, ()):
        value = "no"
    if isinstance(value, (list, dict)):
        raise ValueError("a single value is needed")
    converted = action.type(str(value)) if callable(action.type) else value
    if action.choices is not None and converted not in action.choices:
        raise ValueError(f"there are {', '.join(map(str, action.choices))}")
    return converted


def unknown_name(name: str, known: Sequence[str]) -> str:
    """`unknown option 'x'; did you mean 'y'?`"""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"unknown option {name!r:.100}" + (f"; did you mean {near[0]!r}?" if near else "; --help lists them all")
