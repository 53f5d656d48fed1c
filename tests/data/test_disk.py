"""A disk that takes no more, or nothing at all: the sentence that a user reads, and its way out."""

from __future__ import annotations

import errno
import os

import pytest

from hf_medvlm.data.disk import sentence

FULL, CLOSED = (os.strerror(number) for number in (errno.ENOSPC, errno.EROFS))


ROOM, OTHER = "Free some space, or name another place with", "name another place with"


@pytest.mark.parametrize(
    ("error", "words", "end"),
    [
        (
            OSError(errno.ENOSPC, FULL, "/a/out/x"),
            ["--out", "/a/out"],
            f"could not write /a/out/x: {FULL}. {ROOM} --out",
        ),
        (OSError(errno.ENOSPC, f"could not write /a/out/x: {FULL}"), ["--out=/a/out"], f"x: {FULL}. {ROOM} --out"),
        (OSError(f"could not write to runs/1: {CLOSED}"), ["--output_dir", "runs"], f"{CLOSED}; {OTHER} --output_dir"),
        (OSError(f"could not write to runs/1: {CLOSED}"), ["--max_steps", "1"], f"{CLOSED}; {OTHER} --output_dir"),
        (
            OSError(errno.EROFS, CLOSED, "/a"),
            ["--page", "/a/p/x.html"],
            f"could not write /a: {CLOSED}; {OTHER} --page",
        ),
        (OSError(f"could not write /c/x: {CLOSED}"), ["--image_folder", "/"], "in the environment as HF_MEDVLM_CACHE"),
        (OSError(f"could not write x: {FULL}; the way out of its own"), [], f"x: {FULL}; the way out of its own"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/b"), ["--out", "/"], "No such file: '/b'"),
        (ValueError("x.csv:3: no text"), ["--out", "/"], "x.csv:3: no text"),
    ],
)
def test_what_the_system_says_of_a_place_ends_with_the_option_that_names_it(error, words, end, monkeypatch):
    monkeypatch.setenv("HF_MEDVLM_CACHE", "/c")
    assert sentence(error, words, "--output_dir").endswith(end)
    assert "Errno" not in sentence(error, words)
