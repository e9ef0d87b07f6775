"""Sharded policy, reference and critic: loading, forward, backward and sampling on two ranks."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from rlsgd.core.distributed import full_parameters, global_norm, local_shard, whole
from rlsgd.core.types import TokenBatch
from rlsgd.models import sharded_loading as sharded_models
from rlsgd.models.loading import load_policy, load_reference
from rlsgd.models.scoring import completion_logprobs
from rlsgd.models.sharded_loading import load_sharded_policy, load_sharded_reference
from rlsgd.models.sharding import Sharding, gathered_weights, is_sharded, shard_like
from rlsgd.models.value_model import load_value_model
from rlsgd.rollout.sampler import HFSampler, assemble, left_pad
from tests.distributed.fits import on_two_ranks

MODELS = ("tiny_llama", "tiny_llama_untied", "tiny_qwen3", "tiny_gpt2")
STOPS = [1, *range(20, 40)]  # a third of the vocabulary, so that rows and ranks stop apart


def make_batch() -> TokenBatch:
    prompts, mask = left_pad([[5, 6, 7], [8, 9]], 0, "cpu")
    return assemble(prompts, mask, torch.tensor([[11, 12, 13, 1], [14, 1, 0, 0]]), [1])


def make_sharding(**options: Any) -> Sharding:
    return Sharding(mesh=init_device_mesh("cpu", (2,)), device=torch.device("cpu"), **options)


def assert_same(sharded: nn.Module, plain: nn.Module) -> None:
    """Names, values to the last bit, buffers, modes; and each rank holds no more than its part."""
    parts = dict(full_parameters(sharded))
    expected = dict(plain.named_parameters())
    assert list(parts) == list(expected)
    for name, value in expected.items():
        assert torch.equal(parts[name], value), name
    assert all(isinstance(p, DTensor) for p in sharded.parameters())
    own = sum(local_shard(p).numel() for p in sharded.parameters())
    assert abs(own / sum(p.numel() for p in plain.parameters()) - 0.5) < 0.02
    buffers = dict(plain.named_buffers())
    assert dict(sharded.named_buffers()).keys() == buffers.keys()
    for name, value in sharded.named_buffers():
        assert torch.equal(value, buffers[name]), name
    assert sharded.training == plain.training


def no_whole_load(*_: Any, **__: Any) -> Any:
    raise AssertionError("a rank loads the whole model")


def loaded_from_disk(models: dict[str, Path]) -> None:
    original, sharded_models.load_policy = sharded_models.load_policy, no_whole_load
    for name, path in models.items():
        plain, sharded = load_policy(str(path)), load_sharded_policy(str(path), make_sharding())
        assert_same(sharded, plain)
        config = sharded.generation_config
        assert config.to_dict() == plain.generation_config.to_dict()
        is_tied = sharded.get_output_embeddings().weight is sharded.get_input_embeddings().weight
        assert is_tied == (name != "tiny_llama_untied")
        with torch.no_grad():
            logprobs, _ = completion_logprobs(sharded, make_batch(), temperature=1.0)
            expected, _ = completion_logprobs(plain, make_batch(), temperature=1.0)
        assert torch.equal(logprobs, expected)
        assert is_sharded(sharded), "what is registered after a forward pass are the shards"
    reference = load_sharded_reference(str(path), make_sharding())
    assert_same(reference, load_reference(str(path)))
    assert not any(p.requires_grad for p in reference.parameters())
    sharded_models.load_policy = original


def loaded_by_first_rank(models: dict[str, Path], folder: Path) -> None:
    bare = folder / "without_prefix"  # transformers puts "model." in front of each name
    if dist.get_rank() == 0:
        for name in ("tiny_llama", "tiny_llama_untied"):
            base = AutoModelForCausalLM.from_pretrained(models[name]).base_model
            base.save_pretrained(bare / name)
    dist.barrier()
    plain = load_policy(str(bare / "tiny_llama"))
    assert_same(load_sharded_policy(str(bare / "tiny_llama"), make_sharding()), plain)
    with pytest.raises(ValueError, match=r"--model.policy .*lacks lm_head.weight"):
        load_sharded_policy(str(bare / "tiny_llama_untied"), make_sharding())  # on both ranks
    for path in models.values():
        torch.manual_seed(3)
        plain = load_policy(str(path), random_weights=True)
        torch.manual_seed(3)
        sharded = load_sharded_policy(str(path), make_sharding(), random_weights=True)
        assert_same(sharded, plain)


def critics(models: dict[str, Path]) -> None:
    batch = make_batch()
    for path in models.values():
        policy = load_sharded_policy(str(path), make_sharding())
        for shared in (False, True):
            sizes = {"shared_backbone": shared, "hidden_size": 32}
            plain = load_value_model(str(path), **sizes)
            critic = load_value_model(
                str(path), **sizes, sharding=make_sharding(compute_dtype=None)
            )
            for name, value in full_parameters(critic):
                assert torch.equal(value, plain.get_parameter(name)), name
            generator = torch.Generator().manual_seed(0)
            for name, parameter in critic.head.named_parameters():
                value = torch.randn(parameter.shape, generator=generator)
                plain.head.get_parameter(name).data.copy_(value)
                local_shard(parameter).data.copy_(local_shard(shard_like(parameter.data, value)))
            values, last = critic(policy, batch)
            expected, expected_last = plain(load_policy(str(path)), batch)
            assert torch.equal(values, expected) and torch.equal(last, expected_last)
            assert values[batch.completion_mask].std() > 0.01


def gradients(policy: nn.Module) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    logprobs, _ = completion_logprobs(policy, make_batch(), temperature=1.0)
    (logprobs.square().sum() * (1 + dist.get_rank())).backward()
    return {name: p.grad for name, p in policy.named_parameters()}


def backward(models: dict[str, Path]) -> None:
    for path in models.values():
        policy = load_sharded_policy(str(path), make_sharding())
        parts = gradients(policy)
        expected = gradients(load_policy(str(path)))
        for value in expected.values():
            dist.all_reduce(value)
        full = {name: whole(value) for name, value in parts.items()}
        for name, value in expected.items():  # FSDP2 averages: half the sum, exactly
            assert torch.equal(full[name], value / 2), name
        norm = global_norm(list(parts.values()))
        size = torch.linalg.vector_norm(torch.cat([v.flatten() for v in full.values()]))
        assert norm.item() == pytest.approx(size.item(), rel=1e-6)
        largest = max(v.abs().max().item() for v in full.values())
        assert global_norm(list(parts.values()), torch.inf).item() == largest
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        again = gradients(policy)
        assert all(torch.equal(whole(again[name]), full[name]) for name in full)
        offloaded = load_sharded_policy(str(path), make_sharding(cpu_offload=True))
        from_host = gradients(offloaded)
        assert all(torch.equal(whole(from_host[name]), full[name]) for name in full)
        half = load_sharded_policy(str(path), make_sharding(compute_dtype=torch.bfloat16))
        rounded = gradients(half)
        assert {p.dtype for p in half.parameters()} == {torch.float32}
        assert {g.dtype for g in rounded.values()} == {torch.float32}
        with gathered_weights(half):
            assert next(half.parameters()).dtype == torch.bfloat16
        cosine = torch.nn.functional.cosine_similarity
        flat = [torch.cat([whole(g[n]).flatten() for n in full]) for g in (parts, rounded)]
        assert 0.99 < cosine(*flat, dim=0) < 1 - 1e-7, "computed in bfloat16, to about 3 digits"


def sampling(models: dict[str, Path]) -> None:
    rank = dist.get_rank()
    prompts = [[[5, 6, 7, 8, 9], [7]], [[10], [11, 12], [13]]][rank]  # other lengths and numbers
    widths = set()
    for path in models.values():
        plain, sharded = load_policy(str(path)), load_sharded_policy(str(path), make_sharding())
        for temperature in (0.0, 1.0):
            for gather in (True, False):
                sampler = HFSampler(report_logprobs=True, gather_weights=gather)
                options = {
                    "completions_per_prompt": 2,
                    "max_completion_tokens": 12,
                    "temperature": temperature,
                    "stop_token_ids": STOPS,
                    "pad_token_id": 0,
                    "seed": 5 + rank,
                }
                sampled = sampler.sample(sharded, prompts, **options)
                expected = HFSampler(report_logprobs=True).sample(plain, prompts, **options)
                assert torch.equal(sampled.input_ids, expected.input_ids)
                assert torch.equal(sampled.completion_mask, expected.completion_mask)
                if temperature:
                    # gathered weights lie elsewhere in memory, where sums may take another order
                    torch.testing.assert_close(
                        sampled.sampler_logprobs, expected.sampler_logprobs, rtol=0, atol=5e-6
                    )
                assert is_sharded(sharded) and sharded.training
                widths.add(int(sampled.completion_mask.any(0).sum()))
    both: list[Any] = [None, None]
    dist.all_gather_object(both, widths)
    assert both[0] != both[1], "ranks stop at different times"
    with pytest.raises(ValueError, match=r"--model.sampler.gather_weights"):
        HFSampler(batch_size=1, gather_weights=False).sample(sharded, prompts, **options)
    in_batches = HFSampler(batch_size=1).sample(sharded, prompts, **options)  # 4 and 6 of them
    expected = HFSampler(batch_size=1).sample(plain, prompts, **options)
    assert torch.equal(in_batches.input_ids, expected.input_ids)


CHECKS: dict[str, Callable[..., None]] = {
    check.__name__: check
    for check in (loaded_from_disk, loaded_by_first_rank, critics, backward, sampling)
}


def all_checks(rank: int, models: dict[str, Path], folder: Path) -> None:
    """Every check on every rank; how each ended goes to a file, so that each is a test."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name, check in CHECKS.items():
        arguments = (models, folder) if name == "loaded_by_first_rank" else (models,)
        check(*arguments)
        (folder / f"{name}.{rank}").touch()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def passed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("checks")
    models = {name: request.getfixturevalue(name) for name in MODELS}
    try:
        on_two_ranks(all_checks, models, folder)
    except Exception as error:
        print(error)
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("check", CHECKS)
def test_on_two_ranks(check: str, passed: set[str]):
    assert {f"{check}.0", f"{check}.1"} <= passed


def test_without_shards_gathering_weights_changes_nothing(tiny_llama: Path):
    policy = load_policy(str(tiny_llama))
    before = list(policy.parameters())
    with gathered_weights(policy):
        assert not is_sharded(policy)
        assert all(a is b for a, b in zip(before, policy.parameters(), strict=True))
