"""A vLLM server that runs elsewhere: on other GPUs, or another machine.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --dtype float32 \
        --logprobs-mode processed_logprobs --generation-config vllm \
        --worker-extension-cls rlsgd.rollout.vllm.worker.WeightReceiver

MODEL is the folder of the policy that is trained; `--load-format dummy` spares reading its weights,
which are never served. The server's environment needs rlsgd. For `transfer: nccl` or `sparse_nccl`
leave the worker extension out and add `--weight-transfer-config '{"backend": "nccl"}'`. The server
trusts whoever reaches it: keep it on a private network.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlsgd.rollout.vllm.engine import EngineCompletion
from rlsgd.rollout.vllm.transfer import NCCLTransfer
from rlsgd.rollout.vllm.weight_sync import WeightUpdate, update_file

MOST_REQUESTS = 256  # at a time; vLLM queues what it cannot serve yet


class ServerEngine:
    """Speaks HTTP with `vllm serve`: tokens in, tokens out, and its weight-update endpoints.

    Args:
        address: address of the server, with `http://`.
        transfer: `files`, `nccl` or `sparse_nccl`.
        sync_folder: folder of the updates that the server reads under the same name.
        timeout: seconds to wait for any answer.
    """

    def __init__(
        self,
        address: str,
        transfer: str = "files",
        sync_folder: str | None = None,
        timeout: float = 3600.0,
    ) -> None:
        self.address = address.rstrip("/")
        self.sync_folder = sync_folder
        self.timeout = timeout
        self.nccl = None if transfer == "files" else NCCLTransfer(self.address, transfer)

    def generate(
        self, prompt_ids: list[list[int]], settings: dict[str, Any], seeds: list[int]
    ) -> list[list[EngineCompletion]]:
        def one(prompt: tuple[list[int], int]) -> list[EngineCompletion]:
            ids, seed = prompt
            answer = self._post(
                "inference/v1/generate",
                {"token_ids": ids, "sampling_params": {**settings, "seed": seed}},
            )
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            return [_completion(choice) for choice in choices]

        with ThreadPoolExecutor(MOST_REQUESTS) as threads:
            return list(threads.map(one, zip(prompt_ids, seeds, strict=True)))

    def receive(self, update: WeightUpdate, version: str) -> None:
        if self.nccl is not None:
            self.nccl.send(update)
        else:
            with update_file(update, self.sync_folder) as path:
                arguments = [str(path.absolute()), "yes" if update.is_whole else "no"]
                self._post("collective_rpc", {"method": "receive_update", "args": arguments})
        self._post("update_weight_version", {"new_version": version})
        self._post("reset_prefix_cache", {})

    def version(self) -> str:
        return self._ask("weight_info", None)["weight_version"]

    def sleep(self) -> bool:
        """A server on other GPUs is in nobody's way, and keeps its weights."""
        return False

    def wake_weights(self) -> None:
        """It never slept."""

    def wake_cache(self) -> None:
        """It never slept."""

    def close(self) -> None:
        """The server goes on: whoever started it ends it."""

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._ask(path, json.dumps(body).encode())

    def _ask(self, path: str, body: bytes | None) -> Any:
        request = urllib.request.Request(
            f"{self.address}/{path}", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            raise ValueError(
                f"--model.sampler.init_args.server {self.address} refused /{path} ({error.code}): "
                f"{error.read().decode(errors='replace')[:300]}; was it started as "
                "rlsgd/rollout/vllm/server.py says?"
            ) from error
        except urllib.error.URLError as error:
            raise ValueError(
                f"--model.sampler.init_args.server {self.address} does not answer: {error.reason}"
            ) from error
        return json.loads(answer) if answer else None


def _completion(choice: dict[str, Any]) -> EngineCompletion:
    return EngineCompletion(
        token_ids=choice["token_ids"],
        logprobs=[token["logprob"] for token in choice["logprobs"]["content"]],
        versions=[span["version"] for span in choice["weight_versions"] or []],
    )
