"""Tables and folders as hospitals have them, written by somebody who had not read the reader: each is read right, or
refused in one line that says what to do."""

import bz2
import gzip
import json
import unicodedata
import zipfile
from pathlib import Path

import pytest
from make_corpora import write_image

from hf_medvlm.data.sources.base import link_priors
from hf_medvlm.data.sources.table import load_table

PLAIN = [(str(n), [f"{n}.png"], f"Heart {n}, lungs clear.") for n in range(3)]


def lines(header, row, end="\n", count=3):
    return header + end + "".join(row.format(n=n, m=n + 1) + end for n in range(count))


def simple(separator=",", header="image,patient_id,report"):
    return lines(header.replace(",", separator), separator.join(("{n}.png", "{n}", '"Heart {n}, lungs clear."')))


READ = {
    "german": (
        lines(
            "Patienten-ID;Bilddatei;Untersuchungsdatum;Befund;Beurteilung",
            "{n};{n}.png;2{n}.12.2019;Herz größer {n}.;Unauffällig.",
            "\r\n",
        ).encode("utf-8-sig"),
        [(str(n), [f"{n}.png"], f"Herz größer {n}. Unauffällig.") for n in range(3)],
    ),
    "french": (
        lines("N° patient;Fichier;Compte rendu;Date d'examen", "{n};{n}.png;Pas d'épanchement {n}.;0{m}/02/2020"),
        [(str(n), [f"{n}.png"], f"Pas d'épanchement {n}.") for n in range(3)],
    ),
    "french sections": (
        lines("identifiant_patient,image,résultats,conclusion", "{n},{n}.png,Poumons {n}.,Normal."),
        [(str(n), [f"{n}.png"], f"Poumons {n}. Normal.") for n in range(3)],
    ),
    "spanish, accents apart": (
        unicodedata.normalize("NFD", "ID paciente,Imagen,Informe,Conclusión\n") + lines("", "{n},{n}.png,Tórax {n}.,"),
        [(str(n), [f"{n}.png"], f"Tórax {n}.") for n in range(3)],
    ),
    "titles above the header": ("Export RIS 12.03.2021;;\n;;\n" + simple(";"), PLAIN),
    "separators behind the header": (
        lines("image,patient_id,report,,,", '{n}.png,{n},"Heart {n}, lungs clear.",,,'),
        PLAIN,
    ),
    "separators behind the rows": (simple(";").replace('."\n', '.";;\n'), PLAIN),
    "mark, sep= and CRLF": (("sep=;\r\n" + simple(";").replace("\n", "\r\n")).encode("utf-8-sig"), PLAIN),
    "two marks": (("\ufeff" + simple()).encode("utf-8-sig"), PLAIN),
    "Unicode text": (simple("\t").encode("utf-16"), PLAIN),
    "Unicode text without its mark": (simple("\t").encode("utf-16-le"), PLAIN),
    "old Macintosh": (simple().replace("\n", "\r"), PLAIN),
    "thousands of spaces": (
        lines("image ,  patient_id , report", "{n}.png" + " " * 3000 + ',  {n}  , "   Heart {n}, lungs clear.   "'),
        PLAIN,
    ),
    "no-break and zero-width spaces": (simple(header="Image\u00a0File,Patient\u00a0ID,Report\u200b"), PLAIN),
    "an index without a name": (lines(",image,patient_id,report", '{n},{n}.png,{n},"Heart {n}, lungs clear."'), PLAIN),
    "lines and quotation marks in a cell": (
        lines("image,patient_id,report", '{n}.png,{n},"Heart ""{n}""\r\n\r\nEnd."', "\r\n"),
        [(str(n), [f"{n}.png"], f'Heart "{n}"\r\n\r\nEnd.') for n in range(3)],
    ),
    "other separators in the text": (
        lines("image;patient_id;report", "{n}.png;{n};Heart {n}, clear, a|b."),
        [(str(n), [f"{n}.png"], f"Heart {n}, clear, a|b.") for n in range(3)],
    ),
    "protected from Excel": (
        lines("image,patient_id,report", '"=""{n}.png""","=""00{n}""","Heart {n}, lungs clear."'),
        [(f"00{n}", paths, text) for n, (_, paths, text) in enumerate(PLAIN)],
    ),
    "gzip": (gzip.compress(simple(";").encode("utf-16")), PLAIN, "t.csv.gz"),
    "gzip without its ending": (gzip.compress(simple().encode()), PLAIN),
    "text called .xls": (simple("\t"), PLAIN, "t.xls"),
    "upper case": (simple(), PLAIN, "T.CSV"),
    "pandas, orient split": (
        json.dumps(
            {
                "columns": ["image", "patient_id", "report"],
                "index": [0, 1, 2],
                "data": [[paths[0], patient, text] for patient, paths, text in PLAIN],
            }
        ),
        PLAIN,
        "t.json",
    ),
    "paths of a Windows machine": (
        lines("FilePath,MRN,Report", '"D:\\PACS\\{n}.PNG",{n},"Heart {n}, lungs clear."'),
        PLAIN,
    ),
    "file names in folders of the patients": (
        lines("image,patient_id,report", "frontal.png,p{n},Text {n}."),
        [(f"p{n}", [f"p{n}/frontal.png"], f"Text {n}.") for n in range(3)],
    ),
    "folders in place of files": (
        lines("image,patient_id,report", "p{n},p{n},Text {n}."),
        [(f"p{n}", [f"p{n}/Side.JPG", f"p{n}/frontal.png"], f"Text {n}.") for n in range(3)],
    ),
    "another case and ending": (
        lines("image,patient_id,report", "p{n}/SIDE.jpeg,p{n},Text {n}."),
        [(f"p{n}", [f"p{n}/Side.JPG"], f"Text {n}.") for n in range(3)],
    ),
    "zeros that a spreadsheet took": (
        lines("image,patient_id,report", "{n}9,{n},Text {n}."),
        [(str(n), [f"0000{n}9.png"], f"Text {n}.") for n in range(3)],
    ),
    "numbers with a fraction": (
        lines("image,patient_id,report", "{n}.png,{n}.0,Text {n}."),
        [(str(n), [f"{n}.png"], f"Text {n}.") for n in range(3)],
    ),
    "a date as the id": (
        lines("image,patient_id,study_id,report", "{n}.png,{n},2020-01-01,Text {n}."),
        [(str(n), [f"{n}.png"], f"Text {n}.") for n in range(3)],
    ),
    "repeated rows": (simple() + simple().split("\n", 1)[1], PLAIN),
    "empty lines and a total": (simple(";").replace("\n", "\n\n") + ";;\nTotal: 3;;\n", PLAIN),
    "two reports": (
        lines("image,patient_id,report_de,report_en,Radiologist", "{n}.png,{n},Befund {n},Report {n}.,X"),
        [(str(n), [f"{n}.png"], f"Report {n}.") for n in range(3)],
    ),
    "the report beside the first image alone": (
        "study_id,patient_id,image,view,report\n"
        + "".join(f"{n},{n},{n}.png,PA,Text {n}.\n{n},{n},p{n}/Side.JPG,LL,{'nan' if n else ''}\n" for n in range(3)),
        [(str(n), [f"{n}.png", f"p{n}/Side.JPG"], f"Text {n}.") for n in range(3)],
    ),
    "names spelt as in an address": (
        lines("image,patient_id,report", "p{n}%2Ffrontal.png,{n},Text {n}."),
        [(str(n), [f"p{n}/frontal.png"], f"Text {n}.") for n in range(3)],
    ),
    "apostrophes that keep zeros": (
        lines("image,patient_id,report", "'{n}.png,'00{n},'Tis clear {n}."),
        [(f"00{n}", [f"{n}.png"], f"'Tis clear {n}.") for n in range(3)],
    ),
}
REFUSED = {
    "cp1252": (lines("image;patient_id;report", "{n}.png;{n};größer").encode("cp1252"), "--encoding .cp1252"),
    "two encodings": ("image,report\n0.png,Zürich\n".encode() + "1.png,Köln\n".encode("cp1252"), "t.csv:3: not UTF-8"),
    "two separators": (simple().replace("image,patient_id,report", "image;patient_id;report"), "t.csv:2: wrong number"),
    "texts without quotation marks": (simple().replace('"', ""), "must stand in quotation marks"),
    "columns by spaces": (
        "image   patient_id   report\n0.png   p   Text\n",
        "divided by a comma, semicolon, tab or bar",
    ),
    "a page": ("<!DOCTYPE html><html>Log in</html>", "a web page"),
    "a page called .xls": ("<html><table><tr><td>image,</td></tr></table></html>", "a web page", "t.xls"),
    "a workbook called .csv": (b"PK\x03\x04\0\0", "let its name end in .xlsx"),
    "an old workbook": (b"\xd0\xcf\x11\xe0\xa1\xb1,", "not a table this reads", "t.xls"),
    "a database": (b"SQLite format 3\0", "not a table this reads", "t.db"),
    "bz2": (bz2.compress(simple().encode()), "unpack it", "t.csv.bz2"),
    "images and annotations apart": (
        json.dumps({"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "caption": "One."}]}),
        "as in COCO",
        "t.json",
    ),
    "objects in objects": (
        json.dumps({"study": {"image": "0.png"}, "report": {"findings": "x"}}),
        "name it with --image_column",
        "t.jsonl",
    ),
    "addresses": (lines("image_url,report", "https://x/{n}.png,Text"), "name it with --image_column"),
    "other states": (lines("image,patient_id,report,Edema", "{n}.png,{n},T,2"), "use 1 present, 0 absent"),
    "month first": (lines("image,patient_id,study_date,report", "{n}.png,{n},12/25/2020,T"), "use yyyymmdd"),
    "a word for a state": (lines("image,patient_id,report,Edema", "{n}.png,{n},T,True"), "use 1 present, 0 absent"),
    "a cell of a million characters": (f'image,report\n0.png,"{"word " * 200_000}"\n', "field larger than field limit"),
    "files in place of texts": (
        lines("image,patient_id,report", "{n}.png,{n},reports/s{n}.TXT"),
        r"names the file 'reports/s0\.TXT'; the table must hold its text",
    ),
    "rounded ids": (lines("image,patient_id,report", "{n}.png,1.23457E+12,T"), "has lost digits; format .* as text"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pacs")
    for n in range(3):
        for name in (f"{n}.png", f"p{n}/frontal.png", f"p{n}/Side.JPG", f"0000{n}9.png"):
            path = folder / name
            write_image(path.with_suffix(path.suffix.lower()), n, size=8)
            path.with_suffix(path.suffix.lower()).rename(path)
    (folder / "._0.png").write_bytes(b"\0")  # macOS
    (folder / "Thumbs.db").write_bytes(b"\0")
    return folder


def written(case, tmp_path):
    content, expected, *name = case
    path = tmp_path / (name[0] if name else "t.csv")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path, expected


@pytest.mark.parametrize("name", READ)
def test_it_is_read_right(name, tmp_path, folder):
    path, expected = written(READ[name], tmp_path)
    corpus = load_table(path, image_folder=folder)
    read = [(study.patient_id, [image.path for image in study.images], study.text()) for study in corpus.studies]
    assert read == expected


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line_that_says_what_to_do(name, tmp_path, folder):
    path, message = written(REFUSED[name], tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_table(path, image_folder=folder)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_dates_times_labels_and_views_of_others(tmp_path, folder):
    (tmp_path / "t.csv").write_text(
        "frontal,side,patient_id,StudyDate,StudyTime,report,labels,Cardiomegaly,Tuberculosis\n"
        "0.png,p0/Side.JPG,7,20200102.0,93000.0,Mid.,\"{'Edema': 1, 'Mass': 0}\",-1,1\n"
        "1.png,,7,20200101,235959,Old.,Edema|Mass,1.0,\n"
        "2.png,p2/Side.JPG,7.0,20200102,101500.123,New.,,,0\n"
    )
    corpus = load_table(tmp_path / "t.csv", image_folder=folder, image_column="frontal, side")
    mid, old, new = link_priors(corpus.studies)
    assert (new.prior_study_id, mid.prior_study_id) == (mid.study_id, old.study_id)
    assert (mid.study_date, old.study_date) == ("2020-01-02T09:30:00", "2020-01-01T23:59:59")
    assert [len(study.images) for study in (mid, old, new)] == [2, 1, 2]
    assert mid.labels == {"Cardiomegaly": -1, "Edema": 1, "Mass": 0} and old.labels["Mass"] == 1
    assert any("columns that are not used: 'Tuberculosis'" in note for note in corpus.notes)


@pytest.mark.parametrize(
    ("content", "texts", "note"),
    [
        (  # one row a section: nobody knows that the two are one report
            lines("image,patient_id,section,text", '{n}.png,{n},findings,F {n}.\n{n}.png,{n},impression,"I, {n}."'),
            [f"{text} {n}." for n in range(3) for text in ("F", "I,")],
            "3 texts stand beside an id that has another text already, as '0' has",
        ),
        (
            lines("image,patient_id,report", "{n}.png,{n},Clear.<br/>No &amp; nil {n}."),
            [f"Clear.<br/>No &amp; nil {n}." for n in range(3)],
            "3 texts hold marks such as '<br/>'; a model learns to write them",
        ),
    ],
)
def test_what_may_be_meant_otherwise_is_said(content, texts, note, tmp_path, folder):
    (tmp_path / "t.csv").write_text(content)
    corpus = load_table(tmp_path / "t.csv", image_folder=folder)
    assert [study.text() for study in corpus.studies] == texts and any(note in line for line in corpus.notes)


def test_a_workbook_with_titles_returns_and_empty_rows(tmp_path, folder):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    rows = [["Export RIS"], [], [" Image ", "Patient\nID", "Date of exam", "Report "]]
    rows += [[f"{n}.png", 1000.0 + n, f"0{n + 1}.02.2020", "One._x000D_\nTwo."] for n in range(2)]
    for row in [*rows, [], [None, None]]:
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    first, second = load_table(tmp_path / "t.xlsx", image_folder=folder).studies
    assert (first.patient_id, first.study_date, first.report) == ("1000", "2020-02-01", "One.\r\nTwo.")
    assert second.study_date == "2020-02-02"


def test_a_folder_with_its_table_and_what_programs_leave_in_it(tmp_path):
    for n in range(3):
        write_image(tmp_path / "pacs" / f"{n}.png", n, size=8)
    (tmp_path / "pacs" / "t.csv").write_text(simple())
    for name in ("~$t.xlsx", "._t.csv", ".~lock.t.csv#"):
        (tmp_path / "pacs" / name).write_bytes(b"\0")
    assert len(load_table(tmp_path / "pacs", image_folder=tmp_path / "pacs").studies) == 3
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "w") as archive:
        archive.writestr("t.csv", simple())
    with pytest.raises(ValueError, match="a packed file; unpack it and name the table in it"):
        load_table(Path(tmp_path / "t.csv.zip"))
