"""Where problems come from: endless generators and data sets on record."""

from rlsgd.data.tasks.adaptive import AdaptiveReasoningGym
from rlsgd.data.tasks.base import Task
from rlsgd.data.tasks.dataset import DatasetTask
from rlsgd.data.tasks.reasoning_gym import ReasoningGym
from rlsgd.data.tasks.small_programs import SmallPrograms

__all__ = ["AdaptiveReasoningGym", "DatasetTask", "ReasoningGym", "SmallPrograms", "Task"]
