"""`rlsgd analyze BASE TUNED ...`: measure what tuning did to a checkpoint's weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rlsgd.analysis.checkpoint_files import Opened
from rlsgd.analysis.first_look import first_look
from rlsgd.analysis.measures import Measures
from rlsgd.core.command import run_command
from rlsgd.core.layer_kinds import heatmap
from rlsgd.core.typed_parser import TypedParser
from rlsgd.functional.tolerances import ISCLOSE, RELATIVE

_DESCRIPTION = (
    "Compare checkpoints with the one they were tuned from: how many weights changed, how far, of "
    "what rank, and where relative to the spectrum and the magnitudes of the base; of several "
    "TUNED also how far the sets of changed weights agree. The first table comes in seconds, the "
    "geometry after it. Files are read one tensor at a time. "
    "Exit status: 0, or 2 if a checkpoint cannot be read or does not match."
)
_CHECKPOINT = "model folder, hub name, prepared name or .safetensors file"
# measure -> limits of its colours
_HEATMAPS: dict[str, tuple[float, float] | None] = {
    "unchanged_bf16": (0.0, 1.0),
    "low_magnitude_overlap": (0.0, 1.0),
    "principal_overlap": (0.0, 1.0),
    "effective_rank_percent": (0.0, 100.0),
    "spectral_drift": None,
    "right_angle_mean_degrees": (0.0, 90.0),
}
# tables of columns: heading -> measure, factor
# each as wide as a narrow terminal holds
_FIRST_TABLE: dict[str, tuple[str, float]] = {
    "weights": ("weights", 1),
    "unchanged\nfp32 %": ("unchanged_fp32", 100),
    "unchanged\nbf16 %": ("unchanged_bf16", 100),
    "|Δ| / |w0|": ("relative_displacement", 1),
}
_TABLES: tuple[dict[str, tuple[str, float]], ...] = (
    {
        "effective\nrank %": ("effective_rank_percent", 1),
        "numerical\nrank %": ("numerical_rank_percent", 1),
        "spectral\ndrift": ("spectral_drift", 1),
        "mean\nrotation °": ("right_angle_mean_degrees", 1),
    },
    {
        "principal\noverlap % (chance)": ("principal_overlap", 100),
        "low-magnitude\noverlap % (chance)": ("low_magnitude_overlap", 100),
    },
)


def main(argv: Sequence[str]) -> int:
    """Run `rlsgd analyze` on what follows it, and return its exit status."""
    return run_command("analyze", argv, _parser(), _run)


def _run(arguments: Any) -> int:
    measures = Measures(
        tolerances=tuple(arguments.tolerances),
        rank_k=arguments.rank_k,
        alpha=arguments.alpha,
        spectra=not arguments.no_spectra,
    )
    out = _output_folder(arguments.out)
    opened = Opened.open(arguments.BASE, arguments.TUNED, allow_missing=arguments.allow_missing)
    console = Console()
    if not arguments.json:
        _print_first_look(console, opened)
    from rlsgd.analysis.comparison import Comparison  # torch and what takes minutes

    comparison = Comparison(opened, measures)
    progress = Console(stderr=True)
    with Progress(console=progress, disable=not progress.is_terminal, transient=True) as bar:
        task = bar.add_task("tensors", total=len(comparison.names))
        record = comparison.run(lambda: bar.advance(task))
    text = json.dumps(record, indent=2, allow_nan=False)
    if out is not None:
        (out / "analysis.json").write_text(text + "\n", encoding="utf-8")
        draw_heatmaps(record, out)
    if arguments.json:
        print(text)
        return 0
    for tuned in record["tuned"]:
        if len(record["tuned"]) > 1:
            _print_pair(console, record["base"]["path"], tuned["path"])
        _print_tuned(console, tuned, record)
    if record["pairs"]:
        console.print(_pair_table(record["pairs"]))
    if out is not None:
        console.print(f"written: {out / 'analysis.json'}, {out / '*.png'}", soft_wrap=True)
    return 0


def draw_heatmaps(record: dict[str, Any], folder: Path) -> list[Path]:
    """Draw a heatmap of layers x kinds for each measure and TUNED; returns the files.

    `MEASURE.png`, or `MEASURE_1.png`, `MEASURE_2.png`, ... in the order of several TUNED.
    """
    files = []
    for number, tuned in enumerate(record["tuned"], start=1):
        suffix = f"_{number}" if len(record["tuned"]) > 1 else ""
        for measure, limits in _HEATMAPS.items():
            values = {
                name: found[measure]
                for name, found in tuned["tensors"].items()
                if found.get(measure) is not None
            }
            if values:
                files.append(folder / f"{measure}{suffix}.png")
                heatmap(f"{measure}\n{tuned['path']}", values, limits).savefig(files[-1], dpi=150)
    return files


def _output_folder(name: str | None) -> Path | None:
    if name is None:
        return None
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {name}: {error.strerror}; name a folder to write to") from error
    return Path(name)


def _parser() -> TypedParser:
    parser = TypedParser(prog="rlsgd analyze", description=_DESCRIPTION)
    parser.add_argument("BASE", type=str, help=f"what the others were tuned from: {_CHECKPOINT}")
    parser.add_argument(
        "TUNED", type=str, nargs="+", help=f"{_CHECKPOINT}, or Lightning .ckpt file of a run"
    )
    parser.add_argument("--out", type=str, help="folder for analysis.json and the heatmaps")
    parser.add_argument(
        "--tolerances",
        type=float,
        nargs="+",
        default=list(Measures.tolerances),
        help="count weights with |w - w0| at most this, in units of the weight",
    )
    parser.add_argument(
        "--rank-k",
        type=int,
        default=Measures.rank_k,
        help="rank of the subspaces, of the principal mask and of the leading energy",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        default=Measures.alpha,
        help="share of entries in the principal and in the low-magnitude mask",
    )
    parser.add_argument(
        "--no-spectra", action="store_true", help="leave out what needs singular values: faster"
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="compare the tensors both hold, where one checkpoint holds more",
    )
    parser.add_argument("--json", action="store_true", help="print analysis.json, not tables")
    return parser


def _print_first_look(console: Console, opened: Opened) -> None:
    """What takes seconds, before what takes minutes."""
    parts = zip(opened.tuned_names, opened.tuned, opened.matches, strict=True)
    for name, tuned, match in parts:
        flags = (f"BASE {opened.base_name}", f"TUNED {name}")
        found = first_look(opened.base, tuned, match, flags)
        _print_pair(console, opened.base_name, name)
        console.print(_kind_table(found, _FIRST_TABLE))


def _print_pair(console: Console, base: str, tuned: str) -> None:
    console.print(f"{base} → {tuned}", soft_wrap=True, highlight=False)


def _print_tuned(console: Console, tuned: dict[str, Any], record: dict[str, Any]) -> None:
    for columns in _TABLES:
        present = {name: at for name, at in columns.items() if at[0] in tuned["total"]}
        if present:
            console.print(_kind_table(tuned, present))
    tolerances = ", ".join(
        f"{name.removeprefix('within_')}: {100 * share:.4g} %"
        for name, share in tuned["total"].items()
        if name.startswith("within_")
    )
    total = tuned["total"]
    lines = [
        f"stored as: BASE {_dtypes(record['base'])}, TUNED {_dtypes(tuned)}; BASE is rounded to "
        "TUNED's dtype, differences are float32",
        f"|w - w0| at most {tolerances}",
        f"difference in bf16: isclose to 0 at 1e-5 (arXiv:2602.07729) {100 * total[ISCLOSE]:.4g} %,"
        f" exactly 0 {100 * total['bf16_difference_zero']:.4g} %",
        f"|w - w0| at most {RELATIVE.removeprefix('unchanged_relative_')} of the larger: "
        f"{100 * total[RELATIVE]:.4g} %",
        "changed, for the overlaps: not equal in bf16; masks hold "
        f"{record['settings']['alpha']:g} of the entries; subspaces have rank "
        f"{record['settings']['rank_k']}",
    ]
    matrices = [part for part in tuned["tensors"].values() if "effective_rank" in part]
    if matrices:
        covered = sum(part["weights"] for part in matrices) / total["weights"]
        lines.append(
            f"ranks, drift and rotation: {len(matrices)} matrices, {covered:.2%} of weights"
        )
    for key, words in _LISTED.items():
        if tuned[key]:
            lines.append(f"{words}: {', '.join(tuned[key])}")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _kind_table(tuned: dict[str, Any], columns: dict[str, tuple[str, float]]) -> Table:
    table = Table()
    table.add_column("kind", no_wrap=True)
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    rows = [*tuned["kinds"].items(), ("total", tuned["total"])]
    for kind, found in rows:
        cells = [_cell(found, *place) for place in columns.values()]
        table.add_row(kind, *cells, end_section=kind == rows[-2][0])
    return table


_LISTED = {
    "only_in_base": "only in BASE, not compared",
    "only_in_tuned": "only in TUNED, not compared",
    "not_measured": "no weights, not measured",
    "tied_heads_left_out": "tied to the embedding, counted once",
}


def _dtypes(checkpoint: dict[str, Any]) -> str:
    return " and ".join(checkpoint["dtypes"])


def _cell(found: dict[str, Any], measure: str, factor: float) -> str:
    value = found.get(measure)
    if value is None:
        return "-"
    text = f"{value:,}" if isinstance(value, int) else f"{factor * value:.4g}"
    chance = found.get(f"{measure}_by_chance")
    return text if chance is None else f"{text} ({factor * chance:.4g})"


def _pair_table(pairs: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="weights changed in both (not equal in bf16), % (by chance)")
    for column in ("first", "second"):
        table.add_column(column, overflow="fold")
    for column in ("of the first's", "of the second's", "Jaccard"):
        table.add_column(column, justify="right")
    for pair in pairs:
        measures = ("overlap_of_first", "overlap_of_second", "jaccard")
        cells = [_cell(pair["total"], measure, 100) for measure in measures]
        table.add_row(pair["first"], pair["second"], *cells)
    return table
