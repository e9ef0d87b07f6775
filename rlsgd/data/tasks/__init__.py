"""Where problems come from: endless generators and data sets on record."""

from rlsgd.data.tasks.base import Task
from rlsgd.data.tasks.dataset import DatasetTask
from rlsgd.data.tasks.reasoning_gym import ReasoningGym

__all__ = ["DatasetTask", "ReasoningGym", "Task"]
