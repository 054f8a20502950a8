"""What HRel does to a layer, drawn step by step: maps, Gram matrices, spectra, entropies, the relevance of every
filter, and what the kernel width does to it.

    python examples/how_it_works.py          digits of scikit-learn, half a minute

Trains LeNet-5, takes one mini-batch of the training images and the first convolution, and writes four pictures into
docs/plots and the numbers behind them into results/how_it_works.json.
"""
# SPDX-License-Identifier: MIT

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

import hrel_ext
from hrel_ext.pruning import train
from hrel_ext.report.plots import STYLE, save
from hrel_ext.zoo.data import Batches, digits
from hrel_ext.zoo.models import lenet5

ROOT = Path(__file__).parents[1]
SEED, BATCH, EPOCHS, PERMUTATIONS = 1787, 100, 15, 200
WIDTHS = torch.logspace(-1.5, 1, 60)  # in mean distances between two outputs of the layer
HIGH, LOW, LABELS = "#2171b5", "#cb181d", "#555555"

Json = dict[str, Any]


def trained(epochs: int) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """LeNet-5 after some epochs, and a mini-batch (N, 1, 28, 28) of its training images, by class, with labels (N,)."""
    splits = digits(SEED)
    torch.manual_seed(SEED)
    model = lenet5()
    batches = Batches(splits.train, BATCH, seed=SEED, drop_last=True)
    train(model, batches, Batches(splits.validation, BATCH), epochs=epochs, learning_rate=0.05, seed=SEED)
    images, labels = next(iter(batches))
    order = labels.argsort(stable=True)
    return model.eval(), images[order], labels[order]


def draw_maps(images: Tensor, labels: Tensor, maps: dict[str, Tensor]) -> Figure:
    """An image of each class, and under it what the filters (N, H, W) make of it."""
    examples = [int((labels == c).nonzero()[0]) for c in labels.unique()]
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    panels = figure.subplots(1 + len(maps), len(examples))
    for row, (name, pictures) in zip(panels, {"image": images[:, 0], **maps}.items(), strict=True):
        limits = {
            "vmin": pictures.min().item(),
            "vmax": pictures.max().item(),
        }  # of all samples: a dull filter looks dull
        for axes, example in zip(row, examples, strict=True):
            axes.imshow(pictures[example].numpy(), cmap="gray" if name == "image" else "viridis", **limits)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
    return figure


def draw_matrices(kernels: dict[str, Tensor], blocks: Tensor, terms: hrel_ext.RelevanceTerms) -> Figure:
    """For each filter: K, K o L and the spectra of both, with their entropies."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    panels = figure.subplots(len(kernels), 3, width_ratios=(1, 1, 1.25))
    for i, (row, (name, kernel)) in enumerate(zip(panels, kernels.items(), strict=True)):
        for axes, matrix, title in ((row[0], kernel, "Gram matrix K"), (row[1], kernel * blocks, "K o L, by class")):
            image = axes.imshow(matrix.numpy(), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            axes.set(title=title, xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(name)
        figure.colorbar(image, ax=row[1], shrink=0.8).outline.set_visible(False)
        own, joint = terms.entropy[i], terms.joint_entropy[i]
        of_labels = terms.label_entropy
        for matrix, label, color in (
            (kernel, f"A: S(A) = {own:.2f} bits", HIGH),
            (kernel * blocks, f"A o B: S(A, B) = {joint:.2f} bits", LOW),
            (blocks, f"B, labels: S(B) = {of_labels:.2f} bits", LABELS),
        ):
            spectrum = torch.linalg.eigvalsh(matrix.double() / len(matrix)).flip(0).clamp(min=1e-9)
            row[2].plot(range(1, 1 + len(spectrum)), spectrum.numpy(), color=color, label=label, linewidth=1.2)
        row[2].set(xscale="log", yscale="log", ylim=(1e-5, 1.5), xlabel="number of the eigenvalue", ylabel="eigenvalue")
        row[2].set_title(f"I = S(A) + S(B) - S(A, B) = {own + of_labels - joint:.2f} bits")
        row[2].legend(fontsize=7, loc="lower left")
    return figure


def draw_relevance(null: hrel_ext.PermutationNull) -> Figure:
    """Every filter by its relevance, the lowest first, with the range of its null."""
    order = null.relevance.argsort(stable=True)
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(order))
    axes.bar(places[:1], null.relevance[order[:1]].numpy(), color=LOW, width=0.7, label="goes first")
    axes.bar(places[1:], null.relevance[order[1:]].numpy(), color=HIGH, width=0.7)
    low, high = null.null[:, order].quantile(torch.tensor([0.05, 0.95]), dim=0).numpy()
    axes.vlines(places, low, high, color="black", linewidth=3, label="labels permuted: 5 % to 95 % of the draws")
    axes.set_xticks(places, order.tolist())
    axes.set(xlabel="filter", ylabel="relevance I(A; Y), bits")
    axes.grid(visible=False, axis="x")
    axes.legend(fontsize=8, loc="upper left")
    return figure


def draw_widths(widths: Tensor, alignment: Tensor, relevance: Tensor, chosen: float, label_entropy: float) -> Figure:
    """The alignment of the layer with the labels, and the relevance (W, F) of every filter, against the width (W,)."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(widths.numpy(), alignment.numpy(), color=HIGH)
    left.set(ylabel="alignment of K with L, bits", title="the layer and the labels")
    right.plot(widths.numpy(), relevance.numpy(), color=HIGH, linewidth=0.8, alpha=0.7)
    right.axhline(label_entropy, linestyle="--", color=LABELS, label="S(B), all that can be known")
    right.set(ylabel="relevance I(A; Y), bits", title="each filter", ylim=(0, None))
    for axes in (left, right):
        axes.axvline(chosen, color=LOW, label="the width that is taken")
        axes.set(xlabel="kernel width sigma", xscale="log")
        axes.legend(fontsize=7, loc="lower left" if axes is right else "upper left")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plots", type=Path, default=ROOT / "docs/plots", help="folder for the pictures")
    parser.add_argument("--json", type=Path, default=ROOT / "results/how_it_works.json")
    parser.add_argument("--quick", action="store_true", help="one epoch and few permutations, to try it")
    args = parser.parse_args()
    model, images, labels = trained(1 if args.quick else EPOCHS)
    with torch.no_grad():
        acts = model.conv1(images)  # (N, F, H, W), before ReLU and pool, as HRel's code
    sigma = hrel_ext.kernel_width(acts, labels).item()
    null = hrel_ext.permutation_null(acts, labels, permutations=20 if args.quick else PERMUTATIONS, sigma=sigma)
    order = null.relevance.argsort(stable=True)
    pair = [int(order[-1]), int(order[0])]
    names = [f"filter {pair[0]}\nhighest", f"filter {pair[1]}\nlowest"]
    terms = hrel_ext.relevance_terms(acts[:, pair], labels, sigma=sigma)
    kernels = hrel_ext.gram(acts[:, pair].flatten(2).transpose(0, 1), sigma=sigma)  # (2, N, N)
    blocks = (labels[:, None] == labels).float()  # L, (N, N)

    flat = acts.flatten(1)  # (N, F D), the output of the layer
    distance = hrel_ext.mean_distance(flat)
    widths = WIDTHS * distance  # (W,)
    whole = hrel_ext.gram(flat, sigma=distance) ** (1 / WIDTHS[:, None, None].square())  # (W, N, N), of each width
    products = (whole * blocks).sum((1, 2)) / (whole.norm(dim=(1, 2)) * blocks.norm())  # (W,)
    relevance = torch.stack([hrel_ext.relevance(acts, labels, sigma=width.item()) for width in widths])  # (W, F)
    label_entropy = terms.label_entropy.item()

    with matplotlib.rc_context(STYLE):
        pictures = {
            "maps": draw_maps(images, labels, dict(zip(names, acts[:, pair].unbind(1), strict=True))),
            "matrices": draw_matrices(dict(zip(names, kernels, strict=True)), blocks, terms),
            "relevance": draw_relevance(null),
            "widths": draw_widths(widths, 2 * products.log2(), relevance, sigma, label_entropy),
        }
        for name, figure in pictures.items():
            save(figure, args.plots / f"how_{name}.svg")
    numbers: Json = {
        "command": "python examples/how_it_works.py",
        "seed": SEED,
        "samples": BATCH,
        "epochs": 1 if args.quick else EPOCHS,
        "sigma": sigma,
        "label_entropy_bits": label_entropy,
        "filters": pair,
        "entropy_bits": terms.entropy.tolist(),
        "joint_entropy_bits": terms.joint_entropy.tolist(),
        "relevance_bits": null.relevance.tolist(),
        "debiased_bits": null.debiased.tolist(),
        "p_value": null.p_value.tolist(),
        "environment": {"platform": platform.platform(), "torch": torch.__version__, "hrel_ext": hrel_ext.build_info()},
    }
    args.json.write_text(json.dumps(numbers, indent=1) + "\n")
    for f in order.tolist():
        print(f"filter {f:2}: {null.relevance[f]:.3f} bits, {null.debiased[f]:.3f} of them above the null")


if __name__ == "__main__":
    main()
