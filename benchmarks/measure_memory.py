"""Measure what training takes of memory, in a fresh process for each optimizer.

    python -m benchmarks.measure_memory docs/memory/measured.json [OPTIMIZER ...]

Two steps of GRPO on the CPU in float32, without validation: when the first begins there are neither
gradients nor optimizer state, the second is like all others. Recorded beside the bytes of the
callback `Memory` is by how much the largest resident set exceeds the one just before the model is
loaded, moment by moment (Linux). The C library is told to give freed tensors back at once, since
they would count as resident. `rlsgd memory` is tested against the result.

The model is SmolLM2-135M-Instruct (once before: rlsgd data prepare smollm2).
"""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

import rlsgd.algorithms
import rlsgd.cli.main
import rlsgd.cli.training  # for the processes to come
import rlsgd.data
from benchmarks.resident import resident

RESET = Path("/proc/self/clear_refs")
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("torch.optim.SGD", {"lr": 1e-2}),
    "SGD-momentum": ("torch.optim.SGD", {"lr": 1e-2, "momentum": 0.9}),
    "RMSprop": ("torch.optim.RMSprop", {"lr": 1e-6}),
    "AdamW": ("torch.optim.AdamW", {"lr": 1e-6}),
    "SignSGD": ("rlsgd.optimizers.SignSGD", {"lr": 1e-6}),
    "SGDLL": ("rlsgd.optimizers.SGDLL", {"lr": 1e-2}),
    "MuonWithAdamW": ("rlsgd.optimizers.MuonWithAdamW", {"lr": 1e-6}),
    "FusedBackwardSGD": ("rlsgd.optimizers.FusedBackwardSGD", {"lr": 1e-2}),
}
MODEL = "smollm2-135m-instruct"
PROMPTS, GROUP, COMPLETION_TOKENS = 4, 2, 8


class ResidentPeaks(Callback):
    """Peaks of resident memory above its value before the model is loaded, moment by moment."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.before: int | None = None
        self.peaks: dict[str, int] = {}
        self.prompt_tokens = 0

    def mark(self, moment: str) -> None:
        """What the largest resident set was since the last mark belongs to `moment`."""
        assert self.before is not None
        self.peaks[moment] = max(self.peaks.get(moment, 0), resident("VmHWM") - self.before)
        RESET.write_text("5")  # the largest is now the present one

    def setup(self, *_: Any, **__: Any) -> None:
        if self.before is None:
            self.before = resident("VmRSS")
            RESET.write_text("5")

    def on_train_start(self, *_: Any) -> None:
        self.mark("load")

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.prompt_tokens = batch.input_ids.shape[1] - COMPLETION_TOKENS
        self.mark("rollout")

    def on_before_backward(self, *_: Any) -> None:
        self.mark("forward")

    def on_after_backward(self, *_: Any) -> None:
        self.mark("backward")

    def on_train_batch_end(self, *_: Any) -> None:
        self.mark("step")

    def on_train_end(self, *_: Any) -> None:
        found = {"prompt_tokens": self.prompt_tokens, "resident_peaks": self.peaks}
        Path(self.path).write_text(json.dumps(found))


def measure(name: str) -> dict[str, Any]:
    """Two steps under one optimizer, in a process of its own."""
    kind, arguments = OPTIMIZERS[name]
    with tempfile.TemporaryDirectory() as folder:
        peaks = Path(folder) / "peaks.json"
        callbacks = [
            {"class_path": "rlsgd.callbacks.Memory"},
            {"class_path": "measure_memory.ResidentPeaks", "init_args": {"path": str(peaks)}},
        ]
        logger = {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": folder, "name": "", "version": ""},
        }
        optimizer = {"class_path": kind, "init_args": arguments}
        clip = "null" if name == "FusedBackwardSGD" else "1.0"
        command = [
            *("fit", "--config", "configs/grpo_smollm2.yaml"),
            *(f"--model.policy={MODEL}", f"--model.optimizer={json.dumps(optimizer)}"),
            *(f"--model.max_completion_tokens={COMPLETION_TOKENS}", "--trainer.max_epochs=2"),
            *(f"--data.prompts_per_epoch={PROMPTS}", f"--data.group_size={GROUP}"),
            *(f"--trainer.callbacks={json.dumps(callbacks)}", "--trainer.limit_val_batches=0"),
            *(f"--trainer.logger=[{json.dumps(logger)}]", f"--trainer.default_root_dir={folder}"),
            "--trainer.enable_progress_bar=false",
            f"--trainer.gradient_clip_val={clip}",
        ]
        if (child := os.fork()) == 0:  # has all code already, so that none of it is counted
            os._exit(rlsgd.cli.main.main(command))
        assert os.waitpid(child, 0)[1] == 0, name
        found = json.loads(peaks.read_text())
        with (Path(folder) / "metrics.csv").open() as file:
            for row in csv.DictReader(file):
                found |= {
                    key.removeprefix("memory/"): int(float(value))
                    for key, value in row.items()
                    if value and key.startswith("memory/") and "peak" not in key
                }
    return found


def main() -> None:
    if os.environ.get("MALLOC_MMAP_THRESHOLD_") is None:  # read when a process starts
        # a fixed one: glibc's own grows to 32 MiB, and what is freed below it stays resident
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    out = Path(sys.argv[1])
    record: dict[str, Any] = {
        "prompts": PROMPTS,
        "group_size": GROUP,
        "completion_tokens": COMPLETION_TOKENS,
        "model": MODEL,
        "optimizers": {},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or OPTIMIZERS:
        record["optimizers"][name] = measure(name)
        print(name, record["optimizers"][name], flush=True)
        out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
