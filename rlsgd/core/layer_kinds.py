"""Parameters by decoder layer and kind, as their names tell; tables and heatmaps of them."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {  # the first that matches; the order tells an expert from an mlp
    "router": r"router|\bgate\.(weight|bias|e_score|wg)|expert_gate|score_correction_bias",
    "shared_expert": r"shared_(expert|mlp)",
    "experts": r"\bexperts\b|block_sparse_moe|(input|output)_linear",
    "norm": r"norm|Norm|\bln_|\bln\d|\bpre_ln",
    "convolution": r"\bconv_?1?d?\b|\bconv\.",
    "state_space": (
        r"\bmamba\b|\bmixer\.(?!([qkvo]|up|down|gate)_proj)|linear_attn|A_log|\bdt_|_dt_|rg_lru|mlstm"
        r"|time_(mix|decay|first)|temporal_block\.linear|\bx_proj|\battention\.receptance"
    ),
    "embedding": r"embed|wte|wpe|word_embeddings|tokens_embed|positions_embed",
    "attention_qkv": r"c_attn|qkv|query_key_value|\bWqkv",
    "attention_q": r"\bq_(\w+_)?proj|\bq\.weight|project_q|\bquery\b|\bWq\b",
    "attention_k": r"\bk_proj|\bkv_|project_k|attention\.(self\.)?key|\bWk\b",
    "attention_v": r"\bv_proj|project_v|attention\.(self\.)?value|\bWv\b",
    "attention_o": (
        r"o_proj|attn\.c_proj|(attention|attn)\.(output\.)?dense|out_proj|attention\.output"
        r"|attention_out|\battn\.Wo|output_gate"
    ),
    "mlp": (
        r"mlp|gate_proj|up_proj|down_proj|\bfc\d|\bffn\b|\bff\b|feed_forward"
        r"|(intermediate|output)\.dense"
    ),
    "head": r"lm_head|^head\b",
}


def kind_of(name: str) -> str:
    """Kind of a parameter by its name: one of `KINDS`, or `other:NAME` without the layer's number.

    A kind that nothing matches is listed by its name, so that nobody takes it for something else.

    >>> kind_of("model.layers.3.self_attn.sinks")
    'other:self_attn.sinks'
    """
    kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), None)
    if kind is None:
        tail = re.split(r"\b(?:layers?|h|blocks)\.\d+\.", name)[-1]
        kind = f"other:{re.sub(r'[.]weight$|[.]bias$', '', tail)}"
    return kind


def layer_of(name: str) -> int | None:
    """Index of the decoder layer a parameter belongs to, if it belongs to one."""
    found = re.search(r"\b(?:layers?|h|blocks)\.(\d+)\.", name)
    return int(found[1]) if found else None


def layer_kind_table(values: dict[str, float]) -> tuple[list[str], list[str], list[list[float]]]:
    """Mean value for each (layer, kind); parameters outside the layers form a last row.

    Returns:
        row labels, column labels, and the table with NaN where there is no such parameter.
    """
    cells: dict[tuple[int, str], list[float]] = defaultdict(list)
    outside = 1 + max((layer_of(name) or 0 for name in values), default=0)
    for name, value in values.items():
        layer = layer_of(name)
        cells[outside if layer is None else layer, kind_of(name)].append(value)
    rows = sorted({row for row, _ in cells})
    kinds = sorted({kind for _, kind in cells})
    table = [
        [sum(c) / len(c) if (c := cells.get((row, kind))) else math.nan for kind in kinds]
        for row in rows
    ]
    labels = ["outside" if row == outside else str(row) for row in rows]
    return labels, kinds, table


def heatmap(title: str, values: dict[str, float], limits: tuple[float, float] | None) -> Figure:
    """The table as a figure, layers down and kinds across.

    Args:
        title: above it.
        values: one number for each parameter, by name.
        limits: of the colour scale; none fits it to the table.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, kinds, table = layer_kind_table(values)
    low, high = limits or (None, None)
    figure = Figure(figsize=(1.5 + 0.9 * len(kinds), 1.5 + 0.3 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(table, aspect="auto", cmap="viridis", vmin=low, vmax=high)
    axes.set_xticks(range(len(kinds)), kinds, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylabel("layer")
    axes.set_title(title)
    figure.colorbar(image)
    return figure
