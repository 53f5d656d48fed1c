"""Everything about the package is in setup.cfg. Here is the one step that setup.cfg cannot say: recipes in the wheel.

recipes/ and ds_configs/ stay at the top of the checkout, where people read and copy them, and a wheel holds a copy
inside the package, where `hf-medvlm train` looks for it. They are data, not packages: a `package_dir` mapping would
make them importable as `hf_medvlm.recipes`, would ask for a list of all packages in place of `find:`, and would put
an import hook in place of a plain path into every editable installation.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SHIPPED = ("recipes/**/*.py", "recipes/**/*.yaml", "recipes/*.ipynb", "ds_configs/*.json")


class BuildWithRecipes(build_py):
    """Copy the recipes, their plans, the notebook and the DeepSpeed files into the package that is built."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # an editable installation reads them in the checkout
            for source, target in self.shipped():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def shipped(self) -> list[tuple[Path, Path]]:
        """(file of the checkout, its place in the built package)."""
        inside = Path(self.build_lib) / "hf_medvlm"
        files = [path for pattern in SHIPPED for path in sorted(ROOT.glob(pattern))]
        return [(path, inside / path.relative_to(ROOT)) for path in files]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        copies = [] if self.editable_mode else [str(target) for _, target in self.shipped()]
        return super().get_outputs(include_bytecode) + copies


setup(cmdclass={"build_py": BuildWithRecipes})
