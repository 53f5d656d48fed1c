"""The page of public names is the code's, and no docstring or page names something of ours that is not there."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
API = runpy.run_path(str(ROOT / "docs" / "make_api.py"))


def headings(page: str) -> list[str]:
    return re.findall(r"^#{1,3} .*", page, re.MULTILINE)


def test_the_page_has_the_names_that_the_code_has():
    written = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert headings(written) == headings(API["page"]()), "run: python docs/make_api.py"


@pytest.mark.parametrize(
    "text", ["see `hf_medvlm.losses.nothing`", "`Study.nothing` says", "`hf_medvlm.nowhere.load(x)`"]
)
def test_a_dead_reference_is_refused(text):
    with pytest.raises(LookupError, match="somewhere refers to .* which is not there"):
        API["check_references"](text, "somewhere")


def test_no_docstring_and_no_page_refers_to_a_name_that_is_gone():
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in sorted([*ROOT.glob("hf_medvlm/**/*.py"), *ROOT.glob("recipes/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                API["check_references"](text, f"{path.relative_to(ROOT)}")
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("hf_medvlm/**/README.md")]:
        API["check_references"](path.read_text(encoding="utf-8"), path.name)


def test_files_that_docstrings_name_are_there():
    """`room/file.py` in backticks is a file of ours, unless it is another project's."""
    theirs = ("llava/", "txt/", "modules/", "models/blip.py", "models/losses.py")
    for path in sorted(ROOT.glob("hf_medvlm/**/*.py")):
        for name in re.findall(r"`((?:\w+/)+\w+\.py)`", path.read_text(encoding="utf-8")):
            places = (ROOT, ROOT / "hf_medvlm", path.parent)
            assert name.startswith(theirs) or "NAME" in name or any((p / name).exists() for p in places), (path, name)
