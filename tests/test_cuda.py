"""The CUDA kernels against the float64 oracle on the CPU, and their promises about streams, memory and repetition."""
# SPDX-License-Identifier: MIT

import re
import warnings
from collections import Counter

import pytest
import torch

import hrel_ext
from hrel_ext import reference, testing
from hrel_ext.testing import CASES, assert_terms_close, oracle, relevance_operands

pytestmark = pytest.mark.cuda

CUDA = torch.device("cuda")
SIZES = (1, 2, 13, 33, 64, 100, 128, 200, 256)  # samples: every block shape, with and without padded rows
DTYPES = (torch.float32, torch.float64)
HALF = (torch.float16, torch.bfloat16)
ALPHAS = (0.5, 1, 1.01, 1.5, 2, 3)
SHAPES = (  # N, F, D: few and many filters, long and short maps
    *((13, 70, 1), (33, 9, 6), (64, 5, 49), (100, 7, 6)),
    *((128, 5, 3000), (128, 600, 16), (200, 3, 50), (256, 3, 20)),
)
# The order of the entropy has no part in how memory is read.
PAIRS = [(case, alpha) for case in CASES for alpha in ALPHAS if alpha == 1.01 or case.layout == "contiguous"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """More of them make eigvalsh of the oracle's small matrices many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(num_samples=33, num_filters=9, map_shape=(3, 2), num_classes=5, dtype=torch.float32, seed=1787):
    """Normal maps (N, F, ...) and labels (N,) on the GPU."""
    rng = torch.Generator().manual_seed(seed)
    acts = torch.randn(num_samples, num_filters, *map_shape, generator=rng, dtype=torch.float64).to(dtype)
    return acts.to(CUDA), torch.randint(num_classes, (num_samples,), generator=rng).to(CUDA)


def alignment_operands(acts, labels, per_filter, label_sigma=0.1):
    maps, order, class_offsets, _, _, label_gram = relevance_operands(acts, labels, 1.0, 1.01, label_sigma)
    dtype = torch.float64 if acts.dtype == torch.float64 else torch.float32
    return maps, order, class_offsets, torch.linspace(0.3, 10, 40, dtype=dtype, device=CUDA), per_filter, label_gram


def gaussian_matrices(count, size, dtype=torch.float32):
    """Gaussian Gram matrices (B, N, N) of random points, from nearly all ones to nearly the identity, on the GPU."""
    points = torch.randn(count, size, 3, generator=torch.Generator().manual_seed(1787), dtype=torch.float64)
    sigma = torch.logspace(2, -1, count, dtype=torch.float64)[:, None, None]
    return torch.exp(-((torch.cdist(points, points) / sigma) ** 2)).to(dtype).to(CUDA)


def calls(num_samples=100):
    """Every op with operands on the GPU, by name; what runs one has to hold for all."""
    acts, labels = problem(num_samples)
    ops = torch.ops.hrel_ext
    return {
        "relevance": (ops.relevance, relevance_operands(acts, labels, 2.0, 1.01)),
        "relevance by eigenvalues": (ops.relevance, relevance_operands(acts, labels, 2.0, 1.5)),
        "relevance of a wide label kernel": (ops.relevance, relevance_operands(acts, labels, 2.0, 1.01, 1.0)),
        "relevance of bfloat16": (ops.relevance, relevance_operands(acts.bfloat16(), labels, 2.0, 1.01)),
        "relevance in float64": (ops.relevance, relevance_operands(acts.double(), labels, 2.0, 1.01)),
        "alignment of the layer": (ops.kernel_alignment, alignment_operands(acts, labels, False)),
        "alignment of each filter": (ops.kernel_alignment, alignment_operands(acts, labels, True)),
        "matrix_entropy": (ops.matrix_entropy, (gaussian_matrices(5, num_samples), 1.01)),
    }


CALLS = (  # the keys of calls(), which needs a GPU
    "relevance",
    "relevance by eigenvalues",
    "relevance of a wide label kernel",
    "relevance of bfloat16",
    "relevance in float64",
    "alignment of the layer",
    "alignment of each filter",
    "matrix_entropy",
)


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def assert_bits_equal(result, expected):
    for a, b in zip(as_tuple(result), as_tuple(expected), strict=True):
        assert not a.isnan().any()
        assert torch.equal(a, b)


# What runs at all


def test_build_holds_kernels_for_this_device():
    info = hrel_ext.build_info()
    major, minor = torch.cuda.get_device_capability()
    built = [int(number) for number in re.findall(r"\d+", " ".join(info["cuda_architectures"]))]
    assert any(b // 10 == major and b % 10 <= minor for b in built), f"built for {built}, this is sm_{major}{minor}"
    assert info["cuda_largest_num_samples"] >= 128


@pytest.mark.parametrize("dtype", (*HALF, *DTYPES), ids=str)
@pytest.mark.parametrize("num_samples", SIZES)
def test_compiled_kernels_run_and_nothing_else_does(num_samples, dtype):
    if num_samples > hrel_ext.build_info()["cuda_largest_num_samples"]:
        pytest.skip("more samples than the kernels of this build take on this device")
    acts, labels = problem(num_samples, dtype=dtype)
    operands, alignment = relevance_operands(acts, labels, 2.0, 1.01), alignment_operands(acts, labels, True)
    matrices = gaussian_matrices(3, num_samples, torch.float64 if dtype == torch.float64 else torch.float32)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        torch.ops.hrel_ext.relevance(*operands)
        torch.ops.hrel_ext.kernel_alignment(*alignment)
        torch.ops.hrel_ext.matrix_entropy(matrices, 1.01)
        torch.cuda.synchronize()
    launches = {event.key: event.count for event in profile.key_averages()}
    ours = Counter()
    for name, count in launches.items():
        if found := re.search(r"hrel::.*?(\w+_kernel)\b", name):
            ours[found[1]] += count
    if dtype == torch.float64:  # the alignment of float64 is plain PyTorch
        expected, foreign = {"exact_entropies_kernel": 2}, ("syev",)
    else:
        entropies = "register_entropies_kernel" if num_samples <= 32 else "band_entropies_kernel"
        distances = 1 if num_samples <= 128 else 2  # above, the relevance takes its distances from the workspace too
        expected = {entropies: 2, "exact_entropies_kernel": 2, "distances_kernel": distances, "alignment_kernel": 1}
        foreign = ("syev", "gemm")
    assert ours == expected, launches
    assert not any(way in name for way in foreign for name in launches), launches  # PyTorch's way of doing it


# Numbers


@pytest.mark.parametrize(("case", "alpha"), PAIRS, ids=str)
def test_every_case_agrees_with_the_oracle(case, alpha):
    acts, labels = case.make()
    sigma = case.sigma(acts)
    on_gpu = testing.lay_out(acts.to(CUDA), case.layout)  # a copy alone would lose the strides
    assert torch.equal(on_gpu.cpu(), acts)
    terms = hrel_ext.relevance_terms(on_gpu, labels.to(CUDA), sigma=sigma.to(CUDA), alpha=alpha)
    assert {term.device.type for term in terms} == {"cuda"} and {term.dtype for term in terms} == {case.dtype}
    assert_terms_close(terms, oracle(acts, labels, sigma, alpha), case.dtype, case.num_samples, alpha)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("num_samples", SIZES)
@pytest.mark.parametrize("map_shape", ((), (3, 5), (16, 16)), ids=str)
def test_half_precision_is_read_as_it_is_and_computed_in_float32(num_samples, map_shape, dtype):
    acts, labels = problem(num_samples, map_shape=map_shape, dtype=dtype)
    sigma = acts[0, 0].numel() ** 0.5
    expected = oracle(acts, labels, sigma, 1.01)  # of the same rounded values
    for layout in testing.LAYOUTS[:4]:
        terms = hrel_ext.relevance_terms(testing.lay_out(acts, layout), labels, sigma=sigma)
        assert terms.relevance.dtype == torch.float32
        assert_terms_close(terms, expected, torch.float32, num_samples, 1.01)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", (*HALF, *DTYPES), ids=str)
@pytest.mark.parametrize("num_samples", (33, 64, 128, 256))
def test_every_order_in_every_dtype(num_samples, dtype, alpha):
    acts, labels = problem(num_samples, 3, (17,), 7, dtype)
    terms = hrel_ext.relevance_terms(acts, labels, sigma=4.0, alpha=alpha)
    expected = oracle(acts, labels, 4.0, alpha)
    assert_terms_close(terms, expected, terms.relevance.dtype, num_samples, alpha)


@pytest.mark.parametrize("label_sigma", (0.3, 0.5, 1.0, 1e3))
@pytest.mark.parametrize("alpha", (1, 1.01, 1.5, 2, 3))
@pytest.mark.parametrize("dtype", (torch.bfloat16, *DTYPES), ids=str)
def test_wide_label_kernel_couples_the_classes(dtype, alpha, label_sigma):
    for num_samples, num_classes in ((33, 5), (100, 10), (12, 12), (7, 1), (256, 10)):
        acts, labels = problem(num_samples, 3, num_classes=num_classes, dtype=dtype)
        terms = hrel_ext.relevance_terms(acts, labels, sigma=2.0, alpha=alpha, label_sigma=label_sigma)
        expected = oracle(acts, labels, 2.0, alpha, label_sigma)
        assert_terms_close(terms, expected, terms.relevance.dtype, num_samples, alpha)


@pytest.mark.parametrize("sizes", ((60, 1, 1, 30, 8), (100,), (1,) * 100, (97, 1, 1, 1), (33, 33, 34)), ids=str)
@pytest.mark.parametrize("alpha", (1.01, 1.5, 2))
def test_classes_of_any_size(sizes, alpha):
    acts, _ = problem(100, 5)
    shuffle = torch.randperm(100, generator=torch.Generator().manual_seed(3))
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[shuffle].to(CUDA)
    terms = hrel_ext.relevance_terms(acts, labels, sigma=2.0, alpha=alpha)
    assert_terms_close(terms, oracle(acts, labels, 2.0, alpha), torch.float32, 100, alpha)


@pytest.mark.parametrize("dtype", (*HALF, *DTYPES), ids=str)
@pytest.mark.parametrize("num_features", (1, 2, 3, 4, 5, 8, 49, 64, 1025))
def test_maps_that_start_anywhere_in_memory(num_features, dtype):
    values, labels = problem(33, 2, (num_features,), dtype=dtype)
    buffer = torch.full((values.numel() + 8,), torch.nan, dtype=dtype, device=CUDA)
    expected = oracle(values, labels, 2.0 * num_features**0.5, 1.01)
    for offset in range(1, 8):  # of elements: no vector load is aligned
        acts = buffer[offset : offset + values.numel()].view_as(values).copy_(values)
        terms = hrel_ext.relevance_terms(acts, labels, sigma=2.0 * num_features**0.5)
        assert_terms_close(terms, expected, terms.relevance.dtype, 33, 1.01)
        buffer.fill_(torch.nan)


def test_strides_beyond_32_bits():
    stride, num_samples = 2**29, 6  # elements: the last sample lies beyond 2^31 of them, and of their bytes
    if torch.cuda.mem_get_info()[0] < 4.5 * stride * num_samples:
        pytest.skip("needs 13 GB of free memory on the GPU")
    values, labels = problem(num_samples, 2, (4,), 2)
    buffer = torch.empty(stride * (num_samples - 1) + 8, device=CUDA)
    acts = buffer.as_strided(values.shape, (stride, 4, 1)).copy_(values)
    terms = hrel_ext.relevance_terms(acts, labels, sigma=2.0)
    assert_terms_close(terms, oracle(values, labels, 2.0, 1.01), torch.float32, num_samples, 1.01)


@pytest.mark.parametrize("per_filter", (False, True))
@pytest.mark.parametrize("label_sigma", (0.1, 1.0))
@pytest.mark.parametrize("name", ("n1", "n2", "n13", "n100", "n128", "n129", "d1", "d1025", "c1", "c100", "sliced2d"))
def test_no_width_of_the_grid_aligns_better(name, label_sigma, per_filter):
    for case in (case for case in CASES if case.name == name):
        acts, labels = case.make()
        acts = acts[:, :3]
        on_gpu = testing.lay_out(acts.to(CUDA), case.layout)
        width = hrel_ext.kernel_width(on_gpu, labels.to(CUDA), per_filter=per_filter, label_sigma=label_sigma)
        assert width.shape == ((acts.shape[1],) if per_filter else ()) and width.dtype == case.dtype
        maps = acts.double().flatten(2) if acts.dim() > 2 else acts.double()[:, :, None]  # (N, F, D)
        multiples = torch.linspace(0.3, 10, 300, dtype=torch.float64)  # (M,), the default grid
        label_gram = reference._label_gram(labels, label_sigma, torch.float64)  # (N, N)
        mean, alignment = reference.alignments(maps, label_gram, multiples, per_filter)  # (R,), (R, M)
        if name == "n1":
            assert (width == 1).all()
            continue
        grid = multiples * mean[:, None]  # (R, M)
        distance, chosen = (grid - width.cpu().double().reshape(-1, 1)).abs().min(-1)  # (R,), (R,)
        assert (distance <= 1e-5 * grid.gather(1, chosen[:, None])[:, 0]).all(), "a width that is not in the grid"
        assert (alignment.gather(1, chosen[:, None])[:, 0] >= alignment.amax(-1) - 1e-5).all()


@pytest.mark.parametrize("dtype", (*HALF, *DTYPES), ids=str)
@pytest.mark.parametrize("per_filter", (False, True))
@pytest.mark.parametrize("num_samples", SIZES)
def test_alignments_agree_with_the_oracle(num_samples, per_filter, dtype):
    acts, labels = problem(num_samples, 4, (11,), dtype=dtype)
    for label_sigma in (0.1, 1.0):
        operands = alignment_operands(acts, labels, per_filter, label_sigma)
        mean, alignment = torch.ops.hrel_ext.kernel_alignment(*operands)
        label_gram = reference._label_gram(labels.cpu(), label_sigma, torch.float64)  # (N, N)
        exact = reference.alignments(acts.cpu().double(), label_gram, operands[3].cpu().double(), per_filter)
        relative, absolute = (1e-12, 1e-10) if dtype == torch.float64 else (1e-5, 2e-5)
        torch.testing.assert_close(mean.cpu().double(), exact[0], rtol=relative, atol=0)
        torch.testing.assert_close(alignment.cpu().double(), exact[1], rtol=0, atol=absolute)


@pytest.mark.parametrize("dtype", (torch.float16, *DTYPES), ids=str)
@pytest.mark.parametrize("sigma", (None, "layer", "filter"))
def test_searched_width_is_the_width_that_kernel_width_returns(sigma, dtype):
    acts, labels = problem(100, dtype=dtype)
    width = hrel_ext.kernel_width(acts, labels, per_filter=sigma == "filter").expand(9)
    assert_bits_equal(hrel_ext.relevance(acts, labels, sigma=sigma), hrel_ext.relevance(acts, labels, sigma=width))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_entropy_of_matrices_agrees_with_the_oracle(size, dtype, alpha):
    matrices = gaussian_matrices(7, size, dtype)
    tolerance = testing.tolerance_bits(dtype, size, alpha)
    expected = reference._entropy(matrices.cpu().double() / size, alpha)
    spread = torch.full((7, 2 * size, size + 3), torch.nan, dtype=dtype, device=CUDA)[:, ::2, 1 : size + 1]
    for strided in (matrices, matrices.transpose(1, 2), 3 * matrices, spread.copy_(matrices)):
        entropy = torch.ops.hrel_ext.matrix_entropy(strided, alpha)
        torch.testing.assert_close(entropy.cpu().double(), expected, rtol=0, atol=tolerance)


# The same arithmetic for one filter and for many, now and again


@pytest.mark.parametrize("alpha", (1.01, 1.5, 2))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_filters_at_once_equal_one_call_each(shape, alpha):
    num_samples, num_filters, num_features = shape
    acts, labels = problem(num_samples, num_filters, (num_features,))
    sigma = torch.linspace(0.5, 2, num_filters, device=CUDA) * num_features**0.5  # (F,)
    at_once = torch.ops.hrel_ext.relevance(*relevance_operands(acts, labels, sigma, alpha))
    for f in {*range(min(num_filters, 9)), num_filters - 1}:
        one = torch.ops.hrel_ext.relevance(*relevance_operands(acts[:, [f]], labels, sigma[[f]], alpha))
        assert_bits_equal(one, tuple(term[[f]] for term in at_once))


@pytest.mark.parametrize("num_features", (6, 3000))
def test_widths_of_all_filters_at_once_equal_one_call_each(num_features):
    acts, labels = problem(100, 5, (num_features,))
    at_once = torch.ops.hrel_ext.kernel_alignment(*alignment_operands(acts, labels, True))
    for f in range(5):
        one = torch.ops.hrel_ext.kernel_alignment(*alignment_operands(acts[:, [f]], labels, True))
        assert_bits_equal(one, tuple(result[[f]] for result in at_once))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("num_samples", (33, 100, 128, 256))
def test_two_runs_are_equal_to_the_bit(num_samples, name):
    op, operands = calls(num_samples)[name]
    expected = op(*operands)
    for _ in range(5):
        assert_bits_equal(op(*operands), expected)


# Streams, graphs, devices, memory


def test_calls_are_the_ones_that_are_parametrised():
    assert tuple(calls()) == CALLS


@pytest.mark.parametrize("name", CALLS)
def test_work_is_enqueued_on_the_current_stream(name):
    op, operands = calls()[name]
    expected = op(*operands)
    real, side = operands[0], torch.cuda.Stream()
    late = torch.zeros_like(real)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # cycles, tens of ms: on any other stream the op would read the zeros
        late.copy_(real)
        result = op(late, *operands[1:])
    side.synchronize()
    assert_bits_equal(result, expected)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_waits_for_the_device(name):
    op, operands = calls()[name]
    expected = op(*operands)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = op(*operands)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_bits_equal(result, expected)


def waits_of(call):
    """How often the host waits for the device in a call, a copy to the host included."""
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("label_sigma", (0.1, 1.0))
@pytest.mark.parametrize("dtype", (*HALF, *DTYPES), ids=str)
@pytest.mark.parametrize(("sigma", "waits"), ((2.0, 1), ("a tensor", 1), (None, 2), ("filter", 2)))
def test_relevance_waits_once_and_once_more_for_a_width_it_searches(sigma, waits, dtype, label_sigma):
    acts, labels = problem(100, dtype=dtype)
    sigma = torch.full((9,), 2.0, device=CUDA) if sigma == "a tensor" else sigma
    assert waits_of(lambda: hrel_ext.relevance(acts, labels, sigma=sigma, label_sigma=label_sigma)) == waits


def test_a_search_waits_once_and_preparation_never():
    acts, labels = problem(100)
    assert waits_of(lambda: hrel_ext.kernel_width(acts, labels)) == 1
    assert waits_of(lambda: relevance_operands(acts, labels, 2.0, 1.01)) == 0


def test_a_call_returns_before_the_device_has_done_it():
    op, operands = calls()["relevance"]
    op(*operands)
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)  # cycles, about 0.1 s
    op(*operands)
    assert not torch.cuda.current_stream().query()  # torch's own check does not see a wait inside the native module
    torch.cuda.synchronize()


@pytest.mark.parametrize("name", CALLS)
def test_a_captured_graph_replays_on_new_values(name):
    op, operands = calls()[name]
    first = operands[0].clone()
    second = first.flip(0) if name == "matrix_entropy" else (first * 2).flip(1)
    expected = [op(values, *operands[1:]) for values in (first, second)]
    static = first.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        op(static, *operands[1:])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = op(static, *operands[1:])
    for values, right in ((first, expected[0]), (second, expected[1]), (first, expected[0])):
        static.copy_(values)
        for term in as_tuple(result):
            term.fill_(torch.nan)  # so that a replay that writes nothing shows
        graph.replay()
        torch.cuda.synchronize()
        assert_bits_equal(result, right)


@pytest.mark.slow
def test_torch_compile_calls_the_op():
    acts, labels = problem(64, 6, (4, 4))
    maps, *others = relevance_operands(acts, labels, 4.0, 1.01)

    def scored(maps):
        entropy, joint_entropy = torch.ops.hrel_ext.relevance(torch.relu(maps) * 2, *others)
        return entropy - joint_entropy

    assert_bits_equal(torch.compile(scored, fullgraph=True)(maps), scored(maps))


@pytest.mark.parametrize("name", CALLS)
def test_a_device_that_is_not_the_current_one(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    op, operands = calls()[name]
    moved = tuple(o.to("cuda:1") if isinstance(o, torch.Tensor) else o for o in operands)
    result = op(*moved)
    assert torch.cuda.current_device() == 0
    assert {term.device for term in as_tuple(result)} == {torch.device("cuda:1")}
    assert_bits_equal(tuple(term.to("cuda:0") for term in as_tuple(result)), op(*operands))


@pytest.mark.parametrize("alpha", (1.01, 1.5))
@pytest.mark.parametrize("dtype", (torch.float16, *DTYPES), ids=str)
@pytest.mark.parametrize("num_samples", (64, 128, 256))
def test_memory_does_not_grow_with_the_number_of_filters(num_samples, dtype, alpha):
    def bytes_beyond_operands(num_filters):
        acts, labels = problem(num_samples, num_filters, (), dtype=dtype)
        operands = relevance_operands(acts, labels, 2.0, alpha)
        torch.ops.hrel_ext.relevance(*operands)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = torch.ops.hrel_ext.relevance(*operands)
        torch.cuda.synchronize()
        outputs = sum(512 * -(-r.numel() * r.element_size() // 512) for r in results)  # the allocator's unit
        return torch.cuda.max_memory_allocated() - before - outputs

    few, many = bytes_beyond_operands(2000), bytes_beyond_operands(8000)
    assert many <= few, f"{few} bytes of workspace for 2000 filters, {many} for 8000"


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    op, operands = calls(13)[name]
    torch.library.opcheck(op.default, operands)


# Input that is wrong, or empty


@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize("dtype", (*HALF, *DTYPES), ids=str)
@pytest.mark.parametrize("num_samples", (13, 128, 200))
def test_a_value_that_is_not_finite_is_found_and_leaves_the_other_filters_alone(num_samples, dtype, value):
    acts, labels = problem(num_samples, 6, dtype=dtype)
    clean = torch.ops.hrel_ext.relevance(*relevance_operands(acts, labels, 2.0, 1.01))
    acts[num_samples // 2, 2, 1, 1] = value
    entropy, joint_entropy = torch.ops.hrel_ext.relevance(*relevance_operands(acts, labels, 2.0, 1.01))
    others = [0, 1, 3, 4, 5]
    assert entropy[2].isnan() and not entropy[others].isnan().any()
    assert_bits_equal((entropy[others], joint_entropy[others]), tuple(term[others] for term in clean))
    with pytest.raises(ValueError, match="acts must be finite, filter 2 holds NaN or Inf"):
        hrel_ext.relevance(acts, labels, sigma=2.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", (13, 128, 200))
def test_a_matrix_that_is_not_finite_leaves_the_others_alone(size, dtype):
    matrices = gaussian_matrices(4, size, dtype)
    clean = torch.ops.hrel_ext.matrix_entropy(matrices, 1.01)
    matrices[1, size - 1, 0] = torch.nan
    matrices[2].zero_()
    entropy = torch.ops.hrel_ext.matrix_entropy(matrices, 1.01)
    assert entropy[1:3].isnan().all()
    assert_bits_equal(entropy[[0, 3]], clean[[0, 3]])


def test_a_layer_without_filters_has_no_scores():
    acts, labels = problem(13, 0)
    assert hrel_ext.relevance(acts, labels, sigma=2.0).shape == (0,)
    assert hrel_ext.kernel_width(acts, labels, per_filter=True).shape == (0,)
    assert torch.ops.hrel_ext.matrix_entropy(gaussian_matrices(0, 4), 1.01).shape == (0,)


def test_operands_on_different_devices_are_refused():
    acts, labels = problem(13)
    with pytest.raises(ValueError, match="labels must be on the device of acts"):
        hrel_ext.relevance(acts, labels.cpu(), sigma=2.0)
    with pytest.raises(ValueError, match="sigma must be on the device of acts"):
        hrel_ext.relevance(acts, labels, sigma=torch.ones(9))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_samples_than_the_kernels_take(dtype):
    acts, labels = problem(600, 2, dtype=dtype)
    terms = hrel_ext.relevance_terms(acts, labels, sigma=2.0)
    assert_terms_close(terms, oracle(acts, labels, 2.0, 1.01), dtype, 600, 1.01)
