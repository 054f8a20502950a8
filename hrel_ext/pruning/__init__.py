"""Pruning by relevance: the engine, training, costs, and files that always load."""
# SPDX-License-Identifier: MIT

try:
    import accelerate  # noqa: F401
    import safetensors  # noqa: F401
    import torch_pruning  # noqa: F401
except ImportError as error:
    raise ImportError(f"hrel_ext.pruning needs {error.name}: pip install 'hrel_ext[prune]'") from error

from hrel_ext.pruning.checkpoint import load_pruned, save_pruned
from hrel_ext.pruning.cost import Cost, Latency, count, measure_latency
from hrel_ext.pruning.criteria import (
    CRITERIA,
    ActivationVariance,
    AlignmentElimination,
    BatchNormScale,
    Criterion,
    FilterScores,
    HRank,
    HRel,
    HRelDebiased,
    HRelSet,
    L1Norm,
    L2Norm,
    Random,
    Taylor,
    TorchPruningCriterion,
)
from hrel_ext.pruning.groups import Group, remove_filters
from hrel_ext.pruning.importance import GroupImportance, HRelImportance
from hrel_ext.pruning.planning import LayerPlan, Plan, plan
from hrel_ext.pruning.pruner import Cycle, PruningResult, check_schedule, prune, schedule
from hrel_ext.pruning.state import recalibrate
from hrel_ext.pruning.training import Epoch, Evaluation, Training, check_device, evaluate, train

__all__ = [
    "CRITERIA",
    "ActivationVariance",
    "AlignmentElimination",
    "BatchNormScale",
    "Cost",
    "Criterion",
    "Cycle",
    "Epoch",
    "Evaluation",
    "FilterScores",
    "Group",
    "GroupImportance",
    "HRank",
    "HRel",
    "HRelDebiased",
    "HRelImportance",
    "HRelSet",
    "L1Norm",
    "L2Norm",
    "Latency",
    "LayerPlan",
    "Plan",
    "PruningResult",
    "Random",
    "Taylor",
    "TorchPruningCriterion",
    "Training",
    "check_device",
    "check_schedule",
    "count",
    "evaluate",
    "load_pruned",
    "measure_latency",
    "plan",
    "prune",
    "recalibrate",
    "remove_filters",
    "save_pruned",
    "schedule",
    "train",
]
