"""The pictures: what is on their axes, in which units, and the files."""
# SPDX-License-Identifier: MIT

import itertools
import re
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.text import Text

import hrel_ext
from hrel_ext.report import PlaneHeader, PlaneHistory, plots


def history(layers: int = 3, points: int = 40) -> PlaneHistory:
    rng = torch.Generator().manual_seed(3)
    names = [f"layer{at}" for at in range(layers)]
    return PlaneHistory(
        iterations=torch.arange(1, 1 + points),
        information=1 + torch.rand(points, layers, 2, generator=rng),
        layer_entropy=torch.full((points, layers), 3.0),
        input_entropy=torch.full((points,), 4.0),
        label_entropy=torch.full((points,), 2.5),
        widths=1 + torch.rand(points, layers, generator=rng),
        input_widths=torch.full((points,), 7.0),
        header=PlaneHeader(
            layers=dict(zip(names, names, strict=True)),
            where="conv",
            every=1,
            input_sigma="median",
            alpha=1.01,
            batch_size=32,
            stages={"baseline": 0, "cycle 1": points // 2, "cycle 2": 3 * points // 4},
            steps=points,
            seed=None,
            versions={},
        ),
    )


@pytest.fixture(scope="module")
def report():
    """What a run writes of its filters: conv2 goes from 50 to 22 in 14 cycles of two, conv1 stops at cycle 3."""
    rng, left, cycles = np.random.default_rng(3), {"conv1": list(range(20)), "conv2": list(range(50))}, []
    for number in range(1, 15):
        losing = [name for name in left if name == "conv2" or number <= 3]
        scores = {name: rng.random(len(left[name])).tolist() for name in losing}
        removed = {name: sorted(rng.choice(left[name], 2, replace=False).tolist()) for name in losing}
        left = {name: [f for f in of if f not in removed.get(name, ())] for name, of in left.items()}
        filters = {name: len(of) for name, of in left.items()}
        cycles.append({"cycle": number, "filters": filters, "removed": removed, "score_mean": scores})
    return {"filters": {"before": {"conv1": 20, "conv2": 50}, "after": cycles[-1]["filters"]}, "cycles": cycles}


def labels(figure) -> list[tuple[str, str]]:
    return [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_no_global_state_is_touched():
    matplotlib.use("Agg")  # settled, so that it can be compared
    before = matplotlib.rcParams.copy()
    figure = plots.information_plane(history(), dark=True)
    assert matplotlib.rcParams == before
    assert figure.get_facecolor()[:3] == pytest.approx(matplotlib.colors.to_rgb(plots.DARK["figure.facecolor"]))
    assert plots.information_plane(history()).get_facecolor()[:3] == (1, 1, 1)
    if "matplotlib.pyplot" in sys.modules:  # of another test
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


@pytest.mark.parametrize("layers", (1, 5, 15))
def test_the_plane_has_a_way_and_a_labelled_final_point_for_each_layer(layers):
    recorded = history(layers)
    figure = plots.information_plane(recorded, average=7)
    axes, bar = figure.axes
    assert labels(figure) == [("I(X; T), bits", "I(T; Y), bits"), ("", "iteration")]
    *ways, final = axes.collections
    assert [len(way.get_offsets()) for way in ways] == [6] * layers  # 5 means of 7 points, and one of 5
    np.testing.assert_allclose(ways[-1].get_offsets()[0], recorded.information[:7, -1].mean(0), rtol=1e-6)
    np.testing.assert_allclose(final.get_offsets(), recorded.information[-10:].mean(0), rtol=1e-6)
    assert texts(axes) == ["S(Y) = 2.50, mean of the mini-batches", *recorded.layers]
    assert axes.get_title() == "N = 32, alpha = 1.01, width of the input 7 (median rule)"
    shades = ways[0].get_facecolors()
    assert shades[0].sum() > shades[-1].sum()  # light early
    assert np.allclose(shades[-1][:3], plots.layer_colors(layers)[0])
    assert bar.get_ylim() == (1, 40)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts[1:]]  # without their lines
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_before_and_after_share_their_axes_and_say_how_far_the_plane_moved():
    recorded = history()
    figure = plots.before_and_after(recorded, "baseline", last=5)
    left, right = figure.axes
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == right.get_ylim()
    assert labels(figure) == [("I(X; T), bits", "I(T; Y), bits"), ("I(X; T), bits", "")]
    moved = (recorded.information[-5:].mean(0) - recorded.information[15:20].mean(0)).norm(dim=1).mean()
    chance = (recorded.information[15:20].mean(0) - recorded.information[10:15].mean(0)).norm(dim=1).mean()
    assert figure.get_suptitle().splitlines()[0] == (
        f"the plane moved {moved:.2f} bits, the mean over its 3 layers "
        f"(between the last and the last but one 5 points of baseline: {chance:.2f})"
    )
    assert (left.get_title(), right.get_title()) == ("baseline", "cycle 1 to cycle 2 (hollow: end of baseline)")
    assert len(left.collections[0].get_offsets()) == len(right.collections[0].get_offsets()) == 20
    alone = plots.before_and_after(recorded, "cycle 1", last=10)
    assert (
        alone.axes[1].get_title() == "cycle 2 (hollow: end of cycle 1)" and "last but one" not in alone.get_suptitle()
    )
    with pytest.raises(
        ValueError, match=re.escape("after must be a stage behind 'cycle 1' in baseline, cycle 1, cycle 2")
    ):
        plots.before_and_after(recorded, "cycle 1", "baseline")


def test_width_curves_name_layers_and_stages():
    (axes,) = plots.width_curves(history()).axes
    assert labels(axes.figure) == [("iteration", "kernel width sigma, units of the tensor")]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["layer0", "layer1", "layer2", "input"]
    assert texts(axes) == ["baseline", "cycle 1", "cycle 2"] and axes.get_yscale() == "log"


def test_the_heatmap_prints_the_rank_correlation():
    scores = torch.tensor([[1.0, 2.0, 3.0]] * 4)
    figure = plots.relevance_heatmap("conv1", scores, filters=[2, 5, 7])
    axes, _ = figure.axes
    assert labels(figure) == [("filter", "mini-batch"), ("", "relevance I(A; Y), bits")]
    assert axes.get_title() == "conv1: Kendall's tau-b 1.00 between halves of the mini-batches"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "5", "7"]
    np.testing.assert_array_equal(axes.images[0].get_array(), scores.numpy())
    one = torch.tensor([[1.0, 2.0]])
    assert plots.relevance_heatmap("a", one).axes[0].get_title() == "a: one mini-batch"
    with pytest.raises(ValueError, match=re.escape("filters must be one number for each of the 2 filters, got 1")):
        plots.relevance_heatmap("a", one, filters=[1])


def test_histograms_are_in_percent_of_the_filters(report):
    table, _ = plots.scores_by_cycle(report["filters"]["before"], report["cycles"])
    figure = plots.relevance_histograms("conv2", {n: list(scores.values()) for n, scores in table["conv2"].items()})
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 12 and figure.get_suptitle() == "conv2, 12 of 14 cycles"
    assert shown[0].get_title() == "cycle 1: 50 filters" and shown[-1].get_title() == "cycle 14: 24 filters"
    for axes in shown:
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(100)
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("relevance I(A; Y), bits (line: mean)", "filters, %")
    assert len([axes for axes in plots.relevance_histograms("a", {1: [0.0, 0.0]}).axes if axes.get_visible()]) == 1
    with pytest.raises(ValueError, match=r"^by_cycle must hold at least one cycle, got none$"):
        plots.relevance_histograms("a", {})


def test_scores_are_followed_by_the_numbers_of_the_unpruned_network(report):
    table, left = plots.scores_by_cycle(report["filters"]["before"], report["cycles"])
    assert {name: len(filters) for name, filters in left.items()} == report["filters"]["after"]
    first, second = report["cycles"][:2]
    gone = set(first["removed"]["conv2"])
    assert list(table["conv2"][2]) == [f for f in range(50) if f not in gone]
    assert list(table["conv2"][2].values()) == second["score_mean"]["conv2"]
    lacking = [{**first, "score_mean": {"conv1": [1.0]}}]
    message = "score_mean of 'conv1' in cycle 1 must be of the 20 filters that are left, got 1"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plots.scores_by_cycle(report["filters"]["before"], lacking)


def test_survivors_at_the_first_width_are_a_curve_of_their_own():
    by_layer, same = {"a": {1: {0: 1.0, 2: 3.0}, 2: {2: 5.0}}}, {"a": {1: {0: 1.0, 2: 3.5}, 2: {2: 4.5}}}
    figure = plots.survivor_curves(by_layer, {"a": [2]}, at_first_width=same)
    of_left, fixed, at_first_width = (line.get_ydata() for line in figure.axes[0].lines)
    assert [list(of_left), list(fixed), list(at_first_width)] == [[2, 5], [3, 5], [3.5, 4.5]]
    assert len(figure.legends[0].get_texts()) == 3


def test_scoring_widths_are_drawn_by_cycle():
    figure = plots.scoring_widths({"a": {2: 4.0, 1: 5.0}, "b": {1: [1.0, 2.0, 9.0], 2: [3.0, 3.0]}})
    (axes,) = figure.axes
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines] == [
        ([1, 2], [5, 4]),
        ([1, 2], [2, 3]),
    ]
    assert labels(figure) == [("cycle", "kernel width sigma, units of the maps")] and axes.get_yscale() == "log"
    with pytest.raises(ValueError, match=r"^by_layer must hold at least one layer, got none$"):
        plots.scoring_widths({})


def test_accuracy_and_costs_by_cycle():
    runs = {"hrel": [[(0.9, 100, 50), (0.8, 50, 40)], [(0.92, 100, 50), (0.7, 50, 40)]], "l1": [[(0.9, 100, 50)]]}
    above, below = plots.accuracy_by_cycle(runs).axes
    assert [list(line.get_ydata()) for line in above.lines] == [[90, 80], [92, 70], [90]]
    assert [text.get_text() for text in above.get_legend().get_texts()] == ["hrel, 2 runs", "l1"]
    assert [list(line.get_ydata()) for line in below.lines] == [[100, 50], [100, 80]]
    assert (above.get_ylabel(), below.get_xlabel(), below.get_ylabel()) == (
        "validation accuracy, %",
        "cycle (0: unpruned)",
        "left, %",
    )
    with pytest.raises(ValueError, match=r"^runs must hold at least one run, with at least one point each$"):
        plots.accuracy_by_cycle({"hrel": [[]]})


def test_the_estimator_is_drawn_with_the_relevance_of_the_filters():
    rng = torch.Generator().manual_seed(0)
    maps, targets = {f: torch.randn(30, 4, 4, generator=rng) for f in (3, 1)}, torch.arange(30) % 3
    figure = plots.estimator("conv1", maps, targets, 4.0)
    expected = hrel_ext.relevance(torch.stack(list(maps.values()), 1), targets, sigma=4.0, alpha=1.0)
    said = [text.get_text() for part in figure.subfigs for half in part.subfigs for text in half.findobj(Text)]
    for bits in expected.tolist():
        assert f"I(A; Y) = S(A) + S(Y) - S(A, Y) = {bits:.2f} bits (N = 30)" in said
    assert said.count("S(Y) = 1.58") == 2 and said.count("class 2") == 2 and "conv1, filter 3" in said
    joint = figure.subfigs[0].subfigs[1].axes[2].images[0].get_array()
    assert joint[0, 10] == 0 < joint[0, 9] < 1 == joint[9, 9]  # in the order of the classes


def test_the_pipeline_says_what_its_boxes_are_given():
    figure = plots.pipeline([("train", "4 epochs"), ("score", "a"), ("remove", "b"), ("retrain", "c")], "9 cycles")
    said = [text.get_text() for text in figure.axes[0].findobj(Text)]
    assert {"train\n4 epochs", "score\na", "remove\nb", "retrain\nc", "9 cycles"} <= set(said)


def test_survivors_are_the_same_filters_in_every_cycle():
    by_layer = {"a": {1: {0: 1.0, 1: 2.0, 2: 6.0}, 2: {1: 3.0, 2: 7.0}}}
    figure = plots.survivor_curves(by_layer, {"a": [2]})
    axes = figure.axes[0]
    left, fixed = (line.get_ydata() for line in axes.lines)
    assert list(left) == [3.0, 5.0] and list(fixed) == [6.0, 7.0]
    assert (axes.get_xlabel(), figure.get_supylabel()) == ("cycle", "mean relevance I(A; Y), bits")
    assert axes.get_title() == "a: 3 filters, 1 survive"
    with pytest.raises(ValueError, match=re.escape("survivors of 'a' must have a relevance in every cycle, got none")):
        plots.survivor_curves(by_layer, {"a": [0]})


def test_filters_kept_are_counted(report):
    figure = plots.filters_kept(report["filters"]["before"], [cycle["filters"] for cycle in report["cycles"]])
    lines, bars = figure.axes
    assert labels(figure) == [("cycle", "filters left, %"), ("filters (grey: before)", "")]
    assert lines.lines[1].get_ydata()[-1] == pytest.approx(100 * 22 / 50)
    assert texts(bars) == ["20 → 14", "50 → 22"]
    many = {f"conv{at}": 64 for at in range(54)}
    assert len(plots.filters_kept(many, [many]).axes[0].lines) == 54
    with pytest.raises(ValueError, match=r"^before and cycles must not be empty, got 1 layers and 0 cycles$"):
        plots.filters_kept({"a": 1}, [])


def test_accuracy_is_drawn_against_the_share_of_macs():
    runs = {"HRel": [[(200, 0.99), (50, 0.98)], [(200, 0.97), (20, 0.9)]], "random": [[(200, 0.98), (50, 0.5)]]}
    (axes,) = plots.accuracy_against_macs(runs).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "MACs left, % (one MAC is two FLOPs)",
        "validation accuracy, %",
    )
    assert list(axes.lines[1].get_xdata()) == [100, 10] and list(axes.lines[1].get_ydata()) == [97, 90]
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    assert said == ["HRel, 2 runs", "random", "unpruned, 98.00 %"]
    with pytest.raises(ValueError, match=r"^runs must hold at least one run, with at least one point each$"):
        plots.accuracy_against_macs({"HRel": [[]]})


def test_files_are_valid_and_the_same_every_time(tmp_path):
    for number in range(2):
        plots.save(plots.width_curves(history()), tmp_path / f"{number}.svg")
        plots.save(plots.width_curves(history()), tmp_path / f"{number}.png")
    first, second = ((tmp_path / f"{number}.svg").read_bytes() for number in range(2))
    assert first == second and b"kernel width sigma" in first
    assert (tmp_path / "0.png").read_bytes().startswith(b"\x89PNG")
