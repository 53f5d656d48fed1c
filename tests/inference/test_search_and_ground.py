"""`hf-medvlm index`, `search` and `ground`."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from saved_families import save_family

from hf_medvlm.__main__ import main
from hf_medvlm.inference import load, search
from hf_medvlm.inference.drawing import heat, over_radiograph, peak_and_box
from hf_medvlm.inference.predict import EMBEDDINGS, PREDICTIONS, RUN
from hf_medvlm.inference.search import Index


@pytest.fixture(scope="module")
def saved(splits, tmp_path_factory):
    folders = {}

    def of(name: str):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            save_family(name, splits, folders[name])
        return folders[name]

    return of


@pytest.fixture(scope="module")
def index(saved, splits, tmp_path_factory):
    """Of the test images, by a dual encoder."""
    folder = tmp_path_factory.mktemp("search") / "index"
    images = folder.parent / "images"
    images.mkdir()
    for study in splits.test[:6]:
        (images / f"{study.study_id}.png").write_bytes((splits.image_folder / study.frontal.path).read_bytes())
    main(["index", str(saved("dual_encoder")), str(images), "--out", str(folder), "--workers", "0"])
    return folder


def test_the_nearest_to_a_text_and_to_an_image(index, saved, capsys):
    predictor, images = load(saved("dual_encoder")), sorted((index.parent / "images").glob("*.png"))
    scores = predictor.embed(images) @ predictor.embed_texts("left pleural effusion")
    main(["search", str(index), "left pleural effusion", "--top", "3"])
    printed = capsys.readouterr().out
    rows = re.findall(r"^ *(\d)  (-?[\d.]+)  (\S+)", printed, re.MULTILINE)
    order = np.argsort(-scores, kind="stable")[:3]
    assert [name for _, _, name in rows] == [images[i].stem for i in order]
    assert [float(score) for _, score, _ in rows] == pytest.approx(scores[order].tolist(), abs=1e-4)
    assert "searched 6 studies" in printed
    page = (index / "search.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 and "http" not in page.replace("http-equiv", "")
    main(["search", str(index), "--image", str(images[2]), "--top", "1"])
    assert images[2].stem in capsys.readouterr().out


def test_blocks_find_what_a_whole_product_finds(index, monkeypatch):
    """Ties go to the earlier row, whatever the blocks."""
    monkeypatch.setattr(search, "BLOCK", 7)
    rng = np.random.default_rng(0)
    rows = rng.integers(-2, 3, (50, 64)).astype(np.float32)
    rows[33] = rows[4]
    kept = (index / EMBEDDINGS).read_bytes()
    save_file({"image_embeds": rows}, index / EMBEDDINGS)
    queries = rng.integers(-2, 3, (3, 64)).astype(np.float32)
    queries[0] = rows[4]
    nearest = Index(index).nearest(queries, top=9)
    (index / EMBEDDINGS).write_bytes(kept)
    for query, hits in zip(queries, nearest, strict=True):
        slow = sorted(range(50), key=lambda row: (-float(rows[row] @ query), row))[:9]
        assert [row for row, _ in hits] == slow
        assert [score for _, score in hits] == [float(rows[row] @ query) for row in slow]
    assert [row for row, _ in nearest[0]][:2] == [4, 33]


def test_what_cannot_be_searched_is_refused(index, saved, tmp_path, capsys):
    def error(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(list(words))
        assert stop.value.code == 1
        return capsys.readouterr().err

    assert "made with other weights" in error("search", str(index), "x", "--model", str(saved("patch_ib")))
    assert "holds no index" in error("search", str(tmp_path), "x")
    assert "say what to look for" in error("search", str(index))
    assert "--top 0" in error("search", str(index), "x", "--top", "0")
    images = str(index.parent / "images")
    assert "no .embed" in error("index", str(saved("blip")), images, "--out", str(tmp_path / "a"))
    assert "another value of model" in error("index", str(saved("patch_ib")), images, "--out", str(index))
    lost = json.loads((index / RUN).read_text()) | {"model": str(tmp_path / "gone")}
    kept = (index / RUN).read_text()
    (index / RUN).write_text(json.dumps(lost))
    assert "no such run" in error("search", str(index), "x")
    (index / RUN).write_text(kept)
    assert len((index / PREDICTIONS).read_text().splitlines()) == 6


@pytest.mark.parametrize("name", ["biovil_t", "medklip", "patch_ib"])
def test_ground_writes_the_map_its_peak_and_box(name, saved, splits, tmp_path, capsys):
    picture = Image.open(splits.image_folder / splits.test[0].frontal.path).resize((96, 64))
    picture.save(tmp_path / "chest.png")
    main(["ground", str(saved(name)), str(tmp_path / "chest.png"), "left pleural effusion", "--out", str(tmp_path)])
    assert "chest.ground.png" in capsys.readouterr().out
    record = json.loads((tmp_path / "chest.ground.json").read_text())
    grid = load(saved(name)).ground(tmp_path / "chest.png", "left pleural effusion")
    assert (record["width"], record["height"]) == (96, 64) and record["map"]
    x, y, (left, top, wide, high) = record["peak"]["x"], record["peak"]["y"], record["box"]
    assert grid[y, x] == np.nanmax(grid)
    assert left <= x < left + wide <= 96 and top <= y < top + high <= 64
    drawn = Image.open(tmp_path / "chest.ground.png")
    assert drawn.size == (96, 64) and drawn.mode == "RGB"


def test_ground_is_refused_where_nothing_can_be_found(saved, splits, capsys):
    picture = str(splits.image_folder / splits.test[0].frontal.path)
    for words, error in (
        ((str(saved("dual_encoder")), picture, "effusion"), "trained without --local_loss"),
        ((str(saved("biovil_t")), picture, " "), "the phrase is empty"),
        ((str(saved("biovil_t")), picture + "x", "effusion"), "there is no such file"),
    ):
        with pytest.raises(SystemExit):
            main(["ground", *words])
        assert error in capsys.readouterr().err


def test_the_box_is_the_region_of_the_peak():
    grid = np.full((20, 30), np.nan, np.float32)
    grid[2:18, 3:28] = 0.0
    grid[4:8, 5:9] = 0.8  # another region above half
    grid[10:15, 20:26] = 0.7
    grid[12, 22] = 1.0
    located = peak_and_box(grid)
    assert located["peak"] == {"x": 22, "y": 12, "value": 1.0} and located["range"] == [0.0, 1.0]
    assert located["box"] == [20, 10, 6, 5]
    shown = np.asarray(over_radiograph(Image.new("L", (30, 20), 100), grid))
    assert (shown[0, 0] == 100).all() and (shown[2, 3] == 100).all() and (shown[12, 24] != 100).any()
    assert heat(grid).getpixel((0, 0))[3] == 0
    with pytest.raises(ValueError, match="no number"):
        peak_and_box(np.full((2, 2), np.nan))
