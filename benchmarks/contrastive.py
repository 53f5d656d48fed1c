"""Contrastive training side by side: ours, open_clip's own model and loss, and HF's two-tower model under the stock
Trainer.

    python benchmarks/contrastive.py                                  # BiomedCLIP's sizes, random weights, CPU
    python benchmarks/contrastive.py --reference_path OPEN_CLIP       # where open_clip_torch and timm are installed
    python benchmarks/contrastive.py --device cuda --batch 64 --peak_tflops 989

All three start from the same weights and see the same pairs, whose texts have the length of reports. Ours puts several
texts into a row, HF's pads a batch to its longest text, open_clip to its context of 256 tokens. The rounds of the
contenders alternate in processes of their own. Then the image side alone: variant E of the patch bottleneck, k 0.25
dropped after block 4, against A, with the FLOPs beside the speed.

open_clip needs torchvision: `pip install --target OPEN_CLIP --no-deps open_clip_torch timm torchvision ftfy regex
wcwidth`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, Trainer, TrainingArguments, ViTConfig
from transformers import VisionTextDualEncoderConfig as TwoTowerConfig
from transformers import VisionTextDualEncoderModel as TwoTowerModel

from hf_medvlm.families.dual_encoder.model import DualEncoderConfig, DualEncoderModel
from hf_medvlm.families.dual_encoder.published import to_published
from hf_medvlm.families.patch_ib.config import PatchIBConfig, variant_options
from hf_medvlm.families.patch_ib.model import PatchIBModel
from hf_medvlm.models.attention import take_kernels_of_any_shape

CONTEXT = 256
# Steps before the clock starts: until then a process still takes memory from the system, some for longer than others.
WARM_UP = 4
# What --small takes, to try the script: timm's vit_tiny beside a BERT of two layers.
SMALL_VISION = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
SMALL_TEXT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}


def configs(small: bool) -> tuple[ViTConfig, BertConfig]:
    """BiomedCLIP's towers, or small ones; without dropout, so that all contenders compute the same."""
    vision, text = (SMALL_VISION, SMALL_TEXT) if small else ({}, {})
    text = text | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return ViTConfig(**vision, layer_norm_eps=1e-6), BertConfig(**text)


def batches(options: argparse.Namespace) -> list[dict[str, Tensor]]:
    """Pairs with texts of 40 to 120 tokens (a findings and impression section), the same at every call."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(options.steps + WARM_UP):
        lengths = torch.randint(40, 121, (options.batch,), generator=generator)
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        ids = torch.randint(1000, 30000, mask.shape, generator=generator) * mask
        pixels = torch.randn(options.batch, 3, 224, 224, generator=generator)
        made.append({"pixel_values": pixels, "input_ids": ids, "attention_mask": mask})
    return made


def ours(options: argparse.Namespace) -> DualEncoderModel:
    """The dual encoder with BiomedCLIP's layout and the weights of seed 0."""
    torch.manual_seed(0)
    vision, text = configs(options.small)
    return DualEncoderModel(DualEncoderConfig(vision_config=vision, text_config=text, text_projection="mlp"))


def measure(step, inputs: list, options: argparse.Namespace) -> dict[str, float]:
    """The loss and FLOPs of the first step, and the seconds of those behind the warm-up."""
    device = torch.device(options.device)
    with FlopCounterMode(display=False) as counter:
        loss = step(inputs[0])
    for batch in inputs[1:WARM_UP]:
        step(batch)
    times = []
    for batch in inputs[WARM_UP:]:
        start = time.perf_counter()
        step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    seconds = sorted(times)[len(times) // 2]
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    memory = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else resident
    tflops = counter.get_total_flops() / 1e12
    measured = {
        "loss": loss,
        "images_per_second": options.batch / seconds,
        "step_seconds": seconds,
        "memory_mb": memory,
    }
    return measured | {"tflop": tflops, "mfu": tflops / seconds / options.peak_tflops if options.peak_tflops else 0.0}


def trainer_like(model: torch.nn.Module, loss_of, options: argparse.Namespace):
    """A training step: autocast with --bf16, backward, fused AdamW as the Trainer's."""
    model.to(options.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(batch: dict[str, Tensor]) -> float:
        batch = {name: value.to(options.device) for name, value in batch.items()}
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def run_ours(options: argparse.Namespace) -> dict[str, float]:
    take_kernels_of_any_shape(torch.device(options.device))  # as the trainer does
    model = ours(options)
    ids = torch.arange(options.batch, device=options.device)
    return measure(
        trainer_like(model, lambda batch: model(**batch, pair_ids=ids).loss, options), batches(options), options
    )


def run_open_clip(options: argparse.Namespace) -> dict[str, float]:
    """open_clip's `CustomTextCLIP` and `ClipLoss`, texts padded to 256 as its tokenizer does."""
    # behind the imports above, so that nothing but open_clip meets the torchvision that lies there
    sys.path.append(options.reference_path)
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        # torchvision from the registry is built for CUDA; on a CPU torch these two names are all its import asks for
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from open_clip.loss import ClipLoss
    from open_clip.model import CustomTextCLIP

    with tempfile.TemporaryDirectory() as folder:
        configs(options.small)[1].save_pretrained(folder)
        name = "vit_tiny_patch16_224" if options.small else "vit_base_patch16_224"
        vision = {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": 224}
        text = {
            "hf_model_name": folder,
            "hf_tokenizer_name": folder,
            "hf_proj_type": "mlp",
            "hf_model_pretrained": False,
        }
        text |= {"hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": CONTEXT}
        model = CustomTextCLIP(embed_dim=512, vision_cfg=vision, text_cfg=text)
    missing, unexpected = model.load_state_dict(to_published(ours(options)), strict=False)
    assert not unexpected and all("pooler" in key or "position_ids" in key for key in missing), (missing, unexpected)
    criterion = ClipLoss()
    padded = [
        batch | {"input_ids": torch.nn.functional.pad(batch["input_ids"], (0, CONTEXT - batch["input_ids"].shape[1]))}
        for batch in batches(options)
    ]

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        return criterion(*model(batch["pixel_values"], batch["input_ids"])[:3])

    return measure(trainer_like(model, loss_of, options), padded, options)


def run_two_tower(options: argparse.Namespace) -> dict[str, float]:
    """transformers' `VisionTextDualEncoderModel` under the stock `Trainer`; texts padded to the longest, as ours."""
    torch.manual_seed(0)
    vision, text = configs(options.small)
    model = TwoTowerModel(TwoTowerConfig.from_vision_text_configs(vision, text, projection_dim=512))
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=1,
        use_cpu=options.device == "cpu",
        bf16=options.bf16,
        max_steps=1,
        learning_rate=1e-5,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    inputs = [batch | {"return_loss": True} for batch in batches(options)]
    trainer = Trainer(model, arguments, train_dataset=inputs, data_collator=lambda rows: rows[0])
    # what `Trainer.train` does first: accelerate brings the model to its device, and bfloat16 into its forward
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.create_optimizer())
    trainer.current_gradient_accumulation_steps = 1

    def step(batch: dict[str, Tensor]) -> float:
        loss = trainer.training_step(model, batch)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return measure(step, inputs, options)


def run_vision(options: argparse.Namespace, variant: str) -> dict[str, float]:
    """The image side alone, without gradient."""
    torch.manual_seed(0)
    vision, text = configs(options.small)
    dropped = {"drop_layers": [4], "keep": 0.25, "keep_start": None, "filip_weight": 0.0} if variant == "E" else {}
    config = PatchIBConfig(vision_config=vision, text_config=text, **(variant_options(variant, 12) | dropped))
    model = PatchIBModel(config).to(options.device).eval()

    @torch.no_grad()
    def step(batch: dict[str, Tensor]) -> float:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            return model.get_image_features(batch["pixel_values"].to(options.device)).float().mean().item()

    return measure(step, batches(options), options)


CONTENDERS = {
    "ours": run_ours,
    "open_clip": run_open_clip,
    "two_tower": run_two_tower,
    "A": lambda options: run_vision(options, "A"),
    "E": lambda options: run_vision(options, "E"),
}


def alternate(names: list[str], options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Each contender once a round, in a process of its own, so that a busy machine is busy for all of them."""
    rounds_of: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            command = [sys.executable, __file__, "--contender", name, *sys.argv[1:]]
            ended = subprocess.run(command, capture_output=True, text=True)
            if ended.returncode:
                print(f"{name} cannot run here: {ended.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            rounds_of[name].append(json.loads(ended.stdout.splitlines()[-1]))
    return rounds_of


def table(measured: dict[str, list[dict[str, float]]]) -> None:
    """The median round of each contender, and how many times faster the first is than each."""
    medians = {
        name: sorted(rounds, key=lambda row: row["images_per_second"])[len(rounds) // 2]
        for name, rounds in measured.items()
        if rounds
    }
    first = next(iter(medians), None)
    columns = ("images_per_second", "step_seconds", "memory_mb", "tflop", "mfu", "loss")
    print(
        f"{'':10}"
        + "".join(f"{column:>19}" for column in columns)
        + f"{'ours is faster by' if first == 'ours' else ''}"
    )
    for name, row in medians.items():
        ratio = medians[first]["images_per_second"] / row["images_per_second"]
        print(f"{name:10}" + "".join(f"{row[column]:19.4f}" for column in columns) + f"{ratio:16.2f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help=f"measured steps a round, after {WARM_UP} that are not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reference_path", default="", help="folder that holds open_clip and timm")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16; a GPU always does")
    parser.add_argument("--peak_tflops", type=float, default=0.0, help="of the device in bf16, for MFU")
    parser.add_argument("--small", action="store_true", help="small towers, to try the script")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.bf16 = options.bf16 or options.device == "cuda"
    if options.contender:
        print(json.dumps(CONTENDERS[options.contender](options)))
        return
    print(f"{options.batch} pairs a step, {options.device}, {torch.get_num_threads()} threads; training")
    table(alternate(["ours", "open_clip", "two_tower"], options))
    print("image side alone; E keeps k 0.25 behind block 4")
    table(alternate(["E", "A"], options))


if __name__ == "__main__":
    main()
