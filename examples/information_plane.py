"""The information plane of a training, before and after pruning, and what a wrong kernel width of the input does to it.

    python examples/information_plane.py                             digits of scikit-learn, a minute
    HREL_DATA_DIR=DIR python examples/information_plane.py --data mnist

Trains LeNet-5 in a plain loop, prunes it in cycles, and records all of it by `InformationPlane`: three lines, marked
below. Writes four pictures into docs/plots and the numbers into results/information_plane.json. Then records one
mini-batch of two kinds with a width of 8 and with one that fits: digits in [0, 1], and pieces of two photographs as
normalised colour images, between which 8 is next to nothing.
"""
# SPDX-License-Identifier: MIT

import argparse
import json
import math
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hrel_ext
from hrel_ext.pruning import Cycle, evaluate, prune
from hrel_ext.report import DegenerateInputWarning, InformationPlane, plots
from hrel_ext.zoo.data import CIFAR10_MEAN, CIFAR10_STD, DATASETS, Batches, Splits
from hrel_ext.zoo.models import MODELS

ROOT = Path(__file__).parents[1]
BATCH, SEED, CYCLES = 100, 1787, 4
EFFORT = {"digits": (40, 8, 5), "mnist": (3, 1, 10), "quick": (1, 1, 5)}  # epochs, epochs in a cycle, every

Json = dict[str, Any]


def train(model: nn.Module, batches: Batches, epochs: int, plane: InformationPlane) -> None:
    """One cycle of SGD with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps, cycle_momentum=False)
    model.train()
    for _ in range(epochs):
        for inputs, labels in batches:
            loss = cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            plane.record(inputs, labels)  # line 2 of 3


def record_run(splits: Splits, effort: tuple[int, int, int]) -> tuple[InformationPlane, list[Cycle], list[float]]:
    """Train LeNet-5, prune it to a quarter of its MACs, and record the plane; with the validation accuracies."""
    epochs, cycle_epochs, every = effort
    torch.manual_seed(SEED)
    model = MODELS["lenet5"]()
    batches = Batches(splits.train, BATCH, seed=SEED, drop_last=True)
    validation = Batches(splits.validation, BATCH)
    plane = InformationPlane(model, every=every, seed=SEED)  # line 1 of 3
    plane.begin("baseline")
    train(model, batches, epochs, plane)
    accuracies = [evaluate(model, validation).accuracy]

    def retrain(model: nn.Module, number: int) -> None:
        plane.begin(f"cycle {number}")
        train(model, batches, cycle_epochs, plane)

    result = prune(
        model,
        batches,
        splits.train.images[:1],
        target={"macs": 0.25},
        cycles=CYCLES,
        retrain=retrain,
        evaluate=lambda pruned: evaluate(pruned, validation).accuracy,
    )
    return plane, list(result.cycles), accuracies + [cycle.accuracy for cycle in result.cycles]


def photographs(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pieces (N, 3, 32, 32) of the two photographs that come with scikit-learn, normalised as CIFAR-10, and which."""
    from sklearn.datasets import load_sample_images

    pieces = []
    for photograph in load_sample_images().images:
        pixels = torch.tensor(photograph).permute(2, 0, 1).float() / 255  # (3, H, W)
        places = torch.rand(BATCH // 2, 2, generator=rng) * torch.tensor([pixels.shape[1] - 32, pixels.shape[2] - 32])
        pieces += [pixels[:, top : top + 32, left : left + 32] for top, left in places.int().tolist()]
    mean, std = (torch.tensor(values)[:, None, None] for values in (CIFAR10_MEAN, CIFAR10_STD))
    return (torch.stack(pieces) - mean) / std, torch.arange(BATCH) // (BATCH // 2)


def degeneracy(name: str, digits: Splits) -> Iterator[Json]:
    """I(X; T) of networks with random weights, for a width of the input of 8 and for one by rule, one row a layer."""
    rng = torch.Generator().manual_seed(SEED)
    batches = {
        f"{name} in [0, 1]": (digits.train.images[:BATCH], digits.train.labels[:BATCH], "lenet5", ("conv1", "fc3")),
        "normalised colour": (*photographs(rng), "resnet20", ("conv1", "stage2.0.conv1", "fc")),
    }
    for data, (inputs, labels, network, layers) in batches.items():
        torch.manual_seed(SEED)
        model = MODELS[network]()
        distance = hrel_ext.median_distance(inputs.flatten(1)).item()
        for rule in (8.0, "median"):
            plane = InformationPlane(model, layers=layers, input_sigma=rule)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", DegenerateInputWarning)
                plane.record(inputs, labels)
            history = plane.history
            for at, layer in enumerate(layers):
                yield {
                    "data": data,
                    "median_distance": distance,
                    "input_sigma": history.input_widths.item(),
                    "rule": str(rule),
                    "layer": f"{network} {layer}",
                    "input_entropy_bits": history.input_entropy.item(),
                    "most_bits": math.log2(len(labels)),
                    "layer_entropy_bits": history.layer_entropy[0, at].item(),
                    "information_bits": history.information[0, at, 0].item(),
                    "warned": len(caught) == 1,
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--quick", action="store_true", help="few epochs, to try it")
    parser.add_argument("--plots", type=Path, default=ROOT / "docs/plots")
    parser.add_argument("--json", type=Path, default=ROOT / "results/information_plane.json")
    parser.add_argument(
        "--plane", type=Path, default=ROOT / "runs/information_plane.safetensors", help="what is recorded"
    )
    args = parser.parse_args()
    splits = DATASETS[args.data](None, SEED)
    plane, cycles, accuracies = record_run(splits, EFFORT["quick" if args.quick else args.data])
    args.plane.parent.mkdir(exist_ok=True)
    plane.save(args.plane)  # line 3 of 3
    history, last = plane.history, f"cycle {len(cycles)}"
    figures = {
        "information_plane": plots.information_plane(history),
        "information_plane_pruned": plots.before_and_after(history, "baseline"),
        "information_plane_widths": plots.width_curves(history),
        "relevance_heatmap": plots.relevance_heatmap("conv2", cycles[0].scores["conv2"].per_batch),
    }
    for name, figure in figures.items():
        plots.save(figure, args.plots / f"{name}.svg")
    rows = list(degeneracy(args.data, splits))
    moved = history.moved("baseline", last)
    numbers = {
        "command": f"python examples/information_plane.py --data {args.data}",
        "seed": SEED,
        "batch_size": BATCH,
        "environment": {"platform": platform.platform(), "torch": torch.__version__, "hrel_ext": hrel_ext.build_info()},
        "validation_accuracy": accuracies,
        "filters": [cycle.filters for cycle in cycles],
        "moved_bits": dict(zip(history.layers, moved.tolist(), strict=True)),
        "plane_moved_bits": moved.mean().item(),
        "degeneracy": rows,
    }
    args.json.write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"validation accuracy {accuracies[0]:.2%}, pruned to {cycles[-1].filters}: {accuracies[-1]:.2%}")
    print(f"the plane moved {moved.mean():.2f} bits")
    print(f"{'data':<19}{'layer':<25}{'sigma':>8}{'S(X)':>8}{'log2 N':>8}{'S(T)':>8}{'I(X;T)':>8}")
    for row in rows:
        bits = (row[key] for key in ("input_entropy_bits", "most_bits", "layer_entropy_bits", "information_bits"))
        line = f"{row['data']:<19}{row['layer']:<25}{row['input_sigma']:>8.1f}" + "".join(f"{b:>8.3f}" for b in bits)
        print(line + ("  degenerate" if row["warned"] else ""))


if __name__ == "__main__":
    main()
