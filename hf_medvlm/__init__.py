"""Fine-tune medical vision-language models on chest radiographs and their reports, on the Hugging Face Trainer.

Importing this package imports neither torch nor transformers; `import hf_medvlm.models` registers every family with the
Auto classes.
"""

__version__ = "0.1.0"


def _show_the_evaluate_library() -> None:
    """`python recipes/x.py` puts recipes/ first on the path, where evaluate.py would hide the library of that name."""
    import sys
    from pathlib import Path

    recipes = Path(__file__).resolve().parent.parent / "recipes"
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != recipes]


_show_the_evaluate_library()
