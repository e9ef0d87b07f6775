"""What VLLMSampler refuses before it starts anything."""

import socket

import pytest
import torch
from torch.nn.functional import log_softmax

from rlsgd.functional.corrections import require_agreement
from rlsgd.models.loading import load_policy
from rlsgd.rollout import VLLMSampler
from rlsgd.rollout.vllm.server import ServerEngine


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "int8"}, "dtype 'int8' must be one of float32, float16, bfloat16"),
        ({"transfer": "ftp"}, "transfer 'ftp' must be files, nccl or sparse_nccl"),
        ({"transfer": "nccl"}, "transfer nccl is for a server"),
        ({"server": "http://x", "sleep": True}, "sleep and engine_args belong to the server"),
        ({"logprob_tolerance": 0.0}, "logprob_tolerance must be above 0"),
    ],
)
def test_flags_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=f"^--model.sampler.init_args.{message}"):
        VLLMSampler(**options)


def call(sampler, policy):
    settings = {"completions_per_prompt": 1, "max_completion_tokens": 4, "temperature": 1.0}
    return sampler.sample(
        policy, [[3, 4, 5]], **settings, stop_token_ids=[1], pad_token_id=0, seed=0
    )


def test_lengths_and_sleep_are_checked_before_an_engine_starts(tiny_llama):
    policy = load_policy(str(tiny_llama))
    with pytest.raises(ValueError, match=r"max_model_len 6: a prompt of 3 tokens .* are 7$"):
        call(VLLMSampler(max_model_len=6), policy)
    with pytest.raises(ValueError, match="sleep: vLLM does not sleep on a CPU"):
        call(VLLMSampler(sleep=True), policy)


def test_a_server_that_is_not_there_is_named(tiny_llama):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    sampler = VLLMSampler(server=address)
    with pytest.raises(ValueError, match=rf"^--model.sampler.init_args.server {address} does not"):
        call(sampler, load_policy(str(tiny_llama)))
    assert ServerEngine(address + "/").address == address


def test_the_alarm_is_the_mean_absolute_difference():
    """0.1 and -0.3 differ by 0.2 on average, and cancel to -0.1."""
    log_ratio = torch.tensor([0.1, -0.3])
    require_agreement(log_ratio, 0.2001)
    with pytest.raises(ValueError, match=r"^tolerance 0.199: .* by 0.2 nats"):
        require_agreement(log_ratio, 0.199)
    require_agreement(torch.empty(0), 0.1)


def test_the_tolerance_of_each_dtype_is_above_its_rounding():
    """Logits around 10 rounded to the dtype, the least that an engine in that dtype rounds."""
    logits = 5 * torch.randn(1000, 500, generator=torch.Generator().manual_seed(0))
    exact = log_softmax(logits.double(), -1)
    drawn = exact.exp().multinomial(1, generator=torch.Generator().manual_seed(1))
    for name in ("float32", "float16", "bfloat16"):
        rounded = log_softmax(logits.to(getattr(torch, name)).double(), -1)
        difference = (rounded - exact).gather(1, drawn).flatten()
        require_agreement(difference, VLLMSampler(dtype=name).logprob_tolerance)
