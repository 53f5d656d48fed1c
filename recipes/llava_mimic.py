"""Fine-tune LLaVA-1.5 on radiology conversations, with LLaVA's own command line.

    python recipes/llava_mimic.py                                     # a tiny model on made-up studies
    deepspeed recipes/llava_mimic.py --deepspeed ds_configs/zero3.json --config recipes/llava_mimic.yaml \\
        --data_path conversations.json --image_folder images
    deepspeed recipes/llava_mimic.py --deepspeed ds_configs/zero2.json --model_name_or_path liuhaotian/llava-v1.5-7b \\
        --lora_rank 128 --lora_alpha 256 --connector_lr 2e-5 --learning_rate 2e-4 --bf16 True \\
        --dataset master.jsonl --image_folder images
    python recipes/llava_mimic.py --data_path vqa_rad_cxr/qa.csv      # closed and open questions
"""

import sys

from hf_medvlm.families.chat.arguments import (
    DEFAULTS,
    TINY,
    ChatDataArguments,
    ChatModelArguments,
    ChatTrainingArguments,
    modernise_llava,
)
from hf_medvlm.families.chat.recipe import chat_trainer, load_conversations, load_reporter
from hf_medvlm.training.arguments import parse
from hf_medvlm.training.run import fit, run


def main(argv: list[str] | None = None) -> dict:
    groups = {"data": ChatDataArguments, "model": ChatModelArguments, "training": ChatTrainingArguments}
    words = modernise_llava(sys.argv[1:] if argv is None else argv)
    args = parse(__file__, words, defaults=DEFAULTS, tiny=TINY, **groups)
    splits = load_conversations(args)
    model, processor = load_reporter(args, splits)
    trainer = chat_trainer(model, processor, splits, args)
    return fit(trainer, splits, args)


if __name__ == "__main__":
    run(main)
