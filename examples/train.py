"""What `rlsgd fit` does, from Python: its checks, its folder, the same digits."""

from functools import partial

from torch.optim import SGD

from rlsgd import GRPO, PromptDataModule, ReasoningGym, train

sums = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2, "operators": ["+"]}
plain = {"allow_parentheses": False, "allow_negation": False}
task = ReasoningGym("basic_arithmetic", config=sums | plain, held_out_fraction=0.15)
model = GRPO(policy="embedded", optimizer=partial(SGD, lr=3e-3), max_completion_tokens=6)
data = PromptDataModule(task, tokenizer="embedded", prompts_per_epoch=8, val_problems=64)
run = train(model, data, max_epochs=3, gradient_clip_val=1.0, accelerator="cpu")
print(f"{run.metrics['update/unchanged_bf16']:.1%} unchanged; all of it in {run.folder}")
