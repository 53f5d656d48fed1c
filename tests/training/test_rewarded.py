"""Learning from rewards: the loss is GRPO's, and the same however a step is cut up, sharded, killed or adapted."""

from __future__ import annotations

import json
import math
from collections import Counter
from types import SimpleNamespace

import finetune_blip
import finetune_git
import pytest
import torch
from families import build
from launch import together
from reward_steps import make_reward_trainer
from safetensors.torch import load_file
from steps import logged_losses

from hf_medvlm.data.rows import Row
from hf_medvlm.families.captioners.recipe import CaptioningArguments
from hf_medvlm.rewards.reward import Reward
from hf_medvlm.training.checks import STOP, Checks
from hf_medvlm.training.parts import VISION_NAMES, first_named
from hf_medvlm.training.policy import PolicyObjective, chosen_log_probs, group_advantages
from hf_medvlm.training.rollouts import SeededSampling, draw_numbers, sample

R, T, V = 6, 5, 7  # three studies of two texts


class Scripted(torch.nn.Module):
    """A model whose logits are its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.randn(R, T, V, generator=torch.Generator().manual_seed(1)))

    def forward(self, use_cache: bool = False, **inputs: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)


@pytest.fixture
def sampled() -> dict[str, torch.Tensor]:
    """Texts of different lengths behind a prompt of one token, and what the loss takes beside them."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(V, (R, T), generator=draw)
    labels[:, 0] = -100
    for row, length in enumerate((4, 2, 1, 3, 4, 2)):
        labels[row, 1 + length :] = -100
    now = chosen_log_probs(Scripted().logits.detach(), labels, 0.7)[0]
    rewards = torch.rand(3, 2, generator=draw)
    return {
        "labels": labels,
        "advantages": group_advantages(rewards).flatten(),
        "sampled_log_probs": now + 0.5 * torch.randn(R, T - 1, generator=draw),  # some ratios are clipped
        "reference_log_probs": now + 0.3 * torch.randn(R, T - 1, generator=draw),
        "rewards": rewards,
    }


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.5, 0.5, 0.5]])
    deviation = math.sqrt((4 + 1 + 9) / 2)
    wanted = [[-2 / (deviation + 1e-4), -1 / (deviation + 1e-4), 3 / (deviation + 1e-4)], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(group_advantages(rewards), torch.tensor(wanted))
    greedy = group_advantages(rewards, torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(greedy, torch.tensor([[-1.0, 0.0, 4.0], [0.5, 0.5, 0.5]]))


def test_loss_and_gradient_are_the_formula_written_out(sampled):
    objective, model, slow = PolicyObjective(temperature=0.7, kl_weight=0.3, clip=0.2), Scripted(), Scripted()
    batch = {name: value for name, value in sampled.items() if name != "rewards"}
    result = objective(model, batch)
    result.loss.backward()

    total, tokens, clipped = torch.zeros(()), 0, 0
    for row in range(R):
        for place in range(1, T):
            token = int(sampled["labels"][row, place])
            if token == -100:
                continue
            probability = torch.exp(slow.logits[row, place - 1] / 0.7)
            log_probability = torch.log(probability[token] / probability.sum())
            ratio = torch.exp(log_probability - sampled["sampled_log_probs"][row, place - 1])
            advantage = float(sampled["advantages"][row])
            within = 0.8 <= ratio.item() <= 1.2
            kept = ratio if within else ratio.detach().clamp(0.8, 1.2)
            first, second = ratio * advantage, kept * advantage
            total = total - (first if first.item() <= second.item() else second)
            clipped += (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8)
            distance = sampled["reference_log_probs"][row, place - 1] - log_probability
            total = total + 0.3 * (torch.exp(distance) - distance - 1)
            tokens += 1
    (total / tokens).backward()
    assert clipped > 2 and int(result.per_study["clipped"].sum()) == clipped
    torch.testing.assert_close(result.loss, total / tokens)
    torch.testing.assert_close(model.logits.grad, slow.logits.grad)
    assert sum(result.loss_terms.values()) == pytest.approx(result.loss.item())


def test_loss_gradient_and_advantages_are_trls(sampled):
    """TRL's own `_compute_loss`, on the same samples."""
    grpo = pytest.importorskip("trl.trainer.grpo_trainer")
    objective, model, other = PolicyObjective(temperature=0.7, kl_weight=0.3, clip=0.2), Scripted(), Scripted()
    batch = {name: value for name, value in sampled.items() if name != "rewards"}
    objective(model, batch).loss.backward()
    mask = (sampled["labels"][:, 1:] != -100).long()
    per_token = chosen_log_probs(other.logits, sampled["labels"], 0.7)[0]

    class Counted(dict):
        def __missing__(self, key):
            self[key] = []
            return self[key]

    one = SimpleNamespace(
        num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x
    )
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (per_token, torch.zeros_like(per_token), None),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        accelerator=one,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.3,
        loss_type="dapo",
        epsilon_low=0.2,
        epsilon_high=0.2,
        use_vllm=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        _metrics={"train": Counted()},
    )
    loss = grpo.GRPOTrainer._compute_loss(
        trainer,
        other,
        {
            "prompt_ids": sampled["labels"][:, :1],
            "prompt_mask": torch.ones(R, 1),
            "completion_ids": sampled["labels"][:, 1:].clamp(min=0),
            "completion_mask": mask,
            "advantages": sampled["advantages"],
            "old_per_token_logps": sampled["sampled_log_probs"],
            "ref_per_token_logps": sampled["reference_log_probs"],
            "num_items_in_batch": mask.sum(),
        },
    )
    loss.backward()
    torch.testing.assert_close(objective(model, batch).loss, loss)
    torch.testing.assert_close(model.logits.grad, other.logits.grad)
    rewards = sampled["rewards"]
    theirs = (rewards - rewards.mean(1, keepdim=True)) / (grpo.nanstd(rewards, dim=1)[:, None] + 1e-4)
    torch.testing.assert_close(sampled["advantages"], theirs.flatten())


def test_sampling_follows_the_distribution_at_the_temperature(splits):
    scores = torch.tensor([1.0, 0.0, -1.0, -torch.inf]).repeat(4000, 1)
    rows = [Row(study) for study in splits.train[:2]]
    draws = draw_numbers(rows, 2000, 1, seed=0, step=3)
    sampling = SeededSampling(draws, start=1, temperature=2.0)
    chosen = sampling(torch.zeros(4000, 1, dtype=torch.long), scores).argmax(1)
    wanted = (scores[0] / 2).softmax(0)
    shares = torch.tensor([Counter(chosen.tolist())[token] / 4000 for token in range(4)])
    assert (shares - wanted).abs().max() < 0.03 and shares[3] == 0
    torch.testing.assert_close(sampling.log_probs[:, 0].exp(), wanted[chosen])
    torch.testing.assert_close(draw_numbers(rows[1:], 2000, 1, seed=0, step=3), draws[2000:])
    assert not torch.equal(draw_numbers(rows, 2000, 1, seed=0, step=4), draws)


def test_texts_do_not_depend_on_their_neighbours_and_end_where_they_end(splits, tmp_path):
    trainer = make_reward_trainer(splits, tmp_path)
    rows = [trainer.train_dataset[place] for place in range(4)]
    together = trainer.write(trainer.data_collator(rows))
    alone = trainer.write(trainer.data_collator(rows[2:3]))
    width = alone["labels"].shape[1]
    assert torch.equal(together["labels"][8:12, :width], alone["labels"])
    torch.testing.assert_close(together["advantages"][8:12], alone["advantages"])
    assert together["pixel_values"].shape[0] == 4 and together["labels"].shape[0] == 16
    assert torch.equal(together["attention_mask"][:, 1:], (together["labels"][:, 1:] != -100).long())
    # with the weights that sampled, the probabilities are those of the sampling, cached keys or not
    now = trainer.objective.log_probs(trainer.model.eval(), together)[0]
    torch.testing.assert_close(now, together["sampled_log_probs"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["blip", "git"])
def test_a_picture_is_encoded_once_for_all_texts_of_its_study(name, splits):
    """The same texts, loss and gradient as from a batch that repeats the pictures; no spread costs nothing."""
    family, samples = build(name, splits), 3
    model, collator = family.model.eval(), family.evaluation.collator
    prompts = collator.prompts([Row(study) for study in splits.train[:3]])
    draws = draw_numbers([Row(study) for study in splits.train[:3]], samples, 6, seed=0, step=0)
    seen: list[int] = []
    tower = model.get_submodule(first_named(model, VISION_NAMES))
    hook = tower.register_forward_hook(lambda module, args, kwargs, out: seen.append(len(out[0])), with_kwargs=True)
    stops = family.evaluation.stop_ids(model)
    texts, generated = sample(model, prompts, draws, 1.0, stops)
    assert seen == [3]
    repeated = {key: value.repeat_interleave(samples, 0) for key, value in prompts.items()}
    others, again = sample(model, repeated, draws, 1.0, stops)
    assert seen == [3, 9] and torch.equal(generated, again)
    torch.testing.assert_close(texts["sampled_log_probs"], others["sampled_log_probs"])

    advantages = torch.tensor([1.0, -0.5, -0.5, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0])
    batch = texts | {"advantages": advantages, "pixel_values": prompts["pixel_values"]}
    PolicyObjective()(model, batch).loss.backward()
    assert seen == [3, 9, 2]  # the second study has nothing to teach, nor have two texts of the third
    hook.remove()
    ours = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    whole = {key: batch[key] for key in ("input_ids", "attention_mask")} | {"pixel_values": repeated["pixel_values"]}
    logits = model(**whole).logits[:, -batch["labels"].shape[1] :]
    log_probs, mask = chosen_log_probs(logits, batch["labels"])
    (-(advantages[:, None] * log_probs).sum() / mask.sum()).backward()  # the ratios are 1
    theirs = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    scale = max(value.abs().max() for value in theirs.values())
    assert ours.keys() == theirs.keys() and scale > 1e-3
    assert all((ours[key] - value).abs().max() < 1e-4 * scale for key, value in theirs.items())


def test_greedy_baseline(splits, tmp_path):
    """Self-critical: a report is held against the one that greedy search writes."""
    options = CaptioningArguments(reward_samples=1, reward_baseline="greedy")
    options.check_reward()
    long = Reward({"long": lambda texts, studies: [len(text) for text in texts]}, {"long": 1.0})
    trainer = make_reward_trainer(splits, tmp_path, long, options)
    rows = [trainer.train_dataset[place] for place in range(3)]
    batch = trainer.write(trainer.data_collator(rows))
    prompts = {"prompts": trainer.evaluation.collator.prompts(rows)}
    greedy = trainer.evaluation.predict_images(trainer.model, prompts)["generated"]
    text_of = trainer.evaluation.text_of
    ours = [text_of(row.clamp(min=0).numpy()) for row in batch["labels"]]
    wanted = [len(one) - len(text_of(best.numpy())) for one, best in zip(ours, greedy, strict=True)]
    assert batch["advantages"].tolist() == wanted


def test_the_studys_own_report_is_learnt_beside_the_sampled_ones(splits, tmp_path):
    """The policy's loss and the supervised one, a mean over the tokens of both."""
    options = CaptioningArguments(reward_samples=2, reward_supervised_weight=3.0, reward_temperature=0.7)
    trainer = make_reward_trainer(splits, tmp_path, options=options)
    model, rows = trainer.model.eval(), [trainer.train_dataset[place] for place in range(3)]
    batch = trainer.write(trainer.data_collator(rows))
    plain = trainer.data_collator.reports(rows)
    assert batch["supervised"].tolist() == [False, False, True] * 3
    width = plain["labels"].shape[1]
    assert torch.equal(batch["labels"][2::3, :width], plain["labels"])
    result = trainer.objective(model, batch)
    result.loss.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()

    sampled = {name: value if len(value) == 3 else value[~batch["supervised"]] for name, value in batch.items()}
    sampled.pop("supervised")
    tokens = (batch["labels"][:, 1:] != -100).sum()
    policy = PolicyObjective(0.7)(model, sampled, {"tokens": tokens}).loss
    logits = model(**{name: value for name, value in plain.items() if name != "labels"}).logits
    nll = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), plain["labels"][:, 1:].flatten(), reduction="sum"
    )
    (policy + 3 * nll / tokens).backward()
    torch.testing.assert_close(result.loss_terms["supervised"], 3 * nll.detach() / tokens)
    for name, value in model.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(gradients[name], value.grad, rtol=1e-3, atol=1e-6)
    assert int(result.per_study["tokens"].sum()) == int((sampled["labels"][:, 1:] != -100).sum())


def moves(step: dict, before: dict) -> dict:
    return {key: step[key] - value for key, value in before.items() if value.is_floating_point() and key in step}


def assert_same_step(step: dict, wanted: dict, before: dict) -> None:
    ours, theirs = moves(step, before), moves(wanted, before)
    assert max(move.abs().max() for move in theirs.values()) > 1e-4
    for key in ours:  # what is tied to another is not saved
        assert (ours[key] - theirs[key]).abs().max() <= 1e-4 * theirs[key].abs().max() + 1e-6, key


@pytest.fixture(scope="module")
def one_step(splits, tmp_path_factory):
    """(weights before, weights after, logged) of one step on a global batch in one piece."""
    trainer = make_reward_trainer(splits, tmp_path_factory.mktemp("one_step"))
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "reward" in entry)
    return before, trainer.model.state_dict(), logged


def test_a_step_is_logged(one_step):
    logged = one_step[2]
    terms = ("findings_f1", "bleu2", "length")
    assert logged["reward"] == pytest.approx(sum(logged[f"reward/{name}"] for name in terms), abs=1e-5)
    assert logged["reward_std"] > 0 and {f"reward/{name}_std" for name in terms} <= logged.keys()
    assert logged["kl"] > 0 and logged["loss/kl"] == pytest.approx(0.1 * logged["kl"], rel=1e-3)
    assert logged["clipped"] == 0 and 0 < logged["distinct"] <= 1 and logged["length"] > 0
    assert logged["loss/policy"] + logged["loss/kl"] == pytest.approx(logged["loss"], rel=1e-3)


def test_accumulated_micro_batches_give_the_same_step(splits, tmp_path, one_step):
    before, wanted, logged = one_step
    cut = make_reward_trainer(splits, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    cut.train()
    assert logged_losses(cut) == pytest.approx([logged["loss"]], rel=1e-4)
    assert_same_step(cut.model.state_dict(), wanted, before)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "zero3"])
def test_two_processes_take_the_same_step(mode, root, cache, tmp_path, one_step):
    before, wanted, logged = one_step
    sharded = [] if mode == "ddp" else ["--deepspeed", root / "ds_configs" / f"{mode}.json"]
    together(root / "tests" / "training" / "reward_steps.py", tmp_path, *sharded)
    assert_same_step(load_file(tmp_path / "model.safetensors"), wanted, before)
    step = json.loads((tmp_path / "found.json").read_text())
    assert step["losses"] == pytest.approx([logged["loss"]], rel=1e-4)
    for name in ("reward", "reward_std", "kl", "distinct", "length"):
        assert step["logged"][name] == pytest.approx(logged[name], rel=1e-4), name


def test_killed_and_resumed_it_ends_on_the_same_weights(splits, tmp_path):
    options = {"max_steps": 4, "optim": "adamw_torch", "learning_rate": 1e-3, "per_device_train_batch_size": 3}
    options |= {"save_strategy": "steps", "save_steps": 2, "logging_steps": 4}
    whole = make_reward_trainer(splits, tmp_path, **options)
    whole.start_rows = [whole.eval_dataset]
    whole.train()
    resumed = make_reward_trainer(splits, tmp_path, **options)
    resumed.start_rows = [resumed.eval_dataset]
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    ended = resumed.model.state_dict()
    assert all(torch.equal(ended[key], value) for key, value in whole.model.state_dict().items())
    logged = [next(entry for entry in one.state.log_history if "reward" in entry) for one in (whole, resumed)]
    assert all(logged[1][name] == pytest.approx(value) for name, value in logged[0].items() if "reward" in name)
    assert resumed.started == whole.started and len(whole.started) == 1
    scores = resumed.scores(resumed.eval_dataset)
    assert scores.baselines["supervised_start"]["reward"] != scores.metrics["reward"]


def test_the_preflight_stops_a_reward_that_pays_for_long_reports(splits, tmp_path):
    long = Reward({"words": lambda texts, studies: [len(text.split()) for text in texts]}, {"words": 1.0})
    checks = Checks()
    make_reward_trainer(splits, tmp_path, long).check_family(checks)
    assert any(state == STOP and "pays for long reports" in sentence for state, _, sentence in checks.lines)
    with pytest.raises(ValueError, match="pays for long reports"):
        checks.stop_if_needed()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_samples": 1}, "--reward_samples 1: a group baseline needs 2 or more"),
        ({"reward_baseline": "mean"}, "choose group or greedy"),
        ({"reward_temperature": 0.0}, "must be above 0"),
        ({"reward_supervised_weight": -1.0}, "must be 0 or more"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        CaptioningArguments(**options).check_reward()


def test_the_recipe_leaves_a_whole_run_beside_its_start(splits, tmp_path):
    family, start, out = build("git", splits), tmp_path / "start", tmp_path / "run"
    family.model.save_pretrained(start)
    family.evaluation.collator.processor.save_pretrained(start)
    words = "--synthetic_studies 60 --synthetic_size 64 --per_device_train_batch_size 4 --max_steps 2 --max_length 16"
    words += " --config reward_tiny --eval_studies 5 --dataloader_num_workers 0 --eval_strategy no --logging_steps 1"
    words += " --reward findings_f1,cider=0.5 --lora_rank 4 --learning_rate 1e-2"
    finetune_git.main([*words.split(), "--model_name_or_path", str(start), "--output_dir", str(out)])
    results = json.loads((out / "test_results.json").read_text())
    assert {"reward", "cider"} <= results["baselines"]["supervised_start"].keys() & results["metrics"].keys()
    assert results["baselines"]["constant_normal"]["reward"] > 0
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert [entry["reward/cider"] for entry in history if "reward/cider" in entry]
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    before, after = load_file(start / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("embed" in name for name in changed)  # adapters sit on linear layers
    assert json.loads((out / "run.json").read_text())["best_checkpoint_metric"] == "reward"


def test_a_reward_needs_a_supervised_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="give the folder of a supervised run"):
        finetune_blip.main(
            ["--reward", "cider", "--synthetic_studies", "40", "--synthetic_size", "64", "--output_dir", str(tmp_path)]
        )
