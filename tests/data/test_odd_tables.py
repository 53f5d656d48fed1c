"""Tables as somebody else writes them: read right, with what was guessed said, or refused in one line that helps."""

import datetime
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from make_corpora import write_image
from PIL import Image

from hf_medvlm.data.load import load_splits
from hf_medvlm.data.sources.table import load_table

TEXTS = [f"Heart size is normal in case {n}; no effusion, no pneumothorax." for n in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four pictures 0.png ... 3.png, two in a folder below, and one with its ending in capitals."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(4):
        write_image(folder / f"{number}.png", number)
    write_image(folder / "p9" / "lateral.png", 9)
    write_image(folder / "p8" / "scan.jpg", 8)
    (folder / "p8" / "scan.jpg").rename(folder / "p8" / "Scan.JPG")
    return folder


def load(tmp_path, folder, text, name="t.csv", encoding="utf-8", **options):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return load_table(path, image_folder=folder, **options)


def rows(separator=",", header="image,patient_id,findings", quote='"'):
    lines = [header.replace(",", separator)]
    lines += [separator.join((f"{n}.png", f"p{n}", f"{quote}{TEXTS[n]}{quote}")) for n in range(4)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("separator", "name", "word"),
    [(";", "t.csv", "semicolons"), ("\t", "t.csv", "tabs"), ("|", "t.txt", "bars"), (",", "t.tsv", "commas")],
)
def test_separators_are_found_out_and_said(separator, name, word, tmp_path, folder):
    corpus = load(tmp_path, folder, rows(separator), name)
    assert [study.findings for study in corpus.studies] == TEXTS
    assert any(f"divided by {word}" in note for note in corpus.notes)


def test_excels_sep_line_and_commas_need_no_note(tmp_path, folder):
    corpus = load(tmp_path, folder, "sep=;\r\n" + rows(";").replace("\n", "\r\n"))
    assert len(corpus.studies) == 4 and corpus.studies[0].findings == TEXTS[0]
    plain = load(tmp_path, folder, rows())
    assert plain.notes == [] and plain.studies == corpus.studies


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_byte_order_mark_says_the_encoding(encoding, tmp_path, folder):
    corpus = load(tmp_path, folder, rows().replace("case 0", "Zürich"), encoding=encoding)
    assert "Zürich" in corpus.studies[0].findings


def test_another_encoding_is_refused_with_its_line_and_read_when_named(tmp_path, folder):
    text = rows().replace("case 2", "Zürich")
    with pytest.raises(ValueError, match=r"t\.csv:4: not UTF-8 \(byte 0xfc.*--encoding \(cp1252 is what Excel writes"):
        load(tmp_path, folder, text, encoding="cp1252")
    corpus = load_table(tmp_path / "t.csv", image_folder=folder, encoding="cp1252")
    assert "Zürich" in corpus.studies[2].findings
    with pytest.raises(ValueError, match="--encoding klingon: no such encoding; use utf-8, cp1252"):
        load_table(tmp_path / "t.csv", image_folder=folder, encoding="klingon")


def test_words_for_nothing_are_missing_and_counted(tmp_path, folder):
    words = ["nan", "N/A", "None", "NULL"]
    text = "image,patient_id,findings,impression\n" + "".join(
        f"{n}.png,p{n},{words[n]},{'Normal.' if n else words[n]}\n" for n in range(4)
    )
    corpus = load(tmp_path, folder, text)
    assert [(s.findings, s.impression) for s in corpus.studies] == [("", "Normal.")] * 3
    assert [entry.reason for entry in corpus.rejected] == ["empty text"]
    assert any("5 cells say" in note for note in corpus.notes)


@pytest.mark.parametrize(
    ("header", "fields"),
    [
        ("Image,PatientID,Report", "report"),
        ("File_Name,subject_id,text", "report"),
        ("IMAGE_PATH,Patient ID,FINDINGS", "findings"),
        ("dicom_id,Subject,Impression", "impression"),
        ("path,PATIENT_ID,caption", "report"),
        ("Image Index,patient,Radiology Report", "report"),
    ],
)
def test_common_names_are_known_in_any_case_and_said(header, fields, tmp_path, folder):
    corpus = load(tmp_path, folder, rows(header=header))
    assert [getattr(study, fields) for study in corpus.studies] == TEXTS
    assert {study.patient_id for study in corpus.studies} == {"p0", "p1", "p2", "p3"}
    (note,) = corpus.notes
    assert f"image from {header.split(',')[0]!r}" in note and f"patient_id from {header.split(',')[1]!r}" in note


def test_other_columns_are_known_too(tmp_path, folder):
    header = "filename,PatientID,StudyID,Fold,ViewPosition,Exam Date,Report,Pleural_Effusion,Finding Labels\n"
    text = header + "".join(
        f"{n}.png,{n}.0,{n},{'train' if n else 'VAL'},{'Frontal' if n else 'lateral'},2020-01-0{n + 1},Report {n}.,1.0,"
        f"\"['Edema', 'Mass']\"\n"
        for n in range(4)
    )
    corpus = load(tmp_path, folder, text)
    first, second = corpus.studies[:2]
    assert (first.study_id, first.patient_id, first.split, first.study_date) == ("0", "0", "validate", "2020-01-01")
    assert (first.images[0].view, second.images[0].view) == ("LATERAL", None)
    assert first.labels == {"Pleural Effusion": 1, "Edema": 1, "Mass": 1}


def test_a_date_column_that_nobody_named_and_nobody_can_read_is_left_alone(tmp_path, folder):
    text = "image,patient_id,date,report\n" + "".join(f"{n}.png,p,0{n + 1}/02/2020,Report {n}.\n" for n in range(4))
    corpus = load(tmp_path, folder, text)
    assert len(corpus.studies) == 4 and all(study.study_date is None for study in corpus.studies)
    assert any("column 'date' is not used for dates: line 2" in note for note in corpus.notes)


def test_ids_that_pandas_made_floats_are_the_same_patient(tmp_path, folder):
    text = "image,patient_id,findings\n0.png,123,One.\n1.png,123.0,Two.\n2.png,124,Three.\n3.png,nan,Four.\n"
    corpus = load(tmp_path, folder, text)
    assert [study.patient_id for study in corpus.studies] == ["123", "123", "124"]
    assert [entry.reason for entry in corpus.rejected] == ["no patient"]


@pytest.mark.parametrize("cell", ['["0.png", "p9/lateral.png"]', "['0.png', 'p9/lateral.png']", "0.png;p9/lateral.png"])
def test_several_images_in_one_cell_are_one_study(cell, tmp_path, folder):
    text = (
        'image|view|patient_id|findings\n"' + cell.replace('"', '""') + "\"|['PA','LATERAL']|p|Text.\n1.png|PA|q|T.\n"
    )
    corpus = load(tmp_path, folder, text)
    assert [(i.path, i.view) for i in corpus.studies[0].images] == [("0.png", "PA"), ("p9/lateral.png", "LATERAL")]
    assert corpus.studies[1].images[0].path == "1.png"


def test_lists_in_json_lines(tmp_path, folder):
    records = [
        {"id": "a", "image_path": ["0.png", "p9/lateral.png"], "patient_id": 1, "report": "One.", "labels": ["Edema"]},
        {"id": "b", "image_path": [], "patient_id": 2, "report": "Two."},
        {"id": "c", "image_path": "1.png", "patient_id": 3, "report": ["Three", "parts"]},
        {"id": "d", "image_path": "2.png", "patient_id": 4, "report": "Four.", "labels": 5},
        {"id": "e", "image_path": [{"a": 1}], "patient_id": 5, "report": "Five."},
        {"id": "f", "image_path": "3.png", "patient_id": [6], "report": "Six."},
    ]
    corpus = load(tmp_path, folder, "".join(json.dumps(record) + "\n" for record in records), "t.jsonl")
    assert [len(study.images) for study in corpus.studies] == [2] and corpus.studies[0].labels == {"Edema": 1}
    assert [(entry.line, entry.reason) for entry in corpus.rejected] == [
        (2, "no image"),
        (3, "no text"),
        (4, "impossible label"),
        (5, "no image"),
        (6, "impossible id"),
    ]


def test_unicode_line_separators_are_data_in_json_lines(tmp_path, folder):
    text = "One.\u2028Two.\u0085Three."
    corpus = load(
        tmp_path, folder, json.dumps({"image": "0.png", "report": text, "patient_id": 1}, ensure_ascii=False), "t.jsonl"
    )
    assert corpus.studies[0].report == text


@pytest.mark.parametrize(
    ("cell", "path", "way"),
    [
        ("0", "0.png", "ending"),
        ("0.PNG", "0.png", "ending"),
        ("p8/scan.jpg", "p8/Scan.JPG", "ending"),
        ("p9\\lateral.png", "p9/lateral.png", "separator"),
        ("C:\\pacs\\export\\p9\\Lateral.png", "p9/lateral.png", "separator"),
        ("\\\\server\\share\\0.png", "0.png", "separator"),
        ("images/1.png", "1.png", "folder"),
        ("lateral", "p9/lateral.png", "folder"),
    ],
)
def test_paths_are_found_where_one_file_fits_and_that_is_said(cell, path, way, tmp_path, folder):
    corpus = load(tmp_path, folder, f"image,patient_id,findings\n{cell},p,Text.\n")
    assert corpus.studies[0].images[0].path == path
    assert any(way in note and repr(cell) in note for note in corpus.notes)


def test_paths_that_fit_several_files_or_lie_elsewhere_are_rejected(tmp_path):
    for name in ("a/x.png", "b/x.png", "c/y.png"):
        write_image(tmp_path / "i" / name)
    cells = ["x", "a/x.png", "C:\\old\\z.png", "../x.png", "/etc/passwd", "d/y.png"]
    text = "image,patient_id,findings\n" + "".join(f"{cell},p{n},Text.\n" for n, cell in enumerate(cells))
    corpus = load(tmp_path, tmp_path / "i", text)
    leaves = "path leaves the image folder"
    reasons = [(entry.line, entry.reason) for entry in corpus.rejected]
    assert reasons == [(2, "ambiguous image"), (4, leaves), (5, leaves), (6, leaves)]
    # c/y.png is another patient's picture: nothing is taken by its bare name where a folder was named
    assert [study.images[0].path for study in corpus.studies] == ["a/x.png", "d/y.png"]


def test_a_column_that_stands_twice_is_refused(tmp_path, folder):
    with pytest.raises(ValueError, match=r"t\.csv:1: column 'findings' stands 2 times \(columns 2, 4\); rename"):
        load(tmp_path, folder, "image,findings,patient_id,findings\n0.png,a,p,b\n")


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("image,findings\n", "t.csv", "no rows below the header"),
        ("", "t.csv", "no rows"),
        ("when,what\n1,2\n", "t.csv", "no text column; name one with --text_columns"),
        ("when,findings\n1,2\n", "t.csv", r"name it with --image_column \(columns: when, findings\)"),
        ('image,findings\n0.png,"open\n', "t.csv", "t.csv:2: not CSV: .*is a quotation mark open"),
        ("[]", "t.json", "no rows"),
        ("5", "t.json", "no table in it; a list of objects"),
        ("{", "t.json", "t.json:1: not JSON"),
        ("[" * 100_000, "t.json", "nested too deep"),
        ("x", "t.xls", "not a table this reads"),
        ("x", "t.xlsx", "not an Excel file, or a broken one"),
        ("x", "t.parquet", "could not be read as a data set"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(text, name, message, tmp_path, folder):
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, folder, text, name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_json_lists_of_several_kinds(tmp_path, folder):
    records = [{"image": f"{n}.png", "patient_id": n, "findings": TEXTS[n]} for n in range(4)]
    by_column = {name: {str(n): record[name] for n, record in enumerate(records)} for name in records[0]}
    splits = {"train": records[:2], "val": records[2:3], "test": records[3:]}
    lines = "\n".join(map(json.dumps, records))
    plain = load(tmp_path, folder, json.dumps(records), "t.json").studies
    assert [study.findings for study in plain] == TEXTS
    assert load(tmp_path, folder, json.dumps({"data": records}), "t.json").studies == plain
    assert load(tmp_path, folder, json.dumps(by_column), "t.json").studies == plain
    assert load(tmp_path, folder, lines, "t.json").studies == plain
    split = load(tmp_path, folder, json.dumps(splits), "t.json").studies
    assert [study.split for study in split] == ["train", "train", "validate", "test"]


def test_excel(tmp_path, folder):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["Image", "Patient ID", "Study Date", "Findings", None])
    for n in range(4):
        book.active.append([f"{n}.png", 100 + n // 2, datetime.datetime(2020, 1, n + 1), TEXTS[n], None])
    book.create_sheet("notes").append(["x"])
    book.save(tmp_path / "t.xlsx")
    corpus = load_table(tmp_path / "t.xlsx", image_folder=folder)
    assert [study.findings for study in corpus.studies] == TEXTS
    assert [(s.patient_id, s.study_date) for s in corpus.studies[:2]] == [("100", "2020-01-01"), ("100", "2020-01-02")]
    assert any("of 2 sheets the first" in note for note in corpus.notes)


def test_excel_without_openpyxl_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"pip install 'hf_medvlm\[excel\]'; or save the sheet as CSV"):
        load_table(tmp_path / "t.xlsx")


def encoded(seed, kind="PNG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def bomb():
    """The header of a BMP of 20,000 x 20,000 pixels."""
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 20000, 20000, 1, 8, 0, 0, 0, 0, 0, 0)
    )


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """A Parquet file as the Hub serves it: good images, and rows that are bombs, junk, and paths to other places."""
    import datasets

    place = tmp_path_factory.mktemp("embedded")
    (place / "secret.txt").write_text("secret")
    images = [{"bytes": encoded(n), "path": f"{n}.png"} for n in range(4)]
    images += [
        {"bytes": bytes_, "path": None} for bytes_ in (bomb(), b"%!PS-Adobe junk", b"P5\n2 x\n", encoded(1)[:60])
    ]
    images += [{"bytes": None, "path": path} for path in (str(place / "secret.txt"), "../secret.txt")]
    images.append(None)
    table = datasets.Dataset.from_dict(
        {
            "image": images,
            "findings": [f"Case {n} has clear lungs." for n in range(len(images))],
            "patient_id": list(range(len(images))),
        },
        features=datasets.Features(
            {
                "image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},  # what Image stores
                "findings": datasets.Value("string"),
                "patient_id": datasets.Value("int64"),
            }
        ),
    )
    (place / "set").mkdir()
    table.to_parquet(place / "set" / "t.parquet")
    table.save_to_disk(place / "saved")
    return place


@pytest.mark.parametrize("name", ["set/t.parquet", "saved"])
def test_embedded_images_are_bounded_and_one_bad_row_ends_nothing(name, embedded, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MEDVLM_CACHE", str(tmp_path))
    splits = load_splits(str(embedded / name))
    assert sum(map(len, splits.studies.values())) == 4
    reasons = splits.rejections()
    assert reasons.pop("image cannot be read") == 4 and reasons.pop("no image") == 1
    assert sum(reasons.values()) == 2 and all(reason.startswith("path leaves the ") for reason in reasons)
    written = [path for path in (tmp_path / "exported").rglob("*") if path.is_file()]
    assert len(written) == 4 and all(path.suffix == ".png" for path in written)
    assert splits.image_folder.is_relative_to(tmp_path)


def test_several_embedded_images_a_row(tmp_path):
    import datasets

    features = datasets.Features(
        {"images": datasets.Sequence(datasets.Image(decode=False)), "report": datasets.Value("string")}
    )
    rows_ = {
        "images": [[{"bytes": encoded(1), "path": None}, {"bytes": encoded(2), "path": None}]],
        "report": ["Text."],
    }
    datasets.Dataset.from_dict(rows_, features=features).to_parquet(tmp_path / "t.parquet")
    with pytest.warns(UserWarning, match="no patient column"):
        corpus = load_table(tmp_path / "t.parquet", cache_folder=tmp_path / "cache")
    assert len(corpus.studies[0].images) == 2 and corpus.image_folder == tmp_path / "cache"


def test_imagefolder_and_folders_with_one_table(tmp_path):
    for split in ("train", "test"):
        for n in range(2):
            write_image(tmp_path / "a" / split / f"{n}.png", n)
        lines = "".join(f"{n}.png,{split}{n},Report {n}.\n" for n in range(2))
        (tmp_path / "a" / split / "metadata.csv").write_text("file_name,patient_id,text\n" + lines)
    corpus = load_table(tmp_path / "a", image_folder=tmp_path / "a")
    assert [(s.images[0].path, s.split) for s in corpus.studies] == [
        ("test/0.png", "test"),
        ("test/1.png", "test"),
        ("train/0.png", "train"),
        ("train/1.png", "train"),
    ]
    assert all((tmp_path / "a" / study.images[0].path).is_file() for study in corpus.studies)
    write_image(tmp_path / "b" / "images" / "0.png")
    (tmp_path / "b" / "reports.csv").write_text("image,patient_id,report\nimages/0.png,p,Text.\n")
    assert load_table(tmp_path / "b", image_folder=tmp_path / "b").studies[0].images[0].path == "images/0.png"
    (tmp_path / "b" / "more.csv").write_text("image,report\n")
    with pytest.raises(ValueError, match="2 tables lie in it .*name one with --dataset"):
        load_table(tmp_path / "b")


def test_a_folder_of_dicom_files_with_a_table_keyed_by_uid(tmp_path):
    import pydicom

    for n, view in enumerate(("PA", "LATERAL", "PA")):
        path = tmp_path / "pacs" / f"IM{n:03}.dcm"
        write_image(path, n)
        header = pydicom.dcmread(path)
        header.SOPInstanceUID, header.StudyInstanceUID, header.ViewPosition = f"1.2.{n}", f"1.9.{n // 2}", view
        header.save_as(path)
    with pytest.raises(ValueError, match="3 DICOM files and no table with their reports; give it with --dataset"):
        load_table(tmp_path / "pacs")
    corpus = load(
        tmp_path,
        tmp_path / "pacs",
        "StudyInstanceUID,PatientID,Report\n1.9.0,1,First report.\n1.9.1,2,Second report.\n",
    )
    images = [[(image.path, image.view) for image in study.images] for study in corpus.studies]
    assert images == [[("IM000.dcm", "PA"), ("IM001.dcm", "LATERAL")], [("IM002.dcm", "PA")]]
    assert [study.study_id for study in corpus.studies] == ["1.9.0", "1.9.1"]
    one = load(tmp_path, tmp_path / "pacs", "SOPInstanceUID,PatientID,Report\n1.2.1,1,First report.\n")
    assert one.studies[0].images[0].path == "IM001.dcm" and any("UID in the DICOM header" in n for n in one.notes)


def test_pipes_and_nothing_are_refused(tmp_path):
    import os

    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="no plain file"):
        load_table(tmp_path / "t.csv")
    for name in ("", "/"):
        with pytest.raises(ValueError, match="name a table"):
            load_table(name)
    Path(tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the folder is empty"):
        load_table(tmp_path / "empty")
