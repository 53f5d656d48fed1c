"""A disk that takes no more, or nothing at all: the sentence that a user reads, and its way out."""

from __future__ import annotations

import errno
import os

import pytest

from hf_medvlm.data.disk import sentence

FULL, CLOSED = (os.strerror(number) for number in (errno.ENOSPC, errno.EROFS))


@pytest.mark.parametrize(
    ("error", "words", "way_out"),
    [
        (OSError(errno.ENOSPC, FULL, "/a/out/x.png"), ["--out", "/a/out"], "x.png: FULL. Free some space, or name WITH --out"),
        (OSError(errno.ENOSPC, f"could not write /a/out/x: {FULL}"), ["--out=/a/out"], "Free some space, or name WITH --out"),
        (OSError(f"could not write to runs/1: {CLOSED}"), ["--output_dir", "runs/1"], "runs/1: CLOSED; name WITH --output_dir"),
        (OSError(f"could not write to runs/1: {CLOSED}"), ["--max_steps", "1"], "CLOSED; name WITH --output_dir"),
        (OSError(errno.EROFS, CLOSED, "/a"), ["--page", "/a/p/x.html"], "could not write /a: CLOSED; name WITH --page"),
        (OSError(f"could not write /c/locks/x: {CLOSED}"), ["--image_folder", "/"], "name another folder in the environment as HF_MEDVLM_CACHE"),
        (OSError(f"could not write x: {FULL}; the way out of its own"), [], "x: FULL; the way out of its own"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/b"), ["--out", "/"], "No such file: '/b'"),
        (ValueError("x.csv:3: no text"), ["--out", "/"], "x.csv:3: no text"),
    ],
)  # fmt: skip
def test_what_the_system_says_of_a_place_ends_with_the_option_that_names_it(error, words, way_out, monkeypatch):
    monkeypatch.setenv("HF_MEDVLM_CACHE", "/c")
    wanted = way_out.replace("FULL", FULL).replace("CLOSED", CLOSED).replace("WITH", "another place with")
    assert sentence(error, words, "--output_dir").endswith(wanted)
    assert "Errno" not in sentence(error, words)
