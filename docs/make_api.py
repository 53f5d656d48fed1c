"""Write docs/api.md from the docstrings of the public names: `python docs/make_api.py`.

A name listed here that is not there stops it; so does a docstring that refers to a name of ours that is not there.
`tests/test_api_page.py` runs it, so that the page is never older than the code.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from pathlib import Path
from types import FunctionType, ModuleType

PAGE = Path(__file__).with_name("api.md")
SECTIONS = {
    "A trained model": ["hf_medvlm.load", "hf_medvlm.inference.Predictor"],
    "Models": [
        "hf_medvlm.BlipCaptioner",
        "hf_medvlm.GitCaptioner",
        "hf_medvlm.LlavaReporter",
        "hf_medvlm.DualEncoderModel",
        "hf_medvlm.PatchIBModel",
        "hf_medvlm.MedKlipModel",
        "hf_medvlm.BioViLTModel",
    ],
    "Training": [
        "hf_medvlm.MedVLMTrainer",
        "hf_medvlm.training.contrastive.ContrastiveTrainer",
        "hf_medvlm.training.arguments.MedVLMArguments",
        "hf_medvlm.training.arguments.parse",
        "hf_medvlm.training.run.fit",
    ],
    "Data": [
        "hf_medvlm.Study",
        "hf_medvlm.data.load.load_splits",
        "hf_medvlm.data.images.open_radiograph",
        "hf_medvlm.data.images.augment",
    ],
    "Language of reports": [
        "hf_medvlm.language.sections",
        "hf_medvlm.language.label_report",
        "hf_medvlm.language.extract_triplets",
        "hf_medvlm.language.describe_findings",
        "hf_medvlm.language.Description",
    ],
    "Metrics and evaluation": ["hf_medvlm.metrics.load", "hf_medvlm.evaluation.base.Evaluation"],
    "Losses": [
        "hf_medvlm.losses.info_nce",
        "hf_medvlm.losses.sigmoid_pairs",
        "hf_medvlm.losses.filip",
        "hf_medvlm.losses.gloria_local",
        "hf_medvlm.losses.mgca_local",
        "hf_medvlm.losses.token_alignment",
        "hf_medvlm.losses.sparsity",
        "hf_medvlm.losses.consistency",
        "hf_medvlm.losses.token_losses",
    ],
}
INTRODUCTION = """# Public names

Written by `docs/make_api.py` from the docstrings; change those, not this page.

`import hf_medvlm` brings neither torch nor transformers; each name is imported when it is first asked for.
`import hf_medvlm.families` registers all models and processors with the Auto classes.
"""


def resolve(name: str) -> object:
    """The object of a dotted name.

    Raises:
        LookupError: there is no such name.
    """
    value: object = importlib.import_module(name.partition(".")[0])
    place = name.partition(".")[0]
    for part in name.split(".")[1:]:
        if not hasattr(value, part) and isinstance(value, ModuleType):
            try:
                importlib.import_module(f"{place}.{part}")
            except ModuleNotFoundError:
                raise LookupError(f"{name}: {place} has no {part}") from None
        if part in getattr(value, "__dataclass_fields__", {}):
            return vars(value)["__dataclass_fields__"][part]
        if not hasattr(value, part):
            raise LookupError(f"{name}: {place} has no {part}")
        value, place = getattr(value, part), f"{place}.{part}"
    return value


def check_references(text: str, where: str) -> None:
    """Refuse a text that names something of ours which is not there: `hf_medvlm.x.y`, or `Study.text`.

    Raises:
        LookupError: a name that leads nowhere; the message says where it stands.
    """
    listed = {
        name.rpartition(".")[2]: name
        for names in SECTIONS.values()
        for name in names
        if name.rpartition(".")[2][0].isupper()
    }
    for dotted in re.findall(r"`(\w+(?:\.\w+)+)[`(]", text):
        first, _, rest = dotted.partition(".")
        if first == "hf_medvlm" or first in listed:
            try:
                resolve(dotted if first == "hf_medvlm" else f"{listed[first]}.{rest}")
            except LookupError as error:
                raise LookupError(f"{where} refers to `{dotted}`, which is not there ({error})") from None


def entry(name: str, level: int = 3) -> str:
    """Heading, signature and docstring of one name; for a class its documented public methods as well."""
    value = resolve(name)
    documentation = inspect.cleandoc(getattr(value, "__doc__", None) or "")
    if not documentation:
        raise LookupError(f"{name} has no docstring")
    check_references(documentation, name)
    parts = [f"{'#' * level} {name.removeprefix('hf_medvlm.') if level == 3 else name.rpartition('.')[2]}"]
    if callable(value) and not _is_long(value):
        parts.append(f"```python\n{_signature(name, value)}\n```")
    parts.append(_markdown(documentation))
    if inspect.isclass(value):
        parts += [entry(f"{name}.{method}", level + 1) for method in _methods(value)]
    return "\n\n".join(parts)


def _is_long(value: object) -> bool:
    """Whether a signature would fill the page: `TrainingArguments` and its kind."""
    return len(inspect.signature(value).parameters) > 40  # type: ignore[arg-type]


def _signature(name: str, value: object) -> str:
    signature = inspect.signature(value)  # type: ignore[arg-type]
    shown = [str(parameter) for parameter in signature.parameters.values() if parameter.name != "self"]
    parameters = [re.sub(r": ('|\")(.*?)\1", r": \2", text) for text in shown]
    parameters = [re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", text) for text in parameters]
    returned = "" if signature.return_annotation is signature.empty else f" -> {signature.return_annotation}"
    line = f"{name.rpartition('.')[2]}({', '.join(parameters)}){returned}"
    if len(line) <= 110:
        return line
    return f"{name.rpartition('.')[2]}(\n" + "".join(f"    {text},\n" for text in parameters) + f"){returned}"


def _methods(owner: type) -> list[str]:
    """Public methods and properties that the class itself defines and documents, in the order of the file."""
    kinds = (FunctionType, classmethod, staticmethod, property)
    return [
        name
        for name, member in vars(owner).items()
        if not name.startswith("_") and isinstance(member, kinds) and getattr(owner, name).__doc__
    ]


def _markdown(documentation: str) -> str:
    """A docstring as Markdown: `Args:`, `Returns:`, `Raises:` as blocks of their own, other indented text as it is."""
    blocks: list[str] = []
    for part in re.split(r"\n(?=(?:Args|Returns|Raises|Attributes|Ref|Yields|Example)[^\n]*:)", documentation):
        head, _, body = part.partition("\n")
        if re.match(r"(?:Args|Returns|Raises|Attributes|Yields|Example)[^\n]*:$", head) and body.strip():
            blocks.append(f"**{head.rstrip(':')}**\n\n```text\n{textwrap.dedent(body).strip()}\n```")
        else:
            blocks.append(_fenced(part))
    return "\n\n".join(blocks)


def _fenced(text: str) -> str:
    """Paragraphs as they are; paragraphs that are indented stand in a block of code."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    fenced = [f"```text\n{textwrap.dedent(p)}\n```" if p.startswith("    ") else p for p in paragraphs]
    return "\n\n".join(fenced)


def page() -> str:
    """The whole page.

    Raises:
        LookupError: a dead reference, or a name without a docstring.
    """
    parts = [INTRODUCTION.strip()]
    for title, names in SECTIONS.items():
        parts += [f"## {title}", *(entry(name) for name in names)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
