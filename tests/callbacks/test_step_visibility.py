from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlsgd.callbacks import StepVisibility
from rlsgd.core.types import DivergedError
from tests.callbacks.callback_stub import (
    PolicyStub,
    Scripted,
    jsonl,
    loader,
    logged,
    make_trainer,
    values,
)

QUERY = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


def numel(folder: Path) -> int:
    return sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())


def train(folder: Path, edits: list, tmp_path: Path, callback: StepVisibility, **settings: Any):
    """One optimizer step in each epoch."""
    trainer = make_trainer(tmp_path, [callback], epochs=len(edits))
    resume = settings.pop("ckpt_path", None)
    trainer.fit(
        PolicyStub(folder, lambda p: Scripted(p, edits), **settings), loader(1), ckpt_path=resume
    )
    return trainer


def setting(value: float):
    def edit(policy: PreTrainedModel) -> None:
        policy.get_parameter(NORM)[7] = value

    return edit


def nothing(_policy: PreTrainedModel) -> None: ...


def moving(amount: float):
    def edit(policy: PreTrainedModel) -> None:
        policy.get_parameter(NORM)[7] += amount

    return edit


def test_every_number_of_known_steps(tiny_llama: Path, tmp_path: Path):
    """One weight goes to 1, then up in quarters of an ulp, of which the second and fourth show."""
    quarter = 2.0**-9
    edits = [setting(1.0), *[moving(quarter)] * 4, nothing, moving(-4 * quarter), nothing]
    train(tiny_llama, edits, tmp_path, StepVisibility(quantiles=[0.5, 1.0]))
    count = numel(tiny_llama)
    # at 1 + 2 quarters the tie goes to the even 1; only from the third on the view is 1 + 4
    changed = [1, 0, 0, 1, 0, 0, 1, 0]
    absorbed = [0, 1, 1, 0, 1, 0, 0, 0]
    unmoved = [1 - (c + a) / count for c, a in zip(changed, absorbed, strict=True)]
    assert values(tmp_path, "visibility/step_changed_bf16") == [c / count for c in changed]
    assert values(tmp_path, "visibility/step_absorbed") == [a / count for a in absorbed]
    assert values(tmp_path, "visibility/step_unmoved") == pytest.approx(unmoved, abs=1e-15)
    lengths = values(tmp_path, "visibility/step_length")
    assert lengths[1:] == [quarter] * 4 + [0.0, 4 * quarter, 0.0]
    # a quarter of an ulp is half of half an ulp; quantiles are as fine as their bins
    largest = values(tmp_path, "visibility/step_ratio_p100")
    assert largest[1:] == pytest.approx([0.5] * 4 + [0.0, 2.0, 0.0], rel=6e-3)
    assert values(tmp_path, "visibility/step_ratio_p50") == [0.0] * 8
    steps = [step for _, step, _ in logged(tmp_path, "visibility/step_changed_bf16")]
    assert steps == list(range(1, 9))
    # windows of two steps: (set, +1), (+2, +3), (+4, nothing), (back, nothing)
    pairs = [(s, v * count) for _, s, v in logged(tmp_path, "visibility/steps2_changed_bf16")]
    assert pairs == [(2, 1), (4, 1), (6, 0), (8, 1)]
    pairs = [(s, v * count) for _, s, v in logged(tmp_path, "visibility/steps2_absorbed")]
    assert pairs == [(2, 0), (4, 0), (6, 1), (8, 0)]
    # of four: one up to three quarters, and one from there back
    assert values(tmp_path, "visibility/steps4_changed_bf16") == [1 / count] * 2
    assert values(tmp_path, "visibility/steps4_length")[1] == 3 * quarter
    assert values(tmp_path, "visibility/steps8_changed_bf16") == [1 / count]
    # against the start, the weight has moved from the first step on
    assert values(tmp_path, "visibility/drift_changed_bf16") == [1 / count] * 8
    start = float(AutoModelForCausalLM.from_pretrained(tiny_llama).get_parameter(NORM)[7])
    jump = abs(1.0 - start)
    displacement = values(tmp_path, "visibility/drift_length")
    places = [1.0 + q * quarter for q in (0, 1, 2, 3, 4, 4, 0, 0)]
    assert displacement == [pytest.approx(abs(place - start), rel=1e-12) for place in places]
    path = values(tmp_path, "visibility/path_length")
    assert path == pytest.approx([jump + q * quarter for q in (0, 1, 2, 3, 4, 4, 8, 8)], rel=1e-12)
    walk = values(tmp_path, "visibility/random_walk_length")
    assert walk[-1] == pytest.approx((jump**2 + 20 * quarter**2) ** 0.5, rel=1e-12)
    coherence = values(tmp_path, "visibility/coherence")
    assert coherence[0] == 1.0
    assert coherence[-1] == pytest.approx(jump / (jump + 8 * quarter), rel=1e-12)
    assert values(tmp_path, "visibility/displacement_over_random_walk")[-1] == pytest.approx(
        jump / walk[-1], rel=1e-12
    )


def test_the_file_has_the_kinds(tiny_llama: Path, tmp_path: Path):
    train(tiny_llama, [setting(1.0), moving(2.0**-9)], tmp_path, StepVisibility())
    _, second = jsonl(tmp_path / "step_visibility.jsonl")
    assert (second["epoch"], second["global_step"]) == (1, 2)
    assert second["step"]["norm"]["absorbed"] == 1 / (5 * 32)
    assert second["step"]["mlp"]["unmoved"] == 1.0
    assert second["drift"]["norm"]["changed_bf16"] == 1 / (5 * 32)
    assert second["path"]["steps_between_corners"] == 1
    assert second.keys() >= {"step", "steps2", "drift"} and "steps4" not in second


def test_the_cadence_opens_a_window_just_before(tiny_llama: Path, tmp_path: Path):
    """Step n moves the weight by n: a window of k steps that ends at n moved it by a sum of k."""
    edits = [moving(float(n)) for n in range(1, 13)]
    seen = []

    class Watched(StepVisibility):
        def open_windows(self, trainer: Any, pl_module: Any) -> None:
            super().open_windows(trainer, pl_module)
            seen.append(len(list(tmp_path.glob("scratch-*/*"))))

    callback = Watched(every_n_steps=3, horizons=[1, 2, 4, 6])
    train(tiny_llama, edits, tmp_path, callback)

    def moves(name: str) -> list[tuple[int, float]]:
        return [(s, round(v)) for _, s, v in logged(tmp_path, f"visibility/{name}_length")]

    assert moves("step") == [(3, 3), (6, 6), (9, 9), (12, 12)]
    assert moves("steps2") == [(3, 5), (6, 11), (9, 17), (12, 23)]
    assert moves("steps4") == [(6, 3 + 4 + 5 + 6), (12, 9 + 10 + 11 + 12)]
    assert moves("steps6") == [(6, 21), (12, 57)]
    assert moves("drift") == [(3, 6), (6, 21), (9, 45), (12, 78)]
    path = [(s, round(v)) for _, s, v in logged(tmp_path, "visibility/path_length")]
    assert path == [(6, 21), (12, 78)], "6 is the only horizon without gaps; none ends at 9"
    assert max(seen) == 4, "one copy for each horizon"
    assert list(tmp_path.glob("scratch-*")) == []


def test_accumulated_batches_are_no_steps(tiny_llama: Path, tmp_path: Path):
    trainer = make_trainer(
        tmp_path, [StepVisibility(horizons=[1])], epochs=2, accumulate_grad_batches=3
    )
    trainer.fit(PolicyStub(tiny_llama, lambda p: Scripted(p, [moving(1.0)] * 4)), loader(4))
    assert [s for _, s, _ in logged(tmp_path, "visibility/step_length")] == [1, 2, 3, 4]
    assert values(tmp_path, "visibility/path_length") == pytest.approx([1, 2, 3, 4], rel=1e-6)


@pytest.mark.parametrize(("end", "continues"), [(2, True), (3, False)])
def test_a_resumed_path_goes_on_where_it_has_no_gap(
    tiny_llama: Path, tmp_path: Path, end: int, continues: bool
):
    callback = StepVisibility(every_n_steps=2, horizons=[2])
    first = train(tiny_llama, [moving(1.0)] * end, tmp_path / "first", callback)
    first.save_checkpoint(tmp_path / "last.ckpt")
    edits = [moving(1.0)] * 6
    again = StepVisibility(every_n_steps=2, horizons=[2])
    train(tiny_llama, edits, tmp_path / "second", again, ckpt_path=tmp_path / "last.ckpt")
    path = [(s, round(v)) for _, s, v in logged(tmp_path / "second", "visibility/path_length")]
    assert path == ([(4, 4), (6, 6)] if continues else [])
    drift = [s for _, s, _ in logged(tmp_path / "second", "visibility/drift_length")]
    assert drift == [4, 6]


def test_steps_that_rounding_absorbs_one_by_one_show_together(tiny_llama: Path, tmp_path: Path):
    """Four equal steps of 5/16 of half an ulp: the first three are absorbed, all four show."""

    def begin(policy: PreTrainedModel) -> None:
        policy.get_parameter(QUERY).fill_(1.0)

    def creep(policy: PreTrainedModel) -> None:
        policy.get_parameter(QUERY).add_(2.0**-8 * 5 / 16)

    callback = StepVisibility(horizons=[1, 4])
    train(tiny_llama, [*[begin] * 4, *[creep] * 4], tmp_path, callback)
    share = 1024 / numel(tiny_llama)
    assert values(tmp_path, "visibility/step_changed_bf16")[4:] == [0, 0, 0, share]
    assert values(tmp_path, "visibility/step_absorbed")[4:] == [share, share, share, 0]
    assert values(tmp_path, "visibility/step_below_half_ulp")[4:] == [share] * 4
    assert values(tmp_path, "visibility/steps4_changed_bf16")[1] == share


def test_weights_that_are_not_finite_have_diverged(tiny_llama: Path, tmp_path: Path):
    with pytest.raises(DivergedError, match=r"norm\.weight is no longer finite .* step 1\..*--mod"):
        train(tiny_llama, [setting(torch.nan)], tmp_path, StepVisibility())
    assert list(tmp_path.glob("scratch-*")) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be at least 1"),
        ({"horizons": [0, 1]}, "horizons must be"),
        ({"horizons": []}, "horizons must be"),
        ({"quantiles": [0.0]}, "quantiles must"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=rf"StepVisibility\.{message}"):
        StepVisibility(**settings)
