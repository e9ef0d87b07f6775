"""Measures `rlsgd delta pack` beside weightscope, and how soon `rlsgd analyze` has a table.

    python -m venv /tmp/ws && /tmp/ws/bin/pip install weightscope==0.4.3 torch==2.13.0
    rlsgd data prepare smollm2
    python -m benchmarks.bench_delta --weightscope /tmp/ws/bin/weightscope \\
      --json docs/performance/delta.json

The pair is SmolLM2-135M-Instruct in bfloat16 and the same after one step of SGD: the gradient of
the mean loss of eight sums with answers, at the rate that changes 0.9% of the bfloat16 weights.
Each repetition runs the programs in turns, each in a process of its own. Compared is the processor
time of the process, imports included, which other programs on the machine lengthen little. With
`--threshold 0` weightscope keeps every change, as rlsgd does; by its default it drops those up to
1e-6, so that its patch does not give the tuned weights back.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlsgd.models.names import resolve_model
from rlsgd.study.results import machine

CHANGED, CLOSE = 0.009, 2e-5
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def make_pair(folder: Path) -> dict[str, float]:
    """Write `base` and `tuned`; returns the share changed and the learning rate."""
    path = resolve_model("smollm2-135m-instruct")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model = model.float()
    draw = torch.Generator().manual_seed(0)
    for first, second in torch.randint(2, 50, (8, 2), generator=draw).tolist():
        question = f"What is {first} + {second}? Reply with the number only."
        turns = [("user", question), ("assistant", str(first + second))]
        chat = [{"role": role, "content": content} for role, content in turns]
        ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True).input_ids
        (model(input_ids=ids, labels=ids).loss / 8).backward()
    weights = [(w, w.grad) for w in model.parameters() if w.grad is not None]
    total = sum(weight.numel() for weight in model.parameters())

    @torch.no_grad()
    def share(rate: float) -> float:
        moved = ((w - rate * g).bfloat16() != w.bfloat16() for w, g in weights)
        return sum(int(changed.sum()) for changed in moved) / total

    low, high, rate = 1e-6, 10.0, 1e-2
    while abs((found := share(rate)) - CHANGED) > CLOSE:
        low, high = (rate, high) if found < CHANGED else (low, rate)
        rate = (low * high) ** 0.5
    with torch.no_grad():
        for weight, gradient in weights:
            weight.sub_(rate * gradient)
    model.bfloat16().save_pretrained(folder / "tuned")
    tokenizer.save_pretrained(folder / "tuned")
    return {"changed": found, "learning_rate": rate}


def run(command: list[str], out: Path | None = None, until: str | None = None) -> dict[str, float]:
    """Processor and wall seconds of a process, or those until it printed a line with `until`."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if until is not None and until in line:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            found = {"wall": time.perf_counter() - started}
            process.kill()
            process.wait()
            return {**found, "processor": ticks / os.sysconf("SC_CLK_TCK")}
    _, status, usage = os.wait4(process.pid, 0)
    if status or until is not None:
        raise RuntimeError(f"{' '.join(command)} ended with {status} and without what was awaited")
    found = {"wall": time.perf_counter() - started, "processor": usage.ru_utime + usage.ru_stime}
    return found | ({"mb": out.stat().st_size / 1e6} if out else {})


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weightscope", required=True, help="its program, installed apart")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = make_pair(folder)
        base, tuned, out = (str(folder / name) for name in ("base", "tuned", "out"))
        rlsgd = [sys.executable, "-m", "rlsgd"]
        theirs = [options.weightscope, "export", base, tuned, "-o", out]
        sides = {
            "rlsgd": [*rlsgd, "delta", "pack", base, tuned, out, "--overwrite"],
            "weightscope": [*theirs, "--threshold", "0"],
            "weightscope_default": theirs,
        }
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in [*sides, "analyze"]}
        for _ in range(options.repeats):
            for name, command in sides.items():
                runs[name].append(run(command, Path(out)))
            look = [*rlsgd, "analyze", base, tuned]
            runs["analyze"].append(run(look, until="total"))
    medians = {
        name: {key: median(one[key] for one in found) for key in found[0]}
        for name, found in runs.items()
    }
    ours = medians["rlsgd"]
    ratios = {
        name: {
            "size": ours["mb"] / medians[name]["mb"],
            "processor": median(
                a["processor"] / b["processor"]
                for a, b in zip(runs["rlsgd"], runs[name], strict=True)
            ),
        }
        for name in ("weightscope", "weightscope_default")
    }
    shown = subprocess.run(
        [options.weightscope, "--version"], capture_output=True, text=True, check=True
    ).stdout
    versions = {name: version(name) for name in ("torch", "numpy", "safetensors", "rlsgd")}
    record: dict[str, Any] = {
        **made,
        "cpu": machine()["processor"],
        "versions": {**versions, "python": platform.python_version(), "weightscope": shown.strip()},
        "repeats": options.repeats,
        "medians": medians,
        "ratios": ratios,
        "runs": runs,
    }
    text = json.dumps(record, indent=2)
    print(json.dumps({"medians": medians, "ratios": ratios}, indent=2))
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
