"""Runs every op once on tiny cases of every kernel size and dtype, for the memory and race checkers to watch.

The operands are prepared on the CPU and copied, so that a checker of uninitialised memory sees them written. Each
result is compared with float64 as well: a checker that finds nothing in a kernel that computes nothing proves nothing.
"""
# SPDX-License-Identifier: MIT

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from hrel_ext import build_info, reference
from hrel_ext.testing import Case, oracle, relevance_operands, tolerance_bits

SIZES = (13, 33, 64, 100, 128, 200, 256)  # samples: every block shape, with and without padded rows
# Orders of the entropy: by poles, Shannon, by eigenvalues, by power sums without and with a reduction.
ALPHAS = (1.01, 1.0, 1.5, 2.0, 3.0)
FEATURES = (3, 70)  # short of a vector; several stages of the product, the last one short
NUM_FILTERS, NUM_CLASSES = 2, 5


def cases() -> Iterator[tuple[Case, float, float]]:
    """Yield a case, the order of the entropy and the width of the label kernel: not all combinations, but each once."""
    for n in SIZES:
        for i, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16, torch.float64)):
            d = FEATURES[(SIZES.index(n) + i) % len(FEATURES)]
            yield Case(f"n{n}", "a block shape", n, NUM_FILTERS, (d,), NUM_CLASSES, dtype), 1.01, 0.1
        yield Case(f"n{n}", "a wide label kernel", n, NUM_FILTERS, (FEATURES[0],), NUM_CLASSES), 1.01, 1.0
    for n in (33, 128):
        usual = Case(f"n{n}", "an order of the entropy", n, NUM_FILTERS, (FEATURES[0],), NUM_CLASSES)
        for alpha in ALPHAS[1:]:
            yield usual, alpha, 0.1
        yield replace(usual, why="filters that never fire", data="dead"), 1.5, 0.1
        yield replace(usual, why="one class", num_classes=1), 1.01, 0.1


def check(name: str, result: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (result.cpu().double() - expected).abs().max().item()
    if not error <= tolerance:
        raise AssertionError(f"{name} is off by {error:.2e}, the limit is {tolerance:.2e}")


def run(case: Case, alpha: float, label_sigma: float, device: str) -> None:
    """Call relevance, the null, both forms of kernel_alignment, and matrix_entropy where this version has it."""
    acts, labels = case.make()
    sigma = case.sigma(acts)
    prepared = relevance_operands(acts, labels, sigma, alpha, label_sigma)
    maps, order, class_offsets, widths, _, label_gram = (t.to(device) if isinstance(t, Tensor) else t for t in prepared)
    if device == "cuda":  # on the CPU half precision is prepared as float32
        maps = prepared[0].to(case.dtype).to(device)
    terms = oracle(acts, labels, sigma, alpha, label_sigma)
    tolerance = tolerance_bits(case.dtype, case.num_samples, alpha)
    entropy, joint_entropy = torch.ops.hrel_ext.relevance(maps, order, class_offsets, widths, alpha, label_gram)
    check("entropy", entropy, terms.entropy, tolerance)
    check("joint entropy", joint_entropy, terms.joint_entropy, tolerance)

    if label_gram is None:  # the null is for classes
        permutations = torch.stack([torch.arange(len(labels)), torch.arange(len(labels)).flip(0)])  # (2, N)
        permuted = torch.empty_like(labels).scatter_(0, prepared[1][permutations[1]], labels[prepared[1]])
        joint = torch.ops.hrel_ext.permuted_joint_entropy(
            maps, order, class_offsets, permutations.to(device), widths, alpha
        )
        check("joint entropy of the labels", joint[0], terms.joint_entropy, tolerance)
        exact = oracle(acts, permuted, sigma, alpha, label_sigma).joint_entropy
        check("joint entropy of permuted labels", joint[1], exact, tolerance)

    multiples = torch.linspace(0.3, 10, 9, dtype=widths.dtype)  # (M,)
    exact_labels = reference._label_gram(labels, label_sigma, torch.float64)  # (N, N)
    for per_filter in (False, True):
        mean, alignment = torch.ops.hrel_ext.kernel_alignment(
            maps, order, class_offsets, multiples.to(device), per_filter, label_gram
        )
        exact = reference.alignments(prepared[0].double(), exact_labels, multiples.double(), per_filter)
        check("mean distance", mean, exact[0], 1e-5 * exact[0].abs().max().item())
        check("alignment", alignment, exact[1], 1e-4)

    if hasattr(torch.ops.hrel_ext, "matrix_entropy"):
        points = prepared[0].double().transpose(0, 1)  # (F, N, D)
        gram = reference._gaussian(reference._distances(points), sigma.double()[:, None, None])  # (F, N, N)
        result = torch.ops.hrel_ext.matrix_entropy(gram.to(widths.dtype).to(device), alpha)
        check("matrix entropy", result, terms.entropy, tolerance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    start, table = time.perf_counter(), list(cases())
    table.sort(key=lambda entry: entry[0].num_samples)  # the slow ones last: a run that is stopped has the others
    if device == "cuda":
        largest = build_info()["cuda_largest_num_samples"]
        table = [entry for entry in table if entry[0].num_samples <= largest]
        if not table:
            raise SystemExit("this build of hrel_ext holds no kernels that run on this device")
    for case, alpha, label_sigma in table:
        print(f"{case}, {case.why}, D = {case.map_shape[0]}, alpha = {alpha}, label_sigma = {label_sigma}", flush=True)
        run(case, alpha, label_sigma, device)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{len(table)} cases right in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
