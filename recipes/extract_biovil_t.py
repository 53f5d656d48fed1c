"""Write BioViL-T's features of a corpus: images (with their priors), patches and texts, as safetensors shards.

    python recipes/extract_biovil_t.py --output_dir features                       # a tiny model on made-up studies
    python recipes/extract_biovil_t.py --config recipes/extract_biovil_t.yaml \\
        --dataset master.jsonl --image_folder images --output_dir features          # the published model
    torchrun --nproc_per_node 8 recipes/extract_biovil_t.py ...                     # each process writes its own shards

Killed, it goes on with the same command; `hf_medvlm.families.biovil_t.features.read_features(folder)` reads its files.
"""

from typing import Any

from transformers import set_seed

from hf_medvlm.families.biovil_t.features import extract_features
from hf_medvlm.families.biovil_t.recipe import (
    EXTRACT,
    ExtractArguments,
    chosen_studies,
    feature_options,
    load_biovil_t,
    prior_collator,
)
from hf_medvlm.training.arguments import DataArguments, MedVLMArguments, parse
from hf_medvlm.training.image_cache import use_image_cache
from hf_medvlm.training.run import load_data, run


def main(argv: list[str] | None = None) -> str:
    groups: dict[str, Any] = {"data": DataArguments, "model": ExtractArguments, "training": MedVLMArguments}
    args = parse(__file__, argv, defaults=EXTRACT, **groups)
    splits = load_data(args)
    set_seed(args.training.seed)  # a tiny random model must be the same when the run goes on
    model, processor = load_biovil_t(args.model, splits)
    studies = chosen_studies(splits, args.model.splits)
    collator = prior_collator(model, processor, splits, args)
    if args.model.model_name_or_path is None and args.data.dataset != "synthetic":
        print("warning: no --model_name_or_path: these are features of a tiny model with random weights", flush=True)
    if args.training.dry_run:
        print(f"{len(studies)} studies of {splits.name} would be written to {args.training.output_dir}")
        return ""
    use_image_cache([collator], splits, args.training)
    index = extract_features(model, collator, studies, args.training.output_dir, feature_options(args))
    print(f"{len(studies)} studies in {index}")
    return str(index)


if __name__ == "__main__":
    run(main)
