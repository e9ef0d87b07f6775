"""Check on a GPU what a CPU cannot: FSDP2, bf16 storage, vLLM beside the trainer, memory.

    python -m benchmarks.gpu_checks [--size 1.7b] [--out gpu_checks.json]

Weights are random and of Qwen3's shapes, so no download is needed. Every check is a line of the
table with what was measured, and of the JSON file. `--accelerator cpu --size tiny` runs the same
commands on a CPU, as the tests do. Exit status: 0, or 1 where a check failed.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM, Qwen3Config

from rlsgd.models.loading import EMBEDDED
from rlsgd.optimizers.rounding import keep_rounded

ROOT = Path(__file__).parent.parent
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
# hidden size, layers, heads, key-value heads, head size, size of the MLP, vocabulary
SIZES = {
    "tiny": (64, 2, 2, 1, 32, 128, 512),
    "0.6b": (1024, 28, 16, 8, 128, 3072, 151936),
    "1.7b": (2048, 28, 16, 8, 128, 6144, 151936),
}
OPTIMIZERS = {
    "SGD": ["--model.optimizer", "torch.optim.SGD"],
    "SGD, momentum 0.9": [
        "--model.optimizer",
        "torch.optim.SGD",
        "--model.optimizer.momentum",
        "0.9",
    ],
    "AdamW": ["--model.optimizer", "torch.optim.AdamW"],
}
TOLERANCE = 0.02  # of the closed form; the rest is step counters and padding of shards


def synthetic_model(folder: Path, size: str) -> Path:
    """A Qwen3 of random weights in bf16, with the embedded model's tokenizer."""
    hidden, layers, heads, kv_heads, head, mlp, vocabulary = SIZES[size]
    config = Qwen3Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head,
        intermediate_size=mlp,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in TOKENIZER:
        if (EMBEDDED / name).exists():
            shutil.copy(EMBEDDED / name, folder)
    return folder


def fit(folder: Path, arguments: list[str]) -> dict[str, float]:
    """Run `rlsgd fit` in a process of its own; the last value of every metric."""
    command = [sys.executable, "-m", "rlsgd.cli.main", "fit", *arguments]
    command += ["--trainer.default_root_dir", str(folder), "--trainer.max_epochs", "2"]
    command += ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    (table,) = folder.rglob("metrics.csv")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: float(row[name]) for row in rows for name in row if row[name]}


def memory(model: Path, folder: Path, name: str, accelerator: str) -> dict[str, Any]:
    """FSDP2 on one device: bytes of weights and optimizer state against 4 p (1 + states)."""
    flags = ["--config", "configs/grpo_embedded.yaml", "--config", "configs/trainer/fsdp.yaml"]
    flags += ["--trainer.devices", "1", "--trainer.accelerator", accelerator]
    flags += ["--model.policy", str(model), *OPTIMIZERS[name], "--data.val_problems", "4"]
    flags += ["--data.prompts_per_epoch", "4", "--data.group_size", "4"]
    found = fit(folder, flags)
    kept = found["memory/parameter_bytes"] + found["memory/optimizer_state_bytes"]
    expected = found["memory/closed_form_bytes"]
    peak = found.get("memory/peak_device_bytes", found["memory/peak_rss_bytes"])
    return {
        "passed": abs(kept - expected) <= TOLERANCE * expected,
        "weights and state [GB]": kept / 1e9,
        "closed form [GB]": expected / 1e9,
        "gradients [GB]": found["memory/gradient_bytes"] / 1e9,
        "peak [GB]": peak / 1e9,
    }


def bf16_storage(device: str) -> dict[str, Any]:
    """SGD on parameters stored in bf16, against float32 ones that are rounded after each step.

    The rate is a power of two, because torch on a CPU rounds the rate itself to bf16.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(512, 512, generator=generator).bfloat16().to(device)
    stored, rounded = nn.Parameter(start.clone()), nn.Parameter(start.float())
    plain = torch.optim.SGD([stored], lr=2.0**-7)
    kept = torch.optim.SGD([rounded], lr=2.0**-7)
    keep_rounded(kept, "nearest")
    for _ in range(100):
        gradient = torch.randn(512, 512, generator=generator).bfloat16().to(device)
        stored.grad, rounded.grad = gradient, gradient.float()
        plain.step()
        kept.step()
    equal = torch.equal(stored.float(), rounded.detach())
    return {"passed": equal, "steps": 100, "moved": float((stored != start).float().mean())}


def vllm_beside_the_trainer(model: Path, folder: Path, accelerator: str) -> dict[str, Any]:
    """Two epochs with an engine that sleeps while the policy is updated."""
    flags = ["--config", "configs/grpo_smollm2_vllm.yaml", "--config", "configs/trainer/gpu.yaml"]
    flags += ["--trainer.accelerator", accelerator, "--model.policy", str(model)]
    flags += ["--model.sampler.init_args.sleep", str(accelerator != "cpu").lower()]
    flags += ["--model.sampler.init_args.dtype", "bfloat16", "--data.val_problems", "4"]
    # random weights solve nothing, and without reward no weight would change or be sent
    flags += ["--data.reward", "benchmarks.small_runs.EvenCharacters"]
    found = fit(folder, flags)
    return {
        "passed": found["sampler/weight_version"] == 2,
        "largest difference [nats]": found["sampling/sampling_logp_difference/max"],
        "bytes sent [MB]": found["sync/bytes"] / 1e6,
        "dense [MB]": found["sync/dense_bytes"] / 1e6,
    }


def run(checks: dict[str, Callable[[], dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Run all, whatever fails."""
    results = {}
    for name, check in checks.items():
        try:
            results[name] = check()
        except Exception as error:
            results[name] = {"passed": False, "error": str(error)}
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="1.7b", help="of the random weights")
    parser.add_argument("--accelerator", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    where = arguments.accelerator
    if where == "gpu" and not torch.cuda.is_available():
        parser.error(
            "--accelerator gpu: torch sees no GPU; --accelerator cpu --size tiny runs here"
        )
    with tempfile.TemporaryDirectory(prefix="rlsgd-checks-") as temporary:
        folder = Path(temporary)
        model = synthetic_model(folder / "model", arguments.size)
        checks: dict[str, Callable[[], dict[str, Any]]] = {
            f"FSDP2 on one device, {name}": lambda name=name: memory(
                model, folder / name, name, where
            )
            for name in OPTIMIZERS
        }
        checks["bf16 storage is rounding to nearest"] = lambda: bf16_storage(
            "cuda" if where == "gpu" else "cpu"
        )
        if find_spec("vllm"):
            checks["vLLM beside the trainer"] = lambda: vllm_beside_the_trainer(
                model, folder / "vllm", where
            )
        results = run(checks)
    table = Table("check", "passed", "measured")
    for name, found in results.items():
        shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())
        table.add_row(name, "yes" if found["passed"] else "no", "\n".join(list(shown)[1:]))
    Console().print(table)
    if not find_spec("vllm"):
        print("vLLM is not installed, so it was not checked: pip install 'rlsgd[vllm]'")
    if arguments.out:
        device = torch.cuda.get_device_name() if where == "gpu" else "cpu"
        record = {"device": device, "size": arguments.size, "torch": torch.__version__}
        arguments.out.write_text(json.dumps(record | {"checks": results}, indent=2) + "\n")
    return 0 if all(found["passed"] for found in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
