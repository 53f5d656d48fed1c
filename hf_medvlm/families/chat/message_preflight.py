"""What the preflight says of a chat model: its prompts, what is supervised, image tokens, lengths, memory by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_medvlm.data.study import Study
from hf_medvlm.families.chat.message_collator import MessageCollator
from hf_medvlm.families.chat.processors import stop_ids, writes_date
from hf_medvlm.families.chat.rendering import chat_template_of, render
from hf_medvlm.labels import IGNORE_INDEX
from hf_medvlm.training.checks import OK, STOP, WARNING, Checks
from hf_medvlm.training.parts import PARTS, parts_of

LOOKED_AT = 8  # studies whose tokens are counted: the longest texts
SHOWN = 600  # characters of a prompt
GIB = 2**30


def check_messages(checks: Checks, model: Any, collator: MessageCollator, studies: Sequence[Study], show: bool) -> None:
    """One line for each thing that goes wrong in silence elsewhere.

    Args:
        show: print the prompts of two samples (their texts are in them).
    """
    if show:
        for study in studies[:2]:
            checks.add(OK, "prompt", marked_prompt(collator, study))
    _stops(checks, model, collator, studies)
    _template(checks, collator)
    _lengths(checks, collator, studies)
    _memory(checks, model)


def marked_prompt(collator: MessageCollator, study: Study) -> str:
    """The rendered text of a study, the supervised parts between ⟦ and ⟧."""
    rendered = render(collator.messages(study), collator.processor)
    text, end = "", 0
    for start, stop in rendered.answers:
        text += f"{rendered.text[end:start]}⟦{rendered.text[start:stop]}⟧"
        end = stop
    text += rendered.text[end:]
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def _stops(checks: Checks, model: Any, collator: MessageCollator, studies: Sequence[Study]) -> None:
    labels = collator([studies[0]])["labels"].flatten()
    last = int(labels[labels != IGNORE_INDEX][-1])
    stops = stop_ids(collator.processor, model.generation_config)
    name = collator.tokenizer.convert_ids_to_tokens(last)
    if last in stops:
        checks.add(OK, "stop token", f"answers end in {name!r}, which generation stops at")
    else:
        checks.add(WARNING, "stop token", f"the first answer ends in {name!r}, no stop token: it was cut to the limit")
    added = render(collator.messages(studies[0]), collator.processor).added
    if added:
        checks.add(OK, "stop token", f"the template ends no last answer; {added!r} is put after it")


def _template(checks: Checks, collator: MessageCollator) -> None:
    """What the template writes by itself before the first text of a conversation."""
    probe = "QUESTION"
    turns = [{"role": r, "content": [{"type": "text", "text": probe}]} for r in ("user", "assistant")]
    before = render(turns, collator.processor).text.partition(probe)[0]
    checks.add(OK, "template", f"writes {before!r} before a question")
    if writes_date(chat_template_of(collator.processor)):
        processor: Any = collator.processor
        date = processor.template_date.isoformat()
        checks.add(OK, "template", f"writes a date; for the whole run it is that of {date}")


def _lengths(checks: Checks, collator: MessageCollator, studies: Sequence[Study]) -> None:
    def size(study: Study) -> int:
        talked = collator.talk(study)
        return sum(len(turn["value"]) for turn in talked.conversations) + 4000 * len(talked.images)

    counts = [collator.token_counts(study) for study in sorted(studies, key=size)[-LOOKED_AT:]]
    images = [tokens for _, of_study in counts for tokens in of_study]
    if images:
        checks.add(OK, "image tokens", f"{min(images)} to {max(images)} an image")
    longest, limit = max(total for total, _ in counts), collator.max_length
    lengths = f"{longest} tokens in the longest of {len(counts)} looked at, images included; the limit is {limit}"
    if longest <= limit:
        checks.add(OK, "length", lengths)
    else:
        checks.add(WARNING, "length", lengths + ": its text will be cut at the end; raise --model_max_length")


def _memory(checks: Checks, model: Any) -> None:
    parts = parts_of(model)
    sizes = dict.fromkeys(PARTS, 0)
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        number = getattr(parameter, "ds_numel", parameter.numel())
        counts[parts.part_of(name)] += number
        sizes[parts.part_of(name)] += number * parameter.element_size()
    lines = [f"{part} {counts[part]:,} parameters, {sizes[part] / GIB:.2f} GiB" for part in PARTS]
    state = OK if all(counts.values()) else STOP
    checks.add(state, "parts", "; ".join(lines))
