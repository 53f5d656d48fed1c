"""Fine-tune GIT to write the report of a chest radiograph.

    accelerate launch recipes/finetune_git.py                       # a tiny model on made-up studies
    accelerate launch recipes/finetune_git.py --config recipes/finetune_git.yaml \\
        --dataset master.jsonl --image_folder images                 # microsoft/git-base
    torchrun --nproc_per_node 2 recipes/finetune_git.py
    deepspeed --num_accelerators 2 recipes/finetune_git.py --deepspeed ds_configs/zero3.json
"""

from hf_medvlm.families.captioners.model import GitCaptioner
from hf_medvlm.families.captioners.recipe import (
    DEFAULTS,
    TINY_GIT,
    CaptioningArguments,
    captioning_trainer,
    load_captioner,
)
from hf_medvlm.training.arguments import DataArguments, MedVLMArguments, parse
from hf_medvlm.training.run import fit, load_data, run


def main(argv: list[str] | None = None) -> dict:
    groups = {"data": DataArguments, "model": CaptioningArguments, "training": MedVLMArguments}
    args = parse(__file__, argv, defaults=DEFAULTS, tiny=TINY_GIT, **groups)
    splits = load_data(args)
    model, processor = load_captioner(GitCaptioner, args, splits)
    trainer = captioning_trainer(model, processor, splits, args)
    return fit(trainer, splits, args)


if __name__ == "__main__":
    run(main)
