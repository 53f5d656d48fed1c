"""The model card of a run, and its push to the Hub: private by default, and nothing but what loading the model needs.

`transformers`' own push sends whatever lies in the output folder, report texts among it; this one sends a list.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_medvlm.data.files import atomic_open, load_json, open_text
from hf_medvlm.data.licences import is_open
from hf_medvlm.data.secrets import masked, masked_values
from hf_medvlm.sharing.model_card import CARD, UNDESCRIBED, model_card, read_run
from hf_medvlm.sharing.prompts import check_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

# What `save_pretrained` of a model, tokenizer, image processor or peft adapter writes, and the card. Nothing else goes.
MAY_BE_PUSHED = (
    CARD,
    "config.json",
    "generation_config.json",
    "inference.json",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
SMALL_VOCABULARY = 5000
"""Published tokenizers have tens of thousands of entries; those that were trained here have 2,000."""
CREDENTIALED = ("mimic", "physionet", "credentialed")


def write_model_card(output_dir: str | Path, repo_id: str | None = None) -> Path:
    """Write the run's `README.md` from its saved results.

    Args:
        repo_id: what the lines that load the model name; by default a stand-in for this folder's path.

    Raises:
        ValueError: `output_dir` holds no finished run.
    """
    path = Path(output_dir) / CARD
    text = model_card(output_dir, repo_id)
    with atomic_open(path) as handle:
        handle.write(text)
    return path


def files_to_push(output_dir: str | Path) -> list[Path]:
    """The files of a run that a push sends: weights, configuration, tokenizer, processor, card; sorted by name.

    Only files that lie in `output_dir` itself and bear a name of `MAY_BE_PUSHED`: no predictions, no figures, no report
    page, no images, no logs, no `training_args.bin`, no checkpoints. A link is not followed out of the folder.
    """
    folder = Path(output_dir)
    named = (path for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in MAY_BE_PUSHED))
    return sorted(path for path in named if path.is_file() and not path.is_symlink())


_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LOCAL = re.compile(r"(file:|[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\])[^\n{}]+")
_DESCRIPTIONS = ("*config.json", "inference.json", "special_tokens_map.json")
"""The files whose values may name places; the other JSON files are word lists."""


def content_to_push(path: Path, local: Iterable[str] = ()) -> bytes | Path:
    """What a push sends of a file: the file itself, or a description without paths of this machine and without secrets.

    Args:
        local: names that look like Hub ids and are paths (see `local_starts`).

    Raises:
        ValueError: a description that is no JSON.
    """
    if not any(fnmatch(path.name, pattern) for pattern in _DESCRIPTIONS):
        return path
    before = load_json(path)
    after = masked_values(_without_places(before, frozenset(local)))
    return path if after == before else (json.dumps(after, indent=2, ensure_ascii=False) + "\n").encode()


def local_starts(folder: Path, info: dict[str, Any]) -> set[str]:
    """The folders that a run, and the adapter in it, started from, as they were named: `patient/7` may be a Hub id."""
    path, named = folder / "adapter_config.json", set(info.get("started_from") or ())
    base = str(load_json(path, dict).get("base_model_name_or_path") or "") if path.is_file() else ""
    if base and any((place / base).exists() for place in folder.resolve().parents):  # an earlier version's run
        named.add(base)
    return named


def _without_places(value: Any, local: frozenset[str], name: str = "") -> Any:
    """`value` with null where a text is a path of this machine, or a `..._name_or_path` that is no Hub id."""
    if isinstance(value, dict):
        return {key: _without_places(part, local, key) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_places(part, local, name) for part in value]
    if isinstance(value, str) and value:
        if value in local:
            return None
        if name.endswith("name_or_path") and (not _HUB_ID.fullmatch(value) or Path(value).exists()):
            return None
        if len(value) > 1 and _LOCAL.fullmatch(value):
            return None
    return value


def check_weights(folder: Path) -> None:
    """Raise `ValueError` where a run has no weights, or weights that are cut short."""
    from safetensors import SafetensorError, safe_open

    weights = [path for path in files_to_push(folder) if path.suffix == ".safetensors"]
    if not weights:
        raise ValueError(f"{folder} holds no *.safetensors, so there is no model to push; name a finished run")
    for path in weights:
        try:
            with safe_open(path, "np"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is cut short or no safetensors ({error}); save the model again") from error


def names_to_push(model: PreTrainedModel, processor: ProcessorMixin | None) -> list[str]:
    """The files a push of this model would send, before there is a run: what `--dry_run` lists.

    The weights count as one file; the Hub's own limit splits them above 50 GB.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        if getattr(model, "generation_config", None) is not None and model.can_generate():
            model.generation_config.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        return sorted({path.name for path in files_to_push(folder)} | {CARD, "model.safetensors"})


def push(
    output_dir: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    public_acknowledged: bool = False,
) -> str:
    """Send the files of `files_to_push` to a repository on the Hub, which is made if need be, in one commit.

    The card is written anew, so that its example loads `repo_id`.

    Args:
        repo_id: `name` or `owner/name`.
        private: for a repository that is made now; one that is there already must not be more public than this.
        public_acknowledged: the user said in words that these weights may go into a public repository.

    Returns:
        The repository's address.

    Raises:
        ValueError: nothing to push; the repository would be public where the data's terms do not clearly allow it; a
            tokenizer that may hold the names and numbers of private reports; a prompt that may name a patient.
        OSError: the Hub could not be reached or refused; the run in `output_dir` is untouched.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(output_dir)
    info = check_push(folder, private, public_acknowledged)
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(url.repo_id).private:
            raise ValueError(
                f"the repository {url.repo_id} is there and is public; name another one with --hub_model_id, or say "
                "--hub_private_repo False to push to a public one"
            )
        write_model_card(folder, url.repo_id)
        local = local_starts(folder, info)
        sent = [CommitOperationAdd(path.name, content_to_push(path, local)) for path in files_to_push(folder)]
        api.create_commit(url.repo_id, sent, commit_message=f"{info.get('model_class', 'Model')} from hf_medvlm")
    except ValueError:
        raise
    except Exception as error:  # the Hub's client raises errors of several libraries, which differ by its version
        raise OSError(
            f"the push to {repo_id} failed: {masked(_first_line(error))}; the run is safe in {folder}; "
            f"try again with: python -m hf_medvlm push {folder} {repo_id}"
        ) from error
    return str(url)


def check_push(folder: Path, private: bool, public_acknowledged: bool) -> dict[str, Any]:
    """What `push` checks before it asks the Hub anything; the run's `run.json`.

    Raises:
        ValueError: see `push`.
    """
    info = read_run(folder)
    if not public_acknowledged:
        if not private:
            check_may_be_public(info)
        check_tokenizer(folder, info)
        check_texts(folder)
    check_weights(folder)
    return info


def check_may_be_public(info: dict[str, Any]) -> None:
    """Refuse a public repository for weights that saw data whose licence is not known to be open (`is_open`).

    Raises:
        ValueError: with what was found and the way out.
    """
    licences, unstated = info.get("licences") or [], info.get("studies_without_licence") or 0
    stated = [*licences, *(info.get("sources") or [])]
    reason = None
    if any(word in text.lower() for text in [*stated, str(info.get("dataset", ""))] for word in CREDENTIALED):
        reason = f"these weights saw credentialed data ({'; '.join(stated) or info.get('dataset')})"
    elif not licences:
        reason = f"nobody stated the licence of the data these weights saw ({info.get('dataset', 'unknown data')})"
    elif unstated:
        reason = f"nobody stated the licence of {unstated:,} of the studies that these weights saw"
    elif closed := [licence for licence in licences if not is_open(licence)]:
        reason = f"these weights saw data under {closed[0]!r}, which is none of the licences known to be open"
    if reason:
        raise ValueError(
            f"{reason}, so they do not go into a public repository. Leave --hub_private_repo at True; or, where the "
            "data use agreement allows it, say so with --hub_public_acknowledged"
        )


def check_tokenizer(folder: Path, info: dict[str, Any]) -> None:
    """Refuse a tokenizer that was trained on reports, by all signs, where nothing says what it learnt of them.

    Versions before this mark kept every word, names and numbers among them. A vocabulary of more than
    `SMALL_VOCABULARY` entries is a published one; of reports whose licences are all open any word may go.

    Raises:
        ValueError: with what was found and the way out.
    """
    words = info.get("tokenizer_words", UNDESCRIBED)
    if words != UNDESCRIBED:
        return
    licences = info.get("licences") or []
    by_us = "tokenizer_words" not in info  # an earlier version's run; its licences are those of its reports
    if by_us and licences and not info.get("studies_without_licence") and all(map(is_open, licences)):
        return
    for path in files_to_push(folder):
        size = _vocabulary_size(path)
        if size is not None and size <= SMALL_VOCABULARY:
            raise ValueError(
                f"{path.name} holds {size:,} words, as a tokenizer does that was trained on reports, and run.json does "
                "not say which it learnt: it may name patients. Train again with this version, which learns public "
                "words alone, or say with --hub_public_acknowledged that these words may be shared"
            )


def _vocabulary_size(path: Path) -> int | None:
    """How many entries the vocabulary in a tokenizer's file has; None for a file that holds none."""
    if path.name == "vocab.txt":
        with open_text(path) as handle:
            return sum(1 for _ in handle)
    if path.name not in ("tokenizer.json", "vocab.json"):
        return None
    record = load_json(path, dict)
    model = record.get("model") if path.name == "tokenizer.json" else {"vocab": record}
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    return len(vocabulary) if isinstance(vocabulary, (dict, list)) else 0


def why_hub_unreachable(token: str | None = None) -> str | None:
    """None where the Hub answers and knows the user; otherwise the reason and the way out, for the preflight."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import LocalTokenNotFoundError

    if HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set; unset it, or leave out --push_to_hub"
    try:
        HfApi(token=token).whoami()
    except LocalTokenNotFoundError:
        return "no token; run `hf auth login`, or give --hub_token"
    except Exception as error:  # as in `push`
        reason = masked(_first_line(error))
        return (
            f"the Hub did not answer as it should ({reason}); push later with: python -m hf_medvlm push <folder> <repo>"
        )
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
