"""Recreate the embedded arithmetic model from nothing: tokenizer, config, supervised training.

    python tools/make_embedded_model.py [--out rlsgd/assets/embedded]

The tokenizer is a byte-level BPE learned from the task's own questions: digits stay single tokens,
and the fixed wording of the question becomes one token, so prompts are seven tokens long.
Training is `rlsgd fit --config configs/embedded_model.yaml`; about a minute on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import reasoning_gym
import yaml
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from rlsgd.preparation.byte_level_bpe import train_byte_level_bpe

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "embedded_model.yaml"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, learned from 2,000 questions."""
    task = yaml.safe_load(CONFIG.read_text())["data"]["init_args"]["task"]["init_args"]
    dataset = reasoning_gym.create_dataset(task["name"], seed=0, size=2000, **task["config"])
    cuts = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    questions = (item["question"] for item in dataset)
    return train_byte_level_bpe(questions, vocabulary=400, pre_tokenizer=cuts)


def make_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """A Llama of about 0.6 million weights with grouped-query attention and tied embeddings."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        architectures=["LlamaForCausalLM"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "rlsgd" / "assets" / "embedded")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as temporary:
        start = Path(temporary) / "start"
        tokenizer = make_tokenizer()
        tokenizer.save_pretrained(start)
        make_config(tokenizer).save_pretrained(start)
        command = [sys.executable, "-m", "rlsgd.cli.main", "fit"]
        command += ["--config", str(CONFIG)]
        command += ["--model.policy", str(start), "--trainer.default_root_dir", temporary]
        command += ["--trainer.callbacks+=HFExport", f"--trainer.callbacks.folder={out}"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
