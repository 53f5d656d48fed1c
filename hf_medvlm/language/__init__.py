"""What reports say: text in; sections, sentences, findings and triplets out."""

from hf_medvlm.language.descriptions import Description, describe_findings
from hf_medvlm.language.findings import extract_triplets, label_report
from hf_medvlm.language.sections import sections

__all__ = ["Description", "describe_findings", "extract_triplets", "label_report", "sections"]
