"""Each number against values recovered by hand from the weights and states of a short run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch import Tensor
from transformers import PreTrainedModel

from rlsgd.callbacks import OptimizerDynamics
from rlsgd.models.scoring import completion_logprobs
from rlsgd.optimizers import FusedBackwardSGD, OptimizerContainer
from tests.callbacks.callback_stub import (
    PolicyStub,
    events,
    jsonl,
    loader,
    make_rollouts,
    make_trainer,
    values,
)

STEPS = 4
QUERY = "model.layers.0.self_attn.q_proj.weight"
BIN = 5.8e-3  # half a bin of the histogram that quantiles come from


class Diary(Callback):
    """Copies of weights, gradients and states after every optimizer step."""

    def __init__(self) -> None:
        self.pages: list[dict[str, dict[str, Any]]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        state = trainer.optimizers[0].state
        self.pages.append(
            {
                name: {"w": p.detach().clone(), "g": p.grad.clone()}
                | {k: torch.as_tensor(v).clone() for k, v in state.get(p, {}).items()}
                for name, p in pl_module.policy.named_parameters()
            }
        )

    def all(self, step: int, key: str) -> Tensor:
        return torch.cat([page[key].double().flatten() for page in self.pages[step].values()])


def run(
    folder: Path,
    tmp_path: Path,
    make: Callable[[Any], torch.optim.Optimizer],
    callback: OptimizerDynamics | None = None,
    **settings: Any,
) -> Diary:
    """One step in each epoch; gradients are clipped, so that before and after differ."""
    seed_everything(3)
    diary = Diary()

    def optimizer(policy: PreTrainedModel) -> torch.optim.Optimizer:
        return make(policy.parameters())

    watching = [callback or OptimizerDynamics(), diary]
    trainer = make_trainer(
        tmp_path, watching, epochs=STEPS, **{"gradient_clip_val": 0.5, **settings}
    )
    trainer.fit(PolicyStub(folder, optimizer), loader(1))
    return diary


def last(tmp_path: Path, name: str) -> float:
    return values(tmp_path, f"dynamics/{name}")[-1]


def check_history(tmp_path: Path, before: Tensor, gradient: Tensor, rel: float = 1e-6) -> None:
    ratio = float(before.norm() / gradient.norm())
    cosine = float(before @ gradient / before.norm() / gradient.norm())
    assert last(tmp_path, "history_ratio") == pytest.approx(ratio, rel=rel)
    assert last(tmp_path, "momentum_gradient_cosine") == pytest.approx(cosine, rel=rel, abs=rel)


def test_adamw_against_its_own_states(tiny_llama: Path, tmp_path: Path):
    lr, eps, betas = 1e-3, 1e-8, (0.9, 0.95)
    diary = run(tiny_llama, tmp_path, lambda p: torch.optim.AdamW(p, lr=lr, eps=eps, betas=betas))
    g, m, v = (diary.all(-1, key) for key in ("g", "exp_avg", "exp_avg_sq"))
    assert float(g.norm()) == pytest.approx(0.5, rel=1e-4), "clipped: the step's own gradient"
    check_history(tmp_path, diary.all(-2, "exp_avg"), g)
    # the paper's way back from the state after the step; float32 states are rounded
    check_history(tmp_path, (m - (1 - betas[0]) * g) / betas[0], g, rel=1e-5)
    root = v.sqrt()
    for name, spread in {
        "sqrt_v": root,
        "sqrt_v_corrected": (v / (1 - betas[1] ** STEPS)).sqrt(),
        "effective_lr": lr / (root + eps),
        "effective_lr_corrected": (lr / (1 - betas[0] ** STEPS))
        / ((v / (1 - betas[1] ** STEPS)).sqrt() + eps),
    }.items():
        mean, std = float(spread.mean()), float(spread.std(correction=0))
        assert last(tmp_path, f"{name}_mean") == pytest.approx(mean, rel=1e-6)
        assert last(tmp_path, f"{name}_std") == pytest.approx(std, rel=1e-6)
        assert last(tmp_path, f"{name}_cv") == pytest.approx(std / mean, rel=1e-6)
        for q, key in ((0.01, "p01"), (0.5, "p50"), (0.99, "p99")):
            exact = float(spread.quantile(q, interpolation="higher"))
            assert last(tmp_path, f"{name}_{key}") == pytest.approx(exact, rel=2 * BIN)
    w = diary.all(-1, "w")
    assert last(tmp_path, "weight_to_gradient") == pytest.approx(float(w.norm() / g.norm()))
    assert last(tmp_path, "weight_to_momentum") == pytest.approx(float(w.norm() / m.norm()))
    assert len(values(tmp_path, "dynamics/history_ratio")) == STEPS - 1, "the first has no history"


def test_the_corrected_rate_moves_the_weights_as_adam_did(tiny_llama: Path, tmp_path: Path):
    """Without weight decay the move is the corrected effective rate times m."""
    diary = run(tiny_llama, tmp_path, lambda p: torch.optim.Adam(p, lr=1e-2))
    rate = (1e-2 / (1 - 0.9**STEPS)) / (
        (diary.all(-1, "exp_avg_sq") / (1 - 0.999**STEPS)).sqrt() + 1e-8
    )
    moved = diary.all(-2, "w") - diary.all(-1, "w")
    expected = rate * diary.all(-1, "exp_avg")
    torch.testing.assert_close(moved, expected, rtol=0, atol=3e-7)  # float32 weights around 1
    assert last(tmp_path, "effective_lr_corrected_mean") == pytest.approx(float(rate.mean()))


def test_momentum_sgd_has_a_history_and_no_second_moment(tiny_llama: Path, tmp_path: Path):
    diary = run(tiny_llama, tmp_path, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    check_history(tmp_path, diary.all(-2, "momentum_buffer"), diary.all(-1, "g"))
    record = jsonl(tmp_path / "optimizer_dynamics.jsonl")[-1]
    before, g = diary.pages[-2][QUERY]["momentum_buffer"], diary.pages[-1][QUERY]["g"]
    ratio = float(before.norm() / g.norm())
    assert record["tensors"][QUERY]["history_ratio"] == pytest.approx(ratio, rel=1e-6)
    assert record["kinds"].keys() >= {"attention_q", "mlp", "norm", "embedding"}
    assert record["layers"].keys() == {"0", "1", "None"}
    assert not [key for key in record["total"] if "sqrt_v" in key or "effective" in key]


def test_rmsprop_has_a_second_moment_and_its_buffer_is_no_momentum(
    tiny_llama: Path, tmp_path: Path
):
    diary = run(tiny_llama, tmp_path, lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9))
    root = diary.all(-1, "square_avg").sqrt()
    assert last(tmp_path, "sqrt_v_std") == pytest.approx(float(root.std(correction=0)), rel=1e-6)
    rate = 1e-3 / (root + 1e-8)
    assert last(tmp_path, "effective_lr_mean") == pytest.approx(float(rate.mean()), rel=1e-6)
    assert values(tmp_path, "dynamics/history_ratio") == []
    assert values(tmp_path, "dynamics/effective_lr_corrected_mean") == []


def test_states_inside_a_container_are_found(tiny_llama: Path, tmp_path: Path):
    diary = run(
        tiny_llama,
        tmp_path,
        lambda p: OptimizerContainer([torch.optim.AdamW(list(p), lr=1e-3)]),
        OptimizerDynamics(every_n_epochs=3),
    )
    check_history(tmp_path, diary.all(-2, "exp_avg"), diary.all(-1, "g"))
    assert [r["epoch"] for r in jsonl(tmp_path / "optimizer_dynamics.jsonl")] == [2, 3]


def test_a_shadow_is_what_adam_would_have_kept(tiny_llama: Path, tmp_path: Path):
    callback = OptimizerDynamics(
        every_n_epochs=2, shadow=True, shadow_lr=1e-3, shadow_betas=(0.8, 0.9)
    )
    run(tiny_llama, tmp_path, lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.8, 0.9)), callback)
    total, shadow = (
        jsonl(tmp_path / "optimizer_dynamics.jsonl")[-1][key] for key in ("total", "shadow_total")
    )
    assert total == pytest.approx(shadow, rel=1e-6)
    assert {"sqrt_v_std", "history_ratio", "effective_lr_corrected_p50"} <= total.keys()
    assert last(tmp_path, "shadow_sqrt_v_std") == last(tmp_path, "sqrt_v_std") > 0


def test_rate_before_the_scheduler_acts(tiny_llama: Path, tmp_path: Path):
    """The rate of the measured step, not of the next: it falls to a tenth after every epoch."""

    class Scheduled(PolicyStub):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)]

    diary = Diary()
    trainer = make_trainer(tmp_path, [OptimizerDynamics(), diary], epochs=2)
    trainer.fit(
        Scheduled(tiny_llama, lambda p: torch.optim.RMSprop(p.parameters(), lr=1e-2)), loader(1)
    )
    rates = [1e-2, 1e-3]
    expected = [
        float((rate / (diary.all(i, "square_avg").sqrt() + 1e-8)).mean())
        for i, rate in enumerate(rates)
    ]
    assert values(tmp_path, "dynamics/effective_lr_mean") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_llama_untied"])
def test_head_rows_are_those_of_the_head_alone(
    model: str, tmp_path: Path, request: pytest.FixtureRequest
):
    """Against a policy whose head is a matrix of its own, also where it is tied in the run."""
    folder = request.getfixturevalue(model)
    batches = [make_rollouts(), make_rollouts(["+", "a", "b"], [1.0, 0.0, 0.0])]
    batches[1].input_ids = batches[1].input_ids + 3
    seed_everything(5)
    callback = OptimizerDynamics()
    trainer = make_trainer(tmp_path, [callback], epochs=1, accumulate_grad_batches=2)
    kept = []

    def sgd(policy: PreTrainedModel) -> torch.optim.Optimizer:
        return torch.optim.SGD(policy.parameters(), lr=0.0)

    class Fixed(PolicyStub):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            logprobs, _ = completion_logprobs(self.policy, batch, temperature=1.0)
            return -logprobs.sum()

    class Rows(OptimizerDynamics):
        def measure(self, *args: Any) -> None:
            kept.append(self.rows)
            super().measure(*args)

    trainer = make_trainer(tmp_path, [Rows()], epochs=1, accumulate_grad_batches=2)
    trainer.fit(Fixed(folder, sgd), loader(batches, shuffle=False))
    # by hand: untie the head, and look at its own gradient
    module = Fixed(folder, sgd)
    module.configure_model()
    head: Any = module.policy.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    for batch in batches:
        (module.training_step(batch, 0) / 2).backward()
    ((frequency, norms),) = kept
    torch.testing.assert_close(norms, head.weight.grad.double().norm(dim=1), rtol=1e-4, atol=1e-5)
    counted = torch.zeros(64, dtype=torch.long)
    for batch in batches:
        for token in batch.input_ids[batch.completion_mask]:
            counted[token] += 1
    assert torch.equal(frequency, counted)
    (record,) = jsonl(tmp_path / "optimizer_dynamics.jsonl")
    assert sum(row["classes"] for row in record["head_rows"]) == 64
    assert last(tmp_path, "head_row_norm_max") == pytest.approx(float(norms.max()))


def test_spikes_figures_and_nothing_left_behind(tiny_llama: Path, tmp_path: Path):
    """Norms before clipping: 1 in all steps but one, whose gradient is 7 times as large."""

    class Planted(PolicyStub):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            weight = self.policy.get_parameter(QUERY)
            return weight[0, 0] * (7.0 if self.global_step == 6 else 1.0)

    trainer = make_trainer(tmp_path, [OptimizerDynamics()], epochs=8, gradient_clip_val=0.1)
    sgd = Planted(tiny_llama, lambda p: torch.optim.AdamW(p.parameters(), lr=1e-6))
    trainer.fit(sgd, loader(1))
    assert last(tmp_path, "grad_norm_spike_fraction") == 1 / 3, "5 of 8 are not judged"
    assert last(tmp_path, "grad_norm_largest_ratio") == 7.0
    assert last(tmp_path, "gradient_norm") == pytest.approx(0.1, rel=1e-4), "after clipping"
    tags = events(tmp_path).Tags()
    assert "dynamics/log10_weight_to_gradient_by_layer" in tags["images"]
    assert "dynamics/sqrt_v_log10" in tags["histograms"]
    assert list(tmp_path.glob("scratch-*")) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantiles": [2.0]}, "quantiles must"),
        ({"spike_factor": 1.0}, "spike_factor must"),
        ({"shadow_betas": (0.9, 1.0)}, "shadow_betas must"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=rf"OptimizerDynamics\.{message}"):
        OptimizerDynamics(**settings)


def test_gradients_that_are_gone_are_not_measured_as_none(tiny_llama: Path, tmp_path: Path):
    message = r"^--trainer.callbacks OptimizerDynamics: the optimizer applies gradients during"
    with pytest.raises(ValueError, match=message):
        run(tiny_llama, tmp_path, FusedBackwardSGD, gradient_clip_val=None)
