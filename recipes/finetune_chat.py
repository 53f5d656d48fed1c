"""Fine-tune any chat model that reads images: MedGemma, Qwen-VL, SmolVLM, InternVL, LLaVA-NeXT and others.

    python recipes/finetune_chat.py                                   # a tiny model on made-up studies
    python recipes/finetune_chat.py --config recipes/medgemma.yaml --dataset master.jsonl --image_folder images
    torchrun --nproc_per_node 8 recipes/finetune_chat.py --model_name_or_path Qwen/Qwen3-VL-8B-Instruct \\
        --lora_rank 64 --bf16 True --data_path conversations.json --image_folder images
    python recipes/finetune_chat.py --config recipes/chat_stage1.yaml # connector alone, then chat_stage2, chat_stage3
"""

from functools import partial

from hf_medvlm.families.chat.arguments import ConversationDataArguments
from hf_medvlm.families.chat.message_arguments import DEFAULTS, TINY, MessageModelArguments, MessageTrainingArguments
from hf_medvlm.families.chat.message_recipe import load_chat_model, message_trainer, score_other_images
from hf_medvlm.families.chat.recipe import load_conversations
from hf_medvlm.training.arguments import parse
from hf_medvlm.training.run import fit, run


def main(argv: list[str] | None = None) -> dict:
    groups = {"data": ConversationDataArguments, "model": MessageModelArguments, "training": MessageTrainingArguments}
    args = parse(__file__, argv, defaults=DEFAULTS, tiny=TINY, **groups)
    splits = load_conversations(args)
    model, processor = load_chat_model(args, splits)
    trainer = message_trainer(model, processor, splits, args)
    more = partial(score_other_images, trainer, splits) if args.training.other_images else None
    return fit(trainer, splits, args, more)


if __name__ == "__main__":
    run(main)
