"""Pruning by relevance: the engine, training, costs, and files that always load."""
# SPDX-License-Identifier: MIT

try:
    import accelerate  # noqa: F401
    import safetensors  # noqa: F401
    import torch_pruning  # noqa: F401
except ImportError as error:
    raise ImportError(f"hrel_ext.pruning needs {error.name}: pip install 'hrel_ext[prune]'") from error

from hrel_ext.pruning.checkpoint import load_pruned, save_pruned
from hrel_ext.pruning.cost import Cost, Latency, check_device, compare_latency, count, measure_latency, peak_memory
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
from hrel_ext.pruning.cycles import Cycle
from hrel_ext.pruning.export import Agreement, export_onnx, export_pt2
from hrel_ext.pruning.groups import Group, remove_filters
from hrel_ext.pruning.importance import GroupImportance, HRelImportance
from hrel_ext.pruning.planning import LayerPlan, Plan, plan
from hrel_ext.pruning.pruner import PruningResult, check_schedule, prune, schedule
from hrel_ext.pruning.resume import DamagedCheckpointWarning
from hrel_ext.pruning.state import recalibrate
from hrel_ext.pruning.training import Epoch, Evaluation, Training, check_training, evaluate, train

__all__ = [
    "CRITERIA",
    "ActivationVariance",
    "Agreement",
    "AlignmentElimination",
    "BatchNormScale",
    "Cost",
    "Criterion",
    "Cycle",
    "DamagedCheckpointWarning",
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
    "check_training",
    "compare_latency",
    "count",
    "evaluate",
    "export_onnx",
    "export_pt2",
    "load_pruned",
    "measure_latency",
    "peak_memory",
    "plan",
    "prune",
    "recalibrate",
    "remove_filters",
    "save_pruned",
    "schedule",
    "train",
]
