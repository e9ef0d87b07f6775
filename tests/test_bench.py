"""The benchmark measures what it says: the same work on both sides, and no time left out."""

import json
import math
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from benchmarks import (
    bench,
    bench_agree,
    bench_check,
    bench_limit,
    bench_scaling,
    bench_sides,
    bench_summary,
    bench_tables,
)
from benchmarks.bench_cases import Case
from benchmarks.bench_worker import PHASES, Clock

PROMPTS, GROUP, TOKENS, REPEATS = 2, 3, 4, 2


@pytest.fixture(scope="module")
def found(tiny_llama, tmp_path_factory):
    """What the tool writes of a whole run of a tiny case."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    sizes = {"prompts": PROMPTS, "group": GROUP, "completion_tokens": TOKENS, "repeats": REPEATS}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    flags += ["--model", str(tiny_llama), "--threads", "1", "--json", str(path)]
    bench.main(["--case", "group_8", *flags])
    return json.loads(path.read_text())


def test_both_sides_sample_all_tokens_of_the_same_prompts(found):
    (case,) = found["cases"]
    reports = case["iterations"]
    assert [len(reports[side]) for side in ("rlsgd", "trl")] == [REPEATS, REPEATS]
    for ours, theirs in zip(reports["rlsgd"], reports["trl"], strict=True):
        assert ours["tokens"] == theirs["tokens"] == PROMPTS * GROUP * TOKENS
        assert ours["prompts"] == theirs["prompts"]
        assert ours["prompt_tokens"] == [44, 44]  # "What is 12 + 34? Reply ...", by the character
        assert ours["groups_alike"] == theirs["groups_alike"] == 0  # no update without a gradient
    assert reports["rlsgd"][0]["prompts"] != reports["rlsgd"][1]["prompts"]


def test_phases_are_the_whole_iteration(found):
    (case,) = found["cases"]
    for side in ("rlsgd", "trl"):
        for report in case["iterations"][side]:
            assert sum(report["phases"].values()) == pytest.approx(report["seconds"], rel=1e-9)
            assert all(report["phases"][name] > 0 for name in PHASES[:5])
            assert "checkpoint" not in report["phases"]
    cost = case["with_diagnostics"]["cost_seconds"]
    assert set(cost) == set(bench_sides.DIAGNOSED)
    assert min(cost.values()) > 0


def test_loss_and_gradients_equal_trl(found):
    agreement = found["cases"][0]["agreement"]
    assert agreement["agree"]
    assert agreement["parameters"] == 20  # of two layers, the embedding and the last norm
    assert agreement["gradient_difference"] < bench_check.TOLERANCE


def test_every_table_can_be_made_of_what_was_written(found):
    for name, table in bench_tables.TABLES.items():
        if name not in bench_tables.NEEDS:
            heading, *rows = table(found)
            assert rows
            assert all(len(row) == len(heading) for row in rows)


def test_check_sees_another_advantage(tiny_llama, tmp_path):
    case = Case("tiny", str(tiny_llama), 2, 3, 6)
    overrides = {"rlsgd": ["model.scale_advantages=false"], "trl": []}
    kept, settings = bench_sides.check_settings(case, tmp_path / "case", overrides, threads=1)
    bench_agree.run(*settings)
    agreement = bench_check.compare(kept)
    assert not agreement["agree"]
    assert agreement["gradient_difference"] > 0.1


@pytest.fixture
def gradients(tmp_path):
    """Both sides with the same loss and gradients."""
    tensors = {name: torch.randn(6, 5) for name in ("a.weight", "b.weight")}
    for side in ("rlsgd", "trl"):
        bench_check.write_gradients(tmp_path, side, tensors.items())
        (tmp_path / f"{side}.json").write_text('{"loss": 0.25}')
    (tmp_path / "rollout.json").write_text('{"advantages": [1.0, -3.0]}')
    return tmp_path, tensors


def rewrite(folder, name, tensor):
    bench_check.save_file({"gradient": tensor}, folder / "rlsgd" / f"{name}.safetensors")


def test_equal_gradients_agree(gradients):
    folder, _ = gradients
    assert bench_check.compare(folder)["agree"]
    assert bench_check.compare(folder)["gradient_difference"] == 0


@pytest.mark.parametrize("factor", [1.001, math.nan])
def test_a_changed_gradient_fails_the_check(gradients, factor):
    folder, tensors = gradients
    rewrite(folder, "b.weight", factor * tensors["b.weight"])
    agreement = bench_check.compare(folder)
    assert not agreement["agree"]
    if factor == 1.001:
        assert agreement["parameter"] == "b.weight"
        assert agreement["gradient_difference"] == pytest.approx(1e-3, rel=1e-2)


def test_a_changed_loss_or_a_missing_gradient_fails_the_check(gradients):
    folder, _ = gradients
    (folder / "trl.json").write_text('{"loss": 0.251}')
    agreement = bench_check.compare(folder)
    assert not agreement["agree"]
    assert agreement["loss_difference"] == pytest.approx(0.001 / 2)  # the mean size of 1 and -3
    (folder / "trl" / "a.weight.safetensors").unlink()
    with pytest.raises(RuntimeError, match=r"on one side only: \{'a\.weight"):
        bench_check.compare(folder)


# ---- operations


def test_operations_by_hand():
    shape = bench_limit.Shape(layers=2, hidden=4, query=6, key_value=3, inner=8, vocabulary=10)
    # a layer: q and o 4 x 6, k and v 4 x 3, three of 4 x 8, each weight 2 operations a token
    assert shape.body(5) == 2 * 2 * (2 * 24 + 2 * 12 + 3 * 32) * 5
    # two tokens after three others see 4 and 5 keys; scores and values, 6 numbers each
    assert shape.attention(3, 2) == 2 * (2 * 2 * 6) * (4 + 5)
    assert shape.head(7) == 2 * 4 * 10 * 7
    sizes = {"prompt_tokens": [3, 5], "group": 4, "completion_tokens": 6}
    shared = bench_limit.needed(shape, **sizes, shared=True)
    prompts = shape.body(8) + shape.attention(0, 3) + shape.attention(0, 5)
    assert shared["prefill"] == prompts + shape.head(2)
    after = 4 * (shape.attention(3, 5) + shape.attention(5, 5))
    assert shared["decode"] == shape.body(8 * 5) + after + shape.head(8 * 5)
    assert shared["update"] == 3 * (shared["prefill"] + shared["decode"])
    assert shared["total"] == 4 * (shared["prefill"] + shared["decode"])
    separate = bench_limit.needed(shape, **sizes, shared=False)
    assert separate["prefill"] == 4 * shared["prefill"]
    assert separate["decode"] == shared["decode"]


def test_operations_are_those_that_torch_counts(tiny_qwen3):
    """Products with weights; attention's are another operator, which counts the future as well."""
    shape = bench_limit.Shape.of(tiny_qwen3)
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, attn_implementation="eager")
    ids = torch.randint(2, 60, (3, 7))
    with FlopCounterMode(display=False) as forward:
        logits = model(ids, logits_to_keep=4, use_cache=False).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    counted = [defaultdict(int, c.get_flop_counts()["Global"]) for c in (forward, backward)]
    expected = shape.body(3 * 7) + shape.head(3 * 4)
    assert counted[0][torch.ops.aten.mm] == expected
    assert counted[1][torch.ops.aten.mm] == 2 * expected


def test_limit_is_at_the_best_rate():
    found = bench_limit.limit({"prefill": 10, "total": 60}, {"square": 20.0, "decode": 30.0}, 8.0)
    assert found == {"rate": 30.0, "least_seconds": 2.0, "share": 0.25}


# ---- arithmetic of the figures


def test_clock_shares_time_out_to_the_innermost_phase():
    moments = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0])
    clock = Clock(lambda: next(moments))  # 0
    clock.switch("forward")  # 1: one second of other
    with clock.phase("diagnostics"):  # 3: two of forward
        clock.switch("checkpoint")  # 6: three of diagnostics
    # 10: four of checkpoint
    clock.switch("backward")  # 15: five more of forward
    assert clock.read() == {  # 21: six of backward
        "other": 1,
        "forward": 7,
        "diagnostics": 3,
        "checkpoint": 4,
        "backward": 6,
    }


def report(seconds, tokens=10, peak=0, **phases):
    facts = {"groups_alike": 0.0, "peak_bytes": peak, "before_bytes": 100}
    took = {"seconds": seconds, "processor_seconds": 2 * seconds}
    return {**took, "tokens": tokens, "phases": phases, **facts}


def test_ratios_are_of_neighbouring_turns():
    measured = {
        "rlsgd": [report(1.0), report(6.0), report(3.0, peak=300)],
        "trl": [report(4.0), report(8.0), report(10.0, peak=900)],
    }
    ratios = bench_summary.ratios(measured)
    assert ratios["seconds"] == {"median": 0.3, "min": 0.25, "max": 0.75}
    assert ratios["processor_seconds"] == ratios["seconds"]
    assert ratios["peak_bytes"] == 300 / 900
    assert ratios["rise_bytes"] == 200 / 800


@pytest.mark.parametrize("fact", ["prompts", "tokens"])
def test_other_work_is_not_compared(fact):
    same = {"prompts": "digest", "tokens": 24}
    reports = {"rlsgd": [same], "trl": [dict(same)]}
    bench_sides.require_same(reports)
    reports["trl"][-1][fact] = "another"
    with pytest.raises(RuntimeError, match=f"iteration 1: {fact} are"):
        bench_sides.require_same(reports)


def test_diagnostics_cost_their_share():
    diagnosed = {
        "UpdateSparsity": report(9.0, peak=7, diagnostics=4.0),
        "EffectiveRank": report(9.0, peak=5, diagnostics=6.0),
        "checkpoint": report(9.0, peak=6, checkpoint=2.0),
    }
    cadence = {"UpdateSparsity": 10, "EffectiveRank": 20}
    found = bench_summary.with_diagnostics([report(1.0), report(3.0)], diagnosed, cadence)
    assert found["seconds"] == pytest.approx(2.0 + 4.0 / 10 + 6.0 / 20)
    assert found["cost_seconds"]["checkpoint"] == 2.0
    assert found["peak_bytes"] == 7


def test_slope_of_a_power_law():
    sizes = [32, 64, 512]
    assert bench_scaling.slope(sizes, [3.0 * n**1.25 for n in sizes]) == pytest.approx((1.25, 1.0))
    noisy, r_squared = bench_scaling.slope([1, 10, 100], [1, 100, 10])  # logs 0, 2, 1
    assert (noisy, r_squared) == pytest.approx((0.5, 0.25))


def test_scaling_sweeps_vary_one_size():
    for name in bench_scaling.NAMES:
        cases = bench_scaling.cases(name)
        varied = {
            "completions": {case.rows for case in cases},
            "completion tokens": {case.completion_tokens for case in cases},
            "weights": {case.model for case in cases},
        }
        assert {key: len(values) for key, values in varied.items()} == {
            key: len(cases) if key == name else 1 for key in varied
        }


def test_tables_go_between_their_marks():
    sweep = {"name": "weights", "slope": 0.9, "r_squared": 0.99, "points": []}
    for size in (1000, 2000):
        sweep["points"].append({"size": size, "seconds": size / 1000, "tokens_per_second": 5.0})
    text = "before\n<!-- scaling -->\nold\n<!-- end -->\nand <!-- ratios --> kept <!-- end -->\n"
    filled = bench_tables.fill(text, {"sweeps": [sweep]})
    assert "old" not in filled
    assert "| weights | 1,000 | 2,000 | 1.00 s → 2.00 s | 5 → 5 | 0.90 (0.990) |" in filled
    assert filled.endswith("and <!-- ratios --> kept <!-- end -->\n")
    assert bench_tables.fill(filled, {"sweeps": [sweep]}) == filled
    with pytest.raises(ValueError, match="<!-- nothing -->"):
        bench_tables.fill("<!-- nothing --> <!-- end -->", {"sweeps": [], "cases": []})
    with pytest.raises(ValueError, match="needs an"):
        bench_tables.fill("<!-- ratios -->", {"cases": []})


def test_the_page_says_what_the_benchmark_of_deltas_found():
    page = Path("docs/performance.md").read_text()
    found = json.loads(Path("docs/performance/delta.json").read_text())
    for name in ("rlsgd", "weightscope", "weightscope_default"):
        row = found["medians"][name]
        assert f"| {row['mb']:.2f} MB | {row['processor']:.2f} s |" in page
        assert len(found["runs"][name]) == found["repeats"]
    ratio = found["ratios"]["weightscope"]
    assert f"{ratio['size']:.2f} of its size and {ratio['processor']:.2f} of its time" in page
    assert ratio["size"] == found["medians"]["rlsgd"]["mb"] / found["medians"]["weightscope"]["mb"]
