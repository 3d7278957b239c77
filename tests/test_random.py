import pytest
import torch
from torch import nn

from qsal_helpers import metrics
from qsal_helpers._random import seeded
from qsal_helpers.checks import _smooth_model_and_images
from qsal_helpers.saliency import saliency_map


def on_random_images(metric):
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(2, 1, 4, 4)
    return metric(model, x, saliency_map(model, x, absolute=False))


@pytest.mark.parametrize(
    "call",
    [
        lambda: on_random_images(metrics.infidelity),
        lambda: on_random_images(lambda model, x, maps: metrics.sensitivity_max(model, x)),
        lambda: on_random_images(lambda model, x, maps: metrics.randomisation_check(model, x)),
        _smooth_model_and_images,
    ],
    ids=["infidelity", "sensitivity", "randomisation", "checks"],
)
def test_what_draws_on_a_cpu_leaves_the_random_states_of_all_gpus_alone(call, monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    call()
    assert not seeds


DEVICES = ["cpu"] + [f"cuda:{number}" for number in range(torch.cuda.device_count())]


@pytest.mark.parametrize("device", [torch.device(name) for name in DEVICES], ids=DEVICES)
def test_the_same_seed_gives_the_numbers_of_torchs_own_seed_and_leaves_the_users_alone(device):
    states = lambda: [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    before = states()
    with seeded(5, device):
        found = torch.rand(4, device=device), torch.randn(4)
    assert all(map(torch.equal, states(), before))
    torch.manual_seed(5)
    assert torch.equal(found[0], torch.rand(4, device=device)) and torch.equal(found[1], torch.randn(4))
