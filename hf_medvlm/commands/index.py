"""Embed images with a trained model, so that `hf-medvlm search` finds the nearest ones to a text or an image.

    hf-medvlm index runs/train_dual_encoder/1 images/ --out index
    accelerate launch --num_processes 2 -m hf_medvlm index RUN master.jsonl --image_folder images --out index

Interrupted, it goes on where it stood when it is started again.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the images and the folder of the index."""
    parser.add_argument("run", help="the run, checkpoint or Hub id of a model with embeddings")
    parser.add_argument("images", help="a folder, one image, a table with an image column, or a master file")
    parser.add_argument("--out", required=True, help="the folder of the index")
    parser.add_argument("--image_folder", help="what image paths of a table are relative to; by default its own folder")
    parser.add_argument("--image_column", default="image", help="table: column with the image path")
    parser.add_argument("--folder_is_study", action="store_true", help="images in one folder are views of one study")
    parser.add_argument("--batch_size", type=int, default=32, help="studies at a time")
    parser.add_argument("--workers", type=int, default=1, help="processes that read images; 0 reads between batches")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default an accelerator where there is one")
    parser.add_argument("--dtype", help="type of the weights: float32, bfloat16, float16; by default as in evaluation")
    parser.add_argument("--overwrite", action="store_true", help="remove another index that lies in --out")


def run(args: argparse.Namespace) -> None:
    """Write the index and say how many studies it holds."""
    from hf_medvlm.inference import load
    from hf_medvlm.inference.predict import PredictOptions, predict_studies, processes
    from hf_medvlm.inference.studies import find_studies

    new = find_studies(args.images, args.image_folder, args.image_column, args.folder_is_study)
    state = processes()
    predictor = load(args.run, args.device or state.device, args.dtype)
    predictor.require("embed")
    options = PredictOptions(args.batch_size, maps=0, workers=args.workers, embeddings_only=True)
    done = predict_studies(predictor, new, args.out, options, args.overwrite)
    if state.is_main_process:
        print(done.summary())
