"""Weights of the rational function whose trace replaces the eigenvalues, with a bound on the entropy's error.

With beta = alpha - 1 the entropy needs G = sum_i g(lambda_i), g(x) = x expm1(beta ln x) / beta (x ln x for beta = 0),
and

    g(x) ~ c1 x + c2 x^2 + c3 x^3 + sum_j w_j x / (x + t_j)

on [0, 1], where x^alpha has its only singularity, a branch point at 0, mirrored by the poles -t_j crowding towards it.
"""
# SPDX-License-Identifier: MIT

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Minimax poles of g at alpha = 1.01, the smallest held at 5e-7 so that rounding in float32 cannot reach it.
POLES: Array = np.array(
    [
        5.000000000000002e-07,
        9.013210057872118e-06,
        7.423729481901062e-05,
        0.00042440662534676314,
        0.001941518939346035,
        0.007629315662428177,
        0.02696127049472428,
        0.08942507490188116,
        0.2975205367569471,
        1.1854853521140942,
    ]
)
MAX_BOUND_BITS = 1e-5  # half of the float32 tolerance: the other half is left to rounding
GRID: Array = np.concatenate([[0.0], np.logspace(-10.5, 0, 1200)])
OFFSETS = (np.inf, 1 / 16, 1 / 128, 1 / 1024)  # least squares weighted by 1 / (x + offset); inf is no weighting


class Rational(NamedTuple):
    """Weights of ``g`` for one alpha, and what they cost in accuracy."""

    powers: tuple[float, ...]  # c1, c2, c3
    weights: tuple[float, ...]  # w_1 .. w_10, of x / (x + POLES[j])
    bound_bits: float  # no spectrum of N eigenvalues with sum 1 is off by more


def _g(x: Array, beta: float) -> Array:
    logarithm = np.log(np.where(x > 0, x, 1.0))
    return x * (logarithm if beta == 0 else np.expm1(beta * logarithm) / beta)


def _basis(x: Array) -> Array:
    return np.concatenate([x[:, None] ** np.arange(1, 4), x[:, None] / (x[:, None] + POLES)], axis=1)  # (X, 13)


@lru_cache(maxsize=64)
def _candidates(alpha: float) -> tuple[tuple[Array, Array], ...]:
    """Per offset the 13 weights by Lawson's iteration (least squares reweighted towards minimax) and their error."""
    basis, target = _basis(GRID), _g(GRID, alpha - 1)
    found = []
    for offset in OFFSETS:
        scale = np.ones_like(GRID) if np.isinf(offset) else 1 / (GRID + offset)
        columns, scaled_target = basis * scale[:, None], target * scale
        norms = np.linalg.norm(columns, axis=0)
        importance = np.full(len(GRID), 1 / len(GRID))
        best, smallest = np.zeros(len(norms)), np.inf
        for _ in range(12):
            root = np.sqrt(importance)
            solution = np.linalg.lstsq(columns / norms * root[:, None], scaled_target * root, rcond=1e-13)[0] / norms
            residual = np.abs(columns @ solution - scaled_target)
            if residual.max() < smallest:
                best, smallest = solution, residual.max()
            importance *= residual / residual.max() + 1e-4
            importance /= importance.sum()
        found.append((best, basis @ best - target))
    return tuple(found)


def _worst_spectrum(objective: Array, num_samples: int) -> tuple[int, int, float]:
    """The spectrum of N eigenvalues with mean 1/N that maximises sum_i objective(lambda_i).

    The maximum of a separable sum under a fixed mean lies on the concave envelope: it takes two values at most. Returns
    their places in GRID and the share of the lower one.
    """
    mean = 1 / num_samples
    split = int(np.searchsorted(GRID, mean))
    low, high = GRID[:split, None], GRID[None, split:]
    share = (high - mean) / (high - low)  # (L, H)
    mixed = share * objective[:split, None] + (1 - share) * objective[None, split:]
    i, j = np.unravel_index(int(mixed.argmax()), mixed.shape)
    return int(i), split + int(j), float(share[i, j])


def _bound_bits(error: Array, alpha: float, num_samples: int) -> float:
    """sup |sum_i error(lambda_i)| / sum_i lambda_i^alpha / ln 2: the change of S, as dS = dG / (tr A^alpha ln 2).

    Dinkelbach's iteration for the ratio; four rounds, as it converges quadratically.
    """
    power = GRID**alpha
    largest = 0.0
    for signed in (error, -error):
        ratio = 0.0
        for _ in range(4):
            i, j, share = _worst_spectrum(signed - ratio * power, num_samples)
            ratio = float((share * signed[i] + (1 - share) * signed[j]) / (share * power[i] + (1 - share) * power[j]))
        largest = max(largest, ratio)
    return largest / float(np.log(2))


@lru_cache(maxsize=256)
def fit(alpha: float, num_samples: int) -> Rational | None:
    """Weights for matrices of N samples, or None where no weighting keeps the error of S below ``MAX_BOUND_BITS``.

    Args:
        alpha: order of the entropy, > 0; 1 is the Shannon limit.
        num_samples: N, the number of eigenvalues.

    Returns:
        The candidate with the smallest bound on |S - S_exact| in bits over every spectrum of N eigenvalues with sum 1.
    """
    if not 0.8 <= alpha <= 1.6:  # far outside of the band where a fit can hold, and cheap to know
        return None
    bounds = [_bound_bits(error, alpha, num_samples) for _, error in _candidates(alpha)]
    best = int(np.argmin(bounds))
    if bounds[best] > MAX_BOUND_BITS:
        return None
    weights = _candidates(alpha)[best][0].tolist()
    return Rational(tuple(weights[:3]), tuple(weights[3:]), bounds[best])
