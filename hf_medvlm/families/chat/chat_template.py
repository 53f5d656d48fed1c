"""LLaVA's conversation templates in the form that transformers renders: kept in the run's folder for everyone else.

`pipeline("image-text-to-text")`, vLLM and text-generation-inference render the messages of a chat with the template
beside the weights. It must give the very token ids that the model was trained on, so `set_chat_template` compares.
"""

from __future__ import annotations

from typing import Any

from transformers import LlavaProcessor

from hf_medvlm.data.conversations import ASSISTANT, HUMAN, IMAGE
from hf_medvlm.families.chat.templates import END_TOKEN, SYSTEM, encode_questions
from hf_medvlm.labels import IMAGE_TOKEN_INDEX

# A turn's text: its images first, a line each, then what is said; text alone may be a plain string.
_TEXT = """
{%- macro words(message) -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- set said = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') | trim -%}
{%- set marks = message['content'] | selectattr('type', 'equalto', 'image') | list | length -%}
{{ (('IMAGE' ~ BREAK) * marks) ~ said }}
{%- endif -%}
{%- endmacro -%}
"""
_TURNS = """
{%- if messages[0]['role'] == 'system' -%}{{ words(messages[0]) ~ BEHIND }}{%- else -%}{{ SYSTEM }}{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ ASK ~ words(message) }}
{%- elif message['role'] == 'assistant' -%}{{ ANSWER ~ ' ' ~ words(message) ~ END }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ ANSWER }}{%- endif -%}
"""
# LLaVA's stage 1: images, and the caption at once.
_PLAIN = """
{%- for message in messages -%}
{%- if message['role'] == 'user' and message['content'] is not string -%}
{{ 'IMAGE' * (message['content'] | selectattr('type', 'equalto', 'image') | list | length) }}
{%- elif message['role'] == 'assistant' -%}{{ words(message) ~ '\\n' }}
{%- endif -%}
{%- endfor -%}
"""
# A language model's own template takes strings: the parts of a message are put together first.
_OWN = """
{%- set ns = namespace(turns=[]) -%}
{%- for message in messages -%}
{%- set ns.turns = ns.turns + [{'role': message['role'], 'content': words(message)}] -%}
{%- endfor -%}
{%- set messages = ns.turns -%}
"""
_WORDS = {
    "v1": {"SYSTEM": SYSTEM + " ", "BEHIND": " ", "ASK": "USER: ", "ANSWER": " ASSISTANT:", "END": END_TOKEN},
    "mistral_instruct": {"SYSTEM": "", "BEHIND": "", "ASK": "[INST] ", "ANSWER": " [/INST]", "END": f" {END_TOKEN}"},
}
_WORDS["vicuna_v1"] = _WORDS["v1"]


def chat_template(template: str, tokenizer_template: str | None = None, image_break: str = "\n") -> str:
    """The Jinja template of one of `templates.TEMPLATES`.

    Args:
        tokenizer_template: the tokenizer's own template, for "tokenizer".
        image_break: what stands behind each image.
    """
    if template == "plain":
        body = _PLAIN
    elif template == "tokenizer":
        body = _OWN + (tokenizer_template or "")
    else:
        body = _TURNS
        for name, value in _WORDS[template].items():
            body = body.replace(name, repr(value))
    return (_TEXT.replace("BREAK", repr(image_break)) + body).replace("IMAGE", IMAGE)


def set_chat_template(processor: LlavaProcessor, template: str, question: str) -> bool:
    """Give `processor` the template that the model is trained with.

    Text behind an image is tokenised by itself, as LLaVA does; some tokenizers then put a mark for a space in front,
    which a text in one piece needs written out. Both forms are tried.

    Args:
        question: what is asked of one image, to compare token ids with.

    Returns:
        Whether it gives the token ids of training; if not, the form that is nearest is kept.
    """
    turns = [{"from": HUMAN, "value": f"{IMAGE}\n{question}"}, {"from": ASSISTANT, "value": ""}]
    wanted = encode_questions(turns, processor.tokenizer, template, images=1)
    wanted = [processor.image_token_id if token == IMAGE_TOKEN_INDEX else token for token in wanted]
    template_before = processor.tokenizer.chat_template
    forms = [chat_template(template, template_before, image_break) for image_break in ("\n", " \n")]
    for form in forms:
        processor.chat_template = form
        if _rendered_ids(processor, question) == wanted:
            return True
    processor.chat_template = forms[0]
    return False


def _rendered_ids(processor: LlavaProcessor, question: str) -> list[int]:
    """The token ids of one question about one image, the image still one token."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    bos = processor.tokenizer.bos_token
    begins = bool(bos) and text.startswith(bos)
    return processor.tokenizer(text, add_special_tokens=not begins).input_ids
