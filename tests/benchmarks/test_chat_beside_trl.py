"""The comparison with TRL's collator runs, and both take the same samples the same way where both can."""

from __future__ import annotations

import chat_beside_trl
import pytest

from hf_medvlm.families.chat.tiny_qwen import tiny_qwen_processor, train_byte_tokenizer


def test_ids_are_trls_and_what_only_one_of_the_two_refuses_is_shown(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("trl")
    samples = chat_beside_trl.make_samples(4, size=64)
    tokenizer = train_byte_tokenizer([*chat_beside_trl.SENTENCES, *chat_beside_trl.PROMPTS], vocab_size=600)
    processor = tiny_qwen_processor(tokenizer, 96)
    compared = chat_beside_trl.compare(samples, processor)
    assert compared.startswith("ids equal in 4 of 4, pixels equal") and r"TRL supervises ['\n'] beyond" in compared
    ours, theirs = zip(*chat_beside_trl.cases(samples[0], processor).values(), strict=True)
    assert "an image is never cut" in ours[2] and "tokens of the image left" in theirs[2]
    assert ours[1].endswith("<|im_end|>'") and "<|im_end|>" not in theirs[1]
    assert ours[3] == "supervises 2 answers" and theirs[3] == "supervises 0 answers"
    chat_beside_trl.report(count=4, batch=2)
    assert "samples/s ours" in capsys.readouterr().out
