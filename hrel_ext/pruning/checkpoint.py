"""A pruned network on disk: its weights, and a plan in JSON that rebuilds its architecture without pickle."""
# SPDX-License-Identifier: MIT

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from hrel_ext._files import write_atomically
from hrel_ext.pruning.groups import remove_filters
from hrel_ext.pruning.pruner import PruningResult
from hrel_ext.zoo.models import MODELS

SCHEMA_VERSION = 2
PLAN, WEIGHTS, STATE_DICT = "plan.json", "model.safetensors", "model.pt"


def save_pruned(
    directory: str | os.PathLike,
    model: nn.Module,
    result: PruningResult,
    *,
    input_shape: tuple[int, ...],
    model_name: str | None = None,
    num_classes: int | None = None,
    **details: object,
) -> None:
    """Write a pruned network: ``model.safetensors``, ``model.pt`` (the state dict for torch.load), ``plan.json``.

    Each file appears whole or not at all, and the plan, which holds the hash of the weights, comes last: a folder from
    an interrupted save does not load as a mixture of two networks.

    Args:
        directory: made if it is not there; files of an earlier save are replaced.
        model: the pruned network, on any device.
        result: what `hrel_ext.pruning.prune` returned for it.
        input_shape: shape of one sample, without N.
        model_name: name in `hrel_ext.zoo.models.MODELS`; None for a network of your own.
        num_classes: its outputs where they are not those it has by itself.
        details: whatever else belongs into the plan, such as recipe, seed, versions, metrics; JSON values.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    weights = save_tensors(state)
    plan = {
        "schema_version": SCHEMA_VERSION,
        "model": model_name,
        "num_classes": num_classes,
        "input_shape": list(input_shape),
        "target": dict(result.plan.target) if result.plan.target else None,
        "groups": [list(group.convolutions) for group in result.plan.groups],  # the first one names the group
        "layers": {
            name: {"original": original, "kept": list(result.kept[name])} for name, original in result.original.items()
        },
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(weights).hexdigest()},
        "cycles": [
            {
                "cycle": cycle.number,
                "filters": cycle.filters,
                "removed": {name: list(indices) for name, indices in cycle.removed.items()},
                "accuracy": cycle.accuracy,
            }
            for cycle in result.cycles
        ],
        "stopped": result.stopped,
        **details,
    }
    write_atomically(directory / WEIGHTS, lambda path: path.write_bytes(weights))
    write_atomically(directory / STATE_DICT, lambda path: torch.save(state, path))
    write_json(directory / PLAN, plan)


def load_pruned(directory: str | os.PathLike, model_fn: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Rebuild a pruned network from its folder: the architecture without the removed filters, with the weights.

    Args:
        directory: written by `save_pruned`.
        model_fn: makes the unpruned network; needed when it is not one of the zoo.

    Returns:
        The network on the CPU, in eval mode, its weights bit-equal to the saved ones.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a plan of another schema, weights that do not match the plan, an unknown model and no ``model_fn``.
    """
    directory = Path(directory)
    plan = json.loads((directory / PLAN).read_text())
    if plan.get("schema_version") != SCHEMA_VERSION:
        got = plan.get("schema_version")
        raise ValueError(f"schema_version of {directory / PLAN} must be {SCHEMA_VERSION}, got {got!r}")
    if model_fn is None and plan["model"] not in MODELS:
        raise ValueError(
            f"model_fn must be given unless the model is one of {', '.join(MODELS)}, got {plan['model']!r}"
        )
    weights = (directory / plan["weights"]["file"]).read_bytes()
    if (digest := hashlib.sha256(weights).hexdigest()) != plan["weights"]["sha256"]:
        raise ValueError(f"sha256 of {WEIGHTS} must be the {plan['weights']['sha256']} of its plan, got {digest}")
    options = {} if model_fn or not plan.get("num_classes") else {"num_classes": plan["num_classes"]}
    model = (model_fn or MODELS[plan["model"]])(**options)
    removed = {
        name: sorted(set(range(layer["original"])) - set(layer["kept"])) for name, layer in plan["layers"].items()
    }
    remove_filters(model, torch.zeros(1, *plan["input_shape"]), removed)
    model.load_state_dict(load_tensors(weights), strict=True)
    return model.eval()


def write_json(path: Path, content: Mapping) -> None:
    """Write JSON that appears whole or not at all."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda unfinished: unfinished.write_text(text))
