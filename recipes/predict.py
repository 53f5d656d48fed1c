"""Apply a trained model to radiographs that have no report.

    python recipes/predict.py runs/finetune_blip/1 images/ --out predictions          # a folder, DICOM too
    python recipes/predict.py runs/train_medklip/1 chest.dcm --out predictions         # one file
    python recipes/predict.py runs/llava_mimic/1 master.jsonl --image_folder images \\
        --question "Is there a pneumothorax?" --out answers
    python recipes/predict.py runs/finetune_blip/1 test.json --image_folder images --rexrank --out submission.json
    accelerate launch --num_processes 2 recipes/predict.py runs/finetune_blip/1 images/ --out predictions

A run that was interrupted goes on where it stood when it is started again.
"""

import argparse
from pathlib import Path

from hf_medvlm.inference import load
from hf_medvlm.inference.page import write_page
from hf_medvlm.inference.predict import PredictOptions, predict_studies, processes
from hf_medvlm.inference.prediction_files import write_rexrank
from hf_medvlm.inference.studies import find_studies, read_rexrank
from hf_medvlm.training.run import run


def options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hf-medvlm predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="the run, checkpoint or Hub id of the model")
    parser.add_argument("images", help="a folder, one image, a table with an image column, or a master file")
    parser.add_argument("--out", required=True, help="the folder to write to; with --rexrank, the JSON file")
    parser.add_argument("--image_folder", help="what image paths of a table are relative to; by default its own folder")
    parser.add_argument("--image_column", default="image", help="table: column with the image path")
    parser.add_argument("--folder_is_study", action="store_true", help="images in one folder are views of one study")
    parser.add_argument("--previous", help="one image: the radiograph before it, for models that compare")
    parser.add_argument("--question", default="", help="chat models: what to ask about each study")
    parser.add_argument("--maps", type=int, default=3, help="heat maps of so many predicted findings a study; 0: none")
    parser.add_argument("--batch_size", type=int, default=16, help="studies at a time")
    parser.add_argument("--workers", type=int, default=1, help="processes that read images; 0 reads between batches")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default an accelerator where there is one")
    parser.add_argument("--dtype", help="of the weights: float32, bfloat16 or float16; by default as in evaluation")
    parser.add_argument("--rexrank", action="store_true", help="IMAGES is ReXrank's JSON; write it with predictions")
    parser.add_argument("--no_page", action="store_true", help="write no report.html")
    parser.add_argument("--overwrite", action="store_true", help="remove other predictions that lie in --out")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> Path:
    args = options(argv)
    out = Path(args.out)
    folder = out.with_suffix("") if args.rexrank and out.suffix == ".json" else out
    if args.rexrank:
        studies, records = read_rexrank(args.images, args.image_folder)
    else:
        studies = find_studies(args.images, args.image_folder, args.image_column, args.folder_is_study, args.previous)
    state = processes()
    predictor = load(args.run, args.device or state.device, args.dtype)
    if args.rexrank:
        predictor.require("report")
    wanted = PredictOptions(args.batch_size, args.question, args.maps, args.workers)
    done = predict_studies(predictor, studies, folder, wanted, args.overwrite)
    if not state.is_main_process:
        return folder
    if args.rexrank:
        write_rexrank(records, folder, out if out.suffix == ".json" else folder / "rexrank.json")
    if not args.no_page:
        write_page(folder)
    print(done.summary())
    return folder


if __name__ == "__main__":
    run(main, "--out")
