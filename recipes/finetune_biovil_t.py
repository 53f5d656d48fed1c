"""Fine-tune BioViL-T: what changed since the prior study, which findings there are, or images and reports in one space.

    accelerate launch recipes/finetune_biovil_t.py                     # a tiny model on made-up studies
    accelerate launch recipes/finetune_biovil_t.py --task alignment
    accelerate launch recipes/finetune_biovil_t.py --config recipes/finetune_biovil_t.yaml \\
        --dataset master.jsonl --image_folder images                   # a folder with the published files
    torchrun --nproc_per_node 2 recipes/finetune_biovil_t.py
"""

from hf_medvlm.families.biovil_t.recipe import DEFAULTS, TINY, BioViLTArguments, biovil_t_trainer, load_biovil_t
from hf_medvlm.training.arguments import DataArguments, parse
from hf_medvlm.training.contrastive import ContrastiveArguments
from hf_medvlm.training.run import fit, load_data, run


def main(argv: list[str] | None = None) -> dict:
    groups = {"data": DataArguments, "model": BioViLTArguments, "training": ContrastiveArguments}
    args = parse(__file__, argv, defaults=DEFAULTS, tiny=TINY, **groups)
    splits = load_data(args)
    model, processor = load_biovil_t(args.model, splits, **args.model.changes(splits))
    trainer = biovil_t_trainer(model, processor, splits, args)
    return fit(trainer, splits, args)


if __name__ == "__main__":
    run(main)
