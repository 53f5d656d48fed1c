"""Imports point downward only (section 2 of the design), never in a circle, and light ones stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hf_medvlm"
ENGINE = {"labels", "losses", "language", "data", "models", "collators", "metrics", "evaluation", "rewards"}
UNDER_ALL = {"", "shipped", "errors", "checked"}  # what any room may ask: the version, errors as sentences, ...
ALLOWED = {
    "shipped": set(),
    "errors": set(),
    "checked": set(),
    "labels": set(),
    "losses": set(),
    "language": {"labels"},
    "data": {"labels", "language"},
    "models": {"labels", "losses"},
    "metrics": {"labels", "language"},
    "collators": {"labels", "language", "data"},
    "rewards": {"labels", "language", "data", "metrics"},
    "evaluation": {"labels", "language", "data", "collators", "metrics", "models"},
    "figures": {"labels", "language", "data", "metrics"},  # radiographs, findings marked in the text, facts of scores
    "sharing": {"labels", "language", "data", "metrics", "figures", "evaluation", "inference"},
    "training": ENGINE | {"figures", "sharing"},
    "inference": ENGINE | {"figures", "families"},  # families by their names in the folder, never one of them
}
OF_A_MODEL = {"labels", "losses", "models"}
OF_A_COLLATOR = OF_A_MODEL | {"language", "data", "collators"}
ALLOWED_BY_FILE = {  # inside families/<name>/, beside the family's own files; all others may import the engine
    "config": OF_A_MODEL,
    "model": OF_A_MODEL,
    "processor": OF_A_MODEL,
    "processors": OF_A_MODEL,
    "turns": OF_A_COLLATOR,
    "rendering": OF_A_COLLATOR,
    "messages": OF_A_COLLATOR,
    "published": OF_A_MODEL,
    "tiny": OF_A_MODEL,
    "collator": OF_A_COLLATOR,
    "evaluation": OF_A_COLLATOR | {"metrics", "evaluation"},
    "inference": ENGINE | {"inference"},
}
FAMILY_TIES = {("patch_ib", "dual_encoder")}
INSIDE_FUNCTIONS_ONLY = {"deepspeed", "peft", "pydicom", "matplotlib", "radgraph", "sklearn"}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = ("hf_medvlm", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(node: ast.AST) -> set[str]:
    """The modules that one statement imports; `from package import module` names both."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        inside = {f"{node.module}.{alias.name}" for alias in node.names}
        return {node.module} | (inside & set(MODULES))
    return set()


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def allowed(module: str, target: str) -> bool:
    """Whether `module` may import `target`, both of ours."""
    here, there = room(module), room(target)
    if there in UNDER_ALL | {here} and here != "families":
        return True
    if here != "families":
        return here not in ALLOWED or there in ALLOWED[here]
    family = module.split(".")[2:3]
    if not family:  # families/__init__.py imports every family
        return True
    if there == "families":
        other = target.split(".")[2:3]
        return not other or other == family or (family[0], other[0]) in FAMILY_TIES
    return there in ALLOWED_BY_FILE.get(module.split(".")[-1], ENGINE | {"training"}) | UNDER_ALL


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    tree, module = ast.parse(path.read_text(encoding="utf-8")), module_of(path)
    for node in ast.walk(tree):
        for target in imports(node):
            if target.split(".")[0] == "hf_medvlm":
                assert allowed(module, target), f"{path.name}:{node.lineno} imports {target}"
            assert not target.startswith(("recipes", "tests")), f"{path.name}:{node.lineno} imports {target}"
    for node in tree.body:
        heavy = {target.split(".")[0] for target in imports(node)} & INSIDE_FUNCTIONS_ONLY
        assert not heavy, f"{path.name}:{node.lineno} imports {heavy} for everyone; import it in the function"


def test_no_file_imports_itself_in_a_circle() -> None:
    """Annotations and imports inside functions included; a package's own `__init__` counts where it is named."""
    edges = {}
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {target for node in ast.walk(tree) for target in imports(node)} & set(MODULES) - {module, "hf_medvlm"}
        # `from package import module` asks for the module, not for what the package imports
        edges[module] = {t for t in named if not any(n.startswith(f"{t}.") for n in named)}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*trail, module))
            done.add(module)

    for module in sorted(edges):
        visit(module, ())


@pytest.mark.parametrize("module", ["hf_medvlm", "hf_medvlm.data.study", "hf_medvlm.data.load", "hf_medvlm.metrics"])
def test_light_imports_do_not_bring_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_files_can_be_read_in_one_sitting() -> None:
    long = {path.name: lines for path in FILES if (lines := len(path.read_text().splitlines())) > 420}
    assert not long
