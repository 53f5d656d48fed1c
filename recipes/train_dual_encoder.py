"""Train a dual encoder on radiographs and their reports: one contrastive loss over the global batch.

    accelerate launch recipes/train_dual_encoder.py                  # a tiny model on made-up studies
    accelerate launch recipes/train_dual_encoder.py --config recipes/train_dual_encoder.yaml \\
        --dataset master.jsonl --image_folder images                 # ViT-B/16 and BioClinicalBERT
    accelerate launch recipes/train_dual_encoder.py --model_name_or_path biomedclip_folder \\
        --dataset master.jsonl --image_folder images                 # BiomedCLIP, fine-tuned
    torchrun --nproc_per_node 2 recipes/train_dual_encoder.py --contrastive_batch_size 1024
    deepspeed --num_accelerators 2 recipes/train_dual_encoder.py --deepspeed ds_configs/zero2.json

`--contrastive_batch_size 1024 --per_device_train_batch_size 16` gives the gradient of 1,024 pairs in the memory of 16.
"""

from hf_medvlm.families.dual_encoder.model import DualEncoderModel
from hf_medvlm.families.dual_encoder.recipe import (
    DEFAULTS,
    TINY,
    PairArguments,
    dual_encoder_trainer,
    load_dual_encoder,
)
from hf_medvlm.training.arguments import DataArguments, parse
from hf_medvlm.training.contrastive import ContrastiveArguments
from hf_medvlm.training.run import fit, load_data, run


def main(argv: list[str] | None = None) -> dict:
    groups = {"data": DataArguments, "model": PairArguments, "training": ContrastiveArguments}
    args = parse(__file__, argv, defaults=DEFAULTS, tiny=TINY, **groups)
    splits = load_data(args)
    model, processor = load_dual_encoder(DualEncoderModel, args.model, splits)
    trainer = dual_encoder_trainer(model, processor, splits, args)
    return fit(trainer, splits, args)


if __name__ == "__main__":
    run(main)
