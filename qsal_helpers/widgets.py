"""Sliders for the lessons: thin panels over a pure function that returns a figure.

Every panel is made by `panel`, so that all of them behave alike: labels, units, keyboard, no flicker.
The functions named ``*_panel`` each belong to one lesson.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np

from .plots import Picture, plot_bits, plot_clipping, plot_method, plot_pact, plot_prediction

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

    An error in `draw` is shown as a sentence in place of the picture, and the next move of a control recovers.

    Examples
    --------
    >>> from qsal_helpers.plots import new_figure
    >>> box = panel(lambda bits: new_figure()[0], {"bits": slider("bits", 4, 2, 8)})
    >>> box.children[0].children[0].value = 2
    """
    picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
    message = ipywidgets.HTML()
    message.add_class("qsal-error")

    def redraw(_: Any = None) -> None:
        try:
            figure = draw(**{name: control.value for name, control in controls.items()})
        except Exception as error:
            message.value = f"<b>This setting cannot be drawn:</b> {type(error).__name__}: {error}"
            return
        message.value = ""
        picture.value = figure.to_png()

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    parts = [ipywidgets.VBox(list(controls.values()))]
    if help:
        parts.append(ipywidgets.HTML(f"<i>{help}</i>"))
    box = ipywidgets.VBox([*parts, message, picture])
    PANELS.append(box)
    return box


def slider(label: str, value: float, low: float, high: float, step: float | None = None, unit: str = "") -> Any:
    """Return a slider with a label and a readable value; whole numbers give an integer slider.

    Examples
    --------
    >>> slider("alpha", 2.0, 0.5, 6.0, step=0.25).value
    2.0
    >>> slider("width", 4, 2, 8, unit="bits").description
    'width (bits)'
    """
    options = {
        "description": f"{label} ({unit})" if unit else label,
        "value": value,
        "min": low,
        "max": high,
        "layout": ipywidgets.Layout(width="28em"),
        "style": {"description_width": "9em"},
    }
    if all(isinstance(number, int) for number in (value, low, high)) and (step is None or isinstance(step, int)):
        return ipywidgets.IntSlider(step=step or 1, **options)
    return ipywidgets.FloatSlider(step=step or (high - low) / 50, readout_format=".2f", **options)


def choice(label: str, options: list[Any], value: Any = None) -> Any:
    """Return a slider over named choices, movable with the arrow keys.

    Examples
    --------
    >>> choice("precision", ["fp32", "w4a4", "w2a2"]).value
    'fp32'
    """
    return ipywidgets.SelectionSlider(
        options=options,
        value=options[0] if value is None else value,
        description=label,
        layout=ipywidgets.Layout(width="28em"),
        style={"description_width": "9em"},
    )


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
        "bits": slider("weights", max(probabilities), min(probabilities), max(probabilities), unit="bits"),
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
        "bits": slider("bits", min(errors), min(errors), max(errors)),
        "clip": slider("clip", float(clips[-1]), float(clips[0]), float(clips[-1])),
    }
    return panel(draw, controls, help="Bring the red line to the star, then change the bits: the star moves.")


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

    return panel(draw, {"bits": slider("bits", max(quantized), min(quantized), max(quantized))})


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
        "bits": slider("bits", min(errors), min(errors), max(errors)),
        "alpha": slider("alpha", float(alphas[-1]), float(alphas[0]), float(alphas[-1])),
    }
    return panel(draw, controls, help="Bring the red line to the star, then change the bits.")


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

    counts = next(list(known) for known in maps.values() if len(known) > 1)
    controls = {
        "method": choice("method", [(name.replace("_", " "), name) for name in maps], next(iter(maps))),
        "samples": choice("samples or steps", counts, counts[-1]),
        "image": slider("image", 0, 0, len(images) - 1),
    }
    return panel(draw, controls, help="The samples count for smooth grad, the steps for integrated gradients.")
