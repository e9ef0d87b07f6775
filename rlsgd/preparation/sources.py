"""Which data sets can be prepared, where they come from, and what is known of them for sure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rlsgd.preparation import formats
from rlsgd.preparation.formats import Dropped, Row


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data set as its publisher has it, and how a row of it becomes a problem.

    Args:
        name: what configs and commands call it.
        hub: its name on the Hugging Face hub.
        split: the split that is read.
        columns: columns that are read; the checksum covers these alone.
        convert: from a row to a problem, or to the reason why there is none.
        domain: what kind of answer it has.
        licence: as the publisher states it, or that none is stated.
        rows: rows of the split, or None where nothing certain is known.
        rows_from: where that number is from.
        config: the hub's configuration name.
        keep: rows that belong to the data set at all; none keeps every one.
        training: it is trained on: sampled, and cleaned of what is in the benchmarks.
        sample: rows that are kept of a training set; None keeps all.
        sha256: checksum of the columns' content (see `reading.content_sha256`), where known.
        note: what a reader should know.
    """

    name: str
    hub: str
    split: str
    columns: tuple[str, ...]
    convert: Callable[[dict[str, Any]], Row | Dropped]
    domain: Literal["math", "code"]
    licence: str
    rows: int | None
    rows_from: str
    config: str | None = None
    keep: Callable[[dict[str, Any]], bool] | None = None
    training: bool = False
    sample: int | None = None
    sha256: str | None = None
    note: str = ""


# No publisher states a checksum of the content, so none is written here: `prepare` prints it, and
# `--sha256` holds a later preparation to it.
_ALL = (
    Source(
        name="numina-math",
        hub="AI-MO/NuminaMath-CoT",
        split="train",
        columns=("source", "problem", "solution"),
        convert=formats.numina_math,
        domain="math",
        licence="Apache-2.0",
        rows=859_494,
        rows_from="the data set's card",
        training=True,
        sample=35_000,
        note="arXiv:2602.07729 trains on 35K rows drawn at random; which ones is not stated",
    ),
    Source(
        name="prime-code",
        hub="PRIME-RL/Eurus-2-RL-Data",
        split="train",
        columns=("data_source", "prompt", "ability", "reward_model"),
        convert=formats.prime_code,
        keep=lambda row: row["ability"] == "code",
        domain="code",
        licence="MIT",
        rows=None,
        rows_from="the card counts 482,019 rows (26,758 of code), and rows were removed after that",
        training=True,
        note="arXiv:2602.07729 calls it 25K problems (APPS, CodeContests, TACO, Codeforces)",
    ),
    Source(
        name="math500",
        hub="HuggingFaceH4/MATH-500",
        split="test",
        columns=("problem", "answer", "unique_id"),
        convert=formats.plain_math("problem", "answer", "unique_id"),
        domain="math",
        licence="none stated (MATH itself: MIT)",
        rows=500,
        rows_from="its name and the data set's card",
    ),
    Source(
        name="aime24",
        hub="HuggingFaceH4/aime_2024",
        split="train",
        columns=("id", "problem", "answer"),
        convert=formats.plain_math("problem", "answer", "id"),
        domain="math",
        licence="none stated",
        rows=30,
        rows_from="the contest: AIME I and II have 15 problems each",
    ),
    Source(
        name="aime25",
        hub="math-ai/aime25",
        split="test",
        columns=("id", "problem", "answer"),
        convert=formats.plain_math("problem", "answer", "id"),
        domain="math",
        licence="none known",
        rows=30,
        rows_from="the contest: AIME I and II have 15 problems each",
    ),
    Source(
        name="amc",
        hub="AI-MO/aimo-validation-amc",
        split="train",
        columns=("id", "problem", "answer"),
        convert=formats.plain_math("problem", "answer", "id"),
        domain="math",
        licence="none known",
        rows=83,
        rows_from="the hub's viewer",
        note="AMC 12 of 2022 and 2023 with answers as numbers; the paper does not name its copy",
    ),
    Source(
        name="olympiadbench",
        hub="Hothan/OlympiadBench",
        config="OE_TO_maths_en_COMP",
        split="train",
        columns=("id", "question", "final_answer", "context"),
        convert=formats.olympiad_bench,
        domain="math",
        licence="Apache-2.0",
        rows=674,
        rows_from="the counts of each configuration in EvalScope's documentation",
        note="the paper names OE_MM_maths_en_COMP with 675 problems; on the hub that configuration "
        "has 150, with images, and the text-only one taken here has 674",
    ),
    Source(
        name="gpqa-diamond",
        hub="Idavidrein/gpqa",
        config="gpqa_diamond",
        split="train",
        columns=("Question", "Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3))),
        convert=formats.gpqa,
        domain="math",
        licence="CC-BY-4.0, behind a form that asks not to publish the questions",
        rows=198,
        rows_from="arXiv:2311.12022",
    ),
    Source(
        name="humaneval",
        hub="openai/openai_humaneval",
        split="test",
        columns=("task_id", "prompt", "canonical_solution", "test", "entry_point"),
        convert=formats.human_eval,
        domain="code",
        licence="MIT",
        rows=164,
        rows_from="arXiv:2107.03374",
    ),
    Source(
        name="humaneval-plus",
        hub="evalplus/humanevalplus",
        split="test",
        columns=("task_id", "prompt", "canonical_solution", "test", "entry_point"),
        convert=formats.human_eval,
        domain="code",
        licence="Apache-2.0",
        rows=164,
        rows_from="the data set's card",
    ),
    Source(
        name="mbpp",
        hub="google-research-datasets/mbpp",
        config="full",
        split="test",
        columns=("task_id", "text", "code", "test_list", "test_setup_code"),
        convert=formats.mbpp,
        domain="code",
        licence="CC-BY-4.0",
        rows=500,
        rows_from="the data set's card",
        note="the paper does not name its copy; its MBPP+ scores exceed its MBPP scores, so the "
        "problems of the two are not the same ones",
    ),
    Source(
        name="mbpp-plus",
        hub="evalplus/mbppplus",
        split="test",
        columns=("task_id", "prompt", "code", "test_imports", "test_list", "test"),
        convert=formats.mbpp_plus,
        domain="code",
        licence="Apache-2.0",
        rows=378,
        rows_from="the data set's card",
    ),
)
SOURCES = {source.name: source for source in _ALL}
SUITES = {
    f"{domain}-benchmarks": tuple(
        source.name for source in _ALL if source.domain == domain and not source.training
    )
    for domain in ("math", "code")
}
