"""Train a patch information bottleneck, variants A to H, on a dual encoder: what of a radiograph does its report need?

    accelerate launch recipes/train_patch_ib.py --variant E          # a tiny model on made-up studies
    accelerate launch recipes/train_patch_ib.py --config recipes/train_patch_ib.yaml --variant E \\
        --model_name_or_path biomedclip_folder --dataset master.jsonl --image_folder images
    accelerate launch recipes/train_patch_ib.py --variant F --model_name_or_path runs/train_dual_encoder/1 \\
        --dataset master.jsonl --image_folder images                 # on a dual encoder of ours
    torchrun --nproc_per_node 2 recipes/train_patch_ib.py --variant G --contrastive_batch_size 1024
"""

from hf_medvlm.families.dual_encoder.recipe import DEFAULTS, dual_encoder_trainer, load_dual_encoder
from hf_medvlm.families.patch_ib.evaluation import PatchEvaluation
from hf_medvlm.families.patch_ib.model import PatchIBModel
from hf_medvlm.families.patch_ib.recipe import TINY, PatchArguments
from hf_medvlm.training.arguments import DataArguments, parse
from hf_medvlm.training.contrastive import ContrastiveArguments
from hf_medvlm.training.run import fit, load_data, run


def main(argv: list[str] | None = None) -> dict:
    groups = {"data": DataArguments, "model": PatchArguments, "training": ContrastiveArguments}
    args = parse(__file__, argv, defaults=DEFAULTS, tiny=TINY, **groups)
    splits = load_data(args)
    model, processor = load_dual_encoder(PatchIBModel, args.model, splits)
    trainer = dual_encoder_trainer(model, processor, splits, args, PatchEvaluation)
    return fit(trainer, splits, args)


if __name__ == "__main__":
    run(main)
