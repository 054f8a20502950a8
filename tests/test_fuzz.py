"""Every public function on drawn shapes, strides, dtypes, labels and magnitudes: a clear error, or the float64 answer.

HREL_FUZZ=SECONDS draws anew for about so many seconds for each function; by default the same few examples each time.
"""
# SPDX-License-Identifier: MIT

import math
import os
import time

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Generator, nn

import hrel_ext
from hrel_ext import reference, testing
from hrel_ext.null import draw_permutations

SECONDS = float(os.environ.get("HREL_FUZZ", 0))
FEW = {"derandomize": True, "max_examples": 25, "database": None}
MANY = {"max_examples": 200}
PROFILE = settings(deadline=None, suppress_health_check=list(HealthCheck), **(MANY if SECONDS else FEW))

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ALPHAS = (0.5, 0.9, 1, 1.01, 1.3, 2, 3, 5, 20)
SPECIAL = (math.nan, math.inf, -math.inf, 1e-45, 5e-324, 1e38, -1e38, 0.0, -0.0)
RECORDS = {  # values without arithmetic of their own, and a text
    *("CONVENTIONS", "PAPER_WHERE", "Agreement", "Convention", "Header", "IndistinguishableScoresWarning"),
    *("RelevanceTerms", "Selection", "build_info"),
}


@st.composite
def values(draw, shape, dtype):
    """Finite most of the time: of one magnitude, of all, or with many repeated; or with a special value in it."""
    rng = Generator().manual_seed(draw(st.integers(0, 2**20)))
    made = torch.randn(shape, generator=rng, dtype=torch.float64)
    kind = draw(st.sampled_from(("one", "one", "all", "repeated", "zeros", "offset", "special")))
    if kind == "all":
        made *= 10 ** (60 * torch.rand(shape, generator=rng, dtype=torch.float64) - 30)
    elif kind == "repeated":
        made = made.round()
    elif kind == "zeros":
        made = made * 0
    elif kind == "offset":
        made += 1e3
    made = made * 10.0 ** draw(st.integers(-45, 37) if dtype != torch.float16 else st.integers(-9, 4))
    if kind == "special" and made.numel():
        made.view(-1)[draw(st.integers(0, made.numel() - 1))] = draw(st.sampled_from(SPECIAL))
    return made.to(dtype)


@st.composite
def batches(draw):
    n, f = draw(st.integers(1, 14)), draw(st.integers(0, 4))
    shape = (n, f, *draw(st.lists(st.integers(1, 5), max_size=3)))
    if draw(st.integers(0, 9)) == 0:  # long maps take another way
        shape = (n, f, 100)
    acts = draw(values(shape, draw(st.sampled_from(DTYPES))))
    layouts = [layout for layout in testing.LAYOUTS if f or layout != "expanded"]
    acts = testing.lay_out(acts, draw(st.sampled_from(layouts)))
    largest = draw(st.sampled_from((0, 1, 3, n, 2**62)))
    labels = torch.tensor(draw(st.lists(st.integers(0, largest), min_size=n, max_size=n)))
    if draw(st.integers(0, 19)) == 0:
        labels[0] = -1
    return acts, labels


@st.composite
def sigmas(draw, acts):
    """A rule, or a width near the values, or of any magnitude."""
    kind = draw(st.sampled_from(("rule", "near", "near", "any", "each")))
    if kind == "rule":
        return draw(st.sampled_from((None, "layer", "filter")))
    size = acts.double().abs().amax().item() if acts.numel() else 1.0
    near = size if 0 < size < 1e30 else 1.0
    if kind == "any":
        return 10.0 ** draw(st.integers(-30, 30))
    if kind == "near":
        return near * draw(st.floats(0.01, 100))
    dtype = torch.float64 if acts.dtype == torch.float64 else torch.float32
    return torch.tensor([near * draw(st.floats(0.1, 10)) for _ in range(acts.shape[1])], dtype=dtype)


def told(call):
    """The result, or None for an error that says what must be."""
    try:
        return call()
    except (ValueError, TypeError) as error:
        assert "must" in str(error) or "at least one" in str(error), repr(error)
        return None


def close(got, expected, tolerance):
    got, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (got, expected))
    assert got.shape == expected.shape and got.isfinite().all(), got
    assert not got.numel() or (got - expected).abs().max() <= tolerance, (got, expected, tolerance)


def widths_of(acts, labels, sigma):
    """The widths (F,) that the ops take, in float64."""
    if sigma is None or isinstance(sigma, str):
        sigma = hrel_ext.kernel_width(acts, labels, per_filter=sigma == "filter")
    dtype = torch.float64 if acts.dtype == torch.float64 else torch.float32
    return torch.as_tensor(sigma, dtype=dtype).double().expand(acts.shape[1])


def oracle(acts, labels, sigma, alpha):
    """In float64, brought to a width of 1 so that no square overflows."""
    classes = labels.unique(return_inverse=True)[1]
    scaled = acts.double() / sigma.reshape(1, -1, *[1] * (acts.dim() - 2))
    assume(scaled.abs().max() < 1e150 if scaled.numel() else True)
    return reference.relevance_terms(scaled, classes, sigma=torch.ones_like(sigma), alpha=alpha)


def tolerance_of(acts, alpha):
    return testing.tolerance_bits(acts.dtype, len(acts), alpha)


def fuzz_relevance_terms(data):
    acts, labels = data.draw(batches())
    sigma, alpha = data.draw(sigmas(acts)), data.draw(st.sampled_from(ALPHAS))
    terms = told(lambda: hrel_ext.relevance_terms(acts, labels, sigma=sigma, alpha=alpha))
    if terms is None:
        return
    assert acts.isfinite().all() and (labels >= 0).all()
    expected, tolerance = oracle(acts, labels, widths_of(acts, labels, sigma), alpha), tolerance_of(acts, alpha)
    for name, bits in terms._asdict().items():
        close(bits, getattr(expected, name), 2 * tolerance if name == "relevance" else tolerance)
        assert not bits.numel() or bits.max() <= math.log2(len(acts)) + 2 * tolerance
    for name in ("entropy", "joint_entropy", "label_entropy"):
        assert (getattr(terms, name) >= -tolerance).all()


def fuzz_relevance(data):
    acts, labels = data.draw(batches())
    sigma, alpha = data.draw(sigmas(acts)), data.draw(st.sampled_from(ALPHAS))
    bits = told(lambda: hrel_ext.relevance(acts, labels, sigma=sigma, alpha=alpha))
    if bits is None:
        return
    assert torch.equal(bits, hrel_ext.relevance_terms(acts, labels, sigma=sigma, alpha=alpha).relevance)
    slow = hrel_ext.relevance(acts, labels, sigma=sigma, alpha=alpha, differentiable=True)
    close(slow, bits, 4 * tolerance_of(acts, alpha))
    label_gram = (labels[:, None] == labels).double()
    given = widths_of(acts, labels, sigma).to(bits.dtype)
    close(
        hrel_ext.relevance(acts, label_gram=label_gram, sigma=given, alpha=alpha), bits, 4 * tolerance_of(acts, alpha)
    )


def fuzz_kernel_width(data):
    acts, labels = data.draw(batches())
    per_filter = data.draw(st.booleans())
    width = told(lambda: hrel_ext.kernel_width(acts, labels, per_filter=per_filter, num_widths=20))
    if width is None:
        return
    assert (width > 0).all() and width.isfinite().all()
    classes, scale = labels.unique(return_inverse=True)[1], acts.double().abs().max().item() if acts.numel() else 0.0
    assume(acts.shape[1] > 0 and scale > 0)
    points = acts.double().flatten(2) if acts.dim() > 2 else acts.double()[..., None]
    multiples = torch.linspace(0.3, 10, 20, dtype=torch.float64)
    kernel = (classes[:, None] == classes).double()
    mean, alignment = reference.alignments(points / scale, kernel, multiples, per_filter)
    for row, (found, distance) in enumerate(zip(width.reshape(-1).double() / scale, mean, strict=True)):
        if distance < 1e-12 * (1 if acts.dtype == torch.float64 else 1e6):
            continue  # equal up to the subnormal numbers
        best = (multiples - found / distance).abs().argmin()
        assert abs(multiples[best] * distance / found - 1) < 1e-3, (found, distance)
        assert alignment[row, best] >= alignment[row].max() - 1e-4


def fuzz_permutation_null(data):
    acts, labels = data.draw(batches())
    sigma, alpha, seed = data.draw(sigmas(acts)), data.draw(st.sampled_from(ALPHAS)), data.draw(st.integers(0, 99))
    count = data.draw(st.integers(1, 3))
    options = {"sigma": sigma, "alpha": alpha}
    null = told(lambda: hrel_ext.permutation_null(acts, labels, permutations=count, seed=seed, **options))
    if null is None:
        return
    assert torch.equal(null.relevance, hrel_ext.relevance(acts, labels, **options))
    width, order = widths_of(acts, labels, sigma), labels.argsort(stable=True)
    for row, draw in zip(null.null, draw_permutations(count, len(acts), Generator().manual_seed(seed)), strict=True):
        permuted = torch.empty_like(labels)
        permuted[order[draw]] = labels[order]
        close(row, oracle(acts, permuted, width, alpha).relevance, 2 * tolerance_of(acts, alpha))


def fuzz_PermutationNull(data):
    f, dtype = data.draw(st.integers(0, 4)), data.draw(st.sampled_from(DTYPES[2:]))
    relevance, draws = data.draw(values((f,), dtype)), data.draw(values((data.draw(st.integers(0, 4)), f), dtype))
    null = told(lambda: hrel_ext.PermutationNull(relevance, draws))
    if null is not None:
        assert ((null.p_value > 0) & (null.p_value <= 1)).all()
        if relevance.isfinite().all() and draws.isfinite().all() and draws.abs().max(0).values.sum() < 1e15:
            assert null.debiased.isfinite().all() and (len(draws) == 1 or not null.z.isnan().any())


def set_relevance(acts, labels, chosen, sigma, alpha):
    """I(T_S; Y) in float64, by the product of the kernels."""
    points = acts.double().flatten(2) if acts.dim() > 2 else acts.double()[..., None]  # (N, F, D)
    scaled = (points / sigma[:, None])[:, chosen].transpose(0, 1)
    assume(scaled.abs().max() < 1e150 if scaled.numel() else True)
    gram = torch.exp(-reference._distances(scaled).square().sum(0))
    classes = (labels[:, None] == labels).double()
    return sum(reference.matrix_entropy(g, alpha) * s for g, s in ((gram, 1), (classes, 1), (gram * classes, -1)))


def fuzz_joint_relevance(data):
    acts, labels = data.draw(batches())
    sigma, alpha = data.draw(sigmas(acts)), data.draw(st.sampled_from(ALPHAS))
    subset = data.draw(st.lists(st.integers(-1, 4), max_size=3))
    bits = told(lambda: hrel_ext.joint_relevance(acts, labels, subset, sigma=sigma, alpha=alpha))
    if bits is not None:
        assert len(set(subset)) == len(subset) and all(0 <= f < acts.shape[1] for f in subset)
        expected = set_relevance(acts, labels, subset, widths_of(acts, labels, sigma), alpha)
        close(bits, expected if subset else 0.0, 4 * tolerance_of(acts, alpha))


def fuzz_conditional_relevance(data):
    acts, labels = data.draw(batches())
    sigma, alpha = data.draw(sigmas(acts)), data.draw(st.sampled_from(ALPHAS))
    held = data.draw(st.lists(st.integers(0, 4), max_size=2, unique=True))
    bits = told(lambda: hrel_ext.conditional_relevance(acts, labels, held, sigma=sigma, alpha=alpha))
    if bits is None:
        return
    width = widths_of(acts, labels, sigma)
    before = set_relevance(acts, labels, held, width, alpha) if held else 0.0
    left = testing.left_of_copies([(acts, labels)], width)[:, held]  # (F, |S|)
    assume(not ((0.029 < left) & (left < 0.031)).any())  # where rounding decides what is a copy
    for f in range(acts.shape[1]):
        copy = (left[f] <= 0.03).any()
        expected = 0.0 if copy else set_relevance(acts, labels, [*held, f], width, alpha) - before
        close(bits[f], expected, 8 * tolerance_of(acts, alpha))


def fuzz_select_filters(data):
    acts, labels = data.draw(batches())
    sigma, alpha, keep = data.draw(sigmas(acts)), data.draw(st.sampled_from(ALPHAS)), data.draw(st.integers(0, 5))
    method = data.draw(st.sampled_from(("forward", "backward")))
    made = told(lambda: hrel_ext.select_filters((acts, labels), keep=keep, method=method, sigma=sigma, alpha=alpha))
    if made is None:
        return
    kept, order = made.kept.tolist(), made.order.tolist()
    assert len(kept) == keep == len(set(kept)) and kept == sorted(kept) and set(kept) <= set(range(acts.shape[1]))
    width, tolerance = widths_of(acts, labels, sigma), 8 * tolerance_of(acts, alpha)
    for step, objective in enumerate(made.objective.tolist(), 1):
        left = order[:step] if method == "forward" else [f for f in range(acts.shape[1]) if f not in order[:step]]
        close(objective, set_relevance(acts, labels, left, width, alpha), tolerance)


def samples(data):
    shape = (
        *data.draw(st.lists(st.integers(0, 2), max_size=2)),
        data.draw(st.integers(1, 9)),
        data.draw(st.integers(1, 5)),
    )
    x = data.draw(values(shape, data.draw(st.sampled_from(DTYPES))))
    return testing.lay_out(x, data.draw(st.sampled_from(("contiguous", "sliced", "transposed"))))


def relative(x):
    return 1e-12 if x.dtype == torch.float64 else 1e-6


def fuzz_gram(data):
    x, convention = samples(data), data.draw(st.sampled_from(("hrel", "yu")))
    sigma = data.draw(st.sampled_from(("mean", "median", 1e-30, 1e-3, 1.0, 1e3, 1e30)))
    K = told(lambda: hrel_ext.gram(x, sigma=sigma, convention=convention))
    if K is None or not K.numel():
        return
    assert torch.equal(K, K.mT) and (K.diagonal(dim1=-2, dim2=-1) == 1).all() and ((K >= 0) & (K <= 1)).all()
    if isinstance(sigma, float):
        scaled = x.double() / sigma
        expected = torch.exp(-reference._distances(scaled).square() / (1 if convention == "hrel" else 2))
        close(K, expected, relative(x))


def check_distance(x, got, reduce):
    if got is None or not got.numel():
        return
    assert got.isfinite().all() and (got >= 0).all()
    i, j = torch.triu_indices(x.shape[-2], x.shape[-2], 1)
    if len(i):
        expected = reduce(reference._distances(x.double())[..., i, j])
        small = 1e-44 if got.dtype == torch.float32 else 1e-300
        assume(expected.max() < 1e150)
        assert ((got.double() - expected).abs() <= relative(x) * expected + small).all()


def fuzz_mean_distance(data):
    x = samples(data)
    check_distance(x, told(lambda: hrel_ext.mean_distance(x)), lambda d: d.mean(-1))


def fuzz_median_distance(data):
    x = samples(data)
    check_distance(x, told(lambda: hrel_ext.median_distance(x)), lambda d: d.median(-1).values)


def matrices(data, count):
    """Gram matrices (N, N) of one dtype, scaled, some of them wrong."""
    n, dtype = data.draw(st.integers(1, 9)), data.draw(st.sampled_from(DTYPES[2:]))
    rng = Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    grams = []
    for _ in range(count):
        x = torch.randn(n, data.draw(st.integers(1, 4)), generator=rng, dtype=torch.float64)
        gram = torch.exp(-torch.cdist(x, x).square() * 10.0 ** data.draw(st.integers(-6, 6)))
        gram = ((gram + gram.T) / 2 * 10.0 ** data.draw(st.sampled_from((-30, -3, 0, 0, 3, 30)))).to(dtype)
        fault = data.draw(st.sampled_from((None,) * 9 + SPECIAL))
        if fault is not None:
            i, j = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
            gram[i, j] = gram[j, i] = fault
        grams.append(gram)
    return grams


def fuzz_entropies(data, function, count, signs):
    """S of products of subsets of the matrices, added with signs: ``signs`` has (sign, positions)."""
    grams, alpha = matrices(data, count), data.draw(st.sampled_from(ALPHAS))
    bits = told(lambda: function(*grams, alpha=alpha))
    if bits is None:
        return
    roots = [g.double().diagonal().sqrt() for g in grams]
    units = [g.double() / (r[:, None] * r) for g, r in zip(grams, roots, strict=True)]
    # A special value may leave a matrix that is not semidefinite, of which rounding decides more than eps.
    assume(all(torch.linalg.eigvalsh(u)[0] > -1e-6 for u in units))
    expected = 0.0
    for sign, positions in signs:
        product = torch.ones_like(units[0])
        for position in positions:
            product = product * units[position]
        expected = expected + sign * reference.matrix_entropy(product, alpha)
    close(bits, expected, 2 * len(signs) * testing.tolerance_bits(grams[0].dtype, len(grams[0]), alpha))


def fuzz_entropy(data):
    fuzz_entropies(data, hrel_ext.entropy, 1, [(1, (0,))])


def fuzz_joint_entropy(data):
    fuzz_entropies(data, hrel_ext.joint_entropy, 3, [(1, (0, 1, 2))])


def fuzz_mutual_information(data):
    fuzz_entropies(data, hrel_ext.mutual_information, 2, [(1, (0,)), (1, (1,)), (-1, (0, 1))])


def fuzz_conditional_entropy(data):
    fuzz_entropies(data, hrel_ext.conditional_entropy, 2, [(1, (0, 1)), (-1, (1,))])


def fuzz_conditional_mutual_information(data):
    signs = [(1, (0, 2)), (1, (1, 2)), (-1, (0, 1, 2)), (-1, (2,))]
    fuzz_entropies(data, hrel_ext.conditional_mutual_information, 3, signs)


def fuzz_total_correlation(data):
    fuzz_entropies(data, hrel_ext.total_correlation, 3, [(1, (0,)), (1, (1,)), (1, (2,)), (-1, (0, 1, 2))])


def fuzz_MovingWidth(data):
    moving, shape = (
        told(lambda: hrel_ext.MovingWidth(data.draw(st.floats(-0.2, 1.2)))),
        data.draw(st.sampled_from(((), (2,)))),
    )
    seen = []
    for _ in range(4 if moving else 0):
        width = data.draw(values(shape, torch.float32)).abs()
        if told(lambda width=width: moving.update(width)) is not None:
            seen.append(width)
            low, high = torch.stack(seen).amin(0), torch.stack(seen).amax(0)
            assert ((moving.value >= low * (1 - 1e-6)) & (moving.value <= high * (1 + 1e-6))).all()


def fuzz_kendall_tau(data):
    f, dtype = data.draw(st.integers(0, 9)), data.draw(st.sampled_from(DTYPES[2:]))
    a, b = data.draw(values((f,), dtype)), data.draw(values((f,), dtype))
    assume(a.isfinite().all() and b.isfinite().all())
    tau = hrel_ext.kendall_tau(a, b)
    x, y = a.tolist(), b.tolist()
    pairs = [((x[i] > x[j]) - (x[i] < x[j]), (y[i] > y[j]) - (y[i] < y[j])) for i in range(f) for j in range(i)]
    of_a, of_b = sum(p != 0 for p, _ in pairs), sum(q != 0 for _, q in pairs)
    if not of_a or not of_b:
        assert math.isnan(tau)
    else:
        assert abs(tau - sum(p * q for p, q in pairs) / math.sqrt(of_a * of_b)) < 1e-12


def fuzz_BalancedBatchSampler(data):
    labels = torch.tensor(data.draw(st.lists(st.integers(-2, 3), max_size=20)), dtype=torch.int64)
    classes, each = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))
    number, seed = data.draw(st.sampled_from((None, 0, 1, 7))), data.draw(st.integers(0, 9))

    def make():
        return hrel_ext.BalancedBatchSampler(
            labels, classes_per_batch=classes, samples_per_class=each, num_batches=number, seed=seed
        )

    if (sampler := told(make)) is not None:
        drawn = list(sampler)
        assert len(drawn) == len(sampler) and drawn == list(sampler)
        for batch in drawn:
            sizes = labels[batch].unique(return_counts=True)[1].tolist()
            assert sizes == [each] * classes and len(set(batch)) == len(batch)


def fuzz_LayerScores(data):
    shape = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 6))
    per_batch = data.draw(values(shape, torch.float32))
    assume(per_batch.isfinite().all() and not (per_batch.abs() > 1e15).any())
    layer = told(lambda: hrel_ext.LayerScores(per_batch, torch.ones(shape[0])))
    if layer is None:
        return
    assert layer.mean.isfinite().all() and layer.variance.isfinite().all() and (layer.variance >= 0).all()
    close(layer.mean, per_batch.double().mean(0), 1e-5 * (1e-30 + per_batch.abs().max().item()))
    if layer.agreement is not None:
        assert 0 <= layer.agreement.concordance <= 1 + 1e-9 and 0 <= layer.agreement.p_value <= 1


def fuzz_collect(data):
    n, f, scale = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4)), 10.0 ** data.draw(st.integers(-30, 30))
    model = nn.Sequential(nn.Conv2d(1, f, 2), nn.ReLU()).train(data.draw(st.booleans()))
    training, where = model.training, data.draw(st.sampled_from(("conv", "relu", "pool")))
    with torch.no_grad():
        model[0].weight.copy_(data.draw(values((f, 1, 2, 2), torch.float32)))
    inputs = data.draw(values((2, n, 1, 3, 3), torch.float32)) * scale
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    table = told(lambda: hrel_ext.collect(model, [(x, labels) for x in inputs], where=where, sigma="filter"))
    assert model.training == training and not model[0]._forward_hooks
    if table is not None:
        with torch.no_grad():
            maps = [(model if where == "relu" else model[0])(x) for x in inputs]
        expected = torch.stack([hrel_ext.relevance(m, labels, sigma="filter") for m in maps])
        assert torch.equal(table["0"].per_batch, expected)
        assert repr(table) and table.matches(model)


def fuzz_weight_hash(data):
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(data.draw(values((2, 2), torch.float32)))
    before = hrel_ext.weight_hash(model)
    assert len(before) == 64 and hrel_ext.weight_hash(model) == before
    with torch.no_grad():
        model.weight[0, 0] = 0.5 if model.weight[0, 0] != 0.5 else 0.25
    assert hrel_ext.weight_hash(model) != before


CASES = {name.removeprefix("fuzz_"): case for name, case in globals().items() if name.startswith("fuzz_")}
del CASES["entropies"]  # which six of them are made of
ELSEWHERE = {"Scores"}  # tests/test_fuzz_readers.py reads its files


def test_every_public_name_is_fuzzed():
    assert set(hrel_ext.__all__) == CASES.keys() | RECORDS | ELSEWHERE


@pytest.mark.filterwarnings("ignore::hrel_ext.IndistinguishableScoresWarning")
@pytest.mark.parametrize("name", CASES)
def test_a_clear_error_or_the_answer_of_float64(name):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them make eigenvalues of small matrices slow on a busy machine
    try:
        end = time.monotonic() + SECONDS
        while True:
            PROFILE(given(st.data())(CASES[name]))()
            if time.monotonic() >= end:
                break
    finally:
        torch.set_num_threads(threads)
