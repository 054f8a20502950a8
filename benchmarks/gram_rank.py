"""Would a low-rank form of the Gram matrices pay? python benchmarks/gram_rank.py lenet5, or vgg16; see docs/design.md.

Trains LeNet-5 on MNIST by its recipe for fewer epochs, or VGG-16 on CIFAR-10 for some steps, takes the output of every
convolution on mini-batches it was not trained on, A = K / N with the width of the layer, and asks how many columns r a
pivoted Cholesky A ~ L L', L (N, r), needs so that the entropy errs by 2e-5 bits at most: by the proven bound

    |error| <= N^(alpha - 1) delta log2(N / delta) bits,   delta = tr A - |L|^2 the trace that is dropped,

and by the error itself. S(A) is then that of the r x r matrix L' L. To reduce A takes 4/3 N^3 operations; L, L' L and
its reduction take 2 N r^2 + 2/3 r^3, taken to run as fast. The gain is that of the whole relevance, by the share of its
time that the reduction takes, and 1 where L would cost more. Float64. Prints; writes nothing. HREL_DATA_DIR names the
folder of MNIST/raw (torchvision's files) and of cifar10/train (a folder of images for each class).
"""
# SPDX-License-Identifier: MIT

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path

import drivers
import torch
from torch import Tensor, nn

import hrel_ext
from hrel_ext import reference
from hrel_ext.pruning import train
from hrel_ext.recipes import RECIPES
from hrel_ext.zoo.data import DATASETS, Batches
from hrel_ext.zoo.models import MODELS

ALPHA, LIMIT_BITS, SEED = 1.01, 2e-5, 1787
MOST_FILTERS = 16  # of a layer and a mini-batch
UNSEEN_BATCHES = 8  # read behind those that VGG-16 is trained on


def lenet5(effort: int) -> tuple[nn.Module, Iterable[tuple[Tensor, Tensor]]]:
    """Trained for `effort` epochs; with validation mini-batches."""
    recipe = RECIPES["lenet5", "mnist"]
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


def ranks(a: Tensor) -> tuple[Tensor, Tensor]:
    """Columns that the bound asks for and that the error asks for, (F,) each, of A (F, N, N)."""
    n = a.shape[1]
    factor, dropped = pivoted_cholesky(a)
    delta = dropped.clamp(min=1e-30)
    bound = n ** abs(ALPHA - 1) * delta * (n / delta).log2()  # (F, N)
    exact, errors = reference.matrix_entropy(a, ALPHA), []  # (F,)
    for r in range(1, n + 1):
        some = factor[:, :, :r]  # (F, N, r)
        spectrum = torch.linalg.eigvalsh(some.transpose(1, 2) @ some).clamp(min=0)  # (F, r)
        errors.append((spectrum.pow(ALPHA).sum(1).log2() / (1 - ALPHA) - exact).abs())
    enough = (bound <= LIMIT_BITS, torch.stack(errors, 1) <= LIMIT_BITS)  # (F, N), from some column on
    return tuple(((~e).sum(1) + 1).clamp(max=n).double() for e in enough)


def share_of_reduction(n: int, f: int, d: int) -> float:
    """Of the time of the relevance on one thread, that of reducing A to tridiagonal form."""
    program = drivers.build(f"stage_times-{hrel_ext.build_info()['isa_level']}")
    stages = json.loads(drivers.run(str(program), "stages", *map(str, (n, f, d, 10, 0.5))))["stages"]
    return stages["tridiagonal"] / sum(stages.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=("lenet5", "vgg16"))
    parser.add_argument("--effort", type=int, help="epochs (lenet5, 1) or steps (vgg16, 25) of training")
    parser.add_argument("--batches", type=int, default=1)
    arguments = parser.parse_args()
    make, effort = {"lenet5": (lenet5, 1), "vgg16": (vgg16, 25)}[arguments.network]
    torch.manual_seed(SEED)
    model, batches = make(arguments.effort or effort)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    shapes: dict[str, tuple[int, int, int]] = {}

    def measure(name: str, labels: Tensor, out: Tensor) -> None:
        a = gaussian(out[:, :MOST_FILTERS], hrel_ext.kernel_width(out, labels).item())  # (f, N, N)
        found.setdefault(name, []).append(ranks(a))
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

    print("layer          N x F x D          rank by bound, by error (10 %, median, 90 %)   reduction   gain at most")
    for name, pairs in found.items():
        n, f, d = shapes[name]
        share, cells, gains = share_of_reduction(n, f, d), [], []
        for r in map(torch.cat, zip(*pairs, strict=True)):  # by the bound, by the error
            cells.append("/".join(f"{x:.0f}" for x in torch.quantile(r, torch.tensor([0.1, 0.5, 0.9]).double())))
            cost = ((2 * n * r**2 + 2 / 3 * r**3) / (4 / 3 * n**3)).clamp(max=1).mean().item()
            gains.append(f"{1 / (1 - share + share * cost):.2f}x")
        shape = f"{n} x {f} x {d}"
        print(f"{name:<14} {shape:<18} {cells[0]:>16}  {cells[1]:>16} {100 * share:>19.0f} %   {', '.join(gains)}")


if __name__ == "__main__":
    main()
