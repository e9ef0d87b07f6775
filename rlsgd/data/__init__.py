"""Tasks and texts, and the DataModules that turn them into prompts and batches."""

from rlsgd.data.base import TokenizedDataModule
from rlsgd.data.prompts import PromptDataModule
from rlsgd.data.solutions import SolutionDataModule
from rlsgd.data.tasks import AdaptiveReasoningGym, DatasetTask, ReasoningGym, SmallPrograms, Task
from rlsgd.data.text import TextDataModule

__all__ = [
    "AdaptiveReasoningGym",
    "DatasetTask",
    "PromptDataModule",
    "ReasoningGym",
    "SmallPrograms",
    "SolutionDataModule",
    "Task",
    "TextDataModule",
    "TokenizedDataModule",
]
