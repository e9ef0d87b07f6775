"""The figures of a study: what their axes show."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from rlsgd.study import plots
from rlsgd.study.plots import curves_figure, draw_plots, learning_rate_figure
from rlsgd.study.scores import SCORES
from rlsgd.study.summary import summarise

KEY = "update/displacement"


def run(name: str, seed: int, final: float, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "sweep": None,
        "learning_rate": 0.1,
        "seed": seed,
        "status": "finished",
        "score": {"final": final},
        "memory": {"parameter_bytes": None},
        **changes,
    }


def ticks(figure: Figure, axis: int = 0) -> list[str]:
    """Labels of the x-axis that are drawn."""
    figure.canvas.draw()
    shown = figure.axes[axis]
    low, high = shown.get_xlim()
    labels = zip(shown.get_xticks(), shown.get_xticklabels(), strict=True)
    return [label.get_text() for place, label in labels if low <= place <= high]


def swept(rates: dict[float, list[float]]) -> list[dict[str, Any]]:
    return [
        run(f"sgd-lr{rate:g}", seed, final, sweep="sgd", learning_rate=rate)
        for rate, finals in rates.items()
        for seed, final in enumerate(finals)
    ]


def test_an_interval_beyond_what_accuracy_can_be_does_not_stretch_the_axis():
    """Two seeds at 0.2 and 0.9 have the mean 0.55 and an interval of 4.45 to either side."""
    arms = summarise(swept({1e-4: [0.94, 0.95], 1e-3: [0.2, 0.9]}))
    figure = learning_rate_figure(arms, SCORES["accuracy"])
    assert figure is not None
    assert figure.axes[0].get_ylim() == (0.0, 100.0)
    assert ticks(figure) == ["0.0001", "0.0002", "0.0005", "0.001"]
    narrow = learning_rate_figure(summarise(swept({1e-4: [0.94, 0.95]})), SCORES["accuracy"])
    assert narrow is not None
    low, high = narrow.axes[0].get_ylim()
    assert 80 < low < 94 and high == 100.0  # 94.5 +- 6.4
    loss = learning_rate_figure(summarise(swept({1e-4: [0.5, 3.0]})), SCORES["loss"])
    assert loss is not None and loss.axes[0].get_ylim()[0] == 0.0
    assert loss.axes[0].get_ylim()[1] > 3.0


def test_rates_of_many_orders_of_magnitude_are_marked_by_the_powers_of_ten():
    arms = summarise(swept({1e-6: [0.5], 1e-1: [0.6]}))
    figure = learning_rate_figure(arms, SCORES["accuracy"])
    assert figure is not None
    assert ticks(figure) == ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1"]


@pytest.mark.parametrize("epochs", [[30], [1, 2], [20, 40], list(range(8))])
def test_epochs_are_whole(epochs: list[int]):
    arms = summarise([run("sgd", 0, 0.5)])
    series = {("sgd", 0): {epoch: 1.0 * epoch for epoch in epochs}}
    shown = ticks(curves_figure(arms, series, "title", "label"))
    assert shown and all(label.isdigit() for label in shown)


def test_seven_panels_stand_two_in_a_row():
    rows = [run(f"{name}-lr1", 0, 0.5, sweep=name, learning_rate=1.0) for name in "abcdefg"]
    series = {(one["name"], 0): {0: 1.0, 1: 2.0} for one in rows}
    figure = curves_figure(summarise(rows), series, "title", "label")
    panels = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title() for axis in panels] == list("abcdefg")
    assert figure.get_figwidth() < 12
    columns = {axis.get_subplotspec().colspan.start for axis in panels}  # pyright: ignore
    assert columns == {0, 1}


def test_a_measure_is_drawn_by_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [
        {"epoch": 0.0, "step": 1.0, KEY: 0.02, "val/accuracy": 0.5, "update/unchanged_bf16": 0.9},
        {"epoch": 1.0, "step": 2.0, KEY: 0.05, "val/accuracy": 0.6, "update/unchanged_bf16": 0.8},
    ]
    figures = []
    draw = plots._against
    monkeypatch.setattr(plots, "_against", lambda *args: figures.append(draw(*args)) or figures[0])
    drawn = draw_plots([run("sgd", 0, 0.6)], [rows], tmp_path, SCORES["accuracy"], KEY)
    title = "The same against the distance from the starting weights, ||w - w0||"
    assert (title, "plots/matched.png") in drawn
    (figure,) = figures
    assert [axis.get_xlabel() for axis in figure.axes] == [title.partition("the ")[2]] * 2
    assert ticks(figure) == ["0.02", "0.05"]
