"""The Vendi score, an effective number of different samples: the exponential of the entropy of their Gram matrix.

    VS = 2^S(K / N) with S in bits and K_ii = 1,   as exp of the entropy in nats

1 where all samples are the same, N where no two are alike. Here of Gaussian mixtures with more and more modes.

    python examples/vendi_score.py

Source: Friedman and Dieng, The Vendi Score, TMLR 2023, arXiv 2210.02410; of other orders, Pasarkar and
Dieng, arXiv 2310.12952.
"""
# SPDX-License-Identifier: MIT

import torch
from torch import Tensor

import hrel_ext


def vendi_score(samples: Tensor, *, sigma: float, order: float = 1.0) -> Tensor:
    """The effective number of different samples, 2^S.

    Args:
        samples: (N, ...) or batches (B, N, D), floating point.
        sigma: kernel width in exp(-d^2 / sigma^2).
        order: of the entropy; 1 is the Vendi score as published, a large one counts what is frequent.

    Returns:
        () or (B,), from 1 to N.
    """
    return 2 ** hrel_ext.entropy(hrel_ext.gram(samples, sigma=sigma), alpha=order)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    print("modes  order 0.5  order 1  order 2")
    for modes in (1, 2, 5, 10):
        centres = 10 * torch.arange(modes).repeat_interleave(60 // modes)  # (N,), far from each other
        samples = centres[:, None] + 0.1 * torch.randn(len(centres), 2, generator=generator)  # (N, 2)
        scores = [vendi_score(samples, sigma=2.0, order=order).item() for order in (0.5, 1.0, 2.0)]
        print(f"{modes:5}  {scores[0]:9.2f}  {scores[1]:7.2f}  {scores[2]:7.2f}")


if __name__ == "__main__":
    main()
