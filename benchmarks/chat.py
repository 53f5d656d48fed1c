"""What chat training saves, side by side: `python benchmarks/chat.py` (and `--steps 20` on a GPU, for the 7B shape).

tokenise   conversations a second: one call of the tokenizer and a mask by offsets, against every round tokenised
           anew to count its tokens (the straightforward way, LLaVA's `preprocess_v1`)
padding    share of padding in micro-batches of report lengths: random order, LLaVA's modality and length grouping,
           grouping by length, packing
gpu        tokens/s, peak memory and MFU of the 7B shape with random weights, LoRA (rank 128) and all of the language
           model; MFU counts 6 flops a trained weight and token, 4 where a weight is frozen, against --peak_tflops
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from hf_medvlm.collators.templates import END_TOKEN, SYSTEM, encode_conversations
from hf_medvlm.data.chat import ASSISTANT, HUMAN, IMAGE, PROMPTS, Turn
from hf_medvlm.labels import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from hf_medvlm.models.llava_tiny import train_chat_tokenizer
from hf_medvlm.training.sampling import group_by_modality_and_length

SENTENCES = (
    "The heart size and mediastinal contours are within normal limits.",
    "There is a small left pleural effusion with adjacent atelectasis.",
    "No pneumothorax is seen.",
    "The lungs are clear.",
    "Mild pulmonary vascular congestion has improved since the prior study.",
    "A right internal jugular line ends in the superior vena cava.",
    "No acute osseous abnormality.",
    "Opacity at the right base may represent pneumonia in the proper clinical setting.",
)


def make_conversations(count: int, rounds: int, seed: int = 0) -> list[list[Turn]]:
    """Reports of 2 to 12 sentences (as long as MIMIC-CXR's), with `rounds` questions each."""
    draw = random.Random(seed)
    batch = []
    for _ in range(count):
        turns: list[Turn] = []
        for number in range(rounds):
            mark = f"{IMAGE}\n" if number == 0 else ""
            turns.append({"from": HUMAN, "value": mark + draw.choice(PROMPTS)})
            length = min(max(round(draw.lognormvariate(1.7, 0.45)), 2), 12)
            turns.append({"from": ASSISTANT, "value": " ".join(draw.choices(SENTENCES, k=length))})
        batch.append(turns)
    return batch


def encode_by_rounds(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """LLaVA's way: the whole text, then every round and every instruction again, for their token counts."""

    def tokenize(text: str) -> list[int]:
        first, *rest = (tokenizer(piece).input_ids for piece in text.split(IMAGE))
        ids = list(first)
        for piece in rest:
            ids += [IMAGE_TOKEN_INDEX, *piece[1:]]
        return ids

    text = SYSTEM + " "
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        text += f"USER: {question['value']} ASSISTANT: {answer['value']}{END_TOKEN}"
    ids = tokenize(text)
    labels, place = list(ids), 1
    labels[0] = IGNORE_INDEX
    for number, part in enumerate(text.split(END_TOKEN)[:-1]):
        length = len(tokenize(part)) - (number > 0)
        asked = len(tokenize(part.split(" ASSISTANT: ")[0] + " ASSISTANT: ")) - 2 - (number > 0)
        labels[place : place + asked] = [IGNORE_INDEX] * asked
        place += length
    return {"input_ids": ids, "labels": labels}


def time_tokenising(tokenizer: PreTrainedTokenizerBase, count: int, repeats: int = 5) -> None:
    for rounds in (1, 4):
        batch = make_conversations(count, rounds)
        groups = [batch[start : start + 16] for start in range(0, count, 16)]
        ways = {
            "every round anew": lambda batch=batch: [encode_by_rounds(turns, tokenizer) for turns in batch],
            "by offsets": lambda groups=groups: [encode_conversations(group, tokenizer) for group in groups],
        }
        rates = {}
        for name, way in ways.items():
            seconds = []
            for _ in range(repeats):
                start = time.perf_counter()
                way()
                seconds.append(time.perf_counter() - start)
            rates[name] = count / min(seconds)
        slow, fast = rates.values()
        shown = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
        print(f"tokenise  {rounds} round(s): samples/s {shown}: {fast / slow:.1f} x")


def padding_share(lengths: Sequence[int], order: Sequence[int], size: int) -> float:
    """Padding as a share of all tokens of the padded batches."""
    batches = [[lengths[index] for index in order[start : start + size]] for start in range(0, len(order), size)]
    return 1 - sum(map(sum, batches)) / sum(len(batch) * max(batch) for batch in batches)


def measure_padding(tokenizer: PreTrainedTokenizerBase, count: int, size: int = 8) -> None:
    samples = encode_conversations(make_conversations(count, 1), tokenizer)
    for tokens, name in ((1, "text alone"), (576, "with 576 image tokens")):
        lengths = [len(sample["input_ids"]) + tokens - 1 for sample in samples]
        seeded = [torch.Generator().manual_seed(seed) for seed in range(3)]
        shuffled = torch.randperm(count, generator=seeded[0]).tolist()
        orders = {
            "random": shuffled,
            "LLaVA's groups": group_by_modality_and_length(lengths, size, 16, seeded[1]),
            "by length": sorted(shuffled, key=lengths.__getitem__),
        }
        shares = {name: padding_share(lengths, order, size) for name, order in orders.items()}
        shares["packed"] = padding_share([sum(lengths)], [0], 1)
        print(f"padding   {name}: " + ", ".join(f"{way} {share:.1%}" for way, share in shares.items()))


def time_gpu(steps: int, batch: int, text_tokens: int, peak_tflops: float) -> None:
    """One GPU, random weights of the 7B shape in bfloat16, gradient checkpointing, plain SGD."""
    from hf_medvlm.models.llava import LlavaReporter, LlavaReporterConfig
    from hf_medvlm.training.chatting import add_reporter_lora
    from hf_medvlm.training.llava_arguments import ChatModelArguments

    for trains in ("projector+lora", "projector+llm"):
        torch.cuda.reset_peak_memory_stats()
        with torch.device("cuda"):
            model = LlavaReporter._from_config(
                LlavaReporterConfig(text_config={"model_type": "llama", "vocab_size": 32000}, trains=trains),
                dtype=torch.bfloat16,
            )
        model.gradient_checkpointing_enable()
        trained = model
        if trains == "projector+lora":
            trained = add_reporter_lora(model, ChatModelArguments(trains=trains), checkpointing=True)
        weights = sum(p.numel() for p in model.model.language_model.parameters())
        learning = sum(p.numel() for p in trained.parameters() if p.requires_grad)
        optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=1e-6)
        ids = torch.randint(3, 31000, (batch, text_tokens + 576), device="cuda")
        ids[:, 1:577] = model.config.image_token_id
        labels = ids.masked_fill(ids == model.config.image_token_id, IGNORE_INDEX)
        pixels = torch.randn(batch, 3, 336, 336, device="cuda", dtype=torch.bfloat16)
        for step in range(steps + 3):
            if step == 3:
                torch.cuda.synchronize()
                start = time.perf_counter()
            trained(input_ids=ids, pixel_values=pixels, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.cuda.synchronize()
        rate = steps * ids.numel() / (time.perf_counter() - start)
        mfu = rate * (4 * weights + 2 * learning) / (peak_tflops * 1e12)
        memory = torch.cuda.max_memory_allocated() / 2**30
        print(f"gpu       {trains}: {rate:,.0f} tokens/s, {memory:.0f} GiB, MFU {mfu:.0%}")
        del model, trained, optimizer
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2048, help="conversations")
    parser.add_argument("--steps", type=int, default=10, help="timed steps on a GPU")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--text_tokens", type=int, default=256)
    parser.add_argument("--peak_tflops", type=float, default=989, help="dense bfloat16 of the GPU (H100 SXM: 989)")
    options = parser.parse_args()
    tokenizer = train_chat_tokenizer([SYSTEM, *PROMPTS, *SENTENCES], vocab_size=2000)
    time_tokenising(tokenizer, options.count)
    measure_padding(tokenizer, options.count)
    if torch.cuda.is_available():
        time_gpu(options.steps, options.batch, options.text_tokens, options.peak_tflops)
    else:
        print("gpu       none here: tokens/s, memory and MFU are not measured")


if __name__ == "__main__":
    main()
