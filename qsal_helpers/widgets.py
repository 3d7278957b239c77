"""Sliders for the lessons: thin panels over a pure function that returns a figure.

Every panel is made by `panel`, so that all of them behave alike: labels, units, keyboard, no flicker.
The functions named ``*_panel`` each belong to one lesson.
"""

from __future__ import annotations

import functools
import html
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np

from .data import ImageData, Split
from .guided import SaliencyGuided, least_salient
from .plots import (
    Frame,
    Picture,
    plot_bits,
    plot_choice_of_study,
    plot_clipping,
    plot_combined,
    plot_deployed,
    plot_masking,
    plot_method,
    plot_pact,
    plot_prediction,
    plot_sentence,
    plot_training_now,
)
from .saliency import device_of, saliency_map
from .training import Progress, _parts, cross_entropy

# Every panel of this process, so that a test can move all the sliders that a lesson shows.
PANELS: list[ipywidgets.VBox] = []


def panel(draw: Callable[..., Picture], controls: Mapping[str, ipywidgets.Widget], help: str = "") -> ipywidgets.VBox:
    """Return controls above a picture that `draw` paints anew whenever one of them changes.

    Parameters
    ----------
    draw : called with one keyword argument a control; returns a `Picture`. It should answer within 150 ms: compute
        what is slow beforehand.
    controls : keyword of `draw` -> a widget with a ``value``, such as those made by `slider` and `choice`.
    help : one line under the controls.

    A screen reader hears the words of the picture after each change. An error in `draw` is shown as a sentence above
    the last picture that could be drawn, and the next move of a control recovers.

    Examples
    --------
    >>> from qsal_helpers.plots import new_figure
    >>> box = panel(lambda bits: new_figure()[0], {"bits": slider("bits", 4, 2, 8)})
    >>> box.children[0].children[0].value = 2
    """
    picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
    message = ipywidgets.HTML()
    message.add_class("qsal-error")
    words = ipywidgets.HTML()
    places: dict[tuple[tuple[int, bool], ...], list[Any]] = {}

    def redraw(_: Any = None) -> None:
        try:
            figure = draw(**{name: control.value for name, control in controls.items()})
        except Exception as error:
            message.value = f"<b>This setting cannot be drawn:</b> {type(error).__name__}: {error}"
            return
        message.value = ""
        figure.take_places(places)
        picture.value = figure.to_png(compression=1)
        words.value = f'<span role="status" style="{_UNSEEN}">{html.escape(figure.words())}</span>'

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    parts = [ipywidgets.VBox(list(controls.values()))]
    if help:
        parts.append(ipywidgets.HTML(f"<i>{help}</i>"))
    box = ipywidgets.VBox([*parts, words, message, picture])
    PANELS.append(box)
    return box


# In a page for screen readers, and only for them.
_UNSEEN = "position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap"
_LOOK = {"layout": {"width": "34em"}, "style": {"description_width": "9em"}}


def slider(label: str, value: float, low: float, high: float) -> Any:
    """Return a slider with a label and a readable value; whole numbers give an integer slider, others fifty steps.

    Examples
    --------
    >>> slider("alpha", 2.0, 0.5, 6.0).step
    0.11
    """
    options = {"description": label, "value": value, "min": low, "max": high} | _LOOK
    if all(isinstance(number, int) for number in (value, low, high)):
        return ipywidgets.IntSlider(**options)
    step = (high - low) / 50
    decimals = max(2, math.ceil(-math.log10(step)))
    return ipywidgets.FloatSlider(step=step, readout_format=f".{decimals}f", **options)


def choice(label: str, options: list[Any], value: Any = None) -> Any:
    """Return a slider over named choices, movable with the arrow keys.

    Examples
    --------
    >>> choice("precision", ["fp32", "w4a4", "w2a2"]).value
    'fp32'
    """
    value = options[0] if value is None else value
    return ipywidgets.SelectionSlider(options=options, value=value, description=label, **_LOOK)


# ---------------------------------------------------------------- lesson 00


def prediction_panel(
    images: np.ndarray, labels: Sequence[int], probabilities: Mapping[int, np.ndarray], class_names: Sequence[str]
) -> ipywidgets.VBox:
    """Return sliders for the image and for the bits of the weights, above the image and its prediction.

    Parameters
    ----------
    images : ``(N, C, H, W)`` uint8.
    labels : the right classes, ``(N,)``.
    probabilities : bits -> ``(N, classes)``, from 0 to 1.

    Examples
    --------
    >>> images = np.zeros((2, 1, 8, 8), np.uint8)
    >>> box = prediction_panel(images, [0, 1], {8: np.eye(2), 2: np.eye(2)}, ["bag", "shirt"])
    """

    def draw(image: int, bits: int) -> Picture:
        title = f"prediction with {bits}-bit weights"
        return plot_prediction(images[image], probabilities[bits][image], class_names, int(labels[image]), title)

    controls = {
        "bits": choice("weights (bits)", sorted(probabilities), max(probabilities)),
        "image": slider("image", 0, 0, len(images) - 1),
    }
    return panel(draw, controls, help="Move bits down step by step, then take another image. The arrow keys work too.")


# ---------------------------------------------------------------- lesson 01


def clip_panel(
    w: np.ndarray, clips: np.ndarray, errors: Mapping[int, tuple[np.ndarray, np.ndarray]]
) -> ipywidgets.VBox:
    """Return sliders for bits and clip above a layer's weights and the errors of rounding and clipping.

    Parameters
    ----------
    w : weights, any shape.
    clips : ``(M,)``, evenly spaced.
    errors : bits -> (rounding, clipping), each ``(M,)``.

    Examples
    --------
    >>> clips = np.array([0.5, 1.0])
    >>> box = clip_panel(np.linspace(-1, 1, 9), clips, {2: (clips**2 / 27, np.array([0.04, 0.0]))})
    """

    def draw(bits: int, clip: float) -> Picture:
        return plot_clipping(w, bits, clip, clips, *errors[bits])

    controls = {
        "bits": choice("bits", sorted(errors)),
        "clip": slider("clip", float(clips[-1]), float(clips[0]), float(clips[-1])),
    }
    return panel(draw, controls, help="Bring the orange line to the star, then change the bits: the star moves.")


def bits_panel(w: np.ndarray, quantized: Mapping[int, np.ndarray], accuracies: Mapping[int, float]) -> ipywidgets.VBox:
    """Return a slider for the bits above a layer's weights, its levels, its errors and the network's accuracy.

    Parameters
    ----------
    w : a layer's weights, any shape.
    quantized : bits -> the same weights on the grid of that many bits.
    accuracies : bits -> fraction correct of the network with all layers at that many bits.

    Examples
    --------
    >>> w = np.linspace(-1, 1, 9)
    >>> box = bits_panel(w, {2: w.round(), 3: w}, {2: 0.3, 3: 0.8})
    """

    def draw(bits: int) -> Picture:
        return plot_bits(w, quantized[bits], bits, dict(accuracies))

    return panel(draw, {"bits": choice("bits", sorted(quantized), max(quantized))})


# ---------------------------------------------------------------- lesson 02


def pact_panel(
    x: np.ndarray, alphas: np.ndarray, errors: Mapping[int, tuple[np.ndarray, np.ndarray]]
) -> ipywidgets.VBox:
    """Return sliders for bits and alpha above the PACT function, a layer's activations and the errors.

    Parameters
    ----------
    x : activations, any shape.
    alphas : ``(M,)``, evenly spaced.
    errors : bits -> (rounding, clipping), each ``(M,)``.

    Examples
    --------
    >>> alphas = np.array([1.0, 2.0])
    >>> box = pact_panel(np.linspace(0, 5, 99), alphas, {2: (alphas**2 / 108, np.array([0.5, 0.1]))})
    """

    def draw(bits: int, alpha: float) -> Picture:
        return plot_pact(x, bits, alpha, alphas, *errors[bits])

    controls = {
        "bits": choice("bits", sorted(errors)),
        "alpha": slider("alpha", float(alphas[-1]), float(alphas[0]), float(alphas[-1])),
    }
    return panel(draw, controls, help="Bring the orange line to the star, then change the bits.")


# ---------------------------------------------------------------- lesson 03


def method_panel(
    images: np.ndarray,
    maps: Mapping[str, Mapping[int, np.ndarray]],
    deletion: Mapping[str, Mapping[int, np.ndarray]],
) -> ipywidgets.VBox:
    """Return sliders for method, image and number of samples above a saliency map and what deleting its pixels does.

    Parameters
    ----------
    images : ``(N, C, H, W)`` uint8.
    maps : a method -> number of samples or steps -> ``(N, H, W)``. A method without samples has one entry. The first
        method is shown first.
    deletion : the same keys -> probabilities while pixels are deleted, ``(N, steps + 1)``; and "random" with one entry.

    Examples
    --------
    >>> images, rng = np.zeros((2, 1, 8, 8), np.uint8), np.random.default_rng(0)
    >>> maps = {"smooth_grad": {n: rng.random((2, 8, 8)) for n in (1, 4)}, "gradient": {1: rng.random((2, 8, 8))}}
    >>> curves = {name: {n: rng.random((2, 5)) for n in maps[name]} for name in maps} | {"random": {1: np.ones((2, 5))}}
    >>> box = method_panel(images, maps, curves)
    """
    (baseline,) = deletion["random"].values()

    def draw(method: str, samples: int, image: int) -> Picture:
        known = maps[method]
        number = samples if samples in known else next(iter(known))
        title = f"{method.replace('_', ' ')}" + (f", {number}" if len(known) > 1 else "")
        curves = {method: deletion[method][number][image]} | {"random": baseline[image]}
        return plot_method(images[image], maps[method][number][image], curves, title)

    counts = next((list(known) for known in maps.values() if len(known) > 1), [1])
    controls = {
        "method": choice("method", [(name.replace("_", " "), name) for name in maps], next(iter(maps))),
        "samples": choice("samples or steps", counts, counts[-1]),
        "image": slider("image", 0, 0, len(images) - 1),
    }
    return panel(draw, controls, help="The samples count for smooth grad, the steps for integrated gradients.")


# ---------------------------------------------------------------- lesson 07


def deployment_panel(
    images: np.ndarray,
    labels: Sequence[int],
    class_names: Sequence[str],
    probabilities: Mapping[tuple[int, str], np.ndarray],
    maps: Mapping[tuple[int, str], np.ndarray],
    costs: Mapping[tuple[int, str], str],
) -> ipywidgets.VBox:
    """Return sliders for bits, storage and image above a file's prediction, saliency map and cost.

    Parameters
    ----------
    images : ``(N, C, H, W)`` uint8.
    labels : the right classes, ``(N,)``.
    probabilities : (bits, storage) -> ``(N, classes)``. Where a storage has no file of some bits, the file that there
        is for these bits is shown.
    maps : the same keys -> ``(N, H, W)``.
    costs : the same keys -> a short text.

    Examples
    --------
    >>> key = (2, "packed")
    >>> images = np.zeros((1, 1, 8, 8), np.uint8)
    >>> box = deployment_panel(images, [0], ["a", "b"], {key: np.eye(2)}, {key: np.ones((1, 8, 8))}, {key: "1 kB"})
    """

    def draw(bits: int, storage: str, image: int) -> Picture:
        key = (bits, storage) if (bits, storage) in maps else next(key for key in maps if key[0] == bits)
        name = f"{key[0]} bits, {key[1]}"
        shown = probabilities[key][image], maps[key][image]
        return plot_deployed(images[image], *shown, class_names, int(labels[image]), name, costs[key])

    controls = {
        # Not at 32 bits to begin with, where the storage makes no difference.
        "bits": choice("bits", list(dict.fromkeys(bits for bits, _ in maps)), min(bits for bits, _ in maps)),
        "storage": choice("storage", list(dict.fromkeys(storage for bits, storage in maps if bits < 32))),
        "image": slider("image", 0, 0, len(images) - 1),
    }
    return panel(draw, controls, help="With 32 bits there is one file, which holds floats, whatever the storage.")


# ---------------------------------------------------------------- lesson 04


def mask_panel(
    images: np.ndarray,
    maps: np.ndarray,
    replaced: Mapping[float, np.ndarray],
    masked: Mapping[str, Mapping[float, np.ndarray]],
    probabilities: Mapping[str, Mapping[float, np.ndarray]],
    class_names: Sequence[str],
    labels: Sequence[int],
) -> ipywidgets.VBox:
    """Return sliders for mask ratio, fill and image above what is replaced and what the network makes of the rest.

    Parameters
    ----------
    images : ``(N, C, H, W)``, uint8.
    maps : saliency maps, ``(N, H, W)``.
    replaced : a mask ratio -> which pixels are replaced, bool ``(N, H, W)``. The first ratio is 0.
    masked : a fill -> a mask ratio -> the images with these pixels replaced, like `images`.
    probabilities : the same keys -> ``(N, classes)``, from 0 to 1.
    labels : the right classes, ``(N,)``.

    Examples
    --------
    >>> images, half = np.zeros((2, 1, 8, 8), np.uint8), np.full((2, 2), 0.5)
    >>> replaced = {0.0: np.zeros((2, 8, 8), bool), 1.0: np.ones((2, 8, 8), bool)}
    >>> masked, answers = {"black": dict.fromkeys(replaced, images)}, {"black": dict.fromkeys(replaced, half)}
    >>> box = mask_panel(images, np.ones((2, 8, 8)), replaced, masked, answers, ["bag", "shirt"], [0, 1])
    """

    def draw(ratio: float, fill: str, image: int) -> Picture:
        return plot_masking(
            images[image],
            maps[image],
            replaced[ratio][image],
            masked[fill][ratio][image],
            (probabilities[fill][0.0][image], probabilities[fill][ratio][image]),
            class_names,
            int(labels[image]),
        )

    ratios = list(replaced)
    controls = {
        "ratio": choice("mask ratio", [(f"{ratio:.0%}", ratio) for ratio in ratios], ratios[len(ratios) // 2]),
        "fill": choice("fill", list(masked)),
        "image": slider("image", 0, 0, len(images) - 1),
    }
    return panel(draw, controls, help="Black ticks: the prediction for the whole image. Bars: for what is left of it.")


class LiveView:
    """Watch a few fixed images while a network learns: a callback for `fit`.

    ``live.picture`` is one image widget whose content changes, so nothing flickers. The frames stay in
    ``live.frames``, for `plots.training_strip`.

    Parameters
    ----------
    data, fixed : the data set, and the images to watch.
    masking : whose mask to show while the objective masks nothing; by default that of `SaliencyGuided()`.
    budget : share of the training time that drawing may take. A frame that comes too early is kept and not drawn.

    Attributes
    ----------
    frames : one `plots.Frame` a call.
    seconds : time spent in this view so far.

    Examples
    --------
    >>> from qsal_helpers import build_model, fit, load_data
    >>> data = load_data("fashion-mnist", size=500)
    >>> live = LiveView(data, data.test[:4])
    >>> history = fit(build_model("lenet5"), data, epochs=1, progress=False, callback=live)
    >>> [frame.step for frame in live.frames], len(live.picture.value) > 0
    ([4], True)
    """

    def __init__(
        self, data: ImageData, fixed: Split, masking: SaliencyGuided | None = None, budget: float = 0.04
    ) -> None:
        self.images, self.labels, self.x = fixed.images.numpy(), fixed.labels, data.normalise(fixed.images)
        self.masking, self.budget = masking or SaliencyGuided(), budget
        # An image without content fails to load, and JupyterLab may leave it hidden when the content comes.
        blank = Picture(figsize=(10, 3.2)).to_png(compression=1)
        layout = ipywidgets.Layout(max_width="100%")
        self.picture = ipywidgets.Image(value=blank, format="png", layout=layout)
        self.frames: list[Frame] = []
        self.seconds = self._started = 0.0

    def __call__(self, progress: Progress) -> None:
        """Take a frame, and draw it if there is time."""
        now = time.perf_counter()
        self._started = self._started or now
        self.frames.append(self._look(progress))
        if progress.step == progress.steps or self.seconds <= self.budget * (now - self._started):
            self.picture.value = plot_training_now(self.images, self.frames, progress.steps).to_png()
        self.seconds += time.perf_counter() - now

    def _look(self, progress: Progress) -> Frame:
        model, objective = progress.model, progress.objective
        guided = next((part for part in _parts(objective) if isinstance(part, SaliencyGuided)), None)
        masking = guided or self.masking
        device = device_of(model, self.x)
        x, y = self.x.to(device), self.labels.to(device)
        maps = saliency_map(model, x, y)
        ranked = masking.saliency_in_eval_mode(model, x, y)
        replaced = least_salient(ranked, masking.mask_ratio, masking.rank_by)[:, 0]
        total = "cross_entropy" if objective is cross_entropy else "loss"
        terms = (guided and guided.terms) or {total: progress.loss}
        terms = {name: float(value) for name, value in terms.items()}
        return Frame(progress.step, progress.epoch, maps.cpu().numpy(), replaced.cpu().numpy(), terms)


# ---------------------------------------------------------------- lesson 05


def combined_panel(
    explain: Callable[[str, float], tuple[np.ndarray, np.ndarray]],
    measured: Mapping[tuple[str, float], dict[str, float]],
    images: np.ndarray,
    labels: Sequence[int],
    class_names: Sequence[str],
) -> ipywidgets.VBox:
    """Return sliders for bits, mask ratio and image, which switch between trained networks.

    Parameters
    ----------
    explain : (precision, mask ratio) -> probabilities ``(N, classes)`` and maps ``(N, H, W)``. Called when a setting is
        first shown, and never again for it.
    measured : (precision, mask ratio) -> what was measured on many images. The first entry is the plain fp32 network.
    images : ``(N, C, H, W)`` uint8.
    labels : the right classes, ``(N,)``.

    Examples
    --------
    >>> measured = {(p, ratio): {"accuracy": 1 - ratio} for p in ("fp32", "w2a2") for ratio in (0, 0.5)}
    >>> explain = lambda precision, ratio: (np.eye(2), np.zeros((2, 8, 8)))
    >>> box = combined_panel(explain, measured, np.zeros((2, 1, 8, 8), np.uint8), [0, 1], ["bag", "shirt"])
    """
    explain = functools.cache(explain)
    everything = list(measured.values())

    def draw(precision: str, ratio: float, image: int) -> Picture:
        probabilities, maps = explain(precision, ratio)
        title = f"{precision}, mask ratio {ratio:g}" if ratio else f"{precision}, plain training"
        shown = images[image], maps[image], probabilities[image], class_names, int(labels[image])
        return plot_combined(*shown, measured[precision, ratio], everything, title)

    precisions, ratios = (list(dict.fromkeys(values)) for values in zip(*measured, strict=True))
    controls = {
        "precision": choice("bits", precisions),
        "ratio": choice("mask ratio", ratios),
        "image": slider("image", 0, 0, len(images) - 1),
    }
    return panel(draw, controls, help="Each setting is another trained network. Mask ratio 0 is plain training.")


# ---------------------------------------------------------------- lesson 06


def study_panel(
    values: Mapping[tuple[str, str, float], Mapping[str, Mapping[int, float]]], precisions: Sequence[str]
) -> ipywidgets.VBox:
    """Return sliders over the study: data set, measure, bits and mask ratio.

    Parameters
    ----------
    values : (data set, measure, mask ratio) -> precision -> seed -> value. Mask ratio 0 is plain training.
    precisions : in the order of the slider.

    Examples
    --------
    >>> plain, guided = {"fp32": {0: 0.9, 1: 0.91}}, {"fp32": {0: 0.89, 1: 0.9}}
    >>> box = study_panel({("MNIST", "accuracy", 0): plain, ("MNIST", "accuracy", 0.5): guided}, ["fp32"])
    """
    sets, measures, ratios = (list(dict.fromkeys(column)) for column in zip(*values, strict=True))
    guided_ratios = sorted(ratio for ratio in ratios if ratio)
    if not guided_ratios:
        raise ValueError("values must hold at least one mask ratio above 0")

    def draw(data: str, measure: str, precision: str, ratio: float) -> Picture:
        plain, guided = (values.get((data, measure, r), {}) for r in (0, ratio))
        seeds = sorted(set(plain.get(precision, {})) & set(guided.get(precision, {})))
        differences = {seed: guided[precision][seed] - plain[precision][seed] for seed in seeds}
        found = {"plain": plain, f"guided (ratio {ratio:g})": guided}
        series = {name: {p: list(some[p].values()) for p in precisions if p in some} for name, some in found.items()}
        return plot_choice_of_study(series, precision, differences, measure, data)

    controls = {
        "data": choice("data set", sets),
        "measure": choice("measure", measures),
        "precision": choice("bits", list(precisions), precisions[-1]),
        "ratio": choice("mask ratio", guided_ratios, guided_ratios[len(guided_ratios) // 2]),
    }
    return panel(draw, controls, help="A dot is one training. The bar through a mean is its 95 % interval.")


# ---------------------------------------------------------------- lesson 08


def sentence_panel(
    answers: Mapping[tuple[str, str], Mapping[str, Mapping[str, Mapping[str, float]]]],
) -> ipywidgets.VBox:
    """Return sliders for what is compared and for the measure, above the answers on each data set.

    Parameters
    ----------
    answers : (what is compared, measure), every pair of the two -> as `plot_sentence` takes it.

    Examples
    --------
    >>> found = {"MNIST": {"gradient": {"difference": 0.1, "low": 0.05, "high": 0.15}}}
    >>> box = sentence_panel({("guided minus plain", "deletion gain, blur"): found})
    """
    sentences, measures = (list(dict.fromkeys(column)) for column in zip(*answers, strict=True))
    controls = {"sentence": choice("compared", sentences), "measure": choice("measure", measures)}
    draw = lambda sentence, measure: plot_sentence(answers[sentence, measure], sentence, measure)
    return panel(draw, controls, help="A triangle is sure, a circle cannot be told from 0.")
