"""The hooks for Lightning and Hugging Face's Trainer, and torch-kirigami's metric, by the real packages."""
# SPDX-License-Identifier: MIT

import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hrel_ext


@pytest.fixture
def images(rng) -> TensorDataset:
    labels = torch.arange(48) % 3
    return TensorDataset(torch.rand(48, 3, 8, 8, generator=rng) + labels[:, None, None, None], labels)


@pytest.fixture
def batches(images) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(DataLoader(images, batch_size=24))


def is_of(scores: hrel_ext.Scores, model: nn.Module, batches, **options) -> bool:
    """Whether the scores are those of the model as it is now."""
    expected = hrel_ext.collect(model, batches, **options)
    return all(torch.equal(scores[name].per_batch, expected[name].per_batch) for name in expected)


def test_lightning_scores_every_other_epoch(images, batches, tmp_path):
    pytest.importorskip("lightning", reason="needs the extra [lightning]")
    from lightning.pytorch import LightningModule, Trainer

    from hrel_ext.integrations.lightning import RelevanceCallback

    class Small(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

        def forward(self, inputs):
            return self.net(inputs)

        def training_step(self, batch):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    module, callback = Small(), RelevanceCallback(batches, every=2, where="relu")
    before = hrel_ext.collect(module, batches, where="relu")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=5, accelerator="cpu", callbacks=[callback], default_root_dir=tmp_path, **quiet)
    trainer.fit(module, DataLoader(images, batch_size=16))
    assert list(callback.scores) == [2, 4] and module.training
    assert not torch.equal(callback.scores[2]["net.0"].per_batch, before["net.0"].per_batch)
    trainer = Trainer(max_epochs=2, accelerator="cpu", callbacks=[callback], default_root_dir=tmp_path, **quiet)
    trainer.fit(module, DataLoader(images, batch_size=16))
    assert is_of(callback.scores[2], module, batches, where="relu")  # of the end of the second epoch, as it left it


TWO_RANKS = """
import json
from pathlib import Path
import torch
from torch import nn
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from hrel_ext.integrations.lightning import RelevanceCallback

class Small(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def forward(self, inputs):
        return self.net(inputs)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

torch.manual_seed(0)
images = TensorDataset(torch.rand(48, 3, 8, 8), torch.arange(48) % 3)
callback = RelevanceCallback(list(DataLoader(images, batch_size=12)))
trainer = Trainer(
    max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", callbacks=[callback],
    logger=False, enable_checkpointing=False, enable_progress_bar=False,
)
trainer.fit(Small(), DataLoader(images, batch_size=12))
Path(f"rank-{trainer.global_rank}.json").write_text(json.dumps(callback.scores[1]["net.0"].per_batch.tolist()))
"""


def test_lightning_scores_on_two_ranks_alike(tmp_path):
    pytest.importorskip("lightning", reason="needs the extra [lightning]")
    (script := tmp_path / "two_ranks.py").write_text(TWO_RANKS)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=400, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second and len(first) == 4  # mini-batches


def test_transformers_scores_every_other_epoch(images, batches, tmp_path):
    pytest.importorskip("transformers", reason="needs the extra [transformers]")
    from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

    from hrel_ext.integrations.transformers import RelevanceCallback

    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_sizes": [4], "depths": [1], "layer_type": "basic", "num_labels": 3}
    model, callback = ResNetForImageClassification(ResNetConfig(**sizes)), RelevanceCallback(batches, every=2)
    arguments = TrainingArguments(
        tmp_path, num_train_epochs=4, per_device_train_batch_size=16, use_cpu=True, report_to=[], save_strategy="no"
    )
    rows = [{"pixel_values": pixels, "labels": label} for pixels, label in images]
    Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
    assert list(callback.scores) == [2, 4]
    assert is_of(callback.scores[4], model, batches) and not is_of(callback.scores[2], model, batches)


def test_kirigami_removes_the_filters_with_the_lowest_scores(images, batches):
    pytest.importorskip("torch_kirigami", reason="needs the extra [kirigami]")
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import ChannelRatio, DynamicGreedy, Greedy, PlanningError, Pruner

    from hrel_ext.integrations.kirigami import Relevance

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
            self.outer, self.head = nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8, 3)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            return self.head(torch.relu(x + self.outer(torch.relu(self.inner(x)))).mean((2, 3)))

    for strategy in (Greedy, DynamicGreedy):
        torch.manual_seed(0)
        model = Residual().eval()
        scores = hrel_ext.collect(model, batches)
        whole = {name: module.weight.detach().clone() for name, module in model.named_children()}
        pruner = Pruner(model, graph=DependencyGraph.build(model, args=(images[:2][0],)))
        candidates = pruner.discover_candidates()
        model, _ = pruner.prune(candidates, budget=ChannelRatio(0.5), strategy=strategy(Relevance(scores)))
        inner = scores["inner"].mean.argsort()[3:].sort().values
        joined = (scores["stem"].mean + scores["outer"].mean).argsort()[4:].sort().values  # one sum adds them
        assert torch.equal(model.stem.weight, whole["stem"][joined])
        assert torch.equal(model.inner.weight, whole["inner"][inner][:, joined])
        assert torch.equal(model.outer.weight, whole["outer"][joined][:, inner])
        assert model(images[:2][0]).shape == (2, 3)

    model = Residual().eval()
    pruner = Pruner(model, graph=DependencyGraph.build(model, args=(images[:2][0],)))
    with pytest.raises(PlanningError, match="must take a filter of a scored layer"):
        pruner.prune(pruner.discover_candidates(), budget=ChannelRatio(0.5), strategy=Greedy(Relevance({})))


@pytest.mark.parametrize("package", ("lightning", "transformers"))
def test_a_wrong_interval_is_refused(package):
    pytest.importorskip(package, reason=f"needs the extra [{package}]")
    module = pytest.importorskip(f"hrel_ext.integrations.{package}")
    with pytest.raises(ValueError, match=r"^every must be >= 1, got 0$"):
        module.RelevanceCallback([], every=0)


@pytest.mark.parametrize("package", ("lightning", "transformers", "torch_kirigami"))
def test_without_its_package_an_integration_names_the_extra(package):
    extra = package.removeprefix("torch_")
    code = f"import sys; sys.modules['{package}'] = None; import hrel_ext.integrations.{extra}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr.strip().endswith(f"needs {package}: pip install 'hrel_ext[{extra}]'")
