"""The model card: what data the weights saw, how they score and by which rules, what they are not for. Text only.

It is written from `run.json` and the results, which hold numbers and names: no study's text, id or picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_medvlm.data.files import load_json
from hf_medvlm.data.licences import is_open
from hf_medvlm.figures.checked import INFO, RESULTS
from hf_medvlm.figures.results import read_object
from hf_medvlm.metrics.clinical import missing_lines

UNDESCRIBED = "unknown"
"""`tokenizer_words` of a run that began with a folder which does not say what its tokenizer learnt."""
CARD = "README.md"
OURS = ("dual_encoder", "patch_ib", "medklip", "biovil_t")
"""The `model_type`s that transformers does not know."""
LIMITS = """\
- **It suggests, never decides.** It is no medical device. No diagnosis, treatment or triage may rest on it, and every
  output needs to be read by a radiologist beside the image.
- Scores below hold for the test split named here and for no other hospital, scanner, population or report style.
- It can miss findings that are there and name findings that are not, in fluent words; fluency is no sign of truth.
- It may reproduce biases and phrases of its training reports. Do not expose it to people who may not see such data."""


def model_card(output_dir: str | Path, repo_id: str | None = None) -> str:
    """The text of the card of the run in `output_dir`.

    Args:
        repo_id: what the loading lines name; a stand-in for the folder's path where it is not given.

    Raises:
        ValueError: there is no `run.json`.
    """
    folder = Path(output_dir)
    info = read_run(folder)
    split, results = _results(folder)
    name = repo_id or f"path/to/{folder.resolve().name}"
    parts = [
        _front_matter(info),
        f"# {name.rpartition('/')[2]}",
        f"A `{info.get('model_class', 'model')}` for chest radiographs and their reports"
        + (f", {info['parameters']:,} parameters" if info.get("parameters") else "")
        + f", trained with `hf_medvlm` {info.get('hf_medvlm', '')}.".replace(" .", "."),
        "## Limits\n\n" + LIMITS,
        "## How to load it\n\n" + _loading(folder, name),
        "## Data\n\n" + _data(info),
        f"## Scores on the {split} split\n\n" + _scores(results),
        _audit(results),
        "## Training\n\n" + _training(info),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def read_run(folder: Path) -> dict[str, Any]:
    """`run.json` of a finished run.

    Raises:
        ValueError: it is not there.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run.json, so it is no finished run; name the --output_dir of one")
    return read_object(path, INFO)


def is_named_on_the_hub(dataset: str) -> bool:
    """Whether a data set's name is a Hub id, which may be printed, and not a path of somebody's machine."""
    return dataset.count("/") == 1 and not dataset.startswith((".", "/", "~")) and not Path(dataset).suffix


def _results(folder: Path) -> tuple[str, dict[str, Any]]:
    for split in ("test", "eval"):
        path = folder / f"{split}_results.json"
        if path.is_file():
            return {"test": "test", "eval": "validation"}[split], read_object(path, RESULTS)
    return "test", {}


def _front_matter(info: dict[str, Any]) -> str:
    import yaml

    data: dict[str, Any] = {"library_name": "transformers", "language": "en"}
    data["tags"] = ["hf_medvlm", "medical", "radiology", "chest-x-ray"]
    if is_named_on_the_hub(str(info.get("dataset", ""))):
        data["datasets"] = [info["dataset"]]
    return f"---\n{yaml.safe_dump(data, sort_keys=False)}---"


def _loading(folder: Path, name: str) -> str:
    if (folder / "adapter_config.json").is_file():
        return (
            "The folder holds a LoRA adapter; `peft.PeftModel.from_pretrained(base, folder)` puts it on its base model."
        )
    if _model_type(folder) in OURS:
        first, kind = "import hf_medvlm.families\n", "AutoModel"
        note = "The first line registers the family with the Auto classes; it needs `hf_medvlm` installed."
    else:
        first, kind, note = (
            "",
            "AutoModelForImageTextToText",
            "This is a model of transformers; nothing else is needed.",
        )
    lines = f"{first}from transformers import {kind}, AutoProcessor\n"
    lines += f'model = {kind}.from_pretrained("{name}")\nprocessor = AutoProcessor.from_pretrained("{name}")'
    return f"```python\n{lines}\n```\n\n{note}"


def _model_type(folder: Path) -> str:
    """The `model_type` of the folder's config; empty where there is none."""
    path = folder / "config.json"
    return str(load_json(path, dict).get("model_type", "")) if path.is_file() else ""


KNOWN_SOURCES = ("synthetic", "MIMIC-CXR", "IU X-ray (Open-i)", "NIH ChestX-ray14", "ROCO", "VQA-RAD", "SLAKE")
KNOWN_LICENCES = ("PhysioNet Credentialed Health Data License 1.5.0", "CC BY-NC-ND 4.0")


def _named(values: list[str], known: tuple[str, ...], is_known: Callable[[str], bool], what: str) -> str:
    """Values that everybody knows by their name; of all others, which may be a ward's or a person's, the number."""
    names = [value for value in values if value in known or is_known(value)]
    others = len(values) - len(names)
    return "; ".join([*names, *([f"{others} {what}"] if others else [])])


def _words_of(info: dict[str, Any]) -> str:
    """What the pushed tokenizer holds of the reports, where it was trained on them."""
    words = info.get("tokenizer_words")
    known = isinstance(words, str) and words != UNDESCRIBED
    return f" The tokenizer was trained on the reports; it holds {words}." if known else ""


def _data(info: dict[str, Any]) -> str:
    dataset = str(info.get("dataset", "not stated"))
    named = is_named_on_the_hub(dataset) or dataset in ("synthetic", "not stated")
    shown = dataset if named else "files of its owner's"
    unstated = info.get("studies_without_licence") or 0
    licences = _named(info.get("licences") or [], KNOWN_LICENCES, is_open, "not among those known to be open")
    if licences and unstated:
        licences += f"; {unstated:,} studies without any"
    sizes = ", ".join(f"{count:,} {split}" for split, count in (info.get("split_sizes") or {}).items())
    rows = {
        "data set": shown,
        "sources": _named(info.get("sources") or [], KNOWN_SOURCES, lambda _: False, "named in the data")
        or "not stated",
        "licence of the data": licences or "not stated: find out before you share anything",
        "studies": sizes or "not stated",
        "patients": f"{info['patients']:,}" if info.get("patients") else "not stated",
        "left out": "; ".join(f"{n} x {why}" for why, n in (info.get("rejected") or {}).items()) or "nothing",
        "hash of the studies": f"`{info.get('data_hash', 'not stated')}`",
    }
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items())
    held = f"No text, image or identifier of a study is a file of this repository.{_words_of(info)}"
    return f"| | |\n|---|---|\n{table}\n\n{held} Weights can give back what they were trained on."


def _scores(results: dict[str, Any]) -> str:
    metrics = {k: v for k, v in (results.get("metrics") or {}).items() if "/" not in k}
    if not metrics:
        return "This run was not scored."
    baselines = results.get("baselines") or {}
    intervals, protocol = results.get("intervals") or {}, results.get("protocol") or {}
    heads = ["score", "value", "95 % interval", *(_words(name) for name in baselines)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, value in metrics.items():
        low_high = " to ".join(map(_number, intervals[name])) if intervals.get(name) else ""
        beside = [_number(values[name]) if name in values else "" for values in baselines.values()]
        lines.append("| " + " | ".join(map(_cell, [f"`{name}`", _number(value), low_high, *beside])) + " |")
    count = f"{results['n']:,} studies. " if results.get("n") else ""
    trivial = "The columns of trivial baselines show what no skill at all scores." if baselines else ""
    rules: dict[str, list[str]] = {}
    for name in metrics:
        if rule := protocol.get(name):
            rules.setdefault(rule, []).append(f"`{name}`")
    how = [f"- {', '.join(names)}: {_cell(rule)}" for rule, names in rules.items()]
    missing = [_cell(line) for line in missing_lines(results.get("figures") or {})]
    return "\n\n".join([f"{count}{trivial}", "\n".join(lines), *missing, "How they were measured:", "\n".join(how)])


def _audit(results: dict[str, Any]) -> str:
    """What the reports get wrong, by finding; "" where no reports were written."""
    table = (results.get("figures") or {}).get("audit") or {}
    kinds = list(dict.fromkeys(kind for row in table.values() for kind in row))
    if not kinds:
        return ""
    lines = ["| finding | " + " | ".join(map(_words, kinds)) + " |", "|---" * (len(kinds) + 1) + "|"]
    for finding, row in table.items():
        cells = [finding]
        for kind in kinds:
            one = row.get(kind)
            span = f" [{_number(one['low'])} to {_number(one['high'])}]" if one and one.get("low") is not None else ""
            cells.append(f"{_number(one['rate'])}{span}, {one['errors']} of {one['of']}" if one else "")
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    about = "Share of errors, 95 % interval by patient, and counts; what each kind counts stands above."
    return "## Errors in the reports, by finding\n\n" + about + "\n\n" + "\n".join(lines)


def _training(info: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in (info.get("versions") or {}).items())
    rows = {
        "recipe": f"`{info['recipe']}.py`" if info.get("recipe") else "",
        "steps": f"{info['steps']:,}" if info.get("steps") else "",
        "trained parameters": f"{info['trainable_parameters']:,}" if info.get("trainable_parameters") else "",
        "seed": str(info.get("seed", "")),
        "versions": versions,
    }
    lines = [f"| {key} | {_cell(value)} |" for key, value in rows.items() if value]
    return "| | |\n|---|---|\n" + "\n".join(lines) if lines else ""


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "undefined"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cell(text: str) -> str:
    """Text that stays inside its table cell or list item and is no HTML."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
