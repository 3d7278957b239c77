import copy
import math
import warnings

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from shared import on_each_device, short_sentence
from torch import nn

from qsal_helpers import PACT, Precision, build_model, quantize
from qsal_helpers.saliency import _METHODS, completeness_error, evaluating, saliency_map

METHODS = list(_METHODS)
pytestmark = pytest.mark.filterwarnings("error", "ignore:integrated gradients do not add up")


def images(number=3, channels=1, side=16, dtype=torch.float32):
    """Random images in the memory format that saliency_map uses, so that oracles can be compared to the bit."""
    x = torch.randn(number, channels, side, side, generator=torch.Generator().manual_seed(number), dtype=dtype)
    return x.to(memory_format=torch.channels_last)


def network(precision="fp32", channels=1, seed=0):
    """A small network with batch-norm and dropout, whose statistics are not those of a fresh one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(8 * 64, 5),
        )
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    return quantize(model, precision)


class Linear(nn.Module):
    """f_k(x) = sum(weight_k * x): its saliency is known."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return torch.einsum("kchw,bchw->bk", self.weight, x)


class Quadratic(Linear):
    """f_k(x) = sum(weight_k * x^2)."""

    def forward(self, x):
        return super().forward(x * x)


def reduced(attribution, absolute=True):
    return (attribution.abs() if absolute else attribution).sum(1).detach().float()


# --- against Captum ---


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "w2a2"])
def test_gradient_and_input_x_gradient_equal_captums_to_the_bit(precision, channels, absolute):
    model, x = network(precision, channels).eval(), images(channels=channels)
    target = torch.tensor([4, 0, 2])
    for method, oracle in [("gradient", captum.attr.Saliency), ("input_x_gradient", captum.attr.InputXGradient)]:
        signed = {"abs": False} if method == "gradient" else {}
        expected = oracle(model).attribute(x.clone().requires_grad_(), target, **signed)
        found = saliency_map(model, x, target, method, absolute=absolute)
        assert torch.equal(found, reduced(expected, absolute))


@pytest.mark.parametrize("batch_size", [7, 1000])
@pytest.mark.parametrize("steps", [1, 20])
def test_integrated_gradients_equal_captums(steps, batch_size):
    model, x = network(channels=3).eval().double(), images(channels=3, dtype=torch.float64)
    baseline = torch.full_like(x, -0.3)
    target = torch.tensor([4, 0, 2])
    expected = captum.attr.IntegratedGradients(model).attribute(x, baseline, target, n_steps=steps)
    found = saliency_map(
        model, x, target, "integrated_gradients", steps=steps, baseline=-0.3, absolute=False, batch_size=batch_size
    )
    torch.testing.assert_close(found, reduced(expected, False), rtol=1e-5, atol=1e-6)


def test_smooth_grad_equals_captums_noise_tunnel_with_the_same_noise():
    model, x = network().eval(), images(1)
    torch.manual_seed(7)
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(model))
    spread = 0.2 * float(x.max() - x.min())
    expected = tunnel.attribute(
        x.clone().requires_grad_(), nt_type="smoothgrad", nt_samples=10, stdevs=spread, target=3, abs=False
    )
    found = saliency_map(model, x, 3, "smooth_grad", samples=10, noise=0.2, seed=7)
    torch.testing.assert_close(found, reduced(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "w4a4"])
def test_grad_cam_equals_captums_enlarged_bilinearly_its_positive_part_first(precision):
    model, x = network(precision).eval(), images()
    coarse = captum.attr.LayerGradCam(model, model[4]).attribute(x.clone().requires_grad_(), 1).detach()
    enlarged = lambda m: F.interpolate(m, (16, 16), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(saliency_map(model, x, 1, "grad_cam", absolute=False), enlarged(coarse))
    torch.testing.assert_close(saliency_map(model, x, 1, "grad_cam"), enlarged(coarse.relu()))
    assert (coarse < 0).any()


def test_guided_backprop_equals_captums_on_a_float_network():
    model, x = network().eval(), images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = captum.attr.GuidedBackprop(model).attribute(x.clone().requires_grad_(), 1)
    assert torch.equal(saliency_map(model, x, 1, "guided_backprop"), reduced(expected))


# --- closed forms ---


@on_each_device
def test_on_a_linear_model_every_gradient_method_gives_the_weights(device):
    weight = images(4, 3, 8)
    model, x = Linear(weight).to(device), images(5, 3, 8).to(device)
    target = torch.tensor([0, 1, 2, 3, 0], device=device)
    w = weight.to(device)[target]
    expected = {
        "gradient": w,
        "smooth_grad": w,
        "input_x_gradient": w * x,
        "integrated_gradients": w * (x - x.amin((0, 2, 3), keepdim=True)),
    }
    for method, attribution in expected.items():
        for absolute in (True, False):
            found = saliency_map(model, x, target, method, absolute=absolute)
            assert found.device == x.device
            torch.testing.assert_close(found, reduced(attribution, absolute), rtol=1e-4, atol=1e-5)


def test_integrated_gradients_of_a_quadratic_model_are_its_terms():
    model, x = Quadratic(images(2, 3, 8)), images(2, 3, 8)
    found = saliency_map(model, x, 1, "integrated_gradients", baseline=0.0, steps=2, absolute=False)
    torch.testing.assert_close(found, reduced(model.weight[1] * x**2, False), rtol=1e-4, atol=1e-5)


def test_smooth_grad_without_noise_is_the_gradient_and_its_noise_grows_with_the_images_range():
    model, x = network().eval(), images()
    still = saliency_map(model, x, 0, "smooth_grad", noise=0.0, samples=3)
    torch.testing.assert_close(still, saliency_map(model, x, 0), rtol=1e-4, atol=1e-6)
    quadratic = Quadratic(torch.ones(1, 1, 16, 16))
    change = [
        saliency_map(quadratic, scale * x, 0, "smooth_grad", samples=1, absolute=False)
        - saliency_map(quadratic, scale * x, 0, absolute=False)
        for scale in (1.0, 3.0)
    ]
    torch.testing.assert_close(change[1], 3 * change[0], rtol=1e-3, atol=1e-4)


def test_without_options_smooth_grad_and_integrated_gradients_take_the_documented_ones():
    model, x = network(), images()
    given = {"smooth_grad": {"samples": 25, "noise": 0.15, "seed": 0}, "integrated_gradients": {"steps": 50}}
    for method, options in given.items():
        assert torch.equal(saliency_map(model, x, 1, method), saliency_map(model, x, 1, method, **options))
    model = quantize(model, "w2a2")
    assert torch.equal(completeness_error(model, x, 1), completeness_error(model, x, 1, steps=50))


def test_a_baseline_may_be_a_number_one_number_a_channel_or_an_image():
    model, x = Linear(images(2, 3, 8)), images(2, 3, 8)
    for baseline in (0.5, torch.tensor([0.1, 0.2, 0.3]), images(1, 3, 8)[0]):
        way = x - (baseline.view(3, 1, 1) if isinstance(baseline, torch.Tensor) and baseline.dim() == 1 else baseline)
        found = saliency_map(model, x, 0, "integrated_gradients", baseline=baseline, absolute=False)
        torch.testing.assert_close(found, reduced(model.weight[0] * way, False), rtol=1e-4, atol=1e-5)


def test_the_random_map_is_uniform_and_hangs_on_its_seed_alone():
    model, x = network(), images(8)
    maps = saliency_map(model, x, method="random")
    assert torch.equal(maps, saliency_map(network("w2a2"), x + 1, method="random"))
    assert not torch.equal(maps, saliency_map(model, x, method="random", seed=1))
    assert maps.min() >= 0 and maps.max() < 1 and abs(maps.mean() - 0.5) < 0.02
    assert not torch.equal(maps[0], maps[1])


# --- quantized networks ---


def test_guided_backprop_on_a_quantized_network_stops_negative_gradients_at_every_pact():
    model, x = network("w4a4").eval(), images()
    # By hand: the chain rule backwards through the layers, with the gradient clipped at 0 below each PACT.
    inputs, h = [], x
    for layer in model:
        inputs.append(h.detach().requires_grad_())
        h = layer(inputs[-1])
    gradient = F.one_hot(torch.tensor([1, 1, 1]), 5).float()
    for layer, given in zip(reversed(model), reversed(inputs), strict=True):
        gradient = torch.autograd.grad(layer(given), given, gradient)[0]
        if isinstance(layer, PACT):
            gradient = gradient.relu()
    found = saliency_map(model, x, 1, "guided_backprop")
    torch.testing.assert_close(found, reduced(gradient), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found, saliency_map(model, x, 1), rtol=0.1)
    assert sum(isinstance(m, PACT) for m in model) == 2 and not any(isinstance(m, nn.ReLU) for m in model.modules())


@pytest.mark.parametrize("precision", ["fp32", "w4a4"])
def test_guided_backprop_treats_a_relu_that_is_used_twice_like_two(precision):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.fc = nn.Linear(4 * 256, 3)
            self.relu = self.again = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.fc(self.again(self.conv2(self.relu(self.conv1(x)))).flatten(1))

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* read more bits than asked for")
        shared = quantize(Shared(), precision)
    apart = copy.deepcopy(shared)
    apart.again = copy.deepcopy(shared.relu)
    x = images()
    maps = [saliency_map(model, x, 0, "guided_backprop") for model in (shared, apart)]
    assert torch.equal(*maps) and shared.relu is shared.again
    assert not torch.allclose(maps[0], saliency_map(shared, x, 0), rtol=0.1)


def test_guided_backprop_reaches_an_activation_that_forward_calls_through_a_list():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
            self.relu1, self.relu2, self.fc = nn.ReLU(), nn.ReLU(), nn.Linear(4 * 144, 3)
            self.listed = [self.relu2]

        def forward(self, x):
            return self.fc(self.relu2(self.conv2(self.relu1(self.conv1(x)))).flatten(1))

    class Listed(Named):
        def forward(self, x):
            return self.fc(self.listed[0](self.conv2(self.relu1(self.conv1(x)))).flatten(1))

    torch.manual_seed(0)
    named, listed = quantize(Named(), "w4a4"), quantize(Listed(), "w4a4")
    listed.load_state_dict(named.state_dict())
    maps = [saliency_map(model, images(), 0, "guided_backprop") for model in (named, listed)]
    assert torch.equal(*maps) and not torch.allclose(maps[0], saliency_map(named, images(), 0), rtol=0.1)


def test_guided_backprop_stops_negative_gradients_at_a_relu6_and_where_it_clips():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 20), nn.ReLU6(inplace=True), nn.Linear(20, 3))
    model[1].weight.data.mul_(10)
    x = images()
    hidden = model[1](x.flatten(1))
    assert (hidden < 0).any() and (hidden > 6).any() and (model[3].weight[0] < 0).any()
    gradient = (model[3].weight[0].relu() * (hidden > 0) * (hidden < 6)) @ model[1].weight
    found = saliency_map(model, x, 0, "guided_backprop")
    torch.testing.assert_close(found, reduced(gradient.view_as(x)), rtol=1e-4, atol=1e-5)


class WithAuxiliaryRelu(nn.Module):
    """A module that no output follows from, called or not, beside a ReLU called as a function, or not."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.relu, self.auxiliary, self.fc = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.ReLU(), nn.Linear(392, 3)
        self.function = function

    def forward(self, x):
        hidden = self.relu(self.conv(x))
        self.unused = self.auxiliary(-hidden)
        return self.fc((F.relu(hidden - 0.1) if self.function else hidden).flatten(1))


def test_a_relu_module_that_the_logits_do_not_follow_from_does_not_hide_a_function():
    with pytest.raises(ValueError, match="calls ReLU as a function 1 times"):
        saliency_map(WithAuxiliaryRelu(function=True), images(), 0, "guided_backprop")
    model, x = WithAuxiliaryRelu(function=False), images()
    found = saliency_map(model, x, 0, "guided_backprop")
    assert not torch.equal(found, saliency_map(model, x, 0)) and found.isfinite().all()


def test_guided_backprop_refuses_relus_it_cannot_reach_and_models_without_any():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.fc = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(2 * 14 * 14, 3)

        def forward(self, x):
            return self.fc(F.relu(self.relu(self.conv(x)) - 0.1).flatten(1))

    with pytest.raises(ValueError, match="calls ReLU as a function 1 times") as caught:
        saliency_map(Functional(), images(), method="guided_backprop")
    short_sentence(caught)
    with pytest.raises(ValueError, match="needs ReLUs"):
        saliency_map(Linear(images(2)), images(), method="guided_backprop")


@pytest.mark.parametrize(
    "by_hand", [F.relu6, lambda x: F.hardtanh(x, 0, 6), lambda x: x.clamp(min=0), lambda x: x.clamp(0, 1)]
)
def test_guided_backprop_refuses_other_functions_that_are_relus_and_takes_what_only_bounds(by_hand):
    class Mixed(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.conv, self.relu, self.six, self.fc = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.ReLU6(), nn.Linear(392, 3)
            self.function = function

        def forward(self, x):
            return self.fc(self.function(self.six(self.relu(self.conv(x))) - 0.1).flatten(1))

    with pytest.raises(ValueError, match="calls ReLU as a function 1 times"):
        saliency_map(Mixed(by_hand), images(), 0, "guided_backprop")
    for bounded in (F.hardtanh, lambda x: x.clamp(-1, 1), lambda x: x.clamp(max=1)):
        assert saliency_map(Mixed(bounded), images(), 0, "guided_backprop").isfinite().all()


def test_grad_cam_passes_over_convolutions_whose_map_is_one_pixel():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 3, 1), nn.Flatten()
    model, x = nn.Sequential(*layers), images()
    found = saliency_map(model, x, 0, "grad_cam", absolute=False)
    assert torch.equal(found, saliency_map(model, x, 0, "grad_cam", layer="0", absolute=False))
    assert (found.amax((1, 2)) > found.amin((1, 2)) + 1e-3).all()
    for only, options in ((model, {"layer": "3"}), (nn.Sequential(nn.Conv2d(1, 3, 16), nn.Flatten()), {})):
        with pytest.raises(ValueError, match="grad_cam needs a layer with more than one pixel"):
            saliency_map(only, x, 0, "grad_cam", **options)


def test_integrated_gradients_warn_for_a_quantized_model_also_after_a_silent_look_at_it_and_never_for_a_float_one():
    x, quantized = images(), [network("w2a2"), network("w4a4")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for model in [network(), *quantized]:
            completeness_error(model, x, steps=2)
            assert not caught or model is quantized[1]
            saliency_map(model, x, method="integrated_gradients", steps=2, batch_size=1)
            saliency_map(model, x)
    assert len(caught) == 2 and all("staircases" in str(w.message) for w in caught)
    assert all(w.filename == __file__ for w in caught)


def test_completeness_improves_with_steps_on_a_float_network_and_not_on_a_quantized_one():
    x = images(8)
    model, low = network(), network("w2a2")
    coarse, fine = (completeness_error(model, x, steps=steps).median() for steps in (5, 200))
    assert fine < 0.01 and fine < coarse / 4
    assert completeness_error(low, x, steps=200).median() > 0.1
    quadratic = Quadratic(images(2).abs())
    assert completeness_error(quadratic, images(), 1, steps=2).max() < 1e-5


@pytest.mark.parametrize(("precision", "warned"), [(Precision(8, 2), 1), (Precision(2, 32, first=32, last=32), 0)])
def test_integrated_gradients_warn_where_activations_have_few_bits_and_not_where_weights_alone_do(precision, warned):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        saliency_map(quantize(build_model("lenet5"), precision), torch.rand(1, 1, 28, 28), None, "integrated_gradients")
    assert ["do not add up" in str(warning.message) for warning in said] == [True] * warned


def test_completeness_error_keeps_each_image_with_its_own_target_whatever_the_batch_size():
    model, x, target = Linear(images(5)), images(67), torch.arange(67) ** 2 % 7 % 5
    for batch_size in (64, 10):
        assert completeness_error(model, x, target, steps=2, batch_size=batch_size).max() < 1e-3


def test_completeness_error_is_the_relative_gap_for_any_target():
    model, x = network("w4a4").eval(), images()
    target = torch.tensor([0, 3, 1])
    attribution = captum.attr.IntegratedGradients(model).attribute(x, 0.0, target, n_steps=30)
    with torch.no_grad():
        change = (model(x) - model(torch.zeros_like(x)))[torch.arange(3), target]
    expected = ((attribution.sum((1, 2, 3)) - change) / change).abs().float()
    found = completeness_error(model, x, target, steps=30, baseline=0.0, batch_size=2)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-4)
    assert torch.equal(completeness_error(Linear(images(2)), torch.zeros(2, 1, 16, 16)), torch.zeros(2))


def test_completeness_error_is_infinite_where_nothing_was_promised_and_something_came():
    class Hat(nn.Module):  # up and down again between the baseline and the image
        def forward(self, x):
            top = x.flatten(1).sum(1)
            return torch.stack([top.clamp(max=0.5) - (top - 0.5).clamp(0) / 3, top], 1)

    error = completeness_error(Hat(), torch.full((1, 1, 1, 1), 2.0), 0, steps=2, baseline=0.0)
    assert error.item() == math.inf


# --- the model and the caller's tensors are left alone ---


def snapshot(model):
    return (
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [v.clone() for v in model.state_dict().values()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        [id(m) for m in model.modules()],
    )


def same(before, after):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for left, right in zip(before, after, strict=True)
        for a, b in zip(left, right, strict=True)
    )


class Failing(nn.Module):
    """Passes tensors on, and fails when it is called for the third time."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("third call")
        return x


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "w2a2"])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "random"])
def test_the_model_is_left_as_it_was_also_after_an_exception(method, precision, fails):
    model, x = network(precision), images(6)
    model(x).sum().backward()
    model.train()
    model[1].eval()  # a frozen batch-norm in a training network
    model[0].weight.requires_grad_(False)
    model[8].weight.grad.fill_(3.0)
    if fails:
        model.append(Failing())
    before, x_before, state = snapshot(model), x.clone(), torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="third call"):
            saliency_map(model, x, method=method, batch_size=1)
        model[-1].calls = 0
    else:
        saliency_map(model, x, method=method, batch_size=4)
    assert same(before, snapshot(model))
    assert torch.equal(x, x_before) and not x.requires_grad and x.grad is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_computed_in_evaluation_mode_and_repeat(method):
    model, x = network(), images()
    in_training = saliency_map(model.train(), x, method=method)
    assert torch.equal(in_training, saliency_map(model.eval(), x, method=method))


def test_evaluating_keeps_mixed_modes_and_flags():
    model = network()
    model[1].eval()
    model[4].bias.requires_grad_(False)
    before = snapshot(model)
    with pytest.raises(KeyError), evaluating(model):
        assert not any(m.training for m in model.modules()) and not any(p.requires_grad for p in model.parameters())
        raise KeyError
    assert same(before, snapshot(model))


# --- batches, shapes, targets ---


@pytest.mark.parametrize("method", METHODS)
def test_maps_have_their_shape_and_do_not_hang_on_the_batch_size_which_bounds_every_forward_pass(method):
    model, x = network(channels=3), images(7, 3)
    x.requires_grad_()
    whole = saliency_map(model, x, method=method, batch_size=1000)
    assert whole.shape == (7, 16, 16) and whole.dtype == torch.float32 and not whole.requires_grad
    assert whole.isfinite().all() and whole.min() >= 0 and whole.max() > 0
    sizes = []
    handle = model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    few = saliency_map(model, x, method=method, batch_size=3)
    handle.remove()
    assert max(sizes, default=3) == 3
    torch.testing.assert_close(few, whole, rtol=1e-3, atol=1e-5)
    assert saliency_map(model, x[:0], method=method).shape == (0, 16, 16)


@pytest.mark.parametrize("method", METHODS)
def test_no_target_means_the_predicted_class_and_a_number_stands_for_all_images(method):
    model, x = network().eval(), images(6)
    predicted = model(x).argmax(1)
    assert len(predicted.unique()) > 1
    options = {"method": method, "batch_size": 4}
    torch.testing.assert_close(saliency_map(model, x, **options), saliency_map(model, x, predicted, **options))
    torch.testing.assert_close(
        saliency_map(model, x, 2, **options), saliency_map(model, x, torch.full((6,), 2), **options)
    )
    if method != "random":
        assert not torch.allclose(saliency_map(model, x, 2, **options), saliency_map(model, x, 3, **options))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_map_can_be_made_where_gradients_are_switched_off(mode, method):
    model, x = network("w4a4"), images()
    expected = saliency_map(model, x, 1, method)
    with mode():
        assert torch.equal(saliency_map(model, x, 1, method), expected)
        assert torch.equal(saliency_map(model, x * 1, torch.ones(3, dtype=torch.int64), method), expected)


def test_grad_cam_takes_the_convolution_that_is_executed_last_or_the_one_it_is_told():
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.unused = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
            self.early = nn.Conv2d(1, 4, 3)
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.late(self.early(x).relu()).relu().mean((2, 3)))

    torch.manual_seed(0)
    model, x = Swapped(), images()
    late, early = (saliency_map(model, x, 0, "grad_cam", layer=name, absolute=False) for name in ("late", "early"))
    assert torch.equal(saliency_map(model, x, 0, "grad_cam", absolute=False), late)
    assert torch.equal(saliency_map(model, x, 0, "grad_cam", layer=model.early, absolute=False), early)
    assert not torch.allclose(late, early)
    for layer, words in [
        ("middle", "no layer 'middle'.*late, unused, early, fc"),
        ("unused", "no call"),
        ("fc", r"\(B, C, H, W\)"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            saliency_map(model, x, 0, "grad_cam", layer=layer)
        short_sentence(caught)
    with pytest.raises(ValueError, match="Conv2d"):
        saliency_map(Linear(images(2)), x, 0, "grad_cam")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"method": "lime"}, ValueError, "gradient, input_x_gradient, smooth_grad, integrated_gradients, grad_cam"),
        ({"steps": 3}, TypeError, "gradient has no option 'steps'; it has absolute, batch_size"),
        ({"method": "smooth_grad", "steps": 3}, TypeError, "samples, noise, seed"),
        ({"x": torch.zeros(2, 1, 16, 16, dtype=torch.uint8)}, TypeError, "uint8"),
        ({"x": [1.0]}, TypeError, "list"),
        ({"x": torch.zeros(1, 16, 16)}, ValueError, r"\(1, 16, 16\)"),
        ({"target": 5}, ValueError, "from 0 to 4.*got 5"),
        ({"target": -1}, ValueError, "from 0 to 4.*got -1"),
        ({"target": 5, "method": "guided_backprop"}, ValueError, "from 0 to 4"),
        ({"target": torch.tensor([1, 2])}, ValueError, r"int64 \(3,\)"),
        ({"target": 1.5}, ValueError, "class number"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"method": "smooth_grad", "samples": 0}, ValueError, "samples"),
        ({"method": "smooth_grad", "noise": -1.0}, ValueError, "noise"),
        ({"method": "integrated_gradients", "steps": 0}, ValueError, "steps"),
        ({"method": "integrated_gradients", "baseline": torch.zeros(2)}, ValueError, "baseline"),
        ({"model": nn.Conv2d(1, 2, 3)}, ValueError, r"\(B, classes\)"),
    ],
)
def test_a_wrong_argument_is_told_in_one_sentence(change, error, words):
    arguments = {"model": network(), "x": images()} | change
    with pytest.raises(error, match=words) as caught:
        saliency_map(**arguments)
    short_sentence(caught)


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_every_method_works_on_residual_networks_float_and_quantized(name):
    torch.manual_seed(0)
    model, x = build_model(name, 3, image_size=16), images(2, 3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* read more bits than asked for")
        quantized = quantize(model, "w2a2")
    for m in (model, quantized):
        for method in METHODS:
            options = {"samples": 2} if method == "smooth_grad" else {}
            maps = saliency_map(m, x, method=method, **options | ({"steps": 2} if "integrated" in method else {}))
            assert maps.shape == (2, 16, 16) and maps.isfinite().all()


def test_completeness_has_no_absolute_option():
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    with pytest.raises(TypeError, match="no option 'absolute'"):
        completeness_error(model, images(), absolute=True)


def test_smooth_grad_draws_the_same_noise_for_each_dtype():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3)), torch.rand(2, 1, 8, 8)
    single = saliency_map(model, x, 0, "smooth_grad")
    double = saliency_map(model.double(), x.double(), 0, "smooth_grad")
    torch.testing.assert_close(double.float(), single, rtol=1e-4, atol=1e-6)


def test_explaining_leaves_the_images_alone_also_if_the_models_first_layer_works_in_place():
    torch.manual_seed(0)
    layers = [nn.ReLU(inplace=True), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)]
    model, x = nn.Sequential(*layers), torch.randn(2, 1, 8, 8)
    before = x.clone()
    for method in ("gradient", "integrated_gradients", "grad_cam"):
        assert saliency_map(model, x, None, method).isfinite().all() and torch.equal(x, before)
