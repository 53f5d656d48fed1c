"""The PNG cache: right pixels, no name, resumable, byte-equal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from make_corpora import write_image
from PIL import Image

from hf_medvlm.data.convert_images import convert_images
from hf_medvlm.data.images import open_radiograph

REAL_DICOM = Path(__file__).parents[3] / "shared" / "data" / "dicom"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def make(folder, count=12, size=40):
    names = [f"p{n % 3}/{n}{('.dcm', '.png', '.jpg')[n % 3]}" for n in range(count)]
    for seed, name in enumerate(names):
        write_image(folder / name, seed, size)
    return names


def test_copies_have_the_pixels_and_the_size(tmp_path):
    names = make(tmp_path / "in")
    Image.linear_gradient("L").resize((60, 30)).save(tmp_path / "in" / "wide.png")
    copies, broken = convert_images([*names, "wide.png"], tmp_path / "in", tmp_path / "out", size=32, workers=2)
    assert not broken and copies["p0/0.dcm"] == "p0/0.png"
    assert Image.open(tmp_path / "out" / "wide.png").size == (32, 16)
    for name, copy in copies.items():
        expected = open_radiograph(tmp_path / "in" / name)
        expected.thumbnail((32, 32), Image.Resampling.LANCZOS)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / copy)), np.asarray(expected))
    kept, _ = convert_images(names, tmp_path / "in", tmp_path / "whole")
    assert Image.open(tmp_path / "whole" / kept[names[0]]).size == (40, 40)
    assert not any(b"Secret" in data or b"SECRET" in data for data in contents(tmp_path / "out").values())


def test_run_again_nothing_is_written_and_all_bytes_are_equal(tmp_path):
    names = make(tmp_path / "in")
    first = convert_images(names, tmp_path / "in", tmp_path / "out", size=32)
    before, times = contents(tmp_path / "out"), {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")}
    (tmp_path / "out" / "p0" / ".0.png.123.part").write_bytes(b"half")  # of a killed run
    (tmp_path / "out" / "p1" / "1.png").unlink()
    assert convert_images(names, tmp_path / "in", tmp_path / "out", size=32) == first
    assert contents(tmp_path / "out") == before
    again = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")}
    assert [p.name for p in times if again[p] != times[p]] == ["1.png"]


def test_an_image_newer_than_its_copy_is_copied_anew(tmp_path):
    names = make(tmp_path / "in", count=2)
    convert_images(names, tmp_path / "in", tmp_path / "out")
    write_image(tmp_path / "in" / "p1" / "1.png", seed=99, size=20)
    os.utime(tmp_path / "in" / "p1" / "1.png", ns=(2**62, 2**62))
    convert_images(names, tmp_path / "in", tmp_path / "out")
    assert Image.open(tmp_path / "out" / "p1" / "1.png").size == (20, 20)


def test_broken_images_are_named_and_the_rest_goes_on(tmp_path):
    names = make(tmp_path / "in", count=4)
    (tmp_path / "in" / names[1]).write_bytes(b"no image")
    (tmp_path / "in" / names[2]).unlink()
    Image.new("L", (9, 9), 70).save(tmp_path / "in" / "flat.png")
    copies, broken = convert_images([*names, "flat.png"], tmp_path / "in", tmp_path / "out")
    assert set(copies) == {names[0], names[3]} and set(broken) == {names[1], names[2], "flat.png"}
    assert broken["flat.png"] == "every pixel has the same grey value, 70 of 255"
    assert broken[names[2]] == "there is no such file" and "image" in broken[names[1]]


def test_another_size_and_two_images_with_one_copy_are_refused(tmp_path):
    make(tmp_path / "in", count=2)
    convert_images(["p0/0.dcm"], tmp_path / "in", tmp_path / "out", size=32)
    with pytest.raises(ValueError, match="copies made with .*32.*name another folder"):
        convert_images(["p0/0.dcm"], tmp_path / "in", tmp_path / "out", size=64)
    with pytest.raises(ValueError, match=r"a/0\.dcm and a/0\.jpg would both become a/0\.png"):
        convert_images(["a/0.dcm", "a/0.jpg"], tmp_path / "in", tmp_path / "other")


def test_killed_and_run_again_it_ends_on_the_bytes_of_an_unbroken_run(tmp_path):
    names = make(tmp_path / "in", count=60, size=300)
    convert_images(names, tmp_path / "in", tmp_path / "whole", size=256)
    code = (
        "import sys\nfrom hf_medvlm.data.convert_images import convert_images\n"
        "if __name__ == '__main__':\n    convert_images(sys.argv[3:], sys.argv[1], sys.argv[2], size=256, workers=1)\n"
    )
    (tmp_path / "run.py").write_text(code)
    command = [sys.executable, tmp_path / "run.py", tmp_path / "in", tmp_path / "out", *names]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list((tmp_path / "out").rglob("*.png"))) < 10:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    copied = len(list((tmp_path / "out").rglob("*.png")))
    assert 10 <= copied < 60
    convert_images(names, tmp_path / "in", tmp_path / "out", size=256)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.skipif(not REAL_DICOM.exists(), reason="the shared data is not here")
def test_real_dicom(tmp_path):
    names = sorted(path.name for path in REAL_DICOM.glob("*.dcm"))
    copies, broken = convert_images(names, REAL_DICOM, tmp_path, size=512)
    assert len(copies) == len(names) >= 4 and not broken
    for copy in copies.values():
        assert max(Image.open(tmp_path / copy).size) == 512
    chest = np.asarray(Image.open(tmp_path / copies["rg1_chest_pa_j2k_lossy.dcm"])).astype(int)  # MONOCHROME1
    height, width = chest.shape
    rows = chest[int(0.25 * height) : int(0.35 * height)]
    spine, lung = (rows[:, int(left * width) : int((left + 0.06) * width)].mean() for left in (0.47, 0.3))
    assert spine > lung + 40  # bone is bright, air is dark
    same = [f"rg3_extremity_ap_{name}.dcm" for name in ("jpeg_lossless", "uncompressed")]
    pixels = [np.asarray(Image.open(tmp_path / copies[name])) for name in same if name in copies]
    assert all(np.array_equal(picture, pixels[0]) for picture in pixels)
