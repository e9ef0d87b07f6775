"""`rlsgd data`: prepare the data sets of the papers, and list them."""

from __future__ import annotations

import json
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from rlsgd.core.command import PlainParser, run_command
from rlsgd.preparation import recipes

if TYPE_CHECKING:
    from rlsgd.preparation.prepare import Options
    from rlsgd.preparation.sources import Source

_DESCRIPTION = """\
Data sets are kept as JSON lines under $RLSGD_CACHE/data (else ~/.cache/rlsgd/data), where configs
find them by name: --data.task.path numina-math, --data.task.test_path math-benchmarks.
"""
_PREPARE = """\
Read a data set from the hub or from a copy of it, check its number of rows and its checksum, and
write its problems. A training set is cleaned first: questions that share a run of words with a
benchmark, repeated questions, questions too long for the models to be trained, and answers that
math-verify does not find equal to themselves are left out and counted; then the first of the rest,
in an order that the seed decides, are kept. math-benchmarks and code-benchmarks stand for all
benchmarks of their kind; prepare them first.

smollm2, text and c4 are models and texts with options of their own:
rlsgd data prepare smollm2 --help
"""


def main(argv: Sequence[str]) -> int:
    """Run `rlsgd data`; returns the exit status.

    Args:
        argv: what follows `rlsgd data`.
    """
    if len(argv) > 1 and argv[0] == "prepare" and argv[1] in recipes.RECIPES:
        return recipes.main(argv[1], argv[2:])
    return run_command("data", argv, _parser(), lambda given: given.run(given))


def _list(arguments: Namespace) -> None:
    from rlsgd.preparation.prepared import read_manifest
    from rlsgd.preparation.sources import SOURCES, SUITES

    table = Table()
    for column in ("name", "on the hub", "split", "rows", "licence", "prepared"):
        table.add_column(column, justify="right" if column == "rows" else "left")
    for source in SOURCES.values():
        manifest = read_manifest(source.name)
        table.add_row(
            source.name,
            source.hub + (f"\n({source.config})" if source.config else ""),
            source.split,
            "not known" if source.rows is None else f"{source.rows:,}",
            source.licence,
            f"{manifest['rows']:,} problems" if manifest else "no",
        )
    console = Console()
    console.print(table)
    for name, members in SUITES.items():
        console.print(f"{name}: {', '.join(members)}", soft_wrap=True, highlight=False)
    for name, content in recipes.RECIPES.items():
        console.print(f"{name}: {content}", soft_wrap=True, highlight=False)


def _prepare(arguments: Namespace) -> None:
    from rlsgd.preparation.prepare import Options, prepare
    from rlsgd.preparation.sources import SUITES

    sources = _sources(arguments.NAME)
    options = Options(
        local=arguments.source,
        rows=arguments.rows,
        sha256=arguments.sha256,
        name=arguments.name,
        verify=arguments.verify,
        seed=arguments.seed,
        sample=arguments.sample,
        tokenizers=arguments.tokenizer,
        max_question_tokens=arguments.max_question_tokens,
        against=arguments.against,
        overlap_words=arguments.overlap_words,
    )
    if arguments.NAME in SUITES and (options.rows or options.sha256 or options.name):
        raise ValueError("--rows, --sha256 and --name are for one data set, not for several")
    if options.local is not None and not options.local.exists():
        raise ValueError(f"--from {options.local} is not there")
    for source in sources:
        own = options if len(sources) == 1 else replace(options, local=_copy_of(source, options))
        manifest = prepare(source, own)
        if arguments.json:
            print(json.dumps(manifest))
        else:
            _show(source, manifest)


def _sources(name: str) -> list[Source]:
    from rlsgd.preparation.sources import SOURCES, SUITES

    if name in recipes.RECIPES:
        raise ValueError(f"NAME {name} must come first: rlsgd data prepare {name} [its options]")
    if name not in {*SOURCES, *SUITES}:
        known = ", ".join([*SOURCES, *SUITES, *recipes.RECIPES])
        raise ValueError(f"NAME {name} is no data set that can be prepared; there are {known}")
    return [SOURCES[member] for member in SUITES.get(name, (name,))]


def _copy_of(source: Source, options: Options) -> Path | None:
    """A suite's member in a folder of copies: a folder or file of its name."""
    if options.local is None:
        return None
    found = sorted(p for p in options.local.iterdir() if source.name in (p.name, p.stem))
    if not found:
        raise ValueError(f"--from {options.local} has no file or folder called {source.name}")
    return found[0]


def _show(source: Source, manifest: dict[str, Any]) -> None:
    console = Console()

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    known = manifest["source_rows_known"]
    rows = f"as expected ({source.rows_from})" if known == manifest["source_rows"] else ""
    rows = rows or f"expected: {f'{known:,}' if known else 'not known'} ({source.rows_from})"
    say(f"{manifest['name']}: {manifest['rows']:,} problems; licence: {manifest['licence']}")
    say(f"  read from {manifest['from']}: {manifest['source_rows']:,} rows, {rows}")
    pinned = "" if source.sha256 else "; none is published, to pin it add --sha256 with this value"
    say(f"  SHA-256 of what was read: {manifest['source_sha256']}{pinned}")
    if source.note:
        say(f"  note: {source.note}")
    for reason, number in manifest.get("dropped", {}).items():
        say(f"  left out, {reason}: {number:,}")
    if "overlap" in manifest:
        overlap = manifest["overlap"]
        say(f"  compared by runs of {overlap['words']} words with:")
        for name, removed in overlap["removed"].items():
            found = overlap["problems_found"][name]
            say(f"    {name}: {removed:,} rows removed, {found:,} of its problems were in them")
    if "unverified" in manifest:
        failed = manifest["unverified"]
        named = f": {', '.join(failed[:20])}" if failed else ""
        say(f"  answers on record that do not get full marks: {len(failed):,}{named}")


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="rlsgd data", description=_DESCRIPTION, formatter_class=RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="the data sets, and which are prepared")
    listing.set_defaults(run=_list)
    sub = commands.add_parser(
        "prepare",
        help="read, check, clean and keep a data set",
        description=_PREPARE,
        formatter_class=RawDescriptionHelpFormatter,
    )
    sub.set_defaults(run=_prepare)
    sub.add_argument("NAME", help="a data set or suite of `rlsgd data list`")
    sub.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="PATH",
        help="a copy instead of the hub: .jsonl, .json, .parquet, .csv, or a folder of such",
    )
    sub.add_argument("--rows", type=int, help="accept this many rows instead of those expected")
    sub.add_argument("--sha256", help="refuse content with another checksum")
    sub.add_argument("--name", help="keep it under another name")
    sub.add_argument(
        "--verify",
        action="store_true",
        help="score a benchmark's answers on record (programs run in the sandbox) and name those "
        "that fail",
    )
    training = sub.add_argument_group("training sets")
    training.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    training.add_argument("--sample", type=int, help="problems kept (numina-math: 35,000)")
    training.add_argument(
        "--tokenizer",
        nargs="+",
        default=(),
        metavar="MODEL",
        help="models to be trained; a question must be short enough for each of them",
    )
    training.add_argument(
        "--max-question-tokens",
        type=int,
        default=900,
        help="of a question without its template; 0 is no limit (default: 900)",
    )
    training.add_argument(
        "--against",
        nargs="*",
        metavar="BENCHMARK",
        help="benchmarks to compare with (default: all of the kind, prepared before)",
    )
    training.add_argument(
        "--overlap-words",
        type=int,
        default=13,
        help="length of a run of words that counts as a copy (default: 13)",
    )
    sub.add_argument("--json", action="store_true", help="print the manifest instead")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
