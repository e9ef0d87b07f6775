"""Two processes learn from each other's completions and stay at one difficulty."""

from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing

from rlsgd.core.problems import Problem
from rlsgd.data.tasks import AdaptiveReasoningGym
from rlsgd.data.tasks.adaptive import Environment

GROUP = 4
# of each epoch: the correct completions of 4 completions for each prompt, on rank 0 and on rank 1
EPOCHS = [
    ([4, 4, 4, 4], [4, 4, 4, 4]),  # 4 prompts alone are too few; together 32/32: rises
    ([4] * 8, [0] * 8),  # rank 0 alone would rise; together half
    ([0], [4] * 8),  # 32/36 = 0.889, where rank 1 alone would rise
    ([], [4] * 7),  # 7 prompts: too few
    ([1], []),  # and the eighth: 29/32 = 0.906, rises
]
HIGH = [0, 1, 1, 1, 1, 2]


def make_task():
    config = {"min_terms": 2, "max_terms": 2}
    return AdaptiveReasoningGym({"sums": Environment("chain_sum", config)})


def record(task, epoch, correct):
    difficulty = task.difficulties["sums"].high(epoch)
    problem = Problem("", "", {"environment": "sums", "difficulty": difficulty})
    task.record([problem] * len(correct), correct, GROUP, epoch=epoch)


def on_rank(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    task = make_task()
    for epoch, shares in enumerate(EPOCHS):
        record(task, epoch, shares[rank])
    check(task)
    dist.destroy_process_group()


def check(task):
    difficulty = task.difficulties["sums"]
    assert [difficulty.high(epoch) for epoch in range(6)] == HIGH
    assert difficulty.state_dict() == {"initial": 0, "rises": [1, 5], "counts": [0, 0, 0]}
    assert task.metrics(4)["difficulty/sums/accuracy_at_high"] == 29 / 32


def test_two_ranks_agree(tmp_path: Path):
    torch.multiprocessing.spawn(on_rank, (str(tmp_path / "store"),), nprocs=2, daemon=True)


def test_one_process_with_all_completions_agrees_with_them():
    task = make_task()
    for epoch, (first, second) in enumerate(EPOCHS):
        record(task, epoch, first + second)
    check(task)
