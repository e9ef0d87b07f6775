"""PromptDataModule: tokenized prompts of a task, and the scorer of what is sampled from them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, Literal

from torch.utils.data import DataLoader

from rlsgd.core.distributed import derived_seed
from rlsgd.core.problems import Problem, Prompt, Scores
from rlsgd.data.base import TokenizedDataModule, batches_of_rank, evaluation_loader
from rlsgd.data.lengths import Overlong, check_lengths
from rlsgd.data.notices import RewardNotices
from rlsgd.data.reading import CompletionReader, checked_tags
from rlsgd.data.rendering import PromptRenderer
from rlsgd.data.tasks.base import Split, Task
from rlsgd.rewards.base import Reward
from rlsgd.rewards.function import as_reward
from rlsgd.rewards.scorer import Scorer
from rlsgd.rewards.trial import try_reward
from rlsgd.rollout.loader import ExperienceLoader


class PromptDataModule(TokenizedDataModule):
    """Prompts for training, validation and test, and the reward for their completions.

    Args:
        task: source of the problems.
        tokenizer: path of the model whose tokenizer and chat template are used.
        prompts_per_epoch: prompts of one iteration, over all ranks together.
        group_size: completions sampled for each prompt.
        reward: scores the completions; by default the reward that belongs to the task. Also a plain
            function by its name, such as `my_rewards.shorter`, see `FunctionReward`.
        reward_timeout_seconds: the most that scoring one completion may take.
        reward_failure_score: the reward of a completion whose verifier raised, hung or died.
        allow_unwalled_reward: permission to run verifiers with your own rights without any wall.
        system_prompt: put before the question, as a system message if there is a chat template. A
            chat with a system message of its own keeps that instead.
        chat_template: use of the tokenizer's chat template; by default it is used if there is one.
        template_arguments: further arguments of the template, such as `enable_thinking: false`.
        template_date: the date, as YYYY-MM-DD, of prompts whose template would write today's.
        thinking_tags: the two texts that open and close thinking. Rewards look for the answer after
            the last closing one, and one that is never closed scores 0; null looks everywhere.
        keep_special_tokens: sight of special tokens for rewards. Thinking tags are always seen.
        prompt_suffix: added to the end of every question.
        max_prompt_tokens: the most tokens of a prompt.
        overlong: fate of a longer prompt: an `error`, or left out (`drop`) and counted. All rows
            are checked at the start.
        val_problems: the most validation problems, and the most test problems; 0 for none.
        val_batch_size: prompts in one validation or test batch of each rank.
        seed: seed of the training problems. Validation and test do not depend on it.
    """

    positive_flags: ClassVar[tuple[str, ...]] = (
        "prompts_per_epoch",
        "group_size",
        "max_prompt_tokens",
        "val_batch_size",
    )

    def __init__(
        self,
        task: Task,
        tokenizer: str,
        prompts_per_epoch: int = 32,
        group_size: int = 8,
        reward: Reward | Callable[..., Any] | None = None,
        reward_timeout_seconds: float = 10.0,
        reward_failure_score: float = 0.0,
        allow_unwalled_reward: bool = False,
        system_prompt: str | None = None,
        chat_template: bool | None = None,
        template_arguments: dict[str, Any] | None = None,
        template_date: str = "2024-07-26",
        thinking_tags: tuple[str, str] | None = ("<think>", "</think>"),
        keep_special_tokens: bool = False,
        prompt_suffix: str = "",
        max_prompt_tokens: int = 1024,
        overlong: Overlong = "error",
        val_problems: int = 256,
        val_batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(tokenizer, seed)
        self.task = task
        self.prompts_per_epoch = prompts_per_epoch
        self.group_size = group_size
        self.reward, self.allow_unwalled_reward = reward, allow_unwalled_reward
        self.reward_timeout_seconds = reward_timeout_seconds
        self.reward_failure_score = reward_failure_score
        self.system_prompt = system_prompt
        self.chat_template = chat_template
        self.template_arguments = template_arguments
        self.template_date = template_date
        self.thinking_tags = checked_tags(thinking_tags)
        self.keep_special_tokens = keep_special_tokens
        self.prompt_suffix = prompt_suffix
        self.max_prompt_tokens = max_prompt_tokens
        self.overlong: Overlong = overlong
        self.val_problems = val_problems
        self.val_batch_size = val_batch_size
        self.scorer: Scorer | None = None
        self.will_train = False  # a validation that a fit follows checks the training data as well
        self._reward_was_built = False
        self._held_out: dict[str, list[Prompt]] = {}
        self._measured: set[Split] = set()
        self.notices = RewardNotices()

    @cached_property
    def renderer(self) -> PromptRenderer:
        """Turns problems into prompts."""
        return PromptRenderer(
            self.tokenizer,
            system_prompt=self.system_prompt,
            chat_template=self.chat_template,
            prompt_suffix=self.prompt_suffix,
            max_prompt_tokens=self.max_prompt_tokens,
            template_arguments=self.template_arguments,
            template_date=self.template_date,
        )

    @cached_property
    def reader(self) -> CompletionReader:
        """Turns sampled tokens into the texts that rewards see."""
        return CompletionReader(self.tokenizer, self.thinking_tags, self.keep_special_tokens)

    def prepare_data(self) -> None:
        self.task.prepare()

    def setup(self, stage: str) -> None:
        """Check every flag, cheapest first, render what can be known, and start the scorer.

        The first start is waited for, so that a broken reward is known before a model is loaded. A
        later one, of the fit that follows a validation, goes on while completions are sampled.
        """
        self._check_flags(stage)
        reward = self._wanted_reward()
        self.teardown(stage)
        scorer = Scorer(
            reward,
            timeout_seconds=self.reward_timeout_seconds,
            failure_score=self.reward_failure_score,
            allow_unwalled=self.allow_unwalled_reward,
        )
        try:
            self._check_lengths("fit" if self.will_train else stage)
            if stage == "fit" or self.will_train:
                self._check_first_epoch()
            self._held_out_prompts("validation" if stage in ("fit", "validate") else "test")
            if not self._reward_was_built:
                scorer.wait_until_ready()
                try_reward(scorer, self._first_problems(stage))
        except BaseException:
            scorer.close()
            raise
        self.scorer = scorer
        self._reward_was_built = True

    def teardown(self, stage: str) -> None:
        if self.scorer is not None:
            self.scorer.close()
            self.scorer = None

    def prompts(
        self, epoch: int, *, rank: int = 0, world_size: int = 1, attempt: int = 0
    ) -> list[Prompt]:
        """This rank's contiguous share of the prompts: a function of (seed, epoch, attempt).

        And of what `record` was told of earlier epochs, if the task adapts to the policy. Attempt 0
        is the epoch's own prompts. The later ones are its reserves, for algorithms that replace
        prompts: each as many again, less those whose question was in an earlier attempt of the
        epoch, and less what cannot be divided among the ranks. A reserve may be empty.
        """
        self._share(self.prompts_per_epoch, world_size, flag="prompts_per_epoch")
        problems = self._problems(epoch, attempt)
        share = len(problems) // world_size
        return self._render(problems[rank * share : (rank + 1) * share])

    def _problems(self, epoch: int, attempt: int) -> list[Problem]:
        count = self.prompts_per_epoch
        problems = self.task.train_problems(seed=self.seed, epoch=epoch, count=count)
        seen: set[str] = set()
        for number in range(1, attempt + 1):
            seen.update(problem.question for problem in problems)
            seed = derived_seed(self.seed, "reserve", number)
            drawn = self.task.train_problems(seed=seed, epoch=epoch, count=count)
            problems = [problem for problem in drawn if problem.question not in seen]
        return problems

    def score(self, prompts: list[Prompt], completions: list[str]) -> Scores:
        """Score completion i as an answer to prompt i; new reasons of failures are printed."""
        assert self.scorer is not None, "setup starts the scorer"
        pairs = zip(prompts, completions, strict=True)
        texts = [self.reader.scored(prompt.text, completion) for prompt, completion in pairs]
        scores = self.scorer.score(texts, [prompt.problem for prompt in prompts])
        self.notices.failed(prompts, completions, scores)
        return scores

    def record(self, prompts: list[Prompt], scores: Scores, *, epoch: int) -> None:
        """Let the task learn how many completions of each prompt are correct.

        Stops the run where no completion of any rank could be scored.

        Args:
            prompts: this rank's, of one round of sampling.
            scores: of all their completions, those of a prompt in a row.
            epoch: the present one.
        """
        size = self.group_size
        self.notices.require_scores(f"the rollout of epoch {epoch}")
        self.notices.spread(scores, size, epoch)
        correct = [reward >= scores.full_marks for reward in scores.rewards]
        by_prompt = [sum(correct[i : i + size]) for i in range(0, len(correct), size)]
        self.task.record([prompt.problem for prompt in prompts], by_prompt, size, epoch=epoch)

    def state_dict(self) -> dict[str, Any]:
        """What the task has learned of the policy; nothing of most tasks."""
        state = self.task.state_dict()
        return {"task": state} if state else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.task.load_state_dict(state_dict["task"])

    def benchmarks(self, stage: Literal["val", "test"]) -> list[str | None]:
        """For each problem of an evaluation the benchmark it is of, as its row says, if any."""
        prompts = self._held_out_prompts("validation" if stage == "val" else "test")
        columns = [prompt.problem.metadata.get("columns", {}) for prompt in prompts]
        return [row.get("benchmark") for row in columns]

    def train_dataloader(self) -> ExperienceLoader:
        assert self.trainer is not None
        return ExperienceLoader(self, self.trainer)  # pyright: ignore  # cached properties

    def val_dataloader(self) -> DataLoader | list:
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader | list:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader | list:
        return self._evaluation_loader("test")

    def _render(self, problems: list[Problem]) -> list[Prompt]:
        return [self.renderer.render(problem) for problem in problems]

    def _held_out_prompts(self, split: Literal["validation", "test"]) -> list[Prompt]:
        if split not in self._held_out:
            problems = getattr(self.task, f"{split}_problems")(self.val_problems)
            self._held_out[split] = self._render(problems)
        prompts = self._held_out[split]
        if 0 < len(prompts) < self.world_size:
            raise ValueError(
                f"--data.val_problems: {len(prompts)} {split} problems are too few for "
                f"{self.world_size} ranks; give each of them one at least"
            )
        return prompts

    def _evaluation_loader(self, split: Literal["validation", "test"]) -> DataLoader | list:
        prompts = self._held_out_prompts(split)
        if not prompts:
            return []
        batches = batches_of_rank(prompts, self.val_batch_size, self.rank, self.world_size)
        return evaluation_loader(batches)

    def _check_flags(self, stage: str) -> None:
        self._check_positive()
        if self.val_problems < 0:
            raise ValueError(f"--data.val_problems must not be negative; got {self.val_problems}")
        if stage in ("test", "predict") and self.val_problems == 0:
            raise ValueError("--data.val_problems is 0, which leaves nothing to evaluate")

    def _wanted_reward(self) -> Reward:
        reward = self.reward or self.task.default_reward()
        if reward is None:
            raise ValueError(
                f"--data.reward is missing: the task {type(self.task).__name__} has none of its "
                "own. For example --data.reward ExactAnswer"
            )
        reward = as_reward(reward)
        reward.look_after(self.thinking_tags)
        return reward

    def _check_lengths(self, stage: str) -> None:
        held_out: Split = "validation" if stage in ("fit", "validate") else "test"
        used: tuple[Split, ...] = ("train", held_out) if stage == "fit" else (held_out,)
        new: list[Split] = [split for split in used if split not in self._measured]
        check_lengths(self.task, new, self.renderer, self.overlong, self.val_problems)
        self._measured.update(new)

    def _first_problems(self, stage: str) -> list[Problem]:
        split = "validation" if stage in ("fit", "validate") else "test"
        prompts = self.prompts(0) if stage == "fit" else []
        return [prompt.problem for prompt in prompts + self._held_out_prompts(split)]

    def _check_first_epoch(self) -> None:
        self.prompts(0, rank=self.rank, world_size=self.world_size)
