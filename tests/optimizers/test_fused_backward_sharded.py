"""FusedBackwardSGD on two processes: with FSDP2 the weights of SGD, without sharding a refusal."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD

from rlsgd.core.distributed import full_parameters, global_norm
from rlsgd.optimizers import FusedBackwardSGD

CLIPS = {
    None: lambda parameters: None,
    "value": lambda parameters: clip_grad_value_(parameters, 0.01),
    "tensor-norm": lambda parameters: [clip_grad_norm_([p], 0.05) for p in parameters],
    "norm": lambda parameters: clip_grad_norm_(parameters, 0.1),
}


class Tied(nn.Module):
    """Five rows on two ranks are uneven shards; the layers are reduced apart from the rest."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 3)
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = layer(hidden).tanh()
        return nn.functional.cross_entropy(self.head(hidden), tokens.roll(1))


def sharded() -> Tied:
    model = Tied()
    for layer in model.layers:
        fully_shard(layer)
    return fully_shard(model)  # pyright: ignore[reportReturnType]


def batch(step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
    return torch.randint(5, (6,), generator=generator)


def check_refusal() -> None:
    with pytest.raises(ValueError, match=r"^--trainer\.strategy"):
        FusedBackwardSGD(Tied().parameters())


def check_steps(algorithm: str | None) -> None:
    plain, fused = sharded(), sharded()
    expected = SGD(plain.parameters(), lr=0.5, weight_decay=0.1)
    clip = {None: None, "value": 0.01, "tensor-norm": 0.05, "norm": 0.1}[algorithm]
    ours = FusedBackwardSGD(
        fused.parameters(),
        lr=0.5,
        weight_decay=0.1,
        gradient_clip_val=clip,
        gradient_clip_algorithm=algorithm or "norm",
    )
    live: list[int] = []
    parameters = list(fused.parameters())
    for parameter in parameters:
        assert isinstance(parameter, DTensor)
        parameter.register_post_accumulate_grad_hook(
            lambda _: live.append(sum(p.grad is not None for p in parameters))
        )
    start = copy.deepcopy({name: value for name, value in full_parameters(fused)})
    for step in range(3):
        expected.zero_grad()
        plain(batch(step)).backward()
        norm = global_norm([p.grad for p in plain.parameters() if p.grad is not None])
        CLIPS[algorithm](list(plain.parameters()))
        expected.step()

        def closure(step: int = step) -> torch.Tensor:
            loss = fused(batch(step))
            loss.backward()
            return loss

        ours.step(closure)
        # another order of adding squares over ranks and tensors: a few roundings
        torch.testing.assert_close(ours.gradient_norm(), norm, rtol=1e-6, atol=0)
        assert ours.clipped is (algorithm is not None)
    passes = 2 if algorithm == "norm" else 1
    assert live == [1] * (3 * passes * len(parameters)), "one shard's gradient at a time"
    theirs = dict(full_parameters(plain))
    # without a norm every operation is by element; with one, see above
    tolerance = {"rtol": 1e-6, "atol": 1e-8} if "norm" in (algorithm or "") else {}
    for name, weight in full_parameters(fused):
        torch.testing.assert_close(weight, theirs[name], **(tolerance or {"rtol": 0, "atol": 0}))
        assert not torch.equal(weight, start[name])


def two_ranks(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    check_refusal()
    for algorithm in CLIPS:
        check_steps(algorithm)
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(two_ranks, (str(tmp_path / "store"),), nprocs=2, daemon=True)
