"""Fine-tune medical vision-language models on chest radiographs and their reports, on the Hugging Face Trainer.

Importing this package imports neither torch nor transformers; `import hf_medvlm.families` registers every family with
the Auto classes.
"""

__version__ = "0.1.0"
