"""SGD-LL against its definition: by hand, and by a loop over 50 steps of a language model."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from transformers import AutoModelForCausalLM

from rlsgd.core.distributed import full_parameters
from rlsgd.optimizers import SGDLL
from rlsgd.optimizers.roles import mark_roles, roles
from rlsgd.optimizers.sgd_ll import clip_rows, rms

SETTINGS = {"lr": 0.03, "momentum": 0.9, "head_row_clip": 0.05, "update_rms_clip": 5e-4}
STEPS = 50
HEADS = {"untied": "lm_head.weight", "tied": "model.embed_tokens.weight"}


def model_of(folder):
    """In float64, so that an error of the optimizer cannot hide in rounding."""
    return AutoModelForCausalLM.from_pretrained(folder).double()


def backward(model, step, rows):
    """Cross-entropy of the given rows of a batch of 4 that is another one in each step."""
    tokens = torch.randint(2, 64, (4, 12), generator=torch.Generator().manual_seed(step))[rows]
    model.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()


def reference(model, head):
    """The definition, one tensor and one row at a time; also the shares of what was clipped."""
    momenta = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    lr, beta, c, u = SETTINGS.values()
    shares = []
    for step in range(STEPS):
        backward(model, step, slice(None))
        rows = tensors = 0
        for name, p in model.named_parameters():
            momenta[name] = beta * momenta[name] + (1 - beta) * p.grad
            g = momenta[name].clone()
            if name == head:
                for row in g:
                    if (norm := math.sqrt((row * row).sum())) > c:
                        row *= c / norm
                        rows += 1
            r = math.sqrt((g * g).mean())
            if lr * r > u:
                g *= u / (lr * r)
                tensors += 1
            p.data = p.data - lr * g
        shares.append((rows / 64, tensors / len(momenta)))
    return shares


def train(model, rows=slice(None)):
    mark_roles(model)
    optimizer = SGDLL(model.parameters(), **SETTINGS)
    shares = []
    for step in range(STEPS):
        backward(model, step, rows)
        optimizer.step()
        metrics = optimizer.step_metrics
        names = ("head_rows_clipped_fraction", "tensors_clipped_fraction")
        shares.append(tuple(float(metrics[name]) for name in names))
    return shares


def assert_follows(weights, expected):
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-10, atol=1e-12)  # float64


def two_ranks(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for case in HEADS:
        model = fully_shard(model_of(folder / case))
        shares = train(model, rows=slice(2 * rank, 2 * rank + 2))
        assert_follows(dict(full_parameters(model)), load_file(folder / f"{case}.safetensors"))
        expected = load_file(folder / f"{case}_shares.safetensors")["shares"]
        torch.testing.assert_close(torch.tensor(shares), expected, rtol=1e-6, atol=0)  # float32
    # a row that no rank holds whole
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    clipped, which = clip_rows(distribute_tensor(whole, mesh, [Shard(1)]), 1.0)
    torch.testing.assert_close(clipped.full_tensor(), torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    assert which.tolist() == [True, False]
    dist.destroy_process_group()


@pytest.mark.slow
def test_follows_the_definition_in_one_process_and_in_two(tiny_llama, tiny_llama_untied, tmp_path):
    for case, folder in {"untied": tiny_llama_untied, "tied": tiny_llama}.items():
        (tmp_path / case).symlink_to(folder)
        expected, ours = model_of(folder), model_of(folder)
        shares = reference(expected, HEADS[case])
        assert dict(expected.named_parameters()).keys() >= {HEADS[case]}
        # both clips must matter in both directions, or the test would not see them
        rows, tensors = torch.tensor(shares).unbind(1)
        assert 0 < rows.mean() < 1 and 0 < tensors.mean() < 1
        torch.testing.assert_close(
            torch.tensor(train(ours)), torch.tensor(shares), rtol=1e-6, atol=0
        )
        weights = {name: p.detach() for name, p in expected.named_parameters()}
        assert_follows(dict(full_parameters(ours)), weights)
        save_file(weights, tmp_path / f"{case}.safetensors")
        save_file({"shares": torch.tensor(shares)}, tmp_path / f"{case}_shares.safetensors")
    torch.multiprocessing.spawn(two_ranks, (tmp_path,), nprocs=2, daemon=True)


def head_of(values):
    """A matrix with the role of a head, and its gradient."""
    head = nn.Linear(len(values[0]), len(values), bias=False)
    head.weight.data.zero_()
    head.weight.grad = torch.tensor(values)
    head.get_output_embeddings = lambda: head
    mark_roles(head)
    return head.weight


def test_one_step_by_hand():
    head = head_of([[6.0, 8.0], [0.6, 0.8], [0.0, 0.0]])
    bias, norm = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    bias.grad, norm.grad = torch.tensor([6.0, 8.0]), torch.tensor([0.02, 0.0])
    options = {"lr": 2.0, "momentum": 0.5, "head_row_clip": 1.0}
    optimizer = SGDLL([head, bias, norm], **options, update_rms_clip=math.sqrt(2))
    optimizer.step()
    # rows of (3, 4) and (0.3, 0.4), norms 5 and 0.5; the rms of twice what is left is 0.91 < 1.41
    expected = [[-1.2, -1.6], [-0.6, -0.8], [0.0, 0.0]]
    torch.testing.assert_close(head.data, torch.tensor(expected))
    # twice (3, 4) has an rms of sqrt(50): scaled down to sqrt(2)
    torch.testing.assert_close(bias.data, torch.tensor([-1.2, -1.6]))
    torch.testing.assert_close(norm.data, torch.tensor([-0.02, 0.0]))
    metrics = {name: float(value) for name, value in optimizer.step_metrics.items()}
    assert metrics == {
        "head_rows_clipped_fraction": pytest.approx(1 / 3),
        "tensors_clipped_fraction": pytest.approx(1 / 3),
    }
    # what is clipped is the step and not the average, which halves under a gradient of zero
    for parameter in (head, bias):
        parameter.grad = torch.zeros_like(parameter)
    norm.grad = None
    optimizer.step()
    torch.testing.assert_close(bias.data, 2 * torch.tensor([-1.2, -1.6]))
    assert optimizer.state[bias]["momentum_buffer"].tolist() == [1.5, 2.0]
    torch.testing.assert_close(norm.data, torch.tensor([-0.02, 0.0]))
    assert optimizer.state[norm]["momentum_buffer"].tolist() == pytest.approx([0.01, 0.0])


def test_without_clips_it_is_sgd_with_dampened_momentum():
    ours, theirs = (head_of([[6.0, 8.0], [0.6, 0.8]]) for _ in range(2))
    optimizers = [
        SGDLL([ours], lr=0.25, momentum=0.5, head_row_clip=None, update_rms_clip=None),
        torch.optim.SGD([theirs], lr=0.25, momentum=0.5, dampening=0.5),
    ]
    optimizers[1].state[theirs]["momentum_buffer"] = torch.zeros(2, 2)  # where ours starts
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
    assert optimizers[0].step_metrics == {}


def test_norms_of_bfloat16_are_not_rounded_to_bfloat16():
    row = torch.ones(1, 3, dtype=torch.bfloat16)  # norm 1.7321; it and 1.731 round to 1.7344
    assert clip_rows(row, 1.731)[1].tolist() == [True]
    row[0, 2] = 2.0
    assert float(rms([row])[0]) == pytest.approx(math.sqrt(2.0), abs=1e-6)


def test_a_checkpoint_continues_the_run(tmp_path):
    def steps(weight, optimizer, numbers):
        for number in numbers:
            generator = torch.Generator().manual_seed(number)
            weight.grad = torch.randn(4, 3, generator=generator)
            optimizer.step()

    whole = head_of([[0.0] * 3] * 4)
    optimizer = SGDLL([whole], **SETTINGS)
    steps(whole, optimizer, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed = head_of([[0.0] * 3] * 4)
    resumed.data.copy_(whole)
    other = SGDLL([resumed], **SETTINGS | {"lr": 7.0})
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    steps(whole, optimizer, range(3, 6))
    steps(resumed, other, range(3, 6))
    assert torch.equal(whole, resumed)


def test_the_closure_is_evaluated_and_returned():
    head = head_of([[1.0, 0.0]])
    optimizer = SGDLL([head], **SETTINGS)

    def closure():
        optimizer.zero_grad()
        loss = (3.0 * head).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) == 0.0
    assert optimizer.state[head]["momentum_buffer"].tolist() == [pytest.approx([0.3, 0.3])]


def test_roles_of_a_language_model(tiny_llama, tiny_llama_untied, tiny_gpt2):
    found = {}
    for folder in (tiny_llama, tiny_llama_untied, tiny_gpt2):
        model = AutoModelForCausalLM.from_pretrained(folder)
        mark_roles(model)
        names = {name: sorted(roles(p)) for name, p in model.named_parameters() if roles(p)}
        found[folder.name] = names
    assert found == {
        "llama": {"model.embed_tokens.weight": ["embedding", "head"]},
        "llama_untied": {"model.embed_tokens.weight": ["embedding"], "lm_head.weight": ["head"]},
        "gpt2": {
            "transformer.wte.weight": ["embedding", "head"],
            "transformer.wpe.weight": ["embedding"],
        },
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr -1.0 must not be negative"),
        ({"momentum": 1.0}, "momentum 1.0 must be at least 0 and below 1"),
        ({"head_row_clip": 0.0}, "head_row_clip 0.0 must be above 0"),
        ({"update_rms_clip": -1.0}, "update_rms_clip -1.0 must be above 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^--model.optimizer.init_args.{message}"):
        SGDLL([head_of([[1.0]])], **SETTINGS | settings)


def test_a_model_without_a_head_is_refused_unless_no_row_is_to_be_clipped():
    backbone = nn.Embedding(3, 2)
    mark_roles(backbone)
    with pytest.raises(ValueError, match=r"head_row_clip 0\.05: none of the parameters"):
        SGDLL(backbone.parameters(), **SETTINGS)
    SGDLL(backbone.parameters(), **SETTINGS | {"head_row_clip": None})
    assert not roles(copy.deepcopy(nn.Linear(2, 2)).weight)
