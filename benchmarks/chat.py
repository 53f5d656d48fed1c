"""What chat training saves, side by side: `python benchmarks/chat.py` (on a GPU the 7B shape trains too).

tokenise   conversations a second: one call of the tokenizer and a mask by offsets, against every round tokenised
           anew to count its tokens (the straightforward way, LLaVA's `preprocess_v1`)
padding    share of padding in micro-batches of report lengths: random order, LLaVA's modality and length grouping,
           grouping by length, packing
TRL        encoding and masking beside TRL's collator, where it is installed: benchmarks/chat_beside_trl.py
train      the recipe's trainer on the 7B shape with random weights: tokens/s, peak memory and MFU with LoRA (rank 128)
           on one GPU, beside transformers' model, PEFT and the stock Trainer on the same batches; and of all of the
           language model under `ds_configs/zero3_offload.json`, whose optimizer takes 110 GiB of the machine's memory
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import chat_beside_trl
import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerBase, Trainer

from hf_medvlm.data.conversations import ASSISTANT, HUMAN, IMAGE, PROMPTS, Turn, from_llava
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.families.chat.arguments import ChatModelArguments, ChatTrainingArguments
from hf_medvlm.families.chat.collator import ChatCollator
from hf_medvlm.families.chat.model import LlavaReporter
from hf_medvlm.families.chat.recipe import ChatTrainer
from hf_medvlm.families.chat.sampling import group_by_modality_and_length
from hf_medvlm.families.chat.templates import END_TOKEN, SYSTEM, encode_conversations
from hf_medvlm.families.chat.tiny import make_processor, train_chat_tokenizer
from hf_medvlm.labels import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from hf_medvlm.training.callbacks import peak_memory_mb
from hf_medvlm.training.objective import TokenObjective
from hf_medvlm.training.parts import prepare_parts

WARM_UP = 2
# way to train, the connector whole in all -> (rank of the language model's adapters, DeepSpeed file)
STOCK = "LoRA, stock Trainer"
KINDS = {"LoRA": (128, None), STOCK: (128, None), "ZeRO-3, offload": (0, "zero3_offload.json")}
# CLIP ViT-L/14's, and what --small has in their place and the language model's
CLIP = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
CLIP |= {"num_attention_heads": 16, "projection_dim": 768}
SMALL = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4}

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


def make_tokenizer() -> PreTrainedTokenizerBase:
    return train_chat_tokenizer([SYSTEM, *PROMPTS, *SENTENCES], vocab_size=2000)


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


class Timed(Trainer):
    """Counts the tokens of the steps behind the warm-up, and notes when those begin."""

    steps, tokens, start = 0, 0, 0.0

    def training_step(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *rest: Any) -> torch.Tensor:
        if self.steps == WARM_UP:
            self.start = self._now()
        if self.steps >= WARM_UP:
            self.tokens += int(inputs["attention_mask"].sum())
        self.steps += 1
        return super().training_step(model, inputs, *rest)

    def rate(self) -> float:
        """Tokens a second, padding not counted, from the end of the warm-up until now."""
        return self.tokens / (self._now() - self.start)

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class TimedTrainer(Timed, ChatTrainer):
    """The recipe's trainer."""


def stock_lora(model: torch.nn.Module) -> torch.nn.Module:
    """What most scripts do: PEFT on every linear layer of the language model, the projector trained whole."""
    from peft import LoraConfig, get_peft_model

    model.enable_input_require_grads()
    layers = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    config = LoraConfig(r=128, lora_alpha=256, lora_dropout=0.05, target_modules=layers, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "multi_modal_projector" in name:
            parameter.requires_grad = True
    return model


def flops_a_token(model: torch.nn.Module) -> int:
    """For each weight of the language model's matrices 2 forward and 2 backward, and 2 more if it trains.

    The vision tower, attention itself and what checkpointing computes anew are not counted.
    """
    matrices = [
        parameter
        for name, parameter in model.named_parameters()
        if ("language_model" in name or "lm_head" in name) and "norm" not in name and "embed_tokens" not in name
    ]
    return sum((4 + 2 * p.requires_grad) * getattr(p, "ds_numel", p.numel()) for p in matrices)


def train(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """A few steps on made-up images and report-length conversations, in bfloat16 with gradient checkpointing."""
    rank, file = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        arguments = ChatTrainingArguments(
            output_dir=f"{folder}/run",
            deepspeed=file and str(Path(__file__).parents[1] / "ds_configs" / file),
            max_steps=options.steps + WARM_UP,
            per_device_train_batch_size=options.batch,
            bf16=True,
            gradient_checkpointing=True,
            learning_rate=1e-5,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            dataloader_num_workers=0 if options.small else 4,
            disable_tqdm=True,
        )
        tokenizer = make_tokenizer()
        sizes = SMALL if options.small else {}
        vision = CLIP | sizes | {"image_size": 336, "patch_size": 14}
        config = LlavaConfig(
            text_config=sizes | {"model_type": "llama"},
            vision_config=vision,
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        )
        # 7B random weights take minutes on a CPU; ZeRO-3 places its shards itself
        with torch.device(arguments.device) if file is None else nullcontext():
            model_class = LlavaForConditionalGeneration if kind == STOCK else LlavaReporter
            model = model_class._from_config(config, dtype=torch.bfloat16)
        if kind == STOCK:
            model = stock_lora(model)
        else:
            model = prepare_parts(model, ChatModelArguments(lora_rank=rank), checkpointing=True)
        records = []
        for number, turns in enumerate(make_conversations(options.batch * arguments.max_steps, 1)):
            noise = random.Random(number).randbytes(512 * 512)
            Image.frombytes("L", (512, 512), noise).save(f"{folder}/{number}.png")
            records.append(from_llava({"id": str(number), "image": f"{number}.png", "conversations": turns}))
        trainer = (Timed if kind == STOCK else TimedTrainer)(
            model=model,
            args=arguments,
            **({} if kind == STOCK else {"objective": TokenObjective()}),
            data_collator=ChatCollator(make_processor(tokenizer, vision["image_size"], vision["patch_size"]), folder),
            train_dataset=StudyRows(records),
        )
        trainer.train()
        rate = trainer.rate()
    tflops = rate * flops_a_token(trainer.accelerator.unwrap_model(trainer.model)) / 1e12
    return {"tokens": rate, "memory": peak_memory_mb() / 2**10, "tflops": tflops, "mfu": tflops / options.peak_tflops}


def time_training(options: argparse.Namespace) -> None:
    """Each way in a process of its own."""
    for kind in KINDS:
        ended = subprocess.run(
            [sys.executable, __file__, "--kind", kind, *sys.argv[1:]], capture_output=True, text=True
        )
        if ended.returncode:
            print(f"train     {kind}: cannot run here: {(ended.stderr.strip().splitlines() or ['killed'])[-1]}")
            continue
        measured = json.loads(ended.stdout.splitlines()[-1])
        share = measured["tflops"] / options.peak_tflops
        print(
            f"train     {kind}: {measured['tokens']:,.0f} tokens/s, {measured['memory']:.1f} GiB, "
            f"{measured['tflops']:.3g} TFLOP/s, MFU {share:.1%}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2048, help="conversations")
    parser.add_argument("--steps", type=int, default=10, help=f"timed steps of training, after {WARM_UP} that are not")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--peak_tflops", type=float, default=989, help="dense bfloat16 of the GPU (H100 SXM: 989)")
    parser.add_argument("--small", action="store_true", help="train a tiny model, here: to try that part without a GPU")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(train(options.kind, options)))
        return
    tokenizer = make_tokenizer()
    time_tokenising(tokenizer, options.count)
    measure_padding(tokenizer, options.count)
    chat_beside_trl.report(count=min(options.count, 256), batch=8)
    if torch.cuda.is_available() or options.small:
        time_training(options)
    else:
        print("train     no GPU here: tokens/s, memory and MFU of the 7B shape are not measured")


if __name__ == "__main__":
    main()
