"""A pruned network on disk: its weights, and a plan in JSON that rebuilds its architecture without pickle."""
# SPDX-License-Identifier: MIT

import hashlib
import json
import math
import os
import re
import reprlib
import stat
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from hrel_ext._files import write_atomically
from hrel_ext.pruning.groups import CONVOLUTIONS, remove_filters
from hrel_ext.pruning.pruner import PruningResult
from hrel_ext.pruning.state import tensors_of
from hrel_ext.zoo.models import MODELS

SCHEMA_VERSION = 2
MAX_INPUT_VALUES = 1 << 24  # of one sample, which a forward pass is made of; an image of 2048 x 2048 has 3/4 of them
PLAN, WEIGHTS, STATE_DICT = "plan.json", "model.safetensors", "model.pt"


def save_pruned(
    directory: str | os.PathLike[str],
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
    state = tensors_of(model)
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


def load_pruned(path: str | os.PathLike[str], model_fn: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Rebuild a pruned network from its folder: the architecture without the removed filters, with the weights.

    Nothing in the folder is run: the plan is JSON, the weights are safetensors.

    Args:
        path: the folder, written by `save_pruned`.
        model_fn: makes the unpruned network; needed when it is not one of the zoo.

    Returns:
        The network on the CPU, in eval mode, its weights bit-equal to the saved ones and of their dtypes.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file that is damaged, of another schema, or does not fit the other one or the network of
            ``model_fn``: names the file and the fault; an unknown model and no ``model_fn``.
    """
    folder = Path(path)
    plan = read_plan(folder)
    weights_file = folder / plan["weights"]["file"]
    weights = _bytes_of(weights_file)
    if (plan.get("num_classes") or 0) > len(weights):  # before a layer of them is made
        raise ValueError(
            f"num_classes of {folder / PLAN} must have weights in the {len(weights)} bytes of {weights_file}, "
            f"got {plan['num_classes']}"
        )
    model = unpruned_model(plan, model_fn)
    if (digest := hashlib.sha256(weights).hexdigest()) != plan["weights"]["sha256"]:
        raise ValueError(f"sha256 of {weights_file} must be the {plan['weights']['sha256']} of its plan, got {digest}")
    try:
        state = load_tensors(weights)
    except SafetensorError as error:
        raise ValueError(f"{weights_file} must hold safetensors, got {error}") from error
    convolutions = {name: m for name, m in model.named_modules() if isinstance(m, CONVOLUTIONS)}
    removed = {}
    for name, layer in plan["layers"].items():
        where = f"layers[{name!r}] of {folder / PLAN}"
        if name not in convolutions:
            raise ValueError(f"{where} must be a convolution of the network, got none of this name")
        if layer["original"] != (width := convolutions[name].out_channels):
            raise ValueError(f"original of {where} must be the {width} filters of the network, got {layer['original']}")
        removed[name] = sorted(set(range(width)) - set(layer["kept"]))
    try:
        example = torch.zeros(1, *plan["input_shape"], dtype=next(model.parameters()).dtype)
        remove_filters(model, example, removed)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{folder / PLAN} must fit the network, got {error}") from error
    try:  # assign: with copies of the saved tensors, or weights of another dtype would be rounded
        model.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"{weights_file} must fit the network and the plan, got {textwrap.shorten(str(error), 300)}"
        ) from error
    return model.eval()


def read_plan(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The plan of a folder of `save_pruned`, with all that is needed to rebuild the network checked.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another schema; names the file and the fault.
    """
    file = Path(folder) / PLAN
    try:
        plan = json.loads(_bytes_of(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} must hold JSON, got {error}") from error
    _check_entry(file, {"plan": plan}, "plan", dict, "an object")
    _check_entry(file, plan, "schema_version", int, f"{SCHEMA_VERSION}", lambda version: version == SCHEMA_VERSION)
    if plan.get("model") is not None:
        _check_entry(file, plan, "model", str, "a name or null")
    if plan.get("num_classes") is not None:
        _check_entry(file, plan, "num_classes", int, "an integer above 0 or null", lambda number: number > 0)
    _check_entry(file, plan, "input_shape", list, "a list of integers above 0", _positive)
    rule = f"of at most {MAX_INPUT_VALUES} values"
    _check_entry(file, plan, "input_shape", list, rule, lambda shape: math.prod(shape) <= MAX_INPUT_VALUES)
    _check_entry(file, plan, "layers", dict, "an object")
    for name, layer in plan["layers"].items():
        _check_entry(file, plan["layers"], name, dict, "an object")
        where = f"layers[{name!r}] of {file}"
        _check_entry(where, layer, "original", int, "an integer above 0", lambda width: width > 0)
        rule = f"ascending indices of some of its {layer['original']} filters"
        _check_entry(where, layer, "kept", list, rule, partial(_indices, width=layer["original"]))
    _check_entry(file, plan, "weights", dict, "an object")
    where = f"weights of {file}"
    plain = "the name of a file in this folder"
    _check_entry(where, plan["weights"], "file", str, plain, lambda name: re.fullmatch(r"\w[\w.-]*", name, re.ASCII))
    _check_entry(where, plan["weights"], "sha256", str, "a string")
    return plan


def unpruned_model(plan: Mapping[str, Any], model_fn: Callable[[], nn.Module] | None = None) -> nn.Module:
    """The network that a plan was made for, before anything was removed, with the fresh weights of its function.

    Raises:
        ValueError: an unknown model and no ``model_fn``, or one that returns something else.
    """
    if model_fn is None and plan.get("model") not in MODELS:
        raise ValueError(
            f"model_fn must be given unless the model is one of {', '.join(MODELS)}, got {plan.get('model')!r}"
        )
    options = {} if model_fn or not plan.get("num_classes") else {"num_classes": plan["num_classes"]}
    model = (model_fn or MODELS[plan["model"]])(**options)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model_fn must return a torch.nn.Module, got {model!r}")
    return model


def weights_file_bytes(model: nn.Module) -> int:
    """The size of the weights of a network as `save_pruned` writes them, in bytes."""
    return len(save_tensors(tensors_of(model)))


def _check_entry(
    where: object,
    holder: Mapping[str, Any],
    key: str,
    kind: type,
    rule: str,
    holds: Callable[[Any], object] = lambda value: True,
) -> None:
    """Refuse an entry of a plan that is missing, of another type (true is no integer), or breaks its rule."""
    if key not in holder:
        raise ValueError(f"{key} of {where} must be {rule}, got none")
    if type(holder[key]) is not kind or not holds(holder[key]):
        raise ValueError(f"{key} of {where} must be {rule}, got {reprlib.repr(holder[key])}")


def _bytes_of(file: Path) -> bytes:
    """The content of a file that lies in its folder itself: a link may lead out of it, and to open a pipe may hang."""
    if not stat.S_ISREG(file.lstat().st_mode):
        raise ValueError(f"{file} must be a file, no link, folder or device")
    return file.read_bytes()


def _positive(numbers: list[Any]) -> bool:
    return bool(numbers) and all(type(number) is int and number > 0 for number in numbers)


def _indices(kept: list[Any], width: int) -> bool:
    """Whether these are ascending, at least one, and below ``width``."""
    integers = bool(kept) and all(type(index) is int for index in kept)
    return integers and 0 <= kept[0] and kept[-1] < width and all(a < b for a, b in pairwise(kept))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that appears whole or not at all."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda unfinished: unfinished.write_text(text))
