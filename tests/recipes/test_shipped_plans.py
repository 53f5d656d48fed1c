"""Every shipped plan starts: its own options, two steps, from a small checkpoint in the layout that its name means.

The checkpoints lie in a Hub cache under the names in the plans, so that nothing of a plan is changed but the batch, the
steps and the number of studies. `benchmarks/plans.py` does the same at the published sizes.
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import published_layouts as layouts
import pytest
import torch
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
sys.path.insert(0, str(ROOT / "tests" / "families" / "chat"))
import chat_folders  # noqa: E402

HUB: dict[str, Callable[[Path], Any]] = {
    "google/vit-base-patch16-224-in21k": layouts.vit,
    "emilyalsentzer/Bio_ClinicalBERT": layouts.clinical_bert,
    "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224": layouts.biomedclip,
    "microsoft/BiomedVLP-BioViL-T": layouts.biovil_t,
    "Salesforce/blip-image-captioning-base": layouts.blip,
    "microsoft/git-base": layouts.git,
    "openai/clip-vit-large-patch14-336": layouts.clip_336,
    "liuhaotian/llava-v1.5-7b": layouts.llava,
    "google/medgemma-4b-it": chat_folders.gemma3,
    "Qwen/Qwen3-VL-8B-Instruct": chat_folders.qwen3_vl,
    "HuggingFaceTB/SmolVLM-256M-Instruct": chat_folders.smolvlm,
}
# plan -> recipe, where the names differ
RECIPE_OF = {"medgemma": "finetune_chat", "qwen_vl": "finetune_chat", "smolvlm": "finetune_chat"}
RECIPE_OF |= {f"chat_stage{number}": "finetune_chat" for number in (1, 2, 3)}
APART = ("prepare_data", "reward_tiny", "reward_chat_tiny")  # these and chat_stage* have tests of their own
PLANS = [
    path.relative_to(RECIPES).with_suffix("").as_posix()
    for path in sorted(RECIPES.rglob("*.yaml"))
    if path.stem not in APART and not path.stem.startswith("chat_stage")
]
FEW = "--synthetic_studies 24 --synthetic_size 64 --eval_studies 2 --dataloader_num_workers 0 --disable_tqdm True"
STEPS = "--max_steps 2 --per_device_train_batch_size 2 --per_device_eval_batch_size 2 --gradient_accumulation_steps 1"
STEPS += " --save_strategy no --eval_strategy steps --eval_steps 100 --load_best_model_at_end False --logging_steps 1"
BRIEF = {  # what would only take time
    "finetune_chat": ["--max_new_tokens", "4"],
    "llava_mimic": ["--max_new_tokens", "4"],
    "train_dual_encoder": ["--probe_studies", "4"],
    "train_patch_ib": ["--contrastive_batch_size", "2", "--probe_studies", "4"],
    "train_medklip": ["--entities", "effusion,cardiomegaly"],
}


def recipe_of(plan: str) -> str:
    return "train_patch_ib" if "/" in plan else RECIPE_OF.get(plan, plan)


def call(recipe: str, *words: str) -> Any:
    return runpy.run_path(str(RECIPES / f"{recipe}.py"))["main"](list(words))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub cache, filled as the plans ask for names."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture
def offline(hub: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In an empty folder, with that cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return hub


def provide(plan: str, hub: Path) -> dict[str, Any]:
    """The plan's content; all that it names is in the cache, or in the working folder."""
    content = yaml.safe_load((RECIPES / f"{plan}.yaml").read_text())
    names = [*str(content.get("model_name_or_path", "")).split(","), content.get("text_encoder", "")]
    if "liuhaotian/llava-v1.5-7b" in names:
        names.append("openai/clip-vit-large-patch14-336")
    for name in filter(None, names):
        if name == "checkpoint_final.pth":  # from the authors' own page, not from the Hub
            layouts.medklip(Path(name))
        else:
            layouts.in_cache(hub, name, HUB[name])
    return content


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_starts(plan: str, offline: Path, capsys: pytest.CaptureFixture) -> None:
    provide(plan, offline)
    recipe = recipe_of(plan)
    words = ["--config", plan, *FEW.split(), "--output_dir", "run"]
    if recipe == "extract_biovil_t":
        call(recipe, *words, "--dry_run")
        assert "would be written" in capsys.readouterr().out and not Path("run").exists()
        call(recipe, *words)
        assert json.loads(Path("run/index.json").read_text())["studies"] > 0
        return
    words += [*STEPS.split(), *BRIEF.get(recipe, [])]
    if "/" in plan:  # the variants of one recipe share its preflight and its evaluation
        main = runpy.run_path(str(RECIPES / f"{recipe}.py"))["main"]
        main.__globals__["fit"] = lambda trainer, *rest: trainer.train()
        assert main(words).global_step == 2
        return
    results = call(recipe, *words)
    shown = capsys.readouterr().out
    assert "2 steps" in shown and "STOP" not in shown
    assert results["test"].n == 2
    state = json.loads(Path("run/trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 2 and all(torch.isfinite(torch.tensor(losses)))


# ------------------------------------------------------------------------------------------- published sizes

TEXT_8B = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32}
TEXT_8B |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
VISION_8B = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096}
VISION_8B |= {"deepstack_visual_indexes": [8, 16, 24], "num_position_embeddings": 2304}
TEXT_4B = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8}
TEXT_4B |= {"num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208, "sliding_window": 1024}
SIGLIP_4B = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
TEXT_256M = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
TEXT_256M |= {"num_key_value_heads": 3, "vocab_size": 49280, "max_position_embeddings": 8192}
SIGLIP_256M = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
# plan -> text and vision sizes, others of the config, parameters as published
SIZES: dict[str, tuple[dict, dict, dict, int]] = {
    "medgemma": (TEXT_4B, SIGLIP_4B | {"image_size": 896}, {"mm_tokens_per_image": 256}, 4_300_079_472),
    "qwen_vl": (TEXT_8B, VISION_8B, {"tie_word_embeddings": False}, 8_767_123_696),
    "smolvlm": (TEXT_256M, SIGLIP_256M | {"image_size": 512, "patch_size": 16}, {"scale_factor": 4}, 256_484_928),
}


def parameters_of_dry_run(recipe: str, *words: str) -> int:
    """How many the model has, adapters and peft's copies left out."""
    seen: list[int] = []
    main = runpy.run_path(str(RECIPES / f"{recipe}.py"))["main"]
    fit = main.__globals__["fit"]

    def counting(trainer: Any, *rest: Any) -> Any:
        names = trainer.model.named_parameters()
        assert all(parameter.device.type == "meta" for _, parameter in trainer.model.named_parameters())
        seen.append(sum(p.numel() for name, p in names if "lora_" not in name and "modules_to_save" not in name))
        return fit(trainer, *rest)

    main.__globals__["fit"] = counting
    assert main([*words, *FEW.split(), "--dry_run", "--output_dir", "run"]) == {}
    return seen[0]


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes the checkpoints of 13B."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**13))


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize("plan", SIZES)
def test_a_plans_dry_run_at_the_published_size(plan: str, offline: Path, capsys: pytest.CaptureFixture) -> None:
    """On the meta device, with the words of a small model; the numbers are of the published config.json files."""
    content = provide(plan, offline)
    shutil.copytree(layouts.in_cache(offline, content["model_name_or_path"], HUB[content["model_name_or_path"]]), "big")
    config = json.loads(Path("big/config.json").read_text())
    text, vision, others, count = SIZES[plan]
    words = {key: config["text_config"].get(key) for key in ("model_type", "pad_token_id")}
    words["rope_parameters"] = (
        None if plan != "qwen_vl" else {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 5e6}
    )
    config["text_config"] = {key: value for key, value in words.items() if value is not None} | text
    config["vision_config"] |= vision
    layouts.write_json(Path("big/config.json"), config | others)
    parameters = parameters_of_dry_run("finetune_chat", "--config", plan, "--model_name_or_path", "big")
    shown = capsys.readouterr().out
    assert parameters == count and "STOP" not in shown and "language" in shown


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize(("size", "count"), [("7b", 7_062_902_784), ("13b", 13_350_839_296)])
def test_llavas_dry_run_at_the_published_size(size: str, count: int, offline: Path) -> None:
    """The index alone says which keys there are; no shard of 13 or 26 GB is read."""
    provide("llava_mimic", offline)
    source = layouts.in_cache(offline, "liuhaotian/llava-v1.5-7b", layouts.llava)
    tower = layouts.in_cache(offline, "openai/clip-vit-large-patch14-336", layouts.clip_336)
    folder, clip = Path(f"llava-v1.5-{size}"), Path("clip-vit-large-patch14-336")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.bin"))
    shutil.copytree(tower, clip, ignore=shutil.ignore_patterns("*.bin"))
    config = json.loads((clip / "config.json").read_text())
    config["vision_config"] |= layouts.LARGE | {"num_hidden_layers": 24, "patch_size": 14}
    layouts.write_json(clip / "config.json", config)
    layers, width, heads, inner = {"7b": (32, 4096, 32, 11008), "13b": (40, 5120, 40, 13824)}[size]
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 32000, "hidden_size": width}
    config |= {"num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": inner}
    layouts.write_json(folder / "config.json", config)
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    small = [key for key in index["weight_map"] if key.startswith("model.layers.0.")]
    more = [key.replace("layers.0.", f"layers.{number}.") for number in range(layers) for key in small]
    index["weight_map"] |= dict.fromkeys(more, "pytorch_model-00001-of-00002.bin")
    layouts.write_json(folder / "pytorch_model.bin.index.json", index)
    words = ["--config", "llava_mimic", "--model_name_or_path", str(folder)]
    assert parameters_of_dry_run("llava_mimic", *words) == count
    index["weight_map"].pop("lm_head.weight")
    layouts.write_json(folder / "pytorch_model.bin.index.json", index)
    with pytest.raises(ValueError, match="index.json: does not fit .*1 missing .lm_head.weight"):
        parameters_of_dry_run("llava_mimic", *words)


# ------------------------------------------------------------------------------------------- three stages


def test_the_stages_follow_one_another(offline: Path) -> None:
    """Connector, then LoRA on instructions, then reports; each from the folder that the one before has left."""
    start = layouts.in_cache(offline, "Qwen/Qwen2.5-VL-3B-Instruct", chat_folders.qwen2_5_vl)
    few = [*FEW.split(), *STEPS.split(), "--max_new_tokens", "4"]
    call("finetune_chat", "--config", "chat_stage1", "--model_name_or_path", str(start), *few, "--output_dir", "1")
    talk = [{"from": "human", "value": "<image>\nIs there an effusion?"}, {"from": "gpt", "value": "No effusion."}]
    images = Path(json.loads(Path("1/run.json").read_text())["image_folder"])
    pictures = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))[:12]
    layouts.write_json(Path("talk.json"), [{"id": p, "image": p, "conversations": talk} for p in pictures])
    data = ["--data_path", "talk.json", "--image_folder", str(images)]
    call("finetune_chat", "--config", "chat_stage2", "--model_name_or_path", "1", *data, *few, "--output_dir", "2")
    results = call("finetune_chat", "--config", "chat_stage3", "--model_name_or_path", "2", *few, "--output_dir", "3")
    assert results["test"].n == 2 and Path("2/adapter").is_dir() and Path("3/adapter").is_dir()
    weights = [load_file(folder / "model.safetensors") for folder in (start, Path("1"), Path("2"), Path("3"))]
    assert all(weights[0].keys() == state.keys() for state in weights)
    for number, changed in enumerate(({"connector"}, {"connector", "language"}, {"connector", "language"})):
        before, after = weights[number : number + 2]
        parts = set()
        for key in before:
            part = "connector" if ".merger." in key else "vision" if "visual." in key else "language"
            parts |= {part} if not torch.equal(before[key], after[key]) else set()
        assert parts == changed, number + 1
