"""A master file as columns gives what its studies give one by one: splits, leaks, counts, texts, errors, the hash."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_medvlm.data import column_index, columns
from hf_medvlm.data.column_parts import is_plain
from hf_medvlm.data.columns import StudyTable
from hf_medvlm.data.conversations import PREVIOUS, ChatOptions, with_conversations
from hf_medvlm.data.counting import (
    Texts,
    count_pairs,
    count_patients,
    count_text_sources,
    count_values,
    find_shared,
    hash_studies,
)
from hf_medvlm.data.load import Splits, is_master_file, load_splits, read_master
from hf_medvlm.data.parquet import SCHEMA, batches, iter_parquet, master_writer
from hf_medvlm.data.priors import TablePriors
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.data.study import Study, read_jsonl
from hf_medvlm.families.biovil_t.collator import find_priors
from hf_medvlm.training.run import data_hash
from hf_medvlm.training.words import trained_words

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Nothing."}]


def records() -> list[dict[str, Any]]:
    """Three hundred studies of which many are odd in one way or another."""
    made = []
    for n in range(300):
        record: dict[str, Any] = {
            "study_id": n if n % 7 == 0 else f"s{n}",
            "patient_id": f"p {n // 2}" if n % 20 < 4 else float(n // 2),
            "images": [{"path": f"a/{n}-{k}.png", "view": "PA" if k else None} for k in range(n % 3 + (n % 11 > 0))],
            "findings": "" if n % 5 == 0 else f"Findings {n} of the left.",
            "impression": "  " if n % 3 == 0 else f"Impression {n}.",
            "report": f"Whole report {n}." if n % 5 == 0 else "",
            "labels": {"Edema": (1, 0, -1, None)[n % 4]},
            "licence": "CC0" if n % 2 else "",
            "source": f"source {n % 3}",
            "note": n,
        }
        if n % 13 == 0:
            record |= {"conversations": TURNS, "findings": "", "impression": "", "report": ""}
        if n % 17 == 0 and record["images"]:
            record["boxes"] = [{"image": len(record["images"]) - 1, "phrase": "here", "xywh": [1, 2, 3, 4]}]
        if n % 19 == 0:
            record |= {"prior_study_id": f"s{n - 1}", "study_date": "2020-01-02"}
        if n % 20 >= 4 and n % 6 < 3:
            record["split"] = ("train", "validate", "test")[(n // 2) % 3]
        made.append(record)
    return made


def write(path: Path, made: list[dict[str, Any]]) -> Path:
    path.write_text("\n\n".join(json.dumps(record, ensure_ascii=False) for record in made) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its columns are read in several parts."""
    monkeypatch.setenv("HF_MEDVLM_CACHE", str(tmp_path / "known"))
    monkeypatch.setattr(column_index, "PART", 20_000)
    monkeypatch.setattr(column_index, "available_cores", lambda: 1)
    path = write(tmp_path / "master.jsonl", records())
    os.utime(path, ns=(10**18, 10**18 + 1))
    return path


def odd_fields(n: int) -> dict[str, Any]:
    """Fields that few corpora have, and keys that nobody knows."""
    return {
        "conversations": TURNS if n % 2 else [],
        "triplets": [["effusion", "left_pleural", "present"]] if n % 3 else [],
        "progression": {"Edema": "improving"} if n % 5 else {},
        "answer_type": "OPEN" if n % 7 else "",
        "comparison": "None.",
        "boxes": [{"image": 0, "phrase": "here", "xywh": [0.1, 2, 1 / 3, 4], "finding": "Edema"}],
        "extra_list": [n, {"deep": [None, "\u2028"]}],
        "prior_study_id": None,
    }


def test_parquet_holds_the_same_studies_splits_and_hash(master: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [record | odd_fields(n) if n % 4 and record["images"] else record for n, record in enumerate(records())]
    rows = read_jsonl(write(master, made))
    monkeypatch.setattr("hf_medvlm.data.parquet.ROWS", 120)
    monkeypatch.setattr(column_index, "available_cores", lambda: 2)
    parquet = master.with_suffix(".parquet")
    with master_writer(parquet) as write_batch:
        for batch in batches(rows):
            write_batch(batch)
    assert is_master_file(str(parquet))
    assert [study for _, study in iter_parquet(parquet)] == list(StudyTable.open(parquet)) == rows
    table, plain = (load_splits(str(path), verify_images=False) for path in (parquet, master))
    assert isinstance(table.train, StudyTable) and not isinstance(plain.train, StudyTable)
    assert {split: list(studies) for split, studies in table.studies.items()} == plain.studies
    assert data_hash(table) == data_hash(plain) and pickle.loads(pickle.dumps(table.train))[7] == plain.train[7]
    assert [(entry.study_id, entry.reason) for entry in table.rejected] == [
        (entry.study_id, entry.reason) for entry in plain.rejected
    ]


def rows_of(change: dict[str, Any], drop: tuple[str, ...] = ()) -> pa.Table:
    """Three rows as others write them, the second one changed; of the types that pyarrow guesses."""
    rows: list[dict[str, Any]] = [
        {"study_id": f"s{n}", "patient_id": 7.0, "images": [{"path": f"{n}.png"}], "findings": "Clear lungs."}
        for n in range(3)
    ]
    rows[1] |= change
    names = [name for name in rows[1] if name not in drop]
    return pa.table({name: [row.get(name) for row in rows] for name in names})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (rows_of({"split": "training"}), "row 2: study 's1': split 'training' is none of"),
        (rows_of({"images": [{"path": "../x.png"}]}), "row 2: .*leaves the image folder"),
        (rows_of({"images": [{"path": None}]}), "row 2: .*an image path must be a non-empty text"),
        (rows_of({"labels": [{"finding": "Edema", "state": 2}]}), "row 2: .*label 'Edema' is 2"),
        (rows_of({"labels": [{"name": "Edema"}]}), r"row 2: labels are \[\{finding, state\}\] or a map"),
        (rows_of({"labels": "Edema"}), "row 2: study 's1': labels must be an object"),
        (rows_of({"findings": None, "report": b"abc"}), "row 2: study 's1': a study cannot hold bytes"),
        (rows_of({"extra": "[1]"}), "row 2: study 's1': extra must be a JSON object"),
        (rows_of({"extra": "{"}), "row 2: study 's1': extra must be a JSON object, got '{'"),
        (rows_of({"study_id": "s0"}), "row 2: study_id 's0' stands already in row 1"),
        (rows_of({}, drop=("patient_id",)), "row 1: missing patient_id; found keys: study_id, images, findings"),
    ],
)
def test_a_bad_row_of_parquet_is_named(tmp_path: Path, table: pa.Table, message: str) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(table, path)
    assert is_master_file(str(path))
    with pytest.raises(ValueError, match=rf"x\.parquet: {message}") as caught:
        load_splits(str(path), verify_images=False)
    assert "\n" not in str(caught.value)


def test_parquet_of_others_is_read_and_a_damaged_or_empty_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    labels = pa.array([[("Edema", 1)], None, [("Edema", None)]], pa.map_(pa.string(), pa.int64()))
    pq.write_table(rows_of({"study_date": date(2020, 1, 2), "note": 5}).append_column("labels", labels), path)
    first, second, third = StudyTable.open(path)
    assert (first.patient_id, first.labels, third.labels) == ("7", {"Edema": 1}, {"Edema": None})
    assert (second.study_date, second.extra, first.extra) == ("2020-01-02", {"note": 5}, {})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"x\.parquet"):
        load_splits(str(path), verify_images=False)
    path.write_bytes(content[:40] + bytes(200) + content[240:])
    with pytest.raises(ValueError, match=r"x\.parquet: cannot be read as Parquet from row 1 on"):
        load_splits(str(path), verify_images=False)
    pq.write_table(SCHEMA.empty_table(), path)
    with pytest.raises(ValueError, match="no study has both an image and a text"):
        load_splits(str(path), verify_images=False)
    pictures = pa.table({"study_id": ["a"], "images": [[{"path": "a.png", "bytes": b""}]]})
    pq.write_table(pictures, path)
    assert not is_master_file(str(path))  # a table of others, with pixels in it


def both(master: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Splits, Splits]:
    """The splits from columns, and one study after the other."""
    lines = []
    for limit in (0, 1 << 60):
        monkeypatch.setattr(columns, "ROWS_BELOW", limit)
        lines.append(load_splits(str(master), **options))
    table, rows = lines
    assert all(isinstance(studies, StudyTable) for studies in table.studies.values())
    assert not any(isinstance(studies, StudyTable) for studies in rows.studies.values())
    return table, rows


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sections": "impression"},
        {"sections": "findings|report"},
        {"train_studies": 17, "eval_studies": 5},
        {"held_out": True},
    ],
)
def test_the_same_studies_splits_rejections_and_hash(
    master: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    if not options:  # by several processes
        monkeypatch.setattr(column_index, "available_cores", lambda: 2)
    if "held_out" in options:  # whole patients with a split, or without
        made = records()
        for n in range(0, 300, 2):
            made[n].pop("split", None)
            made[n + 1].pop("split", None)
            if n % 8 == 0:
                made[n]["split"] = made[n + 1]["split"] = ("train", "validate")[n // 8 % 2]
        write(master, made)
    table, rows = both(master, monkeypatch, verify_images=False, **options)
    for split in ("train", "validate", "test"):
        assert len(table.studies[split]) == len(rows.studies[split]) > 0
        assert list(table.studies[split]) == list(rows.studies[split])
    assert table.rejected == rows.rejected and len(rows.rejected) > 5
    assert data_hash(table) == data_hash(rows)
    groups = [list(splits.studies.values()) for splits in (table, rows)]
    assert count_patients(groups[0]) == count_patients(groups[1])
    assert trained_words(table.train) == trained_words(rows.train)
    for name in ("licence", "source"):
        assert count_values(groups[0], name) == count_values(groups[1], name)
    for sections in ("findings,impression|report", "impression", "comparison"):
        assert count_text_sources(groups[0], sections) == count_text_sources(groups[1], sections)
    assert find_shared(table.studies) == find_shared(rows.studies) == ([], 0)


def test_priors_labels_and_conversations_come_of_columns_alike(
    master: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = records()
    for n, record in enumerate(made):
        record |= {"prior_study_id": None, "study_date": f"2020-01-{1 + n % 2:02}" + (n % 3 > 0) * "T10:00:00"}
        if n % 2 and n % 5:
            record["prior_study_id"] = record["study_id"] if n % 7 == 0 else made[n - 1]["study_id"]
        if n % 9 == 0:
            record["progression"] = {"Edema": ("improving", "stable", "worsening")[n // 9 % 3]}
    made[77]["study_date"] = None  # its own prior, as far as nobody knows when it was
    for n in range(7, 300, 14):
        made[n]["study_date"] = None
    table, rows = both(write(master, made), monkeypatch, verify_images=False)
    priors, wanted = find_priors(*table.studies.values()), find_priors(*rows.studies.values())
    assert isinstance(priors, TablePriors) and dict(priors) == wanted and 50 < len(priors) == len(wanted)
    assert "s4" not in priors and "nobody" not in priors and len({record.message for record in caplog.records}) == 1
    with pytest.raises(KeyError):
        pickle.loads(pickle.dumps(priors))["nobody"]
    for name in ("labels", "progression"):
        assert count_pairs(table.train, name) == count_pairs(rows.train, name) != Counter()
    options = ChatOptions(prior=True, views="all")
    talks = [with_conversations(splits.train, options) for splits in (table, rows)]
    assert isinstance(talks[0], StudyTable) and list(talks[0]) == talks[1] and talks[0][4:7][1] == talks[1][5]
    assert hash_studies(talks[:1]) == hash_studies(talks[1:]) and not count_text_sources(talks[:1], "impression")
    assert any(PREVIOUS in study.conversations[0]["value"] for study in talks[0])
    for change in ({"prior_study_id": "s2"}, {"prior_study_id": "s150", "study_date": "2019-01-01"}):
        made[151]["split"] = made[150]["split"] = made[2]["split"] = made[3]["split"] = "train"
        splits = both(write(master, [*made[:151], made[151] | change, *made[152:]]), monkeypatch, verify_images=False)
        messages = []
        for each in splits:
            with pytest.raises(ValueError, match="study 's151' of .* as its prior, which is") as caught:
                find_priors(*each.studies.values())
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_images_that_cannot_be_used_are_left_out_alike(master: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {f"a/{n}-{k}.png": "cut short" for n in range(0, 300, 4) for k in range(n % 3 + 1)}
    broken |= {"a/5-1.png": "every pixel has the same grey value, 0 of 255"}

    def check(folder: Path, paths: Any) -> dict[str, str]:
        there = {str(path) for path in paths}
        return {path: reason for path, reason in broken.items() if path in there}

    table, rows = both(master, monkeypatch, check=check)
    assert table.rejected == rows.rejected
    assert {entry.reason for entry in rows.rejected} >= {"image cannot be read", "image of one grey value"}
    assert all(list(table.studies[split]) == list(rows.studies[split]) for split in rows.studies)


def test_an_image_in_two_splits_is_counted(master: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = records()
    for n in (1, 8, 14, 20, 26):
        made[n]["images"] = [{"path": "same.png", "view": None}]
    table, rows = both(write(master, made), monkeypatch, verify_images=False)
    assert find_shared(table.studies) == find_shared(rows.studies) == ([], 1)


def test_a_patient_in_two_splits_is_refused_in_the_same_words(master: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = records()
    for n in (6, 7, 26, 27):
        made[n]["split"] = ("train", "test")[n % 2]
    write(master, made)
    messages = []
    for limit in (0, 1 << 60):
        monkeypatch.setattr(columns, "ROWS_BELOW", limit)
        with pytest.raises(ValueError, match="2 patient.s. in two splits") as caught:
            load_splits(str(master), verify_images=False)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "training"}, r"master\.jsonl:\d+: study 's151': split 'training'"),
        ({"images": [{"path": "../x.png"}]}, r"master\.jsonl:\d+: .*leaves the image folder"),
        ({"labels": {"Edema": 2}}, r"master\.jsonl:\d+: .*Edema"),
        ({"study_id": "s1"}, r"master\.jsonl:\d+: study_id 's1' stands already on line 3"),
        ({"patient_id": ""}, r"master\.jsonl:\d+: missing patient_id"),
    ],
)
def test_a_bad_line_is_named_as_ever(
    master: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(columns, "ROWS_BELOW", 0)
    made = records()
    made[151] |= change
    with pytest.raises(ValueError, match=message):
        read_master(str(write(master, made)))


def test_columns_are_kept_and_made_anew_for_another_file(
    master: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(columns, "ROWS_BELOW", 0)
    built: list[int] = []
    real = column_index._build
    monkeypatch.setattr(column_index, "_build", lambda *a: (built.append(1), real(*a))[1])
    first = read_master(str(master))
    assert isinstance(first, StudyTable) and list(first) == read_jsonl(master)
    assert len(read_master(str(master))) == 300 and built == [1]
    write(master, records()[:50])
    assert len(read_master(str(master))) == 50 and built == [1, 1]
    stores = [*(master.parent / "known" / "columns").iterdir()]
    assert len(stores) == 2
    for store in stores:
        store.write_bytes(store.read_bytes()[:100])
        assert len(read_master(str(master))) == 50 and str(store) in caplog.text


def test_a_table_is_a_sequence_and_can_be_sent_to_workers(master: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "ROWS_BELOW", 0)
    splits, plain = load_splits(str(master), verify_images=False), read_jsonl(master)
    train = splits.train
    sent = pickle.loads(pickle.dumps(train))
    assert list(sent) == list(train) and train[-1] == train[len(train) - 1] and list(train[3:9:2]) == [*train][3:9:2]
    rows = StudyRows(train)
    assert rows.table is train and rows[5].study == train[5] and rows[-1].index == len(rows) - 1
    with pytest.raises(IndexError):
        rows[len(rows)]
    assert all(study.extra["note"] == plain[study.extra["note"]].extra["note"] for study in train)
    texts = Texts(train, Study.text)
    assert len(texts) == len(train) and Counter(texts) == Counter(study.text() for study in train)


@pytest.mark.parametrize("text", ["\ufeff", "\r"])
def test_odd_files_are_read_line_by_line(master: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(columns, "ROWS_BELOW", 0)
    lines = master.read_text().replace("\n\n", "\n" if text == "\ufeff" else "\r")
    master.write_bytes((("\ufeff" if text == "\ufeff" else "") + lines).encode())
    assert len(read_master(str(master))) == 300


def test_what_is_taken_without_a_closer_look_is_a_study() -> None:
    """And whatever `Study` refuses is looked at closely."""
    good = {"study_id": "s1", "patient_id": "p-1", "images": [{"path": "a/b.png", "view": "PA"}], "findings": "x"}
    assert is_plain(good) and Study.from_dict(good)
    odd = [{"study_id": ""}, {"study_id": " s"}, {"study_id": "1.0"}, {"patient_id": None}, {"split": "val"}]
    odd += [{"findings": None}, {"findings": 3}, {"labels": []}, {"labels": {"": 1}}, {"labels": {"Edema": True}}]
    odd += [{"conversations": ""}, {"triplets": 0}, {"boxes": {}}, {"study_date": False}, {"extra": {}}]
    odd += [{"images": "a.png"}, {"images": [{"view": "PA"}]}, {"images": [{"path": ""}]}, {"images": [{"path": "/a"}]}]
    odd += [{"images": [{"path": p}]} for p in ("../a", "C:a", "a\\b", " ", "a/../b")] + [{"boxes": [1]}, {"split": []}]
    assert not any(is_plain(good | each) for each in odd) and not is_plain([]) and not is_plain(None)


def test_counts_of_no_groups_are_nothing() -> None:
    assert count_patients([]) == 0 and count_values([], "licence") == Counter()
    assert data_hash(SimpleNamespace(studies={})) == data_hash(SimpleNamespace(studies={"train": []}))
