"""Which filters does a width of the layer call relevant, and which one per filter? python benchmarks/width_ranking.py

Trains LeNet-5 on MNIST by its recipe for fewer epochs, scores the output of both convolutions on mini-batches it was
not trained on, and prints for each rule of the width how far apart the filters are, in bits, and the rank correlation
(Spearman) of the scores with the variance of the activations, summed over the map. Then the accuracy, on other
mini-batches, when only the best filters are left and the outputs of the others are 0, without any training after,
beside that of filters drawn at random. One network and one seed. Prints; writes nothing. HREL_DATA_DIR names the folder
of MNIST/raw (torchvision's files). See docs/design.md.
"""
# SPDX-License-Identifier: MIT

import argparse
from collections.abc import Iterable
from contextlib import ExitStack

import torch
from gram_rank import ALPHA, SEED, lenet5
from torch import Tensor, nn

import hrel_ext

CONVOLUTIONS = ("conv1", "conv2")
SCORES = {"width of the layer": "layer", "width per filter": "filter", "variance": None}
LEFT = ((8, 15), (4, 5), (2, 3))  # filters of the two convolutions
DRAWS = 20


def score(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The mean over mini-batches of every score, (F,), by score and convolution."""
    sums: dict[str, dict[str, Tensor]] = {name: {} for name in SCORES}

    def add(where: str, maps: Tensor, labels: Tensor) -> None:
        for name, sigma in SCORES.items():
            if sigma is None:
                scores = maps.var(0).sum((1, 2))  # (F,)
            else:
                scores = hrel_ext.relevance(maps, labels, sigma=sigma, alpha=ALPHA)  # (F,)
            sums[name][where] = sums[name].get(where, 0) + scores

    count = 0
    for images, labels in batches:
        count += 1
        with ExitStack() as hooks:
            for where in CONVOLUTIONS:
                hook = lambda _, __, maps, where=where, labels=labels: add(where, maps, labels)  # noqa: E731
                hooks.enter_context(model.get_submodule(where).register_forward_hook(hook))
            model(images)
    return {name: {where: total / count for where, total in layers.items()} for name, layers in sums.items()}


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], kept: dict[str, Tensor]) -> float:
    """Share of right answers in % when the outputs of all filters but those ``kept`` are 0."""
    right = total = 0
    with ExitStack() as hooks:
        for where, filters in kept.items():
            convolution = model.get_submodule(where)
            mask = torch.zeros(convolution.out_channels, 1, 1)  # (F, 1, 1)
            mask[filters] = 1
            hooks.enter_context(convolution.register_forward_hook(lambda _, __, maps, mask=mask: maps * mask))
        for images, labels in batches:
            right += (model(images).argmax(1) == labels).sum().item()
            total += len(labels)
    return 100 * right / total


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of (F,) and (F,) without ties."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])  # (2, F)
    return torch.corrcoef(ranks)[0, 1].item()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--effort", type=int, default=1, help="epochs of training")
    parser.add_argument("--batches", type=int, default=20, help="mini-batches to score on, of 50")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    with torch.enable_grad():
        model, validation = lenet5(arguments.effort)
    model.eval()
    batches = list(validation)
    seen, unseen = batches[: arguments.batches], batches[arguments.batches :]
    scores = score(model, seen)

    print(f"scores on {len(seen)} mini-batches of {len(seen[0][1])}")
    print("                     bits, smallest to largest     rank correlation with variance")
    print("                     conv1          conv2          conv1   conv2")
    for name in list(SCORES)[:2]:
        bits = ["{:.2f} to {:.2f}".format(*scores[name][where].aminmax()) for where in CONVOLUTIONS]
        ranks = [f"{spearman(scores[name][where], scores['variance'][where]):+.2f}" for where in CONVOLUTIONS]
        print(f"{name:<20} {bits[0]:<14} {bits[1]:<14} {ranks[0]:<7} {ranks[1]}")

    print(f"accuracy in % on {len(unseen)} other mini-batches, no training after; {DRAWS} draws at random")
    print(f"filters left  {'  '.join(f'{name:>18}' for name in SCORES)}  random, smallest/median/largest")
    rng = torch.Generator().manual_seed(SEED)
    for left in LEFT:
        counts = dict(zip(CONVOLUTIONS, left, strict=True))
        cells = [
            accuracy(model, unseen, {where: layers[where].topk(count).indices for where, count in counts.items()})
            for layers in scores.values()
        ]
        drawn = torch.tensor(
            [
                accuracy(
                    model,
                    unseen,
                    {
                        where: torch.randperm(len(scores["variance"][where]), generator=rng)[:count]
                        for where, count in counts.items()
                    },
                )
                for _ in range(DRAWS)
            ]
        )
        row = "  ".join(f"{cell:>18.2f}" for cell in cells)
        print(f"{left[0]:>3}, {left[1]:<7}  {row}  {drawn.min():.2f}/{drawn.median():.2f}/{drawn.max():.2f}")


if __name__ == "__main__":
    main()
