"""`rlsgd report RUN...`: finished studies and runs on one page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlsgd.core.command import run_command
from rlsgd.core.typed_parser import TypedParser

_DESCRIPTION = """\
Put finished studies and runs on one HTML page, OUT/report.html, that needs no other file and no
network: tables with intervals, paired tests between arms, figures (also as OUT/plots/*.png), update
sparsity by layer, completions of the arms side by side at the same prompt, commands, versions and
configurations. Credentials in commands and configurations are left out. Exit status: 0, or 2 if a
RUN cannot be read.
"""
MAX_PROMPTS = 100


def main(argv: Sequence[str]) -> int:
    """Run `rlsgd report` on what follows it, and return its exit status."""
    return run_command("report", argv, _parser(), lambda given: _run(given, argv))


def _run(arguments: Any, argv: Sequence[str]) -> int:
    if not 0 <= arguments.prompts <= MAX_PROMPTS:
        raise ValueError(f"--prompts {arguments.prompts} must be from 0 to {MAX_PROMPTS}")
    from rlsgd.report.page import render
    from rlsgd.report.sources import load_sources

    sources = load_sources(arguments.RUN)
    out = _output_folder(arguments.out)
    page, figures = render(
        sources,
        shlex.join(["rlsgd", "report", *argv]),
        baseline=arguments.baseline,
        prompts=arguments.prompts,
    )
    for name, data in figures.items():
        (out / "plots" / name).write_bytes(data)
    (out / "report.html").write_text(page, encoding="utf-8", errors="replace")
    print(f"report: {out / 'report.html'}")
    return 0


def _output_folder(name: str) -> Path:
    try:
        (Path(name) / "plots").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {name}: {error.strerror}; name a folder to write to") from error
    return Path(name)


def _parser() -> TypedParser:
    parser = TypedParser(prog="rlsgd report", description=_DESCRIPTION)
    parser.add_argument(
        "RUN", type=str, nargs="+", help="folder of a study, or of a run of rlsgd fit"
    )
    parser.add_argument("--out", type=str, default="runs/report", help="folder of the page")
    parser.add_argument(
        "--baseline", type=str, help="arm that each other is tested against, instead of every pair"
    )
    parser.add_argument(
        "--prompts", type=int, default=6, help="show completions at this many prompts, at most"
    )
    return parser
