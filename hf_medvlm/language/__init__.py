"""What reports say: text in; sections, sentences, findings and triplets out."""

from hf_medvlm.language.findings import extract_triplets, label_report
from hf_medvlm.language.sections import sections

__all__ = ["extract_triplets", "label_report", "sections"]
