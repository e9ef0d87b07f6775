"""A task, a reward, modules and trainers that are as small as they can be and still real."""

import threading

import torch
from lightning.pytorch import Callback, Trainer

from rlsgd.algorithms.rl import RLModule
from rlsgd.core.problems import Problem
from rlsgd.core.types import Microbatch
from rlsgd.data import PromptDataModule
from rlsgd.data.tasks.base import Task
from rlsgd.rewards.base import Reward


class Sums(Task):
    """Every epoch of every seed asks other questions."""

    def train_problems(self, *, seed, epoch, count):
        first = 1000 * (seed % 97) + 100 * epoch
        return [Problem(f"{first + i}+{i}=", str(first + 2 * i)) for i in range(count)]

    def validation_problems(self, count):
        return []

    def test_problems(self, count):
        return []


class EarlyLetters(Reward):
    """The share of letters before n: many different rewards whatever a random model writes."""

    isolated = False

    def score(self, completion, problem):
        return sum("a" <= c < "n" for c in completion) / max(1, len(completion))


class Failing(EarlyLetters):
    """Fails for completions of odd length."""

    def score(self, completion, problem):
        if len(completion) % 2:
            raise RuntimeError("odd")
        return super().score(completion, problem)


def make_data(folder, *, reward=None, **options):
    sizes = {"prompts_per_epoch": 4, "group_size": 4, "val_problems": 0, **options}
    return PromptDataModule(Sums(), str(folder), reward=reward or EarlyLetters(), **sizes)


def make_trainer(folder, **options):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    defaults = {"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False, **quiet}
    return Trainer(default_root_dir=folder, **{**defaults, **options})


def make_module(algorithm, folder, **options):
    """Small, with an optimizer whose steps show."""

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=2.0**-4)

    defaults = {"policy": str(folder), "max_completion_tokens": 6, "optimizer": sgd}
    if issubclass(algorithm, RLModule):  # tests of sharing are elsewhere; it rounds in float32
        defaults["share_prompts"] = False
    return algorithm(**defaults | options)


class Spy(Callback):
    """Keeps the batches, and the weights after every epoch; makes completions of ragged length."""

    def __init__(self):
        self.batches, self.weights = [], []

    def on_fit_start(self, trainer, pl_module):
        pl_module.stop_token_ids = [1, *range(20, 26)]  # end of sequence, and c to h
        self.weights.append(weights(pl_module.policy))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)

    def on_train_epoch_end(self, trainer, pl_module):
        self.weights.append(weights(pl_module.policy))


def weights(policy):
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


def fit(module, folder, tmp_path, *, data=None, ckpt_path=None, **options):
    spy = Spy()
    trainer = make_trainer(tmp_path, callbacks=[spy], **options)
    trainer.fit(module, datamodule=make_data(folder, **(data or {})), ckpt_path=ckpt_path)
    return trainer, spy


def bare(algorithm, folder, **options):
    """A module without a model and a trainer; what it logs is in `logged`, summed over calls."""
    module = make_module(algorithm, folder, **options)
    module.logged = {}

    def log_share(name, share):
        module.logged[name] = module.logged.get(name, 0.0) + float(share.detach())

    module.log_share = log_share
    return module


def with_denominators(module, batch):
    """The batch as one whole minibatch of one rank."""
    batch.denominator, batch.num_tokens = module.denominators(batch)
    return batch


def batch_of(mask, **fields):
    """A microbatch without meaningful tokens, for losses whose log-probabilities are given."""
    shape, unknown = mask.shape, torch.tensor(float("nan"))
    per_row = torch.full(shape[:1], float("nan"))
    return Microbatch(
        input_ids=torch.zeros(shape, dtype=torch.long),
        attention_mask=torch.ones(shape, dtype=torch.bool),
        completion_mask=mask,
        truncated=torch.zeros(shape[0], dtype=torch.bool),
        **{
            "rewards": per_row,
            "advantages": per_row,
            "denominator": unknown,
            "num_tokens": unknown,
            **fields,
        },
    )


class Ranks:
    """Ranks as threads: `run` calls a function on each; collectives wait for all of them."""

    def __init__(self, monkeypatch, modules, world_size=2):
        self.world_size = world_size
        self.barrier = threading.Barrier(world_size, timeout=20)
        self.local = threading.local()
        self.parts = [None] * world_size
        for module in modules:
            for name in ("gathered", "global_sum"):
                monkeypatch.setattr(f"{module}.{name}", getattr(self, name), raising=False)

    def exchange(self, value):
        self.parts[self.local.rank] = value
        self.barrier.wait()
        parts = list(self.parts)
        self.barrier.wait()
        return parts

    def gathered(self, values):
        return [value for part in self.exchange(values) for value in part]

    def global_sum(self, value):
        return sum(self.exchange(value))

    def run(self, function):
        results, errors = [None] * self.world_size, []

        def work(rank):
            self.local.rank = rank
            try:
                results[rank] = function(rank)
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=work, args=(r,)) for r in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results
