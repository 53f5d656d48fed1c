"""What a run needs around it, checked before it starts: memory, disk, DeepSpeed, metrics, trackers, the Hub."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import nn

from hf_medvlm.data.load import Splits
from hf_medvlm.sharing.hub import check_may_be_public, check_tokenizer, names_to_push, why_hub_unreachable
from hf_medvlm.sharing.prompts import check_texts
from hf_medvlm.training.checks import OK, STOP, WARNING, Checks
from hf_medvlm.training.deepspeed import read_deepspeed
from hf_medvlm.training.provenance import provenance

if TYPE_CHECKING:
    from hf_medvlm.training.trainer import MedVLMTrainer

GIB = 2**30
TRACKERS = ("tensorboard", "wandb", "trackio")


def parameter_sizes(model: nn.Module) -> list[tuple[int, int, bool]]:
    """(elements, bytes an element, whether it is trained) of each parameter, whole under ZeRO-3 too."""
    return [(getattr(p, "ds_numel", p.numel()), p.element_size(), p.requires_grad) for p in model.parameters()]


def check_resources(checks: Checks, trainer: MedVLMTrainer, splits: Splits, args: SimpleNamespace) -> None:
    """One line for each resource."""
    _memory(checks, trainer, args)
    _disk(checks, trainer)
    _deepspeed(checks, trainer)
    _metrics(checks)
    check_trackers(checks, args.training.report_to)
    if args.training.push_when_done:
        _hub(checks, trainer, splits, args)


def training_bytes(sizes: list[tuple[int, int, bool]], stage: int = 0, processes: int = 1) -> int:
    """Bytes a device for weights, gradients and AdamW's two moments; activations come on top.

    Args:
        sizes: of `parameter_sizes`.
        stage: DeepSpeed's: 1 shards the moments, 2 the gradients too, 3 the weights too (Rajbhandari et al. 2020,
            arXiv 1910.02054, section 5).
    """
    weights = sum(n * size for n, size, _ in sizes)
    gradients = sum(n * size for n, size, trained in sizes if trained)
    moments = sum(8 * n for n, _, trained in sizes if trained)
    shares = (processes if stage >= 3 else 1, processes if stage >= 2 else 1, processes if stage >= 1 else 1)
    return sum(part // share for part, share in zip((weights, gradients, moments), shares, strict=True))


def _memory(checks: Checks, trainer: MedVLMTrainer, args: SimpleNamespace) -> None:
    stage = 0
    if trainer.args.deepspeed:
        stage = read_deepspeed(trainer.args.deepspeed).get("zero_optimization", {}).get("stage", 0)
    needed = training_bytes(parameter_sizes(trainer.model), stage, trainer.args.world_size)
    free, where = _free_memory(trainer)
    sentence = f"{needed / GIB:.2f} GiB a process for weights, gradients and moments, activations on top; "
    sentence += f"{free / GIB:.1f} GiB free {where}"
    state = OK if needed < 0.8 * free else WARNING
    checks.add(state, "memory", sentence + ("" if state == OK else _save_memory(args)))


def _save_memory(args: SimpleNamespace) -> str:
    """What else to try: the options of this recipe that save memory and are not in use."""
    words = {"gradient_checkpointing": "", "lora_rank": " 8", "deepspeed": " ds_configs/zero3_offload.json"}
    values = {
        name: value
        for group in vars(args).values()
        if hasattr(group, "__dict__")
        for name, value in vars(group).items()
    }
    free = [f"--{name}{word}" for name, word in words.items() if name in values and not values[name]]
    return f"; try {' or '.join(free)}" if free else "; take a smaller model or a machine with more memory"


def _free_memory(trainer: MedVLMTrainer) -> tuple[int, str]:
    """(bytes, "on cuda:0" or "for each process here"). Other processes on this machine get their equal share."""
    if trainer.args.device.type == "cuda":
        return torch.cuda.mem_get_info(trainer.args.device)[0], f"on {trainer.args.device}"
    import psutil

    here = max(int(trainer.args.world_size), 1)
    return psutil.virtual_memory().available // here, "for each process here"


def _disk(checks: Checks, trainer: MedVLMTrainer) -> None:
    sizes = parameter_sizes(trainer.model)
    # A checkpoint holds the weights and two moments of the trained ones.
    once = sum(n * size + (8 * n if trained else 0) for n, size, trained in sizes)
    needed = once * ((trainer.args.save_total_limit or 2) + 1)
    folder = Path(str(trainer.args.output_dir)).resolve()
    free = shutil.disk_usage(next(path for path in [folder, *folder.parents] if path.exists())).free
    sentence = f"{needed / 1e9:.1f} GB for checkpoints, {free / 1e9:.1f} GB free at {folder}"
    way_out = "; name a roomier --output_dir, or lower --save_total_limit"
    checks.add(OK if free > needed else STOP, "disk", sentence + ("" if free > needed else way_out))


def _deepspeed(checks: Checks, trainer: MedVLMTrainer) -> None:
    args = trainer.args
    if not args.deepspeed:
        return
    zero = read_deepspeed(args.deepspeed).get("zero_optimization", {})
    offload = [part for part in ("optimizer", "param") if zero.get(f"offload_{part}", {}).get("device") == "cpu"]
    on_cpu = f", {' and '.join(offload)} on the CPU" if offload else ""
    checks.add(OK, "DeepSpeed", f"ZeRO stage {zero.get('stage', 0)}{on_cpu}; batch sizes agree")


def _metrics(checks: Checks) -> None:
    from hf_medvlm.metrics import wordnet

    try:
        wordnet.load()
    except OSError as error:
        checks.add(WARNING, "metrics", f"METEOR's WordNet cannot be read ({error}); install hf_medvlm again")
        return
    checks.add(OK, "metrics", "all in the package, WordNet too; nothing is downloaded")


def check_trackers(checks: Checks, names: list[str]) -> None:
    """Stop where a tracker that was asked for is not installed: the Trainer would find out after loading everything."""
    for tracker in names:
        if tracker in TRACKERS and importlib.util.find_spec(tracker) is None:
            checks.add(STOP, "tracker", f"--report_to {tracker}, but it is not installed: pip install {tracker}")
        elif tracker in TRACKERS:
            checks.add(OK, "tracker", f"{tracker} is installed")


def _hub(checks: Checks, trainer: MedVLMTrainer, splits: Splits, args: SimpleNamespace) -> None:
    training = args.training
    private = training.hub_private_repo is not False
    model = trainer.accelerator.unwrap_model(trainer.model)
    names = ", ".join(names_to_push(model, trainer.processing_class))
    place = f"{training.hub_model_id or Path(training.output_dir).name} ({'private' if private else 'public'})"
    checks.add(OK, "push", f"when done, to {place}, of the run only: {names}")
    if not training.hub_public_acknowledged:
        described = provenance(splits, args, trainer.processing_class)
        try:
            if not private:
                check_may_be_public(described)
            with tempfile.TemporaryDirectory() as processor:
                if hasattr(trainer.processing_class, "save_pretrained"):
                    trainer.processing_class.save_pretrained(processor)
                check_tokenizer(Path(processor), described)
                model.config.save_pretrained(processor)
                if trainer.evaluation is not None:
                    trainer.evaluation.write_settings(processor)
                check_texts(processor)
        except ValueError as error:
            checks.add(STOP, "push", str(error))
    reason = why_hub_unreachable(training.hub_token)
    if reason:
        checks.add(WARNING, "Hub", reason)
    else:
        checks.add(OK, "Hub", "it answers and knows you")
