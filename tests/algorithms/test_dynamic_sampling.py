"""DAPO's dynamic sampling, and the reserves of prompts that it draws from."""

from types import SimpleNamespace

import pytest
import torch

from rlsgd.algorithms import CISPO, DAPO, REINFORCE
from rlsgd.core.problems import Problem, Prompt, Scores
from rlsgd.core.types import Rollouts
from rlsgd.rollout.join import join_rollouts
from rlsgd.rollout.sampler import assemble
from tests.algorithms.setups import EarlyLetters, Ranks, bare, fit, make_data, make_module

METRICS = ("rounds", "replaced_groups", "kept_zero_variance_groups")


class Letter(EarlyLetters):
    """1 for a completion with an x: most groups of a random model are scored alike."""

    def score(self, completion, problem):
        return float("x" in completion)


class ScriptedDAPO(DAPO):
    """Without a trainer, whose data module is told the scores of every round."""

    task_data = SimpleNamespace(record=lambda prompts, scores, epoch: None)


def prompts_of(names):
    return [Prompt(Problem(name, ""), name, [7] * len(name)) for name in names]


def scripted(tiny_llama, monkeypatch, rewards, reserves, **options):
    """DAPO whose rewards and reserves are given by question: groups of two, no model."""
    module = bare(ScriptedDAPO, tiny_llama, **options)
    module.calls = []

    def sample_and_score(module, prompts, *, completions_per_prompt, temperature, seed, **how):
        assert completions_per_prompt == 2
        module.calls.append((seed, [prompt.text for prompt in prompts]))
        width = max(len(prompt.token_ids) for prompt in prompts)
        ids = torch.tensor([[0] * (width - len(p.token_ids)) + p.token_ids for p in prompts])
        ids = ids.repeat_interleave(2, 0)
        completions = torch.tensor([[5, 6, 1] if row % 2 else [5, 1, 0] for row in range(len(ids))])
        completions = completions[:, : 3 if len(prompts) > 1 else 2]  # rounds differ in width
        flat = [float(reward) for prompt in prompts for reward in rewards[prompt.text]]
        rollouts = Rollouts.extending(
            assemble(ids, ids > 0, completions, [1]),
            rewards=torch.tensor(flat),
            prompts=[prompt for prompt in prompts for _ in range(2)],
            completions=[f"{p.text}{i}" for p in prompts for i in range(2)],
        )
        failures = ["boom" if reward < 0 else None for reward in flat]
        answers = [str(reward) for reward in flat]
        scores = Scores(flat, {"letter": flat}, failures, full_marks=1.0, answers=answers)
        return rollouts, scores

    monkeypatch.setattr("rlsgd.algorithms.rl.sample_and_score", sample_and_score)
    module.reserve_prompts = lambda attempt: prompts_of(reserves[attempt - 1])
    return module


REWARDS = {"a": (1, 0), "bbb": (1, 1), "cc": (0, 1), "d": (0, 0)}


def test_groups_scored_alike_are_replaced(tiny_llama, monkeypatch):
    rewards = REWARDS | {"eeee": (0, 0), "ff": (-1, 1), "g": (1, 1), "hh": (1, 0)}
    reserves = [["eeee", "ff", "unused"], ["g", "unused"], ["hh", "unused"]]
    module = scripted(tiny_llama, monkeypatch, rewards, reserves)
    rollouts, scores = module.collect(prompts_of(["a", "bbb", "cc", "d"]), 2)
    # --- bbb by ff in round 2; d by nothing, by nothing, by hh in round 4
    assert [p.text for p in rollouts.prompts[::2]] == ["a", "ff", "cc", "hh"]
    assert rollouts.completions == ["a0", "a1", "ff0", "ff1", "cc0", "cc1", "hh0", "hh1"]
    assert rollouts.rewards.tolist() == scores.rewards == [1, 0, -1, 1, 0, 1, 1, 0]
    assert scores.parts == {"letter": scores.rewards}
    assert scores.answers == [str(float(reward)) for reward in scores.rewards]
    assert scores.failures == [None, None, "boom", None, None, None, None, None]
    assert [names for _, names in module.calls] == [
        ["a", "bbb", "cc", "d"],
        ["eeee", "ff"],
        ["g"],
        ["hh"],
    ]
    assert len({seed for seed, _ in module.calls}) == 4
    metrics = {name: rollouts.metrics[f"dynamic_sampling/{name}"] for name in METRICS}
    assert metrics == {"rounds": 4, "replaced_groups": 2, "kept_zero_variance_groups": 0}
    # --- of all 16 completions those with reward 1; tokens 2 and 3 by turns, 2 and 2 if cut
    sampled = [r for names in module.calls for name in names[1] for r in rewards[name]]
    assert rollouts.metrics["dynamic_sampling/sampled_accuracy"] == sampled.count(1) / 16
    assert rollouts.metrics["dynamic_sampling/sampled_tokens"] == 6 * 5 + 2 * 4


def test_joined_rows_keep_their_tokens(tiny_llama, monkeypatch):
    rewards = REWARDS | {"eeee": (0, 0), "ff": (0, 1), "g": (1, 0)}
    module = scripted(tiny_llama, monkeypatch, rewards, [["eeee", "ff"], ["g"]])
    rollouts, _ = module.collect(prompts_of(["a", "bbb", "cc", "d"]), 2)
    for row, prompt in enumerate(rollouts.prompts):
        ids, mask = rollouts.input_ids[row], rollouts.completion_mask[row]
        attended = rollouts.attention_mask[row]
        assert ids[attended & ~mask].tolist() == prompt.token_ids
        # --- round 3 is cut after two tokens, so that its second row has not ended
        second = [5, 6] if prompt.text == "g" else [5, 6, 1]
        assert ids[mask].tolist() == (second if row % 2 else [5, 1])
        assert rollouts.truncated[row] == (prompt.text == "g" and row % 2 == 1)
    assert rollouts.input_ids.shape == (8, 4 + 3)
    assert (rollouts.input_ids[~rollouts.attention_mask] == module.tokenizer.pad_token_id).all()


def test_what_is_left_after_the_budget_is_kept_and_counted(tiny_llama, monkeypatch):
    rewards = REWARDS | {"ee": (0, 0), "ff": (0, 1), "g": (1, 0)}
    expected = {
        0: (["a", "bbb", "cc", "d"], (1, 0, 2)),
        1: (["a", "ff", "cc", "d"], (2, 1, 1)),
        2: (["a", "ff", "cc", "g"], (3, 2, 0)),
        9: (["a", "ff", "cc", "g"], (3, 2, 0)),  # stops when nothing is left to replace
    }
    for rounds, (names, metrics) in expected.items():
        module = scripted(
            tiny_llama, monkeypatch, rewards, [["ee", "ff"], ["g"]], extra_rounds=rounds
        )
        rollouts, _ = module.collect(prompts_of(["a", "bbb", "cc", "d"]), 2)
        assert [p.text for p in rollouts.prompts[::2]] == names
        assert tuple(rollouts.metrics[f"dynamic_sampling/{name}"] for name in METRICS) == metrics
    module = scripted(tiny_llama, monkeypatch, rewards, [[]], extra_rounds=9)  # no reserve is left
    rollouts, _ = module.collect(prompts_of(["bbb", "d"]), 2)
    assert rollouts.metrics["dynamic_sampling/kept_zero_variance_groups"] == 2


def test_ranks_sample_in_step(tiny_llama, monkeypatch):
    """A rank with nothing to replace samples as often and as much as the one that has most."""
    rewards = REWARDS | {"ee": (0, 0), "ff": (0, 1), "g": (1, 0)}
    reserves = [["ee", "ff"], ["g"]]
    modules = [scripted(tiny_llama, monkeypatch, rewards, reserves) for _ in range(2)]
    ranks = Ranks(monkeypatch, ["rlsgd.algorithms.dapo"])
    own = [["a", "cc"], ["bbb", "d"]]
    results = ranks.run(lambda rank: modules[rank].collect(prompts_of(own[rank]), 2)[0])
    assert [names for _, names in modules[0].calls] == [["a", "cc"], ["ee", "ff"], ["g"]]
    assert [names for _, names in modules[1].calls] == [["bbb", "d"], ["ee", "ff"], ["g"]]
    assert [p.text for p in results[0].prompts[::2]] == ["a", "cc"]
    assert [p.text for p in results[1].prompts[::2]] == ["ff", "g"]


def test_training_batch_is_what_was_sampled_and_scored(tiny_llama, tmp_path):
    """Through a real Trainer, with real completions of several rounds."""
    module = make_module(DAPO, tiny_llama, extra_rounds=2, kl_coef=0.1)
    trainer, spy = fit(module, tiny_llama, tmp_path, data={"reward": Letter()})
    (batch,) = spy.batches
    assert trainer.callback_metrics["dynamic_sampling/replaced_groups"] > 0
    assert trainer.callback_metrics["kl"] == 0  # all of it is scored by the present policy
    for row, prompt in enumerate(batch.prompts):
        ids = batch.input_ids[row]
        assert batch.completions[row] == module.tokenizer.decode(
            ids[batch.completion_mask[row]], skip_special_tokens=True
        )
        assert batch.rewards[row] == float("x" in batch.completions[row])
        assert ids[batch.attention_mask[row] & ~batch.completion_mask[row]].tolist() == (
            prompt.token_ids
        )
    groups = batch.rewards.view(-1, 4)
    kept = int((groups.amax(1) == groups.amin(1)).sum())
    assert trainer.callback_metrics["dynamic_sampling/kept_zero_variance_groups"] == kept


def test_reported_logprobs_are_joined():
    def part(width, columns, value):
        mask = torch.tensor([[False] * width + [True] * columns])
        logprobs = torch.full((1, width + columns), value)
        empty = torch.zeros(1, dtype=torch.bool)
        ids = torch.full((1, width + columns), 9)
        rewards = torch.tensor([value])
        return Rollouts(
            ids, torch.ones_like(mask), mask, empty, sampler_logprobs=logprobs, rewards=rewards
        )

    joined = join_rollouts([part(1, 3, -1.0), part(2, 1, -2.0)], pad_token_id=0)
    assert joined.input_ids.tolist() == [[0, 9, 9, 9, 9], [9, 9, 9, 0, 0]]
    assert joined.sampler_logprobs.tolist() == [[0, -1, -1, -1, -1], [-2, -2, -2, 0, 0]]
    assert joined.rewards.tolist() == [-1, -2]


def questions(prompts):
    return [prompt.problem.question for prompt in prompts]


def test_reserves_are_a_function_of_seed_epoch_and_attempt(tiny_llama):
    def drawn(seed, epoch, attempt):
        return questions(make_data(tiny_llama, seed=seed).prompts(epoch, attempt=attempt))

    first = drawn(0, 3, 1)
    assert first == drawn(0, 3, 1) and len(first) == 4
    data = make_data(tiny_llama, seed=0)
    data.prompts(5, attempt=2)
    assert questions(data.prompts(3, attempt=1)) == first
    own = questions(data.prompts(3))
    assert not set(first) & set(own) and not set(first) & set(drawn(0, 3, 2))
    assert first != drawn(0, 4, 1) and first != drawn(1, 3, 1)


def test_reserves_leave_out_what_the_epoch_has_asked(tiny_llama):
    class Few(type(make_data(tiny_llama).task)):
        """Seven questions in all; which come first depends on the seed."""

        def train_problems(self, *, seed, epoch, count):
            return [Problem(f"{(seed + i) % 7}", "") for i in range(count)]

    data = make_data(tiny_llama)
    data.task = Few()
    asked = []
    for attempt in range(12):
        fresh = questions(data.prompts(0, attempt=attempt))
        assert not set(fresh) & set(asked)
        asked += fresh
    assert sorted(asked) == [str(i) for i in range(7)]  # every question once, then empty reserves


def test_ranks_share_a_reserve_evenly(tiny_llama):
    data = make_data(tiny_llama)
    whole = questions(data.prompts(0, attempt=1))
    shares = [questions(data.prompts(0, rank=r, world_size=2, attempt=1)) for r in range(2)]
    assert shares == [whole[:2], whole[2:]]


def test_flags(tiny_llama):
    expected = {
        r"--model.overlong_tokens must be between 0 and": (DAPO, {"overlong_tokens": 7}),
        r"--model.overlong_coef and --model.extra_rounds": (DAPO, {"extra_rounds": -1}),
        r"--model.overlong_coef and": (DAPO, {"overlong_coef": -1.0}),
        r"--model.max_ratio must be at least 1": (CISPO, {"max_ratio": 0.5}),
        r"--model.baseline 'mean' is unknown": (REINFORCE, {"baseline": "mean"}),
        r"--model.running_decay must be in \[0, 1\)": (REINFORCE, {"running_decay": 1.0}),
    }
    for message, (algorithm, options) in expected.items():
        with pytest.raises(ValueError, match=message):
            make_module(algorithm, tiny_llama, **options)
