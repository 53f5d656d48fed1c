"""Train MedKLIP: which findings a radiograph shows, and where, from reports alone.

    accelerate launch recipes/train_medklip.py                        # a tiny model on made-up studies
    accelerate launch recipes/train_medklip.py --held_out_entities edema
    accelerate launch recipes/train_medklip.py --config recipes/train_medklip.yaml \\
        --dataset master.jsonl --image_folder images                  # the published checkpoint_final.pth
    torchrun --nproc_per_node 2 recipes/train_medklip.py
"""

from pathlib import Path

from hf_medvlm.data.files import write_json
from hf_medvlm.evaluation.base import without_nan
from hf_medvlm.families.medklip.recipe import (
    DEFAULTS,
    TINY,
    MedKlipArguments,
    load_medklip,
    medklip_trainer,
    prepare_findings,
)
from hf_medvlm.training.arguments import DataArguments, MedVLMArguments, parse
from hf_medvlm.training.run import fit, load_data, run


def main(argv: list[str] | None = None) -> dict:
    groups = {"data": DataArguments, "model": MedKlipArguments, "training": MedVLMArguments}
    args = parse(__file__, argv, defaults=DEFAULTS, tiny=TINY, **groups)
    splits = prepare_findings(load_data(args), args.model)
    model, processor = load_medklip(args.model, splits)
    trainer = medklip_trainer(model, processor, splits, args)
    results = fit(trainer, splits, args)
    if "test" in results and trainer.is_world_process_zero():  # as the study that this recipe follows names them
        write_json(Path(args.training.output_dir) / "metrics.json", without_nan(results["test"].metrics))
    return results


if __name__ == "__main__":
    run(main)
