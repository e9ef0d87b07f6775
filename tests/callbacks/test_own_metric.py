"""The callback that docs/metrics.md shows, as it stands there, in a training run."""

import re
from pathlib import Path
from typing import Any

import torch

from tests.callbacks.callback_stub import PolicyStub, Scripted, loader, make_trainer, values

PAGE = Path("docs/metrics.md").read_text()


def test_the_metric_that_is_shown_is_logged(tiny_llama: Path, tmp_path: Path):
    [code] = re.findall(r"```python\n(# largest\.py.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)

    def set_one(value: float):
        def edit(policy: torch.nn.Module) -> None:
            next(policy.parameters()).view(-1)[3] = value

        return edit

    def scripted(policy: Any) -> torch.optim.Optimizer:
        return Scripted(policy, [set_one(100.0), set_one(-200.0)])

    trainer = make_trainer(tmp_path, [names["LargestWeight"]()], epochs=2)
    trainer.fit(PolicyStub(tiny_llama, scripted), loader(1))
    assert values(tmp_path, "weights/largest") == [100.0, 200.0]
