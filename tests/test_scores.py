"""The table of scores: its statistics against scipy and by hand, and the file that holds it."""
# SPDX-License-Identifier: MIT

import dataclasses
import hashlib
import json
import math
import re
import sys
from itertools import permutations, product

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import nn

from hrel_ext import Header, LayerScores, PermutationNull, Scores, kendall_tau, weight_hash
from hrel_ext import scores as table_of_scores

HEADER = Header(
    modules={"a": "features.0", "b/c": "features.3"},
    where="relu",
    sigma="layer",
    alpha=1.01,
    label_sigma=0.1,
    permutations=5,
    seed=3,
    batch_size=20,
    versions={"hrel_ext": "1", "torch": "2"},
    weights="0" * 64,
)


@pytest.fixture
def scores(rng):
    layers = {
        "a": LayerScores(
            torch.rand(7, 4, generator=rng), torch.rand(7, generator=rng), torch.rand(5, 4, generator=rng)
        ),
        "b/c": LayerScores(torch.rand(7, 3, generator=rng), torch.rand(7, 3, generator=rng), torch.rand(5, 3)),
    }
    return Scores(layers, HEADER)


def test_mean_variance_and_error_are_those_over_the_batches(rng):
    table = torch.rand(7, 4, generator=rng)
    layer = LayerScores(table, torch.ones(7))
    assert layer.count == 7
    assert torch.equal(layer.mean, table.mean(0)) and torch.equal(layer.variance, table.var(0))
    torch.testing.assert_close(layer.standard_error, table.var(0).sqrt() / math.sqrt(7))
    assert layer.std.equal(table.std(0))


def test_one_batch_decides_nothing():
    layer = LayerScores(torch.rand(1, 4), torch.ones(1))
    assert layer.agreement is None and layer.distinguishable is None and layer.rank_stability is None
    assert layer.variance.equal(torch.zeros(4)) and layer.standard_error.isnan().all()
    assert LayerScores(torch.rand(9, 1), torch.ones(9)).distinguishable is None  # nor does one filter


def test_the_null_is_that_of_the_mean(rng):
    table, null = torch.rand(7, 4, generator=rng), torch.rand(19, 4, generator=rng)
    layer, by_hand = LayerScores(table, torch.ones(7), null), PermutationNull(table.mean(0), null)
    for name in ("debiased", "z", "p_value"):
        assert torch.equal(getattr(layer, name), getattr(by_hand, name))
    with pytest.raises(ValueError, match="null must be there: collect the scores with permutations >= 1, got None"):
        _ = LayerScores(table, torch.ones(7)).z


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ((torch.rand(4), torch.rand(4)), "per_batch must have shape (B, F) with B, F >= 1, got (4,)"),
        ((torch.rand(0, 4), torch.rand(0)), "per_batch must have shape (B, F) with B, F >= 1, got (0, 4)"),
        ((torch.rand(3, 4), torch.rand(4)), "widths must have shape (B,) = (3,) or (B, F) = (3, 4), got (4,)"),
        (
            (torch.rand(3, 4), torch.rand(3), torch.rand(2, 3)),
            "null must have shape (R, F) with R >= 1 and F = 4, got (2, 3)",
        ),
        (
            (torch.ones(2, 3), torch.ones(2), None, torch.ones(3, 3)),
            "moments must have shape (3, F) = (3, 3) and count more than the 2 mini-batches of per_batch, got (3, 3)",
        ),
    ),
)
def test_shapes_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LayerScores(*arguments)


@pytest.mark.parametrize("levels", (3, 10**9))  # with many ties, and without
def test_kendall_tau_is_scipys(rng, levels):
    for num_filters in (2, 7, 40):
        first, second = (torch.rand(2, num_filters, generator=rng) * levels).long().double()
        expected = stats.kendalltau(first.numpy(), second.numpy()).statistic
        assert kendall_tau(first, second) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert math.isnan(kendall_tau(torch.ones(5), torch.arange(5.0)))
    with pytest.raises(ValueError, match=re.escape("must have one shape (F,), got (5,) and (4,)")):
        kendall_tau(torch.ones(5), torch.ones(4))


def test_rank_stability_compares_every_other_batch_with_the_rest(rng):
    table = torch.rand(5, 6, generator=rng)
    expected = stats.kendalltau(table[[0, 2, 4]].mean(0), table[[1, 3]].mean(0)).statistic
    assert LayerScores(table, torch.ones(5)).rank_stability == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("levels", (4, 10**9))
def test_the_statistic_is_friedmans(rng, levels):
    table = (torch.rand(9, 6, generator=rng) * levels).floor()  # (B, F)
    expected = stats.friedmanchisquare(*table.T.double().numpy()).statistic
    assert LayerScores(table, torch.ones(9)).agreement.concordance == pytest.approx(expected / (9 * 5), abs=1e-12)


def test_the_gamma_distribution_has_the_exact_moments_and_is_near_the_exact_p_value():
    ranks = list(permutations((1.0, 2.0, 3.0)))
    tables = [LayerScores(torch.tensor(rows), torch.ones(4)) for rows in product(ranks, repeat=4)]  # all 6^4
    statistics = torch.tensor([table.agreement.concordance * 4 * 2 for table in tables], dtype=torch.float64)
    assert statistics.mean().item() == pytest.approx(2)  # F - 1
    assert statistics.var(correction=0).item() == pytest.approx(2 * 2 * 3 / 4)  # 2 (F - 1) (B - 1) / B
    for value in statistics.unique():
        exact = (statistics >= value - 1e-9).double().mean().item()
        approximate = tables[(statistics - value).abs().argmin()].agreement.p_value
        assert exact > 0.2 or abs(approximate - exact) < 0.04  # where a decision is near


@pytest.mark.parametrize(("count", "num_filters"), ((3, 8), (5, 2), (10, 20), (20, 5)))
@pytest.mark.parametrize("noise", ("normal", "ties", "skewed"))
def test_filters_that_do_not_differ_are_rarely_told_apart(rng, count, num_filters, noise):
    apart, trials = 0, 500
    for _ in range(trials):
        table = torch.randn(count, num_filters, generator=rng) + 9 * torch.randn(count, 1, generator=rng)
        table = {"normal": table, "ties": table.round(), "skewed": (table / 5).exp()}[noise]
        apart += LayerScores(table, torch.ones(count)).distinguishable
    assert apart / trials < 0.05 + 4 * math.sqrt(0.05 * 0.95 / trials)  # 0.089, four standard errors above the level


def test_filters_that_differ_are_told_apart(rng):
    for _ in range(200):
        table = torch.linspace(0, 3, 12) + torch.randn(6, 12, generator=rng)  # spread over filters: one of the noise
        assert LayerScores(table, torch.ones(6)).distinguishable
    assert LayerScores(torch.ones(6, 12), torch.ones(6)).agreement == (0.0, 1.0)


def test_a_table_comes_back_bit_for_bit(scores, tmp_path):
    scores.save(tmp_path / "table")
    loaded = Scores.load(str(tmp_path / "table"))
    assert loaded.header == HEADER and list(loaded) == ["a", "b/c"] and len(loaded) == 2
    for name, layer in scores.items():
        for part in ("per_batch", "widths", "null"):
            assert torch.equal(getattr(loaded[name], part), getattr(layer, part))
    assert repr(loaded) == "Scores(7 mini-batches of 20; 'a': 4 filters, 'b/c': 3 filters)"
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


@pytest.mark.parametrize(("count", "kept"), ((8, range(8)), (9, range(0, 9, 2)), (40, range(0, 40, 8))))
def test_many_mini_batches_keep_some_rows_and_the_moments_of_all(count, kept, rng, tmp_path, monkeypatch):
    monkeypatch.setattr(table_of_scores, "MOST_ROWS", 8)
    drawn = 3 + torch.rand(count, 4, generator=rng)
    rows = table_of_scores.Rows()
    for batch, row in enumerate(drawn):
        rows.append(batch, row)
        assert len(rows._rows) <= 8
    per_batch, moments = rows.together(count)
    assert torch.equal(per_batch, drawn[kept.start :: kept.step])
    layer = LayerScores(per_batch, torch.ones(len(per_batch)), moments=moments)
    assert layer.count == count and (moments is None) == (count == 8)
    torch.testing.assert_close(layer.mean, drawn.mean(0))
    torch.testing.assert_close(layer.variance, drawn.var(0))
    torch.testing.assert_close(layer.std, drawn.std(0))
    torch.testing.assert_close(layer.standard_error, drawn.std(0) / math.sqrt(count))
    header = dataclasses.replace(HEADER, modules={"a": "a"}, permutations=0)
    Scores({"a": layer}, header).save(tmp_path / "scores.safetensors")
    loaded = Scores.load(tmp_path / "scores.safetensors")["a"]
    assert torch.equal(loaded.per_batch, per_batch) and loaded.count == count
    assert moments is None or torch.equal(loaded.moments, moments)


def test_an_interrupted_save_leaves_the_old_file(scores, tmp_path, monkeypatch):
    scores.save(tmp_path / "table")
    before = (tmp_path / "table").read_bytes()

    def full(path, content):
        path.touch()
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        scores.save(tmp_path / "table")
    assert [path.name for path in tmp_path.iterdir()] == ["table"] and (tmp_path / "table").read_bytes() == before


def changed(path, *, drop=(), **header):
    """Writes the file anew, with another header and without some tensors."""
    content = {"schema_version": 1, **json.loads(json.dumps(vars(HEADER))), **header}
    content = {key: value for key, value in content.items() if value is not None}
    tensors = {key: tensor for key, tensor in load_file(path).items() if key not in drop}
    save_file(tensors, path, metadata={"hrel_ext.scores": json.dumps(content)})


@pytest.mark.parametrize(
    ("damage", "message"),
    (
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "must be a whole safetensors file: "),
        (lambda path: path.write_bytes(b""), "must be a whole safetensors file: "),
        (
            lambda path: save_file({"x": torch.ones(1)}, path, metadata={"format": "pt"}),
            "must have 'hrel_ext.scores' in its metadata, got ['format']",
        ),
        (
            lambda path: save_file(load_file(path), path, metadata={"hrel_ext.scores": "[1"}),
            "must hold a table of scores: Expecting",
        ),
        (
            lambda path: save_file(load_file(path), path, metadata={"hrel_ext.scores": "[1]"}),
            "must hold a table of scores: the header must be a JSON object, got list",
        ),
        (
            lambda path: changed(path, schema_version=2),
            "must hold a table of scores: schema_version must be 1, got 2",
        ),
        (
            lambda path: changed(path, seed=None),
            "must hold a table of scores: the header must have modules, where, sigma, alpha,",
        ),
        (lambda path: changed(path, seed="3"), "must hold a table of scores: seed must be of type int, got str"),
        (
            lambda path: changed(path, drop=("widths/a",)),
            "must hold a table of scores: its tensors must be null/a, null/b/c, per_batch/a, per_batch/b/c, widths/a,",
        ),
        (
            lambda path: changed(path, permutations=6),
            "must hold a table of scores: layers must have a null of 6 permutations, got [5]",
        ),
        (
            lambda path: save_file(
                {**load_file(path), "widths/a": torch.ones(6)},
                path,
                metadata={"hrel_ext.scores": json.dumps({"schema_version": 1, **vars(HEADER)})},
            ),
            "must hold a table of scores: widths must have shape (B,) = (7,) or (B, F) = (7, 4), got (6,)",
        ),
        (
            lambda path: save_file(
                {**load_file(path), "widths/a": torch.full((7,), torch.nan)},
                path,
                metadata={"hrel_ext.scores": json.dumps({"schema_version": 1, **vars(HEADER)})},
            ),
            "must hold a table of scores: widths/a must be float32 and finite, got torch.float32",
        ),
    ),
)
def test_a_file_that_is_no_table_is_refused(scores, tmp_path, damage, message):
    path = tmp_path / "table"
    scores.save(path)
    damage(path)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path} {message}')}"):
        Scores.load(path)


def test_a_missing_file_and_a_missing_package_are_named(scores, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        Scores.load(tmp_path / "nothing")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (scores.save, Scores.load):
        with pytest.raises(ImportError, match=re.escape("needs safetensors: pip install 'hrel_ext[prune]'")):
            call(tmp_path / "table")


def test_layers_that_do_not_fit_each_other_are_named():
    one, two = LayerScores(torch.rand(3, 2), torch.ones(3)), LayerScores(torch.rand(4, 2), torch.ones(4))
    header = Header(**{**vars(HEADER), "permutations": 0})
    with pytest.raises(ValueError, match=re.escape("must have the same number of mini-batches, got [3, 4]")):
        Scores({"a": one, "b/c": two}, header)
    with pytest.raises(ValueError, match=re.escape("layers must be those of the header (a, b/c), got a")):
        Scores({"a": one}, header)
    with pytest.raises(ValueError, match=re.escape("layers must have a null of 5 permutations, got [0]")):
        Scores({"a": one, "b/c": one}, HEADER)


def test_the_weight_hash_is_the_documented_one_and_tells_stale_scores():
    model = nn.Sequential(nn.Conv2d(1, 2, 3).bfloat16(), nn.BatchNorm2d(2))
    text = {
        "0.bias": "0.bias torch.bfloat16 [2]\n",
        "0.weight": "0.weight torch.bfloat16 [2, 1, 3, 3]\n",
        "1.bias": "1.bias torch.float32 [2]\n",
        "1.num_batches_tracked": "1.num_batches_tracked torch.int64 []\n",
        "1.running_mean": "1.running_mean torch.float32 [2]\n",
        "1.running_var": "1.running_var torch.float32 [2]\n",
        "1.weight": "1.weight torch.float32 [2]\n",
    }
    by_hand = hashlib.sha256()
    for name, line in text.items():
        by_hand.update(line.encode() + bytes(model.state_dict()[name].clone().untyped_storage()))
    assert weight_hash(model) == by_hand.hexdigest()
    layer = LayerScores(torch.rand(3, 2), torch.ones(3))
    header = Header(**{**vars(HEADER), "modules": {"0": "0"}, "permutations": 0, "weights": weight_hash(model)})
    scores = Scores({"0": layer}, header)
    assert scores.matches(model) and scores.matches(model.to(memory_format=torch.channels_last))
    nn.init.zeros_(model[0].bias)
    assert not scores.matches(model)
