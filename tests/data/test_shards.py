"""Shards: what is read of a sample, what is refused, and that its pictures are those of plain files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_medvlm.data.images import members, open_radiograph
from hf_medvlm.data.load import load_splits
from hf_medvlm.data.verification import check_images


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MEDVLM_CACHE", str(tmp_path / "cache"))


def picture(seed: int, kind: str = "PNG", turned: bool = False) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6 + seed % 3, 9), np.uint8)
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, exif=exif)
    return out.getvalue()


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, seed: int, **row: object) -> dict[str, bytes]:
    return {f"{key}.json": json.dumps(row).encode(), f"{key}.png": picture(seed)}


def studies_of(pattern: Path | str, **options: object):
    splits = load_splits(str(pattern), **options)
    return splits, {study.study_id: study for studies in splits.studies.values() for study in studies}


def same_pictures(splits, study, *contents: bytes) -> bool:
    opened = [open_radiograph(splits.image_folder / image.path) for image in study.images]
    wanted = [open_radiograph(io.BytesIO(content)) for content in contents]
    return all(np.array_equal(one, other) for one, other in zip(opened, wanted, strict=True))


def test_samples_of_a_tar_are_rows_of_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    first = sample("p/a", 1, patient_id="7", findings="Clear lungs.", view="PA", Edema=0, site={"x": 1})
    text = {"b.txt": b"No effusion.", "b.json": b'{"patient_id": 8}', "b.jpg": picture(2, "JPEG", turned=True)}
    pair = sample("c", 3, patient_id="9", findings="Two views.") | {"c.lateral.png": picture(4)}
    broken = {"d.json": b"{", "d.png": picture(5), "._e.png": b"Mac", "f.json": b'{"findings": "x"}', "g.png": b""}
    write_tar(folder / "train-0.tar", first | text)
    write_tar(folder / "val-0.tar", pair | broken)
    splits, studies = studies_of(folder / "*.tar")
    assert set(studies) == {"p/a", "c"}
    assert [study.study_id for study in splits.validate] == ["c"] and splits.train[0].patient_id == "7"
    assert studies["p/a"].images[0].view == "PA" and studies["p/a"].labels["Edema"] == 0
    assert same_pictures(splits, studies["p/a"], picture(1))
    assert same_pictures(splits, studies["c"], picture(3), picture(4))
    assert splits.rejections() == {"text cannot be read": 1, "no image": 1, "empty text": 2}
    assert "2 studies in 2 shards" in splits.notes[0] and "not used: 'site', 'text'" in splits.notes[1]


def test_a_text_beside_each_image_is_the_report_and_equal_names_are_two_samples(tmp_path: Path) -> None:
    for number in range(3):
        text = {"1.json": json.dumps({"subject_id": number}).encode(), "1.txt": b"Clear.", "1.jpg": picture(9, "JPEG")}
        write_tar(tmp_path / f"{number}.tar", text | {"2.txt": b"Same text.", "2.jpg": picture(2, "JPEG", turned=True)})
    splits, studies = studies_of(tmp_path / "?.tar", patient_column="subject_id")
    assert len(studies) == 3 and splits.rejections() == {"no patient": 3}
    assert {study.report for study in studies.values()} == {"Clear."}
    with pytest.warns(UserWarning, match="no patient column"):
        for number in range(3):
            write_tar(tmp_path / f"{number}.tar", {"2.txt": b"Same text.", "2.jpg": picture(2, "JPEG", turned=True)})
        splits, studies = studies_of(tmp_path / "?.tar")
    assert set(studies) == {"2", "1/2", "2/2"} and not splits.patients_known
    assert same_pictures(splits, studies["2"], picture(2, "JPEG", turned=True))
    assert open_radiograph(splits.image_folder / studies["2"].images[0].path).size == (8, 9), "turned as EXIF says"


def test_the_objects_of_a_master_file_keep_all_their_fields(tmp_path: Path, splits) -> None:
    files: dict[str, bytes] = {}
    wanted = {study.study_id: study for study in (*splits.train[:5], *splits.test[:2])}
    for study in wanted.values():
        files[f"{study.study_id}.json"] = json.dumps(study.to_dict() | {"site": 3}).encode()
        for number, image in enumerate(study.images):
            files[f"{study.study_id}.{number}.png"] = (splits.image_folder / image.path).read_bytes()
    write_tar(tmp_path / "a.tar", files)
    write_tar(tmp_path / "b.tar", {"x.json": files[f"{next(iter(wanted))}.json"]})
    loaded, studies = studies_of(tmp_path / "*.tar")
    assert set(studies) == set(wanted) and loaded.rejections() == {"other images": 1}
    for name, study in studies.items():
        theirs, ours = wanted[name].to_dict() | {"site": 3}, study.to_dict()
        assert [image["view"] for image in ours.pop("images")] == [image["view"] for image in theirs.pop("images")]
        theirs["prior_study_id"] = theirs["prior_study_id"] if theirs["prior_study_id"] in studies else None
        assert ours == theirs
        assert same_pictures(loaded, study, *((splits.image_folder / i.path).read_bytes() for i in wanted[name].images))


@pytest.mark.parametrize("kind", ["struct", "lists", "bytes"])
def test_rows_of_parquet_shards(tmp_path: Path, kind: str) -> None:
    for number in range(2):
        cells: list = [{"bytes": picture(10 * number + row), "path": f"{row}.png"} for row in range(5)]
        cells[3] = None
        if kind == "lists":
            cells = [[cell, cells[0]] if cell else [] for cell in cells]
        if kind == "bytes":
            cells = [cell and cell["bytes"] for cell in cells]
        row = {"image": cells, "patient_id": list(range(5)), "text": [f"Text {number} {row}." for row in range(5)]}
        if kind == "bytes":
            pq.write_table(pa.table(row), tmp_path / f"{number}.parquet", row_group_size=2)
        else:
            image = datasets.Image(decode=False)
            features = {"image": [image] if kind == "lists" else image}
            features |= {"patient_id": datasets.Value("int64"), "text": datasets.Value("string")}
            table = datasets.Dataset.from_dict(row, features=datasets.Features(features))
            table.to_parquet(tmp_path / f"{number}.parquet", batch_size=2)
    splits, studies = studies_of(f"{tmp_path}/*.parquet")
    assert set(studies) == {f"{number}-{row}" for number in range(2) for row in (1, 2, 3, 5)}
    assert splits.rejections() == {"no image": 2} and studies["1-5"].report == "Text 1 4."
    for name, study in studies.items():
        number, row = map(int, name.split("-"))
        more = [picture(10 * number)] if kind == "lists" else []
        assert same_pictures(splits, study, picture(10 * number + row - 1), *more)


def test_a_row_group_leaves_the_memory_when_others_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "KEPT_BYTES", 400)
    pq.write_table(pa.table({"image": [picture(n) for n in range(6)]}), tmp_path / "x.parquet", row_group_size=1)
    for n in (0, 1, 5, 0):
        opened = open_radiograph(tmp_path / f"x.parquet/{n}-0-0-0/image")
        assert np.array_equal(opened, open_radiograph(io.BytesIO(picture(n))))
    assert sum(column.nbytes for column in members._groups._kept.values() if column is not None) <= 400


def test_shards_that_change_are_read_anew_and_their_pictures_checked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_medvlm.data import verification

    monkeypatch.setattr(verification, "settled", lambda times: times > 0)
    shard = write_tar(
        tmp_path / "a.tar", {"1.txt": b"One.", "1.png": picture(1), "2.txt": b"Two.", "2.png": b"x" * 200}
    )
    with pytest.warns(UserWarning, match="no patient column"):
        splits, studies = studies_of(shard)
    assert set(studies) == {"1"} and splits.rejections() == {"image cannot be read": 1}
    paths = [study.images[0].path for study in studies.values()]
    monkeypatch.setattr(verification, "why_unusable", lambda path: f"read again: {path}")
    splits, studies = studies_of(shard)
    write_tar(shard, {"1.txt": b"One more.", "1.png": picture(1)})
    assert "read again" in check_images(tmp_path, paths)[paths[0]]
    with pytest.warns(UserWarning, match="no patient column"):
        _, studies = studies_of(shard, verify_images=False)
    assert [study.report for study in studies.values()] == ["One more."]


@pytest.mark.parametrize(
    ("write", "pattern", "message"),
    [
        (lambda path: write_tar(path / "a.tar", {"1.txt": b"x", "1.png": picture(1)}, "w:gz"), "a.tar", "unpack it"),
        (lambda path: (path / "a.tar").write_bytes(b"no tar" * 99), "*.tar", "a.tar: no whole tar file"),
        (lambda path: (path / "a.parquet").write_bytes(b"PAR1"), "*.parquet", "a.parquet: cannot be read as Parquet"),
        (lambda path: write_tar(path / "a.tar", {"1.txt": b"x", "1.png": b""}), "b*.tar", "no file fits this pattern"),
        (lambda path: write_tar(path / "a.tar", {"1.txt": b"x"}), "*.tar", "none of 1 rows can be used"),
        (lambda path: write_tar(path / "a.tar", {}), "*.tar", "no sample in it"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, write, pattern: str, message: str) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_splits(str(tmp_path / pattern))


def test_a_shard_that_is_cut_short_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", sample("a", 1, findings="x") | sample("b", 2, findings="y"))
    shard.write_bytes(shard.read_bytes()[:2100])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a\.tar: no whole tar file"):
            load_splits(str(shard))
    with pytest.raises(ValueError, match="lie inside the shards; leave it out"):
        load_splits(str(shard), image_folder=str(tmp_path))


def test_paths_into_shards_stay_inside_them(tmp_path: Path) -> None:
    path = members.member_path("a.tar", (512, 9), "../../x\\..\\C:y\0" + "z" * 80 + ".png")
    assert path.startswith("a.tar/512-9/x/C_y") and path.endswith(".png") and len(path) < 150
    write_tar(tmp_path / "a.tar", {"1.png": picture(1)})
    for place, why in (("99999-9", "no bytes there"), ("0-0", "no bytes there"), ("0-9", "not a DICOM")):
        with pytest.raises(ValueError, match=why):
            open_radiograph(tmp_path / f"a.tar/{place}/1.png")
    with pytest.raises(ValueError, match="no such file"):
        open_radiograph(tmp_path / "b.tar/512-9/1.png")
