"""Where in a radiograph a phrase is: the map over the image as PNG, its peak and box as JSON.

hf-medvlm ground runs/finetune_biovil_t/1 chest.dcm "left pleural effusion" --out ground
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the image, the phrase."""
    parser.add_argument("run", help="the run, checkpoint or Hub id of a model that grounds")
    parser.add_argument("image", help="PNG, JPEG or DICOM")
    parser.add_argument("phrase", help="what to look for, in the words of a report")
    parser.add_argument("--out", default=".", help="the folder to write to; here by default")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default an accelerator where there is one")


def run(args: argparse.Namespace) -> None:
    """Write `<image>.ground.png` and `<image>.ground.json`, and print the latter."""
    import json
    from pathlib import Path

    from hf_medvlm.data.files import atomic_open, write_json
    from hf_medvlm.inference import load
    from hf_medvlm.inference.drawing import over_radiograph, peak_and_box
    from hf_medvlm.inference.pictures import open_picture

    if not args.phrase.strip():
        raise ValueError("the phrase is empty; say what to look for")
    predictor = load(args.run, args.device)
    predictor.require("ground")
    picture = open_picture(args.image)
    grid = predictor.ground(picture, args.phrase)
    located = peak_and_box(grid)
    record = {"image": Path(args.image).name, "width": picture.width, "height": picture.height, "phrase": args.phrase}
    record |= located | {"map": predictor.map_meaning}
    base = Path(args.out) / Path(args.image).stem
    with atomic_open(f"{base}.ground.png", "wb") as handle:
        over_radiograph(picture, grid, located).save(handle, "PNG")
    write_json(f"{base}.ground.json", record)
    print(json.dumps(record, indent=2, ensure_ascii=False))
    print(f"{base}.ground.png")
