"""Imports point downward only (section 2 of the design), and light ones stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hf_medvlm"
ALLOWED = {
    "labels": set(),
    "losses": set(),
    "data": {"labels"},
    "models": {"labels", "losses"},
    "collators": {"labels", "data"},
    "metrics": {"labels"},
    "figures": {"labels", "data"},  # pictures of radiographs, and findings marked in the text
}
INSIDE_FUNCTIONS_ONLY = {"deepspeed", "peft", "pydicom", "matplotlib", "radgraph", "sklearn"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        return {node.module}
    return set()


def room(module: str) -> str:
    """`hf_medvlm.data.study` -> `data`; the losses that stand in a file of their own belong to `losses`."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else ""
    return "losses" if name.endswith("losses") else name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    here = room(".".join(("hf_medvlm", *path.relative_to(PACKAGE).with_suffix("").parts)))
    for node in ast.walk(tree):
        for module in imports(node):
            if module.startswith("hf_medvlm") and here in ALLOWED:
                target = room(module)
                assert target in ALLOWED[here] | {here, ""}, f"{path.name}:{node.lineno} imports {module}"
            assert not module.startswith("recipes"), f"{path.name}:{node.lineno} imports a recipe"
    for node in tree.body:
        heavy = {module.split(".")[0] for module in imports(node)} & INSIDE_FUNCTIONS_ONLY
        assert not heavy, f"{path.name}:{node.lineno} imports {heavy} for everyone; import it in the function"


@pytest.mark.parametrize("module", ["hf_medvlm", "hf_medvlm.data.study", "hf_medvlm.data.load", "hf_medvlm.metrics"])
def test_light_imports_do_not_bring_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_files_can_be_read_in_one_sitting() -> None:
    long = {path.name: lines for path in FILES if (lines := len(path.read_text().splitlines())) > 420}
    assert not long
