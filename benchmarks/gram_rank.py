"""Would a low-rank form of the Gram matrices pay? python benchmarks/gram_rank.py lenet5, or vgg16; see docs/design.md.

Trains LeNet-5 on MNIST by its recipe for fewer epochs, or VGG-16 on CIFAR-10 for some steps, takes the output of every
convolution on mini-batches it was not trained on, A = K / N with the width of the layer, and asks how small a part of A
gives the entropy to 2e-5 bits, by the proven bound for a trace delta that is dropped

    |error| <= N^(alpha - 1) delta log2(N / delta) bits.

Three numbers of 1 .. N: the columns r of a pivoted Cholesky A ~ L L', by the bound and by the error itself, and the
steps r of the reduction of A, which starts from the mean, that leave no more than this of the trace. L, L' L and its
reduction take 2 N r^2 + 2/3 r^3 operations, r steps 4/3 (N^3 - (N - r)^3), the whole reduction 4/3 N^3, all taken to
run equally fast. The gain is that of the whole relevance, by the share of its time that the reduction takes; 1 where L
would cost more. Float64. Prints; writes nothing. HREL_DATA_DIR names the folder of MNIST/raw (torchvision's files) and
of cifar10/train (a folder of images for each class).
"""
# SPDX-License-Identifier: MIT

import argparse
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

import drivers
import torch
from torch import Tensor, nn

import hrel_ext
from hrel_ext import reference
from hrel_ext.pruning import train
from hrel_ext.recipes import EXPERIMENTS
from hrel_ext.zoo.data import DATASETS, Batches
from hrel_ext.zoo.models import MODELS

ALPHA, LIMIT_BITS, SEED = 1.01, 2e-5, 1787
MOST_FILTERS = 16  # of a layer and a mini-batch
UNSEEN_BATCHES = 8  # read behind those that VGG-16 is trained on


def lenet5(effort: int) -> tuple[nn.Module, Iterable[tuple[Tensor, Tensor]]]:
    """Trained for `effort` epochs; with validation mini-batches."""
    recipe = EXPERIMENTS["lenet5-mnist"]["short"]
    splits, model = DATASETS["mnist"](None, SEED), MODELS["lenet5"]()
    validation = Batches(splits.validation, recipe.batch_size)
    learning = Batches(splits.train, recipe.batch_size, seed=SEED, drop_last=True)
    trained = train(model, learning, validation, epochs=effort, learning_rate=recipe.baseline.learning_rate, seed=SEED)
    print(f"lenet5 on mnist, {effort} epochs, validation accuracy {trained.best.validation.accuracy:.3f}")
    return model, validation


def vgg16(effort: int) -> tuple[nn.Module, Iterable[tuple[Tensor, Tensor]]]:
    """Trained for `effort` steps; with mini-batches of the training images that come after."""
    import torchvision

    folder = torchvision.datasets.ImageFolder(
        Path(os.environ["HREL_DATA_DIR"]) / "cifar10" / "train", torchvision.transforms.ToTensor()
    )
    order = torch.randperm(len(folder), generator=torch.Generator().manual_seed(SEED)).tolist()
    images, labels = zip(*(folder[i] for i in order[: 128 * (effort + UNSEEN_BATCHES)]), strict=True)
    batches = list(zip(((torch.stack(images) - 0.5) / 0.25).split(128), torch.tensor(labels).split(128), strict=True))
    model = nn.Sequential(torchvision.models.vgg16_bn(weights=None).features, nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    losses = []
    for x, y in batches[:effort]:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    first, last = (sum(ten) / 10 for ten in (losses[:10], losses[-10:]))
    print(f"vgg16 on cifar10, {effort} steps of 128 images, loss {first:.2f} to {last:.2f}")
    return model, batches[effort:]


def gaussian(maps: Tensor, sigma: float) -> Tensor:
    """A = K / N of every filter: (N, F, *spatial) to (F, N, N), float64."""
    points = maps.double().flatten(2).transpose(0, 1)  # (F, N, D)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")  # (F, N, N)
    return torch.exp(-(distances**2) / sigma**2) / len(maps)


def pivoted_cholesky(a: Tensor) -> tuple[Tensor, Tensor]:
    """L (F, N, N) of (F, N, N), and what its first r columns leave of the trace, (F, N) for r = 1 .. N."""
    rest, factor = a.diagonal(dim1=1, dim2=2).clone(), torch.zeros_like(a)  # (F, N), (F, N, N)
    filters, dropped = torch.arange(len(a)), []
    for k in range(a.shape[1]):
        pivot = rest.argmax(1)  # (F,)
        known = (factor[:, :, :k] @ factor[filters, pivot, :k, None])[:, :, 0]  # (F, N)
        root = rest[filters, pivot].clamp(min=1e-300).sqrt()  # (F,)
        factor[:, :, k] = (a[filters, :, pivot] - known) / root[:, None]
        rest = (rest - factor[:, :, k] ** 2).clamp(min=0)  # below 0 it is rounding
        dropped.append(rest.sum(1))
    return factor, torch.stack(dropped, 1)


def left_by_steps(a: Tensor) -> Tensor:
    """What r steps of the reduction of (F, N, N) leave of the trace, (F, N): that of A less that of Lanczos's T."""
    count, n, _ = a.shape
    basis, left = a.new_zeros(count, n, n), [a.diagonal(dim1=1, dim2=2).sum(1)]  # rows are vectors
    vector = a.new_full((count, n), n**-0.5)
    for r in range(n):
        basis[:, r] = vector
        product = (a @ vector[:, :, None])[:, :, 0]  # (F, N)
        left.append(left[-1] - (vector * product).sum(1))
        for _ in range(2):  # once would leave rounding
            product = product - ((basis @ product[:, :, None]).transpose(1, 2) @ basis)[:, 0]
        vector = product / product.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return torch.stack(left[1:], 1)


def parts(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three numbers of the head of this file for A (F, N, N), (F,) each."""
    n = a.shape[1]
    factor, dropped = pivoted_cholesky(a)
    exact, errors = reference.matrix_entropy(a, ALPHA), []  # (F,)
    for r in range(1, n + 1):
        some = factor[:, :, :r]  # (F, N, r)
        spectrum = torch.linalg.eigvalsh(some.transpose(1, 2) @ some).clamp(min=1e-30)  # (F, r)
        # In the form that takes the trace for 1: the literal one would divide delta by alpha - 1.
        g = (spectrum * torch.expm1((ALPHA - 1) * spectrum.log())).sum(1)  # (F,)
        errors.append((-torch.log1p(g) / ((ALPHA - 1) * math.log(2)) - exact).abs())
    too_few = (bound(dropped, n), torch.stack(errors, 1), bound(left_by_steps(a), n))  # (F, N) each, in bits
    return tuple(((bits > LIMIT_BITS).sum(1) + 1).clamp(max=n).double() for bits in too_few)


def bound(delta: Tensor, n: int) -> Tensor:
    """The largest error in bits for the trace that is dropped."""
    delta = delta.clamp(min=1e-30)  # below 0 it is rounding
    return n ** abs(ALPHA - 1) * delta * (n / delta).log2()


def share_of_reduction(n: int, f: int, d: int) -> float:
    """Of the time of the relevance on one thread, that of reducing A to a band."""
    program = drivers.build(f"stage_times-{hrel_ext.build_info()['isa_level']}")
    stages = json.loads(drivers.run(str(program), "stages", *map(str, (n, f, d, 10, 0.5))))["stages"]
    return stages["reduction"] / sum(stages.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=("lenet5", "vgg16"))
    parser.add_argument("--effort", type=int, help="epochs (lenet5, 1) or steps (vgg16, 25) of training")
    parser.add_argument("--batches", type=int, default=1)
    arguments = parser.parse_args()
    make, effort = {"lenet5": (lenet5, 1), "vgg16": (vgg16, 25)}[arguments.network]
    torch.manual_seed(SEED)
    model, batches = make(arguments.effort or effort)
    found: dict[str, list[tuple[Tensor, ...]]] = {}
    shapes: dict[str, tuple[int, int, int]] = {}

    def measure(name: str, labels: Tensor, out: Tensor) -> None:
        a = gaussian(out[:, :MOST_FILTERS], hrel_ext.kernel_width(out, labels).item())  # (f, N, N)
        found.setdefault(name, []).append(parts(a))
        shapes[name] = (out.shape[0], out.shape[1], out[0, 0].numel())

    model.eval()
    torch.set_num_threads(1)  # more make eigvalsh of small matrices slower
    for (images, labels), _ in zip(batches, range(arguments.batches), strict=False):
        hooks = [
            module.register_forward_hook(lambda _, __, out, name=name, y=labels: measure(name, y, out))
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d)
        ]
        with torch.no_grad():
            model(images)
        for hook in hooks:
            hook.remove()

    print(
        "layer  N x F x D         columns, by error, steps (10 %/median/90 %)   reduction   gain by columns, by steps"
    )
    for name, triples in found.items():
        n, f, d = shapes[name]
        share = share_of_reduction(n, f, d)
        columns, by_error, steps = (torch.cat(r) for r in zip(*triples, strict=True))
        quantiles = torch.tensor([0.1, 0.5, 0.9]).double()
        cells = ["/".join(f"{x:.0f}" for x in torch.quantile(r, quantiles)) for r in (columns, by_error, steps)]
        costs = ((2 * n * columns**2 + 2 / 3 * columns**3) / (4 / 3 * n**3), 1 - (1 - steps / n) ** 3)
        gains = [f"{1 / (1 - share + share * cost.clamp(max=1).mean().item()):.2f}x" for cost in costs]
        shape = f"{n} x {f} x {d}"
        print(f"{name:<6} {shape:<16} {' '.join(f'{c:>13}' for c in cells)} {100 * share:>9.0f} %  {', '.join(gains)}")


if __name__ == "__main__":
    main()
