"""A master file as columns gives what its studies give one by one: splits, leaks, counts, texts, errors, the hash."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hf_medvlm.data import column_index, columns
from hf_medvlm.data.column_index import is_plain
from hf_medvlm.data.columns import StudyTable
from hf_medvlm.data.counting import Texts, count_patients, count_text_sources, count_values, find_shared
from hf_medvlm.data.load import Splits, load_splits, read_master
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.data.study import Study, read_jsonl
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
    """Its columns are read in several parts, by several processes."""
    monkeypatch.setenv("HF_MEDVLM_CACHE", str(tmp_path / "known"))
    monkeypatch.setattr(column_index, "PART", 20_000)
    path = write(tmp_path / "master.jsonl", records())
    os.utime(path, ns=(10**18, 10**18 + 1))
    return path


def both(master: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Splits, Splits]:
    """The splits from columns, and one study after the other."""
    found = []
    for limit in (0, 1 << 60):
        monkeypatch.setattr(columns, "ROWS_BELOW", limit)
        found.append(load_splits(str(master), **options))
    table, rows = found
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
    (store,) = (master.parent / "known" / "columns").iterdir()
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
    odd += [{"images": "a.png"}, {"images": [{"view": "PA"}]}, {"images": [{"path": ""}]}, {"images": [{"path": "/a"}]}]
    odd += [{"images": [{"path": p}]} for p in ("../a", "C:a", "a\\b", " ", "a/../b")] + [{"boxes": [1]}, {"split": []}]
    assert not any(is_plain(good | each) for each in odd) and not is_plain([]) and not is_plain(None)


def test_counts_of_no_groups_are_nothing() -> None:
    assert count_patients([]) == 0 and count_values([], "licence") == Counter()
    assert data_hash(SimpleNamespace(studies={})) == data_hash(SimpleNamespace(studies={"train": []}))
