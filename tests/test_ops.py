"""The registered ops: schema, fake kernels, operand checks, and the plain PyTorch for devices without kernels."""
# SPDX-License-Identifier: MIT

import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrel_ext import _ops, _rational, testing
from hrel_ext._batch import Classes, prepare
from hrel_ext.label_entropy import label_entropy as closed_form

DTYPES = (torch.float32, torch.float64)


def operands(rng, dtype=torch.float32, label_sigma=0.1):
    acts = torch.randn(13, 5, 2, 3, generator=rng, dtype=dtype)
    batch = prepare(acts, torch.arange(13) % 4, label_sigma)
    order, class_offsets = batch.classes.order, batch.classes.class_offsets
    return batch.acts, order, class_offsets, torch.full((5,), 2.0, dtype=dtype), batch.label_gram


@pytest.mark.parametrize("label_sigma", (0.1, 1.0))
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(rng, dtype, label_sigma):
    acts, order, offsets, sigma, gram = operands(rng, dtype, label_sigma)
    torch.library.opcheck(torch.ops.hrel_ext.relevance.default, (acts, order, offsets, sigma, 1.01, gram))
    draws = torch.stack([torch.randperm(13, generator=rng) for _ in range(3)])
    torch.library.opcheck(torch.ops.hrel_ext.permuted_joint_entropy.default, (acts, order, offsets, draws, sigma, 1.01))
    multiples = torch.linspace(0.3, 10, 7, dtype=dtype)
    for per_filter in (False, True):
        arguments = (acts, order, offsets, multiples, per_filter, gram)
        torch.library.opcheck(torch.ops.hrel_ext.kernel_alignment.default, arguments)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5) | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40), st.integers(1, 3))
def test_classes_are_those_of_a_stable_sort(values, step):
    labels = torch.tensor(values).repeat_interleave(step)[::step]  # of any stride
    order, class_offsets, smallest = _ops.sort_by_class(labels)
    assert order.tolist() == sorted(range(len(values)), key=values.__getitem__)
    in_order = [values[k] for k in order]
    starts = [in_order.index(value) for value in sorted(set(values))]
    assert class_offsets.tolist() == starts + [len(values)] * (len(values) + 1 - len(starts))
    assert smallest.tolist() == [min(values)]


def test_no_labels_have_no_classes():
    with pytest.raises(ValueError, match=re.escape("labels must hold at least one sample (N >= 1), got shape (0,)")):
        Classes(torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("alpha", (1.0, 1.01, 2.0))
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_call_for_labels_gives_the_bits_of_the_ops(rng, dtype, alpha):
    acts = torch.randn(2, 13, 5, 4, generator=rng, dtype=dtype)[0, :, :, ::2]  # of any strides
    labels = torch.tensor([7, 2, 2**40] * 9)[::2][:13]
    classes, sigma = Classes(labels), torch.rand(5, generator=rng, dtype=dtype) + 1
    proper, (relevance, *entropies, label_entropy) = _ops.relevance_terms(acts, labels, sigma, alpha)
    expected = torch.ops.hrel_ext.relevance(acts, classes.order, classes.class_offsets, sigma, alpha, None)
    assert proper and all(map(torch.equal, entropies, expected)) and label_entropy.shape == ()
    in_closed_form = torch.tensor(closed_form(classes.class_offsets.tolist(), 0.0, alpha), dtype=dtype)
    assert torch.equal(label_entropy, in_closed_form)
    assert torch.equal(relevance, entropies[0] - entropies[1] + label_entropy)

    multiples = torch.linspace(0.3, 10, 41, dtype=dtype)
    for per_filter in (False, True):
        proper, (mean_distance, width) = _ops.kernel_width(acts, labels, multiples, per_filter)
        means, alignment = torch.ops.hrel_ext.kernel_alignment(
            acts, classes.order, classes.class_offsets, multiples, per_filter, None
        )
        assert proper and torch.equal(mean_distance, means)
        assert torch.equal(width, multiples[alignment.argmax(1)] * means)


@pytest.mark.parametrize("name", ("acts", "sigma", "label_gram"))
def test_an_operand_that_requires_grad_is_refused(rng, name):
    acts, order, offsets, sigma, gram = operands(rng, label_sigma=1.0)
    named = {"acts": acts, "order": order, "class_offsets": offsets, "sigma": sigma, "alpha": 1.01, "label_gram": gram}
    named[name] = named[name].clone().requires_grad_()
    with pytest.raises(NotImplementedError, match=f"^{name} must not require grad: the op has no derivative"):
        torch.ops.hrel_ext.relevance(**named)
    with torch.no_grad():
        torch.ops.hrel_ext.relevance(**named)


def test_fake_kernels_have_the_shapes_of_the_real_ones(rng):
    acts, order, offsets, sigma, _ = operands(rng)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (acts, order, offsets, sigma)]
        entropy, joint = torch.ops.hrel_ext.relevance(*fake, 1.01, None)
        assert entropy.shape == joint.shape == (5,)
        mean, alignment = torch.ops.hrel_ext.kernel_alignment(*fake[:3], mode.from_tensor(sigma), True, None)
        assert mean.shape == (5,) and alignment.shape == (5, 5)


def test_operands_are_checked_by_name(rng):
    acts, order, offsets, sigma, _ = operands(rng)
    with pytest.raises(ValueError, match=re.escape("sigma must be (5,) of torch.float32 on cpu, got (4,)")):
        torch.ops.hrel_ext.relevance(acts, order, offsets, sigma[:4], 1.01, None)
    with pytest.raises(ValueError, match=re.escape("order must be (13,) of torch.int64 on cpu, got (12,)")):
        torch.ops.hrel_ext.relevance(acts, order[1:], offsets, sigma, 1.01, None)
    with pytest.raises(ValueError, match=re.escape("acts must be (N, F, D) of float32 or float64, got (13, 30)")):
        torch.ops.hrel_ext.relevance(acts.flatten(1), order, offsets, sigma, 1.01, None)
    with pytest.raises(ValueError, match=re.escape("label_gram must be (13, 13) of torch.float32 on cpu, got (2, 2)")):
        torch.ops.hrel_ext.relevance(acts, order, offsets, sigma, 1.01, torch.eye(2))


@pytest.mark.parametrize("wrong", ((3, 12), (0, 13), (13,)), ids=str)
def test_permutations_are_checked(rng, wrong):
    acts, order, offsets, sigma, _ = operands(rng)
    message = "permutations must be (R, N) = (R, 13) with R >= 1 of torch.int64 on cpu, got "
    with pytest.raises(ValueError, match=re.escape(f"{message}{wrong} of torch.int64 on cpu")):
        draws = torch.zeros(wrong, dtype=torch.int64)
        torch.ops.hrel_ext.permuted_joint_entropy(acts, order, offsets, draws, sigma, 1.01)
    with pytest.raises(ValueError, match=re.escape(f"{message}(2, 13) of torch.int32 on cpu")):
        draws = torch.zeros(2, 13, dtype=torch.int32)
        torch.ops.hrel_ext.permuted_joint_entropy(acts, order, offsets, draws, sigma, 1.01)


def test_half_precision_is_left_to_cuda(rng):
    acts, order, offsets, sigma, _ = operands(rng)
    with pytest.raises(ValueError, match=re.escape("acts must be (N, F, D) of float32 or float64, got (13, 5, 6) of")):
        torch.ops.hrel_ext.relevance(acts.half(), order, offsets, sigma, 1.01, None)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_fake_results_of_half_precision_are_float32(rng, dtype):
    acts, order, offsets, sigma, _ = operands(rng)
    acts = acts.to(dtype)
    for device in ("meta", "cuda"):
        with torch._subclasses.FakeTensorMode():
            fake = [torch.empty(t.shape, dtype=t.dtype, device=device) for t in (acts, order, offsets, sigma)]
            results = [*torch.ops.hrel_ext.relevance(*fake, 1.01, None)]
            results += torch.ops.hrel_ext.kernel_alignment(*fake[:3], fake[3], False, None)
            assert [tuple(t.shape) for t in results] == [(5,), (5,), (1,), (1, 5)]
            assert {t.dtype for t in results} == {torch.float32} and {t.device.type for t in results} == {device}


@pytest.mark.parametrize(
    ("num_samples", "largest", "architectures", "too_new", "compiled", "reason"),
    (
        (128, 256, ["90"], "", True, None),
        (256, 256, ["90"], "", True, None),
        (257, 256, ["90"], "", False, None),
        (1, 0, [], "", False, "holds no CUDA kernels; build them with `HREL_CUDA=ON pip install .`"),
        (
            1,
            0,
            ["80", "90"],
            "",
            False,
            "for sm_80, sm_90 and do not run on this device, sm_75; build them with `HREL_CUDA",
        ),
        (1, 0, ["80"], "", False, "`HREL_CUDA=ON CMAKE_CUDA_ARCHITECTURES=75 pip install .`"),
        (
            1,
            0,
            ["75"],
            "13.0",
            False,
            "the driver is too old for the CUDA runtime of this build, 13.0; update the driver, or build with an older "
            "toolkit: `HREL_CUDA=ON CUDACXX=<its nvcc> pip install .`",
        ),
    ),
)
def test_route_of_cuda_tensors(num_samples, largest, architectures, too_new, compiled, reason):
    got = _ops._route(num_samples, _ops._CudaDevice(largest, (7, 5), too_new), architectures)
    assert got[0] is compiled
    assert got[1] is None if reason is None else reason in got[1]


def test_each_reason_for_plain_pytorch_is_given_once(monkeypatch):
    monkeypatch.setattr(_ops, "_warned", set())
    devices = _ops._CudaDevice(0, (7, 5), ""), _ops._CudaDevice(256, (9, 0), "")
    monkeypatch.setattr(_ops, "_cuda_device", devices.__getitem__)
    with pytest.warns(RuntimeWarning, match=r"HREL_CUDA=ON.*; until then plain PyTorch computes on the device"):
        assert not _ops._is_compiled(torch.device("cuda:0"), 13)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _ops._is_compiled(torch.device("cuda:0"), 13)
        assert _ops._is_compiled(torch.device("cuda:1"), 256)
        assert not _ops._is_compiled(torch.device("cuda:1"), 257)  # too many samples are no reason for a warning
        assert _ops._is_compiled(torch.device("cpu"), 10_000)


@pytest.fixture(params=(1, 8 * 13 * 13 * 2, _ops.MAX_CHUNK_BYTES), ids=("alone", "in twos", "at once"))
def chunk_bytes(request, monkeypatch):
    monkeypatch.setattr(_ops, "MAX_CHUNK_BYTES", request.param)


@pytest.mark.usefixtures("chunk_bytes")
@pytest.mark.parametrize("label_sigma", (0.1, 1.0))
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_pytorch_agrees_with_the_kernels(rng, dtype, label_sigma):
    acts, order, offsets, sigma, gram = operands(rng, dtype, label_sigma)
    acts[4, 3, 1] = torch.nan
    tolerance = testing.tolerance_bits(dtype, 13, 1.01)
    for alpha in (0.9, 1, 1.01, 2, 2.5):
        expected = torch.ops.hrel_ext.relevance(acts, order, offsets, sigma, alpha, gram)
        results = [torch.empty_like(t) for t in expected]
        _ops._relevance_in_torch(acts, order, offsets, sigma, alpha, gram, *results)
        assert results[0].isnan().tolist() == [False, False, False, True, False]
        torch.testing.assert_close(results, [*expected], rtol=0, atol=tolerance, equal_nan=True)
    multiples = torch.linspace(0.3, 10, 7, dtype=dtype)
    for per_filter in (False, True):
        expected = torch.ops.hrel_ext.kernel_alignment(acts[:, :3], order, offsets, multiples, per_filter, gram)
        results = [torch.empty_like(t) for t in expected]
        _ops._alignment_in_torch(acts[:, :3], order, offsets, multiples, per_filter, gram, *results)
        torch.testing.assert_close(results, [*expected], rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=tolerance)


@pytest.mark.parametrize("wrong", (0.0, -1.0, float("nan")))
def test_a_wrong_width_is_nan_in_plain_pytorch_for_the_caller_to_name(rng, wrong):
    acts, order, offsets, sigma, _ = operands(rng)
    sigma[2] = wrong
    results = [torch.empty(5), torch.empty(5)]
    _ops._relevance_in_torch(acts, order, offsets, sigma, 1.01, None, *results)
    assert all(result.isnan().tolist() == [False, False, True, False, False] for result in results)


@pytest.mark.usefixtures("chunk_bytes")
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_entropies_of_matrices_agree_with_the_kernels(rng, dtype):
    gram = torch.randn(7, 13, 13, generator=rng, dtype=dtype)
    gram = 3 * gram @ gram.mT
    gram[2, 4, 1], gram[3], gram[5, 1, 4] = torch.nan, -gram[3], torch.nan  # the last one is not read
    for alpha in (0.9, 1, 1.01, 2, 2.5):
        expected = torch.ops.hrel_ext.matrix_entropy(gram, alpha)
        entropy = torch.empty_like(expected)
        _ops._matrix_entropy_in_torch(gram, alpha, entropy)
        assert entropy.isnan().nonzero().flatten().tolist() == [2, 3]
        tolerance = testing.tolerance_bits(dtype, 13, alpha)
        torch.testing.assert_close(entropy, expected, rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_plain_pytorch_takes_half_precision_and_no_filters(rng, dtype):
    acts, order, offsets, sigma, _ = operands(rng)
    half, multiples = acts.to(dtype), torch.tensor([0.5, 1.0])
    expected = torch.ops.hrel_ext.relevance(half.float(), order, offsets, sigma, 1.01, None)
    results = [torch.empty_like(t) for t in expected]
    _ops._relevance_in_torch(half, order, offsets, sigma, 1.01, None, *results)
    torch.testing.assert_close(results, [*expected], rtol=0, atol=testing.tolerance_bits(dtype, 13, 1.01))
    expected = torch.ops.hrel_ext.kernel_alignment(half.float(), order, offsets, multiples, True, None)
    results = [torch.empty_like(t) for t in expected]
    _ops._alignment_in_torch(half, order, offsets, multiples, True, None, *results)
    torch.testing.assert_close(results, [*expected])


@pytest.mark.parametrize("num_samples", (1, 2, 13, 100, 128))
@pytest.mark.parametrize("alpha", (0.98, 1.0, 1.01, 1.1, 1.3))
def test_bound_of_the_rational_function_holds_for_spectra_of_every_kind(alpha, num_samples):
    fit = _rational.fit(alpha, num_samples)
    assert fit is not None and fit.bound_bits <= _rational.MAX_BOUND_BITS
    rng = torch.Generator().manual_seed(3)
    spectra = [torch.rand(num_samples, generator=rng, dtype=torch.float64) ** power for power in (0.1, 1, 3, 10, 40)]
    spectra += [ratio ** torch.arange(num_samples, dtype=torch.float64) for ratio in (0.1, 0.5, 0.9, 0.99)]
    spectra += [(torch.arange(num_samples) < k).double() for k in range(1, num_samples + 1, 7)]
    beta = alpha - 1
    for spectrum in spectra:
        x = spectrum / spectrum.sum()  # (N,)
        logarithm = torch.where(x > 0, x, 1).log()
        exact = x * (logarithm if beta == 0 else torch.expm1(beta * logarithm) / beta)
        near = sum(c * x ** (k + 1) for k, c in enumerate(fit.powers))
        near = near + sum(w * x / (x + t) for w, t in zip(fit.weights, _rational.POLES.tolist(), strict=True))
        to_bits = [-g.sum().item() if beta == 0 else -(beta * g.sum()).log1p().item() / beta for g in (exact, near)]
        assert abs(to_bits[0] - to_bits[1]) / torch.log(torch.tensor(2.0)).item() <= fit.bound_bits * 1.001 + 1e-12


@pytest.mark.parametrize("alpha", (0.5, 0.9, 1.5, 2.5))
def test_no_rational_function_is_offered_where_none_is_accurate(alpha):
    assert _rational.fit(alpha, 128) is None
