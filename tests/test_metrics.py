import copy
import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from shared import normal as random
from shared import short_sentence
from skimage.metrics import structural_similarity
from torch import nn
from torch.nn.utils import prune

from qsal_helpers import build_model, load_data, quantize
from qsal_helpers.metrics import (
    deletion_auc,
    entropy,
    foreground_mass,
    gini,
    infidelity,
    insertion_auc,
    object_mask,
    pointing_game,
    randomisation_check,
    rank_correlation,
    sensitivity_max,
    ssim,
    top_k_overlap,
)
from qsal_helpers.saliency import saliency_map

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import quantus

ONE_MAP = {"gini": gini, "entropy": entropy}
TWO_MAPS = {"rank_correlation": rank_correlation, "top_k_overlap": top_k_overlap, "ssim": ssim}


class TwoClasses(nn.Module):
    """Class 0's probability is sigmoid(sum(weight * x)): curves are known in closed form."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        score = (self.weight * x).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


def convolutional(channels=1, precision="fp32", side=12):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * side * side, 5),
        )
    return quantize(model, precision).eval()


# --- deletion and insertion ---


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("steps", [16, 5, 1])
def test_curves_of_a_linear_model_are_sigmoids_of_partial_sums(steps, channels):
    weight, x, maps = random(channels, 4, 4), random(3, channels, 4, 4, seed=1), random(3, 4, 4, seed=2)
    fill = torch.arange(channels) / 10.0
    terms = weight * x
    gone = weight * fill.view(-1, 1, 1)
    order = maps.flatten(1).argsort(dim=1, descending=True)
    deletion, insertion = torch.empty(3, steps + 1), torch.empty(3, steps + 1)
    for i, k in itertools.product(range(3), range(steps + 1)):
        deleted = torch.zeros(16, dtype=torch.bool)
        deleted[order[i, : round(k * 16 / steps)]] = True
        deleted = deleted.view(4, 4)
        deletion[i, k] = torch.where(deleted, gone, terms[i]).sum().sigmoid()
        insertion[i, k] = torch.where(deleted, terms[i], gone).sum().sigmoid()
    options = {"target": 0, "steps": steps, "fill": fill, "batch_size": 4}
    model = TwoClasses(weight)
    for metric, curve in [(deletion_auc, deletion), (insertion_auc, insertion)]:
        torch.testing.assert_close(metric(model, x, maps, **options, return_curve=True), curve, rtol=1e-4, atol=1e-5)
        fractions = np.array([round(k * 16 / steps) for k in range(steps + 1)]) / 16
        area = torch.from_numpy(np.trapezoid(curve.numpy(), fractions, axis=1))
        torch.testing.assert_close(metric(model, x, maps, **options), area.float(), rtol=1e-4, atol=1e-5)


def test_the_deletion_curve_equals_quantus_pixel_flipping():
    model, x, maps = convolutional(), random(4, 1, 12, 12), random(4, 12, 12, seed=1)
    classes = model(x).argmax(1)
    ours = deletion_auc(model, x, maps, classes, steps=18, fill=0.25, return_curve=True)
    flipping = quantus.PixelFlipping(
        features_in_step=8, perturb_baseline=0.25, disable_warnings=True, return_auc_per_sample=False
    )
    theirs = flipping(model=model, x_batch=x.numpy(), y_batch=classes.numpy(), a_batch=maps[:, None].numpy())
    torch.testing.assert_close(ours[:, 1:], torch.tensor(np.array(theirs)).float(), rtol=1e-4, atol=1e-5)


def test_black_is_the_darkest_value_of_the_batch_also_in_an_image_that_has_none():
    x = random(4, 3, 6, 6)
    x[1] += 2
    model, saliency, target = (
        TwoClasses(random(3, 6, 6, seed=1)),
        random(4, 6, 6, seed=2).abs(),
        torch.zeros(4, dtype=int),
    )
    black = deletion_auc(model, x, saliency, target, fill="black")
    assert torch.equal(black, deletion_auc(model, x, saliency, target, fill=x.amin((0, 2, 3)).tolist()))
    assert not torch.equal(black[1:2], deletion_auc(model, x[1:2], saliency[1:2], target[1:2], fill="black"))


@pytest.mark.parametrize("fill", ["black", "blur", 0.0])
@pytest.mark.parametrize("precision", ["fp32", "w4a4"])
@pytest.mark.parametrize("channels", [1, 3])
def test_insertion_is_deletion_of_the_reversed_map_read_backwards(channels, precision, fill):
    model, x, maps = convolutional(channels, precision), random(3, channels, 12, 12), random(3, 12, 12, seed=1)
    inserted = insertion_auc(model, x, maps, steps=12, fill=fill, return_curve=True)
    deleted = deletion_auc(model, x, -maps, steps=12, fill=fill, return_curve=True)
    # A rounding error can carry an activation of a quantized network over a border.
    near = {"rtol": 1e-4, "atol": 1e-4} if precision == "fp32" else {"rtol": 0.05, "atol": 0.01}
    torch.testing.assert_close(inserted, deleted.flip(1), **near)
    whole = model(x).softmax(1).amax(1)
    near = near if precision == "fp32" else {"rtol": 0.02, "atol": 1e-3}
    torch.testing.assert_close(inserted[:, -1], whole, **near)
    torch.testing.assert_close(deleted[:, 0], whole, **near)


def test_black_is_the_smallest_value_of_each_channel_and_blur_keeps_a_flat_image():
    weight = torch.ones(3, 4, 4)
    x = random(2, 3, 4, 4)
    curve = deletion_auc(TwoClasses(weight), x, random(2, 4, 4), target=0, steps=4, return_curve=True)
    black = x.amin((0, 2, 3)).sum() * 16
    torch.testing.assert_close(curve[:, -1], black.sigmoid().expand(2))
    flat = torch.full((1, 3, 4, 4), 0.02)
    blurred = deletion_auc(TwoClasses(weight), flat, random(1, 4, 4), target=0, fill="blur", return_curve=True)
    torch.testing.assert_close(blurred, torch.full_like(blurred, 1 / (1 + math.exp(-0.96))))


def test_blur_is_the_mean_of_the_7_x_7_pixels_around_each_pixel():
    weight = torch.zeros(1, 9, 9)
    weight[0, 4, 4] = 1
    x = random(2, 1, 9, 9)
    curve = deletion_auc(TwoClasses(weight), x, random(2, 9, 9), target=0, fill="blur", steps=3, return_curve=True)
    torch.testing.assert_close(curve[:, -1], x[:, 0, 1:8, 1:8].mean((1, 2)).sigmoid())


def test_steps_that_change_nothing_cost_no_forward_pass_and_the_batch_size_bounds_the_others():
    model, maps = convolutional(), random(4, 12, 12, seed=1)
    x = torch.zeros(4, 1, 12, 12)
    x[:, :, 5, 5] = torch.tensor([1.0, 2, 3, 4]).view(4, 1)
    sizes = []
    handle = model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    curve = deletion_auc(model, x, maps, target=1, steps=144, batch_size=3, return_curve=True)
    handle.remove()
    assert sum(sizes) == 1 + 8 and max(sizes) == 3  # a look at the classes; each image with and without its one pixel
    assert ((curve[:, 1:] != curve[:, :-1]).sum(1) == 1).all()
    jump = (curve[:, 1:] != curve[:, :-1]).int().argmax(1)
    torch.testing.assert_close(jump, (maps.flatten(1) > maps[:, 5, 5, None]).sum(1))


def test_equal_pixels_go_in_reading_order_and_a_map_with_nan_has_no_curve():
    weight = torch.arange(16.0).view(1, 4, 4)
    model, x = TwoClasses(weight), torch.ones(3, 1, 4, 4)
    maps = torch.stack([torch.zeros(4, 4), -torch.arange(16.0).view(4, 4), torch.full((4, 4), math.nan)])
    curve = deletion_auc(model, x, maps, target=1, steps=16, fill=0.0, return_curve=True)
    assert torch.equal(curve[0], curve[1])
    assert curve[2].isnan().all() and deletion_auc(model, x, maps, fill=0.0).isnan().tolist() == [False, False, True]


def test_true_maps_beat_the_random_one_on_deletion_and_insertion():
    model, x = convolutional(), random(24, 1, 12, 12).abs()
    found = {
        method: (deletion_auc(model, x, maps).mean(), insertion_auc(model, x, maps).mean())
        for method in ("input_x_gradient", "integrated_gradients", "random")
        for maps in [saliency_map(model, x, method=method, absolute=False)]
    }
    for method in ("input_x_gradient", "integrated_gradients"):
        assert found[method][0] < found["random"][0] - 0.02
        assert found[method][1] > found["random"][1] + 0.02


def test_on_a_linear_model_the_true_map_is_the_best_of_all_orders():
    model, x = TwoClasses(torch.tensor([[[2.0, -1.0], [0.5, 1.0]]])), torch.ones(1, 1, 2, 2)
    areas = {
        order: float(deletion_auc(model, x, torch.tensor([order]).float().view(1, 2, 2), 0, steps=4, fill=0.0))
        for order in itertools.permutations(range(4))
    }
    best = min(areas, key=areas.get)
    assert best == (3, 0, 1, 2)
    true = saliency_map(model, x, 0, "input_x_gradient", absolute=False)
    assert math.isclose(float(deletion_auc(model, x, true, 0, steps=4, fill=0.0)), areas[best], rel_tol=1e-6)


# --- focus ---


@pytest.mark.parametrize("signed", [False, True])
def test_gini_and_entropy_equal_quantus_sparseness_and_complexity(signed):
    maps = random(6, 9, 11)
    maps = maps if signed else maps.abs()
    options = {"model": None, "x_batch": np.zeros((6, 1, 9, 11)), "y_batch": np.zeros(6, int)}
    options["a_batch"] = maps[:, None].numpy()
    for ours, theirs in [(gini, quantus.Sparseness), (entropy, quantus.Complexity)]:
        oracle = theirs(abs=True, disable_warnings=True)(**options)
        torch.testing.assert_close(ours(maps), torch.tensor(np.array(oracle)).float(), rtol=1e-4, atol=1e-5)


def test_gini_and_entropy_at_their_ends():
    flat, one, zero = torch.full((5, 6), 0.7), torch.zeros(5, 6), torch.zeros(5, 6)
    one[2, 3] = -4.0
    maps = torch.stack([flat, one, zero])
    torch.testing.assert_close(gini(maps), torch.tensor([0, 1 - 1 / 30, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(entropy(maps), torch.tensor([math.log(30), 0, math.log(30)]), atol=1e-6, rtol=0)


def test_gini_and_entropy_do_not_hang_on_a_maps_scale_or_order():
    maps = random(4, 8, 8)
    for metric in ONE_MAP.values():
        torch.testing.assert_close(metric(1e-30 * maps), metric(maps))
        torch.testing.assert_close(metric(1e30 * maps.flip(1)), metric(maps))


# --- the object ---


def test_object_pixels_are_those_that_are_not_black_in_any_channel():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images[0, 1, 2, 3], images[1, 0, 0, 0] = 9, 255
    assert object_mask(images).nonzero().tolist() == [[0, 2, 3], [1, 0, 0]]
    digits = object_mask(load_data("mnist", size=100).test.images)
    assert 0.1 < digits.float().mean() < 0.3 and not digits[:, 0].any()
    with pytest.raises(TypeError, match="uint8") as caught:
        object_mask(images.float())
    short_sentence(caught)


def test_foreground_mass_is_the_share_of_magnitude_and_the_area_for_a_map_of_zeros():
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[:, :2, :2] = True
    maps = torch.zeros(3, 4, 4)
    maps[0, 0, 0], maps[0, 3, 3] = -3.0, 1.0
    maps[1] = 5.0
    torch.testing.assert_close(foreground_mass(maps, mask), torch.tensor([0.75, 0.25, 0.25]))
    torch.testing.assert_close(foreground_mass(maps, ~mask), torch.tensor([0.25, 0.75, 0.75]))


def test_pointing_game_looks_at_the_largest_value_and_shares_ties():
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[:, :2, :2] = True
    maps = torch.zeros(4, 4, 4)
    maps[0, 1, 1], maps[1, 2, 2], maps[2, 1, 0], maps[2, 3, 3] = 1.0, 1.0, 2.0, 2.0
    assert pointing_game(maps, mask).tolist() == [1.0, 0.0, 0.5, 0.25]


# --- agreement ---


@pytest.mark.parametrize("levels", [1000, 4])
def test_rank_correlation_equals_scipys_with_and_without_ties(levels):
    a, b = random(5, 7, 8), random(5, 7, 8, seed=1)
    b = (levels * (a + b)).round() if levels < 10 else a + b
    a = (levels / 4 * a).round()
    pairs = zip(a.flatten(1), b.flatten(1), strict=True)
    expected = [scipy.stats.spearmanr(one, other).statistic for one, other in pairs]
    torch.testing.assert_close(rank_correlation(a, b), torch.tensor(expected).float())


def test_rank_correlation_sees_order_alone_and_a_constant_map_has_none():
    maps = random(3, 6, 6)
    torch.testing.assert_close(rank_correlation(maps, maps.exp()), torch.ones(3))
    torch.testing.assert_close(rank_correlation(maps, -maps), -torch.ones(3))
    assert rank_correlation(maps, torch.ones(3, 6, 6)).isnan().all()


def test_top_k_overlap_counts_shared_pixels_and_is_at_chance_for_random_maps():
    a, b = torch.zeros(1, 4, 5), torch.zeros(1, 4, 5)
    a[0, 0, :4] = torch.tensor([4.0, 3, 2, 1])
    b[0, 0, 1:5] = torch.tensor([4.0, 3, 2, 1])
    assert top_k_overlap(a, b, 0.2).tolist() == [0.75]
    assert top_k_overlap(a, a, 0.01).tolist() == [1.0] and top_k_overlap(a, b, 0.01).tolist() == [0.0]
    assert top_k_overlap(a, b, 1.0).tolist() == [1.0] == top_k_overlap(0 * a, 0 * b, 0.2).tolist()
    third, pair = torch.tensor([[[3.0, 2, 1, 0]]]), torch.tensor([[[1.0, 2, 3, 0]]])  # 0.7 of 4 pixels are 3 of them
    assert top_k_overlap(third, pair, 0.7).tolist() == [1.0] and top_k_overlap(third, pair, 0.6).tolist() == [0.5]
    chance = top_k_overlap(random(200, 20, 20), random(200, 20, 20, seed=1), 0.3).mean()
    assert abs(chance - 0.3) < 0.01


def test_ssim_equals_scikit_images_in_the_setting_of_wang_et_al():
    a, b = random(3, 20, 24), random(3, 20, 24) + 0.3 * random(3, 20, 24, seed=1)
    a, b = ((m - m.amin((1, 2), keepdim=True)) / (m.amax((1, 2)) - m.amin((1, 2))).view(-1, 1, 1) for m in (a, b))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    full = [structural_similarity(x.numpy(), y.numpy(), full=True, **options)[1] for x, y in zip(a, b, strict=True)]
    expected = torch.tensor([m[5:-5, 5:-5].mean() for m in full])
    torch.testing.assert_close(ssim(a, 5 * b - 2), expected.float(), rtol=1e-4, atol=1e-5)


def test_ssim_of_equal_constant_and_rescaled_maps():
    maps = random(3, 12, 12)
    torch.testing.assert_close(ssim(maps, 2 * maps + 7), torch.ones(3))
    flat = torch.ones(3, 12, 12)
    torch.testing.assert_close(ssim(flat, 5 * flat), torch.ones(3))


# --- sanity and steadiness ---


def test_the_gradient_forgets_random_weights_and_in_input_x_gradient_the_image_shines_through():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3))
    x = random(30, 1, 12, 12).abs() ** 4
    gradient = randomisation_check(model, x, absolute=False)
    product = randomisation_check(model, x, method="input_x_gradient")
    assert gradient.shape == (30,) and abs(gradient.mean()) < 0.1
    assert product.mean() > 0.3


def test_the_cascade_runs_where_the_caller_has_switched_gradients_off():
    model, x = convolutional(), random(2, 1, 12, 12)
    expected = randomisation_check(model, x, target=0)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            torch.testing.assert_close(randomisation_check(model, x, target=0), expected)


def test_the_cascade_goes_from_the_output_down_and_ends_with_all_layers_random():
    model, x = convolutional(), random(6, 1, 12, 12)
    before = [p.clone() for p in model.parameters()]
    curve, layers = randomisation_check(model, x, return_curve=True, seed=3)
    assert layers == ["6", "3", "0"] and curve.shape == (6, 3)
    torch.testing.assert_close(curve[:, -1], randomisation_check(model, x, seed=3))
    assert not torch.equal(curve[:, -1], randomisation_check(model, x, seed=4))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    state = torch.get_rng_state()
    assert randomisation_check(quantize(model, "w2a2"), x, seed=3).shape == (6,)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="no layer"):
        randomisation_check(TwoClasses(torch.ones(1, 12, 12)), x)


def test_weights_that_cannot_be_drawn_anew_are_named_instead_of_called_sane():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.last = nn.Parameter(torch.rand(8, 8)), nn.Linear(64, 3)

        def forward(self, x):
            return self.last((x * self.scale).flatten(1))

    with pytest.raises(ValueError, match="scale of Scaled cannot be randomised"):
        randomisation_check(Scaled(), torch.rand(2, 1, 8, 8))


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize("computed", [pruned, nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_weight_that_is_computed_anew_at_each_call_is_not_called_random(computed):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    computed(model[3])
    with pytest.raises(ValueError, match=r"3\.weight\w* of Sequential cannot be randomised"):
        randomisation_check(model, torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("metric", [randomisation_check, lambda model, x: infidelity(model, x, torch.ones(2, 8, 8), 0)])
def test_measuring_leaves_the_images_alone_also_if_the_models_first_layer_works_in_place(metric):
    model, x = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3)), torch.randn(2, 1, 8, 8)
    before = x.clone()
    metric(model, x)
    assert torch.equal(x, before)


def test_a_network_with_one_class_has_no_curves():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match="a logit for each of two"):
        deletion_auc(model, x, torch.rand(2, 8, 8), 0)


def test_the_layer_of_grad_cam_may_be_given_to_the_randomisation_check_as_a_module_or_by_name():
    torch.manual_seed(0)
    model, x = build_model("lenet5"), torch.rand(20, 1, 28, 28)
    by_name, as_module = (randomisation_check(model, x, None, "grad_cam", layer=it) for it in ("conv2", model.conv2))
    assert torch.equal(by_name.nan_to_num(9), as_module.nan_to_num(9)) and by_name.isfinite().any()


def test_randomisation_resets_batch_norm_with_the_layer_before_it(monkeypatch):
    model, x, maps = convolutional(), random(6, 1, 12, 12), []

    def explain(*arguments, **options):
        maps.append(saliency_map(*arguments, **options))
        return maps[-1]

    monkeypatch.setattr("qsal_helpers.metrics.saliency_map", explain)
    other = copy.deepcopy(model)
    other[1].running_mean.copy_(random(6))
    other[1].weight.data.neg_()
    for network in (model, other):
        randomisation_check(network, x, target=1, seed=3, return_curve=True)
    (trained, *_, random_1), (other_trained, *_, random_2) = maps[:4], maps[4:]
    assert torch.equal(random_1, random_2) and not torch.allclose(trained, other_trained)


def test_sensitivity_is_zero_for_a_constant_map_and_known_for_a_quadratic_model():
    class Quadratic(TwoClasses):
        def forward(self, x):
            return super().forward(x * x / 2)

    weight, x = torch.ones(1, 1, 1), torch.full((2, 1, 1, 1), 2.0)
    assert torch.equal(sensitivity_max(TwoClasses(weight), x, 0), torch.zeros(2))
    # The gradient is x itself, so its relative change is |d| / 2, below radius / 2 and close to it after many draws.
    found = sensitivity_max(Quadratic(weight), x, 0, radius=0.1, samples=200)
    assert (found <= 0.05 + 1e-6).all() and (found > 0.045).all()
    assert torch.equal(found, sensitivity_max(Quadratic(weight), x, 0, radius=0.1, samples=200))
    assert sensitivity_max(convolutional(3), random(3, 3, 12, 12), method="smooth_grad", samples=2).shape == (3,)


@pytest.mark.parametrize("channels", [1, 3])
def test_infidelity_is_zero_for_the_true_map_of_a_linear_model_and_known_for_an_empty_one(channels):
    weight = random(channels, 4, 4)
    model, x = TwoClasses(weight), random(3, channels, 4, 4, seed=1)
    true = saliency_map(model, x, 0, absolute=False)
    assert infidelity(model, x, true, 0, batch_size=2).max() < 1e-9
    assert infidelity(model, x, 7 * true, 0, normalize=True).max() < 1e-6 < infidelity(model, x, 7 * true, 0).min()
    # For a map of zeros it is the variance of the logit's change: noise^2 times the squares of the channels' sum.
    empty = infidelity(model, x, torch.zeros(3, 4, 4), 0, noise=0.5, samples=4000, batch_size=12000)
    expected = 0.25 * weight.sum(0).square().sum().expand(3)
    torch.testing.assert_close(empty, expected, rtol=0.1, atol=0)


def test_without_options_the_metrics_take_the_documented_ones_and_another_seed_draws_other_changes():
    model, x = convolutional(), random(3, 1, 12, 12)
    maps, others = saliency_map(model, x, 1, absolute=False), random(3, 12, 12, seed=2)
    for call, options in (
        (lambda **o: infidelity(model, x, maps, 1, **o), {"noise": 0.2, "samples": 16, "seed": 0}),
        (lambda **o: sensitivity_max(model, x, 1, **o), {"radius": 0.02, "samples": 10, "seed": 0}),
        (lambda **o: top_k_overlap(maps, others, **o), {"fraction": 0.1}),
    ):
        assert torch.equal(call(), call(**options))
        if "seed" in options:
            assert not torch.equal(call(), call(seed=1))


class LinearAndSquare(nn.Module):
    """Class 0 is linear in the image, so its gradient is constant; class 1 is the square of it."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return torch.stack([(weight * x**n).sum((1, 2, 3)) for n, weight in enumerate(self.weight, 1)], 1)


@pytest.mark.parametrize("batch_size", [{}, {"batch_size": 10}], ids=["default", "10"])
def test_infidelity_and_sensitivity_keep_each_image_with_its_own_target_whatever_the_batch_size(batch_size):
    number = 133  # above every default, and no last batch of one
    model, x = LinearAndSquare(random(2, 1, 4, 4)), random(number, 1, 4, 4, seed=1)
    target = torch.arange(number) ** 2 % 3 % 2
    maps = saliency_map(model, x, target, absolute=False)
    linear = target == 0
    found = infidelity(model, x, maps, target, **batch_size)
    assert torch.equal(found < 1e-8, linear)
    assert torch.equal(sensitivity_max(model, x, target, **batch_size) < 1e-6, linear)


# --- what all of them share ---


def test_a_map_with_nan_or_infinity_gets_nan_and_disturbs_no_other():
    good, mask = random(3, 12, 12), torch.ones(3, 12, 12, dtype=torch.bool)
    for bad_value in (math.nan, math.inf):
        bad = good.clone()
        bad[1, 4, 4] = bad_value
        calls = [(f, (good,), (bad,)) for f in ONE_MAP.values()]
        calls += [(f, (good, good.flip(1)), (bad, good.flip(1))) for f in TWO_MAPS.values()]
        calls += [(f, (good.flip(1), good), (good.flip(1), bad)) for f in TWO_MAPS.values()]
        calls += [(f, (good, mask), (bad, mask)) for f in (foreground_mass, pointing_game)]
        model, x = TwoClasses(random(1, 12, 12)), random(3, 1, 12, 12)
        calls += [(f, (model, x, good), (model, x, bad)) for f in (infidelity, deletion_auc, insertion_auc)]
        for metric, clean, spoilt in calls:
            expected, found = metric(*clean), metric(*spoilt)
            assert found.isnan().tolist() == [False, True, False], metric.__name__
            torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])


def test_every_metric_gives_one_float32_an_image_on_normalised_images_of_any_channel_count():
    for channels in (1, 2, 3):
        model, x = convolutional(channels), random(4, channels, 12, 12)
        maps, mask = saliency_map(model, x), torch.ones(4, 12, 12, dtype=torch.bool)
        results = [f(maps) for f in ONE_MAP.values()] + [f(maps, maps + 1) for f in TWO_MAPS.values()]
        results += [f(maps, mask) for f in (foreground_mass, pointing_game)]
        results += [f(model, x, maps) for f in (deletion_auc, insertion_auc, infidelity)]
        results += [f(model, x) for f in (randomisation_check, sensitivity_max)]
        for result in results:
            assert result.shape == (4,) and result.dtype == torch.float32 and result.isfinite().all()


def test_the_model_is_left_as_it_was_and_evaluated_without_dropout():
    model, x = nn.Sequential(convolutional()[:-1], nn.Dropout(0.5), convolutional()[-1]).train(), random(3, 1, 12, 12)
    maps = random(3, 12, 12)
    state = [v.clone() for v in model.state_dict().values()]
    assert torch.equal(deletion_auc(model, x, maps), deletion_auc(model, x, maps))
    assert torch.equal(infidelity(model, x, maps), infidelity(model, x, maps))
    sensitivity_max(model, x)
    randomisation_check(model, x)
    assert all(m.training for m in model[1:]) and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(state, model.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, x, s: deletion_auc(m, x, s[:2]), "must fit"),
        (lambda m, x, s: deletion_auc(m, x, s, steps=0), "steps"),
        (lambda m, x, s: deletion_auc(m, x, s, fill="grey"), "'black', 'blur'"),
        (lambda m, x, s: deletion_auc(m, x, s, fill=[1.0, 2.0]), "that fit"),
        (lambda m, x, s: insertion_auc(m, x, s, target=torch.zeros(2)), "target"),
        (lambda m, x, s: insertion_auc(m, x, s, target=5), "from 0 to 4"),
        (lambda m, x, s: infidelity(m, x, s, target=5), "from 0 to 4"),
        (lambda m, x, s: gini(s[0]), r"\(N, H, W\)"),
        (lambda m, x, s: entropy(s.int()), "floating point"),
        (lambda m, x, s: foreground_mass(s, s), "bool"),
        (lambda m, x, s: pointing_game(s, s[:, :3] > 0), "shape"),
        (lambda m, x, s: rank_correlation(s, s[:, :3]), "one shape"),
        (lambda m, x, s: top_k_overlap(s, s, 0.0), "fraction"),
        (lambda m, x, s: ssim(s[:, :5], s[:, :5]), "11 x 11"),
    ],
)
def test_a_wrong_argument_is_told_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call(convolutional(), random(3, 1, 12, 12), random(3, 12, 12, seed=1))
    short_sentence(caught)


def test_no_image_gives_no_number():
    x, maps = torch.zeros(0, 1, 12, 12), torch.zeros(0, 12, 12)
    for result in (deletion_auc(convolutional(), x, maps), gini(maps), rank_correlation(maps, maps), entropy(maps)):
        assert result.shape == (0,)


def test_the_deletion_curve_of_real_images_equals_quantus_with_black():
    data = load_data("mnist", size=100)
    x = data.normalise(data.test.images[:8])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("lenet5").eval()
    maps, classes = saliency_map(model, x), model(x).argmax(1)
    flipping = quantus.PixelFlipping(
        features_in_step=28, perturb_baseline=float(x.min()), disable_warnings=True, return_auc_per_sample=False
    )
    theirs = flipping(model=model, x_batch=x.numpy(), y_batch=classes.numpy(), a_batch=maps[:, None].numpy())
    ours = deletion_auc(model, x, maps, return_curve=True)
    torch.testing.assert_close(ours[:, 1:], torch.tensor(np.array(theirs)).float(), rtol=1e-3, atol=1e-4)


def test_sensitivity_takes_a_single_image_and_a_last_batch_of_one():
    model, x = build_model("lenet5"), torch.rand(65, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for images in (x[:1], x):
        values = sensitivity_max(model, images, samples=2)
        assert values.shape == (len(images),) and bool((values.isfinite() & (values > 0)).all())


def test_sensitivity_is_measured_in_the_precision_of_the_model():
    model, x = convolutional().to(torch.bfloat16), random(3, 1, 12, 12).to(torch.bfloat16)
    full = sensitivity_max(convolutional(), x.float())
    torch.testing.assert_close(sensitivity_max(model, x).float(), full, rtol=0.2, atol=0.02)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0])
def test_sensitivity_needs_a_batch_size_of_at_least_one(batch_size):
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        sensitivity_max(convolutional(), random(3, 1, 12, 12), batch_size=batch_size)


def test_randomisation_goes_from_the_output_down_also_where_the_output_is_defined_first_and_reaches_every_statistic():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.conv, self.norm = nn.Linear(16, 3), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(1)

        def forward(self, x):
            return self.fc(self.conv(self.norm(x)).relu().mean((2, 3)).repeat(1, 4))

    torch.manual_seed(0)
    model, x = Backwards().eval(), random(3, 1, 8, 8)
    curve, layers = randomisation_check(model, x, return_curve=True)
    assert layers == ["fc", "conv"] and curve.shape == (3, 2)
    seen, original = [], Backwards.forward
    Backwards.forward = lambda self, x: seen.append(self.norm.running_mean.item()) or original(self, x)
    model.norm.running_mean.fill_(5.0)
    randomisation_check(model, x)
    assert seen[0] == 5 and seen[-1] == 0 and model.norm.running_mean == 5
