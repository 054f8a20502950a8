"""Prune a network of your own: train, plan, prune by HRel, retrain, save, load, export, in one page of code.

    python examples/prune_your_model.py                  half a minute on the digits that come with scikit-learn
    python examples/prune_your_model.py --show           opens the plot in a window as well

Each part, between two lines of dashes, is a cell of a notebook. Writes the pruned network, an ONNX file and a plot into
runs/your_model, and prints what was gained.
"""
# SPDX-License-Identifier: MIT

import argparse
import copy
from pathlib import Path

import torch
from torch import nn

import hrel_ext
from hrel_ext.pruning import HRel, count, evaluate, export_onnx, plan, prune, save_pruned, train
from hrel_ext.report import plots
from hrel_ext.zoo.data import Batches, digits

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="few epochs, to try it")
parser.add_argument("--show", action="store_true", help="show the plot in a window")
parser.add_argument("--output", type=Path, default=Path("runs/your_model"))
arguments = parser.parse_args()
epochs = {"baseline": 2, "cycle": 1, "final": 2} if arguments.quick else {"baseline": 20, "cycle": 2, "final": 20}
arguments.output.mkdir(parents=True, exist_ok=True)


# ----------------------------------------------------------------------------------------------------------------------
# 1. A network and its data. Any convolutional classifier will do; this one has a residual block.
class YourModel(nn.Module):
    """Two convolutions, a residual block, a linear layer: (N, 1, 28, 28) to (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
        self.inner = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.back = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        return self.head(x + self.back(self.inner(x)))


torch.manual_seed(0)
model, splits = YourModel(), digits(seed=0)
batches = Batches(splits.train, 50, seed=0, drop_last=True)  # any (inputs, labels) that can be gone through again
validation, test = Batches(splits.validation, 100), Batches(splits.test, 100)
example = splits.train.images[:1]

# ----------------------------------------------------------------------------------------------------------------------
# 2. Train it. A loop of your own does as well; this one keeps the best epoch on the validation split.
train(model, batches, validation, epochs=epochs["baseline"], learning_rate=0.05)
unpruned = copy.deepcopy(model)

# ----------------------------------------------------------------------------------------------------------------------
# 3. Plan: what would go for 40 % of the MACs, and why the rest stays. Nothing is changed yet.
made = plan(model, example, target={"macs": 0.4}, residual="stream")
print(f"{'layer':<10}{'filters':>8}{'left':>6}  why it stays")
for layer in made.layers:
    print(f"{layer.name:<10}{layer.before:>8}{layer.after:>6}  {layer.reason or ''}".rstrip())

# ----------------------------------------------------------------------------------------------------------------------
# 4. Prune in four cycles: score every filter by its relevance I(A; Y), remove the lowest, retrain.
result = prune(
    model,
    batches,
    example,
    plan=made,
    cycles=4,
    criterion=HRel(batches, alpha=1.0, where="bn"),
    retrain=lambda model, cycle: train(model, batches, validation, epochs=epochs["cycle"], learning_rate=0.02),
    evaluate=lambda model: evaluate(model, validation).accuracy,
)
train(model, batches, validation, epochs=epochs["final"], learning_rate=0.05)

# ----------------------------------------------------------------------------------------------------------------------
# 5. Save, load without pickle, and export; the file is run and compared before it is kept.
save_pruned(arguments.output, model, result, input_shape=tuple(example.shape[1:]))
loaded = hrel_ext.load_pruned(arguments.output, model_fn=YourModel).eval()
model.eval()
assert torch.equal(loaded(splits.test.images), model(splits.test.images))
agreement = export_onnx(loaded, example, arguments.output / "your_model.onnx")

# ----------------------------------------------------------------------------------------------------------------------
# 6. What was gained. The test split is read here, once for each network, and decided nothing.
costs = [count(network, example) for network in (unpruned, loaded)]
accuracies = [evaluate(network, test).accuracy for network in (unpruned, loaded)]
print(f"\n{'':<16}{'before':>10}{'after':>10}")
print(f"{'MACs':<16}{costs[0].macs:>10,}{costs[1].macs:>10,}")
print(f"{'parameters':<16}{costs[0].parameters:>10,}{costs[1].parameters:>10,}")
print(f"{'test accuracy':<16}{accuracies[0]:>10.2%}{accuracies[1]:>10.2%}")
print(f"{arguments.output / 'your_model.onnx'} gives the same outputs to {agreement.difference:.1g}")

# ----------------------------------------------------------------------------------------------------------------------
# 7. A picture: accuracy and costs after each cycle.
start = (evaluate(unpruned, validation).accuracy, costs[0].macs, costs[0].parameters)
points = [start, *((cycle.accuracy, cycle.cost.macs, cycle.cost.parameters) for cycle in result.cycles)]
plots.save(plots.accuracy_by_cycle({"hrel": [points]}), arguments.output / "cycles.png")
if arguments.show:
    from PIL import Image

    Image.open(arguments.output / "cycles.png").show()
