"""What is benchmarked: cases, their prompts, their reward, and models with random weights."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.bench_worker import text_hash
from rlsgd.core.problems import Problem
from rlsgd.data.tasks.base import Task
from rlsgd.data.tasks.reasoning_gym import ReasoningGym
from rlsgd.models.loading import resolve_model
from rlsgd.rewards.base import Reward

ROOT = Path(__file__).parents[1]
SEED = 0
SMOLLM2 = "smollm2-135m-instruct"
# words that are one token each to SmolLM2's tokenizer
WORDS = (
    *("the", "cat", "sat", "on", "a", "red", "mat", "and", "saw", "one"),
    *("small", "green", "bird", "over", "there", "near", "that", "old", "tree"),
)


@dataclass(frozen=True)
class Case:
    """One size of iteration.

    Attributes:
        name: of the case.
        model: `smollm2-135m-instruct`, `embedded`, a key of `RANDOM_MODELS`, or a folder.
        prompts: prompts of one iteration.
        group: completions of each prompt.
        completion_tokens: every completion has so many.
        questions: `sums`, in words; `embedded`, those of configs/grpo_embedded.yaml; or a number
            of words.
        chat: whether the tokenizer's chat template is applied, if it has one.
        repeats: iterations that are measured, after one that is not.
        limit: what the plan asks of the ratios to TRL, of seconds and of peak memory.
        sparsity_every: the shipped cadence of UpdateSparsity, in iterations.
        rank_every: the shipped cadence of EffectiveRank, in iterations.
        onednn: whether rlsgd has oneDNN compute linear layers; it loses on small products.
    """

    name: str
    model: str
    prompts: int
    group: int
    completion_tokens: int
    questions: str | int = "sums"
    chat: bool = False
    repeats: int = 7
    limit: float = 0.6
    sparsity_every: int = 10
    rank_every: int = 20
    onednn: bool = True

    @property
    def rows(self) -> int:
        return self.prompts * self.group


CASES = {
    case.name: case
    for case in (
        Case("smollm2", SMOLLM2, 8, 4, 32, chat=True, repeats=9, limit=0.5),
        Case(
            *("embedded", "embedded", 32, 8, 6, "embedded"),
            repeats=25,
            sparsity_every=5,
            rank_every=10,
            onednn=False,
        ),
        Case("qwen3_50m", "qwen3_50m", 8, 4, 32, chat=True),  # also group 4 of the three below
        Case("group_8", "qwen3_50m", 4, 8, 32, chat=True),
        Case("group_16", "qwen3_50m", 2, 16, 32, chat=True),
        Case("long_prompt", "qwen3_50m", 8, 4, 16, 256),
        Case("long_completion", "qwen3_50m", 8, 4, 128, 32),
    )
}


class BenchTask(Task):
    """Other prompts in every iteration, the same on both sides.

    Args:
        questions: see `Case`.
    """

    def __init__(self, questions: str | int) -> None:
        self.questions = questions
        self.shipped = None
        if questions == "embedded":
            config = yaml.safe_load((ROOT / "configs/grpo_embedded.yaml").read_text())
            self.shipped = ReasoningGym(**config["data"]["init_args"]["task"]["init_args"])

    def train_problems(self, *, seed: int, epoch: int, count: int) -> list[Problem]:
        if self.shipped is not None:
            return self.shipped.train_problems(seed=seed, epoch=epoch, count=count)
        draw = random.Random(f"{seed} {epoch}")
        return [Problem(self.question(draw), "") for _ in range(count)]

    def question(self, draw: random.Random) -> str:
        if self.questions == "sums":
            a, b = draw.randint(10, 99), draw.randint(10, 99)
            return f"What is {a} + {b}? Reply with the number only."
        return " ".join(draw.choices(WORDS, k=int(self.questions)))

    def validation_problems(self, count: int) -> list[Problem]:
        return []

    def test_problems(self, count: int) -> list[Problem]:
        return []


def questions(case: Case, iterations: int) -> list[str]:
    """All questions of a run in the order in which they are asked."""
    task = BenchTask(case.questions)
    return [
        problem.question
        for epoch in range(iterations)
        for problem in task.train_problems(seed=SEED, epoch=epoch, count=case.prompts)
    ]


class TextHash(Reward):
    """The benchmark's reward on rlsgd's side."""

    isolated = False

    def score(self, completion: str, problem: Problem) -> float:
        return text_hash(completion)


# ---- models with random weights, by layers, hidden size, inner size, query and key-value heads

RANDOM_MODELS = {
    "qwen3_1m": (4, 128, 384, 4, 2),
    "qwen3_4m": (5, 256, 768, 4, 2),
    "qwen3_11m": (6, 384, 1152, 6, 3),
    "qwen3_50m": (8, 512, 1536, 8, 4),
}
SMALL_VOCABULARY = (
    "qwen3_1m",
    "qwen3_4m",
    "qwen3_11m",
)  # the embedded model's tokenizer, of characters
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "chat_template*")


def model_folder(name: str, scratch: Path) -> str:
    """The folder of a model; one with random weights is written to `scratch`.

    Raises:
        ValueError: the model, or the one whose tokenizer is needed, is not there.
    """
    if name not in RANDOM_MODELS:
        return resolve_model(name, "--case")
    folder = scratch / name
    if not folder.exists():
        source = "embedded" if name in SMALL_VOCABULARY else SMOLLM2
        write_random_model(folder, name, Path(resolve_model(source, f"--case {name}")))
    return str(folder)


def write_random_model(folder: Path, name: str, tokenizer: Path) -> None:
    """A Qwen3 in Hugging Face format, in float32, with the tokenizer of another folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it would break into the benchmark's own
    layers, hidden, inner, heads, key_value_heads = RANDOM_MODELS[name]
    its: Any = AutoConfig.from_pretrained(tokenizer)
    config = Qwen3Config(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=64 if hidden > 128 else 32,
        vocab_size=its.vocab_size,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=its.bos_token_id,
        eos_token_id=its.eos_token_id,
        pad_token_id=its.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for pattern in TOKENIZER_FILES:
        for path in tokenizer.glob(pattern):
            shutil.copy(path, folder)
