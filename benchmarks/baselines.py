"""The strongest plain PyTorch form of the relevance, which a speed-up must be measured against, and the published loop.

    I(A; B) = S(A) + S(B) - S(A o B) in bits, with A = K / N and K_ij = exp(-|x_i - x_j|^2 / sigma^2)

``relevance`` departs from ``hrel_ext.reference``, which writes the definition down: one batched product makes all Gram
matrices, the joint term takes the eigenvalues of the class blocks only, and S(B) is a closed form of the class sizes.
``published`` is how HRel's published code goes about it, filter by filter.
"""
# SPDX-License-Identifier: MIT

import math
from collections.abc import Callable

import torch
from torch import Tensor

Solver = Callable[[Tensor], Tensor]  # symmetric matrices (..., n, n) to eigenvalues (..., n)


@torch.no_grad()
def relevance(
    acts: Tensor,
    labels: Tensor,
    *,
    sigma: float | Tensor,
    alpha: float = 1.01,
    eigvalsh: Solver = torch.linalg.eigvalsh,
) -> Tensor:
    """Score each filter by its mutual information with the labels, in bits.

    Args:
        acts: (N, F, *spatial), floating point, any device.
        labels: (N,), integer class ids.
        sigma: kernel width, one number or (F,), in exp(-d^2 / sigma^2).
        alpha: order of the entropy, > 0.
        eigvalsh: solver of a batch of symmetric matrices.

    Returns:
        (F,), bits; float64 for float64 input, else float32. The label kernel is 1 within a class and 0 across.
    """
    acts = acts if acts.dtype == torch.float64 else acts.float()
    num_samples, num_filters = acts.shape[:2]
    maps = acts.reshape(num_samples, num_filters, -1).transpose(0, 1)  # (F, N, D)
    a = _gaussian_gram(maps, sigma).div_(num_samples)  # (F, N, N)
    members, present = _classes(labels)  # (C, m), (C, m)
    blocks = a[:, members[:, :, None], members[:, None, :]]  # (F, C, m, m)
    blocks *= present[:, :, None] & present[:, None, :]  # a padded row adds the eigenvalue 0, which adds no entropy
    joint_spectrum = eigvalsh(blocks.flatten(0, 1)).reshape(num_filters, -1)  # (F, C m)
    shares = present.sum(-1).to(a.dtype) / num_samples  # (C,), the eigenvalues of B
    return _entropy(eigvalsh(a), alpha) + _entropy(shares, alpha) - _entropy(joint_spectrum, alpha)


@torch.no_grad()
def published(acts: Tensor, labels: Tensor, *, sigma: float, alpha: float = 1.01, label_sigma: float = 0.1) -> Tensor:
    """Score each filter as the published loop does: Gram matrices and three spectra, filter by filter.

    Our own re-implementation of its arithmetic, no line of it is copied. The entropies are the literal
    log2(sum lambda^alpha) / (1 - alpha), in the dtype of the maps.

    Args:
        acts: (N, F, *spatial), floating point.
        labels: (N,), integer class ids.
        sigma: kernel width in exp(-d^2 / sigma^2).
        alpha: order of the entropy, not 1.
        label_sigma: kernel width of the one-hot labels.

    Returns:
        (F,), bits, in the dtype of ``acts``.
    """

    def gram(points: Tensor, width: float) -> Tensor:
        k = torch.exp(-(torch.cdist(points, points) ** 2) / width**2)  # (N, N)
        return k / k.trace()

    def entropy(matrix: Tensor) -> Tensor:
        eigenvalues = torch.linalg.eigvalsh(matrix).abs()  # (N,); rounding leaves negative ones, whose power is NaN
        return torch.log2((eigenvalues**alpha).sum()) / (1 - alpha)

    one_hot = (labels[:, None] == labels.unique()).to(acts.dtype)  # (N, C)
    scores = []
    for f in range(acts.shape[1]):
        a = gram(acts[:, f].flatten(1) if acts.dim() > 2 else acts[:, f, None], sigma)  # (N, N)
        b = gram(one_hot, label_sigma)  # (N, N)
        joint = a * b  # (N, N)
        scores.append(entropy(a) + entropy(b) - entropy(joint / joint.trace()))
    return torch.stack(scores)


def cupy_eigvalsh() -> Solver | None:
    """Return CuPy's batched solver, or None where CuPy is not installed.

    torch before 2.12 solves CUDA matrices of more than 32 rows one after the other; CuPy hands them over as one batch.
    """
    try:
        import cupy
    except ImportError:
        return None

    def eigvalsh(matrices: Tensor) -> Tensor:
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            return torch.from_dlpack(cupy.linalg.eigvalsh(cupy.from_dlpack(matrices.contiguous())))

    return eigvalsh


def _gaussian_gram(maps: Tensor, sigma: float | Tensor) -> Tensor:
    """Return exp(-|x_i - x_j|^2 / sigma^2) of each filter: (F, N, D) to (F, N, N)."""
    centred = maps - maps.mean(dim=1, keepdim=True)  # (F, N, D); the products below would cancel the common offset
    gram = torch.bmm(centred, centred.transpose(1, 2))  # (F, N, N)
    norms = gram.diagonal(dim1=-2, dim2=-1).clone()  # (F, N)
    squared = gram.mul_(-2).add_(norms[:, :, None]).add_(norms[:, None, :]).clamp_(min=0)  # (F, N, N)
    width = sigma[:, None, None] if isinstance(sigma, Tensor) else sigma
    return squared.div_(-(width**2)).exp_()


def _classes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the samples of each class, (C, m), m being the largest class, and which of these places are taken."""
    sorted_labels, order = labels.sort(stable=True)  # (N,), (N,)
    _, sizes = torch.unique_consecutive(sorted_labels, return_counts=True)  # (C,)
    places = torch.arange(int(sizes.max()), device=labels.device)  # (m,)
    starts = sizes.cumsum(0) - sizes  # (C,)
    members = order[(starts[:, None] + places).clamp(max=len(order) - 1)]  # (C, m)
    return members, places < sizes[:, None]


def _entropy(eigenvalues: Tensor, alpha: float) -> Tensor:
    """Return the Renyi entropy in bits of spectra that sum to 1, (..., n) to (...), without cancellation near 1."""
    eigenvalues = eigenvalues.clamp(min=0)  # a negative one is rounding
    beta = alpha - 1
    if beta == 0:
        return -torch.special.xlogy(eigenvalues, eigenvalues).sum(-1) / math.log(2)
    if abs(beta) <= 0.3:  # farther away 1 + the sum cancels instead
        log = eigenvalues.clamp(min=torch.finfo(eigenvalues.dtype).tiny).log()  # finite, and multiplied by 0
        return -torch.log1p((eigenvalues * torch.expm1(beta * log)).sum(-1)) / (beta * math.log(2))
    largest = eigenvalues.amax(-1, keepdim=True)  # (..., 1), taken out because lambda^alpha underflows
    power_sum = ((eigenvalues / largest) ** alpha).sum(-1)  # (...)
    return (largest[..., 0].log2() * alpha + power_sum.log2()) / (1 - alpha)
