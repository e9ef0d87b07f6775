"""A real vLLM engine beside the trainer: what it samples with, and what happens when it lags.

One engine serves the whole file, since starting it is what takes time. Its model has tied
embeddings, whose head vLLM packs apart from the embedding on a CPU.
"""

import os
import signal
import threading

import pytest
import torch

from rlsgd.algorithms import GRPO
from rlsgd.models.loading import load_policy
from rlsgd.rollout import HFSampler, VLLMSampler
from tests.algorithms.setups import make_data, make_module, make_trainer
from tests.helpers.tiny_models import EOS
from tests.rollout.vllm_setups import (
    STOPS,
    TOLERANCE,
    difference,
    move_weights,
    prompts,
    sample,
    save_llama,
    trainers_logprobs,
)

pytestmark = pytest.mark.vllm


def trainers_state():
    return {
        "threads": torch.get_num_threads(),
        "set_num_threads": torch.set_num_threads,
        "dtype": torch.get_default_dtype(),
        "random": torch.get_rng_state().tolist(),
        "start_method": torch.multiprocessing.get_start_method(allow_none=True),
        "process_group": torch.distributed.is_initialized(),
        "environment": {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("vllm") / "llama")


@pytest.fixture(scope="module")
def started(folder):
    """A sampler with a running engine, and the trainer's state before and after its start."""
    sampler = VLLMSampler(max_model_len=192)
    before = trainers_state()
    sample(sampler, load_policy(str(folder)))
    yield sampler, before, trainers_state()
    sampler.close()


@pytest.fixture
def sampler(started):
    return started[0]


@pytest.fixture
def policy(folder):
    return load_policy(str(folder))


def test_starting_an_engine_leaves_the_trainer_as_it_was(started):
    _, before, after = started
    assert before == after


def test_log_probabilities_are_the_trainers_after_each_of_five_syncs(sampler, policy):
    """Alternately a few weights and all of them move; the prompts are those of the sync before."""
    first, generator = sampler.version, torch.Generator().manual_seed(0)
    sample(sampler, policy)
    for sync in range(5):
        stale = sample(sampler, policy)
        move_weights(policy, generator, share=1.0 if sync % 2 else 0.02)
        rollouts = sample(sampler, policy)
        assert difference(policy, rollouts) < TOLERANCE
        assert difference(policy, stale) > 100 * TOLERANCE, "the old weights would show"
        metrics = rollouts.metrics
        assert metrics["sampler/weight_version"] == stale.metrics["sampler/weight_version"] + 1
        assert stale.metrics["sync/bytes"] == 0, "nothing had changed, so nothing was sent"
        weights = sum(p.numel() for p in policy.parameters())
        assert metrics["sync/dense_bytes"] == 4 * weights
        if sync % 2:
            assert metrics["sync/bytes"] == 4 * weights
        else:
            assert 0.015 < metrics["sync/changed_share"] < 0.025
            assert metrics["sync/bytes"] < 0.03 * 4 * weights
    assert sampler.version >= first + 5


def test_an_engine_that_lost_its_weights_is_sent_all_of_them(sampler, policy):
    """What a server does that was started again, or a new engine after resuming."""
    sample(sampler, policy)
    sampler.engine.llm.update_weight_version("default")
    sampler.engine.llm.collective_rpc("reset_weights")
    rollouts = sample(sampler, policy)
    assert rollouts.metrics["sync/bytes"] == rollouts.metrics["sync/dense_bytes"]
    assert difference(policy, rollouts) < TOLERANCE


class ForgetfulSampler(VLLMSampler):
    """Shares a running engine, and sends it nothing after the first rollout."""

    def __init__(self, running):
        super().__init__(max_model_len=192)
        self.engine = running.engine

    def push(self, policy, engine):
        return {} if self.version else super().push(policy, engine)


def fit(sampler, folder, tmp_path, max_epochs=3, ckpt_path=None):
    module = make_module(GRPO, folder, sampler=sampler, temperature=0.7)
    trainer = make_trainer(tmp_path, max_epochs=max_epochs)
    trainer.fit(module, datamodule=make_data(folder), ckpt_path=ckpt_path)
    return trainer


def test_training_stops_where_a_sync_is_skipped(sampler, folder, tmp_path):
    running = sampler.engine
    try:
        with pytest.raises(ValueError, match=r"^--model.sampler.init_args.logprob_tolerance 0.001"):
            fit(ForgetfulSampler(sampler), folder, tmp_path)
    finally:
        running.llm.update_weight_version("lost")  # of the sampler that this engine belongs to


def test_training_with_an_engine_that_follows(sampler, folder, tmp_path):
    trainer = fit(sampler, folder, tmp_path)
    metrics = trainer.callback_metrics
    assert metrics["sampler/weight_version"] == sampler.version
    assert metrics["sampling/sampling_logp_difference/max"] < TOLERANCE
    assert metrics["sync/changed_share"] > 0


class RecordingSampler(VLLMSampler):
    """Shares a running engine, and notes what each rollout sent to it and got from it."""

    def __init__(self, running):
        super().__init__(max_model_len=192)
        self.engine = running.engine
        self.rollouts = []

    def sample(self, *given, **options):
        self.rollouts.append(super().sample(*given, **options))
        return self.rollouts[-1]


def test_a_resumed_run_sends_everything_and_samples_as_if_never_stopped(sampler, folder, tmp_path):
    whole, half, rest = (RecordingSampler(sampler) for _ in range(3))
    fit(whole, folder, tmp_path, max_epochs=4)
    fit(half, folder, tmp_path, max_epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    sampler.engine.llm.update_weight_version("default")
    sampler.engine.llm.collective_rpc("reset_weights")
    trainer = fit(rest, folder, tmp_path, max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    sent = [rollouts.metrics["sync/changed_share"] for rollouts in rest.rollouts]
    assert len(sent) == 2 and sent[0] == 1 and 0 < sent[1] < 1
    for ours, theirs in zip(rest.rollouts, whole.rollouts[2:], strict=True):
        assert torch.equal(ours.input_ids, theirs.input_ids)
    metrics = trainer.callback_metrics
    assert metrics["sampling/sampling_logp_difference/max"] < TOLERANCE


def test_the_prompt_of_a_group_is_computed_once(sampler, policy):
    """150 tokens are one full block of 128 in the prefix cache, and part of another."""
    from vllm import SamplingParams

    sample(sampler, policy)
    sampler.engine.llm.reset_prefix_cache()
    prompt = {"prompt_token_ids": prompts()[1]}
    cached = [
        output.num_cached_tokens
        for output in sampler.engine.llm.generate(
            [prompt] * 4, SamplingParams(max_tokens=1), use_tqdm=False
        )
    ]
    assert cached == [0, 128, 128, 128]


def test_completions_of_other_weights_than_those_sent_are_refused(sampler, policy):
    sample(sampler, policy)
    sampler.version += 1  # as if another run had sent this server an update in between
    sampler.sync.forget = lambda: None
    try:
        with pytest.raises(RuntimeError, match="does another run use the same server"):
            sample(sampler, policy)
    finally:
        del sampler.sync.forget


def test_same_seed_same_completions_and_every_row_is_drawn_anew(sampler, policy):
    before = torch.get_rng_state()
    first, again, other = (sample(sampler, policy, seed=s) for s in (5, 5, 6))
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.input_ids, other.input_ids)
    rows = [tuple(r.tolist()) for r in first.input_ids]
    assert len(set(rows)) > len(rows) // 2
    assert torch.equal(torch.get_rng_state(), before), "the trainer's own numbers are not drawn"


def test_rows_masks_and_ends(sampler, policy):
    rollouts = sample(sampler, policy, tokens=12)
    asked = prompts()
    width = max(map(len, asked))
    for row in range(len(rollouts)):
        prompt = asked[row // 4]
        assert rollouts.input_ids[row, width - len(prompt) : width].tolist() == prompt
        assert rollouts.attention_mask[row, :width].sum() == len(prompt)
        completion = rollouts.input_ids[row][rollouts.completion_mask[row]].tolist()
        ends = [i for i, token in enumerate(completion) if token in STOPS]
        assert ends == ([] if rollouts.truncated[row] else [len(completion) - 1])
        assert len(completion) == 12 or not rollouts.truncated[row]
    assert 0 < rollouts.truncated.sum() < len(rollouts)
    assert (rollouts.sampler_logprobs[~rollouts.completion_mask] == 0).all()


def test_the_models_own_end_of_text_ends_nothing_unless_it_is_a_stop_token(sampler, policy):
    rollouts = sample(sampler, policy, temperature=1.3, group=40, stops=[20])
    rows = zip(rollouts.input_ids, rollouts.completion_mask, strict=True)
    completions = [ids[mask].tolist() for ids, mask in rows]
    assert policy.config.eos_token_id == EOS and any(EOS in ids[:-1] for ids in completions)
    assert all(ids[-1] == 20 or len(ids) == 12 for ids in completions)


def test_greedy_completions_are_those_of_transformers(sampler, policy):
    ours = sample(sampler, policy, temperature=0.0, group=1)
    theirs = sample(HFSampler(), policy, temperature=0.0, group=1)
    assert torch.equal(ours.completion_mask, theirs.completion_mask)
    mask = ours.completion_mask
    assert torch.equal(ours.input_ids[mask], theirs.input_ids[mask])
    assert ours.sampler_logprobs is None


def test_tokens_are_drawn_from_the_distribution_that_is_scored(sampler, policy):
    """Of 4 x 3 x 250 first tokens, the mean log-probability is minus the entropy of their source.

    Its standard error is the spread of the log-probability over the root of the count; with top-p,
    top-k or a temperature of its own the sampler would be far outside four of them.
    """
    rollouts = sample(sampler, policy, temperature=1.3, tokens=1, group=250, stops=[1])
    scores = rollouts.sampler_logprobs[rollouts.completion_mask]
    trainers = trainers_logprobs(policy, rollouts, 1.3)[rollouts.completion_mask]
    assert (scores - trainers).abs().max() < TOLERANCE
    for row, prompt in enumerate(prompts()):
        with torch.no_grad():
            logits = policy(torch.tensor([prompt])).logits[0, -1]
        expected = (logits / 1.3).log_softmax(0)
        mean = (expected.exp() * expected).sum()
        spread = ((expected.exp() * expected.square()).sum() - mean.square()).sqrt()
        own = scores[250 * row : 250 * (row + 1)]
        assert (own.mean() - mean).abs() < 4 * spread / 250**0.5


def test_a_prompt_that_is_too_long_is_refused_before_sampling(sampler, policy):
    flag = r"^--model.sampler.init_args.max_model_len 192: a prompt of 150 tokens .* 60 are 210$"
    with pytest.raises(ValueError, match=flag):
        sample(sampler, policy, tokens=60)


@pytest.mark.parametrize("waits_for", ["output", "a value"])
def test_an_engine_that_is_killed_at_work_ends_the_run(folder, policy, waits_for):
    """vLLM's own client would wait for it for ever."""
    sampler = VLLMSampler(max_model_len=192)
    sample(sampler, policy)
    engine = sampler.engine
    (core,) = engine.llm.llm_engine.engine_core.resources.engine_manager.processes
    os.kill(core.pid, signal.SIGSTOP)  # so that the call is under way when it dies
    threading.Timer(0.5, core.kill).start()
    with pytest.raises(Exception, match="EngineCore"):
        if waits_for == "output":
            engine.generate([[5, 6, 7]], {"max_tokens": 4, "logprobs": 0}, [1])
        else:
            engine.version()
