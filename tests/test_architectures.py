"""Every architecture: sampled, scored, shared, recomputed and exported as the plain pass says."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlsgd.core.types import Rollouts
from rlsgd.models.calling import call
from rlsgd.models.prompt_sharing import settle_sharing
from rlsgd.models.recomputing import recompute_activations
from rlsgd.models.scoring import completion_logprobs
from rlsgd.rollout.sampler import HFSampler
from tests.helpers.architectures import ARCHITECTURES, tiny_model
from tests.helpers.tiny_models import PAD
from tests.helpers.verdicts import BEGIN, END, HEADER, line_of, row_of

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"  # what the page's table is of
ROWS = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip()
PROMPTS = [[20, 9, 12, 30, 17, 44], [14], [33, 19, 50]]
COMPLETION = 12  # beyond every window and chunk of the tiny models
TOLERANCE = 2e-3  # nats; a token too many or too few shows as 0.01 and more


def plain(model: PreTrainedModel, batch: Rollouts) -> Tensor:
    """[B, T] of every row alone: its ids and nothing else, in eval mode."""
    model.eval()
    found = torch.zeros(batch.input_ids.shape)
    for row, (ids, real) in enumerate(zip(batch.input_ids, batch.attention_mask, strict=True)):
        output = call(model, input_ids=ids[real][None], use_cache=False)
        logprobs = output.logits[0, :-1].log_softmax(-1)
        own = torch.zeros(int(real.sum()))
        own[1:] = logprobs.gather(1, ids[real][1:, None]).squeeze(1)
        found[row, real] = own
    return found * batch.completion_mask


def sampled(model: PreTrainedModel) -> Rollouts:
    return HFSampler(report_logprobs=True).sample(
        model,
        PROMPTS,
        completions_per_prompt=2,
        max_completion_tokens=COMPLETION,
        temperature=1.0,
        stop_token_ids=list(range(8, 14)),
        pad_token_id=PAD,
        seed=0,
    )


def test_the_table_has_every_architecture():
    assert ROWS.startswith(HEADER) and len(ARCHITECTURES) >= 45
    names = [line.split(" | ")[0].removeprefix("| ") for line in ROWS.splitlines()[2:]]
    assert names == list(ARCHITECTURES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_right_or_refused_by_name(name: str, tmp_path: Path):
    model = tiny_model(name)
    state = torch.get_rng_state()
    cells = row_of(name, model)
    assert torch.equal(torch.get_rng_state(), state), "trying a model out draws nothing"
    if f"\ntransformers=={transformers.__version__}\n" in CONSTRAINTS.read_text():
        assert line_of(cells) in ROWS.splitlines()  # other releases have other classes right
    model = tiny_model(name)
    _, class_in_page, how_sampled, how_scored, _, shared, recomputed = cells
    if "refused" in (how_sampled, how_scored):
        with pytest.raises(ValueError, match=rf"{class_in_page.strip('`')}: .*(nats|fails)"):
            completion_logprobs(model, sampled(model), temperature=1.0)
        return
    batch = sampled(model)
    with torch.no_grad():
        expected = plain(model, batch)
    assert batch.sampler_logprobs is not None and batch.completion_mask.sum() > 10
    torch.testing.assert_close(batch.sampler_logprobs, expected, rtol=0, atol=TOLERANCE)

    def compare(expected: tuple[Tensor, list[Tensor]]) -> None:
        model.train()
        logprobs, _ = completion_logprobs(model, batch, temperature=1.0)
        torch.testing.assert_close(logprobs, expected[0], rtol=0, atol=TOLERANCE)
        for one, other in zip(gradients(model, logprobs), expected[1], strict=True):
            scale = max(1.0, float(other.abs().max()))
            torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE * scale)

    values = plain(model, batch)
    reference = values.detach(), gradients(model, values)
    compare(reference)
    assert settle_sharing("auto", [model]) == (shared == "yes")
    compare(reference)
    if shared != "yes":
        with pytest.raises(ValueError, match=r"--model.share_prompts true: "):
            settle_sharing(True, [model])
    settle_sharing("auto", [model])
    if recomputed == "yes":
        recompute_activations(model)
        compare(reference)
    model.save_pretrained(tmp_path)
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(plain(again, batch), expected, rtol=0, atol=TOLERANCE)


def gradients(model: PreTrainedModel, logprobs: Tensor) -> list[Tensor]:
    weights = list(model.parameters())
    slopes = torch.linspace(-1, 2, logprobs.numel()).reshape(logprobs.shape)
    found = torch.autograd.grad((slopes * logprobs).sum(), weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]
