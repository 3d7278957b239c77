"""Panels redraw when a control moves, and show what the control says."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qsal_helpers import Distilled, SaliencyGuided, build_model, fit, load_data, plots, widgets
from qsal_helpers.guided import least_salient
from qsal_helpers.saliency import saliency_map
from qsal_helpers.training import Progress, cross_entropy

# ---------------------------------------------------------------- every lesson


def error_of(box):
    return box.children[-2].value


def test_a_panel_shows_the_very_picture_that_the_plots_function_draws_alone():
    w = np.random.default_rng(0).normal(size=2000)
    grids, accuracies = {bits: np.round(w * 2**bits) / 2**bits for bits in range(1, 8)}, dict.fromkeys(range(1, 8), 0.5)
    box = widgets.bits_panel(w, grids, accuracies)
    (bits,) = box.children[0].children
    for value in (1, 3, 2, 7, 3):  # the labels of the middle axes grow and shrink, and the axes make room for them
        bits.value = value
        alone = plots.plot_bits(w, grids[value], value, accuracies)
        assert bytes(box.children[-1].value) == alone.to_png(compression=1)


IMAGES, LABELS, NAMES = np.arange(128, dtype=np.uint8).reshape(2, 1, 8, 8), [1, 0], ["bag", "shirt"]


def of_each(*keys, shape=(), numbers=np.random.default_rng(0)):  # noqa: B008 - no two calls give the same numbers
    """Other numbers for each key and for each of the two images."""
    return {key: numbers.random((2, *shape)) for key in keys}


def predictions():
    seen = of_each(2, 8, shape=(2,))
    box = widgets.prediction_panel(IMAGES, LABELS, seen, NAMES)
    title = "prediction with {}-bit weights".format
    return box, "plot_prediction", lambda bits, i: (IMAGES[i], seen[bits][i], NAMES, LABELS[i], title(bits))


def clips():
    w, clips, errors = np.linspace(-1, 1, 9), np.array([0.5, 1.0]), of_each(2, 4, shape=(2,))
    box = widgets.clip_panel(w, clips, errors)
    return box, "plot_clipping", lambda bits, clip: (w, bits, clip, clips, *errors[bits])


def alphas():
    x, alphas, errors = np.linspace(0, 5, 9), np.array([1.0, 2.0]), of_each(2, 4, shape=(2,))
    box = widgets.pact_panel(x, alphas, errors)
    return box, "plot_pact", lambda bits, alpha: (x, bits, alpha, alphas, *errors[bits])


def methods():
    maps = {"smooth_grad": of_each(1, 4, shape=(8, 8)), "gradient": of_each(0, shape=(8, 8))}
    curves = {"smooth_grad": of_each(1, 4, shape=(5,)), "gradient": of_each(0, shape=(5,)), "random": of_each(7)}
    box = widgets.method_panel(IMAGES, maps, curves)

    def wanted(method, samples, i):
        number = samples if method == "smooth_grad" else 0
        found = {method: curves[method][number][i], "random": curves["random"][7][i]}
        title = f"smooth grad, {samples}" if method == "smooth_grad" else method
        return IMAGES[i], maps[method][number][i], found, title

    return box, "plot_method", wanted


def masks():
    (maps,), settings = of_each(0, shape=(8, 8)).values(), list(itertools.product(("mean", "black"), (0.0, 0.25, 0.5)))
    replaced, masked, seen = of_each(0.0, 0.25, 0.5), of_each(*settings), of_each(*settings, shape=(2,))
    by_fill = lambda some: {fill: {r: some[f, r] for f, r in settings if f == fill} for fill, _ in settings}
    box = widgets.mask_panel(IMAGES, maps, replaced, by_fill(masked), by_fill(seen), NAMES, LABELS)

    def wanted(ratio, fill, i):
        before_and_after = (seen[fill, 0.0][i], seen[fill, ratio][i])
        return IMAGES[i], maps[i], replaced[ratio][i], masked[fill, ratio][i], before_and_after, NAMES, LABELS[i]

    return box, "plot_masking", wanted


def files():
    keys = [(32, "float32"), (2, "int8"), (2, "packed")]
    seen, maps, costs = (
        of_each(*keys, shape=(2,)),
        of_each(*keys, shape=(8, 8)),
        {key: f"cost of {key}" for key in keys},
    )
    box = widgets.deployment_panel(IMAGES, LABELS, NAMES, seen, maps, costs)

    def wanted(bits, storage, i):
        key = bits, "float32" if bits == 32 else storage
        return IMAGES[i], seen[key][i], maps[key][i], NAMES, LABELS[i], f"{key[0]} bits, {key[1]}", costs[key]

    return box, "plot_deployed", wanted


def networks():
    keys = list(itertools.product(("fp32", "w2a2"), (0, 0.5)))
    seen, maps, measured = (
        of_each(*keys, shape=(2,)),
        of_each(*keys, shape=(8, 8)),
        {key: {"bits": key} for key in keys},
    )
    box = widgets.combined_panel(lambda *key: (seen[key], maps[key]), measured, IMAGES, LABELS, NAMES)

    def wanted(*setting):
        *key, i = setting
        key = tuple(key)
        title = f"{key[0]}, {f'mask ratio {key[1]}' if key[1] else 'plain training'}"
        return IMAGES[i], maps[key][i], seen[key][i], NAMES, LABELS[i], measured[key], list(measured.values()), title

    return box, "plot_combined", wanted


def stops(control):
    """The values that a control can take; of a slider without names its two ends."""
    if not hasattr(control, "options"):
        return control.min, control.max
    return [option[1] if isinstance(option, tuple) else option for option in control.options]


@pytest.mark.parametrize("make", [predictions, clips, alphas, methods, masks, files, networks])
def test_a_figure_is_given_what_belongs_to_the_values_of_all_controls(make, monkeypatch):
    drawn = []
    blank = SimpleNamespace(take_places=lambda places: None, to_png=lambda compression: b"", words=lambda: "")
    for name in dir(widgets):
        if name.startswith("plot_"):
            monkeypatch.setattr(widgets, name, lambda *given, name=name: drawn.append((name, given)) or blank)
    box, plot, wanted = make()
    controls = box.children[0].children
    for setting in itertools.product(*map(stops, controls)):
        for control, value in zip(controls, setting, strict=True):
            control.value = value
        name, given = drawn[-1]
        assert name == plot and not error_of(box)
        np.testing.assert_equal(given, wanted(*setting))


# ---------------------------------------------------------------- lesson 03


def test_the_panel_of_methods_takes_methods_without_samples():
    maps = {name: {0: np.ones((1, 8, 8))} for name in ("gradient", "grad_cam")}
    curves = {name: {0: np.ones((1, 5))} for name in (*maps, "random")}
    box = widgets.method_panel(np.zeros((1, 1, 8, 8), np.uint8), maps, curves)
    assert not error_of(box)


def test_the_slider_for_bits_stops_only_at_bits_that_there_are_numbers_for():
    probabilities = {8: np.eye(2), 2: np.eye(2)}
    box = widgets.prediction_panel(np.zeros((2, 1, 8, 8), np.uint8), [0, 1], probabilities, ["bag", "shirt"])
    bits = box.children[0].children[0]
    assert bits.options == (2, 8) and bits.value == 8
    bits.value = 2
    assert not error_of(box)


def test_the_studys_panel_asks_for_a_ratio_above_0():
    with pytest.raises(ValueError, match="at least one mask ratio above 0"):
        widgets.study_panel({("MNIST", "accuracy", 0): {"fp32": {0: 0.9}}}, ["fp32"])


def test_a_live_view_serves_a_second_training_with_other_terms():
    frames = [plots.Frame(1, 1, np.ones((1, 4, 4)), np.zeros((1, 4, 4), bool), {"cross_entropy": 2.0})]
    frames.append(frames[0]._replace(terms={"cross_entropy": 2.0, "divergence": 0.1}))
    figure = plots.plot_training_now(np.zeros((1, 1, 4, 4), np.uint8), frames, steps=2)
    divergence = figure.axes[1].lines[1].get_ydata()
    assert np.isnan(divergence[0]) and divergence[1] == 0.1


def test_the_panel_of_methods_offers_every_method_with_a_map():
    (method, _, _) = methods()[0].children[0].children
    assert [value for _, value in method.options] == ["smooth_grad", "gradient"]


# ---------------------------------------------------------------- lesson 04


def watched(live, objective, **options):
    data = load_data("fashion-mnist", 500)
    torch.manual_seed(0)
    model = build_model("lenet5")
    fit(model, data, objective, epochs=2, progress=False, callback=live, **options)
    return model


def test_a_live_view_keeps_every_frame_with_both_terms_of_the_loss():
    live = widgets.LiveView(load_data("fashion-mnist", 500), load_data("fashion-mnist", 500).test[:3], budget=0)
    watched(live, SaliencyGuided(0.25), callback_every=3)
    assert [(frame.step, frame.epoch) for frame in live.frames] == [(3, 1), (6, 2), (8, 2)]
    assert all(frame.replaced.sum((1, 2)).tolist() == [196] * 3 for frame in live.frames)
    assert all(set(frame.terms) == {"cross_entropy", "divergence"} for frame in live.frames)


@pytest.mark.parametrize("rank_by", ["signed", "magnitude"])
def test_a_live_view_shows_the_pixels_that_the_objective_would_replace(rank_by):
    data = load_data("fashion-mnist", 500)
    torch.manual_seed(0)
    model, masking = build_model("lenet5").eval(), SaliencyGuided(0.25, rank_by=rank_by)
    x, y = data.normalise(data.test.images[:3]).requires_grad_(), data.test.labels[:3]
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), x)
    wanted = least_salient(-gradient, 0.25, rank_by)[:, 0]
    taught = Distilled(build_model("lenet5"), masking)
    for objective, view in ((masking, {}), (taught, {}), (cross_entropy, {"masking": masking})):
        live = widgets.LiveView(data, data.test[:3], **view)
        live(Progress(model, objective, 1, 1, 1, 0.5))
        assert torch.equal(torch.from_numpy(live.frames[0].replaced), wanted)


def test_a_live_view_changes_the_value_of_one_picture_and_not_the_training():
    data, pictures = load_data("fashion-mnist", 500), []
    live = widgets.LiveView(data, data.test[:3], budget=1e9)
    live.picture.observe(lambda change: pictures.append(bytes(change.new)), names="value")
    seen, unseen = watched(live, SaliencyGuided(), callback_every=4), watched(None, SaliencyGuided())
    assert len(set(pictures)) == len(live.frames) == 2
    assert all(torch.equal(a, b) for a, b in zip(seen.parameters(), unseen.parameters(), strict=True))


def test_a_live_view_without_time_draws_only_its_first_and_last_frame():
    data, pictures = load_data("fashion-mnist", 500), []
    live = widgets.LiveView(data, data.test[:3], budget=0)
    live.picture.observe(lambda change: pictures.append(change.new), names="value")
    watched(live, SaliencyGuided(), callback_every=1)
    assert len(live.frames) == 8 and len(pictures) == 2


# ---------------------------------------------------------------- lesson 05


def test_each_trained_network_is_loaded_when_it_is_first_shown_and_only_then():
    explained, measured = [], {(p, r): {"accuracy": 0.9} for p in ("fp32", "mixed-4/2") for r in (0, 0.5)}

    def explain(precision, ratio):
        explained.append((precision, ratio))
        return np.ones((2, 2)), np.ones((2, 8, 8))

    precision, ratio, image = widgets.combined_panel(explain, measured, IMAGES, LABELS, NAMES).children[0].children
    assert explained == [("fp32", 0)]
    precision.value = "mixed-4/2"
    ratio.value = 0.5
    image.value = 1
    precision.value = "fp32"
    ratio.value = 0
    assert explained == [("fp32", 0), ("mixed-4/2", 0), ("mixed-4/2", 0.5), ("fp32", 0.5)]


# ---------------------------------------------------------------- lesson 06


def test_the_studys_panel_shows_a_picture_where_a_data_set_has_no_record_of_a_measure():
    one = {"fp32": {0: 0.9, 1: 0.91}}
    values = {("mnist", "accuracy", r): one for r in (0, 0.5)} | {("mnist", "on object", r): one for r in (0, 0.5)}
    box = widgets.study_panel(values | {("cifar10", "accuracy", r): one for r in (0, 0.5)}, ["fp32"])
    data, measure = box.children[0].children[:2]
    data.value, measure.value = "cifar10", "on object"
    alone = plots.plot_choice_of_study({"plain": {}, "guided (ratio 0.5)": {}}, "fp32", {}, "on object", "cifar10")
    assert bytes(box.children[-1].value) == alone.to_png(compression=1)
    assert [ax.texts[-1].get_text() for ax in alone.axes] == ["no record", "no record"]


def test_the_studys_panel_names_the_seeds_that_both_kinds_have_and_begins_at_the_middle_ratio(monkeypatch):
    drawn = []
    monkeypatch.setattr(widgets, "plot_choice_of_study", lambda *given: drawn.append(given) or plots.new_figure()[0])
    plain, guided = {"fp32": {0: 0.9, 1: 0.8, 2: 0.7}}, {"fp32": {2: 0.75, 0: 0.8}}
    widgets.study_panel({("mnist", "accuracy", r): guided if r else plain for r in (0, 0.25, 0.3, 0.9)}, ["fp32"])
    ((series, _, differences, *_),) = drawn
    assert list(series) == ["plain", "guided (ratio 0.3)"] and differences == pytest.approx({0: -0.1, 2: 0.05})
    ax = plots.plot_choice_of_study(series, "fp32", differences, "accuracy", "mnist").axes[1]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "2"]


def test_the_panel_of_a_sentence_shows_the_answers_to_what_its_sliders_name():
    answer = lambda middle: {"MNIST": {"gradient": {"difference": middle, "low": middle - 1, "high": middle + 1}}}
    answers = {(one, gain): answer(i + 3 * j) for i, one in enumerate("ab") for j, gain in enumerate("xy")}
    box = widgets.sentence_panel(answers)
    sentence, measure = box.children[0].children
    sentence.value, measure.value = "b", "x"
    alone = plots.plot_sentence(answers["b", "x"], "b", "x")
    assert bytes(box.children[-1].value) == alone.to_png(compression=1)


def test_an_error_is_shown_with_the_picture_that_was_there_before_and_the_next_move_recovers():
    box = widgets.panel(
        lambda bits: plots.new_figure(width=bits / (bits != 5))[0], {"bits": widgets.slider("", 4, 2, 8)}
    )
    (bits,), before = box.children[0].children, box.children[-1].value
    bits.value = 5
    assert (
        "cannot be drawn" in error_of(box) and "ZeroDivisionError" in error_of(box) and box.children[-1].value == before
    )
    bits.value = 6
    assert not error_of(box) and box.children[-1].value != before


def test_a_screen_reader_hears_what_the_picture_says_after_each_move():
    box = widgets.prediction_panel(
        np.zeros((1, 1, 8, 8), np.uint8),
        [0],
        {8: np.array([[0.75, 0.25]]), 2: np.array([[0.5, 0.5]])},
        ["a<b", "shirt"],
    )
    words = box.children[-3]
    assert 'role="status"' in words.value and "a&lt;b 75; shirt 25" in words.value
    box.children[0].children[0].value = 2
    assert "prediction with 2-bit weights" in words.value and "a&lt;b 50; shirt 50" in words.value


def first_frame(objective):
    data = load_data("fashion-mnist", 500)
    torch.manual_seed(0)
    model, live = build_model("lenet5").eval(), widgets.LiveView(data, data.test[:8])
    live(Progress(model, objective, 1, 1, 1, 0.5))
    return model, data, live.frames[0]


def test_a_live_view_calls_a_loss_cross_entropy_only_where_it_is_that():
    own = lambda model, x, y: 2 * cross_entropy(model, x, y)
    assert first_frame(cross_entropy)[2].terms == {"cross_entropy": 0.5} and first_frame(own)[2].terms == {"loss": 0.5}


def test_the_maps_of_a_live_view_explain_the_right_class_and_not_the_one_that_is_predicted():
    model, data, frame = first_frame(cross_entropy)
    x, labels = data.normalise(data.test.images[:8]), data.test.labels[:8]
    assert not torch.equal(model(x).argmax(1), labels)
    assert torch.equal(torch.from_numpy(frame.maps), saliency_map(model, x, labels))


def test_the_panel_of_files_begins_with_the_fewest_bits_where_the_storage_makes_a_difference():
    keys = [(32, "float32"), (2, "int8"), (2, "packed")]
    halves, maps = dict.fromkeys(keys, np.array([[0.5, 0.5]])), dict.fromkeys(keys, np.ones((1, 8, 8)))
    box = widgets.deployment_panel(
        np.zeros((1, 1, 8, 8), np.uint8), [0], ["a", "b"], halves, maps, dict.fromkeys(keys, "")
    )
    assert [control.value for control in box.children[0].children] == [2, "int8", 0]
