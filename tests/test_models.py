import itertools
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qsal_helpers import build_model, describe

NAMES = ("lenet5", "cnn", "vgg_small", "resnet20", "resnet18", "guided_paper_cnn")


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_lenet5_has_the_parameters_of_lecun_1998_with_a_full_second_layer():
    convolutions = (5 * 5 * 1 + 1) * 6 + (5 * 5 * 6 + 1) * 16
    assert parameters(build_model("lenet5")) == convolutions + (400 + 1) * 120 + (120 + 1) * 84 + (84 + 1) * 10


def test_resnet20_has_the_0_27_million_parameters_of_he_2016():
    widths = [3, 16] + 6 * [16] + 6 * [32] + 6 * [64]
    convolutions = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(widths))  # and two numbers of each batch-norm
    assert parameters(build_model("resnet20", 3)) == convolutions + (64 + 1) * 10
    assert round(convolutions / 1e6, 2) == 0.27


def test_resnet18_has_torchvisions_parameters_but_for_stem_and_classes():
    from torchvision.models import resnet18

    with torch.device("meta"):
        original = parameters(resnet18())
    stem, head = 64 * 3 * (7 * 7 - 3 * 3), (512 + 1) * (1000 - 10)
    assert parameters(build_model("resnet18", 3)) == original - stem - head


def test_the_guided_papers_network_has_the_layers_that_its_authors_name():
    model = build_model("guided_paper_cnn")
    assert parameters(model) == (9 + 1) * 32 + (9 * 32 + 1) * 64 + (9216 + 1) * 128 + (128 + 1) * 10
    assert model.fc1.in_features == 9216


def test_the_guided_papers_network_drops_a_quarter_behind_its_convolutions_and_half_before_its_last_layer():
    layers = list(build_model("guided_paper_cnn").named_children())
    rates = {layers[i - 1][0]: layer.p for i, (_, layer) in enumerate(layers) if isinstance(layer, nn.Dropout)}
    assert rates == {"pool": 1 / 4, "relu3": 1 / 2}


def test_resnet20_begins_with_he_s_variance_of_2_over_how_many_outputs_each_number_goes_into():
    torch.manual_seed(0)
    convolutions = [m.weight.detach() for m in build_model("resnet20", 3).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 19
    for weight in convolutions:
        outputs = weight[:, 0].numel()  # fan_out: filters times pixels of a filter
        # A variance of n normal numbers is known to a fraction of sqrt(2 / n).
        assert weight.square().mean().item() * outputs / 2 == pytest.approx(1, abs=4 * (2 / weight.numel()) ** 0.5)


def test_resnet18_makes_4_by_4_pixels_of_a_32_by_32_image():
    seen = []
    with torch.device("meta"):
        model = build_model("resnet18", 3)
        model.avgpool.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
        model(torch.zeros(1, 3, 32, 32))
    assert seen == [(1, 512, 4, 4)]


def test_the_lessons_networks_have_the_layers_of_their_plans():
    conv = lambda *widths: sum(9 * a * b + 2 * b for a, b in itertools.pairwise(widths))
    fc = (48 * 7 * 7 + 2) * 128 + (128 + 1) * 10
    assert parameters(build_model("cnn")) == conv(1, 24, 48, 48) + fc
    assert parameters(build_model("vgg_small", 3)) == conv(3, 64, 64, 128, 128, 256, 256) + (256 + 1) * 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("in_channels", "size"), [(1, None), (3, None), (2, 16), (1, 37)])
def test_every_network_maps_images_to_logits(name, in_channels, size):
    with torch.device("meta"):  # shapes only: no time for numbers
        model = build_model(name, in_channels, num_classes=7, image_size=size)
        expected = size or (28 if in_channels == 1 else 32)
        assert model.input_shape == (in_channels, expected, expected)
        assert model(torch.zeros(2, *model.input_shape)).shape == (2, 7)


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_builds_an_equal_network_again(name):
    torch.manual_seed(3)
    model = build_model(name, 2, 5, 20)
    torch.manual_seed(3)
    again = build_model(**model.recipe)
    assert again.recipe == model.recipe
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "resnet18"])
def test_every_activation_is_a_relu_module_used_once(name):
    model = build_model(name)
    calls = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda m, i, o: calls.append(m))
    model.eval()(torch.zeros(1, *model.input_shape))
    assert len(calls) == len(set(calls)) == sum(isinstance(m, nn.ReLU) for m in model.modules())


def test_a_residual_block_that_narrows_keeps_the_pixels_and_pads_the_new_channels_with_zeros():
    block = build_model("resnet20", 3).block2_1.eval()
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
    x = torch.rand(2, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().max() == y[:, 24:].abs().max() == 0


def test_resnet20_needs_the_40_55_million_macs_of_the_literature():
    rows = describe(build_model("resnet20", 3))
    assert round(sum(row["macs"] for row in rows) / 1e6, 2) == 40.55


def test_a_missing_torchvision_is_a_sentence_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ImportError, match="install torch and torchvision together"):
        build_model("resnet18")


anything = st.one_of(st.none(), st.booleans(), st.integers(-3, 40), st.floats(), st.text(max_size=4), st.just([]))


@given(
    name=st.one_of(st.sampled_from(["lenet5", "cnn", "guided_paper_cnn"]), anything), c=anything, k=anything, s=anything
)
def test_whatever_build_model_is_given_it_builds_or_says_what_is_wrong(name, c, k, s):
    try:
        with torch.device("meta"):
            model = build_model(name, c, k, s)
    except ValueError as error:
        assert len(str(error)) > 20
    else:
        assert model.recipe["num_classes"] == k and model.input_shape[0] == c
