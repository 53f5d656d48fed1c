"""The captioners' tokenizer: a text that goes into `generate` is a prompt, so nothing ends it."""

from __future__ import annotations

import copy

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token")


def prompt_tokenizer(tokenizer: PreTrainedTokenizerBase, last: str | None = None) -> PreTrainedTokenizerFast:
    """The same vocabulary, writing `[CLS] text` where a BERT writes `[CLS] text [SEP]`.

    `[SEP]` ends a report: a model that is given it goes on after the end, and writes another report than it was scored
    with. transformers' own BERT tokenizer puts it back when it is loaded, so this is a plain fast tokenizer.

    Args:
        last: a token to put in the place of `[SEP]`. transformers' BLIP drops the last token of a prompt, whatever it
            is; it is given `[PAD]` to drop.
    """
    from tokenizers import processors

    if tokenizer.cls_token is None:
        raise ValueError(
            f"{tokenizer.name_or_path}: the tokenizer has no cls_token, which a report begins with; name one in its "
            "tokenizer_config.json"
        )
    tokens = [tokenizer.cls_token, *([] if last is None else [last])]
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{tokens[0]} $A {' '.join(tokens[1:])}".strip(),
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in tokens],
    )
    kept = {name: value for name in SPECIAL if (value := getattr(tokenizer, name)) is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        **kept,
    )
