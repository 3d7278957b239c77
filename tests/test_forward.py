"""A model is asked in evaluation mode, left as it was, and must hand out logits."""

import pytest
import torch
from torch import nn

from qsal_helpers import Distilled, SaliencyGuided, evaluate, fit, load_data, quantize
from qsal_helpers._forward import evaluation_mode, logits_of
from qsal_helpers.data import ImageData, Split
from qsal_helpers.export import align_biases
from qsal_helpers.metrics import randomisation_check
from qsal_helpers.training import cross_entropy


def test_evaluation_mode_puts_every_module_back_also_after_an_error():
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(1).eval())
    with pytest.raises(KeyError), evaluation_mode(net):
        assert not any(m.training for m in net.modules())
        raise KeyError
    assert [m.training for m in net.modules()] == [True, True, False]


def test_a_first_layer_that_works_in_place_leaves_the_images_alone():
    x = torch.tensor([[[[-1.0, 2.0]]]])
    assert logits_of(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()), x).tolist() == [[0.0, 2.0]]
    assert x.tolist() == [[[[-1.0, 2.0]]]]


class Viewing(nn.Sequential):
    """The classic tutorial's last lines."""

    def forward(self, x):
        x = self[0](x)
        return self[1](x.view(x.size(0), -1))


def test_the_error_of_a_view_that_the_layout_forbids_says_what_to_write_instead():
    x = torch.zeros(2, 3, 8, 8).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="view size") as caught:
        logits_of(Viewing(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.Linear(144, 2)), x)
    assert "write x.flatten(1) instead of x.view(...)" in caught.value.__notes__[0]


def test_whoever_copies_a_model_that_stores_an_activation_says_how_to_make_it_copyable():
    model, data = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(1352, 10)), load_data("mnist", size=100)
    x = data.normalise(data.test[:2].images)
    model.kept = model(x)
    copies = [
        lambda: quantize(model, "w4a4"),
        lambda: align_biases(model, data),
        lambda: randomisation_check(model, x),
        lambda: fit(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), data, Distilled(model), progress=False),
    ]
    for copy_it in copies:
        with pytest.raises(ValueError, match="cannot be copied; .*if it stores what it computes, call it once under"):
            copy_it()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_error_of_a_model_of_another_dtype_than_its_images_names_both(dtype):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)).to(dtype)
    with pytest.raises(RuntimeError) as caught:
        logits_of(model, torch.zeros(2, 1, 4, 4))
    assert caught.value.__notes__ == [f"images are float32 here, and the model has {dtype}: convert one of them"]


def test_labels_that_the_model_has_no_output_for_are_refused_by_whatever_compares_the_two():
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.zeros(2, 1, 2, 2), torch.tensor([0, 3])
    split = Split(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), y)
    data = ImageData("shapes", split, split, tuple("abcd"), (0.5,), (0.5,))
    compares = [cross_entropy, SaliencyGuided(), SaliencyGuided(0.0), SaliencyGuided.as_published()]
    for compare in [*compares, lambda model, x, y: evaluate(model, data)]:
        with pytest.raises(ValueError, match="labels up to 3 need a model with 4 outputs; this one has 3"):
            compare(model, x, y)


@pytest.mark.parametrize("model", [nn.Identity(), nn.LSTM(2, 2)])
def test_a_model_that_returns_something_else_than_logits_is_named(model):
    with pytest.raises(ValueError, match=r"must return logits of shape \(B, classes\); it returned (shape|a tuple)"):
        logits_of(model, torch.zeros(1, 2, 2))
