"""The critic's values against each row computed alone, unpadded, token by token."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaModel, PreTrainedConfig

from rlsgd.core.types import TokenBatch
from rlsgd.models.loading import load_policy
from rlsgd.models.value_model import ValueModel, load_value_model
from tests.distributed.fits import FixedSampler, fit
from tests.helpers.architectures import tiny_model as tiny_model_of

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 rounding of two layers, batched against alone
PROMPTS = [[5, 9, 12], [7], [20, 3, 4, 11]]
COMPLETIONS = [[8, 1], [30, 31, 32], [1]]


def batch_of(prompts, completions, filler=0):
    """Prompts padded on the left, completions on the right."""
    width, length = max(map(len, prompts)), max(map(len, completions))
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        left, right = width - len(prompt), length - len(completion)
        ids = [filler] * left + prompt + completion + [filler] * right
        attended = [0] * left + [1] * (len(prompt) + len(completion)) + [0] * right
        counted = [0] * width + [1] * len(completion) + [0] * right
        rows.append((ids, attended, counted))
    ids, attended, counted = map(torch.tensor, zip(*rows, strict=True))
    return TokenBatch(ids, attended.bool(), counted.bool())


@pytest.fixture
def critic(tiny_model):
    """A critic with a head that is not zero."""
    model = load_value_model(str(tiny_model), shared_backbone=False, hidden_size=32)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        nn.init.normal_(model.head.weight)
        nn.init.normal_(model.head.bias)
    return model


def values_alone(critic, tiny_model, prompt, completion):
    """Value before each completion token and after the last, from a model loaded apart."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    ids = torch.tensor([prompt + completion])
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    all_values = [float(critic.head.weight[0] @ h + critic.head.bias[0]) for h in hidden]
    return all_values[len(prompt) - 1 : -1], all_values[-1]


@torch.no_grad()
def test_values_belong_to_the_state_before_each_token(critic, tiny_model):
    batch = batch_of(PROMPTS, COMPLETIONS)
    values, last_values = critic(load_policy(str(tiny_model)), batch)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        expected, after = values_alone(critic, tiny_model, prompt, completion)
        mask = batch.completion_mask[row]
        torch.testing.assert_close(values[row][mask], torch.tensor(expected), **CLOSE)
        torch.testing.assert_close(last_values[row], torch.tensor(after), **CLOSE)
    assert torch.equal(values[~batch.completion_mask], torch.zeros(15))
    assert values[batch.completion_mask].std() > 0.1


@torch.no_grad()
def test_value_does_not_know_its_own_token(critic, tiny_model):
    policy = load_policy(str(tiny_model))
    changed = [[8, 1], [30, 40, 32], [1]]
    before, _ = critic(policy, batch_of(PROMPTS, COMPLETIONS))
    after, _ = critic(policy, batch_of(PROMPTS, changed))
    assert torch.equal(before[1, :6], after[1, :6])  # token 5, the changed one, included
    assert abs(before[1, 6] - after[1, 6]) > 1e-3


@torch.no_grad()
def test_padding_does_not_matter(critic, tiny_model):
    policy = load_policy(str(tiny_model))
    ours, our_last = critic(policy, batch_of(PROMPTS, COMPLETIONS))
    other, other_last = critic(policy, batch_of(PROMPTS, COMPLETIONS, filler=17))
    assert torch.equal(ours, other) and torch.equal(our_last, other_last)
    wider, wider_last = critic(policy, batch_of([*PROMPTS, [2] * 7], [*COMPLETIONS, [3] * 6]))
    mask = batch_of(PROMPTS, COMPLETIONS).completion_mask
    wide_mask = batch_of([*PROMPTS, [2] * 7], [*COMPLETIONS, [3] * 6]).completion_mask[:3]
    torch.testing.assert_close(wider[:3][wide_mask], ours[mask], **CLOSE)
    torch.testing.assert_close(wider_last[:3], our_last, **CLOSE)


def test_shared_backbone_reads_the_policy(critic, tiny_model):
    policy = load_policy(str(tiny_model))
    batch = batch_of(PROMPTS, COMPLETIONS)
    shared = load_value_model(str(tiny_model), shared_backbone=True, hidden_size=32)
    shared.head.load_state_dict(critic.head.state_dict())
    own_values, own_last = critic(policy, batch)
    shared_values, shared_last = shared(policy, batch)
    torch.testing.assert_close(shared_values, own_values, rtol=0, atol=1e-6)
    torch.testing.assert_close(shared_last, own_last, rtol=0, atol=1e-6)
    assert [name for name, _ in shared.named_parameters()] == ["head.weight", "head.bias"]
    shared_values.sum().backward()
    assert policy.get_input_embeddings().weight.grad.abs().max() > 0


def test_first_values_are_zero_and_the_first_gradient_is_the_heads(tiny_model):
    critic = load_value_model(str(tiny_model), shared_backbone=False, hidden_size=32)
    values, last_values = critic(load_policy(str(tiny_model)), batch_of(PROMPTS, COMPLETIONS))
    assert torch.equal(values, torch.zeros(3, 7)) and torch.equal(last_values, torch.zeros(3))
    (values - batch_of(PROMPTS, COMPLETIONS).completion_mask.float()).square().sum().backward()
    assert critic.head.bias.grad.item() == -12.0  # 6 tokens, each 2 * (0 - 1)
    assert critic.head.weight.grad.abs().max() > 0
    gradients = [p.grad for p in critic.backbone.parameters() if p.grad is not None]
    assert gradients and all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


def test_dropout_is_off_and_weights_are_the_policys(tiny_model):
    policy = load_policy(str(tiny_model))
    critic = load_value_model(str(tiny_model), shared_backbone=False, hidden_size=32)
    ours = dict(critic.backbone.named_parameters())
    theirs = dict(policy.base_model.named_parameters())
    assert critic.training and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(ours[name] is not theirs[name] for name in ours)
    assert {m.p for m in critic.modules() if isinstance(m, nn.Dropout)} <= {0.0}


class PoisonedBackbone(nn.Module):
    """Hidden states that are one trained vector at each token and poison at every padding."""

    def __init__(self, poison):
        super().__init__()
        self.vector, self.poison = nn.Parameter(torch.tensor([2.0, -1.0])), poison
        self.config = PreTrainedConfig()

    def get_input_embeddings(self):
        return nn.Embedding(64, 2)

    def get_output_embeddings(self):
        return None

    def forward(self, input_ids, attention_mask=None):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        clean = self.vector.expand(*input_ids.shape, 2)
        hidden = torch.where(attention_mask[..., None] == 1, clean, self.poison)
        return type("Output", (), {"last_hidden_state": hidden})


@pytest.mark.parametrize("poison", [1e3, torch.inf, torch.nan])
def test_hidden_states_at_padding_reach_neither_value_nor_gradient(poison):
    critic = ValueModel(PoisonedBackbone(poison), 2)
    critic.head.weight.data = torch.tensor([[3.0, 5.0]])
    values, last_values = critic(None, batch_of(PROMPTS, COMPLETIONS))
    mask = batch_of(PROMPTS, COMPLETIONS).completion_mask
    assert torch.equal(values, mask.float()) and torch.equal(last_values, torch.ones(3))
    values.sum().backward()  # 6 tokens, each 3 * 2 - 5 * 1 = 1
    assert critic.head.weight.grad.tolist() == [[12.0, -6.0]]
    assert critic.backbone.vector.grad.tolist() == [18.0, 30.0]


def test_head_is_float32_under_autocast():
    critic = ValueModel(PoisonedBackbone(0.0), 2)
    critic.head.bias.data.fill_(1.0 + 2**-12)  # not a bfloat16 number
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, _ = critic(None, batch_of(PROMPTS, COMPLETIONS))
    assert values.dtype == torch.float32 and values.max().item() == 1.0 + 2**-12


# ---- tried out before it is used


class MixedRows(LlamaModel):
    """A backbone whose rows see each other."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, **others):
        output = super().forward(input_ids, attention_mask, position_ids, **others)
        others = output.last_hidden_state.mean(0, keepdim=True)
        output.last_hidden_state = output.last_hidden_state + 0.1 * others
        return output


class OtherWhenRecomputed(LlamaModel):
    """A backbone that computes something else while it recomputes activations."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, **others):
        output = super().forward(input_ids, attention_mask, position_ids, **others)
        if self.is_gradient_checkpointing and self.training:
            output.last_hidden_state = output.last_hidden_state.roll(1, -1)
        return output


def backbone_of(tiny_llama, backbone_class):
    return backbone_class.from_pretrained(tiny_llama, attention_dropout=0.0)


def test_a_backbone_whose_rows_mix_is_refused_by_class_flag_and_difference(tiny_llama):
    critic = ValueModel(backbone_of(tiny_llama, MixedRows), 32)
    with pytest.raises(
        ValueError,
        match=r"^--model\.policy: MixedRows: the critic on rows padded on the right differs from "
        r"the plain pass by 0\.\d+ of the largest value in rows of 9 tokens .* such as GRPO$",
    ):
        critic(None, batch_of(PROMPTS, COMPLETIONS))


def test_a_backbone_that_recomputes_something_else_is_refused(tiny_llama):
    backbone = backbone_of(tiny_llama, OtherWhenRecomputed)
    critic, batch = ValueModel(backbone, 32).train(), batch_of(PROMPTS, COMPLETIONS)
    critic(None, batch)
    backbone.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(
        ValueError,
        match=r"^--model\.activation_checkpointing true: OtherWhenRecomputed: recomputing the "
        r"critic's activations differs from the plain pass by .*; set it to false$",
    ):
        critic(None, batch)
    well_behaved = backbone_of(tiny_llama, LlamaModel)
    well_behaved.gradient_checkpointing_enable({"use_reentrant": False})
    ValueModel(well_behaved, 32).train()(None, batch)


@pytest.mark.parametrize("shared", [False, True])
def test_a_model_that_left_padding_changes_is_read_from_the_left(shared):
    policy = tiny_model_of("recurrent-gemma")
    critic = ValueModel(None if shared else policy.base_model, 32)
    nn.init.normal_(critic.head.weight)
    batch = batch_of(PROMPTS, COMPLETIONS)
    with pytest.warns(UserWarning, match="its rows are moved to the left for the critic"):
        values, last_values = critic(policy, batch)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        output = policy.base_model(torch.tensor([prompt + completion]), use_cache=False)
        alone = critic.value_of(output.last_hidden_state[0])
        mask = batch.completion_mask[row]
        torch.testing.assert_close(values[row][mask], alone[len(prompt) - 1 : -1], **CLOSE)
        torch.testing.assert_close(last_values[row], alone[-1], **CLOSE)


def test_ppo_tries_its_critic_before_the_first_rollout(tiny_llama, tmp_path, monkeypatch):
    def load(path, **_):
        return ValueModel(backbone_of(path, MixedRows), 32)

    monkeypatch.setattr("rlsgd.algorithms.actor_critic.load_value_model", load)
    monkeypatch.setattr(FixedSampler, "sample", pytest.fail)
    with pytest.raises(ValueError, match=r"^--model\.policy: MixedRows: the critic on rows"):
        fit("ppo", tiny_llama, tmp_path)
