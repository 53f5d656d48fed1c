"""Fine-tune BLIP to write the report of a chest radiograph.

    accelerate launch recipes/finetune_blip.py                       # a tiny model on made-up studies
    accelerate launch recipes/finetune_blip.py --config recipes/finetune_blip.yaml \\
        --dataset master.jsonl --image_folder images                 # Salesforce/blip-image-captioning-base
    torchrun --nproc_per_node 2 recipes/finetune_blip.py
    deepspeed --num_accelerators 2 recipes/finetune_blip.py --deepspeed ds_configs/zero3.json
"""

from hf_medvlm.families.captioners.model import BlipCaptioner
from hf_medvlm.families.captioners.recipe import DEFAULTS, TINY, CaptioningArguments, captioning_trainer, load_captioner
from hf_medvlm.training.arguments import DataArguments, MedVLMArguments, parse
from hf_medvlm.training.run import fit, load_data, run


def main(argv: list[str] | None = None) -> dict:
    groups = {"data": DataArguments, "model": CaptioningArguments, "training": MedVLMArguments}
    args = parse(__file__, argv, defaults=DEFAULTS, tiny=TINY, **groups)
    splits = load_data(args)
    model, processor = load_captioner(BlipCaptioner, args, splits)
    trainer = captioning_trainer(model, processor, splits, args)
    return fit(trainer, splits, args)


if __name__ == "__main__":
    run(main)
