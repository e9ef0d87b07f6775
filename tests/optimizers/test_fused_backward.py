"""SGD inside backward gives the weights of torch's SGD, with one gradient at a time."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM

from rlsgd.core.types import DivergedError
from rlsgd.optimizers import FusedBackwardSGD, OptimizerContainer

STEPS = 4


class Plain(nn.Module):
    """No parameter is used twice."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.hidden = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 7)
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)

    def loss(self, tokens):
        hidden = self.norm(self.hidden(self.embedding(tokens)).tanh()) * self.frozen
        return nn.functional.cross_entropy(self.head(hidden), tokens.roll(1))


class Tied(Plain):
    """Two uses of one matrix, of which backward reaches one first and the other last."""

    def __init__(self):
        super().__init__()
        self.head.weight = self.embedding.weight


class Repeated(Plain):
    """The hidden layer three times in a row."""

    def loss(self, tokens):
        hidden = self.embedding(tokens)
        for _ in range(3):
            hidden = self.norm(self.hidden(hidden).tanh())
        return nn.functional.cross_entropy(self.head(hidden), tokens.roll(1))


def make(kind):
    torch.manual_seed(0)
    return kind()


def batch(step):
    return torch.randint(7, (20,), generator=torch.Generator().manual_seed(step))


def closure_of(model, step, calls=None):
    def closure():
        loss = model.loss(batch(step))
        loss.backward()
        if calls is not None:
            calls.append(loss.detach())
        return loss

    return closure


def fused(model, **options):
    return FusedBackwardSGD(model.parameters(), **{"lr": 0.5, **options})


def trained_by_torch(kind, clip=lambda parameters: None, **options):
    model = make(kind)
    optimizer = SGD(model.parameters(), **{"lr": 0.5, **options})
    for step in range(STEPS):
        optimizer.zero_grad()
        model.loss(batch(step)).backward()
        clip(list(model.parameters()))
        optimizer.step()
    return model


def trained_fused(kind, **options):
    model = make(kind)
    optimizer = fused(model, **options)
    for step in range(STEPS):
        optimizer.step(closure_of(model, step))
    return model


def assert_same_weights(left, right):
    for (name, ours), theirs in zip(left.named_parameters(), right.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def gradients(model, step=0):
    model = copy.deepcopy(model)
    model.loss(batch(step)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def clip_each(parameters):
    for parameter in parameters:
        if parameter.grad is not None:
            clip_grad_norm_([parameter], 0.05)


# ---- the same weights, bit for bit


@pytest.mark.parametrize("kind", [Plain, Tied, Repeated])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_weights_are_those_of_sgd(kind, weight_decay):
    expected = trained_by_torch(kind, weight_decay=weight_decay)
    assert_same_weights(trained_fused(kind, weight_decay=weight_decay), expected)
    assert not torch.equal(expected.hidden.weight, make(kind).hidden.weight)


@pytest.mark.parametrize("kind", [Plain, Tied, Repeated])
@pytest.mark.parametrize(
    ("clip", "options"),
    [
        (lambda ps: clip_grad_value_(ps, 0.01), {"value": 0.01}),
        (clip_each, {"tensor-norm": 0.05}),
        (lambda ps: clip_grad_norm_(ps, 0.1), {"norm": 0.1}),
    ],
    ids=["value", "tensor-norm", "norm"],
)
def test_clipped_weights_are_those_of_torch(kind, clip, options):
    [(algorithm, limit)] = options.items()
    settings = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}
    expected = trained_by_torch(kind, clip, weight_decay=0.1)
    assert_same_weights(trained_fused(kind, weight_decay=0.1, **settings), expected)
    unclipped = trained_by_torch(kind, weight_decay=0.1)
    assert not torch.equal(expected.hidden.weight, unclipped.hidden.weight)


@pytest.mark.parametrize("algorithm", ["value", "tensor-norm", "norm"])
def test_a_limit_that_is_not_reached_changes_nothing(algorithm):
    ours = trained_fused(Tied, gradient_clip_val=100.0, gradient_clip_algorithm=algorithm)
    assert_same_weights(ours, trained_by_torch(Tied))


def test_a_language_model_in_bfloat16(tiny_llama):
    """Tied embeddings; a norm and a product in bfloat16 round where torch's do."""
    tokens = torch.arange(24).view(2, 12)

    def train(optimizer_of, clip):
        model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
        optimizer = optimizer_of(model.parameters())

        def closure():
            optimizer.zero_grad()
            loss = model(tokens, labels=tokens).loss
            loss.backward()
            clip(model.parameters())
            return loss

        for _ in range(2):
            optimizer.step(closure)
        return model

    expected = train(lambda ps: SGD(ps, lr=0.5), lambda ps: clip_grad_norm_(ps, 0.1))
    ours = train(
        lambda ps: FusedBackwardSGD(ps, lr=0.5, gradient_clip_val=0.1), lambda parameters: None
    )
    assert_same_weights(ours, expected)


def test_learning_rates_are_those_of_the_group_and_of_the_schedule():
    ours, expected = make(Plain), make(Plain)

    def groups(model):
        head = list(model.head.parameters())
        return [
            {"params": [model.embedding.weight, *model.hidden.parameters()]},
            {"params": head, "lr": 0.1, "weight_decay": 0.2},
        ]

    fused_sgd, plain_sgd = FusedBackwardSGD(groups(ours), lr=0.5), SGD(groups(expected), lr=0.5)
    schedules = [LambdaLR(o, lambda step: 0.5**step) for o in (fused_sgd, plain_sgd)]
    for step in range(STEPS):
        fused_sgd.step(closure_of(ours, step))
        expected.zero_grad()
        expected.loss(batch(step)).backward()
        plain_sgd.step()
        ours.zero_grad()  # of the parameters that this optimizer does not have
        for schedule in schedules:
            schedule.step()
    assert_same_weights(ours, expected)
    assert [group["lr"] for group in fused_sgd.param_groups] == [0.5**5, 0.1 * 0.5**4]


def test_state_dict_round_trip_continues_the_run():
    model = make(Tied)
    optimizer = fused(model, lr=0.25)
    optimizer.step(closure_of(model, 0))
    resumed = copy.deepcopy(model)
    other = fused(resumed, lr=1.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step(closure_of(model, 1))
    other.step(closure_of(resumed, 1))
    assert other.param_groups[0]["lr"] == 0.25 and not optimizer.state_dict()["state"]
    assert_same_weights(resumed, model)


# ---- how often, and how much at a time


@pytest.mark.parametrize("kind", [Plain, Tied, Repeated])
def test_a_hook_is_called_once_for_each_tensor_with_its_whole_gradient(kind):
    model = make(kind)
    expected, seen = gradients(model), {}
    handles = [
        p.register_post_accumulate_grad_hook(
            lambda p, name=name: seen.setdefault(name, []).append(p.grad.clone())
        )
        for name, p in model.named_parameters()
        if p.requires_grad
    ]
    fused(model).step(closure_of(model, 0))
    assert len(handles) > len(seen) > 5, "one has no gradient"
    assert seen.keys() == expected.keys()
    for name, values in seen.items():
        assert len(values) == 1 and torch.equal(values[0], expected[name]), name


@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.1}], ids=["one", "two-passes"])
def test_one_gradient_exists_at_a_time(options):
    model, live = make(Tied), []
    parameters = list(model.parameters())

    def count(_):
        live.append(sum(p.grad.nbytes for p in parameters if p.grad is not None))

    for parameter in parameters:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(count)
    fused(model, **options).step(closure_of(model, 0))
    sizes = [gradient.nbytes for gradient in gradients(model).values()]
    assert sorted(live) == sorted(sizes * (2 if options else 1)), "each by itself"
    assert all(parameter.grad is None for parameter in parameters)


def test_the_closure_runs_twice_only_where_the_norm_of_all_is_clipped():
    for algorithm, passes in [("value", 1), ("tensor-norm", 1), ("norm", 2)]:
        model, calls = make(Tied), []
        optimizer = fused(model, gradient_clip_val=0.1, gradient_clip_algorithm=algorithm)
        with torch.no_grad():
            loss = optimizer.step(closure_of(model, 0, calls))
        assert len(calls) == passes and all(torch.equal(call, loss) for call in calls)


def test_a_norm_measured_in_advance_is_not_measured_again():
    model, calls = make(Tied), []
    optimizer = fused(model, gradient_clip_val=0.1)
    for step in range(2):
        before = copy.deepcopy(model)
        optimizer.measure_norm(closure_of(model, step, calls))
        assert_same_weights(model, before)
        optimizer.step(closure_of(model, step, calls))
    assert len(calls) == 4
    expected = make(Tied)
    other = fused(expected, gradient_clip_val=0.1)
    for step in range(2):
        other.step(closure_of(expected, step))
    assert_same_weights(model, expected)


@pytest.mark.parametrize(
    ("algorithm", "measure"),
    [("norm", "total"), ("value", "largest"), ("tensor-norm", "largest-norm")],
)
def test_norm_before_clipping_and_whether_anything_was_clipped(algorithm, measure):
    found = gradients(make(Tied)).values()
    total = torch.nn.utils.get_total_norm(list(found))
    measures = {
        "total": total,
        "largest": max(gradient.abs().max() for gradient in found),
        "largest-norm": max(gradient.norm() for gradient in found),
    }
    limit = float(measures[measure])
    for factor, clipped in [(0.999, True), (1.001, False)]:
        model = make(Tied)
        settings = {"gradient_clip_val": factor * limit, "gradient_clip_algorithm": algorithm}
        optimizer = fused(model, **settings)
        optimizer.step(closure_of(model, 0))
        assert optimizer.clipped is clipped
        assert torch.equal(optimizer.gradient_norm(), total)


# ---- refusals


def test_a_gradient_that_is_not_finite_is_not_applied():
    model = make(Plain)
    start = copy.deepcopy(model)
    model.hidden.bias.register_hook(lambda gradient: gradient * torch.nan)
    optimizer = fused(model)
    optimizer.names = {p: name for name, p in model.named_parameters()}
    with pytest.raises(DivergedError, match=r"of hidden\.bias is nan.* tensors that backward"):
        optimizer.step(closure_of(model, 0))
    assert torch.equal(model.hidden.bias, start.hidden.bias)
    assert torch.equal(model.embedding.weight, start.embedding.weight), "backward got no further"
    assert not torch.equal(model.head.weight, start.head.weight), "it had its step"


def test_with_two_passes_a_norm_that_is_not_finite_changes_nothing():
    model = make(Plain)
    start = copy.deepcopy(model)
    model.hidden.bias.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(DivergedError, match="weights are left as they were"):
        fused(model, gradient_clip_val=1.0).step(closure_of(model, 0))
    assert_same_weights(model, start)


def test_a_step_without_a_closure_is_refused():
    with pytest.raises(RuntimeError, match="pass it a closure"):
        fused(make(Plain)).step()


def test_gradients_of_an_earlier_backward_pass_are_refused():
    model = make(Plain)
    model.loss(batch(0)).backward()
    with pytest.raises(RuntimeError, match="cannot accumulate"):
        fused(model).step(closure_of(model, 1))


def test_a_second_backward_pass_in_a_step_is_refused():
    model = make(Plain)

    def closure():
        model.loss(batch(0)).backward()
        model.loss(batch(1)).backward()

    with pytest.raises(RuntimeError, match=r"second gradient of tensor 8 of shape \(7,\)"):
        fused(model).step(closure)


def test_autograd_notices_a_weight_that_it_still_needs():
    """The weight is used once with a gradient and once without, so it changes before its time."""
    weight = nn.Parameter(torch.ones(3))
    other = nn.Parameter(torch.ones(3))

    def closure():
        hidden = other * weight.detach()
        (hidden * weight).sum().backward()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        FusedBackwardSGD([weight, other], lr=0.1).step(closure)


def test_another_optimizer_beside_it_is_refused():
    model = make(Plain)
    parts = [fused(model.hidden), SGD(model.head.parameters(), lr=0.1)]
    with pytest.raises(ValueError, match=r"^--model\.optimizer FusedBackwardSGD"):
        OptimizerContainer(parts)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"weight_decay": -0.1},
        {"gradient_clip_val": 0.0},
        {"gradient_clip_algorithm": "global"},
    ],
    ids=str,
)
def test_settings_that_make_no_sense(options):
    [name] = options
    with pytest.raises(ValueError, match=f"^--model.optimizer.init_args.*{name}"):
        fused(make(Plain), **options)
