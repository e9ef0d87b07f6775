"""Parameters that are rows of fused tensors: the same forward, step and export as of plain ones."""

import copy

import pytest
import torch
from torch import nn

from rlsgd.models.fused_weights import engine_tensors, fuse_weights
from rlsgd.models.loading import load_policy

IDS = torch.arange(3, 27).view(2, 12)


@pytest.fixture(params=["tiny_llama", "tiny_llama_untied", "tiny_qwen3"])
def plain(request):
    return load_policy(str(request.getfixturevalue(request.param))).eval()


def step(model, optimizer):
    loss = model(input_ids=IDS, labels=IDS).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_steps_are_those_of_plain_weights_bit_for_bit(plain, dtype):
    plain = plain.to(dtype)
    model = copy.deepcopy(plain)
    fused = fuse_weights(model)
    layers = model.config.num_hidden_layers
    assert len(fused) == 2 * layers
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (plain, model)]
    for _ in range(3):
        assert torch.equal(step(plain, optimizers[0]), step(model, optimizers[1]))
    for (name, expected), weight in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, expected), name
    # what an engine reads has taken every step, with nothing sent
    attention = plain.model.layers[0].self_attn
    parts = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    assert torch.equal(fused["model.layers.0.self_attn.qkv_proj.weight"], torch.cat(parts))


def test_an_engines_product_is_the_parts_products(plain):
    fused = fuse_weights(plain)
    mlp, hidden = plain.model.layers[1].mlp, torch.randn(5, plain.config.hidden_size)
    gate, up = (hidden @ fused["model.layers.1.mlp.gate_up_proj.weight"].T).chunk(2, -1)
    torch.testing.assert_close(gate, mlp.gate_proj(hidden))
    torch.testing.assert_close(up, mlp.up_proj(hidden))


def test_one_copy_of_every_weight(plain):
    numel = sum(p.numel() for p in plain.parameters())
    fused = fuse_weights(plain)
    tensors = engine_tensors(plain, fused)
    assert sum(t.numel() for t in tensors.values()) == numel
    memory = {t.untyped_storage().data_ptr() for t in tensors.values()}
    assert {p.untyped_storage().data_ptr() for p in plain.parameters()} == memory
    assert len(memory) == len(tensors)


def test_an_export_is_that_of_plain_weights(plain, tmp_path):
    plain.save_pretrained(tmp_path / "plain")
    fuse_weights(plain)
    plain.save_pretrained(tmp_path / "fused")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "fused")]
    assert files[0] == files[1]


def test_weights_that_cannot_be_one_are_refused(plain):
    attention = plain.model.layers[0].self_attn
    attention.k_proj.weight.requires_grad = False
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.qkv_proj\.weight"):
        fuse_weights(plain)
    attention.k_proj = attention.q_proj
    with pytest.raises(ValueError, match=r"qkv_proj"):
        fuse_weights(nn.ModuleList([attention]))
