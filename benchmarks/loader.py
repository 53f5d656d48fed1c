"""How fast radiographs reach the model: images a second of one core, each way beside bare decoding of the same files.

    python benchmarks/loader.py                     # one thread; ratios of one run
    python benchmarks/loader.py --device cuda       # and: pixels finished on the GPU, and a ViT-B/16 that waits or not

The old way opens a file whole, varies the whole picture and gives it to the image processor in three channels; it is
kept here as the slow twin. All ways read the same made-up radiographs, in turn, round after round; the median counts.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, ViTConfig, ViTModel

from hf_medvlm.collators.augmentation import finish_batch
from hf_medvlm.collators.geometry import Preparation
from hf_medvlm.collators.pixels import Unfinished, read_pixels
from hf_medvlm.data.cache import ImageCache
from hf_medvlm.data.cache_building import build_cache
from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.images.augment import Variation
from hf_medvlm.data.rows import Row
from hf_medvlm.data.study import Study, StudyImage

FULL = (2544, 3056)
CACHED = 32
"""How often each picture of the cache is read in one turn: a few would be too quick to be timed."""
FROM_CACHE = "uint8 from the cache"


def make_files(folder: Path, small: bool) -> dict[str, list[str]]:
    """kind -> file names: full-size JPEGs (quality 95), files of 512 pixels, and DICOM where pydicom is installed."""
    full, many = ((318, 382), 2) if small else (FULL, 4)
    names: dict[str, list[str]] = {"full-size JPEG": [], "512-pixel JPEG": [], "DICOM": []}
    for number in range(many):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(20, 235, (24, 20), dtype=np.uint8))
        pixels = np.asarray(coarse.resize(full, Image.Resampling.BICUBIC), np.float32)
        pixels = pixels + rng.normal(0, 1, pixels.shape).astype(np.float32)
        picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        picture.save(folder / f"full{number}.jpg", quality=95)
        names["full-size JPEG"].append(f"full{number}.jpg")
        half = picture.copy()
        half.thumbnail((512, 512), Image.Resampling.LANCZOS)
        half.save(folder / f"half{number}.jpg", quality=95)
        names["512-pixel JPEG"].append(f"half{number}.jpg")
        if write_dicom(folder / f"full{number}.dcm", pixels):
            names["DICOM"].append(f"full{number}.dcm")
    return {kind: files for kind, files in names.items() if files}


def write_dicom(path: Path, pixels: np.ndarray) -> bool:
    """12 bits in 16, not compressed, with a window; False where pydicom is not installed."""
    try:
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian
    except ImportError:
        return False
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = np.clip(pixels * 16, 0, 4095).astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return True


def old_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """What the whole picture went through before: pose, exposure curve, normal noise."""
    angle, scale = np.deg2rad(rng.uniform(-6, 6)), rng.uniform(0.94, 1.06)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    centre, shift = np.array(image.size) / 2, rng.uniform(-0.04, 0.04, 2) * image.size
    x, y = centre - np.array([[cos, -sin], [sin, cos]]) @ (centre + shift)
    pose = (float(cos), float(-sin), float(x), float(sin), float(cos), float(y))
    pixels = np.asarray(image.transform(image.size, Image.Transform.AFFINE, pose, Image.Resampling.BILINEAR))
    gamma, contrast, brightness = rng.uniform((0.8, 0.85, -0.08), (1.25, 1.15, 0.08))
    curve = contrast * (np.linspace(0, 1, 256) ** gamma - 0.5) + 0.5 + brightness
    noise = rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(0, 5))
    return Image.fromarray(np.clip(np.rint((255 * curve).astype(np.float32)[pixels] + noise), 0, 255).astype(np.uint8))


def rows_of(files: list[str]) -> list[tuple[Row, StudyImage]]:
    images = [StudyImage(name) for name in files]
    return [(Row(Study(f"s{n}", f"p{n}", images=(image,)), n), image) for n, image in enumerate(images)]


def ways(folder: Path, files: list[str], processor: Any) -> dict[str, Callable[[], Any]]:
    """What is timed, each over all `files`."""
    rows, prepared = rows_of(files), Preparation.of(processor)
    assert prepared is not None
    contents = [(folder / name).read_bytes() for name in files]

    def old() -> Tensor:
        pictures = [old_augment(open_radiograph(folder / i.path), row.rng(0)).convert("RGB") for row, i in rows]
        return processor(pictures, return_tensors="pt").pixel_values

    build_cache(folder / "pictures", folder, files, prepared, workers=1)
    cache = ImageCache(folder / "pictures", folder, prepared)
    cached = [rows[number % len(rows)] for number in range(CACHED * len(rows))]
    varied = [Variation.draw(row.rng(0)) for row, _ in rows]
    small = [prepared.cut(cache[name]) for name in files]

    def send(training: bool) -> Any:
        return Unfinished(lambda items: read_pixels(items, folder, processor, training, 0))(rows)

    def from_cache() -> Any:
        return Unfinished(lambda items: read_pixels(items, cache, processor, False, 0))(cached)

    functions: dict[str, Callable[[], Any]] = {
        "decoding": lambda: [open_radiograph(io.BytesIO(content)) for content in contents],
        "decoding at scale": lambda: [open_radiograph(io.BytesIO(each), prepared.enough) for each in contents],
        "uint8 for the device": lambda: send(False),
        "pixel values": lambda: read_pixels(rows, folder, processor, False, 0),
        "pixel values, varied": lambda: read_pixels(rows, folder, processor, True, 0),
        "old way, varied": old,
        FROM_CACHE: from_cache,
        "variation alone": lambda: [one.apply(picture) for one, picture in zip(varied, small, strict=True)],
    }
    return functions


def time_ways(functions: dict[str, Callable[[], Any]], images: int, rounds: int) -> dict[str, float]:
    """way -> images a second, the median of `rounds` in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, way in functions.items():
            start = time.perf_counter()
            way()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    times_more = {FROM_CACHE: CACHED}
    return {name: times_more.get(name, 1) * images / statistics.median(times) for name, times in seconds.items()}


class Repeated(torch.utils.data.Dataset):
    """The same few files as many."""

    def __init__(self, rows: list[tuple[Row, StudyImage]], count: int) -> None:
        self.rows, self.count = rows, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Row, StudyImage]:
        row, image = self.rows[index % len(self.rows)]
        return Row(row.study, index), image


def on_device(folder: Path, files: list[str], processor: Any, options: argparse.Namespace) -> dict[str, float]:
    """Images a second of varying and normalising on the device alone, and of a ViT-B/16 that trains on a loader."""
    device, batch = torch.device(options.device), 8 if options.small else 128
    rows = [rows_of(files)[number % len(files)] for number in range(batch)]
    collate = Unfinished(lambda items: read_pixels(items, folder, processor, True, 0))
    sent = {name: value.to(device) for name, value in collate(rows).items()}
    speeds = {"finish_images_per_second": batch / _seconds(lambda: finish_batch(sent), device)}
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    model = ViTModel(ViTConfig(**(sizes if options.small else {}))).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")

    def step(pixels: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(pixels).last_hidden_state.float().pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    pixels = finish_batch(sent)["pixel_values"]
    speeds["model_images_per_second"] = batch / _seconds(lambda: step(pixels), device)
    workers = 0 if options.small else max((os.cpu_count() or 2) - 1, 1)
    steps = 3 if options.small else 40
    loader = torch.utils.data.DataLoader(
        Repeated(rows, batch * (steps + 3)),
        batch_size=batch,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )
    waited, begin = 0.0, 0.0
    batches = iter(loader)
    for number in range(steps + 3):
        if number == 3:
            _wait(device)
            begin, waited = time.perf_counter(), 0.0
        start = time.perf_counter()
        made = next(batches)
        waited += time.perf_counter() - start
        step(finish_batch({name: value.to(device, non_blocking=True) for name, value in made.items()})["pixel_values"])
        _wait(device)
    seconds = time.perf_counter() - begin
    return speeds | {
        "train_images_per_second": batch * steps / seconds,
        "waiting": waited / seconds,
        "workers": workers,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _seconds(call: Callable[[], Any], device: torch.device, repeats: int = 10) -> float:
    for _ in range(3):
        call()
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait(device)
    return (time.perf_counter() - start) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="finish pixels and train there, too")
    parser.add_argument("--small", action="store_true", help="small pictures and model, to try the script")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    processor = CLIPImageProcessorPil(size={"height": 224, "width": 224}, do_center_crop=False)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_MEDVLM_CACHE"] = str(folder / "known")
        for kind, files in make_files(folder, options.small).items():
            rates = time_ways(ways(folder, files, processor), len(files), options.rounds)
            results[kind] = rates
            for way, rate in rates.items():
                print(f"{kind:<16} {way:<22} {rate:9.1f} images/s", flush=True)
            times = rates["pixel values, varied"] / rates["old way, varied"]
            share = rates["uint8 for the device"] / rates["decoding at scale"]
            print(f"{kind:<16} varied, against the old way {times:.1f} x; uint8, against decoding at scale {share:.2f}")
            again = rates[FROM_CACHE] / rates["uint8 for the device"]
            print(f"{kind:<16} uint8 from the cache, against uint8 of the files {again:.1f} x")
            if options.device and kind != "DICOM":
                results[f"{kind} on {options.device}"] = on_device(folder, files, processor, options)
                print(kind, results[f"{kind} on {options.device}"], flush=True)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
