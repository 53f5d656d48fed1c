"""What a trained model is written to and from: exports, output paths, `--pairs`, shards, settings of launchers."""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import models, mutate
from fuzzing.pool import Made, Reader
from fuzzing.settings import parse_quietly
from fuzzing.tables import TEXT, studies_are_sound
from fuzzing.uses import _pictures

# ---------------------------------------------------------------- where results go

NAMES = ["new", "a/b/new", "x" * 300, "y/" * 2500 + "z", "a\0b", "", ".", " ", "é\u2028", "-x", "file/inside", "full"]


def _place(folder: Path, rng: Random) -> tuple[str, str]:
    """A path to write to, and what stands there."""
    (folder / "file").write_text("x")
    (folder / "full").mkdir()
    (folder / "full" / "run.json").write_text("{}")
    if rng.random() < 0.5:
        path = folder / "there"
        return str(path), mutate.special(path, rng)
    name = rng.choice(NAMES)
    return os.path.join(folder, name), mutate.short(name)


def _shown(place: str) -> list[str]:
    """How a message may begin to write a path."""
    return [os.path.normpath(place)[:100], repr(place)[1:100].rstrip("/'")]


def make_output(rng: Random, folder: Path) -> Made:
    place, what = _place(folder, rng)
    use = rng.choice(["json", "page", "index", "score", "prepare", "options"])
    return Made((use, place, folder), f"{use} -> {what}", [*_shown(place), "--out"])


def read_output(made: Made) -> Any:
    from fuzzing import uses

    use, place, folder = made.target
    os.chdir(folder)
    if use == "json":
        from hf_medvlm.data.files import write_json

        write_json(place, {"a": 1})
        return Path(place)
    if use == "page":
        from hf_medvlm.inference.search import Index, write_search_page

        index = Index(uses._index())
        return Path(write_search_page(index, "effusion", [], place))
    if use == "index":
        from hf_medvlm.inference.predict import PredictOptions, predict_studies

        options = PredictOptions(maps=0, workers=0)
        predict_studies(uses._predictor("dual_encoder"), uses._found(), Path(place), options)
        return Path(place) / "predictions.jsonl"
    if use == "prepare":
        from hf_medvlm.data.prepare_options import parse_options

        words = ["table", "--root", str(folder), "--table", "t.csv", "--out", place]
        return parse_options(words).out
    if use == "options":
        from fuzzing.settings import _groups

        return Path(parse_quietly(["--output_dir", place], _groups()["captioner"], folder).training.output_dir)
    from hf_medvlm.training.folders import choose_output_dir

    return Path(choose_output_dir(place, "score", None, False))


def justify_output(made: Made, result: Any) -> str | None:
    use, _, folder = made.target
    if (folder / "file").read_text() != "x" or (folder / "full" / "run.json").read_text() != "{}":
        return None
    if use in ("json", "page", "index"):
        return "a whole file is there, and nothing else was touched" if result.is_file() else None
    return "nothing lies there that would be lost" if not os.path.lexists(result) or result.is_dir() else None


# ---------------------------------------------------------------- exports


def make_export(rng: Random, folder: Path) -> Made:
    if rng.random() < 0.4:
        place, what = _place(folder, rng)
        dtype = rng.choice([None, "float32", "bfloat16", "float64", "x", "", "Tensor"])
        given = (models._seed("git"), place, dtype, rng.choice(["5GB", "5GB", "x", "", "0", "-1GB", "1KB"]))
        return Made(
            given,
            f"--to {what} --dtype {dtype} --max_shard_size {given[3]}",
            [*_shown(place), "--to", "--dtype", "--max"],
        )
    made = models.make_checkpoint(rng, folder)
    to = str(folder / "exported")
    return Made((made.target, to, None, "5GB"), made.what, [*made.names, to], made.valid)


def read_export(made: Made) -> Any:
    from hf_medvlm.sharing.export import export_model

    run, to, dtype, size = made.target
    os.chdir(run)
    return export_model(run, to, dtype, size)


def justify_export(made: Made, result: Any) -> str | None:
    if (made.target[0] / "RAN").exists():
        return None
    whole = any(Path(result.folder).glob("model*.safetensors")) and (Path(result.folder) / "config.json").is_file()
    close = all(math.isfinite(value) and value < 1 for value in result.differences.values())
    return "what was written is whole and answers the same" if whole and close else None


# ---------------------------------------------------------------- pairs of reports


def make_pairs(rng: Random, folder: Path) -> Made:
    path = folder / "pairs.jsonl"
    rows = [{"study_id": f"s{n}", "chosen": f"{n}. {TEXT}", "rejected": "Clear."} for n in range(3)]
    if rng.random() < 0.1:
        return Made(path, mutate.special(path, rng), [path.name])
    content, what = mutate.json_text(rows, rng, lines=True)
    path.write_bytes(content)
    return Made(path, what, [path.name])


def read_pairs(made: Made) -> Any:
    from hf_medvlm.data.study import Study
    from hf_medvlm.families.chat.pairs import read_pairs as read

    return read(made.target, [Study(f"s{n}", f"p{n}") for n in range(3)])


def justify_pairs(made: Made, result: Any) -> str | None:
    """As many pairs as lines, and their texts are the file's."""
    written = made.target.read_bytes().decode("utf-16" if made.target.read_bytes()[:2] == b"\xff\xfe" else "utf-8-sig")
    lines = [json.loads(line) for line in written.splitlines() if line.strip()]
    same = [(pair.chosen, pair.rejected) for pair in result] == [(line["chosen"], line["rejected"]) for line in lines]
    return "the texts are the file's" if same else None


# ---------------------------------------------------------------- shards


def make_shards(rng: Random, folder: Path) -> Made:
    picture = (_pictures() / "0.png").read_bytes()
    rows: list[dict[str, Any]] = [
        {"study_id": f"s{n}", "patient_id": f"p{n}", "split": ("train", "test")[n % 2], "findings": TEXT}
        for n in range(4)
    ]
    kind = rng.choice(["tar", "tar", "parquet"])
    path, what = folder / f"shard.{kind}", ""
    if rng.random() < 0.08:
        return Made(path, f"{kind}: {mutate.special(path, rng)}", [path.name, f"*.{kind}", "--dataset"])
    if rng.random() < 0.6:
        changed, what = mutate.json_value(rows, rng)
        rows = [row if isinstance(row, dict) else {"odd": row} for row in changed] if isinstance(changed, list) else []
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = list(dict.fromkeys(str(name) for row in rows for name in row))
        cells = {n: [v if isinstance(v := row.get(n), str) else json.dumps(v) for row in rows] for n in names}
        safe = {n: [cell.encode("utf-8", "replace").decode() for cell in column] for n, column in cells.items()}
        images = [picture if rng.random() < 0.9 else rng.choice([b"", b"x", None]) for _ in rows]
        pq.write_table(pa.table(safe | {"image": pa.array(images, pa.binary())}), path, row_group_size=2)
    else:
        with tarfile.open(path, "w") as tar:
            for number, row in enumerate(rows):
                for name, content in ((f"{number}.json", json.dumps(row).encode()), (f"{number}.png", picture)):
                    if rng.random() < 0.08:
                        content, one = mutate.bytes_of(content, rng)
                        what = f"{what}; {name}: {one}"
                    info = tarfile.TarInfo(
                        rng.choice([f"../{name}", f"/{name}", name * 60]) if rng.random() < 0.03 else name
                    )
                    info.size = len(content)
                    if rng.random() < 0.03:
                        info.type, info.linkname = (
                            rng.choice([tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]),
                            "/etc",
                        )
                        info.size, content = 0, b""
                    tar.addfile(info, io.BytesIO(content))
    if rng.random() < 0.4:
        content, one = mutate.bytes_of(path.read_bytes(), rng)
        path.write_bytes(content)
        what = f"{what}; {one}"
    return Made(path, f"{kind}: {what}", [path.name, f"*.{kind}", "--dataset"])


def read_shards(made: Made) -> Any:
    from hf_medvlm.data.images import open_radiograph
    from hf_medvlm.data.load import load_splits

    before = os.environ.get("HF_MEDVLM_CACHE")
    os.environ["HF_MEDVLM_CACHE"] = str(made.target.parent / "cache")
    try:
        splits = load_splits(str(made.target.parent / f"*{made.target.suffix}"), verify_images=True)
    finally:
        if before is not None:
            os.environ["HF_MEDVLM_CACHE"] = before
    studies = [study for part in splits.studies.values() for study in part]
    sizes = {open_radiograph(splits.image_folder / image.path).size for study in studies for image in study.images}
    return studies, splits.rejected, sizes


def justify_shards(made: Made, result: Any) -> str | None:
    studies, rejected, sizes = result
    sound = studies_are_sound(studies) and all(study.images for study in studies)
    return "studies are sound, each with a picture that opens" if sound and sizes and all(sizes) else None


# ---------------------------------------------------------------- settings of launchers

OBJECTS: dict[str, dict[str, Any]] = {
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["BertLayer"],
        "reshard_after_forward": True,
        "cpu_offload": False,
        "state_dict_type": "FULL_STATE_DICT",
        "activation_checkpointing": False,
    },
    "accelerator_config": {
        "split_batches": False,
        "dispatch_batches": None,
        "even_batches": True,
        "use_seedable_sampler": True,
        "gradient_accumulation_kwargs": {"sync_each_batch": False},
    },
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "deepspeed": {
        "train_batch_size": 8,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "offload_param": {"device": "cpu"}},
        "fp16": {"enabled": False, "loss_scale": 0, "initial_scale_power": 16},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.999], "eps": 1e-8}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
        "steps_per_print": 100,
    },
}


def make_launch(rng: Random, folder: Path) -> Made:
    option = rng.choice(list(OBJECTS))
    path = folder / "settings.json"
    if rng.random() < 0.1:
        return Made((option, path), f"{option}: {mutate.special(path, rng)}", [path.name, f"--{option}"])
    content, what = mutate.json_text(OBJECTS[option], rng)
    path.write_bytes(content)
    return Made((option, path), f"{option}: {what}", [path.name, f"--{option}"])


def read_launch(made: Made) -> Any:
    from fuzzing.settings import _groups

    option, path = made.target
    if option == "deepspeed":
        from hf_medvlm.training.deepspeed import check_deepspeed, read_deepspeed

        check_deepspeed(str(path), 8, 1, 1)
        return read_deepspeed(str(path))
    words = [f"--{option}", str(path), "--output_dir", "out", *(["--fsdp", "True"] if option == "fsdp_config" else [])]
    training = parse_quietly(words, _groups()["captioner"], path.parent).training
    return training.fsdp_plugin_args if option == "fsdp_config" else getattr(training, option)


def justify_launch(made: Made, result: Any) -> str | None:
    """The library whose settings they are takes them."""
    option, _ = made.target
    if option == "deepspeed":
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        zero = {k: v for k, v in (result.get("zero_optimization") or {}).items() if v != "auto"}
        return "DeepSpeed's own class takes them" if DeepSpeedZeroConfig(**zero) else None
    if option == "fsdp_config":
        from accelerate.utils import FullyShardedDataParallelPlugin

        return "accelerate's own class takes them" if FullyShardedDataParallelPlugin(**result) else None
    if option == "gradient_checkpointing_kwargs":
        flags = {key: value for key, value in result.items() if key != "determinism_check"}
        return "each is a flag" if all(value is None or isinstance(value, bool) for value in flags.values()) else None
    from accelerate.utils import DataLoaderConfiguration

    kept = {
        key: value for key, value in result.to_dict().items() if key in DataLoaderConfiguration.__dataclass_fields__
    }
    are_flags = all(value is None or isinstance(value, bool) for value in kept.values())
    return "each is a flag" if are_flags and DataLoaderConfiguration(**kept) else None


READERS = [
    Reader("output paths", make_output, read_output, justify_output),
    Reader("exports", make_export, read_export, justify_export),
    Reader("pairs", make_pairs, read_pairs, justify_pairs),
    Reader("shards", make_shards, read_shards, justify_shards),
    Reader("launch settings", make_launch, read_launch, justify_launch),
]


def prepare() -> None:
    """Load before the workers are forked what takes seconds."""
    import deepspeed.runtime.precision_config
    import deepspeed.runtime.zero.config  # noqa: F401
