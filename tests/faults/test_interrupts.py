"""Kernel -> Interrupt at any moment of a training leaves the model and its history usable."""

import math
import os
import queue
import random
import signal
import time

import pytest
import torch
from jupyter_client.manager import start_new_kernel
from killing import few_images
from torch import nn

from qsal_helpers import PACT, SaliencyGuided, evaluate, fit, quantize
from qsal_helpers.saliency import saliency_map


def net(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 8), nn.ReLU()]
    return quantize(nn.Sequential(*layers, nn.Linear(8, 2)), "w4a4")


def train(model, **options):
    return fit(model, few_images(), SaliencyGuided(0.5), **{"epochs": 5, "batch_size": 8, "progress": False, **options})


def interrupt_after(seconds, call):
    """Run `call` while a real signal is on its way; return what it returned, or None if the interrupt came through.

    The seconds are those of this process's computing, so that a busy machine does not move the moment.
    """
    before = signal.signal(signal.SIGPROF, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        return call()
    except KeyboardInterrupt:
        return None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def sweep(times):
    train(net())  # the first call loads what later ones find
    started = time.process_time()
    undisturbed = train(net())
    seconds, chance, interrupted = time.process_time() - started, random.Random(0), 0
    assert not undisturbed.interrupted and undisturbed.epochs == 5
    for _ in range(times):
        model = net()
        history = interrupt_after(0.001 + chance.random() * seconds, lambda model=model: train(model))
        assert all(value.isfinite().all() for value in model.state_dict().values())
        assert all(0 < layer.alpha.item() < 10 for layer in model.modules() if isinstance(layer, PACT))
        assert 0 <= evaluate(model, few_images()) <= 1
        if history is not None and history.interrupted:
            interrupted += 1
            assert not model.training and history.epochs == len(history.validation_accuracy) and str(history)
            assert history.loss == undisturbed.loss[: history.epochs]
        assert train(model, epochs=1).epochs == 1
    assert train(net()).loss == undisturbed.loss
    return interrupted


def test_a_signal_at_any_moment_leaves_finite_weights_and_a_history_that_agrees_with_an_undisturbed_run():
    assert sweep(25) > 5


@pytest.mark.soak
def test_a_signal_at_a_thousand_moments_leaves_finite_weights_and_a_history():
    interrupted = sweep(1000)
    print(interrupted, "of 1000 signals came in the middle of training")
    assert interrupted > 5


CELL = """
import torch
from qsal_helpers import build_model, evaluate, fit, load_data
data = load_data("mnist", 1000)
model = build_model("lenet5")
say = lambda progress: print(progress.step)
history = fit(model, data, epochs=10_000, progress=False, callback=say, callback_every=1)
"""
AFTER = """
again = fit(model, data, epochs=1, progress=False)
print(history.interrupted, model.training, again.epochs, again.interrupted, evaluate(model, data) > 0)
"""


def printed(client, wait_for):
    """Collect what the kernel prints until a condition holds or it is idle again."""
    text, deadline = "", time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            message = client.get_iopub_msg(timeout=120)
        except queue.Empty:
            break
        content = message["content"]
        text += content.get("text", "") + "\n".join(content.get("traceback", []))
        if wait_for(message, text):
            return text
    raise AssertionError(f"the kernel did not answer; it printed {text[-2000:]}")


def is_idle(message, _):
    return message["content"].get("execution_state") == "idle"


def test_kernel_interrupt_in_the_middle_of_an_epoch_ends_the_cell_without_a_traceback_and_fit_goes_on():
    manager, client = start_new_kernel(kernel_name="python3", env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        client.execute(CELL)
        printed(client, lambda message, text: len(text.splitlines()) > 9)
        manager.interrupt_kernel()
        said = printed(client, is_idle)
        assert "interrupted in epoch" in said and "Traceback" not in said and "Error" not in said
        client.execute(AFTER)
        assert printed(client, is_idle).split()[-5:] == ["True", "False", "1", "False", "True"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# ---------------------------------------------------------------- a network that cannot learn


@pytest.mark.parametrize("objective", [SaliencyGuided(0.5), SaliencyGuided.as_published(0.5)])
def test_a_layer_that_never_fires_is_trained_around_and_its_maps_are_zero_and_finite(objective):
    model = net()
    with torch.no_grad():
        model[4].bias.fill_(-1e6)
        model[4].weight.zero_()
    history = fit(model, few_images(), objective, epochs=2, batch_size=8, progress=False)
    assert history.epochs == 2 and all(map(math.isfinite, history.loss))
    maps = saliency_map(model, few_images().normalise(few_images().test.images))
    assert maps.eq(0).all()


def test_an_alpha_that_every_step_drives_down_stays_above_zero_and_the_loss_finite():
    model = net()
    pull = lambda model, x, y: (
        model(x).square().mean() + 1e3 * sum(m.alpha for m in model.modules() if isinstance(m, PACT))
    )
    history = fit(model, few_images(), pull, epochs=3, batch_size=8, lr=0.05, progress=False)
    assert all(0 < value <= 0.011 for values in history.alphas.values() for value in values[-1:])
    assert all(map(math.isfinite, history.loss))
