"""One folder, one writer."""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys

import pytest

from hf_medvlm.data.locks import LOCK, release, take, taken

HOLD = """
import sys
from hf_medvlm.data.locks import take
take(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path / "run"` until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_of_a_living_process_is_refused_and_of_a_dead_one_taken_over(holder, tmp_path, capsys):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=f"in use by process {holder.pid} on .*; name another"):
        take(folder, "; name another")
    holder.kill()
    holder.communicate()
    take(folder)
    take(folder)  # once more is once
    assert f"process {holder.pid} on {socket.gethostname()}" in capsys.readouterr().err
    assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
    release(folder)
    assert not folder.exists(), "nothing had been written to it"


def test_scores_are_not_written_into_a_folder_that_another_process_writes_to(holder, root, tmp_path):
    main = runpy.run_path(str(root / "recipes" / "score.py"))["main"]
    table = tmp_path / "both.csv"
    table.write_text("study_id,reference,prediction\n1,Normal.,Normal.\n2,Effusion.,Normal.\n")
    with pytest.raises(ValueError, match=f"in use by process {holder.pid}.*or name another --out$"):
        main([str(table), "--out", str(tmp_path / "run")])
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_whoever_ends_well_gives_its_folder_back(holder, tmp_path):
    (tmp_path / "run" / "result").write_text("")
    holder.communicate("")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["result"]


def test_of_another_machine_nothing_is_known(tmp_path):
    lock = tmp_path / LOCK
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 5.0, "since": "yesterday"}))
    with pytest.raises(ValueError, match=f"process 1 on elsewhere, since yesterday.*delete {lock}"):
        take(tmp_path)
    assert lock.exists()


def test_a_number_that_another_process_has_now_is_no_holder(tmp_path, capsys):
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": 5.0, "since": "long ago"}
    (tmp_path / LOCK).write_text(json.dumps(mine))
    with taken(tmp_path):
        assert "taken over" in capsys.readouterr().err
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("content", ["", "[]", "{", "5", '{"pid": "x"}'])
def test_a_lock_that_cannot_be_read_names_itself(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(ValueError, match=str(tmp_path / LOCK)):
        take(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not write to .*file/run: Not a directory"):
        take(tmp_path / "file" / "run")
