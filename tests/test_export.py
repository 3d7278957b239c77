import contextlib
import copy
import dataclasses
import functools
import subprocess
import types
import venv
from collections import OrderedDict
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from shared import random_data
from torch import nn
from torchvision.models import resnet18

from qsal_helpers import SaliencyGuided, build_model, fit, load_data, quantize
from qsal_helpers.data import ImageData, Split
from qsal_helpers.export import (
    align_biases,
    latencies,
    onnx_session,
    pack_bits,
    peak_memory,
    save_onnx,
    to_integer,
    unpack_bits,
)
from qsal_helpers.folding import fold
from qsal_helpers.onnx_files import _has_vnni
from qsal_helpers.quantization import PACT, QuantConv2d, QuantLinear, calibrate, describe, weight_codes


def stirred(model, seed=0):
    """The model with batch-norms as after some training, signs of gamma included, and its alphas off round numbers."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            if module.affine:
                module.weight.data.normal_(1, 0.5, generator=generator)
                module.bias.data.normal_(0, 0.2, generator=generator)
        elif isinstance(module, PACT):
            module.alpha.data.mul_(0.7 + 0.3 * torch.rand((), generator=generator))
    return model.eval()


@torch.no_grad()
def exact_logits(model, data, images):
    """What the fake-quantized model means, in float64: float32 itself carries a rare activation over a border."""
    model = copy.deepcopy(model).eval()
    for layer in model.modules():
        if isinstance(layer, (QuantConv2d, QuantLinear)):
            codes, step = weight_codes(layer.weight.detach(), layer.weight_bits, layer.scheme)
            layer.double().weight.data = codes.double() * step.double()
            layer.weight_bits = 32
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (data.mean, data.std))
    return model.double()((images.double() / 255 - mean) / std).numpy()


def run_onnx(model, data, images, path, storage):
    return onnx_session(save_onnx(model, path, data, storage), threads=1).run(None, {"image": images.numpy()})[0]


def trained(name, precision, data, number=500):
    """A network after a moment of training."""
    some = dataclasses.replace(data, train=data.train[:number])
    torch.manual_seed(0)
    model = quantize(build_model(name), precision)
    fit(model, some, epochs=1, batch_size=20, lr=0.05, progress=False, validation=0)
    return model.eval()


# ---------------------------------------------------------------- packing


@given(
    st.integers(1, 8).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(-(2 ** (b - 1)), 2 ** (b - 1) - 1))))
)
def test_packed_numbers_come_back_and_take_the_fewest_bytes(drawn):
    bits, numbers = drawn
    packed = pack_bits(np.array(numbers, np.int64), bits)
    assert len(packed) == -(-len(numbers) * bits // 8)
    assert unpack_bits(packed, bits, len(numbers)).tolist() == numbers


def test_the_first_number_lies_in_the_lowest_bits():
    assert pack_bits(np.array([1, -2, 0, -1]), 2).tolist() == [0b11_00_10_01]


def test_only_integers_are_packed_and_only_bytes_unpacked():
    with pytest.raises(TypeError, match="codes must be integers; got float64"):
        pack_bits(np.array([1.0]), 2)
    with pytest.raises(TypeError, match="packed must be uint8 with one axis; got int8"):
        unpack_bits(np.zeros(1, np.int8), 2, 4)


@pytest.mark.parametrize("numbers, bits", [([2], 2), ([-9], 4), ([1], 0), ([1], 9)])
def test_numbers_that_do_not_fit_are_refused(numbers, bits):
    with pytest.raises(ValueError, match="bits"):
        pack_bits(np.array(numbers), bits)


def test_a_packed_array_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="5 numbers of 2 bits need 2 bytes; got 1"):
        unpack_bits(np.zeros(1, np.uint8), 2, 5)


# ---------------------------------------------------------------- the integer model


class IntegersOnly(np.ndarray):
    """An array that fails as soon as a NumPy operation on it gives anything but whole numbers."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        return self.watch(getattr(ufunc, method)(*map(self.plain, inputs), **options))

    def __array_function__(self, function, types, args, options):
        args = [[self.plain(a) for a in arg] if isinstance(arg, list) else self.plain(arg) for arg in args]
        return self.watch(function(*args, **options))

    @staticmethod
    def plain(x):
        return x.view(np.ndarray) if isinstance(x, IntegersOnly) else x

    @staticmethod
    def watch(result):
        assert result.dtype.kind in "iub", f"a float array of shape {result.shape}"
        return result.view(IntegersOnly) if isinstance(result, np.ndarray) else result


@pytest.mark.parametrize("name", ["lenet5", "cnn", "vgg_small", "resnet20"])
def test_no_float_is_computed_between_image_and_logits(name):
    data = random_data(3, 16)
    net = to_integer(stirred(quantize(build_model(name, 3, image_size=16), "mixed-4/2")), data)
    arrays = net.values(data.test.images[:2].numpy().view(IntegersOnly))
    assert all(isinstance(array, IntegersOnly) and array.dtype.kind in "iu" for array in arrays.values())
    for step in net.steps:
        constants = [v for v in vars(step).values() if isinstance(v, np.ndarray)]
        assert all(constant.dtype.kind == "i" for constant in constants)


@pytest.mark.parametrize("precision", ["w4a4", "w2a2", "mixed-4/2", "w3a3", "w8a8"])
@pytest.mark.parametrize("name", ["lenet5", "cnn", "vgg_small", "resnet20"])
def test_integers_mean_what_the_fake_quantized_model_means(name, precision):
    data = random_data(3, 16)
    model = stirred(quantize(build_model(name, 3, image_size=16), precision))
    net = to_integer(model, data)
    logits = net(data.test.images)
    difference = logits * net.output_scale - exact_logits(model, data, data.test.images)
    assert abs(difference).max() <= 0.5001 * net.output_scale
    assert logits.std() > 100


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    channels=st.integers(1, 3),
    width=st.integers(1, 5),
    window=st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(0, 2)),  # size, stride, padding
    norm=st.sampled_from([nn.Identity, nn.BatchNorm2d, functools.partial(nn.BatchNorm2d, affine=False)]),
    pool=st.sampled_from([nn.MaxPool2d(2), nn.MaxPool2d(3, 2, padding=1), nn.AvgPool2d(2), nn.Identity()]),
    scheme=st.sampled_from(["sawb", "dorefa", "minmax"]),
    precision=st.sampled_from(["w2a2", "w3a5", "w4a4", "w2a8", "w8a8"]),
)
def test_any_small_network_agrees(tmp_path_factory, seed, channels, width, window, norm, pool, scheme, precision):
    torch.manual_seed(seed)
    data = random_data(channels, 9, seed=seed)
    layers = [nn.Conv2d(channels, width, *window, bias=norm is nn.Identity), norm(width)]
    layers += [nn.ReLU(), pool, nn.Conv2d(width, 4, 2, padding=1), nn.ReLU()]
    layers += [nn.Flatten(), nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3)]
    float_model = nn.Sequential(*layers)
    float_model(torch.zeros(2, channels, 9, 9))
    model = align_biases(stirred(quantize(float_model, precision, scheme), seed), data)
    expected = exact_logits(model, data, data.test.images)
    net = to_integer(model, data)
    assert abs(net(data.test.images) * net.output_scale - expected).max() <= 0.5001 * net.output_scale
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    for storage in ("int8", "packed"):
        logits = run_onnx(model, data, data.test.images, path, storage)
        # onnxruntime multiplies in float32, so one image may have an activation that falls on the other side.
        far = abs(logits - expected).max(1) > net.output_scale + 1e-5 * abs(expected).max()
        assert far.sum() <= 1


class Skip(nn.Module):
    """A residual block: ``relu(conv(x) + x)``."""

    def __init__(self, width, normed):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(width, width, 3, padding=1, bias=not normed), nn.ReLU()
        self.norm = nn.BatchNorm2d(width) if normed else nn.Identity()

    def forward(self, x):
        return self.relu(self.norm(self.conv(x)) + x)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    width=st.integers(1, 6),
    window=st.tuples(st.integers(1, 5), st.integers(1, 2), st.integers(0, 2)),  # size, stride, padding
    normed=st.booleans(),
    skip=st.booleans(),
    pool=st.sampled_from([nn.MaxPool2d(2), nn.MaxPool2d(3, 2, padding=1), nn.Identity()]),
    scheme=st.sampled_from(["sawb", "dorefa", "minmax"]),
    precision=st.sampled_from(["w4a4", "w2a2", "w3a4", "w2a4", "mixed-4/2"]),
)
def test_any_small_net_has_one_answer(tmp_path_factory, seed, width, window, normed, skip, pool, scheme, precision):
    torch.manual_seed(seed)
    data = random_data(1, 9, number=100, seed=seed)
    layers = [nn.Conv2d(1, width, *window, bias=not normed)]
    layers += [nn.BatchNorm2d(width)] * normed + [nn.ReLU(), pool] + [Skip(width, normed)] * skip
    layers += [nn.Conv2d(width, 4, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3)]
    float_model = nn.Sequential(*layers)
    float_model(torch.zeros(2, 1, 9, 9))
    model = align_biases(stirred(quantize(float_model, precision, scheme), seed), data)
    assert not that_differ_from_torch(model, data, data.test.images, tmp_path_factory.mktemp("onnx") / "net.onnx")


def that_differ_from_torch(model, data, images, path):
    """Return which forms, of integers and both files, have another class or a logit further off than one step."""
    with torch.no_grad():
        expected = model(data.normalise(images)).numpy()
    net = to_integer(model, data)
    forms = {"integers": net(images) * net.output_scale}
    forms |= {storage: run_onnx(model, data, images, path, storage) for storage in ("int8", "packed")}
    same_class = lambda logits: (logits.argmax(1) == expected.argmax(1)).all()
    near = lambda logits: abs(logits - expected).max() <= net.output_scale
    return [form for form, logits in forms.items() if not (same_class(logits) and near(logits))]


def test_a_colour_image_that_is_flattened_first_keeps_the_mean_of_each_colour():
    data = random_data(channels=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(768, 20), nn.ReLU(), nn.Linear(20, 10))
    model = stirred(quantize(net, "w4a4"))
    net, images = to_integer(model, data), data.test.images
    assert abs(net(images) * net.output_scale - exact_logits(model, data, images)).max() <= 0.5001 * net.output_scale


def test_a_sum_too_large_for_32_bits_is_exact():
    side = 280  # 280 x 280 pixels of 255 times weights of 127 are 2.5e9
    white = torch.full((2, 1, side, side), 255, dtype=torch.uint8)
    split = Split(white, torch.tensor([0, 1]))
    data = ImageData("white", split, split, ("a", "b"), (0.0,), (1.0,))
    model = quantize(nn.Sequential(nn.Flatten(), nn.Linear(side * side, 2, bias=False)), "w8a8").eval()
    model[1].weight.data[0], model[1].weight.data[1] = 0.5, -0.5
    integers = to_integer(model, data)
    logits = integers.output_scale * integers(white.numpy())
    assert np.allclose(logits, [[0.5 * side**2, -0.5 * side**2]] * 2, rtol=1e-6)


def test_the_border_sees_the_mean_pixel():
    """One 3 x 3 filter of ones on a constant image: the corner must miss five taps of (pixel - mean) / std."""
    data = random_data(1, 4, 1)
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten())
    nn.init.ones_(model[0].weight)
    model = quantize(model, "w8a8", scheme="minmax", alpha=40.0)
    net = to_integer(model, data)
    logits = net(np.full((1, 1, 4, 4), 200, np.uint8))[0].reshape(4, 4) * net.output_scale
    pixel, step = (200 / 255 - 0.49) / 0.2, 40 / 255
    assert logits[0, 0] == pytest.approx(round(4 * pixel / step) * step)
    assert logits[1, 1] == pytest.approx(round(9 * pixel / step) * step)


@pytest.mark.parametrize(
    "name, network, precision, number",
    [
        ("fashion-mnist", "lenet5", "w4a4", 300),
        ("mnist", "lenet5", "w2a2", 300),
        ("fashion-mnist", "cnn", "mixed-4/2", 200),
        ("mnist", "cnn", "w4a4", 200),
        ("fashion-mnist", "vgg_small", "w2a2", 30),
        ("mnist", "vgg_small", "mixed-4/2", 30),
        ("fashion-mnist", "resnet20", "w4a4", 30),
        ("mnist", "resnet20", "w2a2", 30),
    ],
)
def test_images_get_the_same_answer_from_torch_integers_and_onnx(tmp_path, name, network, precision, number):
    """`python -m benchmarks.agreement` does the same with every test image.

    The networks must have learned something: in one that has not, two classes may have exactly equal logits.
    """
    data = load_data(name)
    model = align_biases(trained(network, precision, data, 2000 if network == "lenet5" else 300), data)
    assert not that_differ_from_torch(model, data, data.test.images[:number], tmp_path / "net.onnx")


def distance_to_borders(net, name, top_before):
    """How near the sums in front of a rounding can come to where its result changes, in steps of the accumulator."""
    step = net[name]
    largest = top_before * np.abs(net[step.inputs[0]].codes).sum((1, 2, 3)).max()
    sums = np.arange(-largest, largest + 1)[:, None]
    values = (sums + step.bias) * step.multipliers[0] + step.rounding
    # The result is values >> shift, so it changes where values is a multiple of 2**shift.
    places = values / np.exp2(step.shift)
    inside = (places > 0.5) & (places < step.top + 0.5)
    away = np.abs(places - np.rint(places)) / (step.multipliers[0] / np.exp2(step.shift))
    return away[inside].min()


@pytest.mark.parametrize("precision", ["w4a4", "w2a2"])
def test_aligned_biases_keep_every_possible_sum_away_from_the_borders(precision):
    data = random_data(1, 28)
    model = stirred(quantize(build_model("cnn"), precision))
    plain, aligned = (to_integer(m, data) for m in (model, align_biases(model, data)))
    top = plain["relu1"].top
    assert distance_to_borders(aligned, "relu2", top) > 0.015 > distance_to_borders(plain, "relu2", top)


def test_in_front_of_a_residual_addition_the_steps_of_both_sums_fit():
    data = random_data(1, 28)
    model = stirred(quantize(build_model("resnet20"), "w4a4"))
    aligned = align_biases(model, data)
    layer = next(step.layer for step in fold(aligned, data) if step.name == "block1_1.conv2")
    accumulator = layer.scale * model.block1_1.relu1.alpha.item() / 15
    eighths = 8 * model.relu1.alpha.item() / 15 / accumulator
    change = (aligned.block1_1.bn2.weight / model.block1_1.bn2.weight - 1).detach().abs().numpy()
    assert change.any() and abs(eighths - np.rint(eighths))[change > 0].max() < 0.01
    assert change.max() < 0.03


def test_aligned_biases_move_by_at_most_half_a_step_and_are_whole_numbers_of_the_container_s():
    data = random_data(1, 28)
    model = stirred(quantize(build_model("cnn"), "w2a2"))
    aligned = align_biases(model, data)
    layer = next(step.layer for step in fold(aligned, data) if step.name == "conv2")
    accumulator = layer.scale * model.relu1.alpha.item() / 3
    steps = layer.bias / (accumulator / 42)
    assert abs(steps - np.rint(steps)).max() < 0.05
    moved = (aligned.bn2.bias - model.bn2.bias).detach().numpy()
    assert abs(moved).max() > 0 and (abs(moved) <= 0.52 * accumulator).all()
    assert (model.bn2.weight == aligned.bn2.weight).all()


@pytest.mark.parametrize(
    "layers, said",
    [
        ([nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(392, 2)], "Sigmoid"),
        (
            [nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(98, 2)],
            "not quantized; put its ReLU",
        ),
        ([nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(392, 2)], "must directly follow"),
        ([nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(392, 2)], "1 cannot be turned into integers: its input"),
    ],
)
@pytest.mark.filterwarnings("ignore:.* read float numbers")
def test_what_cannot_be_expressed_is_named_and_refused(layers, said):
    with pytest.raises(ValueError, match=said):
        to_integer(quantize(nn.Sequential(*layers), "w4a4"), random_data(1, 16))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 3, padding=1, groups=2),
        nn.Conv2d(2, 2, 3, padding=2, dilation=2),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(2, return_indices=True),
        nn.AvgPool2d(2, padding=1),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(2),
        nn.BatchNorm2d(2, track_running_stats=False),
    ],
    ids=str,
)
def test_a_layer_that_no_file_can_express_is_refused_by_name(layer):
    with pytest.raises(ValueError, match="^1(, .*)? cannot be (exported|folded)"):
        fold(nn.Sequential(nn.Conv2d(1, 2, 3), layer), random_data(1, 12))


class Standardised(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Squared(nn.ReLU):
    def forward(self, x):
        return super().forward(x) ** 2


def patched(layer):
    layer.forward = lambda x: F.conv2d(x, layer.weight * 2)
    return layer


@pytest.mark.parametrize(
    "layer", [Standardised(1, 2, 3), patched(nn.Conv2d(1, 2, 3)), Squared()], ids=["", "patched", ""]
)
def test_a_layer_with_a_forward_of_its_own_is_refused_for_a_file_would_hold_that_of_its_class(layer):
    with pytest.raises(
        ValueError, match=f"^1 cannot be exported: it is a {type(layer).__name__} with a forward of its own"
    ):
        fold(nn.Sequential(nn.Conv2d(1, 1, 1), layer), random_data(1, 12))


def test_a_weight_normed_layer_is_exported_as_it_computes(tmp_path):
    model, data = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(392, 2)).eval(), random_data(1, 16)
    nn.utils.parametrizations.weight_norm(model[0])
    model[0].parametrizations.weight.original0.data *= 2
    found = run_onnx(model, data, data.test.images, tmp_path / "a.onnx", "float32")
    assert abs(found - exact_logits(model, data, data.test.images)).max() < 1e-4


def test_a_batch_norm_without_a_shift_is_folded_and_its_layer_keeps_its_bias():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(392, 2))
    model[1].bias.data.zero_()
    without = copy.deepcopy(model)
    without[1].bias = None  # as BatchNorm2d(2, bias=False) has it in newer versions of torch
    for a, b in zip(fold(stirred_mean(model), random_data()), fold(stirred_mean(without), random_data()), strict=True):
        assert a.layer is None or (
            np.array_equal(a.layer.bias, b.layer.bias) and np.array_equal(a.layer.weight, b.layer.weight)
        )


def stirred_mean(model):
    model[1].running_mean.fill_(0.3)
    return model


class PaddedAndPooled(nn.Sequential):
    def __init__(self, widths, pool, rounded):
        relu = [nn.ReLU()] if rounded else []
        super().__init__(nn.Conv2d(1, 4, 3), *relu, nn.ZeroPad2d(widths), pool, nn.Flatten(), nn.LazyLinear(3))
        with torch.no_grad():
            self[0].bias.fill_(-2.0)  # below the zeros of the padding
            self(torch.zeros(1, 1, 16, 16))


@pytest.mark.parametrize("storage", ["float32", "packed", "int8"])
@pytest.mark.parametrize("rounded", [False, True], ids=["floats", "rounded"])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1)], ids=str)
@pytest.mark.parametrize("widths", [(0, 1, 0, 1), (3, 3, 3, 3)])
@pytest.mark.filterwarnings("ignore:.* read float numbers")
def test_a_padding_in_front_of_a_pooling_pads_with_zeros_in_any_session(widths, pool, rounded, storage, tmp_path):
    torch.manual_seed(0)
    model, data = PaddedAndPooled(widths, pool, rounded), random_data()
    model = (model if storage == "float32" else quantize(model, "w8a8")).eval()
    expected = exact_logits(model, data, data.test.images)
    path = save_onnx(model, tmp_path / "a.onnx", data, storage)
    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for session in (onnx_session(path), plain) if storage != "int8" else (onnx_session(path),):
        assert abs(session.run(None, {"image": data.test.images.numpy()})[0] - expected).max() < 0.02


def test_a_sum_with_an_image_in_colours_has_no_integers():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Linear(3 * 256, 2)

        def forward(self, x):
            return self.fc(self.relu(self.conv(x) + x).flatten(1))

    with pytest.raises(ValueError, match="cannot be turned into integers: it adds to an image in colours"):
        to_integer(quantize(Residual(), "w4a4"), random_data(3))


def test_a_model_that_keeps_what_it_makes_is_exported_and_left_as_it_was():
    class Keeping(nn.Sequential):
        width = None

        def forward(self, x):
            x = self[0](x)
            if self.width is None:
                self.width = x.shape[1] * x.shape[2] * x.shape[3]
            return self[1](x.view(x.shape[0], self.width))

    model = Keeping(nn.Conv2d(1, 2, 3), nn.Linear(392, 2))
    assert [step.kind for step in fold(model, random_data())] == ["image", "layer", "flatten", "layer"]
    assert model.width is None


def test_a_batch_norm_whose_layer_is_read_elsewhere_too_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

        def forward(self, x):
            x = self.conv(x)
            return self.norm(x) + x

    with pytest.raises(ValueError, match="norm cannot be folded"):
        fold(Twice(), random_data(1, 12))


def test_a_dropout_between_them_does_not_hide_that_a_batch_norms_layer_is_read_elsewhere_too():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.dropout, self.norm = nn.Conv2d(1, 2, 3), nn.Dropout(), nn.BatchNorm2d(2)

        def forward(self, x):
            x = self.conv(x)
            return self.norm(self.dropout(x)) + x

    with pytest.raises(ValueError, match="norm cannot be folded"):
        fold(Twice(), random_data(1, 12))


class ByName(nn.Module):
    """A network that calls its layers by the name of their argument."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.drop, self.pool, self.fc = nn.Dropout(), nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(input=self.norm(input=self.conv(input=x)))
        return self.fc(input=self.pool(input=self.drop(input=x)).flatten(1))


def test_layers_that_are_called_with_a_named_input_are_exported_like_others():
    data = random_data()
    model = stirred(quantize(ByName(), "w4a4"))
    net, images = to_integer(model, data), data.test.images
    assert abs(net(images) * net.output_scale - exact_logits(model, data, images)).max() <= 0.5001 * net.output_scale


class Twice(nn.Module):
    """A network that uses one convolution at two places."""

    def __init__(self):
        super().__init__()
        self.conv, self.once, self.fc = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3), nn.Linear(14 * 14, 3)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.relu2(self.conv(self.relu1(self.conv(x))))
        return self.fc(self.relu3(self.once(x)).flatten(1))


def test_a_layer_that_is_used_twice_keeps_its_bias_because_it_cannot_suit_both_places():
    model = stirred(quantize(Twice(), "w4a4"))
    aligned = align_biases(model, random_data())
    assert torch.equal(aligned.conv.bias, model.conv.bias) and not torch.equal(aligned.once.bias, model.once.bias)


class Flat(nn.Module):
    def __init__(self, flatten):
        super().__init__()
        self.conv, self.flatten, self.last = nn.Conv2d(1, 2, 3), flatten, nn.Linear(200, 3)

    def forward(self, x):
        return self.last(self.flatten(self.conv(x)))


@pytest.mark.parametrize(
    "flatten",
    [
        nn.Flatten(),
        lambda x: torch.flatten(x, 1),
        lambda x: x.flatten(1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(x.shape[0], x.shape[1] * 100),
        lambda x: torch.reshape(x, (-1, 200)),
    ],
)
def test_flatten_is_known_as_a_module_a_function_a_method_and_a_view(flatten):
    assert [step.kind for step in fold(Flat(flatten), random_data(1, 12))] == ["image", "layer", "flatten", "layer"]


@pytest.mark.parametrize(
    "other, reason",
    [
        (lambda x: x.view(-1, 2, 200).mean(1), "view in forward cannot be exported: it is not among the operations"),
        (lambda x: x.view(1, -1), r"it cannot take images \(1, 12, 12\) \(.*mat1 and mat2 shapes cannot"),
    ],
)
def test_a_view_that_does_anything_else_than_flatten_is_refused(other, reason):
    with pytest.raises(ValueError, match=reason):
        fold(Flat(other), random_data(1, 12))


@pytest.mark.filterwarnings("ignore:last .* read float numbers")
@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6])
def test_a_relu_that_overwrites_what_is_read_elsewhere_is_refused_before_it_changes_the_function(kind):
    class Overwriting(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.first, self.relu, self.last = nn.Conv2d(1, 2, 3), kind(inplace=inplace), nn.Conv2d(2, 2, 3)

        def forward(self, x):
            x = self.first(x)
            return self.last(self.relu(x) + x)

    data = random_data(1, 12)
    for refuses in (lambda model: fold(model, data), lambda model: quantize(model, "w4a4")):
        with pytest.raises(ValueError, match=rf"relu is nn.{kind.__name__}\(inplace=True\) and overwrites"):
            refuses(Overwriting(inplace=True))
        refuses(Overwriting(inplace=False))


@pytest.mark.parametrize("view", [nn.Flatten(), lambda x: x.view(-1, 200), lambda x: x.reshape(-1, 200)])
def test_a_relu_that_overwrites_through_a_view_is_refused_too(view):
    class Viewing(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.first, self.view, self.relu = nn.Conv2d(1, 2, 3), view, nn.ReLU(inplace)
            self.last, self.other = nn.Linear(200, 3), nn.Linear(200, 3)

        def forward(self, x):
            x = self.first(x)
            return self.last(self.relu(self.view(x))) + self.other(x.flatten(1))

    with pytest.raises(ValueError, match=r"relu is nn.ReLU\(inplace=True\) and overwrites"):
        quantize(Viewing(inplace=True), "w4a4")
    with pytest.warns(UserWarning, match="^other .* read float numbers"):
        quantize(Viewing(inplace=False), "w4a4")


def test_a_model_with_a_forward_hook_is_refused_because_no_file_can_hold_it():
    model = quantize(build_model("lenet5"), "w4a4")
    handle = model.fc1.register_forward_hook(lambda module, inputs, output: output * 0)
    with pytest.raises(ValueError, match="fc1 has a forward hook"):
        fold(model, random_data(1, 28))
    handle.remove()
    assert fold(model, random_data(1, 28))


class Joining(nn.Module):
    """Two convolutions of the image, joined by a function."""

    def __init__(self, join):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.last, self.join = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 3), join

    def forward(self, x):
        return self.last(self.join(self.one(x), self.other(x))).flatten(1)


def plus_itself(a, b):
    kept = a
    a += b
    return a + kept


@pytest.mark.parametrize(
    ("join", "what"),
    [
        (lambda a, b: torch.add(a, b, alpha=3), "add"),
        (plus_itself, "iadd"),
        (lambda a, b: a + b[:, :1], "add"),
        (lambda a, b: F.pad(a, (0, 2, 1, 0), value=1.0) + F.pad(b, (0, 2, 1, 0)), "pad"),
        (lambda a, b: F.pad(a, (0, -1)) + F.pad(b, (0, -1)), "pad"),
        (lambda a, b: a[:1, :] + b[:1, :], "getitem"),
        (lambda a, b: a[:, : a.size(1)] + b[:, : b.size(1)], "getitem"),
    ],
    ids=[
        "a sum with a factor",
        "a sum that overwrites what is read later",
        "a sum of two shapes",
        "padding with ones",
        "padding that cuts",
        "a slice of the batch",
        "a slice whose end is computed",
    ],
)
def test_what_is_nearly_a_sum_a_padding_with_zeros_or_a_slice_of_each_image_is_refused(join, what):
    with pytest.raises(ValueError, match=f"{what}.* cannot be exported"):
        fold(Joining(join), random_data(1, 12))


def test_a_padding_module_is_exported_as_the_function_is():
    data, model = random_data(1, 12), nn.Sequential(nn.Conv2d(1, 2, 3), nn.ZeroPad2d((1, 2, 3, 0)))
    assert fold(model, data)[-1].options["widths"] == ((0, 0), (0, 0), (3, 0), (1, 2))
    with pytest.raises(ValueError, match="ZeroPad2d.* cannot be exported|not among the operations"):
        fold(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ZeroPad2d(-1)), data)


@pytest.mark.parametrize("ends_with", [lambda one, last: one, lambda one, last: (last, one)], ids=["earlier", "two"])
def test_a_model_that_returns_anything_but_its_last_result_is_refused(ends_with):
    class Ending(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.last = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)

        def forward(self, x):
            x = self.one(x)
            return ends_with(x, self.last(x))

    with pytest.raises(ValueError, match="must return one tensor, the result of its last operation"):
        fold(Ending(), random_data(1, 12))


def test_a_layer_with_the_name_of_the_input_is_refused():
    with pytest.raises(ValueError, match="uses the name 'image' twice"):
        fold(named(image=nn.Conv2d(1, 2, 3)), random_data(1, 12))


def test_values_that_64_bits_cannot_hold_are_refused():
    layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(200, 2)]
    model = quantize(nn.Sequential(*layers), "w4a4")
    model[1].running_mean.fill_(1e17)
    with pytest.raises(ValueError, match="2 cannot be turned into integers: its values reach .* steps"):
        to_integer(model, random_data(1, 12))


def overwriting_sum(a, b):
    a += b
    return a


@pytest.mark.parametrize(
    "join",
    [lambda a, b: F.pad(a, (0, 2, 1, 0)) + F.pad(b, (1, 1, 0, 1)), overwriting_sum],
    ids=["padding of different widths on each side", "a sum that overwrites what nobody reads"],
)
def test_the_file_of_a_model_with_such_a_join_gives_torchs_logits(join, tmp_path):
    data, model = random_data(1, 12), Joining(join).eval()
    with torch.no_grad():
        wanted = model(data.normalise(data.test.images)).numpy()
    found = run_onnx(model, data, data.test.images, tmp_path / "join.onnx", "float32")
    assert np.abs(wanted).max() > 0.1 and np.allclose(found, wanted, atol=1e-5)


def test_a_float_model_has_no_integers_and_wrong_images_are_refused():
    data = random_data(1, 28)
    with pytest.raises(ValueError, match="conv1 cannot be turned into integers: its weights are not quantized"):
        to_integer(build_model("lenet5"), data)
    net = to_integer(quantize(build_model("lenet5"), "w4a4"), data)
    with pytest.raises(ValueError, match=r"images must be uint8 of shape \(N, 1, 28, 28\)"):
        net(np.zeros((1, 1, 28, 28), np.float32))


# ---------------------------------------------------------------- ONNX files


@pytest.fixture(scope="module")
def vgg_files(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("vgg"), random_data(1, 28)
    torch.manual_seed(0)  # made before the fixture that seeds every test
    model = stirred(build_model("vgg_small"))
    files = {"fp32": save_onnx(model, folder / "fp32.onnx", data, "float32")}
    for precision, storage in [("w4a4", "int8"), ("w4a4", "packed"), ("w2a2", "packed")]:
        files[precision, storage] = save_onnx(
            quantize(model, precision), folder / f"{precision}{storage}.onnx", data, storage
        )
    return files


def test_a_4_bit_file_is_a_seventh_and_a_2_bit_file_a_fourteenth_of_the_float_file(vgg_files):
    size = {name: path.stat().st_size for name, path in vgg_files.items()}
    assert size["fp32"] / size["w4a4", "packed"] >= 7.5
    assert size["fp32"] / size["w2a2", "packed"] >= 14


def test_int8_containers_run_on_integer_kernels(vgg_files, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(vgg_files["w4a4", "int8"], options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    # The first convolution, 0.4 % of the work, reads the normalised image and stays in float.
    assert kinds.count("QLinearConv") == 5


@pytest.mark.parametrize(("storage", "pooled"), [("packed", ["Conv", "Conv"]), ("int8", ["Conv", "Clip"])])
def test_what_a_float_layer_computed_is_pooled_before_it_is_rounded(storage, pooled, tmp_path):
    graph = onnx.load(
        save_onnx(quantize(build_model("lenet5"), "w2a2"), tmp_path / "net.onnx", random_data(1, 28), storage)
    ).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    assert [made_by[node.input[0]] for node in graph.node if node.op_type == "MaxPool"] == pooled


class PooledAndPassedOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1, 1)
        self.fc = nn.Linear(3 * 36, 4)

    def forward(self, x):
        x = self.relu(self.conv(x))
        return self.fc((self.pool(x) + x).flatten(1))


def test_what_others_read_too_is_rounded_before_it_is_pooled(tmp_path):
    with pytest.warns(UserWarning, match="^fc .* read float numbers"):
        data, model = random_data(1, 6), stirred(quantize(PooledAndPassedOn(), "w4a4"))
    session = onnx_session(save_onnx(model, tmp_path / "net.onnx", data, "packed"))
    with torch.no_grad():
        wanted = model(data.normalise(data.test.images)).numpy()
    found = session.run(None, {"image": data.test.images.numpy()})[0]
    assert np.allclose(found, wanted, atol=1e-4)


def test_weights_are_stored_in_their_own_bits(vgg_files):
    proto = onnx.load(vgg_files["w2a2", "packed"])
    types = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in proto.graph.initializer}
    assert types["conv1.weight.integers"] == "INT8" and types["conv2.weight.integers"] == "INT2"
    assert proto.opset_import[0].version == 25


def test_weights_of_3_bits_are_stored_as_int4(tmp_path):
    path = save_onnx(quantize(build_model("lenet5"), "w3a3"), tmp_path / "net.onnx", random_data(1, 28), "packed")
    types = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in onnx.load(path).graph.initializer}
    assert types["conv2.weight.integers"] == types["fc1.weight.integers"] == "INT4"


@pytest.mark.parametrize("relu", [nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("precision", ["fp32", "w4a32", "w3a3"])
def test_a_float32_file_gives_the_logits_of_torch(precision, relu, tmp_path):
    data = random_data(1, 12)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), relu(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 8), relu()]
    model = nn.Sequential(*layers, nn.Linear(8, 3))
    model[0].weight.data.mul_(20)  # so that some activations are above 6
    model = stirred(quantize(model, precision))
    with torch.no_grad():
        expected = model(data.normalise(data.test.images)).numpy()
    found = run_onnx(model, data, data.test.images, tmp_path / "net.onnx", "float32")
    assert abs(found - expected).max() < 1e-4 * abs(expected).max()


@pytest.mark.parametrize("storage", ["packed", "float32"])
@pytest.mark.parametrize("scheme", ["sawb", "dorefa", "minmax"])
@pytest.mark.parametrize("precision", ["w2a2", "mixed-4/2", "w3a4", "w6a4"])
@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_a_session_without_any_option_gives_a_float_file_s_logits(name, precision, scheme, storage, tmp_path):
    data = random_data(1, 28)
    model = align_biases(stirred(quantize(build_model(name), precision, scheme)), data)
    path, images = save_onnx(model, tmp_path / "net.onnx", data, storage), {"image": data.test.images.numpy()}
    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, images)[0]
    ours = onnx_session(path).run(None, images)[0]
    assert abs(plain - ours).max() < 1e-5 * abs(ours).max()


@pytest.mark.parametrize("vnni", [True, False])
@pytest.mark.parametrize("storage", ["int8", "packed"])
def test_a_session_has_the_options_that_keep_its_results_right(storage, vnni, tmp_path, monkeypatch):
    path = save_onnx(quantize(build_model("lenet5"), "w4a4"), tmp_path / "net.onnx", random_data(1, 28), storage)
    monkeypatch.setattr("qsal_helpers.onnx_files._has_vnni", lambda: vnni)
    options, keys = onnx_session(path, threads=3).get_session_options(), []
    for key in ("session.x64quantprecision", "session.disable_quant_qdq"):
        with contextlib.suppress(RuntimeError):  # it has no such entry
            keys += [key] * (options.get_session_config_entry(key) == "1")
    slower = [] if vnni else ["session.x64quantprecision"]
    assert keys == (slower if storage == "int8" else ["session.disable_quant_qdq"])
    assert options.intra_op_num_threads == 3


def test_latencies_are_medians_in_milliseconds_of_calls_that_take_turns_without_the_first_two(monkeypatch):
    clock, calls = [0.0], []

    class Session:
        def __init__(self, name, seconds):
            self.name, self.seconds = name, iter(seconds)

        def get_inputs(self):
            return [types.SimpleNamespace(name="image", shape=["N", 3, 4, 5])]

        def run(self, outputs, inputs):
            calls.append((self.name, inputs["image"].shape, inputs["image"].dtype.name))
            clock[0] += next(self.seconds)

    monkeypatch.setattr("qsal_helpers.onnx_files.time.perf_counter", lambda: clock[0])
    sessions = {"a": Session("a", [9, 9, 1, 5, 2]), "b": Session("b", [9, 9, 4, 3, 8])}
    assert latencies(sessions, batch=6, runs=3) == {"a": 2000, "b": 4000}
    assert calls == [("a", (6, 3, 4, 5), "uint8"), ("b", (6, 3, 4, 5), "uint8")] * 5


def test_the_peak_memory_holds_at_least_the_file_and_is_unknown_without_proc(vgg_files):
    path = vgg_files["fp32"]
    peak, known = peak_memory(path), Path("/proc/self/status").exists()
    assert path.stat().st_size / 2**20 < peak < 500 if known else np.isnan(peak)


@pytest.mark.parametrize("threads", [0, 0.5, "1"])
def test_the_peak_memory_takes_whole_threads_only(vgg_files, threads):
    with pytest.raises((TypeError, ValueError), match="threads must be"):
        peak_memory(vgg_files["w2a2", "packed"], threads)


def test_the_peak_memory_of_a_tiny_network_is_below_that_of_onnxruntime_itself(tmp_path):
    path = save_onnx(nn.Sequential(nn.Flatten(), nn.Linear(144, 2)), tmp_path / "a.onnx", random_data(1, 12), "float32")
    peak, known = peak_memory(path), Path("/proc/self/status").exists()
    assert 0 < peak < 20 if known else np.isnan(peak)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused_with_a_sentence(vgg_files, tmp_path, keep):
    content = vgg_files["w2a2", "packed"].read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match="cut.onnx .*save_onnx"):
        onnx_session(tmp_path / "cut.onnx")


def test_a_file_of_someone_else_is_refused(vgg_files, tmp_path):
    other = onnx.load(vgg_files["fp32"])
    other.producer_name = "pytorch"
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="was not written by save_onnx"):
        onnx_session(tmp_path / "other.onnx")


def test_a_channel_without_weight_keeps_its_bias(tmp_path):
    data = random_data(1, 28)
    model = stirred(quantize(build_model("cnn"), "w4a4"))
    model.bn2.weight.data[:3] = torch.tensor([0.0, 1e-12, -1e-9])
    model = align_biases(model, data)
    expected = exact_logits(model, data, data.test.images)
    net = to_integer(model, data)
    assert abs(net(data.test.images) * net.output_scale - expected).max() <= net.output_scale
    for storage in ("int8", "packed"):
        assert abs(run_onnx(model, data, data.test.images, tmp_path / "net.onnx", storage) - expected).max() < 1e-4


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """The interpreter of a virtual environment that has NumPy and onnxruntime, and what these need; nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder)
    python = next(folder.glob("[bS]*/python*"))
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    for package in ("numpy", "onnxruntime", "flatbuffers", "packaging", "protobuf"):
        for file in metadata.distribution(package).files:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(metadata.distribution(package).locate_file(top))
    return python


def test_the_readme_s_model_becomes_a_2_bit_file_that_runs_without_torch(bare_python, tmp_path):
    data = random_data(3, 32, 40)
    images = data.train.images
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"^layer4\.1\.conv2 .* read more bits"):
        model = quantize(resnet18(num_classes=10), "w2a2")
    fit(model, data, SaliencyGuided(mask_ratio=0.5), epochs=1, seed=0, progress=False)
    path = save_onnx(model, tmp_path / "net.onnx", data, storage="packed")
    packed = sum(row["packed_bytes"] for row in describe(model))
    assert packed < path.stat().st_size < 1.05 * packed  # the rest are scales, and the graph itself
    np.save(tmp_path / "images.npy", images.numpy())
    program = """
import importlib.util
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession("net.onnx")
np.save("logits.npy", session.run(None, {"image": np.load("images.npy")})[0])
print([name for name in ("torch", "onnx", "ml_dtypes", "qsal_helpers") if importlib.util.find_spec(name)])
"""
    command = [bare_python, "-I", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "[]"
    with torch.no_grad():
        expected = model.eval()(data.normalise(images)).numpy()
    found = np.load(tmp_path / "logits.npy")
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert np.median(abs(found - expected)) < 1e-4 * abs(expected).max()


def test_an_unknown_storage_is_refused(tmp_path):
    with pytest.raises(ValueError, match="storage must be one of int8, packed, float32; got 'int4'"):
        save_onnx(build_model("lenet5"), tmp_path / "net.onnx", random_data(1, 28), "int4")
    assert not list(tmp_path.iterdir())


class FirstAdds(nn.Module):
    """A residual addition of the image itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.flat = nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Flatten()
        self.linear = nn.Linear(256, 10)

    def forward(self, x):
        return self.linear(self.flat(self.relu(self.conv(x) + x)))


def named(**layers):
    return nn.Sequential(OrderedDict(layers))


@pytest.mark.parametrize("storage", ["int8", "packed"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: named(flat=nn.Flatten(), zero=nn.Linear(256, 8), relu=nn.ReLU(), logits=nn.Linear(8, 10)),
        lambda: named(flat=nn.Flatten(), logits=nn.Linear(256, 8), float_zero=nn.ReLU6(), top3=nn.Linear(8, 10)),
        lambda: named(pool=nn.AvgPool2d(2, padding=(0, 0)), flat=nn.Flatten(), last=nn.Linear(64, 10)),
        lambda: named(relu=nn.ReLU(), flat=nn.Flatten(), last=nn.Linear(256, 10)),
        FirstAdds,
    ],
    ids=["names", "more names", "average", "relu", "addition"],
)
def test_layers_may_have_any_name_and_any_known_operation_may_be_the_first(make, storage, tmp_path):
    torch.manual_seed(0)
    model, data = quantize(make(), "w4a4").eval(), random_data()
    images = data.test.images
    path = save_onnx(model, tmp_path / "net.onnx", data, storage)
    found = onnx_session(path, threads=1).run(["logits"], {"image": images.numpy()})[0]
    expected = exact_logits(model, data, images)
    assert abs(found - expected).max() < 0.02 * abs(expected).max()


def test_a_float64_model_is_exported_as_its_float32_copy():
    model, data = build_model("lenet5"), random_data(1, 28)
    pairs = zip(fold(copy.deepcopy(model).double(), data), fold(model, data), strict=True)
    weights = [(double.layer.weight, single.layer.weight) for double, single in pairs if single.layer]
    assert len(weights) == 5 and all(np.array_equal(*pair) for pair in weights)


def test_a_model_in_training_mode_is_exported_as_in_evaluation_mode_and_left_as_it_was(tmp_path):
    data, model = random_data(1, 28), stirred(quantize(build_model("cnn"), "w4a4"))
    expected = to_integer(model, data)(data.test.images)
    files = []
    for training in (False, True):
        model.train(training)
        model.bn2.eval()
        before = copy.deepcopy(model)
        assert np.array_equal(to_integer(model, data)(data.test.images), expected)
        files.append(save_onnx(model, tmp_path / "net.onnx", data, "packed").read_bytes())
        assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
        assert all(map(torch.equal, model.state_dict().values(), before.state_dict().values()))
    assert files[0] == files[1]


def test_a_linear_layer_that_reads_images_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"0 cannot be exported: a Linear must read \(B, features\); flatten"):
        fold(nn.Sequential(nn.Linear(12, 3), nn.Flatten()), random_data(1, 12))


def test_a_forward_that_cannot_be_traced_is_refused_with_torchs_first_line():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1) if x.sum() > 0 else x.flatten(1) * 2)

    with pytest.raises(ValueError, match="cannot be traced .*control flow.*without branches"):
        fold(Branching(144, 3), random_data(1, 12))


def test_a_layer_named_logits_is_found_by_its_name_and_the_result_stays_the_result():
    model = nn.Sequential()
    model.conv, model.relu = nn.Conv2d(1, 2, 3), nn.ReLU()
    model.flat, model.logits = nn.Flatten(), nn.Linear(2 * 10 * 10, 3)
    quantized, data = calibrate(quantize(model, "w4a4"), torch.rand(20, 1, 12, 12)).eval(), random_data(1, 12)
    net, images = to_integer(quantized, data), data.test.images[:5]
    assert net["logits"].codes.shape == (3, 200) and net.steps[-1].name == "logits.output"
    expected = quantized(data.normalise(images)).detach().numpy()
    assert abs(net(images) * net.output_scale - expected).max() <= net.output_scale


def test_an_empty_batch_is_refused_by_the_integer_model_in_words():
    net = to_integer(quantize(build_model("lenet5"), "w4a4"), random_data(1, 28))
    with pytest.raises(ValueError, match=r"images must be uint8 of shape \(N, 1, 28, 28\)"):
        net(np.zeros((0, 1, 28, 28), np.uint8))


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d((3, 2), (1, 2), (1, 0)), nn.AvgPool2d((1, 3), (2, 1))], ids=["max", "average"]
)
def test_windows_that_are_longer_than_wide_give_torchs_logits_in_integers_and_files(pool, tmp_path):
    data = random_data(1, 12)
    layers = [
        nn.Conv2d(1, 3, (3, 2), (2, 1), (0, 1)),
        nn.ReLU(),
        pool,
        nn.Conv2d(3, 2, (1, 3), (1, 2), (2, 0)),
        nn.ReLU(),
    ]
    float_model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))
    float_model(torch.zeros(2, 1, 12, 12))
    model = align_biases(quantize(float_model, "w4a4", alpha=1.0).eval(), data)
    expected = exact_logits(model, data, data.test.images)
    net = to_integer(model, data)
    assert abs(net(data.test.images) * net.output_scale - expected).max() <= 0.5001 * net.output_scale
    for storage in ("float32", "packed", "int8"):
        found = run_onnx(model, data, data.test.images, tmp_path / "net.onnx", storage)
        assert abs(found - expected).max() < 1e-4 * abs(expected).max()


def test_a_model_with_a_hook_before_a_layer_is_refused_because_no_file_can_hold_it():
    model = build_model("lenet5")
    model.fc1.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0,))
    with pytest.raises(ValueError, match="fc1 has a forward hook"):
        fold(model, random_data(1, 28))


@pytest.mark.parametrize(
    ("join", "what"),
    [
        (lambda a, b: a + a, "add"),
        (lambda a, b: F.pad(a, (1, 1, 1, 1), mode="reflect") + F.pad(b, (1, 1, 1, 1), mode="reflect"), "pad"),
    ],
    ids=["a sum of a tensor with itself", "padding with a mirror image"],
)
def test_what_is_nearly_a_sum_or_a_padding_with_zeros_is_refused(join, what):
    with pytest.raises(ValueError, match=f"{what}.* cannot be exported"):
        fold(Joining(join), random_data(1, 12))


def test_an_alpha_that_the_last_step_left_below_its_least_value_is_exported_as_pact_mends_it():
    model, data = quantize(build_model("lenet5"), "w4a4"), random_data(1, 28)
    model.relu1.alpha.data.fill_(-1.0)
    step = next(step for step in fold(model, data) if step.name == "relu1")
    assert model.relu1.alpha == -1  # the caller's model stays as it was
    model(data.normalise(data.test.images))
    assert step.options["step"] == pytest.approx(model.relu1.alpha.item() / (2**model.relu1.bits - 1))


def test_a_gain_that_is_changed_for_the_sake_of_the_borders_changes_by_few_thousandths():
    data, model = random_data(1, 28), stirred(quantize(build_model("cnn"), "w8a8"))
    aligned = align_biases(model, data)
    gains = [(getattr(aligned, name).weight / getattr(model, name).weight).detach() for name in ("bn1", "bn2", "bn3")]
    assert 0.001 < max((gain - 1).abs().max() for gain in gains) < 0.0033


@pytest.mark.parametrize("storage", ["int8", "packed"])
def test_a_layer_may_be_called_like_a_tensor_of_the_image_s_normalisation(storage, tmp_path):
    torch.manual_seed(0)
    inner = named(pixels=nn.Conv2d(1, 2, 3), scaled=nn.ReLU(), normalised=nn.Flatten())
    data, model = random_data(1, 12), quantize(named(image=inner, last=nn.Linear(200, 3)), "w4a4").eval()
    found = run_onnx(model, data, data.test.images, tmp_path / "net.onnx", storage)
    expected = exact_logits(model, data, data.test.images)
    assert abs(found - expected).max() < 0.02 * abs(expected).max()


def test_an_onnx_file_whose_node_keeps_its_constant_in_another_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a location is looked for when a model comes without a path
    path = save_onnx(nn.Sequential(nn.Flatten(), nn.Linear(144, 2)), tmp_path / "a.onnx", random_data(1, 12), "float32")
    model = onnx.load_model(path)
    tensor = next(t for t in model.graph.initializer if t.name == "1.bias")
    (tmp_path / "secret").write_bytes(tensor.raw_data)
    outside = TensorProto(name="outside", data_type=tensor.data_type, dims=tensor.dims)
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="secret")
    model.graph.initializer.remove(tensor)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["1.bias"], value=outside))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="in other files, which is refused"):
        onnx_session(path)


def test_a_processor_of_which_nothing_is_known_is_taken_for_one_without_vnni(monkeypatch):
    def read_text(self):
        raise FileNotFoundError

    monkeypatch.setattr("qsal_helpers.onnx_files.Path.read_text", read_text)
    assert not _has_vnni()


class Cutting(nn.Module):
    """A network that reads a part of what it rounded: from the second channel on, no border, every second column."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.last = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(3 * 8 * 4, 3)

    def forward(self, x):
        return self.last(self.relu(self.conv(x))[:, 1:, 1:-1, 2::2].flatten(1))


@pytest.mark.parametrize("storage", ["float32", "int8", "packed"])
def test_a_slice_that_begins_and_ends_inside_is_the_same_in_torch_integers_and_files(storage, tmp_path):
    torch.manual_seed(0)
    data, model = random_data(1, 12), quantize(Cutting(), "w4a4", alpha=1.0).eval()
    expected, net = exact_logits(model, data, data.test.images), to_integer(model, data)
    assert abs(net(data.test.images) * net.output_scale - expected).max() <= 0.5001 * net.output_scale
    found = run_onnx(model, data, data.test.images, tmp_path / "net.onnx", storage)
    assert abs(found - expected).max() < 0.02 * abs(expected).max()


def test_a_file_says_how_its_weights_are_stored_and_of_which_precision_they_are(tmp_path):
    path = save_onnx(quantize(build_model("lenet5"), "w2a2"), tmp_path / "net.onnx", random_data(1, 28), "packed")
    assert onnx_session(path).get_modelmeta().custom_metadata_map == {"storage": "packed", "precision": "w2a2"}
