"""Callbacks observe; none changes training. Import a class here to give it a short name."""

from rlsgd.callbacks.callback_time import CallbackTime
from rlsgd.callbacks.completions import CompletionLog
from rlsgd.callbacks.delta_checkpoint import DeltaCheckpoint
from rlsgd.callbacks.effective_rank import EffectiveRank
from rlsgd.callbacks.evaluation_report import EvaluationReport
from rlsgd.callbacks.export import HFExport
from rlsgd.callbacks.memory import Memory
from rlsgd.callbacks.noise_scale import NoiseScale
from rlsgd.callbacks.optimizer_dynamics import OptimizerDynamics
from rlsgd.callbacks.progress import IterationProgress
from rlsgd.callbacks.step_visibility import StepVisibility
from rlsgd.callbacks.update_sparsity import UpdateSparsity

__all__ = [
    "CallbackTime",
    "CompletionLog",
    "DeltaCheckpoint",
    "EffectiveRank",
    "EvaluationReport",
    "HFExport",
    "IterationProgress",
    "Memory",
    "NoiseScale",
    "OptimizerDynamics",
    "StepVisibility",
    "UpdateSparsity",
]
