"""Reachable or gone: nothing public stands in the package that only tests, or nobody, uses.

A function or class is reached when a recipe, a benchmark, a command, an example in README or docs, an `__all__`, or
code that runs on import names it, or when something reached does. Names are compared without their modules, so that the
test can miss a dead function that shares its name with a live one, and never calls a live one dead.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_medvlm"
Definition = ast.FunctionDef | ast.ClassDef

# Methods that other libraries call on our classes.
CALLED_FROM_OUTSIDE = {"compute_loss", "redirect_request", "preprocess", "synsets", "do_GET", "do_POST", "log_message"}
CALLED_FROM_OUTSIDE |= {"find_class", "persistent_load"}  # by pickle


def words(node: ast.AST) -> Iterator[str]:
    """Every identifier that a piece of code uses. An import alone is no use."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr


def exported(tree: ast.Module) -> set[str]:
    """The strings of a module's `__all__`."""
    lists = [node.value for node in tree.body if isinstance(node, ast.Assign) and _names(node) == ["__all__"]]
    return {part.value for value in lists for part in ast.walk(value) if isinstance(part, ast.Constant)}


def _names(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def documented() -> set[str]:
    """Words of the code in README and docs; the API page, which lists everything, proves nothing."""
    pages: list[Path] = [ROOT / "README.md", *(page for page in (ROOT / "docs").glob("*.md") if page.name != "api.md")]
    texts = [page.read_text() for page in pages]
    texts += [ast.get_docstring(ast.parse(path.read_text())) or "" for path in ROOT.glob("recipes/*.py")]
    code = [part for text in texts for part in re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)]
    return set(re.findall(r"\w+", " ".join(code)))


def unreached() -> dict[str, str]:
    """Name -> file, for each public function or class that nothing but a test can come to."""
    definitions: dict[str, list[set[str]]] = {}
    places: dict[str, str] = {}
    live = documented()
    for path in [*ROOT.glob("recipes/*.py"), *ROOT.glob("benchmarks/*.py")]:
        live |= set(words(ast.parse(path.read_text())))
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        live |= exported(tree)
        command = path.parent.name == "commands" or path.name == "__main__.py"
        for node in tree.body:
            if not isinstance(node, Definition):
                live |= set(words(node))
                continue
            if command:
                live |= {node.name, *words(node)}
            for decorator in node.decorator_list:
                live |= set(words(decorator))
            definitions.setdefault(node.name, []).append(set(words(node)))
            if not node.name.startswith("_"):
                places[node.name] = str(path.relative_to(ROOT))
    new = list(live & definitions.keys())
    while new:
        used = {word for body in definitions[new.pop()] for word in body} & definitions.keys() - live
        live |= used
        new += used
    return {name: place for name, place in places.items() if name not in live}


def unreached_methods() -> dict[str, str]:
    """`Class.method` -> file, for each public method whose name nobody uses, by attribute or as a string."""
    paths = sorted(PACKAGE.rglob("*.py"))
    trees = {path: ast.parse(path.read_text()) for path in paths}
    outside = [ast.parse(path.read_text()) for path in [*ROOT.glob("recipes/*.py"), *ROOT.glob("benchmarks/*.py")]]
    used = documented() | CALLED_FROM_OUTSIDE
    for tree in [*trees.values(), *outside]:
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        used |= set(words(tree)) | {text for text in strings if isinstance(text, str)}
    classes = [(path, node) for path, tree in trees.items() for node in tree.body if isinstance(node, ast.ClassDef)]
    return {
        f"{owner.name}.{method.name}": str(path.relative_to(ROOT))
        for path, owner in classes
        for method in owner.body
        if isinstance(method, ast.FunctionDef) and not method.name.startswith(("_", "on_")) and method.name not in used
    }


def test_nothing_public_is_out_of_reach():
    dead = unreached() | unreached_methods()
    assert not dead, f"only tests use these: {dead}"
