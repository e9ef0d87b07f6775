import math

import pytest
import torch

from rlsgd.functional.dynamics import (
    Alignment,
    Distribution,
    SpikeCounter,
    alignment,
    by_frequency,
    distribution,
    effective_lr,
    quantile_name,
)


def test_a_distribution_by_hand():
    spread = distribution(torch.tensor([[0.0, 1.0], [3.0, 4.0]]))
    assert (spread.numel, spread.zeros, spread.mean) == (4, 1, 2.0)
    assert spread.std == math.sqrt((4 + 1 + 1 + 4) / 4)
    assert spread.cv == spread.std / 2
    fine = 10 ** (0.5 / 200)  # half a bin
    assert spread.quantile(0.25) == 0.0
    for q, value in [(0.26, 1.0), (0.5, 1.0), (0.75, 3.0), (1.0, 4.0)]:
        assert value / fine / 1.000001 <= spread.quantile(q) <= value * fine * 1.000001
    edges, counts = spread.histogram()
    assert edges[0] == 0.0 and edges[-1] == pytest.approx(0.7)
    assert counts == [1, 0, 0, 0, 1, 0, 1]  # log10: 0, 0.477, 0.602


def test_parts_add_up_and_quantiles_agree_with_sorting():
    generator = torch.Generator().manual_seed(0)
    values = 10.0 ** (3 * torch.randn(1001, generator=generator) - 6)
    spread = sum((distribution(part) for part in values.split([1, 300, 700])), Distribution())
    assert torch.equal(spread.counts, distribution(values).counts)
    for q in (0.01, 0.1, 0.5, 0.9, 0.99, 1.0):
        exact = values.sort().values[max(1, math.ceil(q * 1001)) - 1]
        assert spread.quantile(q) == pytest.approx(float(exact), rel=5.8e-3)  # half a bin
    assert spread.std == pytest.approx(float(values.double().std(correction=0)), rel=1e-12)


def test_the_range_holds_all_of_float32_and_nonsense_is_refused():
    ends = torch.tensor([2.0**-149, torch.finfo(torch.float32).max])
    spread = distribution(ends)
    assert spread.quantile(0.5) == pytest.approx(2.0**-149, rel=5.8e-3)
    assert spread.quantile(1.0) == pytest.approx(3.4028e38, rel=5.8e-3)
    for bad in (-1.0, torch.inf, torch.nan):
        with pytest.raises(ValueError, match="finite and not negative"):
            distribution(torch.tensor([1.0, bad]))


@pytest.mark.parametrize(
    ("q", "name"), [(0.01, "p01"), (0.5, "p50"), (0.999, "p99.9"), (1.0, "p100")]
)
def test_quantile_names(q: float, name: str):
    assert quantile_name(q) == name


def test_alignment_by_hand():
    sums = alignment(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]))
    sums += alignment(torch.tensor([[4.0]]), torch.tensor([[-1.0]]))
    assert sums == Alignment(dot=-1.0, momentum=25.0, gradient=3.0)
    assert sums.summary() == {
        "history_ratio": math.sqrt(25 / 3),
        "momentum_gradient_cosine": pytest.approx(-1 / 5 / math.sqrt(3), rel=1e-15),
    }
    assert Alignment(gradient=1.0).summary() == {"history_ratio": 0.0}
    assert Alignment(momentum=1.0).summary() == {}


def test_effective_lr_by_hand():
    v = torch.tensor([4e-12, 0.0], dtype=torch.float64)
    raw = effective_lr(v, lr=1e-6, eps=1e-8)
    assert raw.tolist() == pytest.approx([1e-6 / 2.01e-6, 100.0], rel=1e-12)
    corrected = effective_lr(v, lr=1e-6 / 0.1, eps=1e-8, bias=0.25)
    assert corrected.tolist() == pytest.approx([1e-5 / 4.01e-6, 1000.0], rel=1e-12)


def test_spikes_by_hand():
    counter = SpikeCounter(factor=3.0, window=3, warmup=2)
    for value in [1.0, 1.0, 3.0, 3.1, 100.0, 100.0, 100.0, 301.0]:
        counter.add(value)
    # medians before: of (1, 1), (1, 1, 3), (1, 3, 3.1), (3, 3.1, 100), (3.1, 100, 100), (100 x 3)
    assert counter.judged == 6
    assert counter.spikes == 4  # 3.1 / 1, 100 / 3, 100 / 3.1 and 301 / 100; 3 / 1 is not above 3
    assert counter.largest_ratio == 100 / 3
    even = SpikeCounter(factor=3.0, window=4, warmup=4)
    for value in [4.0, 1.0, 8.0, 2.0, 9.0]:
        even.add(value)
    assert even.largest_ratio == 3.0 and even.spikes == 0, "the median of 1, 2, 4, 8 is 3"
    still = SpikeCounter(factor=3.0, window=3, warmup=1)
    for value in (0.0, 5.0):
        still.add(value)
    assert still.judged == 0, "nothing is many times a median of 0"


def test_rows_by_frequency_by_hand():
    frequency = torch.tensor([0, 0, 1, 2, 3, 4, 7, 8])
    norms = torch.tensor([0.0, 0.1, 1.0, 2.0, 4.0, 5.0, 6.0, 7.0], dtype=torch.float64)
    rows = [tuple(row.values()) for row in by_frequency(frequency, norms)]
    assert rows == [
        (0, 0, 2, 0.05, 0.0, 0.1),
        (1, 1, 1, 1.0, 1.0, 1.0),
        (2, 3, 2, 3.0, 2.0, 4.0),
        (4, 7, 2, 5.5, 5.0, 6.0),
        (8, 15, 1, 7.0, 7.0, 7.0),
    ]
