"""From a source to problems in the cache: read, check, convert, clean, sample, write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsgd.preparation.cleaning import Cleaner
from rlsgd.preparation.formats import Dropped, Row
from rlsgd.preparation.overlap import Overlap
from rlsgd.preparation.prepared import MANIFEST, ROWS, file_sha256, prepared_folder, read_rows
from rlsgd.preparation.reading import check_rows, check_sha256, content_sha256, read_source
from rlsgd.preparation.sources import SOURCES, SUITES, Source
from rlsgd.preparation.verification import Verifier


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to prepare; `rlsgd data prepare --help` says what each is."""

    local: Path | None = None
    rows: int | None = None
    sha256: str | None = None
    name: str | None = None
    verify: bool = False
    seed: int = 0
    sample: int | None = None
    tokenizers: Sequence[str] = ()
    max_question_tokens: int = 900
    against: Sequence[str] | None = None
    overlap_words: int = 13


def prepare(source: Source, options: Options) -> dict[str, Any]:
    """Prepare one source and return its manifest.

    Raises:
        ValueError: the data, or an option, is not what it should be. What was prepared before is
            left as it is then.
    """
    name = options.name or source.name
    if options.name is not None and (options.name in {*SOURCES, *SUITES} or "/" in options.name):
        raise ValueError(f"--name {options.name}: it is another data set's, or has a slash in it")
    cleaner = _cleaner(source, options) if source.training else None
    table = read_source(source, options.local)
    check_rows(source, len(table), options.rows)
    content = content_sha256(table, source.columns)
    check_sha256(source, content, options.sha256)
    manifest: dict[str, Any] = {
        "name": name,
        "source": source.hub,
        "config": source.config,
        "split": source.split,
        "from": str(options.local) if options.local else "hub",
        "licence": source.licence,
        "source_rows": len(table),
        "source_rows_known": source.rows,
        "source_sha256": content,
    }
    if cleaner:
        problems, more = _training_set(source, options, table, cleaner)
    else:
        problems, more = _benchmark(source, options, table)
    manifest |= {"rows": len(problems), **more}
    _write(manifest, problems)
    return manifest


def _cleaner(source: Source, options: Options) -> Cleaner:
    """What can be refused before anything is read or fetched, is."""
    if options.max_question_tokens < 0 or (options.sample is not None and options.sample < 1):
        raise ValueError("--max-question-tokens must not be negative, and --sample at least 1")
    if options.max_question_tokens and not options.tokenizers:
        raise ValueError(
            f"--tokenizer is missing: {source.name} is trained on, where a prompt longer than "
            "--data.max_prompt_tokens is an error. Name the models to be trained, or keep questions"
            " of any length by --max-question-tokens 0"
        )
    names = SUITES[f"{source.domain}-benchmarks"] if options.against is None else options.against
    try:
        questions = {name: [row["question"] for row in read_rows(name)] for name in names}
    except ValueError as error:
        raise ValueError(
            f"--against: {source.name} is compared with benchmarks, and {error}. Or name those that"
            " matter (--against without a name: none)"
        ) from error
    from rlsgd.models.loading import load_tokenizer

    return Cleaner(
        source,
        Overlap(questions, options.overlap_words),
        tokenizers=[load_tokenizer(path) for path in options.tokenizers],
        max_question_tokens=options.max_question_tokens,
    )


def _training_set(
    source: Source, options: Options, table: Any, cleaner: Cleaner
) -> tuple[list[Row], dict[str, Any]]:
    count = options.sample or source.sample
    problems = cleaner.sample(table, seed=options.seed, count=count)
    dropped = {reason: number for reason, number in cleaner.dropped.items() if number}
    if len(problems) < (count or 1):
        raise ValueError(
            f"{source.name}: {len(problems):,} problems are left of {len(table):,} rows, and "
            f"{count or 1:,} are wanted (--sample); left out: {dropped}"
        )
    report = cleaner.overlap.report
    return problems, {
        "seed": options.seed,
        "sample": count,
        "tokenizers": list(options.tokenizers),
        "max_question_tokens": options.max_question_tokens,
        "dropped": dropped,
        "overlap": {
            "words": options.overlap_words,
            "removed": {name: report.removed[name] for name in report.found},
            "problems_found": {name: len(found) for name, found in report.found.items()},
            "examples": report.examples,
        },
    }


def _benchmark(source: Source, options: Options, table: Any) -> tuple[list[Row], dict[str, Any]]:
    problems: list[Row] = []
    for index, row in enumerate(table):
        problem = source.convert(row)
        if isinstance(problem, Dropped):
            raise ValueError(f"{source.name}: row {index} (counted from 0): {problem.reason}")
        problems.append({"benchmark": source.name, **problem})
    if not options.verify:
        return problems, {}
    with Verifier(source.domain, len(problems)) as verifier:
        passes = verifier.passes(problems)
    pairs = zip(problems, passes, strict=True)
    return problems, {"unverified": [problem["id"] for problem, right in pairs if not right]}


def _write(manifest: dict[str, Any], problems: list[Row]) -> None:
    """The folder appears whole, in place of the one before."""
    folder = prepared_folder(manifest["name"])
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with (partial / ROWS).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(problem, ensure_ascii=False) + "\n" for problem in problems)
    manifest["rows_sha256"] = file_sha256(partial / ROWS)
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (partial / MANIFEST).write_text(text, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
