import math

from rlsgd.core.layer_kinds import layer_kind_table


def test_the_table_by_hand():
    rows, kinds, table = layer_kind_table(
        {
            "model.embed_tokens.weight": 0.5,
            "model.layers.0.self_attn.q_proj.weight": 0.1,
            "model.layers.0.mlp.up_proj.weight": 0.2,
            "model.layers.0.mlp.down_proj.weight": 0.4,
            "model.layers.10.mlp.up_proj.weight": 0.9,
            "model.layers.2.mlp.up_proj.weight": 0.7,
            "model.norm.weight": 1.0,
        }
    )
    assert rows == ["0", "2", "10", "outside"]
    assert kinds == ["attention_q", "embedding", "mlp", "norm"]
    nan = math.nan
    expected = [
        [0.1, nan, (0.2 + 0.4) / 2, nan],
        [nan, nan, 0.7, nan],
        [nan, nan, 0.9, nan],
        [nan, 0.5, nan, 1.0],
    ]
    assert str(table) == str(expected)


def test_without_layers_there_is_one_row():
    assert layer_kind_table({"lm_head.weight": 0.5}) == (["outside"], ["head"], [[0.5]])
