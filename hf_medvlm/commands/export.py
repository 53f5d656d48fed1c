"""Write a run's model as others want it, and check that it answers as before.

hf-medvlm export runs/llava_mimic/1 --to llava-reports --dtype bfloat16     # for transformers, vLLM, TGI
hf-medvlm export runs/train_dual_encoder/1 --to encoders --format onnx      # for onnxruntime
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, the folder and the format."""
    parser.add_argument("run", help="the run, checkpoint, adapter folder or Hub id")
    parser.add_argument("--to", required=True, help="a new folder")
    parser.add_argument("--format", default="safetensors", choices=("safetensors", "onnx", "gguf"))
    parser.add_argument("--dtype", help="type of the weights: float32, bfloat16 or float16; as they are by default")
    parser.add_argument("--max_shard_size", default="5GB", help="of one file of weights")
    parser.add_argument("--base", help="the model that an adapter was trained on, where it lies elsewhere now")


def run(args: argparse.Namespace) -> None:
    """Write the folder and print the largest differences."""
    from hf_medvlm.sharing.export import export_model, export_onnx, without_gguf

    if args.format == "gguf":
        raise ValueError(without_gguf())
    if args.format == "onnx":
        print(export_onnx(args.run, args.to))
    else:
        print(export_model(args.run, args.to, args.dtype, args.max_shard_size, args.base))
