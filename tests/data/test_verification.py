"""What is known of an image is not looked at again, as long as the file and its readers are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_medvlm.data import verification
from hf_medvlm.data.verification import check_images
from hf_medvlm.training.machines import check_once

NAMES = [f"p{number}/{number}.png" for number in range(6)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pictures, of which number 2 is cut short and number 3 is black; and a cache of their own."""
    monkeypatch.setenv("HF_MEDVLM_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "images"
    for number, name in enumerate(NAMES):
        write(made / name, number)
    (made / NAMES[2]).write_bytes((made / NAMES[2]).read_bytes()[:200])
    Image.new("L", (8, 8)).save(made / NAMES[3])
    age(made)
    return made


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24), np.uint8)).save(path)


def age(folder: Path) -> None:
    """As if the files had been there for an hour."""
    for path in folder.rglob("*.png"):
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 3600 * 10**9))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that have been decoded."""
    names: list[str] = []
    real = verification.why_unusable
    monkeypatch.setattr(verification, "why_unusable", lambda path: (names.append(path.name), real(path))[1])
    return names


def test_a_second_start_decodes_nothing_and_says_the_same(folder: Path, decoded: list[str]) -> None:
    first = check_images(folder, NAMES)
    assert list(first) == [NAMES[2], NAMES[3]] and "cut short" in first[NAMES[2]] and "grey" in first[NAMES[3]]
    assert len(decoded) == 6
    decoded.clear()
    assert check_images(folder, iter(NAMES[::-1] + NAMES)) == first
    assert decoded == []


def test_only_what_has_changed_is_decoded_again(folder: Path, decoded: list[str]) -> None:
    check_images(folder, NAMES[:5])
    decoded.clear()
    write(folder / NAMES[2], 2)  # mended
    (folder / NAMES[0]).write_bytes(b"\x89PNG\r\n\x1a\n")  # broken
    (folder / NAMES[1]).unlink()
    broken = check_images(folder, NAMES)
    assert sorted(decoded) == ["0.png", "1.png", "2.png", "5.png"]
    assert list(broken) == [NAMES[0], NAMES[1], NAMES[3]] and "no such file" in broken[NAMES[1]]


def test_a_change_that_the_clock_cannot_show_is_not_trusted(folder: Path, decoded: list[str]) -> None:
    """A file of this very moment may change once more within the same tick of the disk's clock."""
    path = folder / NAMES[0]
    now = path.stat().st_mtime_ns + 7200 * 10**9
    os.utime(path, ns=(now, now))
    check_images(folder, NAMES[:1])
    check_images(folder, NAMES[:1])
    assert decoded == ["0.png", "0.png"]


def test_other_readers_look_again(folder: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    check_images(folder, NAMES)
    monkeypatch.setattr(verification, "version", lambda package: "99")
    check_images(folder, NAMES)
    assert len(decoded) == 12


def test_a_broken_store_is_made_anew(folder: Path, decoded: list[str], caplog: pytest.LogCaptureFixture) -> None:
    first = check_images(folder, NAMES)
    (store,) = (folder.parent / "cache" / "verified").iterdir()
    store.write_bytes(store.read_bytes()[:-20])
    assert check_images(folder, NAMES) == first and len(decoded) == 12
    assert str(store) in caplog.text
    assert check_images(folder, NAMES) == first and len(decoded) == 12


def test_a_full_disk_forgets_and_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(verification.pq.ParquetWriter, "write_table", full)
        first = check_images(folder, NAMES)
    assert "No space left on device" in caplog.text and len(first) == 2
    assert not list((folder.parent / "cache" / "verified").iterdir())
    assert check_images(folder, NAMES) == first


def test_a_store_of_many_pieces_knows_what_one_of_one_piece_knows(
    folder: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "ROW_GROUP", 2)
    monkeypatch.setattr(verification, "BLOCK", 1)
    monkeypatch.setattr(verification, "SAVE_EVERY", 0.0)
    first = check_images(folder, NAMES[::-1])
    assert list(first) == [NAMES[3], NAMES[2]] and len(decoded) == 6
    (store,) = (folder.parent / "cache" / "verified").iterdir()
    assert verification.pq.ParquetFile(store).num_row_groups > 1
    assert check_images(folder, NAMES) == first and len(decoded) == 6
    (folder / NAMES[2]).unlink()
    write(folder / NAMES[3], 3)
    age(folder)
    assert list(check_images(folder, [*NAMES, NAMES[2]])) == [NAMES[2]]
    assert verification.pq.read_table(store)["path"].to_pylist().count(NAMES[3]) == 1


def test_an_interrupted_check_goes_on_where_it_stood(
    folder: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = verification.why_unusable

    def interrupt(path: Path) -> str | None:
        if path.name == "4.png":
            raise KeyboardInterrupt
        return counted(path)

    with monkeypatch.context() as patch:
        patch.setattr(verification, "why_unusable", interrupt)
        with pytest.raises(KeyboardInterrupt):
            check_images(folder, NAMES, workers=1)
    decoded.clear()
    assert list(check_images(folder, NAMES)) == [NAMES[2], NAMES[3]]
    assert sorted(decoded) == ["4.png", "5.png"]


SCRIPT = """
import sys
from hf_medvlm.data import verification
real = verification.why_unusable
def count(path):
    with open(sys.argv[2], "a") as log:
        log.write(path.name + "\\n")
    return real(path)
verification.why_unusable = count
print(sorted(verification.check_images(sys.argv[1], sys.argv[3:])))
"""


def test_of_two_processes_one_decodes(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", SCRIPT, str(folder), str(log), *NAMES]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=1200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert printed[0] == printed[1] == f"{[NAMES[2], NAMES[3]]}\n"
    assert len(log.read_text().split()) == 6


def test_one_process_alone_checks_for_itself(folder: Path) -> None:
    from types import SimpleNamespace

    assert list(check_once(SimpleNamespace(world_size=1))(folder, NAMES)) == [NAMES[2], NAMES[3]]
