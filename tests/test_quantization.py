import copy
import functools
import math
import operator
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import normal, on_each_device
from torch import nn
from torch.nn.utils import prune

from qsal_helpers import PACT, Precision, build_model, describe, pact, quantize, quantize_uniform, quantize_weight
from qsal_helpers.quantization import (
    _PASSING,
    _PASSING_CALLS,
    ALPHA_MIN,
    SCHEMES,
    QuantConv2d,
    QuantLinear,
    calibrate,
    check_bits,
    default_alpha,
    execution_order,
    weight_codes,
    weight_scale,
)

BITS = range(2, 9)
float64 = torch.float64
seeded = functools.partial(normal, dtype=float64)
# What a careless caller may hand over instead of bits, numbers, tensors.
wrong_bits = st.sampled_from([0, 1, 9, 16, 31, 33, -2, "4", True, None, 2.0, float("nan"), [4], (4,)])
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-40, 40),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from([[], {}, (4, 2), [4, 2], torch.tensor(2.0), torch.ones(2), torch.empty(0), nn.ReLU()]),
)
odd_tensors = st.sampled_from(
    [
        torch.ones(2, 3, 5, 5),
        torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)),
        torch.full((2, 3, 5, 5), math.nan),
        torch.full((2, 3, 5, 5), math.inf),
        torch.full((2, 3, 5, 5), -math.inf),
        torch.zeros(0, 3, 5, 5),
        torch.zeros(1, 3, 5, 5),
        torch.ones(2, 3, 5, 5, dtype=torch.uint8),
        torch.ones(2, 3, 5, 5, dtype=torch.int64),
        torch.ones(2, 3, 5, 5, dtype=torch.bool),
        torch.randn(2, 3, 5, 5, dtype=float64, generator=torch.Generator().manual_seed(1)),
        torch.ones(2, 3, 5, 5, dtype=torch.bfloat16),
        torch.ones(2, 3, 5, 5, dtype=torch.float16),
        torch.ones(5, 5, 3, 2).permute(3, 2, 0, 1),
        torch.tensor(1.5),
        torch.empty(0),
    ]
)


def around(*points):
    """The points themselves and the numbers next to them, on both sides."""
    at = torch.tensor(points, dtype=float64)
    below, above = (torch.nextafter(at, torch.full_like(at, end)) for end in (-math.inf, math.inf))
    return torch.cat([below, at, above])


def assert_sentence(error):
    assert len(str(error)) > 15 and "\n" not in str(error).strip().split(". ")[0][:80]


# ---------------------------------------------------------------- quantize_uniform


@pytest.mark.parametrize("bits", BITS)
def test_uniform_rounds_to_the_closed_form_grid(bits):
    x, low, high = 3 * seeded(1000), -1.25, 2.0
    n = 2**bits - 1
    expected = low + (high - low) / n * torch.round((x.clamp(low, high) - low) * n / (high - low))
    torch.testing.assert_close(quantize_uniform(x, bits, low, high), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("bits", BITS)
def test_uniform_reaches_all_levels_from_low_to_high_and_no_other(bits):
    levels = quantize_uniform(torch.linspace(-2, 2, 5001, dtype=float64), bits, -1.0, 1.0).unique()
    torch.testing.assert_close(levels, torch.linspace(-1, 1, 2**bits, dtype=float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("bits", BITS)
def test_uniform_passes_the_gradient_inside_and_at_both_bounds_only(bits):
    x = around(-0.5, 1.5).requires_grad_()
    quantize_uniform(x, bits, -0.5, 1.5).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_uniform_hands_out_nothing_above_its_grid_in_any_dtype(dtype):
    ends = torch.tensor([[-1.428, 20.992], [-3.0, 7.0], [0.0, 0.7]], dtype=dtype)
    for low, high in ends:
        for bits in BITS:
            out = quantize_uniform(torch.tensor([100.0], dtype=dtype), bits, low, high)
            assert out.item() == (low + (high - low) / (2**bits - 1) * (2**bits - 1)).item()


def test_uniform_scales_the_incoming_gradient_unchanged():
    x, grad = torch.tensor([-1.0, 0.2, 0.9], dtype=float64, requires_grad=True), torch.tensor([5.0, -3.0, 0.5])
    quantize_uniform(x, 3, 0.0, 1.0).backward(grad.double())
    assert x.grad.tolist() == [0, -3, 0.5]


def test_uniform_takes_a_range_for_each_channel():
    x = seeded(2, 3, 4)
    low, high = torch.tensor([-1.0, -0.5, 0.0]).view(3, 1), torch.tensor([1.0, 2.0, 0.7]).view(3, 1)
    y = quantize_uniform(x, 4, low, high)
    for c in range(3):
        assert torch.equal(y[:, c], quantize_uniform(x[:, c], 4, low[c].item(), high.double()[c, 0]))


def test_uniform_rounds_ties_to_the_even_level():
    assert quantize_uniform(torch.tensor([0.5, 1.5, 2.5]), 2, 0, 3).tolist() == [0, 2, 2]


def test_uniform_keeps_nan_and_clips_infinities():
    y = quantize_uniform(torch.tensor([math.nan, math.inf, -math.inf, 0.4]), 2, 0.0, 1.0)
    assert y[0].isnan() and y[1:].tolist() == pytest.approx([1, 0, 1 / 3])


@given(
    bits=st.integers(2, 8),
    shape=st.lists(st.integers(0, 5), max_size=4),
    low=st.floats(-1e6, 1e6),
    width=st.floats(1e-3, 1e6),
    dtype=st.sampled_from([torch.float32, float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_uniform_keeps_to_its_levels_and_moves_at_most_half_a_step(bits, shape, low, width, dtype, seed):
    x = (low + width * 2 * (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.25)).to(dtype)
    try:
        y = quantize_uniform(x, bits, low, low + width)
    except ValueError:  # the two bounds are one number in this dtype, or infinite
        low, high = torch.tensor([low, low + width], dtype=dtype)
        assert not 0 < (high - low) / (2**bits - 1) < math.inf
        return
    assert y.shape == x.shape and y.dtype == dtype
    assert len(y.unique()) <= 2**bits
    if dtype == float64 and x.numel():
        clipped = x.clamp(low, low + width)
        assert (y - clipped).abs().max() <= width / (2**bits - 1) / 2 * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("layout", ["transposed", "strided", "channels_last"])
def test_quantizers_give_the_same_numbers_for_any_memory_layout(layout):
    x = seeded(4, 6, 8, 8)
    x = {
        "transposed": x.transpose(1, 3),
        "strided": x[:, ::2, 1::3],
        "channels_last": x.to(memory_format=torch.channels_last),
    }[layout]
    for function in (
        lambda t: quantize_uniform(t, 3, -1.0, 1.0),
        lambda t: pact(t, 1.5, 3),
        *(lambda t, s=s: quantize_weight(t, 3, s) for s in SCHEMES),
    ):
        a, b = x.clone().contiguous().requires_grad_(), x.detach().requires_grad_()
        y, z = function(a), function(b)
        torch.testing.assert_close(y, z, rtol=0, atol=1e-12)
        y.square().sum().backward(), z.square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
        if layout == "channels_last":
            assert z.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, float64, torch.bfloat16, torch.float16])
def test_quantizers_keep_the_dtype_of_their_input_and_its_gradient(dtype):
    alpha = torch.tensor(1.0, requires_grad=True)
    for function in (
        lambda t: quantize_uniform(t, 4, -1.0, 1.0),
        lambda t: pact(t, alpha, 4),
        lambda t: quantize_weight(t, 4),
    ):
        x = seeded(50).to(dtype).requires_grad_()
        y = function(x)
        y.sum().backward()
        assert y.dtype == x.grad.dtype == dtype and y.isfinite().all()
    assert alpha.grad.dtype == torch.float32


def test_32_bits_return_the_very_tensor():
    x = seeded(3)
    assert quantize_uniform(x, 32, 0, 1) is x and quantize_weight(x, 32) is x


@pytest.mark.parametrize(
    ("low", "high"),
    [(1, 1), (2, 1), (math.nan, 1), (0, math.nan), (0, math.inf), (-3e38, 3e38), (0, 1e-45), ([0, 0], [1, 1])],
)
def test_uniform_refuses_a_range_that_is_none(low, high):
    with pytest.raises(ValueError, match="low"):
        quantize_uniform(torch.zeros(3), 4, torch.tensor(low), torch.tensor(high))


# ---------------------------------------------------------------- PACT


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("alpha", [0.01, 1.0, 2.7, 10.0])
def test_pact_equals_the_papers_equations(bits, alpha):
    x = torch.cat([around(0, alpha), alpha * torch.linspace(-1, 2, 301, dtype=float64)])
    clipped = 0.5 * (x.abs() - (x - alpha).abs() + alpha)
    expected = torch.round(clipped * (2**bits - 1) / alpha) * alpha / (2**bits - 1)
    # The two orders of division may disagree on a tie, by one level; there are few ties.
    difference = (pact(x, alpha, bits) - expected).abs()
    assert (difference > 1e-12).sum() <= 3 and difference.max() <= alpha / (2**bits - 1) * (1 + 1e-9)


@pytest.mark.parametrize("bits", [*BITS, 32])
@pytest.mark.parametrize("alpha", [0.01, 1.0, 2.7, 10.0])
@pytest.mark.parametrize("dtype", [float64, torch.float32])
@on_each_device
@pytest.mark.parametrize("create_graph", [False, True])
def test_pact_has_the_papers_gradients_at_and_around_zero_and_alpha(bits, alpha, dtype, device, create_graph):
    options = {"dtype": dtype, "device": device}
    bound = torch.tensor(alpha, **options, requires_grad=True)
    value = bound.item()
    end = torch.tensor([-math.inf, math.inf], **options)
    points = torch.tensor([0.0, value], **options)
    x = torch.cat([torch.nextafter(points, end[0]), points, torch.nextafter(points, end[1])])
    x = torch.cat([x, torch.tensor([-5.0, value / 2, 50.0, -0.0], **options)]).requires_grad_()
    weights = torch.arange(1, len(x) + 1, **options)
    at_x, at_bound = torch.autograd.grad(pact(x, bound, bits), [x, bound], weights, create_graph=create_graph)
    assert torch.equal(at_x, torch.where((x > 0) & (x < bound), weights, 0))
    assert at_bound == torch.where(x >= bound, weights, 0).sum()


@pytest.mark.parametrize("bits", BITS)
def test_pact_reaches_all_its_levels(bits):
    y = pact(torch.linspace(-1, 4, 5001, dtype=float64), 3.0, bits).unique()
    torch.testing.assert_close(y, torch.linspace(0, 3, 2**bits, dtype=float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("bits", BITS)
def test_pact_on_a_cpu_equals_the_formula_on_tensors_to_the_bit(bits):
    x, alpha = seeded(5000, dtype=torch.float32) * 3, torch.tensor(2.345)
    step = alpha / (2**bits - 1)
    assert torch.equal(pact(x, alpha, bits), x.clamp(min=0).minimum(alpha).div(step).round().mul(step))


@pytest.mark.parametrize("bits", BITS)
def test_brevitas_clips_and_rounds_like_pact_but_has_another_alpha_gradient(bits):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from brevitas.nn import QuantReLU
        from brevitas.quant import Uint8ActPerTensorFloatMaxInit

        theirs = QuantReLU(Uint8ActPerTensorFloatMaxInit, bit_width=bits, max_val=2.5, scaling_min_val=None).train()
    x, alpha = torch.linspace(-1, 4, 997), torch.tensor(2.5, requires_grad=True)
    y, z = theirs(x), pact(x, alpha, bits)
    torch.testing.assert_close(y, z, rtol=0, atol=1e-6)
    y.sum().backward(), z.sum().backward()
    (their_alpha,) = theirs.parameters()
    assert alpha.grad == (x >= 2.5).sum()  # the paper's: nothing below alpha
    assert (their_alpha.grad - alpha.grad).abs() > 0.5  # learned step size: rounding errors count too


def test_pact_is_a_pure_function_of_its_input():
    x = seeded(20)
    before = x.clone()
    pact(x, 1.0, 2), quantize_uniform(x, 2, 0, 1), quantize_weight(x, 2)
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_alpha_may_be_a_tensor_of_one_element_of_any_shape(shape):
    alpha, x = torch.full(shape, 2.0, requires_grad=True), torch.tensor([0.4, 3.0])
    y = pact(x, alpha, 4)
    y.sum().backward()
    assert y.shape == x.shape and alpha.grad.shape == shape and alpha.grad.sum() == 1
    assert pact(torch.tensor(3.0), alpha, 4).shape == ()


def test_two_uses_of_one_pact_in_one_step_add_their_gradients():
    layer = PACT(4, alpha=1.0)
    a, b = torch.tensor([2.0, 0.3], requires_grad=True), torch.tensor([5.0, 7.0], requires_grad=True)
    (layer(a).sum() + 3 * layer(b).sum()).backward()
    assert layer.alpha.grad == 1 + 3 * 2
    assert a.grad.tolist() == [0, 1] and b.grad.tolist() == [0, 0]


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=5.0), lambda p: torch.optim.Adam(p, lr=5.0)])
def test_alpha_stays_positive_whatever_the_optimizer_does_and_can_come_back(make):
    layer, x = PACT(4, alpha=1.0), torch.linspace(-1, 3, 50)
    optimizer = make(layer.parameters())

    def steps(sign, number):
        for _ in range(number):
            optimizer.zero_grad()
            y = layer(x)
            assert layer.alpha.item() >= 0.999 * ALPHA_MIN > 0 and y.isfinite().all()
            (sign * y.sum()).backward()
            optimizer.step()

    steps(+1, 5)
    layer(x)
    assert layer.alpha.item() == pytest.approx(ALPHA_MIN)
    steps(-1, 40)
    layer(x)
    assert layer.alpha.item() > 1


def test_a_pact_whose_alpha_is_not_a_number_lets_it_reach_the_loss():
    layer = PACT(4)
    layer.alpha.data.fill_(math.nan)
    assert layer(torch.rand(5)).isnan().all()


def test_a_pact_starts_at_an_alpha_that_is_tighter_for_fewer_bits_and_whose_first_level_unit_variance_reaches():
    for bits in BITS:
        assert PACT(bits).alpha.item() == default_alpha(bits)
        assert default_alpha(bits) / (2**bits - 1) / 2 < 1 / 2  # rounds up to the first level at half a deviation
    assert default_alpha(2) < default_alpha(4) < default_alpha(6) <= default_alpha(8)


@pytest.mark.parametrize("alpha", [0, -1, math.nan, math.inf])
def test_alpha_must_be_above_zero_and_finite(alpha):
    with pytest.raises(ValueError, match="alpha must be a finite number above 0"):
        pact(torch.ones(2), alpha, 4)
    with pytest.raises(ValueError, match="alpha must be a finite number above 0"):
        PACT(4, alpha=alpha)
    with pytest.raises(ValueError, match="alpha"):
        quantize(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), "w4a4", alpha=alpha)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize(("bits", "c1", "c2"), [(2, 3.12, 2.064), (3, 7.509, 6.892), (4, 12.68, 12.80)])
def test_sawb_scales_by_the_papers_formula(bits, c1, c2):
    w = seeded(4000, seed=5) * 0.1
    scale = c1 * w.square().mean().sqrt() - c2 * w.abs().mean()
    assert 0.2 * w.abs().max() < scale < w.abs().max()  # the formula itself, not its bounds
    torch.testing.assert_close(weight_scale(w, bits, "sawb"), scale)
    levels = torch.linspace(-scale, scale, 2**bits, dtype=float64)
    nearest = levels[(w.clamp(-scale, scale)[:, None] - levels).abs().argmin(1)]
    torch.testing.assert_close(quantize_weight(w, bits, "sawb"), nearest)


@pytest.mark.parametrize("bits", [5, 6, 7, 8])
def test_sawb_above_4_bits_takes_the_largest_magnitude(bits):
    w = seeded(400, seed=6)
    assert weight_scale(w, bits, "sawb") == w.abs().max()
    assert torch.equal(quantize_weight(w, bits, "sawb"), quantize_weight(w, bits, "minmax"))


def hostile_weights():
    two_humped = torch.cat([0.3 + 0.01 * seeded(500), -0.3 + 0.01 * seeded(500, seed=1)])
    outlier = 0.01 * seeded(1000, seed=2)
    outlier[7] = 100.0
    return {
        "two humps": two_humped,
        "constant": torch.full((100,), 0.3, dtype=float64),
        "signs only": 0.3 * seeded(100).sign(),
        "one outlier": outlier,
        "one weight": torch.tensor([-0.2], dtype=float64),
        "tiny": 1e-12 * seeded(100),
        "huge": 1e12 * seeded(100),
        "heavy tail": seeded(1000).pow(5),
    }


@pytest.mark.parametrize("kind", hostile_weights())
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_sawb_stays_between_a_fifth_of_and_the_largest_weight_for_hostile_distributions(kind, bits, per_channel):
    w = hostile_weights()[kind].view(1, -1)
    scale, largest = weight_scale(w, bits, "sawb", per_channel).item(), w.abs().max().item()
    assert 0.2 * largest * (1 - 1e-12) <= scale <= largest
    assert quantize_weight(w, bits, "sawb", per_channel).isfinite().all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, float64, torch.bfloat16, torch.float16])
def test_all_zero_weights_give_finite_weights_and_gradients(scheme, bits, dtype):
    w = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
    y = quantize_weight(w, bits, scheme)
    y.sum().backward()
    assert y.isfinite().all() and w.grad.isfinite().all()


@pytest.mark.parametrize("bits", BITS)
def test_dorefa_equals_its_papers_formula_and_gradient(bits):
    w = seeded(6, 50, seed=7).requires_grad_()
    n = 2**bits - 1
    squashed = torch.tanh(w.detach())
    expected = 2 * torch.round((squashed / (2 * squashed.abs().max()) + 0.5) * n) / n - 1
    y = quantize_weight(w, bits, "dorefa")
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)
    y.backward(torch.ones_like(y))
    # Straight through the rounding, tanh's slope over the largest |tanh|, which counts as a constant.
    torch.testing.assert_close(w.grad, (1 - squashed.square()) / squashed.abs().max())


@pytest.mark.parametrize("bits", BITS)
def test_minmax_is_symmetric_has_a_zero_and_reaches_the_largest_weight(bits):
    w = seeded(500, seed=8)
    y, step = quantize_weight(w, bits, "minmax"), w.abs().max() / (2 ** (bits - 1) - 1)
    torch.testing.assert_close(y, torch.round(w / step) * step, rtol=0, atol=1e-14)
    assert y.abs().max() == pytest.approx(w.abs().max().item(), rel=1e-14)
    assert torch.equal(quantize_weight(-w, bits, "minmax"), -y) and (y == 0).any()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", BITS)
def test_per_channel_treats_every_output_channel_by_itself(scheme, bits):
    w = seeded(5, 3, 3, 3) * torch.tensor([1e-3, 0.1, 1.0, 10.0, 1e3], dtype=float64).view(5, 1, 1, 1)
    y = quantize_weight(w, bits, scheme, per_channel=True)
    for c in range(5):
        torch.testing.assert_close(y[c], quantize_weight(w[c], bits, scheme))


@pytest.mark.parametrize("scheme", ["sawb", "minmax"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_the_weight_gradient_goes_straight_through_clipped_weights_included(scheme, per_channel):
    w, grad = seeded(4, 30).requires_grad_(), seeded(4, 30, seed=9)
    quantize_weight(w, 2, scheme, per_channel).backward(grad)
    assert torch.equal(w.grad, grad)


weights = st.builds(
    lambda shape, seed, scale, power, dtype: (
        scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double().pow(power)
    ).to(dtype),
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 1e-6, 0.1, 1.0, 100.0]),
    power=st.sampled_from([1, 3]),
    dtype=st.sampled_from([torch.float32, float64, torch.bfloat16]),
)


@given(w=weights, bits=st.integers(2, 8), scheme=st.sampled_from(SCHEMES), per_channel=st.booleans())
@settings(max_examples=400)
def test_quantized_weights_are_codes_times_step_and_no_more_than_bits_allow(w, bits, scheme, per_channel):
    y = quantize_weight(w, bits, scheme, per_channel)
    codes, step = weight_codes(w, bits, scheme, per_channel)
    assert torch.equal(codes * step, y)
    assert y.shape == w.shape == codes.shape and y.dtype == w.dtype
    assert torch.equal(codes, codes.round()) and (step > 0).all()
    if scheme == "dorefa" or (scheme == "sawb" and bits <= 4):
        assert codes.abs().max() <= 2**bits - 1 and (codes.remainder(2) == 1).all()
    else:
        assert codes.abs().max() <= 2 ** (bits - 1) - 1
    for part in y if per_channel else [y]:
        assert len(part.unique()) <= 2**bits


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_broken_weight_is_never_hidden(scheme, bad):
    w = seeded(20)
    w[3] = bad
    y = quantize_weight(w, 4, scheme)
    assert y.isnan().any() or scheme == "dorefa" and math.isinf(bad)  # tanh brings infinity back to 1


def test_weights_that_cannot_be_quantized_are_refused_in_words():
    for call in (quantize_weight, weight_codes, weight_scale):
        with pytest.raises(ValueError, match="empty"):
            call(torch.empty(0, 3), 4)
        with pytest.raises(ValueError, match="scheme must be one of sawb, dorefa, minmax"):
            call(torch.ones(2, 3), 4, "lsq")
        with pytest.raises(TypeError, match="floating-point"):
            call(torch.ones(2, 3, dtype=torch.int32), 4)
        with pytest.raises(ValueError, match="2 axes"):
            call(torch.ones(3), 4, "sawb", per_channel=True)
    with pytest.raises(ValueError, match="no codes"):
        weight_codes(torch.ones(3), 32)


# ---------------------------------------------------------------- Precision


@pytest.mark.parametrize("text", ["fp32", "w32a32", *(f"w{w}a{a}" for w in (2, 4, 8, 32) for a in (2, 3, 8))])
def test_precision_reads_what_it_writes(text):
    assert str(Precision.parse(text)) == text


@given(first=st.integers(2, 8), second=st.integers(2, 8))
def test_mixed_precision_reads_what_it_writes(first, second):
    text = f"mixed-{first}/{second}"
    precision = Precision.parse(text)
    assert str(precision) == text and precision.weights == precision.activations == (first, second)


def test_a_precision_is_shown_with_its_ends_and_its_own_layers_where_they_are_not_the_usual_ones():
    assert str(Precision(4, 2, first=6)) == "w4a2 ends 6/8"
    assert str(Precision((4, 2), (4, 2), first=3, last=5, layers={"a": (2, 2)})) == "mixed-4/2 ends 3/5 + 1 own"


@given(st.one_of(anything, st.sampled_from(["w4", "a4", "W4A4", "w4a4 ", "w4a4\n", "w1a4", "w9a9", "w٤a٤", "int8"])))
def test_a_wrong_precision_text_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"'w4a2'|bits must be"):
        Precision.parse(text)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(weights=1, activations=4),
        dict(weights=4, activations="4"),
        dict(weights=(4, 2, 2), activations=4),
        dict(weights=[4, 2], activations=4),
        dict(weights=4, activations=4, first=0),
        dict(weights=4, activations=4, last=True),
        dict(weights=4, activations=4, layers={"a": 4}),
        dict(weights=4, activations=4, layers={"a": (4, 4, 4)}),
        dict(weights=4, activations=4, layers={"a": (4, 33)}),
        dict(weights=4, activations=4, layers=None),
        dict(weights=4, activations=4, layers=["a"]),
    ],
)
def test_a_precision_of_impossible_bits_cannot_be_made(wrong):
    with pytest.raises((ValueError, TypeError)) as caught:
        Precision(**wrong)
    assert_sentence(caught.value)


def test_resolve_gives_the_first_half_and_the_ends_their_own_bits():
    names = list("abcdefg")
    assert Precision((4, 2), (8, 3), first=6, last=5).resolve(names) == {
        "a": (6, 8),
        "b": (4, 8),
        "c": (4, 8),
        "d": (4, 8),
        "e": (2, 3),
        "f": (2, 3),
        "g": (5, 5),
    }
    own = Precision(4, 4, layers={"a": (2, 8), "c": (3, 2)}).resolve(names)
    assert own["a"] == (2, 8) and own["c"] == (3, 2) and own["b"] == (4, 4)
    assert Precision.parse("w4a4").resolve(["only"]) == {"only": (8, 8)}
    assert Precision(4, 4, first=6, last=5).resolve(["only"]) == {"only": (6, 8)}
    with pytest.raises(ValueError, match=r"does not have: \['z'\]"):
        Precision(4, 4, layers={"z": (2, 2)}).resolve(names)


@given(n=st.integers(1, 30), first=st.integers(2, 8), second=st.integers(2, 8))
def test_mixed_precision_has_as_many_layers_in_one_half_as_in_the_other(n, first, second):
    bits = list(
        Precision((first, second), (first, second), first=32, last=32).resolve([str(i) for i in range(n)]).values()
    )
    middle = bits[1:-1]
    half = math.ceil(n / 2)
    assert middle == [(first, first)] * max(0, min(half, n - 1) - 1) + [(second, second)] * max(0, n - 1 - max(half, 1))


# ---------------------------------------------------------------- quantize


class OwnNet(nn.Module):
    """A user's network: layers defined in another order than they run, and one ReLU used three times."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(6, 8, 3)
        self.first = nn.Conv2d(1, 6, 3, padding=1, padding_mode="reflect")
        self.also_relu = self.relu

    def forward(self, x):
        x = self.relu(self.second(self.relu(self.first(x))))
        return self.head(self.also_relu(x).mean((2, 3)))


class FunctionalNet(nn.Module):
    def __init__(self, relu):
        super().__init__()
        self.conv, self.fc, self.relu = nn.Conv2d(1, 2, 3), nn.Linear(2, 2), relu

    def forward(self, x):
        return self.fc(self.relu(self.conv(x)).mean((2, 3)))


class BranchingNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.relu, self.fc2 = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc2(self.relu(self.fc1(x))) if x.sum() > 0 else x


def bits_of(model):
    weights = [m.weight_bits for m in model.modules() if isinstance(m, (QuantConv2d, QuantLinear))]
    return weights, [m.bits for m in model.modules() if isinstance(m, PACT)]


def test_a_sequential_network_gets_its_bits_and_every_relu_those_of_the_next_layer():
    model = quantize(build_model("lenet5"), "mixed-4/2")
    assert [m.weight_bits for m in (model.conv1, model.conv2, model.fc1, model.fc2, model.fc3)] == [8, 4, 4, 2, 8]
    assert [m.bits for m in (model.relu1, model.relu2, model.relu3, model.relu4)] == [4, 4, 2, 8]


def test_a_relu_behind_the_last_layer_has_the_last_layers_bits():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU())
    small = quantize(model, Precision(2, 2, first=8, last=4))
    assert [small[i].bits for i in (1, 3, 5)] == [2, 4, 4]


def test_a_concatenation_of_rounded_tensors_is_read_as_rounded_and_warns_of_nothing(recwarn):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.relu1, self.relu2 = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.ReLU()
            self.last = nn.Linear(8, 2)

        def forward(self, x):
            return self.last(torch.cat([self.relu1(self.one(x)), self.relu2(self.other(x))], 1))

    rows = {row["name"]: row for row in describe(quantize(Wide(), "w4a4"), (4,))}
    assert rows["last"]["bit_operations"] == 8 * 2 * 8 * 8 and not recwarn.list


def test_a_residual_network_is_converted_through_all_its_blocks():
    weights, activations = bits_of(quantize(build_model("resnet20", 3), "w2a3"))
    assert weights == [8] + 18 * [2] + [8]
    assert activations == 18 * [3] + [8]


def test_torchvisions_resnet18_is_converted_and_its_shared_relus_stay_shared():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"^layer4\.1\.conv2 \(2 bits\) of ResNet read more bits"):
        model = quantize(resnet18(num_classes=5), "w4a2").eval()
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    weights, activations = bits_of(model)
    assert weights == [8] + 19 * [4] + [8]
    assert activations == 8 * [2] + [8]  # the stem's and one a block; the last block's feeds the 8-bit last layer
    assert model(torch.rand(1, 3, 64, 64)).isfinite().all()


def test_an_own_network_is_converted_in_its_order_of_execution_with_one_alpha_for_a_shared_relu():
    net = OwnNet().train()
    net.second.eval()
    with pytest.warns(UserWarning, match=r"^second \(2 bits\) of OwnNet read more bits"):
        model = quantize(net, Precision(4, 2, first=6, last=5))
    assert (model.first.weight_bits, model.second.weight_bits, model.head.weight_bits) == (6, 4, 5)
    assert model.relu is model.also_relu and model.relu.bits == 5  # the largest of its uses
    assert model.training and not model.second.training
    assert model.first.padding_mode == "reflect"
    assert sum(n.endswith("alpha") for n, _ in model.named_parameters()) == 1
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_a_relu6_becomes_a_pact_as_a_relu_does():
    model = quantize(nn.Sequential(nn.Linear(4, 4), nn.ReLU6(), nn.Linear(4, 2)), "w4a3")
    assert isinstance(model[1], PACT) and model[1].bits == 8  # those of the last layer, which reads it


def test_a_relu_that_a_network_holds_under_many_names_becomes_one_pact_everywhere():
    relu = nn.ReLU()
    inner = nn.Sequential(relu, nn.Linear(4, 4))
    net = nn.Sequential(nn.Linear(4, 4), relu, nn.ModuleDict({"a": inner, "b": nn.Sequential(relu)})["a"], inner, relu)
    net.spare = relu
    model = quantize(net, "w4a4")
    assert isinstance(model[1], PACT)
    assert model[1] is model[2][0] is model[3][0] is model[4] is model.spare


def test_the_original_is_left_untouched():
    torch.manual_seed(0)
    net = build_model("lenet5").eval()
    state, classes = copy.deepcopy(net.state_dict()), [type(m) for m in net.modules()]
    model = quantize(net, "w2a2")
    for p in model.parameters():
        p.data.add_(1)
    assert [type(m) for m in net.modules()] == classes
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not hasattr(net, "precision") and not net.training


@pytest.mark.parametrize("name", ["lenet5", "cnn", "resnet20"])
@pytest.mark.parametrize("precision", ["w4a4", "fp32"])
def test_weights_statistics_and_attributes_are_kept(name, precision):
    net = build_model(name)
    model = quantize(net, precision)
    kept = {k: v for k, v in model.state_dict().items() if not k.endswith("alpha")}
    assert kept.keys() == net.state_dict().keys()
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in kept.items())
    assert model.recipe == net.recipe and model.input_shape == net.input_shape
    assert model.precision == Precision.parse(precision) and model.scheme == "sawb"


def test_fp32_gives_an_equal_copy():
    net = build_model("lenet5").eval()
    model, x = quantize(net, "fp32"), torch.rand(2, 1, 28, 28)
    assert model is not net and torch.equal(model(x), net(x))
    assert [type(m) for m in model.modules()] == [type(m) for m in net.modules()]


def test_a_converted_layer_computes_with_its_quantized_weight_and_its_own_options():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, padding_mode="circular").double()
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), conv, nn.ReLU(), nn.Flatten(), nn.Linear(54, 2)).double()
    for scheme in SCHEMES:
        layer = quantize(net, "w2a2", scheme)[2]
        reference = copy.deepcopy(conv)
        reference.weight.data = quantize_weight(conv.weight.detach(), 2, scheme)
        x = seeded(2, 4, 6, 6)
        torch.testing.assert_close(layer(x), reference(x))
        assert layer.scheme == scheme and f"weight_bits=2, scheme={scheme}" in repr(layer)


@pytest.mark.parametrize(
    "relu",
    [
        F.relu,
        torch.relu,
        torch.relu_,
        F.relu6,
        lambda x: x.relu(),
        lambda x: x.relu_(),
        lambda x: F.relu(x, inplace=True),
    ],
)
def test_a_relu_called_as_a_function_is_refused_with_a_sentence(relu):
    place = r"FunctionalNet calls ReLU as a function 1 times, in forward; give each its own nn.ReLU"
    with pytest.raises(ValueError, match=place):
        quantize(FunctionalNet(relu), "w4a4")


class Caching(nn.Module):
    """Keeps what it makes, as some published networks do."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.fc, self.grid = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(32, 2), None
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.grid is None:
            self.grid = torch.ones(x.shape[-1])
        self.calls += 1
        self.features = self.relu(self.conv(x + self.grid))
        return self.fc(self.features.flatten(1))


def test_a_model_that_keeps_what_it_makes_is_left_as_it_was_by_quantize():
    model, x = Caching(), seeded(2, 1, 6, 6).float()
    with torch.no_grad():
        small = quantize(model, "w4a4")
        assert (model.grid, model.calls.item(), hasattr(model, "features")) == (None, 0, False)
        assert model(x).shape == small(x).shape == (2, 2) and small.calls == 1


class WithAuxiliaryHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 4)
        self.middle, self.relu_middle, self.auxiliary = nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Linear(64, 2)

    def forward(self, x):
        hidden = self.relu_middle(self.middle(self.relu(self.conv(x))))
        logits = self.head(hidden).flatten(1)
        return logits + 0.3 * self.auxiliary(hidden.flatten(1)) if self.training else logits


@pytest.mark.parametrize("training", [True, False])
def test_the_last_layer_is_that_of_the_finished_network_whatever_mode_the_model_is_in(training):
    with pytest.warns(UserWarning, match="^auxiliary of WithAuxiliaryHead stay in float"):
        small = quantize(WithAuxiliaryHead().train(training), "w2a2")
    assert [small.get_submodule(n).weight_bits for n in ("conv", "middle", "head")] == [8, 2, 8]
    assert small.training is training


def test_a_layer_with_a_forward_of_its_own_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    model[0].forward = lambda x: F.conv2d(x, model[0].weight * 2)
    with pytest.raises(ValueError, match="layer '0' has a forward of its own"):
        quantize(model, "w4a4")


@pytest.mark.parametrize("name, value", [("precision", nn.Identity()), ("scheme", nn.Identity()), ("precision", 0.5)])
def test_what_the_model_itself_calls_precision_or_scheme_is_not_overwritten(name, value):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    setattr(model, name, value)
    with pytest.raises(ValueError, match=f"Sequential has a '{name}' of its own.*rename it"):
        quantize(model, "w4a4")
    assert getattr(model, name) is value


def test_alphas_are_not_set_from_activations_that_overflow():
    model = quantize(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)), "w8a8")
    model[0].weight.data.fill_(1e38)
    with pytest.raises(ValueError, match="^1 is given numbers that are infinite or not a number"):
        calibrate(model, torch.tensor([[1e3]]))


def test_the_classes_that_call_a_relu_as_a_function_are_named_once_each():
    model = nn.Sequential(FunctionalNet(F.relu), nn.Sequential(FunctionalNet(F.relu), FunctionalNet(torch.relu)))
    with pytest.raises(ValueError, match=r"Sequential calls ReLU as a function 3 times, in FunctionalNet\.forward;"):
        quantize(model, "w4a4")


def test_a_network_that_branches_on_its_data_is_converted_with_a_warning():
    with pytest.warns(UserWarning, match="BranchingNet cannot be traced .*control flow.* order of definition"):
        model = quantize(BranchingNet(), Precision(4, 2, last=3))
    assert isinstance(model.fc1, QuantLinear) and isinstance(model.relu, PACT)
    # Nothing says what its layers read, so these are the bits asked for.
    assert [(row["weight_bits"], row["activation_bits"]) for row in describe(model)] == [(8, 8), (3, 3)]


def test_a_network_that_branches_and_has_no_relu_module_rounds_no_activation_but_the_image():
    float_model = BranchingNet()
    float_model.relu = nn.Tanh()
    with pytest.warns(UserWarning, match="cannot be traced"), pytest.warns(UserWarning, match=r"^fc2 .* float numbers"):
        model = quantize(float_model, "w2a2")
    assert [row["activation_bits"] for row in describe(model)] == [8, 32]


def test_a_model_with_nothing_to_quantize_or_quantized_already_is_refused():
    with pytest.raises(ValueError, match="no Conv2d or Linear layer"):
        quantize(nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU()), "w4a4")
    with pytest.raises(ValueError, match="quantized already"):
        quantize(quantize(build_model("lenet5"), "w4a4"), "w2a2")
    with pytest.raises(ValueError, match="names layers the model does not have"):
        quantize(build_model("lenet5"), Precision(4, 4, layers={"conv9": (2, 2)}))


def test_own_bits_for_a_layer_reach_its_weight_and_the_relu_before_it():
    model = quantize(build_model("lenet5"), Precision(4, 4, layers={"fc1": (2, 3)}))
    assert (model.fc1.weight_bits, model.relu2.bits, model.fc2.weight_bits, model.relu3.bits) == (2, 3, 4, 4)


def test_execution_order_follows_the_calls_not_the_definitions():
    assert execution_order(OwnNet()) == ["first", "relu", "second", "relu", "relu", "head"]


@pytest.mark.parametrize("name", ["lenet5", "cnn"])
@pytest.mark.parametrize(("precision", "scheme"), [("w2a2", "sawb"), ("mixed-4/2", "dorefa"), ("w3a4", "minmax")])
def test_after_some_training_no_quantized_layer_has_more_values_than_its_bits_allow(name, precision, scheme):
    torch.manual_seed(0)
    model = quantize(build_model(name), precision, scheme)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x, y = torch.rand(16, 1, 28, 28), torch.arange(16) % 10
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    calibrate(model, x)  # a network without batch-norm can begin with all activations below half a step
    outputs, inputs = {}, {}
    for module in model.modules():
        module.register_forward_pre_hook(lambda m, i: inputs.update({m: i[0]}))
        module.register_forward_hook(lambda m, i, o: outputs.update({m: o}))
    model(x)
    layers = [m for m in model.modules() if isinstance(m, (QuantConv2d, QuantLinear))]
    for layer in layers:
        used = quantize_weight(layer.weight, layer.weight_bits, layer.scheme)
        assert 1 < len(used.unique()) <= 2**layer.weight_bits
    for layer in layers[1:]:
        assert len(inputs[layer].unique()) <= 2**layer.activation_bits
    counts = {m: len(outputs[m].unique()) for m in model.modules() if isinstance(m, PACT)}
    assert all(count <= 2**layer.bits for layer, count in counts.items()) and max(counts.values()) > 2


# ---------------------------------------------------------------- calibrate


class Shift(nn.Module):
    def forward(self, x):
        return x.sub_(1)


def test_calibrate_sets_alpha_to_the_quantile_of_the_positive_activations():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = seeded(500, 3)
    model = calibrate(quantize(net, "w8a8"), x, quantile=0.9)
    seen = model[0](x)
    positive = seen[seen > 0].sort().values
    assert model[1].alpha.item() == pytest.approx(positive[math.ceil(0.9 * len(positive)) - 1].item(), rel=1e-6)


def test_calibrate_leaves_modes_weights_and_hooks_as_they_were():
    model = quantize(build_model("cnn"), "w4a4").train()
    model.bn2.eval()
    state = {k: v.clone() for k, v in model.state_dict().items() if not k.endswith("alpha")}
    assert calibrate(model, torch.rand(4, 1, 28, 28)) is model
    assert model.training and model.bn1.training and not model.bn2.training
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_calibrate_leaves_the_images_alone_also_if_the_first_layer_works_in_place():
    model, x = quantize(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)), "w4a4"), torch.randn(8, 4)
    model.insert(0, Shift())
    before = x.clone()
    calibrate(model, x)
    assert torch.equal(x, before)


def test_calibrate_gives_a_shared_relu_the_largest_alpha_that_a_use_asks_for():
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(1, 1), relu, nn.Linear(1, 1), relu, nn.Linear(1, 1))
    for layer, factor in ((net[0], 5.0), (net[2], 0.1), (net[4], 1.0)):
        layer.weight.data.fill_(factor), layer.bias.data.zero_()
    model = calibrate(quantize(net, "w8a8"), torch.ones(3, 1), quantile=1.0)
    assert model[1].alpha.item() == pytest.approx(5.0)
    assert calibrate(model, torch.ones(3, 1) / 5, quantile=1.0)[1].alpha.item() == pytest.approx(1.0)


def test_calibrate_leaves_a_dead_layers_alpha_alone_and_refuses_what_it_cannot_use():
    model = quantize(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)), "w8a8", alpha=3.0)
    nn.init.zeros_(model[0].weight), nn.init.constant_(model[0].bias, -1)
    assert calibrate(model, torch.ones(4, 1))[1].alpha.item() == 3.0
    for quantile in (0, -1, 1.1, math.nan):
        with pytest.raises(ValueError, match="quantile"):
            calibrate(model, torch.ones(4, 1), quantile)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="infinite or not a number"):
            calibrate(model, torch.full((4, 1), bad))


def test_quantizing_a_network_to_8_bits_after_calibration_keeps_its_outputs():
    torch.manual_seed(0)
    net, x = build_model("lenet5").eval(), torch.rand(32, 1, 28, 28)
    errors = [(calibrate(quantize(net, f"w{b}a{b}"), x)(x) - net(x)).norm() / net(x).norm() for b in (8, 4, 2)]
    assert errors[0] < 0.05 and errors[0] < errors[1] < errors[2]


# ---------------------------------------------------------------- describe


def test_describe_counts_lenet5_as_one_does_by_hand():
    rows = describe(quantize(build_model("lenet5"), "w4a2"))
    assert [(r["name"], r["kind"], r["weight_bits"], r["activation_bits"]) for r in rows] == [
        ("conv1", "conv", 8, 8),
        ("conv2", "conv", 4, 2),
        ("fc1", "linear", 4, 2),
        ("fc2", "linear", 4, 2),
        ("fc3", "linear", 8, 8),
    ]
    weights = [25 * 6, 25 * 6 * 16, 400 * 120, 120 * 84, 84 * 10]
    biases = [6, 16, 120, 84, 10]
    assert [r["parameters"] for r in rows] == [w + b for w, b in zip(weights, biases, strict=True)]
    assert [r["packed_bytes"] for r in rows] == [
        w * r["weight_bits"] // 8 + 4 * b for w, b, r in zip(weights, biases, rows, strict=True)
    ]
    macs = [28 * 28 * weights[0], 10 * 10 * weights[1], *weights[2:]]
    assert [r["macs"] for r in rows] == macs
    assert [r["bit_operations"] for r in rows] == [
        m * w * a for m, w, a in zip(macs, [8, 4, 4, 4, 8], [8, 2, 2, 2, 8], strict=True)
    ]


def test_packed_bytes_are_rounded_up():
    layers = (nn.Linear(n, m, bias=False) for n, m in ((2, 3), (3, 1), (1, 2)))
    model = quantize(nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU()))), "w3a3")
    assert [row["packed_bytes"] for row in describe(model, (2,))] == [6, 2, 2]  # 3 weights of 3 bits are 9 bits


def test_describe_of_a_float_network_has_32_bits_and_leaves_the_network_alone():
    model = build_model("cnn").train()
    model.bn3.eval()
    rows = describe(model)
    assert {(r["weight_bits"], r["activation_bits"]) for r in rows} == {(32, 32)}
    assert model.training and not model.bn3.training and not any(m._forward_hooks for m in model.modules())
    assert model.bn1.num_batches_tracked == 0


def test_describe_without_an_image_shape_leaves_the_work_open_and_a_wrong_one_is_refused():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, groups=1), nn.Flatten(), nn.Linear(18, 2))
    assert [r["macs"] for r in describe(net)] == [None, None]
    assert [r["macs"] for r in describe(net, (1, 5, 5))] == [9 * 2 * 9, 36]
    assert describe(nn.ReLU(), (1, 5, 5)) == []
    with pytest.raises(ValueError, match="cannot take an image of shape"):
        describe(net, (3, 5, 5))


def test_describe_counts_grouped_and_repeated_layers():
    conv = nn.Conv2d(4, 4, 1, groups=2, bias=False)
    (row,) = describe(nn.Sequential(conv, conv), (4, 3, 3))
    assert row["macs"] == 2 * 9 * 4 * 2 and row["parameters"] == 8


# ---------------------------------------------------------------- whatever one is given


def correct_or_sentence(call):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except (ValueError, TypeError) as error:
        assert_sentence(error)
        return None


@given(wrong_bits)
def test_every_function_that_takes_bits_refuses_wrong_ones(bits):
    for call in (
        lambda: check_bits(bits),
        lambda: quantize_uniform(torch.ones(2), bits, 0, 1),
        lambda: pact(torch.ones(2), 1.0, bits),
        lambda: PACT(bits),
        lambda: quantize_weight(torch.ones(2), bits),
        lambda: weight_codes(torch.ones(2), bits),
        lambda: weight_scale(torch.ones(2), bits),
        lambda: default_alpha(bits),
        lambda: Precision(bits, 4),
        lambda: Precision(4, 4, first=bits),
    ):
        with pytest.raises(ValueError, match="bits"):
            call()


@given(x=st.one_of(odd_tensors, anything), bits=st.one_of(st.integers(2, 8), anything), low=anything, high=anything)
@settings(max_examples=300)
def test_whatever_quantize_uniform_is_given_it_answers_or_says_what_is_wrong(x, bits, low, high):
    y = correct_or_sentence(lambda: quantize_uniform(x, bits, low, high))
    if y is not None:
        assert y.shape == x.shape and y.dtype == x.dtype
        assert torch.equal(y.isnan(), x.isnan()) and (bits == 32 or not y.isinf().any())


@given(x=st.one_of(odd_tensors, anything), alpha=st.one_of(st.floats(0.1, 9), anything), bits=st.integers(2, 8))
@settings(max_examples=300)
def test_whatever_pact_is_given_it_answers_or_says_what_is_wrong(x, alpha, bits):
    y = correct_or_sentence(lambda: pact(x, alpha, bits))
    if y is not None:
        assert y.shape == x.shape and y.dtype == x.dtype
        assert torch.equal(y.isnan(), x.isnan()) and not y.isinf().any()


@given(w=st.one_of(odd_tensors, anything), bits=st.integers(2, 8), scheme=st.one_of(st.sampled_from(SCHEMES), anything))
@settings(max_examples=300)
def test_whatever_quantize_weight_is_given_it_answers_or_says_what_is_wrong(w, bits, scheme):
    y = correct_or_sentence(lambda: quantize_weight(w, bits, scheme))
    if y is not None:
        assert y.shape == w.shape and y.dtype == w.dtype and not y.isinf().any()
        assert len(y[~y.isnan()].unique()) <= 2**bits


@given(
    model=st.one_of(st.just(nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))), anything),
    precision=st.one_of(st.sampled_from(["w4a4", "fp32", Precision(2, 2)]), anything),
    scheme=st.one_of(st.sampled_from(SCHEMES), anything),
    alpha=anything,
)
@settings(max_examples=200)
def test_whatever_quantize_is_given_it_converts_or_says_what_is_wrong(model, precision, scheme, alpha):
    quantized = correct_or_sentence(lambda: quantize(model, precision, scheme, alpha))
    if quantized is not None:
        assert quantized(torch.ones(2, 5)).isfinite().all()


@given(x=odd_tensors, quantile=anything)
def test_whatever_calibrate_is_given_every_alpha_ends_above_zero_and_finite(x, quantile):
    model = quantize(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)), "w4a4")
    if x.dim() == 4:  # another shape is the network's own matter
        dtype = x.dtype if x.is_floating_point() else torch.float32
        correct_or_sentence(lambda: calibrate(model.to(dtype), x, quantile))
    assert 0.999 * ALPHA_MIN <= model[1].alpha.item() < math.inf


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantized_weight_keeps_the_strides_that_choose_the_fast_convolution(channels, scheme):
    w = torch.randn(8, channels, 3, 3, generator=torch.Generator().manual_seed(0))
    w = w.to(memory_format=torch.channels_last)
    assert quantize_weight(w, 4, scheme).stride() == w.stride()


def test_the_gradient_of_pact_is_laid_out_like_its_input_whatever_the_layout_of_the_gradient_after_it():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    y = pact(x, 2.0, 4)
    (grad,) = torch.autograd.grad(y, x, torch.ones(2, 3, 4, 4))
    assert grad.stride() == x.stride()


def test_a_penalty_on_the_input_gradient_goes_through_pact_as_through_one_written_with_autograd():
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(shape, generator=generator, dtype=float64) for shape in ((5, 3), (3, 8))]

    def written(x, alpha, bits):
        step = alpha.detach() / (2**bits - 1)
        y = torch.where(x >= alpha, alpha, torch.where(x > 0, x, 0))
        return y + ((y / step).round() * step - y).detach()

    found = []
    for function in (pact, written):
        x, w, alpha = (v.clone().requires_grad_() for v in (*draws, torch.tensor(1.1, dtype=float64)))
        loss = (function(x @ w, alpha, 3) ** 2).sum()
        slopes = torch.autograd.grad(loss, [x, alpha], create_graph=True)
        penalty = sum(slope.square().sum() for slope in slopes)
        found.append(torch.autograd.grad(penalty, [x, w, alpha]))
    assert all(bool(grad.any()) for grad in found[0])
    torch.testing.assert_close(found[0], found[1])


def test_a_quantized_network_can_be_trained_with_a_penalty_on_its_input_gradient():
    torch.manual_seed(0)
    model = quantize(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), "w4a4")
    x = torch.randn(4, 6, requires_grad=True)
    (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in (model[0].weight, model[2].weight, model[1].alpha))


class Reads(nn.Module):
    """Layer "last" reads what `join` makes of two rounded halves."""

    def __init__(self, join, shared=False):
        super().__init__()
        self.first, self.relu, self.middle = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)
        self.other, self.last = (self.relu if shared else nn.ReLU()), nn.Linear(8, 2)
        self.join = join

    def forward(self, x):
        x = self.relu(self.first(x))
        return self.last(self.join(x, self.other(self.middle(x))))


@pytest.mark.parametrize(
    ("join", "shared", "bits", "says"),
    [
        (lambda a, b: b, False, [2, 4], None),
        (lambda a, b: b.view(b.size(0), -1), False, [2, 4], None),
        (lambda a, b: b, True, [4, 4], r"middle \(2 bits\) of Reads read more bits than asked for"),
        (lambda a, b: a + b, False, [2, 32], r"last \(4 bits\) of Reads read float numbers"),
        (lambda a, b: b.clamp(min=1), False, [2, 32], r"last \(4 bits\) of Reads read float numbers"),
        (lambda a, b: torch.cat([b[:, :4], (a + b)[:, 4:]], 1), False, [2, 32], r"last \(4 bits\) of Reads read float"),
    ],
    ids=["relu", "view", "shared", "sum", "clamp", "half of it a sum"],
)
def test_a_layer_has_the_bits_that_it_reads_and_more_than_asked_for_are_warned_of(join, shared, bits, says):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = quantize(Reads(join, shared), Precision(weights=2, activations=2, last=4)).eval()
    assert [model.middle.activation_bits, model.last.activation_bits] == bits
    assert len(caught) == (says is not None) and all(re.match(says, str(w.message)) for w in caught)
    calibrate(model, x := torch.rand(500, 8))
    for layer in (model.middle, model.last):
        layer.register_forward_pre_hook(lambda m, given: levels.append(len(given[0].unique())))
    levels = []
    model(x)
    wanted = [r["activation_bits"] for r in describe(model)[1:]]
    assert all(count <= 2**b for count, b in zip(levels, wanted, strict=True))
    assert all(count > 2 ** (b // 2) for count, b in zip(levels, wanted, strict=True) if b < 32)


def test_a_layer_that_was_asked_to_read_more_bits_than_its_relu_hands_out_says_so():
    net = Reads(lambda a, b: a)
    with pytest.warns(UserWarning, match=r"^last \(8 bits\) of Reads read fewer bits than asked for"):
        model = quantize(net, "w2a2")
    assert describe(model)[-1]["activation_bits"] == 2


@pytest.mark.parametrize("asked", [{}, {"0": (4, 2)}, {"0": (4, 8)}])
def test_every_layer_that_reads_the_image_reads_8_bits(asked):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.relu, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(self.relu(self.one(x) + self.other(x)))

    model = quantize(Two(), Precision(2, 2, layers={name.replace("0", "one"): bits for name, bits in asked.items()}))
    assert [row["activation_bits"] for row in describe(model)] == [8, 8, 8]


@pytest.mark.parametrize("join", [lambda a, b: torch.squeeze(b), lambda a, b: torch.unsqueeze(b, 0)])
def test_what_only_changes_the_shape_leaves_numbers_rounded(join):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = quantize(Reads(join), "w2a2")
    assert model.last.activation_bits == 8


MEANS = {
    nn.AvgPool2d: nn.AvgPool2d(2),
    nn.AdaptiveAvgPool2d: nn.AdaptiveAvgPool2d(1),
    F.avg_pool2d: lambda x: F.avg_pool2d(x, 2),
    F.adaptive_avg_pool2d: lambda x: F.adaptive_avg_pool2d(x, 1),
    torch.mean: lambda x: torch.mean(x, 3),
    "mean": lambda x: x.mean(3),
}
HANDING_ON = {
    nn.MaxPool2d: nn.MaxPool2d(2),
    nn.AdaptiveMaxPool2d: nn.AdaptiveMaxPool2d(1),
    nn.Flatten: nn.Flatten(),
    nn.Unflatten: nn.Unflatten(1, (2, 1)),
    nn.Identity: nn.Identity(),
    nn.Dropout: nn.Dropout().eval(),
    nn.Dropout2d: nn.Dropout2d().eval(),
    nn.ZeroPad2d: nn.ZeroPad2d(1),
    F.max_pool2d: lambda x: F.max_pool2d(x, 2),
    F.adaptive_max_pool2d: lambda x: F.adaptive_max_pool2d(x, 1),
    F.dropout: lambda x: F.dropout(x, training=False),
    F.pad: lambda x: F.pad(x, (1, 1)),
    operator.getitem: lambda x: x[:, :1],
    torch.cat: lambda x: torch.cat([x, x]),
    torch.concat: lambda x: torch.concat([x, x]),
    torch.concatenate: lambda x: torch.concatenate([x, x]),
    torch.flatten: lambda x: torch.flatten(x, 1),
    torch.reshape: lambda x: torch.reshape(x, (-1, 4)),
    torch.permute: lambda x: torch.permute(x, (0, 2, 3, 1)),
    torch.transpose: lambda x: torch.transpose(x, 1, 2),
    torch.squeeze: lambda x: torch.squeeze(x),
    torch.unsqueeze: lambda x: torch.unsqueeze(x, 0),
    torch.chunk: lambda x: torch.chunk(x, 2),
    torch.split: lambda x: torch.split(x, 1),
    "flatten": lambda x: x.flatten(1),
    "view": lambda x: x.view(-1, 4),
    "reshape": lambda x: x.reshape(-1, 4),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 2),
    "contiguous": lambda x: x.contiguous(),
    "squeeze": lambda x: x.squeeze(),
    "unsqueeze": lambda x: x.unsqueeze(0),
    "chunk": lambda x: x.chunk(2),
    "split": lambda x: x.split(1),
}


def test_every_operation_that_is_said_to_pass_numbers_on_is_tried():
    assert MEANS.keys() | HANDING_ON.keys() == {*_PASSING, *_PASSING_CALLS}


@pytest.mark.parametrize("name", [*MEANS, *HANDING_ON], ids=lambda name: getattr(name, "__name__", name))
def test_what_only_passes_numbers_on_keeps_the_bits(name, recwarn):
    class OfTheSecond(nn.Module):  # holds a module, so that quantize copies it with the network
        def __init__(self):
            super().__init__()
            self.passing = passing

        def forward(self, a, b):
            return self.passing(b)

    passing = (MEANS | HANDING_ON)[name]
    assert quantize(Reads(OfTheSecond()), Precision(2, 2, last=4)).last.activation_bits == 4 and not recwarn.list
    x = pact(seeded(4, 2, 4, 4), 1.0, 2)
    after = passing(x)
    levels = torch.cat(after).unique() if isinstance(after, tuple) else after.unique()
    assert torch.isin(levels, x.unique()).all() or name in MEANS


def test_dropout_and_pooling_hide_no_bits_of_the_guided_papers_network():
    rows = describe(quantize(build_model("guided_paper_cnn"), "w4a4"))
    assert [(row["name"], row["activation_bits"]) for row in rows] == [
        ("conv1", 8),
        ("conv2", 4),
        ("fc1", 4),
        ("fc2", 8),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_network_of_another_dtype_has_alphas_of_it_and_is_counted_with_an_image_of_it(dtype):
    model, seen = quantize(build_model("lenet5").to(dtype), "w4a4"), []
    model.conv1.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    assert describe(model) == describe(quantize(build_model("lenet5"), "w4a4"))
    assert {module.alpha.dtype for module in model.modules() if isinstance(module, PACT)} == {dtype} == set(seen)


def test_a_layer_that_reads_float_numbers_at_one_of_its_two_calls_is_warned_of():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.twice, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

        def forward(self, x):
            x = self.relu1(self.first(x))
            return self.last(self.relu3(self.twice(self.relu2(self.twice(x + x)))))

    with pytest.warns(UserWarning, match=r"^twice \(2 bits\) of Twice read float numbers"):
        quantize(Twice(), "w2a2")


def test_weights_that_no_quantizer_reaches_are_warned_of_by_name():
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))
    with pytest.warns(UserWarning, match=r"0 of Sequential stay in float"):
        quantize(model, "w4a4")


@pytest.mark.filterwarnings("ignore:1.fc .* read float numbers")
def test_of_a_block_only_the_weights_of_its_own_are_said_to_stay_in_float():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.fc, self.rows = nn.Parameter(torch.ones(4, 1)), nn.Linear(3, 3), nn.LSTM(3, 3)

        def forward(self, x):
            return self.rows(self.fc(x) * self.gain)[0]

    with pytest.warns(UserWarning, match=r"^gain, rows of Scaled stay in float"):
        quantize(Scaled(), "w4a4")
    with pytest.warns(UserWarning, match=r"^1\.gain, 1\.rows of Sequential stay in float"):
        quantize(nn.Sequential(nn.Linear(3, 3), Scaled()), "w4a4")


def test_layers_that_stay_in_float_inside_a_module_of_torch_are_warned_of_by_name():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.TransformerEncoderLayer(8, 2, 16), nn.ReLU(), nn.Linear(8, 2))
    with pytest.warns(UserWarning, match=r"2\.linear1, 2\.linear2 of Sequential stay in float"):
        quantized = quantize(model, "w4a4")
    assert type(quantized[2].linear1) is nn.Linear and quantized[0].weight_bits == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(model, "fp32")
        quantize(build_model("lenet5"), "w4a4")


@pytest.mark.parametrize("model", [None, "cnn", torch.zeros(3)], ids=["none", "text", "tensor"])
def test_calibrate_asks_for_a_model(model):
    with pytest.raises(TypeError, match="model must be an nn.Module"):
        calibrate(model, torch.rand(2, 3))


class Listed(nn.Module):
    """ReLUs that are called from a list, by which forward knows them."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU6(inplace=True)
        self.acts = [self.relu1, self.relu2]

    def forward(self, x):
        return self.last(self.acts[1](self.second(self.acts[0](self.first(x)))))


class Optional(nn.Module):
    """A network with further arguments, which `model(x)` leaves at their defaults."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.second, self.extra = (nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8))

    def forward(self, x, y=None, *, mask=None, doubled=False, mode="one"):
        x = self.relu(self.first(x))
        if mask is not None:
            x = x * mask
        if doubled or mode == "two":
            x = 2 * x
        x = self.second(x)
        return x if y is None else self.extra(x)


class Plainly(Optional):
    def forward(self, x):
        return self.second(self.relu(self.first(x)))


def test_arguments_with_defaults_are_traced_as_a_call_with_the_input_alone_takes_them():
    assert execution_order(Optional()) == ["first", "relu", "second"]
    told = []
    for model in (Optional(), Plainly()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bits = [
                (row["name"], row["weight_bits"], row["activation_bits"]) for row in describe(quantize(model, "w2a2"))
            ]
        told.append((bits, [str(warning.message).replace("Plainly", "Optional") for warning in caught]))
    assert told[0] == told[1]
    assert told[0][0] == [("first", 8, 8), ("second", 8, 8), ("extra", 32, 32)]


def test_a_network_with_two_inputs_is_traced_with_both():
    class Two(Plainly):
        def forward(self, x, y):
            return self.second(self.relu(self.first(x) + self.extra(y)))

    assert execution_order(Two()) == ["first", "extra", "relu", "second"]


def test_a_relu_is_replaced_under_every_name_also_in_a_list_and_its_hooks_stay():
    model, calls = Listed(), []
    model.relu1.register_forward_hook(lambda module, inputs, output: calls.append(type(module)))
    quantized = quantize(model, "w2a2", alpha=1.5)
    assert [type(a) for a in quantized.acts] == [PACT, PACT] and quantized.acts[0] is quantized.relu1
    assert quantized.relu2.extra_repr() == "bits=8, alpha=1.5"
    seen = []
    quantized.second.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0].unique())))
    quantized(torch.rand(99, 8))
    assert calls == [PACT] and seen[0] <= 4


@pytest.mark.parametrize(
    "join",
    [lambda x, y: x + y, lambda x, y: y + x, lambda x, y: torch.add(input=x, other=y)],
    ids=["image first", "image last", "by name"],
)
def test_a_sum_with_the_image_is_no_image_and_no_rounded_number(join):
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.relu, self.last = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(input=join(x, self.relu(self.first(x))))

    with pytest.warns(UserWarning, match=r"last \(8 bits\) of Skip read float numbers"):
        assert quantize(Skip(), "w4a4").last.activation_bits == 32


@pytest.mark.parametrize("cut", [lambda x: x.chunk(2, 1)[0], lambda x: torch.split(x, 4, 1)[1]], ids=["chunk", "split"])
def test_a_part_of_a_rounded_tensor_is_read_as_rounded(cut, recwarn):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.relu, self.middle, self.last = nn.Linear(8, 8), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(self.relu(self.middle(cut(self.relu(self.first(x))))))

    assert quantize(Cut(), Precision(4, 4, last=4)).middle.activation_bits == 4 and not recwarn


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [2, 4])
def test_small_weights_in_half_precision_are_quantized_as_in_single(bits, scheme):
    w = 6e-3 * torch.randn(64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    wanted, found = quantize_weight(w, bits, scheme), quantize_weight(w.half(), bits, scheme).float()
    assert (found - wanted).norm() < 0.05 * wanted.norm()


def test_a_range_taken_from_the_weights_themselves_has_no_gradient():
    w = torch.tensor([-1.0, -0.2, 0.4, 2.0], requires_grad=True)
    quantize_uniform(w, 2, w.min(), w.max()).sum().backward()
    assert w.grad.tolist() == [1.0] * 4


def test_layers_are_called_by_the_names_of_their_arguments_as_those_of_torch_are():
    class Named(nn.Sequential):
        def forward(self, x):
            for layer in self:
                x = layer(input=x)
            return x

    model = Named(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 2))
    x = torch.rand(5, 1, 4, 4)
    quantized = calibrate(quantize(model, "w4a4"), x, quantile=1.0)
    torch.testing.assert_close(quantized[1].alpha.item(), quantized[0](x).max().item())
    assert quantized(x).shape == (5, 2)


class Leaky(nn.ReLU):
    def forward(self, x):
        return torch.maximum(x, 0.1 * x)


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            nn.Sequential(nn.Linear(4, 4), Leaky(), nn.Linear(4, 2)),
            "'1' is a Leaky, derived from Conv2d, Linear or ReLU",
        ),
        (
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Scaled(4, 2)),
            "'2' is a Scaled, derived from Conv2d, Linear or ReLU",
        ),
        (nn.Linear(4, 2), "wrap a single layer in nn.Sequential"),
        (nn.Sequential(prune.l1_unstructured(nn.Linear(4, 4), "weight", 2)), "torch.nn.utils.prune.remove"),
    ],
    ids=["a ReLU of one's own", "a layer of one's own", "a layer alone", "pruned"],
)
def test_what_quantize_would_change_or_cannot_copy_is_refused_with_what_to_do(model, says):
    model(torch.rand(3, 4))
    with pytest.raises(ValueError, match=says):
        quantize(model, "w4a4")


def test_calibrate_refuses_a_float_model_and_an_empty_batch():
    with pytest.raises(ValueError, match="Sequential has no PACT layer to calibrate; call quantize first"):
        calibrate(build_model("lenet5"), torch.rand(2, 1, 28, 28))
    with pytest.raises(ValueError, match="x is empty"):
        calibrate(quantize(build_model("lenet5"), "w4a4"), torch.rand(0, 1, 28, 28))


def test_a_conv_behind_a_float_stem_reads_float_numbers():
    stem = nn.Sequential(nn.ConvTranspose2d(3, 8, 2), nn.SiLU())
    model = nn.Sequential(stem, nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    in_float = pytest.warns(UserWarning, match=r"^0\.0 of Sequential stay in float")
    with in_float, pytest.warns(UserWarning, match=r"^1 \(8 bits\) of Sequential read float numbers"):
        small = quantize(model, "w4a4")
    assert describe(small, (3, 8, 8))[0]["activation_bits"] == 32


def test_a_parametrized_layer_is_told_how_to_become_plain():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match="remove_parametrizations"):
        quantize(model, "w4a4")
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert describe(quantize(model, "w4a4"))[1]["weight_bits"] == 8
