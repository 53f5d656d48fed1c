"""Let a chat model that writes reports learn from what they are worth: GRPO or DPO, on TRL.

    python recipes/reward_chat.py                                     # a tiny model on made-up studies
    python recipes/reward_chat.py --model_name_or_path runs/finetune_chat/1 --dataset master.jsonl \\
        --image_folder images --reward findings_f1,cider=0.5 --lora_rank 16 --bf16 True
    python recipes/reward_chat.py --method dpo --model_name_or_path runs/finetune_chat/1 --pairs pairs.jsonl \\
        --dataset master.jsonl --image_folder images
"""

from hf_medvlm.families.chat.arguments import ConversationDataArguments
from hf_medvlm.families.chat.message_arguments import MessageTrainingArguments
from hf_medvlm.families.chat.message_recipe import load_chat_model
from hf_medvlm.families.chat.recipe import load_conversations
from hf_medvlm.families.chat.reward_arguments import DEFAULTS, TINY, RewardChatArguments
from hf_medvlm.families.chat.reward_recipe import reward_trainer
from hf_medvlm.training.arguments import parse
from hf_medvlm.training.run import fit, run


def main(argv: list[str] | None = None) -> dict:
    groups = {"data": ConversationDataArguments, "model": RewardChatArguments, "training": MessageTrainingArguments}
    args = parse(__file__, argv, defaults=DEFAULTS, tiny=TINY, **groups)
    args.model.check()
    splits = load_conversations(args)
    model, processor = load_chat_model(args, splits)
    trainer = reward_trainer(model, processor, splits, args)
    return fit(trainer, splits, args)


if __name__ == "__main__":
    run(main)
