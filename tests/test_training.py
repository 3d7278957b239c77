import copy
import functools
import math
import random
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import on_each_device
from torch import nn

from qsal_helpers import PACT, Distilled, SaliencyGuided, build_model, evaluate, fit, load_data, quantize, training
from qsal_helpers.data import ImageData, Split
from qsal_helpers.quantization import ALPHA_MIN
from qsal_helpers.training import History, TrainingDiverged, cross_entropy


def toy_data(n=200, seed=0, size=8):
    """Three classes of 8 x 8 images: which third of the rows is bright; and test images that are poison."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randint(0, 90, (n, 1, size, size), generator=generator)
    rows = torch.arange(size) * 3 // size
    images += 120 * (rows[None, :, None] == labels[:, None, None])[:, None]
    return poisoned("toy", Split(images.to(torch.uint8), labels), ("a", "b", "c"), (0.3,), (0.3,))


class Poison:
    """Test images that nobody may look at."""

    def __getattr__(self, name):
        raise AssertionError(f"training looked at the test images: {name}")

    def __len__(self):
        raise AssertionError("training looked at the test images")


def poisoned(name, train, *rest):
    data = ImageData(name, train, train, *rest)
    object.__setattr__(data, "test", Poison())
    return data


def net(precision="fp32", dropout=0.0, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.MaxPool2d(3), nn.Flatten()]
    return quantize(nn.Sequential(*layers, nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), precision)


def net_with(pool):
    model = net()
    model[4] = pool
    return model


def run(model, data=None, **options):
    return fit(model, data or toy_data(), **{"epochs": 2, "batch_size": 32, "progress": False, **options})


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def numbers(history):
    return history.loss, history.validation_accuracy, history.alphas, history.best_epoch


# ---------------------------------------------------------------- bfloat16


@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "w2a2"])
def test_the_training_passes_are_computed_in_bfloat16_where_asked_and_nothing_else_is(precision, low):
    model, seen = net(precision), {True: set(), False: set()}
    for layer in (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)):
        layer.register_forward_hook(lambda layer, inputs, output: seen[layer.training].add(output.dtype))
    kept = set()
    look = lambda progress: kept.update(t.dtype for p in progress.model.parameters() for t in (p, p.grad))
    run(model, objective=SaliencyGuided(0.5), bfloat16=low, callback=look, callback_every=1)
    assert seen == {True: {torch.bfloat16 if low else torch.float32}, False: {torch.float32}}
    assert kept == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "w4a4", "w2a2"])
@pytest.mark.parametrize(
    "objective",
    [cross_entropy, SaliencyGuided(0.5), SaliencyGuided.as_published(0.5), Distilled(net(seed=1))],
    ids=["plain", "guided", "published", "distilled"],
)
def test_bfloat16_trains_as_well_as_float32_does(objective, precision):
    losses, accuracies = [], []
    for low in (True, False):
        history = run(net(precision), objective=objective, bfloat16=low, epochs=8)
        losses.append(history.loss[-1])
        accuracies.append(max(history.validation_accuracy))
    assert losses[0] == pytest.approx(losses[1], abs=0.15)
    assert min(accuracies) == 1 or accuracies[0] == accuracies[1]


def test_a_training_inside_the_callers_own_autocast_keeps_it():
    seen, model = set(), net()
    model[0].register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        run(model)
    assert seen == {torch.bfloat16}


def test_an_objective_that_first_looks_at_the_model_without_gradients_trains_the_same_in_bfloat16():
    def looking(model, x, y):
        with torch.no_grad():
            model[0](x)
        return cross_entropy(model, x, y)

    models = [net(), net()]
    for model, objective in zip(models, (looking, cross_entropy), strict=True):
        run(model, objective=objective, bfloat16=True)
    assert same(*(state(model) for model in models))


# ---------------------------------------------------------------- the same numbers again


@pytest.mark.parametrize("objective", [cross_entropy, SaliencyGuided(0.5), SaliencyGuided.as_published(0.5)])
@pytest.mark.parametrize("precision", ["fp32", "w2a2"])
def test_the_same_seed_gives_the_same_numbers_to_the_bit_and_another_seed_others(objective, precision):
    results = []
    for seed in (3, 3, 4):
        model = net(precision, dropout=0.2)
        results.append((numbers(run(model, objective=objective, seed=seed, augment=True)), state(model)))
    assert results[0][0] == results[1][0] and same(results[0][1], results[1][1])
    assert results[0][0] != results[2][0] and not same(results[0][1], results[2][1])


def test_fit_seeds_dropout_and_fills_whatever_the_random_state_is():
    results = []
    for before in (1, 2):
        model = net("w2a2", dropout=0.2)
        torch.manual_seed(before)
        results.append((numbers(run(model, objective=SaliencyGuided(0.5))), state(model)))
    assert results[0][0] == results[1][0] and same(results[0][1], results[1][1])


def test_the_users_random_numbers_are_left_alone():
    model = net(dropout=0.5)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    run(model, objective=SaliencyGuided(0.5), augment=True, lr=0.005)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_a_callback_that_draws_random_numbers_does_not_change_the_training():
    results = []
    for callback in (None, lambda progress: (torch.rand(7), progress.model.eval())):
        model = net(dropout=0.5)
        results.append(numbers(run(model, objective=SaliencyGuided(0.5), callback=callback, callback_every=1)))
    assert results[0] == results[1]


def test_an_objective_with_a_schedule_starts_anew_in_every_fit_and_stays_as_it_was():
    objective = SaliencyGuided(0.5, ramp_steps=4)
    first, second = (numbers(run(net(), objective=objective)) for _ in range(2))
    assert first == second
    assert objective == SaliencyGuided(0.5, ramp_steps=4) and objective.terms == {} and objective._calls == 0


# ---------------------------------------------------------------- the steps


class OneWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

    def forward(self, x):
        return self.weight * x.double().mean((1, 2, 3))[:, None]


def test_a_step_is_nesterov_momentum_with_decay_under_a_warm_up_and_a_cosine():
    model, found = OneWeight(), []
    run(
        model,
        toy_data(200),
        objective=lambda m, x, y: 0.5 * m.weight.square().sum(),
        epochs=20,
        batch_size=20,
        lr=0.01,
        weight_decay=0.1,
        validation=0,
        callback=lambda progress: found.append(progress.model.weight.item()),
        callback_every=1,
    )
    weight, momentum, expected = 2.0, 0.0, []
    for step in range(1, 201):
        rate = 0.01 * (step / 10 if step <= 10 else 0.5 * (1 + math.cos(math.pi * (step - 10) / 190)))
        gradient = weight + 0.1 * weight
        momentum = 0.9 * momentum + gradient
        weight -= rate * (gradient + 0.9 * momentum)
        expected.append(weight)
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_loss_of_an_epoch_is_the_mean_over_its_images():
    sizes = []

    def objective(model, x, y):
        sizes.append(len(y))
        return (model(x) * 0).sum() + len(y)

    history = run(net(), toy_data(80), objective=objective, validation=0, epochs=1)
    assert sizes == [32, 32, 16] and history.loss == pytest.approx([(32 * 32 + 32 * 32 + 16 * 16) / 80])


def test_augment_reaches_the_batches_that_the_objective_sees():
    data, darkest = toy_data(64), {False: set(), True: set()}
    images = torch.full((64, 1, 8, 8), 255, dtype=torch.uint8)
    white = poisoned("white", Split(images, data.train.labels), data.class_names, (0.0,), (1.0,))
    for augment, seen in darkest.items():

        def objective(model, x, y, seen=seen):
            seen.add(x.min().item())
            return cross_entropy(model, x, y)

        run(net(), white, augment=augment, objective=objective)
    assert darkest == {False: {1.0}, True: {0.0}}  # a crop that is moved shows the black border


# ---------------------------------------------------------------- validation and the best epoch


def test_the_test_images_are_never_looked_at():
    assert run(net("w4a4"), objective=SaliencyGuided(0.5)).epochs == 2  # toy_data's test images would raise


def test_training_and_validation_images_are_apart_and_together_all_training_images():
    data, seen = toy_data(101), {True: set(), False: set()}
    model = net()
    model.register_forward_hook(lambda m, i, o: seen[m.training].update(x.sum().item() for x in i[0]))
    run(model, data, validation=0.25, batch_size=20, epochs=1)
    everything = {x.sum().item() for x in data.normalise(data.train.images)}
    assert len(everything) == 101
    assert len(seen[False]) == 25 and len(seen[True]) == 76 and seen[True] | seen[False] == everything


def test_the_weights_of_the_epoch_that_was_best_on_validation_are_kept():
    states, model = [], net("w4a4")
    accuracies = iter([0.5, 0.9, 0.9, 0.7])

    def accuracy(*_):
        states.append(state(model))
        return next(accuracies)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qsal_helpers.training._accuracy", accuracy)
        history = run(model, epochs=4)
    assert history.best_epoch == 2 and history.validation_accuracy == [0.5, 0.9, 0.9, 0.7]  # the first of equals
    assert same(state(model), states[1]) and not same(states[1], states[2])


def test_the_history_tells_what_the_kept_model_reaches_on_its_validation_images():
    data, model = toy_data(), net("w4a4")
    history = run(model, data, epochs=4, seed=5, validation=0.3)
    held_out = torch.randperm(200, generator=torch.Generator().manual_seed(5))[:60]
    reached = evaluate(model, ImageData("v", data.train, data.train[held_out], *data_rest(data)))
    assert reached == max(history.validation_accuracy) == history.validation_accuracy[history.best_epoch - 1]
    assert history.epochs == 4 == len(history.seconds) and all(s > 0 for s in history.seconds)
    assert str(history) == f"validation accuracy {reached:.1%} (epoch {history.best_epoch} of 4)"


def data_rest(data):
    return data.class_names, data.mean, data.std


def test_without_validation_the_last_epoch_is_kept_and_the_history_says_so():
    model, states = net("w4a4"), []
    history = run(model, validation=0, epochs=3, callback_every=10**6, callback=lambda p: states.append(state(p.model)))
    assert history.best_epoch == 3 and all(math.isnan(a) for a in history.validation_accuracy)
    assert same(state(model), states[-1]) and len(states) == 1
    assert str(history) == f"loss {history.loss[-1]:.3f} (epoch 3, no validation)"


def test_alphas_are_recorded_each_epoch_and_never_at_or_below_zero():
    model = net("w4a4")
    for module in model.modules():
        if isinstance(module, PACT):
            module.alpha.data.fill_(0.011)
    history = run(model, validation=0, objective=lambda m, x, y: m(x).square().mean() * 10, epochs=2)
    assert list(history.alphas) == ["2", "7"] and all(len(a) == 2 for a in history.alphas.values())
    assert min(min(a) for a in history.alphas.values()) >= 0.999 * ALPHA_MIN
    assert all(p.alpha >= 0.999 * ALPHA_MIN for p in model.modules() if isinstance(p, PACT))


# ---------------------------------------------------------------- callbacks and interrupts


@pytest.mark.parametrize(
    ("every", "expected"), [(1, list(range(1, 13))), (5, [5, 10, 12]), (4, [4, 8, 12]), (99, [12])]
)
def test_the_callback_comes_every_so_many_steps_and_after_the_last(every, expected):
    steps = []
    run(net(), callback=lambda p: steps.append((p.step, p.steps, p.epoch)), callback_every=every)
    assert [s for s, _, _ in steps] == expected
    assert all(total == 12 and epoch == 1 + (s > 6) for s, total, epoch in steps)


def test_a_last_batch_of_one_image_is_left_out_and_the_last_callback_still_comes():
    sizes, steps = [], []

    def objective(model, x, y):
        sizes.append(len(y))
        return cross_entropy(model, x, y)

    run(net(), toy_data(65), objective=objective, validation=0, callback=lambda p: steps.append((p.step, p.steps)))
    assert sizes == [32, 32, 32, 32] and steps == [(4, 4)]


def test_the_callback_sees_the_model_the_copied_objective_and_the_last_loss():
    objective, seen = SaliencyGuided(0.5), []
    model = net()

    def look(progress):
        seen.append((progress, progress.loss, sum(progress.objective.terms.values()).item()))

    run(model, objective=objective, callback=look, callback_every=1, epochs=1)
    for progress, loss, terms in seen:
        assert progress.model is model and progress.objective is not objective
        assert math.isclose(loss, terms, rel_tol=1e-5)
    assert len({loss for _, loss, _ in seen}) == len(seen) > 2


@pytest.mark.parametrize("at", [1, 3, 8])
def test_an_interrupt_leaves_model_and_history_usable_and_fit_can_go_on(at, capsys):
    model = net("w4a4", dropout=0.2)
    start = state(model)

    def interrupt(progress):
        if progress.step == at:
            raise KeyboardInterrupt

    history = run(model, callback=interrupt, callback_every=1, objective=SaliencyGuided(0.5))
    assert history.interrupted and history.epochs == history.best_epoch == (1 if at > 6 else 0)
    said = capsys.readouterr().out
    assert f"interrupted in epoch {2 if at > 6 else 1}" in said
    assert ("the best finished epoch's weights" if at > 6 else "the weights that it began with") in said
    assert not model.training and str(history)
    assert at > 6 or same(state(model), start)
    again = run(model, objective=SaliencyGuided(0.5))
    assert again.epochs == 2 and not again.interrupted


def test_an_interrupt_late_in_the_first_epoch_does_not_say_that_nothing_was_learned():
    def interrupt(progress):
        if progress.step == 250:
            raise KeyboardInterrupt

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = run(net(), toy_data(1000), batch_size=2, callback=interrupt, callback_every=1)
    assert history.interrupted and not history.best_epoch


def test_gradients_that_an_interrupt_left_switched_off_are_on_again_after_training():
    def interrupt(progress):
        torch.set_grad_enabled(False)
        raise KeyboardInterrupt

    run(net(), callback=interrupt, callback_every=1)
    assert torch.is_grad_enabled()


class Fading:
    """An objective whose weight falls by a tenth with each call."""

    weight = 1.0

    def __call__(self, model, x, y):
        self.weight = self.weight - 0.1 * self.weight
        return self.weight * cross_entropy(model, x, y)


class FadingTensor(Fading):
    weight = torch.tensor(1.0)


@pytest.mark.parametrize(
    "objective",
    [
        cross_entropy,
        SaliencyGuided(0.5, ramp_steps=20),
        Distilled(net(seed=1), SaliencyGuided(0.5, ramp_steps=20)),
        Fading(),
        FadingTensor(),
    ],
    ids=["plain", "ramp", "teacher and ramp", "a fraction", "a tensor"],
)
@on_each_device
def test_a_resumed_training_ends_with_the_numbers_of_an_undisturbed_one(objective, device, tmp_path):
    whole, parts = net("w4a4", dropout=0.2), net("w4a4", dropout=0.2)
    options = {"epochs": 4, "objective": objective, "device": device}
    expected = run(whole, **options)
    file = tmp_path / "progress"

    def interrupt(progress):
        if progress.epoch == 3:
            raise KeyboardInterrupt

    run(parts, **options, resume=file, callback=interrupt, callback_every=1)
    fresh = net("w4a4", dropout=0.2, seed=5)
    history = run(fresh, **options, resume=file)
    assert numbers(history) == numbers(expected) and same(state(fresh), state(whole))
    again = run(fresh, **options, resume=file)
    assert numbers(again) == numbers(expected) and same(state(fresh), state(whole))


def test_a_file_of_another_training_is_not_resumed_from_and_says_what_to_do(tmp_path):
    file = tmp_path / "progress"
    run(net(), resume=file)
    with pytest.raises(ValueError, match="made for .* steps, this training has .*; delete it to start anew"):
        run(net(), epochs=3, resume=file)
    file.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be resumed from"):
        run(net(), resume=file)
    with pytest.raises(ValueError, match="resume must name a file; .* is a folder"):
        run(net(), resume=tmp_path)


def test_an_objective_without_its_brackets_is_refused_with_what_is_missing():
    with pytest.raises(TypeError, match="with brackets"):
        run(net(), objective=SaliencyGuided)


def test_an_interrupt_in_the_middle_of_the_masked_pass_leaves_batch_norm_as_it_was():
    model, calls = net(), []

    def interrupt(module, inputs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    handle = model[6].register_forward_pre_hook(interrupt)
    assert run(model, objective=SaliencyGuided(0.5)).interrupted
    handle.remove()
    assert model[1].track_running_stats and run(model).epochs == 2


def test_an_error_in_a_callback_comes_through_and_the_model_holds_its_last_good_weights():
    model = net()
    start = state(model)

    def fail(progress):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run(model, callback=fail, callback_every=2)
    assert same(state(model), start) and not model.training


# ---------------------------------------------------------------- when it goes wrong


@pytest.mark.parametrize("precision", ["fp32", "w4a4"])
def test_a_loss_that_is_not_a_number_names_layer_and_epoch_and_brings_the_weights_back(precision):
    model = net(precision)
    kept = []

    def objective(model, x, y):
        kept.append(1)
        if len(kept) == 9:  # in the second epoch
            model[6].weight.data[0, 0] = math.nan
        return cross_entropy(model, x, y)

    with pytest.raises(TrainingDiverged, match=r"not a number in epoch 2, first seen in layer '6'"):
        run(model, objective=objective)
    assert all(v.isfinite().all() for v in model.state_dict().values())
    assert run(model).epochs == 2


def test_a_layer_that_makes_infinities_from_finite_weights_is_named():
    class Log(nn.Module):
        def forward(self, x):
            return torch.log(x * 0)

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), Log())
    with pytest.raises(TrainingDiverged, match="in epoch 1, first seen in layer '2'"):
        run(model)


def test_a_loss_of_the_users_own_that_is_infinite_is_told_apart_from_a_layer():
    with pytest.raises(TrainingDiverged, match="every layer's output is finite"):
        run(net(), objective=lambda m, x, y: cross_entropy(m, x, y) / 0)


@pytest.mark.parametrize("precision", ["fp32", "w4a4", "w2a2"])
@pytest.mark.parametrize("lr", [1e12, 1e38])
def test_an_exploding_learning_rate_ends_in_a_sentence_or_in_finite_weights(precision, lr):
    model = net(precision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run(model, lr=lr)
        except TrainingDiverged as error:
            assert "lower learning rate" in str(error)
    assert all(v.isfinite().all() for v in model.state_dict().values())


def test_weights_broken_by_the_very_last_step_are_noticed_too():
    class BreakBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * math.nan

    steps = []

    def objective(model, x, y):
        steps.append(1)
        loss = cross_entropy(model, x, y)
        return BreakBackward.apply(loss) if len(steps) == 6 else loss

    model = net()
    with pytest.raises(TrainingDiverged, match="epoch 1"):
        run(model, objective=objective, epochs=1)
    assert all(v.isfinite().all() for v in model.state_dict().values())


def test_an_alpha_that_becomes_not_a_number_is_reported_by_its_layer():
    model = net("w4a4")

    def objective(model, x, y):
        model[7].alpha.data.fill_(math.nan)
        return cross_entropy(model, x, y)

    with pytest.raises(TrainingDiverged, match="layer '7'"):
        run(model, objective=objective)


def test_a_collapse_of_the_accuracy_warns_and_the_best_epoch_is_kept():
    def objective(model, x, y):
        objective.steps += 1
        if objective.steps > 12:
            model[8].weight.data.zero_(), model[8].bias.data.copy_(torch.tensor([9.0, 0.0, 0.0]))
        return cross_entropy(model, x, y)

    objective.steps = 0
    model = net()
    with pytest.warns(UserWarning, match=r"fell from \d+\.\d% to \d+\.\d% in epoch 3; a lower learning rate"):
        history = run(model, objective=objective, epochs=3, lr=0.1)
    assert history.best_epoch in (1, 2)


def test_an_accuracy_that_falls_a_little_and_a_short_training_that_learns_nothing_warn_of_nothing(recwarn):
    accuracies = iter([0.9, 0.6, 0.5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_accuracy", lambda *_: next(accuracies))
        run(net(), epochs=3)
    run(net(), epochs=1, lr=1e-12)
    assert not recwarn.list


MANY_STEPS = {"epochs": 18, "batch_size": 16}


def test_a_network_that_has_learned_nothing_after_many_steps_warns():
    with pytest.warns(UserWarning, match="has learned nothing"):
        run(net(), **MANY_STEPS, lr=1e-12)


def test_two_classes_that_are_told_apart_in_seven_of_ten_images_are_not_called_guessing(recwarn):
    signs = torch.randint(0, 2, (200,), generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(200) % 10 < 7, signs, 1 - signs)
    images = (200 * signs)[:, None, None, None].expand(-1, 1, 8, 8).to(torch.uint8)
    torch.manual_seed(0)
    data = poisoned("two", Split(images, labels), ("a", "b"), (0.4,), (0.4,))
    history = run(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), data, **MANY_STEPS, lr=0.01)
    assert 0.6 < max(history.validation_accuracy) < 0.75
    assert not recwarn.list


def test_a_network_that_has_learned_in_as_many_steps_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert max(run(net(), **MANY_STEPS).validation_accuracy) > 0.9


@pytest.mark.parametrize(
    "objective",
    [
        lambda model, x, y: F.cross_entropy(model(x), y, reduction="none"),
        lambda model, x, y: 3.0,
        lambda model, x, y: cross_entropy(model, x, y).detach(),
    ],
    ids=["a loss an image", "a plain number", "a detached loss"],
)
def test_an_objective_that_returns_anything_but_one_number_with_a_gradient_is_refused(objective):
    with pytest.raises(TypeError, match="objective must return one number with a gradient"):
        run(net(), objective=objective)


def test_a_diverged_training_in_its_first_epoch_gives_back_the_weights_it_was_given():
    model = net("w4a4")
    start = state(model)
    with pytest.raises(TrainingDiverged):
        run(model, objective=lambda m, x, y: cross_entropy(m, x, y) * math.nan)
    assert same(state(model), start)


# ---------------------------------------------------------------- learning, frozen parts, evaluate


def test_lenet5_learns_2000_digits_in_3_epochs():
    data = load_data("mnist", size=2000)
    torch.manual_seed(0)
    model = build_model("lenet5")
    assert evaluate(model, data) < 0.3
    # Not the default rate: without batch-norm it is too high for two seeds of nine.
    fit(model, data, epochs=3, batch_size=32, lr=0.05, progress=False)
    assert evaluate(model, data) > 0.85


@pytest.mark.parametrize("precision", ["w4a4", "mixed-4/2", "w2a2"])
def test_quantized_and_guided_networks_learn_the_toy_task(precision):
    history = run(net(precision), toy_data(600), objective=SaliencyGuided(0.3), epochs=8, lr=0.1)
    assert max(history.validation_accuracy) > 0.9


def test_a_frozen_parameter_stays_and_the_decay_reaches_alpha():
    model = net("w4a4")
    model[0].weight.requires_grad_(False)
    weight, alpha = model[0].weight.clone(), model[7].alpha.item()
    run(model, objective=lambda m, x, y: m(x).sum() * 0, weight_decay=0.5, validation=0)
    assert torch.equal(model[0].weight, weight) and model[7].alpha.item() < alpha
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that could be trained"):
        run(model)


def test_every_layer_is_trained_whatever_mode_it_was_in_and_a_callback_left_it_in():
    model, modes = net(dropout=0.2).eval(), []
    model[3].register_forward_hook(lambda module, inputs, output: modes.append([m.training for m in model]))
    run(model, validation=0, callback=lambda progress: progress.model.eval(), callback_every=1)
    assert modes == [[True] * len(model)] * 14
    assert model[1].num_batches_tracked == 14 and not model.training


def test_convolutions_end_in_the_memory_format_that_they_were_trained_in():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    run(model)
    assert model[2].weight.is_contiguous(memory_format=torch.channels_last) and not model[2].weight.is_contiguous()


def test_without_options_fit_follows_the_recipe_that_the_study_s_commands_leave_to_it():
    results = []
    recipe = {"objective": cross_entropy, "epochs": 8, "batch_size": 128, "lr": 0.1, "seed": 0}
    for options in ({}, recipe | {"weight_decay": 5e-4, "validation": 0.1, "augment": False}):
        model = net("w4a4", dropout=0.2)
        results.append((numbers(fit(model, toy_data(300), progress=False, **options)), state(model)))
    assert results[0][0] == results[1][0] and same(results[0][1], results[1][1])


def test_evaluate_counts_right_answers_and_leaves_modes_and_weights_alone():
    data = toy_data(90)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Dropout(0.9), nn.BatchNorm1d(3).eval())
    nn.init.zeros_(model[1].weight), model[1].bias.data.copy_(torch.tensor([0.0, 1.0, 0.0]))
    before = state(model)
    assert evaluate(model, data, "train", batch_size=7) == 30 / 90
    assert same(state(model), before)
    assert [m.training for m in model] == [True, True, True, False]


def test_evaluate_refuses_an_unknown_split_and_no_images():
    data = toy_data(90)
    with pytest.raises(ValueError, match="split must be one of train, test"):
        evaluate(net(), data, "validation")
    nothing = ImageData("none", data.train[:0], data.train[:0], *data_rest(data))
    with pytest.raises(ValueError, match="no images"):
        evaluate(net(), nothing)


def test_an_empty_history_can_be_printed():
    assert str(History()) == "no epoch finished" and History().epochs == 0


# ---------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": -1},
        {"epochs": 1.5},
        {"epochs": "3"},
        {"epochs": None},
        {"epochs": True},
        {"batch_size": 1},
        {"batch_size": 2.5},
        {"lr": 0},
        {"lr": -0.1},
        {"lr": math.nan},
        {"lr": math.inf},
        {"lr": "fast"},
        {"weight_decay": -1},
        {"weight_decay": math.nan},
        {"validation": 1},
        {"validation": -0.1},
        {"validation": math.nan},
        {"validation": None},
        {"callback_every": 0},
        {"callback_every": 0.5},
        {"seed": "zero"},
        {"seed": None},
        {"seed": 0.5},
        {"device": "toaster"},
        {"device": 3.5},
        {"objective": "cross_entropy"},
        {"callback": 3},
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_changed(wrong):
    model = net()
    start = state(model)
    with pytest.raises((ValueError, TypeError)) as caught:
        run(model, **wrong)
    assert len(str(caught.value)) > 20 and same(state(model), start)


def test_too_few_images_are_refused():
    for n, validation in ((1, 0), (0, 0), (3, 0.5)):
        data = toy_data(max(n, 3))
        data = poisoned("few", data.train[:n], *data_rest(data))
        if n - int(n * validation) < 2:
            with pytest.raises(ValueError, match="at least 2 are needed"):
                run(net(), data, validation=validation)
        else:
            assert run(net(), data, validation=validation).epochs == 2


anything = st.one_of(st.none(), st.booleans(), st.integers(-2, 3), st.floats(), st.text(max_size=4), st.just([]))


@given(options=st.fixed_dictionaries({}, optional={n: anything for n in ("epochs", "lr", "validation", "seed")}))
@settings(max_examples=60)
def test_whatever_fit_is_given_it_trains_or_says_what_is_wrong(options):
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), toy_data(12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            history = run(model, data, **options)
        except (ValueError, TypeError, TrainingDiverged) as error:
            assert len(str(error)) > 15
        else:
            assert history.epochs == options.get("epochs", 2)
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_plain_objective_is_the_mean_cross_entropy():
    model, x, y = nn.Linear(4, 3).double(), torch.rand(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    expected = -F.log_softmax(model(x), 1)[range(5), y].mean()
    torch.testing.assert_close(cross_entropy(model, x, y), expected)


def test_an_objective_may_hold_a_teacher_network_of_its_own():
    class Distil:
        def __init__(self, teacher):
            self.teacher = teacher

        def __call__(self, model, x, y):
            return F.mse_loss(model(x), self.teacher(x).detach())

    objective = Distil(net(seed=1))
    before = copy.deepcopy(state(objective.teacher))
    assert run(net(), objective=objective).epochs == 2
    assert same(state(objective.teacher), before)


def frozen(model):
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 31},
        {"lr": 0.05},
        {"seed": 1},
        {"weight_decay": 0.0},
        {"validation": 0.11},
        {"augment": True},
        {"bfloat16": True},
        {"objective": SaliencyGuided(0.5)},
        {"objective": Distilled(net(seed=1))},
        {"data": poisoned("other", toy_data().train, ("a", "b", "c"), (0.3,), (0.3,))},
        {"data": poisoned("toy", toy_data().train, ("a", "b", "c"), (0.3,), (0.4,))},
        {"data": toy_data(seed=1)},
        {"data": poisoned("toy", Split(toy_data().train.images, 2 - toy_data().train.labels), *data_rest(toy_data()))},
        {"data": poisoned("toy", toy_data().train, *data_rest(toy_data()), False)},
        {"model": frozen(net("w2a2"))},
        {"model": net("w4a4")},
        {"model": quantize(net_with(nn.AvgPool2d(3)), "w2a2")},
        {"model": quantize(net(), "w2a2", "dorefa")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_training_that_differs_in_anything_is_refused_the_file_and_leaves_its_model_alone(change, tmp_path):
    file = tmp_path / "progress"
    run(net("w2a2"), resume=file)
    model = change.get("model", net("w2a2", seed=1)).train()
    before = state(model)
    with pytest.raises(ValueError, match="it was made for .*, this training has .*; delete it to start anew"):
        run(model, resume=file, **{name: value for name, value in change.items() if name != "model"})
    assert same(state(model), before) and all(module.training for module in model.modules())


def other_statistics(model):
    model[1].running_mean += 0.1
    return model


@pytest.mark.parametrize(
    "other",
    [
        Distilled(net(seed=2)),
        Distilled(other_statistics(net(seed=1))),
        Distilled(net("w2a8", seed=1)),
        Distilled(net("w8a8", seed=1)),
        Distilled(net(seed=1), SaliencyGuided(0.5)),
        Distilled(net(seed=1), weight=0.5),
        Distilled(net(seed=1), temperature=3.0),
    ],
    ids=["weights", "statistics", "bits", "more bits", "objective", "weight", "temperature"],
)
def test_a_training_is_resumed_with_the_same_teacher_only(other, tmp_path):
    file = tmp_path / "progress"
    run(net(), resume=file, objective=Distilled(net(seed=1)))
    with pytest.raises(ValueError, match="it was made for the objective .*; delete it to start anew"):
        run(net(), resume=file, objective=other)
    assert run(net(), resume=file, objective=Distilled(net(seed=1))).epochs == 2


class Smoothed:
    def __init__(self, smoothing):
        self.smoothing, self.calls = smoothing, 0

    def __call__(self, model, x, y):
        self.calls += 1
        return F.cross_entropy(model(x), y, label_smoothing=self.smoothing)


@pytest.mark.parametrize("asked", [lambda made: made, lambda made: made.__call__], ids=["object", "method"])
def test_an_objective_of_ones_own_is_told_from_one_with_another_number_in_it(asked, tmp_path):
    file = tmp_path / "fit"
    first = numbers(run(net(), resume=file, objective=asked(Smoothed(0.0))))
    with pytest.raises(ValueError, match="it was made for the objective .*smoothing=0.0"):
        run(net(), resume=file, objective=asked(Smoothed(0.5)))
    assert numbers(run(net(), resume=file, objective=asked(Smoothed(0.0)))) == first


def test_a_loss_of_another_model_than_the_one_in_training_is_refused_and_not_taken_for_training():
    model = net()
    before = state(model)

    class Trainer:
        def __init__(self):
            self.model = model

        def loss(self, given, x, y):
            return F.cross_entropy(self.model(x), y)

    with pytest.raises(
        ValueError, match="does not depend on the model that fit trains: let it use the model that it is"
    ):
        run(model, objective=Trainer().loss)
    assert same(state(model), before)


def test_an_objective_with_parameters_that_would_never_be_trained_is_refused():
    class Head(nn.Linear):
        def forward(self, model, x, y):
            return F.cross_entropy(super().forward(model(x)), y)

    with pytest.raises(ValueError, match="the objective Head has parameters of its own, which fit does not train"):
        run(net(), objective=Head(3, 3))
    assert run(net(), objective=Head(3, 3).requires_grad_(False)).epochs == 2
    assert run(net(), objective=Distilled(net(seed=1))).epochs == 2  # a teacher is not to be trained


def test_training_without_gradients_says_what_switched_them_off():
    with torch.inference_mode(), pytest.raises(ValueError, match="cannot be called under torch.inference_mode"):
        run(net())


def test_a_partial_objective_is_told_from_one_with_other_arguments(tmp_path):
    weighted, file = lambda model, x, y, weight: weight * cross_entropy(model, x, y), tmp_path / "fit"
    run(net(), resume=file, objective=functools.partial(weighted, weight=1.0))
    with pytest.raises(ValueError, match="cannot be resumed from"):
        run(net(), resume=file, objective=functools.partial(weighted, weight=0.5))
    assert run(net(), resume=file, objective=functools.partial(weighted, weight=1.0)).epochs == 2


def test_teachers_of_the_same_weights_and_other_bits_are_told_apart():
    assert len({repr(Distilled(net(precision, seed=1))) for precision in ("fp32", "w2a8", "w4a8", "w8a8")}) == 4


def test_a_file_without_a_description_or_with_other_tensors_is_refused_and_leaves_the_model_as_it_was(tmp_path):
    file = tmp_path / "progress"
    run(net(), resume=file)
    kept = torch.load(file, weights_only=True)
    for name, value in (("made_for", None), ("model", kept["model"] | {"8.bias": torch.zeros(4)})):
        torch.save({k: v for k, v in (kept | {name: value}).items() if v is not None}, file)
        model = net(seed=1)
        before = state(model)
        with pytest.raises(ValueError, match="cannot be resumed from: .* .*; delete it to start anew"):
            run(model, resume=file)
        assert same(state(model), before) and model.training


def test_an_interrupt_at_any_line_leaves_a_history_whose_epochs_are_whole():
    def interrupt_at(line):
        def trace(frame, event, argument):
            nonlocal line
            line -= event == "line"
            if line == 0 and event == "line":
                raise KeyboardInterrupt
            return trace

        return lambda frame, event, argument: trace if frame.f_code.co_filename == training.__file__ else None

    data, line, interrupted = toy_data(20), 0, 0
    while True:
        line += 1
        previous = sys.gettrace()
        try:
            sys.settrace(interrupt_at(line))
            history = run(net("w4a4"), data, epochs=1, batch_size=18)
        except KeyboardInterrupt:  # before the loop, or while the model is put back
            continue
        finally:
            sys.settrace(previous)
        lengths = {len(values) for values in (history.loss, history.validation_accuracy, history.seconds)}
        lengths |= {len(values) for values in history.alphas.values()} or {history.epochs}
        assert lengths == {history.epochs} and history.best_epoch == history.epochs
        interrupted += history.interrupted
        if not history.interrupted:
            break
    assert interrupted > 20


@pytest.mark.parametrize(
    ("answer", "says"), [((3, 1, 1), r"it returned shape \(\d+, 3, 1, 1\)"), ((), r"it returned shape \(\d+,\)")]
)
def test_a_model_that_returns_no_logits_is_neither_evaluated_nor_trained(answer, says):
    data, model = toy_data(90), nn.Sequential(nn.Flatten(), nn.Linear(64, math.prod(answer)), nn.Unflatten(1, answer))
    model = model if answer else nn.Sequential(*model[:2], nn.Flatten(0))
    for use in (lambda: evaluate(model, data, "train"), lambda: run(model)):
        with pytest.raises(ValueError, match=says):
            use()


def test_a_model_that_validation_would_refuse_is_refused_before_the_first_step():
    class Named(nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x.flatten(1))}

    own = lambda model, x, y: F.cross_entropy(model(x)["logits"], y)
    with pytest.raises(ValueError, match=r"it returned a dict \(wrap it"):
        run(Named(64, 3), objective=own, callback_every=1, callback=lambda progress: pytest.fail("it trained"))
    assert run(Named(64, 3), objective=own, validation=0.0).epochs


def test_a_resume_file_in_a_folder_that_is_missing_is_refused_before_training(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' of the resume file does not exist; make it first"):
        run(net(), resume=tmp_path / "nowhere" / "a.pt", callback=lambda progress: pytest.fail("it trained"))


def test_the_batch_size_bounds_the_forward_passes_of_evaluate():
    model, sizes = net(), []
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    evaluate(model, toy_data(50), "train", batch_size=20)
    assert sizes == [20, 20, 10]


def test_warnings_of_a_training_point_to_the_line_that_called_fit(monkeypatch):
    accuracies = iter([0.9, 0.1])
    monkeypatch.setattr(training, "_accuracy", lambda *_: next(accuracies))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(net())
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("objective", [nn.CrossEntropyLoss(), F.cross_entropy, Distilled(net(), nn.CrossEntropyLoss())])
def test_a_loss_of_torch_as_objective_is_told_how_to_be_one(objective):
    with pytest.raises(TypeError, match="write lambda model, x, y: loss"):
        run(net(), objective=objective)


def test_what_a_module_keeps_beside_its_tensors_survives_fit():
    class Extra(nn.Flatten):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            self.state = state

    model = nn.Sequential(Extra(), nn.Linear(64, 3))
    run(model)
    assert model[0].state == {"a": 1}
