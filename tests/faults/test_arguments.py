"""Every public function, given anything, answers rightly or says in one sentence of ours what is wrong.

Each function gets CASES generated calls with two wrong arguments at most. A wrong call may end in nothing but an
exception that the package itself raised with `raise`: an error from the depths of torch or NumPy is a fault here.
"""

import contextlib
import inspect
import math
import pathlib
import pkgutil
import traceback
import types
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import qsal_helpers
from qsal_helpers import (
    _forward,
    checkpoints,
    data,
    distillation,
    export,
    folding,
    guided,
    metrics,
    models,
    quantization,
    saliency,
    training,
)
from qsal_helpers.data import ImageData, Split

CASES, RIGHT_CASES = 40, 8
PACKAGE = pathlib.Path(qsal_helpers.__file__).parent
DOCUMENTED = (ValueError, TypeError, training.TrainingDiverged)
pytestmark = pytest.mark.filterwarnings("ignore:integrated gradients do not add up")


def random(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


WRONG_TENSORS = [
    torch.full((3, 1, 16, 16), math.nan),
    torch.full((3, 1, 16, 16), -math.inf),
    torch.zeros(3, 1, 16, 16, dtype=torch.uint8),
    random(3, 1, 16, 16, dtype=torch.float64),
    random(3, 1, 16, 16).half(),
    torch.zeros(3, 1, 16, 16, dtype=torch.complex64),
    random(0, 1, 16, 16),
    random(1, 1, 16, 16),
    random(3, 2, 16, 16),
    random(3, 1, 5, 7),
    random(3, 1, 0, 16),
    random(16, 16, 1, 3).permute(3, 2, 0, 1),
    random(16, 16),
    random(3, 16, 16),
    torch.full((3, 16, 16), math.nan),
    random(3, 32, 32)[:, ::2, ::2],
    torch.tensor(0.5),
    torch.tensor([]),
    torch.arange(3),
    torch.tensor([0, 99, -1]),
    torch.ones(3, 16, 16, dtype=torch.bool),
    np.ones((3, 1, 16, 16)),
    np.arange(5),
]
WRONG = st.one_of(
    st.sampled_from([None, True, -2, 0, 1, 9, 33, 2**70, -0.1, 1.1, math.nan, math.inf, -math.inf]),
    st.sampled_from(["", "4", "w9a9", "mixed-4/0", "magnitude", "no such thing", "\0"]),
    st.sampled_from([b"4", [], [4], {}, {"a": 1}, (), (4, 2, 2), (2, 4), (0.5,), object(), int, len]),
    st.sampled_from([nn.Identity(), nn.Linear(2, 2), nn.Sequential()]),
    st.sampled_from(WRONG_TENSORS),
    st.integers(-(2**40), -1) | st.integers(2**31, 2**40),
    st.floats(),
    st.text(max_size=6),
)


class Net(nn.Sequential):
    """A small convolutional network for 16 x 16 images."""

    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(nn.Conv2d(1, 2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(98, 3))


def image_data(number=12):
    images = (255 * random(number, 1, 16, 16)).to(torch.uint8)
    split = Split(images, torch.arange(number) % 3)
    return ImageData("few", split, split, ("a", "b", "c"), (0.3,), (0.4,))


FLOAT = Net().eval()
QUANTIZED = quantization.quantize(Net(), "w4a4").eval()
torch.manual_seed(0)
NAMED = models.build_model("lenet5", image_size=16)
X, MAPS, OTHERS = random(3, 1, 16, 16), random(3, 16, 16), random(3, 16, 16, seed=1)
MASK = MAPS > 0.5
NUMBERS = random(5, 4) - 0.5
FEW = image_data()
INTEGER = export.to_integer(QUANTIZED, FEW)

bits = st.integers(2, 8) | st.just(32)
scheme = st.sampled_from(quantization.SCHEMES)
model = st.sampled_from([FLOAT, QUANTIZED])
one_of = lambda *values: st.sampled_from(values)
ratio = st.floats(0, 1)
target = one_of(None, 0, 2, torch.tensor([0, 1, 2]))


# ---------------------------------------------------------------- what a right answer looks like


def like(name):
    def check(result, arguments):
        x = arguments[name]
        return isinstance(result, torch.Tensor) and result.shape == x.shape and result.dtype == x.dtype

    return check


def one_number_an_image(result, arguments):
    x = arguments["x"] if "x" in arguments else arguments["maps"]
    return result.dtype == torch.float32 and (len(result) == len(x) or arguments.get("return_curve"))


def maps_of_images(result, arguments):
    x = arguments["x"]
    return result.shape == (len(x), *x.shape[2:]) and result.dtype == torch.float32


def curve_or_number(result, arguments):
    return one_number_an_image(result[0] if isinstance(result, tuple) else result, arguments)


def anything(result, arguments):
    return True


def is_a(kind):
    return lambda result, arguments: isinstance(result, kind)


def read(split, image_data, batch_size, shuffle, generator, device, augment):
    return list(data.batches(split, image_data, batch_size, shuffle, generator, device, augment))


def all_images_in_batches(result, arguments):
    return sum(len(y) for _, y in result) == len(arguments["split"])


def entered(manager):
    def enter(model):
        with manager(model):
            return model

    return enter


def objective(model, x, y, **options):
    return guided.SaliencyGuided(**options)(model, x, y)


def distilled(teacher, model, x, y, **options):
    return distillation.Distilled(teacher, **options)(model, x, y)


def fit(model, data, **options):
    if isinstance(options["epochs"], int):
        options["epochs"] = min(options["epochs"], 1)  # more are right, but would never end
    return training.fit(model, data, progress=False, **options)


def half_a_map(method):
    return lambda model, x, target, **options: saliency.saliency_map(model, x, target, method, **options)


SALIENCY_OPTIONS = {
    "gradient": {},
    "input_x_gradient": {},
    "smooth_grad": {"samples": one_of(1, 2), "noise": st.floats(0, 1), "seed": st.integers(0, 9)},
    "integrated_gradients": {"steps": one_of(1, 3), "baseline": one_of(None, 0.0, [0.5], X[0])},
    "grad_cam": {"layer": one_of(None, "0", "1")},
    "guided_backprop": {},
    "random": {"seed": st.integers(0, 9)},
}
CURVE = {
    "model": model,
    "x": st.just(X),
    "maps": st.just(MAPS),
    "target": target,
    "steps": one_of(1, 5),
    "fill": one_of("black", "blur", 0.0, [0.1], X[0]),
    "batch_size": one_of(1, 128),
    "return_curve": st.booleans(),
}
TWO_MAPS = {"maps": st.just(MAPS), "others": st.just(OTHERS)}
ON_MASK = {"maps": st.just(MAPS), "mask": st.just(MASK)}


class Session:
    """In place of one of onnxruntime."""

    def get_inputs(self):
        return [types.SimpleNamespace(name="image", shape=["N", 1, 28, 28])]

    def run(self, _, inputs):
        return [inputs["image"]]


def latencies(batch, runs):
    runs = min(runs, 2) if isinstance(runs, int) else runs  # more are right, but would never end
    return export.latencies({"one": Session()}, batch, runs)


# name -> (the function, argument -> right values, what a right answer is)
FUNCTIONS = {
    "quantization.check_bits": (quantization.check_bits, {"bits": bits}, is_a(int)),
    "quantization.quantize_uniform": (
        quantization.quantize_uniform,
        {"x": st.just(NUMBERS), "bits": bits, "low": st.floats(-9, -1), "high": st.floats(1, 9)},
        like("x"),
    ),
    "quantization.pact": (
        quantization.pact,
        {"x": st.just(NUMBERS), "alpha": st.floats(0.1, 9), "bits": bits},
        like("x"),
    ),
    "quantization.PACT": (quantization.PACT, {"bits": bits, "alpha": st.floats(0.1, 9)}, is_a(nn.Module)),
    "quantization.default_alpha": (quantization.default_alpha, {"bits": bits}, lambda alpha, _: alpha > 0),
    **{
        f"quantization.{f.__name__}": (
            f,
            {"w": st.just(NUMBERS), "bits": right_bits, "scheme": scheme, "per_channel": st.booleans()},
            check,
        )
        for f, right_bits, check in (
            (
                quantization.weight_codes,
                st.integers(2, 8),
                lambda pair, _: bool((pair[1] > 0).all() | pair[1].isnan().any()),
            ),
            (quantization.weight_scale, bits, lambda scale, _: bool((scale > 0).all() | scale.isnan().any())),
            (quantization.quantize_weight, bits, like("w")),
        )
    },
    "quantization.Precision": (
        quantization.Precision,
        {
            "weights": bits | st.just((4, 2)),
            "activations": bits | st.just((4, 2)),
            "first": bits,
            "last": bits,
            "layers": one_of({}, {"fc": (2, 4)}),
        },
        lambda precision, _: bool(str(precision)),
    ),
    "quantization.Precision.parse": (
        quantization.Precision.parse,
        {"text": one_of("fp32", "w4a2", "mixed-4/2")},
        is_a(quantization.Precision),
    ),
    "quantization.execution_order": (quantization.execution_order, {"model": model}, is_a(list)),
    "quantization.quantize": (
        quantization.quantize,
        {
            "model": st.just(FLOAT),
            "precision": one_of("w4a4", "fp32", "mixed-4/2", quantization.Precision(2, 3)),
            "scheme": scheme,
            "alpha": st.none() | st.floats(0.1, 9),
        },
        lambda model, _: model(X).isfinite().all() or not model(X).numel(),
    ),
    "quantization.calibrate": (
        lambda x, quantile: quantization.calibrate(quantization.quantize(FLOAT, "w4a4"), x, quantile),
        {"x": st.just(X), "quantile": st.floats(0.1, 1)},
        lambda model, _: 0 < model[1].alpha.item() < math.inf,
    ),
    "_forward.evaluation_mode": (
        entered(_forward.evaluation_mode),
        {"model": st.just(FLOAT)},
        is_a(nn.Module),
    ),
    "_forward.logits_of": (_forward.logits_of, {"model": st.just(FLOAT), "x": st.just(X)}, is_a(torch.Tensor)),
    "quantization.describe": (
        quantization.describe,
        {"model": model, "input_shape": one_of(None, (1, 16, 16))},
        is_a(list),
    ),
    "models.build_model": (
        models.build_model,
        {
            "name": one_of("lenet5", "cnn", "guided_paper_cnn"),
            "in_channels": one_of(1, 3),
            "num_classes": one_of(1, 10),
            "image_size": one_of(None, 16, 28),
        },
        is_a(nn.Module),
    ),
    **{
        f"saliency.saliency_map {method}": (
            half_a_map(method),
            {
                "model": model,
                "x": st.just(X),
                "target": target,
                "absolute": st.booleans(),
                "batch_size": one_of(1, 64),
                **options,
            },
            maps_of_images,
        )
        for method, options in SALIENCY_OPTIONS.items()
    },
    "saliency.saliency_map": (
        saliency.saliency_map,
        {"model": model, "x": st.just(X), "target": target, "method": one_of("gradient", "random")},
        maps_of_images,
    ),
    "saliency.completeness_error": (
        saliency.completeness_error,
        {"model": model, "x": st.just(X), "target": target, "steps": one_of(1, 3), "baseline": one_of(None, 0.0)},
        one_number_an_image,
    ),
    "saliency.evaluating": (entered(saliency.evaluating), {"model": model}, is_a(nn.Module)),
    "saliency.explained_classes": (
        saliency.explained_classes,
        {"model": model, "x": st.just(X), "target": target, "batch_size": one_of(1, 64)},
        lambda classes, given: classes.dtype == torch.int64 and classes.shape == (len(given["x"]),),
    ),
    "saliency.device_of": (saliency.device_of, {"model": model, "x": st.just(X)}, is_a(torch.device)),
    "metrics.deletion_auc": (metrics.deletion_auc, CURVE, one_number_an_image),
    "metrics.insertion_auc": (metrics.insertion_auc, CURVE, one_number_an_image),
    "metrics.infidelity": (
        metrics.infidelity,
        {
            "model": model,
            "x": st.just(X),
            "maps": st.just(MAPS),
            "target": target,
            "noise": st.floats(0.01, 1),
            "samples": one_of(1, 3),
            "normalize": st.booleans(),
            "seed": st.integers(0, 9),
            "batch_size": one_of(1, 128),
        },
        one_number_an_image,
    ),
    "metrics.gini": (metrics.gini, {"maps": st.just(MAPS)}, one_number_an_image),
    "metrics.entropy": (metrics.entropy, {"maps": st.just(MAPS)}, one_number_an_image),
    "metrics.object_mask": (
        metrics.object_mask,
        {"images": st.just(FEW.train.images)},
        lambda mask, _: mask.dtype == torch.bool and mask.dim() == 3,
    ),
    "metrics.foreground_mass": (metrics.foreground_mass, ON_MASK, one_number_an_image),
    "metrics.pointing_game": (metrics.pointing_game, ON_MASK, one_number_an_image),
    "metrics.rank_correlation": (metrics.rank_correlation, TWO_MAPS, one_number_an_image),
    "metrics.top_k_overlap": (
        metrics.top_k_overlap,
        {**TWO_MAPS, "fraction": st.floats(0.01, 1)},
        one_number_an_image,
    ),
    "metrics.ssim": (metrics.ssim, TWO_MAPS, one_number_an_image),
    "metrics.randomisation_check": (
        metrics.randomisation_check,
        {
            "model": model,
            "x": st.just(X),
            "target": target,
            "method": one_of("gradient", "random"),
            "seed": st.integers(0, 9),
            "return_curve": st.booleans(),
        },
        curve_or_number,
    ),
    "metrics.sensitivity_max": (
        metrics.sensitivity_max,
        {
            "model": model,
            "x": st.just(X),
            "target": target,
            "method": one_of("gradient"),
            "radius": st.floats(0.01, 1),
            "samples": one_of(1, 2),
            "seed": st.integers(0, 9),
        },
        one_number_an_image,
    ),
    "guided.mask_least_salient": (
        guided.mask_least_salient,
        {
            "x": st.just(X),
            "saliency": st.just(random(3, 1, 16, 16, seed=2)),
            "ratio": ratio,
            "rank_by": st.sampled_from(guided.RANKINGS),
            "fill": st.sampled_from(guided.FILLS) | st.just([0.5]),
        },
        like("x"),
    ),
    "guided.least_salient": (
        guided.least_salient,
        {"saliency": st.just(X), "ratio": ratio, "rank_by": st.sampled_from(guided.RANKINGS)},
        lambda chosen, given: chosen.dtype == torch.bool and chosen.shape[0] == len(given["saliency"]),
    ),
    "guided.SaliencyGuided": (
        objective,
        {
            "model": model,
            "x": st.just(X),
            "y": st.just(torch.tensor([0, 1, 2])),
            "mask_ratio": ratio,
            "weight": st.floats(0, 2),
            "rank_by": st.sampled_from(guided.RANKINGS),
            "fill": st.sampled_from(guided.FILLS),
            "saliency": one_of("loss", "logit"),
            "ramp_steps": one_of(0, 3),
        },
        lambda loss, _: loss.shape == () and loss.requires_grad,
    ),
    "distillation.Distilled": (
        distilled,
        {
            "teacher": model,
            "model": model,
            "x": st.just(X),
            "y": st.just(torch.tensor([0, 1, 2])),
            "weight": st.floats(0, 2),
            "temperature": st.floats(0.1, 10),
        },
        lambda loss, _: loss.shape == () and loss.requires_grad,
    ),
    "data.load_data": (
        data.load_data,
        {
            "name": st.just("mnist"),
            "size": one_of(1, 100),
            "root": one_of(None, "no such folder"),
            "download": st.just(False),
        },
        is_a(ImageData),
    ),
    "data.Split": (
        Split,
        {"images": st.just(FEW.train.images), "labels": st.just(FEW.train.labels)},
        lambda split, _: len(split[:1]) <= 1,
    ),
    "data.ImageData": (
        ImageData,
        {
            "name": st.text(max_size=3),
            "train": st.just(FEW.train),
            "test": st.just(FEW.test),
            "class_names": one_of(("a", "b", "c"), ["a", "b", "c"]),
            "mean": one_of((0.3,), [0.0]),
            "std": one_of((0.4,), [1.0]),
            "mirror": st.booleans(),
        },
        lambda made, _: made.normalise(made.train.images).isfinite().all(),
    ),
    "data.ImageData.normalise": (FEW.normalise, {"images": st.just(FEW.train.images)}, is_a(torch.Tensor)),
    "data.ImageData.pixels": (FEW.pixels, {"x": st.just(X)}, is_a(torch.Tensor)),
    "data.batches": (
        read,
        {
            "split": st.just(FEW.train),
            "image_data": st.just(FEW),
            "batch_size": one_of(1, 5, 99),
            "shuffle": st.booleans(),
            "generator": st.none() | st.builds(torch.Generator),
            "device": one_of(None, "cpu"),
            "augment": st.booleans(),
        },
        all_images_in_batches,
    ),
    "data.stratified_order": (
        data.stratified_order,
        {"labels": st.just(np.arange(12) % 3), "seed": st.integers(0, 99)},
        lambda order, given: sorted(order) == list(range(len(given["labels"]))),
    ),
    "training.fit": (
        fit,
        {
            "model": st.builds(Net),
            "data": st.just(FEW),
            "objective": one_of(training.cross_entropy, guided.SaliencyGuided(0.5)),
            "epochs": st.just(1),
            "batch_size": one_of(2, 5),
            "lr": st.floats(1e-4, 0.1),
            "seed": st.integers(0, 2**60),
            "device": one_of(None, "cpu"),
            "callback": one_of(None, lambda progress: None),
            "callback_every": one_of(1, 50),
            "weight_decay": st.floats(0, 0.1),
            "validation": one_of(0, 0.1, 0.5),
            "augment": st.booleans(),
            "bfloat16": st.booleans(),
        },
        lambda history, _: history.epochs == 1,
    ),
    "training.evaluate": (
        training.evaluate,
        {
            "model": model,
            "data": st.just(FEW),
            "split": one_of("train", "test"),
            "batch_size": one_of(1, 5, 1000),
        },
        lambda accuracy, _: 0 <= accuracy <= 1,
    ),
    "checkpoints.save_model": (
        lambda model, path, half, note: checkpoints.save_model(model, path, half=half, note=note),
        {
            "model": st.just(NAMED),
            "path": st.just("model.safetensors"),
            "half": st.booleans(),
            "note": one_of(1, "text", [1, {"a": None}]),
        },
        anything,
    ),
    "checkpoints.load_model": (checkpoints.load_model, {"path": st.just("good.safetensors")}, is_a(nn.Module)),
    "checkpoints.read_notes": (checkpoints.read_notes, {"path": st.just("good.safetensors")}, is_a(dict)),
    "export.pack_bits": (
        export.pack_bits,
        {"codes": st.just(np.array([0, -1, 0])), "bits": st.integers(1, 8)},
        lambda packed, given: (export.unpack_bits(packed, given["bits"], np.size(given["codes"])) >= -128).all(),
    ),
    "export.unpack_bits": (
        export.unpack_bits,
        {"packed": st.just(np.zeros(2, np.uint8)), "bits": st.just(2), "length": st.integers(5, 8)},
        lambda codes, given: len(codes) == given["length"],
    ),
    "export.to_integer": (
        export.to_integer,
        {"model": st.just(QUANTIZED), "data": st.just(FEW)},
        is_a(export.IntegerModel),
    ),
    "export.IntegerModel": (
        INTEGER,
        {"images": st.just(FEW.test.images[:2].numpy()), "batch_size": one_of(1, 50)},
        lambda logits, given: logits.dtype == np.int64 and len(logits) == len(given["images"]),
    ),
    "export.IntegerModel.values": (INTEGER.values, {"images": st.just(FEW.test.images[:2].numpy())}, is_a(dict)),
    "folding.fold": (folding.fold, {"model": model, "data": st.just(FEW)}, is_a(list)),
    "folding.align_biases": (
        folding.align_biases,
        {"model": st.just(QUANTIZED), "data": st.just(FEW)},
        is_a(nn.Module),
    ),
    "onnx_files.save_onnx": (
        export.save_onnx,
        {
            "model": model,
            "path": st.just("model.onnx"),
            "data": st.just(FEW),
            "storage": one_of("int8", "packed", "float32"),
        },
        is_a(pathlib.Path),
    ),
    "onnx_files.onnx_session": (
        lambda path, threads: export.onnx_session(path, threads).get_inputs()[0].name,
        {"path": st.just("good.onnx"), "threads": one_of(None, 1)},
        lambda name, _: name == "image",
    ),
    "onnx_files.latencies": (
        latencies,
        {"batch": one_of(1, 3), "runs": one_of(1, 2)},
        lambda times, _: times["one"] > 0,
    ),
}
# Called without a wrong argument to give, or parts that only the package makes: each has tests of its own.
ELSEWHERE = {
    "_forward.at_least_float32",  # takes what logits_of has looked at
    "_forward.copied",  # takes what its callers have looked at
    "machine.check_machine",
    "onnx_files.peak_memory",  # a process for each call
    "folding.container_codes",
    "folding.integer_inputs",
    "folding.Layer",
    "folding.Step",
    "export.Product",
    "export.Requantize",
    "export.Move",
    "quantization.QuantConv2d",
    "quantization.QuantLinear",
    "training.cross_entropy",  # `fit` calls it, with tensors that `batches` made
    "training.History",
    "training.Progress",
    "data.DataNotFound",
    "data.DataDamaged",
    "checkpoints.CheckpointError",
    "training.TrainingDiverged",
}
# Figures, sliders, graders and the study take what the functions above return; their tests hold them.
OTHER_MODULES = {"plots", "widgets", "checks", "grading", "study", "evidence", "datasets"}
OTHER_MODULES |= {"_arguments", "_fills", "_random"}


# ---------------------------------------------------------------- the sweep


@pytest.fixture(scope="module", autouse=True)
def folder_with_good_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arguments")
    checkpoints.save_model(NAMED, folder / "good.safetensors")
    export.save_onnx(QUANTIZED, folder / "good.onnx", FEW)
    with contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def arguments_of(draw, right):
    arguments = {name: draw(strategy) for name, strategy in right.items()}
    wrong = draw(st.lists(st.sampled_from(list(right)), max_size=2, unique=True))
    return arguments | {name: draw(WRONG) for name in wrong}


def from_the_model(error):
    """Tell whether a network raised: what it says of images it cannot take is its own, and comes through unchanged."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == "_call_impl" and frame.filename.endswith("nn/modules/module.py") for frame in frames)


def fault_of(call, arguments, check):
    """Return what is wrong with the way in which a call ended, or None."""
    try:
        result = call(**arguments)
    except FileNotFoundError as error:
        return None if len(str(error)) > 15 else f"no sentence: {error}"
    except DOCUMENTED as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = PACKAGE in pathlib.Path(frame.filename).parents and "raise " in frame.line
        if not ours and not from_the_model(error):
            return f"{type(error).__name__} from {frame.filename}:{frame.lineno}: {error}"
        sentence = str(error)
        for text in sorted(map(repr, arguments.values()), key=len, reverse=True):
            sentence = sentence.replace(text, "it")  # what was given may be quoted, and may be long
        if ours and ("\n" in sentence or len(sentence) < 15):
            return f"no sentence: {sentence}"
        return None
    except Exception as error:
        return None if from_the_model(error) else f"{type(error).__name__}, which nobody documents: {error}"
    return None if check(result, arguments) else f"a wrong answer: {result!r}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_whatever_a_function_is_given_it_answers_rightly_or_says_what_is_wrong(name):
    call, right, check = FUNCTIONS[name]
    tried = []

    @settings(max_examples=CASES, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def sweep(drawn):
        arguments = arguments_of(drawn.draw, right)
        tried.append(arguments)
        fault = fault_of(call, arguments, check)
        assert fault is None, fault

    sweep()
    assert len(tried) >= CASES


def assert_right_answers(name, change=lambda arguments: arguments):
    call, right, check = FUNCTIONS[name]

    @settings(max_examples=RIGHT_CASES, suppress_health_check=list(HealthCheck))
    @given(st.fixed_dictionaries(right))
    def sweep(arguments):
        arguments = change(arguments)
        assert check(call(**arguments), arguments)

    sweep()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_right_arguments_have_a_right_answer(name):
    assert_right_answers(name)


def with_one_image(arguments):
    images = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor) and len(v) == len(X)}
    return arguments | {name: value[:1] for name, value in images.items()}


ON_IMAGES = [name for name, (_, right, _) in FUNCTIONS.items() if right.keys() & {"x", "maps", "saliency"}]


@pytest.mark.parametrize("name", ON_IMAGES)
def test_one_image_has_a_right_answer_as_several_have(name):
    assert_right_answers(name, with_one_image)


def test_every_public_function_is_swept_or_named_with_its_reason():
    names = [module.name for module in pkgutil.iter_modules(qsal_helpers.__path__)]
    public = set()
    for name in set(names) - OTHER_MODULES:
        module = __import__(f"qsal_helpers.{name}", fromlist=["_"])
        public |= {
            f"{name}.{what}"
            for what, value in vars(module).items()
            if (inspect.isfunction(value) or inspect.isclass(value))
            and value.__module__ == module.__name__
            and not what.startswith("_")
        }
    assert public - ELSEWHERE <= set(FUNCTIONS)
    assert public >= ELSEWHERE
