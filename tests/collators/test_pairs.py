"""Batches of pairs: equal reports are known as equal, padding goes to the longest text only."""

from dataclasses import replace

import torch
from families import build

from hf_medvlm.collators.pairs import pair_id, same_text
from hf_medvlm.data.rows import Row
from hf_medvlm.language.sections import sentences


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


def test_a_share_of_the_texts_is_one_sentence_of_the_report_drawn_anew_each_epoch(splits):
    collator = replace(build("dual_encoder", splits).collator(False), sentence_share=0.5)
    rows = [Row(study, index, epoch) for epoch in range(4) for index, study in enumerate(splits.train)]
    batch, again = collator(rows), collator(rows[3:4])
    assert batch["pair_ids"][3] == again["pair_ids"][0]  # whatever the batch
    whole = [pair_id(row.study.text()) for row in rows]
    parts = [{pair_id(part) for part in sentences(row.study.text())} for row in rows]
    cut = [pair != all_of_it for pair, all_of_it in zip(batch["pair_ids"].tolist(), whole, strict=True)]
    assert all(pair in known for pair, known, c in zip(batch["pair_ids"].tolist(), parts, cut, strict=True) if c)
    assert 0.35 < sum(cut) / len(cut) < 0.65
    per_epoch = batch["pair_ids"].view(4, -1)
    assert (per_epoch[0] != per_epoch[1]).any() and (per_epoch[1] != per_epoch[2]).any()
