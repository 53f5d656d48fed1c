"""Rewards: what a written report is worth beside its study. Metrics of `hf_medvlm.metrics`, one number a report."""
