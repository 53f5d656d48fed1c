"""Tables of every kind into studies, and what is said of the rows that cannot be."""

import csv
import gzip
import io
import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from hf_medvlm.data.sources.base import link_priors
from hf_medvlm.data.sources.table import load_table
from hf_medvlm.data.splits import assign_splits

REAL_RADIOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "real_cxr"
COLUMNS = ["image", "patient_id", "study_id", "view", "findings", "impression", "split", "labels", "study_date"]


def read_table(path, seed=0, **options):
    """Studies with priors and splits, and the rejected rows: what recipes and `prepare` make of `load_table`."""
    corpus = load_table(path, **options)
    return assign_splits(link_priors(corpus.studies), seed), corpus.rejected


def row(number, **changes):
    """One good CSV row; every fifth patient is in test, every other fifth in validate."""
    split = {0: "test", 1: "val"}.get(number % 5, "train")
    values = [f"img/{number}.png", f"p{number}", f"s{number}", "PA", f"Clear lungs {number}.", "Normal.", split, "", ""]
    return dict(zip(COLUMNS, values, strict=True)) | changes


def write(path, rows, columns=None):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def without(rows, *columns):
    return [{name: value for name, value in r.items() if name not in columns} for r in rows]


@pytest.fixture
def rows():
    return [row(number) for number in range(10)]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl", ".jsonl.gz"])
def test_each_format_gives_the_same_studies(tmp_path, rows, suffix):
    expected, _ = read_table(write(tmp_path / "a.csv", rows))
    path = tmp_path / f"b{suffix}"
    if "jsonl" in suffix:
        text = "".join(json.dumps(r) + "\n\n" for r in rows).encode()
        path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    else:
        write(path, rows)
    studies, rejected = read_table(path)
    assert studies == expected and rejected == []
    assert [study.split for study in studies[:3]] == ["test", "validate", "train"]
    assert studies[0].findings == "Clear lungs 0." and studies[0].impression == "Normal."


def test_images_of_one_study_join_only_where_the_text_agrees(tmp_path, rows):
    rows += [row(3, image="img/3b.png", view="LATERAL"), row(4, image="img/4b.png", findings="Another text.")]
    rows += [row(5)]  # the very same row again
    studies, rejected = read_table(write(tmp_path / "a.csv", rows))
    by_id = {study.study_id: study for study in studies}
    assert [(i.path, i.view) for i in by_id["s3"].images] == [("img/3.png", "PA"), ("img/3b.png", "LATERAL")]
    assert by_id["s4"].findings != by_id["s4-2"].findings and by_id["s4"].patient_id == by_id["s4-2"].patient_id
    assert [(r.reason, r.line) for r in rejected] == [("duplicate row", 14)] and len(studies) == 11


def test_equal_study_ids_of_two_patients_stay_two_studies(tmp_path, rows):
    studies, _ = read_table(write(tmp_path / "a.csv", [dict(r, study_id="1") for r in rows[:2]] + rows[2:]))
    assert {study.study_id for study in studies[:2]} == {"p0-1", "p1-1"}


@pytest.mark.parametrize(
    "columns, expected",
    [
        ("findings", {"findings": "F", "impression": "", "report": ""}),
        (["impression", "findings"], {"findings": "F", "impression": "I", "report": ""}),
        ("caption", {"findings": "", "impression": "", "report": "C"}),
        ("caption, Note", {"report": "C\nN"}),
        ("findings,caption", {"findings": "F\nC", "report": ""}),
        (None, {"findings": "F", "impression": "I"}),
    ],
)
def test_where_text_columns_go(tmp_path, columns, expected):
    rows = [row(n, findings="F", impression="I", caption="C", Note="N") for n in range(3)]
    study = read_table(write(tmp_path / "a.csv", rows), text_columns=columns)[0][0]
    assert {name: getattr(study, name) for name in expected} == expected


def test_split_words_that_are_no_split_are_passed_over_with_a_notice(tmp_path, rows, caplog):
    for words in (["dev", "heldout"], ["dev", "dev"], ["train", "fold 2"], ["train", ""]):
        path = write(tmp_path / "a.csv", [dict(r, split=words[n % 2]) for n, r in enumerate(rows)])
        with caplog.at_level(logging.WARNING):
            studies, _ = read_table(path)
        assert "column 'split' is not used" in caplog.text
        assert {study.split for study in studies} == {"train", "validate", "test"}
        caplog.clear()
        if "heldout" in words or "fold 2" in words or "" in words:
            with pytest.raises(ValueError, match=r"a\.csv:[23]: column 'split' says"):
                read_table(path, split_column="split")
    studies, _ = read_table(write(tmp_path / "a.csv", [dict(r, split="dev") for r in rows]), split_column="split")
    assert {study.split for study in studies} == {"validate"}


def test_split_is_by_patient_and_does_not_depend_on_row_order(tmp_path):
    rows = without([row(n, patient_id=f"p{n // 4}") for n in range(200)], "split")
    forward, _ = read_table(write(tmp_path / "a.csv", rows), seed=3)
    backward, _ = read_table(write(tmp_path / "b.csv", rows[::-1]), seed=3)
    assert {s.study_id: s.split for s in forward} == {s.study_id: s.split for s in backward}
    assert len({(s.patient_id, s.split) for s in forward}) == 50
    other, _ = read_table(tmp_path / "a.csv", seed=4)
    assert [s.split for s in other] != [s.split for s in forward]


def test_without_a_patient_column_the_split_is_by_study_and_a_warning_says_so(tmp_path, rows):
    path = write(tmp_path / "a.csv", without(rows, "patient_id", "split"))
    with pytest.warns(UserWarning, match="leakage cannot be excluded.*--patient_column"):
        studies, _ = read_table(path)
    assert len({study.patient_id for study in studies}) == 10


def test_paths_that_name_the_patient_stand_in_for_the_column(tmp_path):
    lines = [f"p10/p1000003{n // 2}/s5000000{n}/x.png,Text {n}." for n in range(4)]
    (tmp_path / "t.csv").write_text("image,report\n" + "\n".join(lines) + "\n")
    corpus = load_table(tmp_path / "t.csv")
    assert [study.patient_id for study in corpus.studies] == ["10000030", "10000030", "10000031", "10000031"]
    assert corpus.patients_known and any("image paths tell patients apart" in note for note in corpus.notes)


def test_two_texts_of_one_image_stay_in_one_split(tmp_path, rows):
    rows = [
        dict(r, findings=text) for r in without(rows, "patient_id", "study_id", "split") for text in ("One.", "Two.")
    ]
    with pytest.warns(UserWarning, match="no patient column"):
        studies, _ = read_table(write(tmp_path / "a.csv", rows))
    assert {s.study_id for s in studies[:2]} == {"img/0", "img/0-2"}
    assert len({(s.images[0].path, s.split) for s in studies}) == 10


def test_labels_as_object_as_names_and_as_columns(tmp_path):
    rows = [
        row(0, labels='{"Edema": 1.0, "Pneumonia": -1, "Fracture": null}', Cardiomegaly="0.0"),
        row(1, labels="COVID-19; ARDS", Cardiomegaly=""),
        row(2, labels='{"Edema": 2}', Cardiomegaly=""),
        row(3, labels="", Cardiomegaly="yes"),
        row(4, labels="{Edema", Cardiomegaly=""),
    ]
    studies, rejected = read_table(write(tmp_path / "a.csv", rows))
    assert studies[0].labels == {"Cardiomegaly": 0, "Edema": 1, "Pneumonia": -1, "Fracture": None}
    assert studies[1].labels == {"Cardiomegaly": None, "COVID-19": 1, "ARDS": 1}
    assert [(r.line, r.reason, r.study_id) for r in rejected] == [
        (n, "impossible label", f"s{n - 2}") for n in (4, 5, 6)
    ]
    assert "Edema is 2" in rejected[0].detail and "Cardiomegaly is 'yes'" in rejected[1].detail


def test_dates_link_each_study_to_the_one_before(tmp_path):
    dates = ["20200103", "2020-01-01", "2020-01-02 10:30:00", "2020-13-01", "2020-01-03", ""]
    rows = [row(n, patient_id="p", split="train", study_date=date) for n, date in enumerate(dates)]
    studies, rejected = read_table(write(tmp_path / "a.csv", rows))
    assert {s.study_id: s.prior_study_id for s in studies} == {
        "s0": "s2",
        "s1": None,
        "s2": "s1",
        "s4": "s2",
        "s5": None,
    }
    assert [(r.line, r.reason) for r in rejected] == [(5, "impossible date")]


def test_bad_rows_are_named_with_line_and_reason_and_the_rest_goes_on(tmp_path, rows):
    rows[1] |= {"findings": "Two\nlines.", "image": "img/1.png"}  # the record spans lines 3 and 4
    rows[2] |= {"image": "../secret.png"}
    rows[3] |= {"image": ""}
    rows[4] |= {"findings": " ", "impression": ""}
    rows[5] |= {"patient_id": ""}
    rows[6] |= {"image": "/etc/passwd"}
    path = write(tmp_path / "a.csv", rows)
    path.write_text(path.read_text() + "only,two\n")
    studies, rejected = read_table(path)
    reasons = [(r.line, r.reason) for r in sorted(rejected, key=lambda r: r.line)]
    leaves = "path leaves the image folder"
    assert reasons == [
        *[(5, leaves), (6, "no image"), (7, "empty text"), (8, "no patient"), (9, leaves)],
        (13, "wrong number of fields"),
    ]
    assert all(r.file == str(path) for r in rejected) and len(studies) == 5


def test_absolute_paths_inside_the_image_folder_become_relative(tmp_path, rows):
    path = write(tmp_path / "a.csv", [dict(r, image=str(tmp_path / r["image"])) for r in rows])
    studies, rejected = read_table(path, image_folder=tmp_path)
    assert studies[0].images[0].path == "img/0.png" and not rejected


def test_jsonl_lines_that_are_no_objects_are_named(tmp_path, rows):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps(rows[0]), '{"image": ', "[1]", *(json.dumps(r) for r in rows[1:])]))
    studies, rejected = read_table(path)
    assert len(studies) == 10 and [(r.line, r.reason) for r in rejected] == [(2, "not JSON"), (3, "not JSON")]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"text_columns": "finding"}, r"no column 'finding'; did you mean 'findings'\? \(columns: image, patient_id"),
        ({"image_column": "picture"}, r"a\.csv:1: no column 'picture'"),
        ({"patient_column": "Patient_ID"}, "no column 'Patient_ID'; did you mean 'patient_id'"),
        ({"text_columns": "labels"}, r"none of 10 rows can be used; the first: .*a\.csv:2: study 's0' empty text"),
    ],
)
def test_wrong_columns_name_their_neighbours(tmp_path, rows, options, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path / "a.csv", rows), **options)


def test_broken_files_are_errors_with_the_line(tmp_path, rows):
    with pytest.raises(ValueError, match=r"missing\.csv: cannot be read: No such file"):
        read_table(tmp_path / "missing.csv")
    with pytest.raises(ValueError, match=r"missing\.parquet: no such file"):
        read_table(tmp_path / "missing.parquet")
    with pytest.raises(ValueError, match="tried a file, a folder and an id on the Hub"):
        read_table(tmp_path / "missing")
    whole = write(tmp_path / "a.csv.gz", [row(n) for n in range(2000)]).read_bytes()
    (tmp_path / "a.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.csv\.gz:\d+: the gzip is broken off"):
        read_table(tmp_path / "a.csv.gz")
    path = write(tmp_path / "b.csv", rows)
    path.write_text(path.read_text() + 'img/11.png,"unclosed')
    with pytest.raises(ValueError, match=r"b\.csv:12: not CSV"):
        read_table(path)
    (tmp_path / "c.csv").write_bytes(b"image,findings\na.png,caf\xe9\n")
    with pytest.raises(ValueError, match=r"c\.csv:\d+: not UTF-8"):
        read_table(tmp_path / "c.csv")


def encoded(image_format, seed):
    buffer = io.BytesIO()
    Image.new("L", (8, 8), seed).save(buffer, image_format)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_images_inside_a_data_set_are_exported_once(tmp_path, kind):
    import datasets

    formats = ["PNG", "JPEG", "BMP", "PNG"]
    table = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": encoded(f, 10 * n), "path": None} for n, f in enumerate(formats)],
            "findings": [f"Text {n}." for n in range(4)],
            "patient_id": list("abcd"),
        }
    ).cast_column("image", datasets.Image())
    if kind == "parquet":
        table.to_parquet(path := tmp_path / "set.parquet")
    else:
        table.save_to_disk(path := tmp_path / "set")
    with pytest.raises(ValueError, match="name a cache folder"):
        read_table(path)
    cache = tmp_path / "cache"
    studies, rejected = read_table(path, cache_folder=cache)
    paths = [study.images[0].path for study in studies]
    assert rejected == [] and [p[-4:] for p in paths] == [".png", ".jpg", ".png", ".png"]
    assert [Image.open(cache / p).getpixel((0, 0)) for p in paths] == [0, 10, 20, 30]
    assert (cache / paths[1]).read_bytes() == encoded("JPEG", 10)  # as it came: nothing is lost
    before = {p.name: p.stat().st_mtime_ns for p in cache.iterdir()}
    assert read_table(path, cache_folder=cache) == (studies, rejected)
    assert {p.name: p.stat().st_mtime_ns for p in cache.iterdir()} == before and len(before) == 4


def test_the_splits_of_a_data_set_are_taken(tmp_path):
    import datasets

    part = {"image": ["a.png", "b.png"], "report": ["One.", "Two."]}
    splits = {"train": part, "validation": {**part, "image": ["c.png", "d.png"]}}
    datasets.DatasetDict({n: datasets.Dataset.from_dict(t) for n, t in splits.items()}).save_to_disk(tmp_path / "set")
    with pytest.warns(UserWarning, match="no patient column"):
        studies, _ = read_table(tmp_path / "set")
    assert {s.study_id: s.split for s in studies} == {"a": "train", "b": "train", "c": "validate", "d": "validate"}


@pytest.mark.skipif(not REAL_RADIOGRAPHS.exists(), reason="the shared data is not here")
def test_real_radiographs():
    folder = REAL_RADIOGRAPHS
    studies, rejected = read_table(folder / "metadata.csv", text_columns="findings", image_folder=folder)
    assert rejected == [] and {study.split for study in studies} == {"train", "validate", "test"}
    assert all((folder / image.path).exists() for study in studies for image in study.images)
    assert len({(s.patient_id, s.split) for s in studies}) == len({s.patient_id for s in studies})
    assert any(len(study.images) > 1 for study in studies) and all(study.licence for study in studies)
