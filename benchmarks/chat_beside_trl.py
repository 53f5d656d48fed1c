"""Encoding and masking of images and text beside TRL's collator for supervised fine-tuning, on the same samples.

    python benchmarks/chat_beside_trl.py [--count 64] [--batch 8]          # also the last part of benchmarks/chat.py

TRL takes what it calls prompt-completion: one question, one answer. Both sides read the same pictures with the same
processor (a small Qwen2.5-VL); they run in turn, so that the ratio holds on a busy machine too. Then the cases that one
of them answers and the other does not, each one tried on both.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from hf_medvlm.data.conversations import ASSISTANT, HUMAN, IMAGE, PROMPTS, Turn
from hf_medvlm.families.chat.messages import encode_batch, encode_messages
from hf_medvlm.families.chat.processors import stop_ids
from hf_medvlm.families.chat.tiny_qwen import tiny_qwen_processor, train_byte_tokenizer
from hf_medvlm.families.chat.turns import as_messages
from hf_medvlm.labels import IGNORE_INDEX

SENTENCES = (
    "The heart size and mediastinal contours are within normal limits.",
    "There is a small left pleural effusion with adjacent atelectasis.",
    "No pneumothorax is seen.",
    "The lungs are clear.",
    "Mild pulmonary vascular congestion has improved since the prior study.",
)
Sample = tuple[str, str, Image.Image]


def make_samples(count: int, size: int = 192) -> list[Sample]:
    """Question, report of 2 to 6 sentences, picture."""
    draw = random.Random(0)
    return [
        (
            draw.choice(PROMPTS),
            " ".join(draw.choices(SENTENCES, k=draw.randint(2, 6))),
            Image.frombytes("L", (size, size), draw.randbytes(size * size)).convert("RGB"),
        )
        for _ in range(count)
    ]


def turns_of(sample: Sample) -> list[Turn]:
    question, answer, _ = sample
    return [{"from": HUMAN, "value": f"{IMAGE}\n{question}"}, {"from": ASSISTANT, "value": answer}]


def ours(samples: Sequence[Sample], processor: Any, **options: Any) -> dict[str, torch.Tensor]:
    conversations = [as_messages(turns_of(sample)) for sample in samples]
    return encode_batch(conversations, [[picture] for _, _, picture in samples], processor, **options)


def theirs(samples: Sequence[Sample], processor: Any, **options: Any) -> dict[str, torch.Tensor]:
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    examples = [
        {
            "images": [picture],
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": answer}]}],
        }
        for question, answer, picture in samples
    ]
    return DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True, **options)(examples)


def compare(samples: Sequence[Sample], processor: Any) -> str:
    """How ids and labels differ, in words."""
    mine, other = ours(samples, processor), theirs(samples, processor)
    rows = len(samples)
    ids = sum(
        a[m.bool()].tolist() == b[n.bool()].tolist()
        for a, m, b, n in zip(
            mine["input_ids"], mine["attention_mask"], other["input_ids"], other["attention_mask"], strict=True
        )
    )
    pixels = torch.equal(mine["pixel_values"], other["pixel_values"])
    supervised = [[row[row != IGNORE_INDEX].tolist() for row in batch["labels"]] for batch in (mine, other)]
    equal = sum(a == b for a, b in zip(*supervised, strict=True))
    tails = {processor.tokenizer.decode(b[len(a) :]) for a, b in zip(*supervised, strict=True) if b[: len(a)] == a}
    more = "" if equal == rows else f"; TRL supervises {sorted(tails)!r} beyond the answer and its stop token"
    return f"ids equal in {ids} of {rows}, pixels {'equal' if pixels else 'differ'}, labels equal in {equal}{more}"


def rates(samples: Sequence[Sample], processor: Any, batch: int, rounds: int = 3) -> dict[str, float]:
    """Samples a second of both, taken in turn; `ratio` is the median of the pairs."""
    groups = [samples[start : start + batch] for start in range(0, len(samples), batch)]
    seconds: dict[str, list[float]] = {"ours": [], "TRL": []}
    for _ in range(rounds):
        for name, way in (("ours", ours), ("TRL", theirs)):
            start = time.perf_counter()
            for group in groups:
                way(group, processor)
            seconds[name].append(time.perf_counter() - start)
    by_name = {name: len(samples) / min(taken) for name, taken in seconds.items()}
    return by_name | {"ratio": statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))}


# ------------------------------------------------------------------------------------------- cases


def _outcome(way: Callable[[], Any], tell: Callable[[Any], str]) -> str:
    try:
        return tell(way())
    except Exception as error:  # whatever it is, it is what the user would see
        return f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"


def cases(sample: Sample, processor: Any) -> dict[str, tuple[str, str]]:
    """Case -> what ours does with it, what TRL's collator does."""
    tokenizer = processor.tokenizer

    def supervised(batch: dict[str, torch.Tensor]) -> str:
        labels = batch["labels"][0]
        return f"supervises {tokenizer.decode(labels[labels != IGNORE_INDEX])[-60:]!r}"

    def both(changed: Any, **options: Any) -> tuple[str, str]:
        return (
            _outcome(lambda: ours([sample], changed, **options), supervised),
            _outcome(lambda: theirs([sample], changed, **options), supervised),
        )

    def images_kept(batch: dict[str, torch.Tensor]) -> str:
        left = int((batch["input_ids"] == processor.image_token_id).sum())
        wanted = int(batch["image_grid_thw"].prod(-1).sum()) // processor.image_processor.merge_size**2
        return f"{left} of the {wanted} tokens of the image left"

    dropping, endless = copy.copy(processor), copy.copy(processor)
    # a template that reads a text where its content is a list of blocks: it writes nothing of it
    dropping.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
        "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    endless.chat_template = processor.chat_template.replace(
        "<|im_end|>\n", "{% if message['role'] != 'assistant' %}<|im_end|>\n{% endif %}"
    )
    short = 12  # tokens: within the image
    rounds = [
        *turns_of(sample),
        {"from": HUMAN, "value": "Is there a pneumothorax?"},
        {"from": ASSISTANT, "value": "No."},
    ]
    two = _outcome(lambda: encode_messages(rounds, [sample[2]], processor), lambda b: f"supervises {_runs(b)} answers")
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    roles = {HUMAN: "user", ASSISTANT: "assistant"}
    talk = [{"role": roles[turn["from"]], "content": turn["value"].removeprefix(f"{IMAGE}\n")} for turn in rounds]
    masked = DataCollatorForVisionLanguageModeling(processor, assistant_only_loss=True)
    other = _outcome(
        lambda: masked([{"images": [sample[2]], "messages": talk}]), lambda b: f"supervises {_runs(b)} answers"
    )
    return {
        "a template that drops the texts": both(dropping),
        "a template that does not end the answer": both(endless),
        "a length limit within the image": (
            _outcome(lambda: ours([sample], processor, max_length=short), images_kept),
            _outcome(lambda: theirs([sample], processor, max_length=short), images_kept),
        ),
        "two rounds, both answers supervised": (two, other),
    }


def _runs(batch: dict[str, torch.Tensor]) -> int:
    kept = (batch["labels"][0] != IGNORE_INDEX).int()
    return int((kept.diff(prepend=kept.new_zeros(1)) == 1).sum())


def report(count: int, batch: int) -> None:
    """Print the comparison, or why there is none."""
    if importlib.util.find_spec("trl") is None:
        print("TRL       is not installed; pip install trl, and the comparison is printed here")
        return
    import trl

    samples = make_samples(count)
    tokenizer = train_byte_tokenizer([*SENTENCES, *PROMPTS], vocab_size=600)
    processor = tiny_qwen_processor(tokenizer, 96)
    assert stop_ids(processor)
    print(f"TRL {trl.__version__}, {count} samples with an image each, in batches of {batch}")
    print(f"TRL       {compare(samples[:batch], processor)}")
    rate = rates(samples, processor, batch)
    print(f"TRL       samples/s ours {rate['ours']:,.0f}, TRL {rate['TRL']:,.0f}: {rate['ratio']:.2f} x, taken in turn")
    for case, (mine, other) in cases(samples[0], processor).items():
        print(f"TRL       {case}: ours {mine}; TRL {other}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64, help="samples")
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    report(options.count, options.batch)


if __name__ == "__main__":
    main()
