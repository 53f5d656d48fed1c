"""Batches of pairs: equal reports are known as equal, padding goes to the longest text only."""

import torch
from families import build

from hf_medvlm.collators.pairs import pair_id, same_text


def test_equal_reports_have_equal_ids_whatever_their_case_and_spaces():
    assert pair_id("No acute  process.\n") == pair_id("no ACUTE process.") == pair_id("No acute process.")
    assert pair_id("No acute process.") != pair_id("No acute process")
    assert same_text(" A\tb ") == "a b" and 0 <= pair_id("") < 2**63
    assert pair_id("No acute process.") == 7114000986693266682  # the same in every process, version and run


def test_a_batch_holds_what_forward_takes(splits):
    collator = build("dual_encoder", splits).collator(False)
    studies = list(splits.train[:5])
    batch = collator(studies)
    longest = max(len(collator.processor.tokenizer(collator.text(study)).input_ids) for study in studies)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (5, min(longest, 96))
    assert batch["pixel_values"].shape == (5, 3, 32, 32)
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] != 0).long())
    expected = [pair_id(study.text()) for study in studies]
    assert batch["pair_ids"].tolist() == expected
