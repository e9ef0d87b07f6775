"""`rlsgd delta`: pack what changed between two models, apply it, look at it."""

from __future__ import annotations

import json
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from rlsgd.core.command import PlainParser, run_command

if TYPE_CHECKING:
    from rlsgd.core.stored import StoredTensors
    from rlsgd.deltas.reader import Delta

_DESCRIPTION = """\
A delta holds the entries in which one checkpoint differs from another, bit for bit, as absolute
values. BASE and TUNED are model folders (one safetensors file or several), safetensors files,
`embedded`, prepared models or hub names. Tensors are read, compared and written one at a time.
"""
_PACK = """\
Write OUT, a file that turns BASE into TUNED: weights, and the configuration and tokenizer files
(.json .jinja .txt .model .tiktoken; code is never carried) that differ from the base's. A tensor
whose dtype differs between the two is compared in TUNED's.
"""
_APPLY = """\
Write OUT, a model folder. Several deltas are a chain: each must start from what the one before it
gives. Every checksum is compared before anything is written, and OUT appears when it is complete.
"""
_DTYPES = ("bfloat16", "float16", "float32")


def main(argv: Sequence[str]) -> int:
    """Run `rlsgd delta`; returns the exit status.

    Args:
        argv: what follows `rlsgd delta`.
    """
    return run_command("delta", argv, _parser(), lambda given: given.run(given))


def _pack(arguments: Namespace) -> None:
    from rlsgd.deltas.pack import pack, small_files
    from rlsgd.deltas.reader import Delta

    out = Path(arguments.OUT)
    if out.exists() and not arguments.overwrite:
        raise ValueError(f"OUT {out} is there already; name another, or add --overwrite")
    if out.is_dir():
        raise ValueError(f"OUT {out} is a folder; name a file")
    base, base_folder = _open("BASE", arguments.BASE)
    tuned, tuned_folder = _open("TUNED", arguments.TUNED)
    files = None
    if tuned_folder is not None:
        files = small_files(tuned_folder), small_files(base_folder) if base_folder else {}
    pack(base, tuned, out, dtype=arguments.dtype, files=files, progress=_progress("pack"))
    _show(Delta(out), as_json=arguments.json)


def _apply(arguments: Namespace) -> None:
    from rlsgd.deltas.apply import apply
    from rlsgd.deltas.pack import small_files
    from rlsgd.deltas.reader import Delta

    deltas = [Delta(Path(path)) for path in arguments.DELTA]
    base, folder = _open("BASE", arguments.BASE)
    apply(
        base,
        deltas,
        Path(arguments.OUT),
        files=small_files(folder) if folder else None,
        overwrite=arguments.overwrite,
        progress=_progress("apply"),
    )
    print(f"{arguments.OUT}: content hash {deltas[-1].manifest.result}")


def _inspect(arguments: Namespace) -> None:
    from rlsgd.deltas.reader import Delta

    _show(Delta(Path(arguments.DELTA)), as_json=arguments.json)


def _open(argument: str, path: str) -> tuple[StoredTensors, Path | None]:
    """A checkpoint, and the folder of its configuration unless it is a bare file."""
    from safetensors import SafetensorError

    from rlsgd.core.stored import StoredTensors
    from rlsgd.models.names import resolve_model

    try:
        tensors = StoredTensors.open(path if Path(path).is_file() else resolve_model(path))
    except (ValueError, FileNotFoundError, SafetensorError) as error:
        reason = str(error).removeprefix(f"--model.policy {path}: ")
        raise ValueError(f"{argument} {path}: {reason}") from error
    if Path(path).is_file() or not tensors.files:
        return tensors, None
    return tensors, next(iter(tensors.files.values())).parent


def _progress(what: str) -> Callable[[Iterable[str]], Iterable[str]]:
    console = Console(stderr=True)
    return lambda names: track(list(names), what, console=console, transient=True)


def _show(delta: Delta, *, as_json: bool) -> None:
    found = summary(delta)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table(title=f"{found['path']}: {found['bytes'] / 2**20:,.2f} MiB", title_justify="left")
    for column in ("kind", "tensors", "weights", "changed", "bytes", "dense bytes", "smaller by"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, row in {**found["kinds"], "total": found["total"]}.items():
        table.add_row(
            kind,
            f"{row['tensors']:,}",
            f"{row['weights']:,}",
            f"{row['changed_share']:.3%}",
            f"{row['bytes']:,}",
            f"{row['dense_bytes']:,}",
            f"{row['dense_bytes'] / row['bytes']:,.1f}x" if row["bytes"] else "-",
            style="bold" if kind == "total" else None,
        )
    console = Console()
    console.print(table)
    for key in ("dtypes", "removed", "stored_files", "base", "result"):
        text = ", ".join(found[key]) if isinstance(found[key], list) else found[key]
        if text:
            console.print(f"{key.replace('_', ' ')}: {text}", soft_wrap=True, highlight=False)


def summary(delta: Delta) -> dict[str, Any]:
    """What `rlsgd delta inspect` shows.

    Returns:
        For each kind of weight and in total: tensors, weights, changed (entries whose bits differ
        from the base's in the result's dtype), changed_share, bytes in the file and dense_bytes of
        the tensors as they are. The total's bytes are the file's, header and small files included.
    """
    from rlsgd.core.layer_kinds import kind_of

    kinds: dict[str, dict[str, Any]] = {}
    total = _row()
    for name, entry in delta.manifest.tensors.items():
        for row in (kinds.setdefault(kind_of(name), _row()), total):
            row["tensors"] += 1
            row["weights"] += entry.spec.numel
            row["changed"] += entry.changed
            row["bytes"] += delta.stored_bytes(name)
            row["dense_bytes"] += entry.spec.nbytes
    total["bytes"] = delta.path.stat().st_size
    for row in (*kinds.values(), total):
        row["changed_share"] = row["changed"] / row["weights"] if row["weights"] else 0.0
    return {
        "path": str(delta.path),
        "bytes": total["bytes"],
        "base": delta.manifest.base,
        "result": delta.manifest.result,
        "dtypes": sorted({entry.dtype for entry in delta.manifest.tensors.values()}),
        "removed": sorted(delta.manifest.removed),
        "stored_files": sorted(delta.manifest.stored_files),
        "total": total,
        "kinds": kinds,
    }


def _row() -> dict[str, Any]:
    return dict.fromkeys(("tensors", "weights", "changed", "bytes", "dense_bytes"), 0)


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="rlsgd delta", description=_DESCRIPTION, formatter_class=RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Namespace], None], help: str, text: str):
        sub = commands.add_parser(
            name, help=help, description=text, formatter_class=RawDescriptionHelpFormatter
        )
        sub.set_defaults(run=run)
        return sub

    pack = command("pack", _pack, "write what turns one checkpoint into another", _PACK)
    pack.add_argument("BASE")
    pack.add_argument("TUNED")
    pack.add_argument("OUT", help="file to write, for example delta.safetensors")
    pack.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="round both to it first, and give TUNED in it: an fp32 run changes nearly every fp32 "
        "value and few bfloat16 values",
    )
    apply = command("apply", _apply, "make the tuned model folder from its base", _APPLY)
    apply.add_argument("BASE")
    apply.add_argument("DELTA", nargs="+")
    apply.add_argument("OUT", help="folder to write")
    for sub in (pack, apply):
        sub.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    inspect = command("inspect", _inspect, "what a delta holds, and how small it is", "")
    inspect.add_argument("DELTA")
    for sub in (pack, inspect):
        sub.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
