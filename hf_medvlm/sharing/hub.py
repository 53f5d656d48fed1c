"""The model card of a run, and its push to the Hub: private by default, and nothing but what loading the model needs.

`transformers`' own push sends whatever lies in the output folder, report texts among it; this one sends a list.
"""

from __future__ import annotations

import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_medvlm.data.files import atomic_open
from hf_medvlm.sharing.model_card import CARD, model_card, read_run

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
        ValueError: nothing to push; the repository would be public where the data's terms do not clearly allow it.
        OSError: the Hub could not be reached or refused; the run in `output_dir` is untouched.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(output_dir)
    info = read_run(folder)
    if not private and not public_acknowledged:
        check_may_be_public(info)
    if not any(path.suffix == ".safetensors" for path in files_to_push(folder)):
        raise ValueError(f"{folder} holds no *.safetensors, so there is no model to push; name a finished run")
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(url.repo_id).private:
            raise ValueError(
                f"the repository {url.repo_id} is there and is public; name another one with --hub_model_id, or say "
                "--hub_private_repo False to push to a public one"
            )
        write_model_card(folder, url.repo_id)
        sent = [CommitOperationAdd(path.name, path) for path in files_to_push(folder)]
        api.create_commit(url.repo_id, sent, commit_message=f"{info.get('model_class', 'Model')} from hf_medvlm")
    except ValueError:
        raise
    except Exception as error:  # the Hub's client raises errors of several libraries, which differ by its version
        raise OSError(
            f"the push to {repo_id} failed: {_first_line(error)}; the run is safe in {folder}; "
            f"try again with: python -m hf_medvlm push {folder} {repo_id}"
        ) from error
    return str(url)


def check_may_be_public(info: dict[str, Any]) -> None:
    """Refuse a public repository for weights that saw credentialed data, or data whose terms nobody stated.

    Raises:
        ValueError: with what was found and the way out.
    """
    stated = [*info.get("licences", []), *info.get("sources", [])]
    reason = None
    if any(word in text.lower() for text in [*stated, str(info.get("dataset", ""))] for word in CREDENTIALED):
        reason = f"these weights saw credentialed data ({'; '.join(stated) or info.get('dataset')})"
    elif not info.get("licences"):
        reason = f"nobody stated the licence of the data these weights saw ({info.get('dataset', 'unknown data')})"
    if reason:
        raise ValueError(
            f"{reason}, so they do not go into a public repository. Leave --hub_private_repo at True; or, where the "
            "data use agreement allows it, say so with --hub_public_acknowledged"
        )


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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return (
            f"the Hub did not answer as it should ({reason}); push later with: python -m hf_medvlm push <folder> <repo>"
        )
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
