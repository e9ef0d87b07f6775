"""The table of docs/models.md: what rlsgd does with every architecture.

python -m tests.helpers.verdicts docs/models.md     writes the table into the page
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import PreTrainedModel

from rlsgd.models.calling import class_name
from rlsgd.models.fast_paths import verdict
from rlsgd.models.recomputing import RECOMPUTED, recompute_activations
from rlsgd.models.scoring import ALIGNED, DOCUMENTS, PADDED
from rlsgd.models.shared_prompts import SHARED, share_prompts, unshare_prompts
from rlsgd.rollout.reading import CACHED, UNCACHED
from tests.helpers.architectures import ARCHITECTURES, tiny_model

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
HEADER = (
    "| architecture | class | sampled | rows of a batch | documents in a row | prompts shared "
    "| activations recomputed |\n|---|---|---|---|---|---|---|"
)
LENGTH = 40
"""Longer than the windows and chunks of the tiny models."""


def row_of(name: str, model: PreTrainedModel) -> tuple[str, ...]:
    """The cells of a model's row."""

    def first(choices: dict[str, str]) -> str:
        for path, word in choices.items():
            if verdict(model, path, LENGTH).holds:
                return word
        return "refused"

    cells = [
        first({CACHED: "with its cache", UNCACHED: "without a cache, said"}),
        first({PADDED: "as they are", ALIGNED: "moved to the left, said"}),
        first({DOCUMENTS: "yes"}),
    ]
    try:
        share_prompts(model)
        cells.append(first({SHARED: "yes"}))
    except ValueError:
        cells.append("refused")
    finally:
        unshare_prompts(model)
    try:
        recompute_activations(model)
        cells.append(first({RECOMPUTED: "yes"}))
    except ValueError:
        cells.append("refused")
    return (name, f"`{class_name(model)}`", *cells)


def line_of(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def written(page: str, lines: list[str]) -> str:
    """The page with these lines as its table."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return "\n".join([before + BEGIN, HEADER, *lines, END]) + after


def main(path: Path) -> None:
    lines = [line_of(row_of(name, tiny_model(name))) for name in ARCHITECTURES]
    path.write_text(written(path.read_text(), lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
