"""A second device without hardware: its numbers lie on the CPU, and torch takes them to lie elsewhere.

As with a GPU, an operation on numbers from both sides is an error, and nothing comes back without `.cpu()`. Run as a
script, because torch cannot forget a device: prints for each call of `CALLS` whether it gives the CPU's numbers there.
"""

import contextlib
import json
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from qsal_helpers import Distilled, SaliencyGuided, build_model, evaluate, fit, load_data, metrics, quantize, study
from qsal_helpers.export import align_biases, to_integer
from qsal_helpers.quantization import calibrate
from qsal_helpers.saliency import completeness_error, saliency_map
from qsal_helpers.training import cross_entropy
from qsal_helpers.widgets import LiveView

# The operations in which a GPU takes a tensor of the CPU, too: copies, and places to look at.
MAY_MIX = {"_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_"}


class Module:
    """What torch asks of a device: how many there are, and the random numbers (here those of the CPU)."""

    is_available = is_initialized = staticmethod(lambda: True)
    device_count, current_device = staticmethod(lambda: 1), staticmethod(lambda: 0)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=None: torch.set_rng_state(state))
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16])


class There(Tensor):
    """A tensor on the second device; `here` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        there = Tensor._make_wrapper_subclass(cls, here.size(), device=torch.device("second", 0), **layout)
        there.here = here
        return there

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return carry_out(operation, args, kwargs or {})


class Second(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return carry_out(operation, args, kwargs or {})


def carry_out(operation: Any, args: tuple, kwargs: dict) -> Any:
    """Do an operation on the CPU and return its results on the device where they belong."""
    wanted = kwargs.get("device") and torch.device(kwargs["device"]).type
    tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor)]
    there = [t for t in tensors if isinstance(t, There)]
    if not there and wanted != "second":
        return operation(*args, **kwargs)
    name = operation._schema.name.removeprefix("aten::")
    if there and name not in MAY_MIX and any(t.dim() > 0 for t in tensors if not isinstance(t, There)):
        raise RuntimeError(f"two devices in {name}")
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"a generator of the CPU in {name}")
    known = {id(t.here): t for t in there}
    args, kwargs = tree_map(lambda a: a.here if isinstance(a, There) else a, (args, kwargs))
    result = operation(*args, **(kwargs | {"device": "cpu"} if wanted else kwargs))
    if wanted == "cpu" or (name == "copy_" and id(args[0]) not in known):
        return result
    return tree_map(lambda r: known[id(r)] if id(r) in known else There(r) if isinstance(r, Tensor) else r, result)


def moving(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        return make(*args, **kwargs) if device is None else make(*args, **kwargs).to(device)

    return made


def set_up() -> None:
    _setup_privateuseone_for_python_backend("second", backend_module=Module())
    # These reach the device past every mode.
    torch.tensor, torch.as_tensor = moving(torch.tensor), moving(torch.as_tensor)
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else contextlib.nullcontext()


# ---------------------------------------------------------------- what is called on both devices

DATA = load_data("mnist", 100)
IMAGES, LABELS = DATA.test.images[:4], DATA.test.labels[:4]
X = DATA.normalise(IMAGES)
OBJECTIVES: dict[str, Callable] = {
    "plain": cross_entropy,
    "guided": SaliencyGuided(ramp_steps=2),
    "published": SaliencyGuided.as_published(),
    "by the logit, black": SaliencyGuided(saliency="logit", fill="black"),
    "by magnitude, blur": SaliencyGuided(rank_by="magnitude", fill="blur"),
    "at random, a number": SaliencyGuided(rank_by="random", fill=[0.1]),
    "distilled and guided": Distilled(build_model("cnn"), SaliencyGuided(fill="mean")),
}


def training(device: str, objective: str) -> list[float]:
    torch.manual_seed(0)
    model = quantize(build_model("cnn"), "w2a2")
    live = LiveView(DATA, DATA.test[:2])
    options = {"epochs": 1, "augment": True, "progress": False, "callback": live, "callback_every": 2}
    history = fit(model, DATA, OBJECTIVES[objective], device=device, **options)
    return [*history.loss, *history.validation_accuracy, *(float(frame.maps.sum()) for frame in live.frames)]


def model_on(device: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return quantize(build_model("cnn"), "w2a2").eval().to(device)


def on_maps(measure: Callable) -> Callable[[str], Tensor]:
    maps = torch.rand(2, 4, 28, 28, generator=torch.Generator().manual_seed(0))
    return lambda device: measure(*maps.to(device))


def explaining(call: Callable, images_there: bool = True) -> Callable[[str], Any]:
    where = lambda device: device if images_there else "cpu"
    return lambda device: call(model_on(device), X.to(where(device)), LABELS.to(where(device)))


METHODS = [
    *("gradient", "input_x_gradient", "smooth_grad", "integrated_gradients"),
    *("grad_cam", "guided_backprop", "random"),
]
FAITHFULNESS: dict[str, Callable] = {
    "deletion": lambda model, x, y: metrics.deletion_auc(model, x, x[:, 0], y, fill="black"),
    "insertion": lambda model, x, y: metrics.insertion_auc(model, x, x[:, 0], y, fill="blur"),
    "infidelity": lambda model, x, y: metrics.infidelity(model, x, x[:, 0], y),
    "sensitivity": metrics.sensitivity_max,
    "randomisation": metrics.randomisation_check,
    "completeness": completeness_error,
}
CALLS: dict[str, Callable[[str], Any]] = {
    **{f"training, {name}": lambda device, name=name: training(device, name) for name in OBJECTIVES},
    **{f"{m}, images there": explaining(lambda *given, m=m: saliency_map(*given, m)) for m in METHODS},
    **{f"{m}, images here": explaining(lambda *given, m=m: saliency_map(*given, m), False) for m in METHODS},
    **{f"{name}, images there": explaining(call) for name, call in FAITHFULNESS.items()},
    **{f"{name}, images here": explaining(call, False) for name, call in FAITHFULNESS.items()},
    **{name: on_maps(getattr(metrics, name)) for name in ("rank_correlation", "top_k_overlap", "ssim")},
    "gini and entropy": on_maps(lambda maps, _: metrics.gini(maps) + metrics.entropy(maps)),
    "on the object": on_maps(
        lambda maps, other: metrics.foreground_mass(maps, other > 0.5) + metrics.pointing_game(maps, other > 0.5)
    ),
    "evaluate": lambda device: evaluate(model_on(device), DATA),
    "measure": lambda device: study.measure(model_on(device), DATA, 4),
    "calibrate": lambda device: [*calibrate(model_on(device), X.to(device)).parameters()][-1],
    "to_integer": lambda device: to_integer(align_biases(model_on(device), DATA), DATA)(IMAGES.numpy()),
}


def outcome(call: Callable[[str], Any]) -> str:
    expected = call("cpu")
    try:
        with Second():
            found = tree_map(lambda a: a.cpu() if isinstance(a, There) else a, call("second"))
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)
        own = next(f"{frame.name}, line {frame.lineno}" for frame in reversed(last) if "qsal_helpers" in frame.filename)
        return f"{type(error).__name__} in {own}: {error}"
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    return "the CPU's numbers"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    set_up()
    json.dump({name: outcome(call) for name, call in CALLS.items()}, sys.stdout)
