"""How much of a relevance is bias, and what the label-permutation null takes away: filters that know the class well, a
little and not at all, for mini-batches of 32 to 512 samples.

    python examples/noise_and_null.py           writes docs/plots/noise_and_null.svg and results/noise_and_null.json

A filter's map is Gaussian noise of D = 16 values around a mean that depends on the class: the means of the classes are
themselves Gaussian, of variance s^2, and s is the strength of the filter. A noise filter has s = 0, so its true mutual
information with the labels is 0. Every filter has the same kernel width, the mean distance between noise maps.
"""
# SPDX-License-Identifier: MIT

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot
from torch import Generator, Tensor

import hrel_ext

ROOT = Path(__file__).parents[1]
STRENGTHS = {"informative": 1.0, "weak": 0.25, "noise": 0.0}  # standard deviation of the class means
COLORS = {"informative": "#228833", "weak": "#4477aa", "noise": "#ee6677"}
SIZES = (32, 64, 128, 256, 512)
NUM_CLASSES, NUM_FEATURES, NUM_FILTERS, PERMUTATIONS = 10, 16, 200, 200  # filters of each kind
SIGNIFICANT = 0.05  # level of the test
ALPHA = 1.01
SEED = 1787

Json = dict[str, Any]


def make_layer(num_samples: int, num_filters: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """Maps (N, 3 F, D), F filters of each kind in turn, and labels (N,) in classes of nearly equal size."""
    labels = (torch.arange(num_samples) % NUM_CLASSES)[torch.randperm(num_samples, generator=rng)]  # (N,)
    kinds = []
    for strength in STRENGTHS.values():
        means = strength * torch.randn(NUM_CLASSES, num_filters, NUM_FEATURES, generator=rng)  # (C, F, D)
        kinds.append(means[labels] + torch.randn(num_samples, num_filters, NUM_FEATURES, generator=rng))
    return torch.cat(kinds, 1), labels


def measure(sizes: tuple[int, ...], num_filters: int, permutations: int) -> list[Json]:
    """One row for each number of samples and kind of filter; information in bits."""
    rng, rows = Generator().manual_seed(SEED), []
    sigma = (2 * NUM_FEATURES) ** 0.5  # the root of the mean squared distance between two noise maps
    for num_samples in sizes:
        acts, labels = make_layer(num_samples, num_filters, rng)
        result = hrel_ext.permutation_null(
            acts, labels, permutations=permutations, sigma=sigma, alpha=ALPHA, seed=num_samples
        )
        limit = hrel_ext.relevance_terms(acts[:, :1], labels, sigma=sigma, alpha=ALPHA).label_entropy.item()
        for k, kind in enumerate(STRENGTHS):
            own = slice(k * num_filters, (k + 1) * num_filters)
            rows.append(
                {
                    "kind": kind,
                    "samples": num_samples,
                    "label_entropy_bits": limit,
                    "relevance_bits": quantiles(result.relevance[own]),
                    "debiased_bits": quantiles(result.debiased[own]),
                    "significant": (result.p_value[own] <= SIGNIFICANT).double().mean().item(),
                }
            )
    return rows


def quantiles(values: Tensor) -> list[float]:
    """The 5 %, 50 % and 95 % quantiles."""
    return values.double().quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()


def draw(rows: list[Json], file: Path) -> None:
    """Draw relevance, debiased relevance and the share of significant filters against the number of samples."""
    style = {"svg.hashsalt": "hrel_ext", "svg.fonttype": "none", "font.size": 9, "axes.grid": True}
    style |= {"grid.color": "#e6e6e6", "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure, (raw, debiased, power) = pyplot.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
        for kind, color in COLORS.items():
            own = [row for row in rows if row["kind"] == kind]
            sizes = [row["samples"] for row in own]
            for axes, key in ((raw, "relevance_bits"), (debiased, "debiased_bits")):
                low, middle, high = zip(*(row[key] for row in own), strict=True)
                axes.plot(sizes, middle, "o-", color=color, label=kind, markersize=4)
                axes.fill_between(sizes, low, high, color=color, alpha=0.15, linewidth=0)
            power.plot(sizes, [100 * row["significant"] for row in own], "o-", color=color, label=kind, markersize=4)
        limits = {row["samples"]: row["label_entropy_bits"] for row in rows}
        raw.plot(limits.keys(), limits.values(), "--", color="#555555", label="S(B), all that can be known")
        power.axhline(100 * SIGNIFICANT, linestyle="--", color="#555555", label=f"level of the test, {SIGNIFICANT:.0%}")
        debiased.axhline(0, linestyle="--", color="#555555", label="truth for noise")
        raw.set(title="as estimated", ylabel="relevance, bits", ylim=(0, None))
        debiased.set(title="less the mean of the null", ylabel="debiased relevance, bits")
        power.set(title="told from permuted labels", ylabel=f"filters with p <= {SIGNIFICANT}, %", ylim=(-3, 103))
        for axes in (raw, debiased, power):
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(n) for n in sizes])
            axes.set_xlabel("samples in the mini-batch, N")
            axes.legend(fontsize=7, frameon=False)
        metadata = {"Date": None, "Creator": None} if file.suffix == ".svg" else None  # they would change every time
        figure.savefig(file, metadata=metadata, dpi=120)
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/plots/noise_and_null.svg")
    parser.add_argument("--json", type=Path, default=ROOT / "results/noise_and_null.json")
    parser.add_argument("--quick", action="store_true", help="few filters, permutations and samples, to try it")
    args = parser.parse_args()
    sizes, num_filters, permutations = ((32, 64), 20, 20) if args.quick else (SIZES, NUM_FILTERS, PERMUTATIONS)
    rows = measure(sizes, num_filters, permutations)
    settings = {
        "command": "python examples/noise_and_null.py",
        "seed": SEED,
        "alpha": ALPHA,
        "classes": NUM_CLASSES,
        "values_per_map": NUM_FEATURES,
        "filters_of_each_kind": num_filters,
        "permutations": permutations,
        "strengths": STRENGTHS,
        "environment": {"platform": platform.platform(), "torch": torch.__version__, "hrel_ext": hrel_ext.build_info()},
    }
    args.json.write_text(json.dumps(settings | {"rows": rows}, indent=1) + "\n")
    draw(rows, args.plot)
    print(f"{'kind':<13}{'N':>5}{'relevance':>11}{'debiased':>10}{'p <= 0.05':>11}")
    for row in rows:
        relevance, debiased = row["relevance_bits"][1], row["debiased_bits"][1]
        print(f"{row['kind']:<13}{row['samples']:>5}{relevance:>11.3f}{debiased:>10.3f}{row['significant']:>11.1%}")


if __name__ == "__main__":
    main()
