"""Every figure of the course: pure functions from data to a `Picture`, a matplotlib figure.

One visual language: one palette, in which a colour keeps its meaning within a lesson, and one style file,
``qsal.mplstyle``, in which every function marked ``@styled`` draws. Figures have a white background of their own, so
that they read well in dark and light JupyterLab themes.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import matplotlib
import numpy as np
import PIL.Image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .evidence import interval
from .study import MEASURES, noise_floor, values_by_precision

if TYPE_CHECKING:
    import pandas as pd

    from .training import History

# Okabe and Ito's palette, safe for the common kinds of colour blindness.
PALETTE = {
    "black": "#000000",
    "grey": "#777777",
    "blue": "#0072B2",
    "sky": "#56B4E9",
    "green": "#009E73",
    "orange": "#E69F00",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
}
COLOURS = {
    "fp32": PALETTE["black"],
    "w4a4": PALETTE["blue"],
    "mixed-4/2": PALETTE["green"],
    "w2a2": PALETTE["vermilion"],
    "plain": PALETTE["blue"],
    "guided": PALETTE["orange"],
    "published": PALETTE["purple"],
    "random": PALETTE["grey"],
    "data": PALETTE["sky"],
    "accent": PALETTE["purple"],
}
MAP_COLOURS = "magma"  # runs from dark to light, so that it survives a grey print
SIGNED_MAP_COLOURS = "PuOr"
METHOD_COLOURS = {
    "gradient": PALETTE["blue"],
    "input_x_gradient": PALETTE["orange"],
    "smooth_grad": PALETTE["sky"],
    "integrated_gradients": PALETTE["green"],
    "grad_cam": PALETTE["vermilion"],
    "guided_backprop": PALETTE["purple"],
}
STYLE_FILE = Path(__file__).with_name("qsal.mplstyle")


@functools.cache
def style() -> Mapping[str, Any]:
    """Return the matplotlib settings that every figure uses: those of ``qsal.mplstyle``.

    For figures of your own: ``with matplotlib.rc_context(style()): ...``

    Examples
    --------
    >>> style()["figure.facecolor"]
    'white'
    """
    return MappingProxyType(matplotlib.rc_params_from_file(STYLE_FILE, use_default_template=False))


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def styled(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function draw in the course's style from its first line to its last, and leave matplotlib as it was.

    Examples
    --------
    >>> @styled
    ... def line_width():
    ...     return matplotlib.rcParams["lines.linewidth"]
    >>> line_width()
    2.0
    """

    @functools.wraps(draw)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with matplotlib.rc_context(style()):
            return draw(*args, **kwargs)

    return wrapper


class Picture(Figure):
    """A figure that a notebook shows as a picture without pyplot: it belongs to no window and no global list.

    The memory is freed with the object, which matters when a slider draws hundreds of them.
    """

    def to_png(self, compression: int = 6) -> bytes:
        """Return the bytes of a PNG file at screen resolution.

        Parameters
        ----------
        compression : from 1, fast, to 9, small.

        Examples
        --------
        >>> new_figure()[0].to_png()[1:4]
        b'PNG'
        """
        buffer = io.BytesIO()
        canvas = _canvas(*self.get_size_inches(), self.dpi)
        canvas.figure = self
        with matplotlib.rc_context(style()):  # ticks are made and written when they are drawn
            canvas.draw()  # `savefig` draws twice
        canvas.figure = None
        PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).save(buffer, format="png", compress_level=compression)
        return buffer.getvalue()

    def take_places(self, known: dict[tuple[tuple[int, bool], ...], list[Any]]) -> None:
        """Put axes, their labels and the title where they were in an earlier picture of the same kind.

        Finding these places is more than half of the work of drawing. They depend on how wide the labels of the y-axes
        are and on whether the x-axes have any, so these are the keys of `known`; where they are new, the places are
        worked out and remembered.

        Examples
        --------
        >>> known = {}
        >>> for _ in range(2):
        ...     figure, _ = new_figure()
        ...     figure.take_places(known)
        >>> len(known)
        1
        """
        with matplotlib.rc_context(style()):
            key = tuple((_widest_label(ax), len(ax.get_xticks()) > 0) for ax in self.axes)
            lines = [axis for ax in self.axes for axis in (ax.xaxis, ax.yaxis)]
            if key not in known:
                self.get_layout_engine().execute(self)
                title = self._suptitle.get_position() if self._suptitle else None
                for axis in lines:
                    axis.get_tightbbox()  # moves the axis' label to where it belongs
                places = [ax.get_position(original=True) for ax in self.axes]
                known[key] = [places, [axis.label.get_position() for axis in lines], title]
            self.set_layout_engine("none")
            places, labels, title = known[key]
            for ax, place in zip(self.axes, places, strict=True):
                ax.set_position(place)
            for axis, place in zip(lines, labels, strict=True):
                axis.set_label_coords(*place, transform=axis.label.get_transform())
            if title:
                self._suptitle.set_position(title)

    def words(self) -> str:
        """Return what is written in the picture, and the lengths of its named bars, for who cannot see it.

        Examples
        --------
        >>> figure, axes = new_figure()
        >>> _ = axes[0, 0].set(title="Error", xlabel="clip")
        >>> figure.words()
        'Error; across: clip'
        """
        parts = [self._suptitle.get_text()] if self._suptitle else []
        for ax in self.axes:
            axis_labels = ("across: ", ax.get_xlabel()), ("up: ", ax.get_ylabel())
            parts += [ax.get_title(), *(word + label for word, label in axis_labels if label)]
            parts += [text.get_text() for text in ax.texts]
            names = [label.get_text() for label in ax.get_yticklabels()]
            for bars in ax.containers:
                if len(names) == len(bars) > 0:
                    lengths = (bar.get_width() for bar in bars)
                    parts += [f"{name} {length:.3g}" for name, length in zip(names, lengths, strict=True)]
        return "; ".join(part.replace("\n", " ") for part in parts if part)

    def _repr_png_(self) -> bytes:
        return self.to_png()


@functools.cache
def _canvas(width: float, height: float, dpi: float) -> FigureCanvasAgg:
    """Return one canvas for each size, because a canvas remembers how large the words are that it has written."""
    return FigureCanvasAgg(Figure(figsize=(width, height), dpi=dpi))


def _widest_label(ax: Any) -> int:
    """Return the number of characters of the longest tick label that the y-axis shows."""
    low, high = sorted(ax.get_ylim())
    values = ax.get_yticks()
    labels = zip(values, ax.yaxis.get_major_formatter().format_ticks(values), strict=True)
    return max((len(label) for value, label in labels if low <= value <= high), default=0)


@styled
def new_figure(
    rows: int = 1, columns: int = 1, width: float = 9.0, height: float = 3.6, **options: Any
) -> tuple[Picture, np.ndarray]:
    """Return a figure in the course's style and its axes as a 2-D array.

    Parameters
    ----------
    width, height : inches; 9 inches fill a notebook's width.
    options : handed to ``Figure.subplots``, such as ``sharey=True``.

    Examples
    --------
    >>> figure, axes = new_figure(1, 2)
    >>> axes.shape
    (1, 2)
    """
    figure = Picture(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.locator_params(nbins=5)  # a tick costs more time than anything else in a picture
    return figure, axes


@styled
def show_images(images: np.ndarray, titles: Sequence[str] = (), title: str = "") -> Picture:
    """Return a grid of images.

    Parameters
    ----------
    images : ``(N, H, W)`` or ``(N, C, H, W)`` with C 1 or 3; uint8, or float in [0, 1].
    titles : one short text an image.

    Examples
    --------
    >>> figure = show_images(np.zeros((3, 28, 28), dtype=np.uint8), titles=["a", "b", "c"])
    """
    images = np.asarray(images)
    figure, axes = _figure_of_panels(len(images), most=8, row=9 / min(8, len(images)), rest=0.5)
    for i, (ax, image) in enumerate(zip(axes, images, strict=True)):
        ax.axis("off")
        _draw_image(ax, image)
        if i < len(titles):
            ax.set_title(titles[i], fontsize=11)
    if title:
        figure.suptitle(title)
    return figure


def _set_titles(axes: Sequence[Any], *titles: str, **look: Any) -> None:
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title, **look)


def _hide_ticks(ax: Any) -> None:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)


@styled
def _figure_of_panels(panels: int, most: int, row: float, rest: float = 0, **options: Any) -> tuple[Picture, list]:
    """Return a figure for so many panels, at most `most` in a row of `row` inches, and their axes."""
    columns = min(most, panels)
    rows = -(-panels // columns)
    figure, axes = new_figure(rows, columns, height=row * rows + rest, **options)
    for ax in axes.flat[panels:]:
        ax.axis("off")
    return figure, list(axes.flat[:panels])


def _legend_below(figure: Picture, columns: int = 4) -> None:
    """Draw one legend for all panels, each label once."""
    shown = {label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=columns)


def _draw_image(ax: Any, image: np.ndarray) -> None:
    """Draw one image, ``(H, W)`` or ``(C, H, W)``, uint8 or float in [0, 1], on `ax` without ticks."""
    image = np.asarray(image)
    if image.ndim == 3:
        image = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    top = 255 if image.dtype == np.uint8 else 1
    ax.imshow(image, cmap="gray", vmin=0, vmax=top)
    _hide_ticks(ax)


@styled
def plot_history(history: History) -> Picture:
    """Return loss, validation accuracy and, for a quantized model, every alpha over the epochs.

    Examples
    --------
    >>> from qsal_helpers.training import History
    >>> figure = plot_history(History(loss=[1.0, 0.5], validation_accuracy=[0.7, 0.8], best_epoch=2))
    """
    panels = 3 if history.alphas else 2
    figure, axes = new_figure(1, panels, height=3.2)
    epochs = np.arange(1, history.epochs + 1)
    loss, accuracy, *alphas = axes[0]
    loss.plot(epochs, history.loss, "o-", color=COLOURS["plain"])
    loss.set(title="Training loss", xlabel="epoch", ylabel="loss (nats)")
    accuracy.plot(epochs, np.multiply(history.validation_accuracy, 100), "o-", color=COLOURS["plain"])
    if history.best_epoch:
        accuracy.axvline(history.best_epoch, color=COLOURS["random"], linestyle="--", label="weights kept")
        accuracy.legend(loc="lower right")
    accuracy.set(title="Validation accuracy", xlabel="epoch", ylabel="correct (%)")
    for ax in alphas:
        for i, (name, values) in enumerate(history.alphas.items()):
            colour = matplotlib.colormaps["viridis"](i / len(history.alphas))
            ax.plot(epochs, values, "o-", label=name, color=colour)
        ax.set(title="PACT's clips", xlabel="epoch", ylabel="alpha", ylim=(0, None))
        if len(history.alphas) <= 6:
            ax.legend(fontsize=10)
    for ax in axes.flat:
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    return figure


# ---------------------------------------------------------------- parts that several lessons draw


def _draw_map(ax: Any, saliency: np.ndarray, top: float | None = None, signed: bool | None = None) -> Any:
    """Draw a saliency map on `ax` and return the picture, which `Figure.colorbar` takes; bright pixels matter most.

    Parameters
    ----------
    saliency : ``(H, W)``.
    top : the value of the last colour. By default the map's own 99th percentile, so that maps are compared by their
        shape and not by their size.
    signed : whether the colours diverge from white at 0; by default, if the map holds negative values.
    """
    saliency = np.asarray(saliency)
    signed = bool((saliency < 0).any()) if signed is None else signed
    top = max(float(np.quantile(np.abs(saliency), 0.99)) if top is None else float(top), 1e-12)
    colours = SIGNED_MAP_COLOURS if signed else MAP_COLOURS
    picture = ax.imshow(saliency, cmap=colours, vmin=-top if signed else 0, vmax=top)
    _hide_ticks(ax)
    return picture


def _draw_prediction(ax: Any, probabilities: np.ndarray, class_names: Sequence[str], colour: str, label: int) -> None:
    """Draw a bar a class; the name of the right class, number `label`, is bold."""
    ax.barh(range(len(class_names)), np.multiply(probabilities, 100), color=colour)
    ax.set_yticks(range(len(class_names)), class_names, fontsize=11)
    ax.get_yticklabels()[label].set_fontweight("bold")
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.set(xlim=(0, 100), xticks=(0, 50, 100), xlabel="probability (%)")


def _draw_levels(ax: Any, levels: np.ndarray) -> None:
    """Draw the levels of a grid as vertical lines over the whole height; of more than 64 only the two ends."""
    levels = np.unique(levels)
    drawn, label = (levels, "levels") if len(levels) <= 64 else (levels[[0, -1]], "ends of the levels")
    # One collection of lines is drawn several times faster than one line object a level.
    heights = ax.get_xaxis_transform()
    ax.vlines(drawn, 0, 1, color=COLOURS["w2a2"], linewidth=1, alpha=0.8, transform=heights, label=label)


@styled
def plot_answer(x: np.ndarray, answer: np.ndarray, wanted: np.ndarray) -> Picture:
    """Return a student's values over x beside what they should be.

    Parameters
    ----------
    x, answer, wanted : ``(N,)``; x is sorted.

    Examples
    --------
    >>> x = np.linspace(-1, 1, 99)
    >>> figure = plot_answer(x, x, x.round())
    """
    figure, [[ax]] = new_figure(width=6, height=2.8)
    ax.plot(x, wanted, color=COLOURS["data"], linewidth=6, label="should be")
    ax.plot(x, answer, color=COLOURS["w2a2"], label="yours")
    ax.set(title="Your answer", xlabel="x", ylabel="value")
    ax.legend()
    return figure


# ---------------------------------------------------------------- lesson 00


@styled
def plot_explanations(
    image: np.ndarray,
    probabilities: dict[str, np.ndarray],
    maps: dict[str, np.ndarray],
    class_names: Sequence[str],
    label: int,
) -> Picture:
    """Return an image and, for each network in a row, its prediction and its saliency map.

    Parameters
    ----------
    image : ``(1, H, W)`` or ``(H, W)``, uint8.
    probabilities : a network's name -> ``(classes,)``, each from 0 to 1.
    maps : the same names -> ``(H, W)``.
    label : number of the right class.

    Examples
    --------
    >>> half = np.array([0.5, 0.5])
    >>> figure = plot_explanations(np.zeros((8, 8), np.uint8), {"fp32": half}, {"fp32": np.eye(8)}, ["bag", "shirt"], 0)
    """
    figure, axes = new_figure(len(probabilities), 3, height=3.3 * len(probabilities))
    for row, name in zip(axes, probabilities, strict=True):
        _draw_image(row[0], image)
        _draw_prediction(row[1], probabilities[name], class_names, COLOURS.get(name, COLOURS["data"]), label)
        _draw_map(row[2], maps[name])
        _set_titles(row, f"image: {class_names[label]}", f"{name}: prediction", f"{name}: saliency map")
    return figure


@styled
def plot_prediction(
    image: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], label: int, title: str
) -> Picture:
    """Return an image beside a network's probabilities for it.

    Examples
    --------
    >>> figure = plot_prediction(np.zeros((8, 8), np.uint8), np.array([0.1, 0.9]), ["bag", "shirt"], 1, "8 bits")
    """
    figure, axes = new_figure(1, 2, width_ratios=(1, 2))
    _draw_image(axes[0, 0], image)
    _draw_prediction(axes[0, 1], probabilities, class_names, COLOURS["data"], label)
    _set_titles(axes[0], f"image: {class_names[label]}", title)
    return figure


# ---------------------------------------------------------------- lesson 01


@styled
def plot_number_lines(low: float, high: float, bits: Sequence[int] = (2, 3, 4)) -> Picture:
    """Return one number line for each bit width with the levels of its grid from `low` to `high`.

    Examples
    --------
    >>> figure = plot_number_lines(-1, 1)
    """
    figure, [[ax]] = new_figure(height=0.7 * len(bits) + 1.3)
    for row, b in enumerate(bits):
        levels = np.linspace(low, high, 2**b)
        ax.hlines(row, low, high, color=COLOURS["random"], linewidth=1)
        ax.plot(levels, np.full(2**b, row), "o", color=COLOURS["w2a2"])
    ax.set_yticks(range(len(bits)), [f"{b} bits: {2**b} levels" for b in bits])
    ax.set(title="Each bit doubles the number of levels", xlabel="value", ylim=(len(bits) - 0.5, -0.5))
    return figure


@styled
def plot_rounding(x: np.ndarray, quantized: np.ndarray) -> Picture:
    """Return quantized value against value, and the rounding error against value.

    Parameters
    ----------
    x : sorted values, ``(N,)``.
    quantized : what the quantizer makes of them, ``(N,)``.

    Examples
    --------
    >>> x = np.linspace(-1, 1, 99)
    >>> figure = plot_rounding(x, x.round())
    """
    figure, [[stairs, saw]] = new_figure(1, 2)
    stairs.plot(x, x, "--", color=COLOURS["random"], linewidth=1.5, label="no rounding")
    stairs.plot(x, quantized, color=COLOURS["w2a2"], linewidth=2, label="quantized")
    stairs.set(title="Value in, level out", xlabel="value", ylabel="quantized value")
    stairs.legend()
    levels = np.unique(quantized)
    if len(levels) <= 8:
        stairs.set_yticks(levels, [f"{level:.3g}" for level in levels])
    saw.plot(x, np.subtract(quantized, x), color=COLOURS["w2a2"], linewidth=2)
    saw.set(title="The error", xlabel="value", ylabel="quantized value - value")
    return figure


@styled
def plot_error_density(errors: dict[str, np.ndarray]) -> Picture:
    """Return a histogram of each set of rounding errors beside the uniform density that theory expects.

    Parameters
    ----------
    errors : a title -> rounding errors in units of one step, ``(N,)``.

    Examples
    --------
    >>> figure = plot_error_density({"4 bits": np.linspace(-0.5, 0.5, 100)})
    """
    figure, axes = new_figure(1, len(errors), sharey=True)
    for ax, (title, values) in zip(axes[0], errors.items(), strict=True):
        ax.hist(values, bins=48, range=(-0.6, 0.6), density=True, color=COLOURS["data"], label="measured")
        ax.plot([-0.5, -0.5, 0.5, 0.5], [0, 1, 1, 0], color="black", linewidth=2, label="theory: uniform")
        ax.set(title=title, xlabel="error (steps)", xticks=(-0.5, 0, 0.5))
    axes[0, 0].set(ylabel="density (1 / step)", ylim=(0, 1.2 * max(ax.get_ylim()[1] for ax in axes[0])))
    axes[0, -1].legend(loc="upper right")
    return figure


@styled
def plot_decibels(bits: Sequence[int], measured: dict[str, Sequence[float]]) -> Picture:
    """Return signal-to-noise ratios in dB over the bits, beside the theory for a uniform signal.

    Parameters
    ----------
    measured : a signal's name -> one ratio for each entry of `bits`.

    Examples
    --------
    >>> figure = plot_decibels([2, 3], {"uniform": [9.5, 16.9]})
    """
    figure, [[ax]] = new_figure(height=4)
    bits = np.asarray(bits)
    ax.plot(bits, 20 * np.log10(2.0**bits - 1), color="black", linewidth=2, label="theory, uniform signal")
    colours = [COLOURS["data"], COLOURS["accent"], COLOURS["mixed-4/2"]]
    for (name, values), colour, marker in zip(measured.items(), colours, "os^", strict=False):
        ax.plot(bits, values, marker, color=colour, markersize=8, label=f"measured, {name}")
    ax.set(title="Each bit buys about 6 dB", xlabel="bits", ylabel="signal-to-noise ratio (dB)", xticks=bits)
    ax.legend()
    return figure


@styled
def plot_clipping(
    w: np.ndarray, bits: int, clip: float, clips: np.ndarray, rounding: np.ndarray, clipping: np.ndarray
) -> Picture:
    """Return the values with a grid from -`clip` to `clip`, and the two errors over every clip that was tried.

    Parameters
    ----------
    w : values, ``(N,)``.
    bits, clip : the grid that is drawn.
    clips, rounding, clipping : ``(M,)``; the mean squared errors of rounding and of clipping at each clip.

    Examples
    --------
    >>> clips = np.array([0.5, 1.0])
    >>> figure = plot_clipping(np.linspace(-1, 1, 99), 2, 0.5, clips, clips**2 / 27, np.array([0.04, 0.0]))
    """
    figure, [[counts, errors]] = new_figure(1, 2)
    _draw_weights(counts, w, np.linspace(-clip, clip, 2**bits))
    _draw_errors(errors, clips, rounding, clipping, clip)
    _set_titles((counts, errors), f"{2**bits} levels up to ±{clip:.2f}", f"Error at {bits} bits")
    return figure


def _draw_errors(
    ax: Any, clips: np.ndarray, rounding: np.ndarray, clipping: np.ndarray, clip: float, name: str = "clip"
) -> None:
    """Draw the squared errors of rounding and clipping over the clip, a star at the least sum, a line at `clip`."""
    total = np.add(rounding, clipping)
    ax.plot(clips, rounding, "--", color=COLOURS["data"], linewidth=2, label="rounding")
    ax.plot(clips, clipping, ":", color=COLOURS["accent"], linewidth=2, label="clipping")
    ax.plot(clips, total, color="black", linewidth=2, label="both")
    best = int(np.argmin(total))
    ax.plot(clips[best], total[best], "*", color="black", markersize=14, label=f"best {name} {clips[best]:.2f}")
    ax.axvline(clip, color=COLOURS["w2a2"], linewidth=1.5)
    ax.set(xlabel=name, ylabel="mean squared error", ylim=(0, max(6 * total[best], 1.1 * total[-1])))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=10)


def _draw_weights(ax: Any, w: np.ndarray, levels: np.ndarray) -> None:
    """Draw a histogram of weights with the levels of a grid."""
    ax.hist(np.ravel(w), bins=80, histtype="stepfilled", color=COLOURS["data"])
    _draw_levels(ax, levels)
    ax.grid(False)
    ax.locator_params(axis="x", nbins=5)
    ax.set(xlabel="weight", ylabel="how many")


@styled
def plot_channels(largest: np.ndarray, errors: dict[str, np.ndarray]) -> Picture:
    """Return the largest weight of each output channel, and each channel's error under one and under many scales.

    Parameters
    ----------
    largest : ``(channels,)``.
    errors : "one scale" and the like -> mean squared error of each channel, ``(channels,)``.

    Examples
    --------
    >>> figure = plot_channels(np.array([1.0, 2.0]), {"one scale": np.ones(2), "a scale a channel": np.ones(2) / 2})
    """
    order = np.argsort(largest)
    figure, [[sizes, each]] = new_figure(1, 2)
    sizes.bar(range(len(largest)), largest[order], color=COLOURS["data"], width=1)
    sizes.set(title="Channels differ in size", xlabel="channel, the smallest first", ylabel="largest |weight|")
    for (name, values), colour, marker in zip(errors.items(), (COLOURS["accent"], "black"), "o^", strict=False):
        each.semilogy(values[order], marker, color=colour, markersize=5, label=name)
    each.set(title="Error of each", xlabel="channel, the smallest first", ylabel="mean squared error")
    _legend_below(figure)
    return figure


@styled
def plot_accuracy(bits: Sequence[int], accuracies: dict[str, Sequence[float]], reference: float) -> Picture:
    """Return accuracy over the bits, a line for each way to quantize, beside the float network.

    Parameters
    ----------
    accuracies : a name -> fractions correct, one for each entry of `bits`; a shorter one covers the first entries.
    reference : fraction correct of the float network.

    Examples
    --------
    >>> figure = plot_accuracy([8, 2], {"weights": [0.9, 0.3]}, reference=0.9)
    """
    figure, [[ax]] = new_figure(height=4)
    colours = [COLOURS["w4a4"], COLOURS["accent"], COLOURS["w2a2"], COLOURS["mixed-4/2"]]
    for i, ((name, values), colour, marker) in enumerate(zip(accuracies.items(), colours, "os^D", strict=False)):
        # Each line is thinner than the one before, so that lines on top of each other can all be seen.
        look = {"color": colour, "marker": marker, "markersize": 11 - 2 * i, "linewidth": 5 - 1.1 * i}
        ax.plot(bits[: len(values)], np.multiply(values, 100), label=name, **look)
    ax.axhline(100 * reference, color=COLOURS["fp32"], linestyle="--", linewidth=1.5, label="float network")
    ax.set(title="Quantized after training", xlabel="bits", ylabel="test accuracy (%)", xticks=bits, ylim=(0, 100))
    ax.invert_xaxis()
    ax.legend(loc="lower left")
    return figure


@styled
def plot_bars(values: dict[str, float], title: str, ylabel: str, reference: float | None = None) -> Picture:
    """Return a bar for each entry, and a dashed line at `reference` if there is one.

    Examples
    --------
    >>> figure = plot_bars({"conv1": 80.0, "fc2": 10.0}, title="Accuracy", ylabel="correct (%)", reference=90.0)
    """
    figure, [[ax]] = new_figure()
    bars = ax.bar(list(values), list(values.values()), color=COLOURS["data"])
    ax.bar_label(bars, fmt="%.1f", padding=2, bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5})
    ax.margins(y=0.12 if reference is None else 0.25)
    ax.tick_params(axis="x", labelsize=10)
    if reference is not None:
        label = f"float network {reference:.1f}"
        ax.axhline(reference, color=COLOURS["fp32"], linestyle="--", linewidth=1.5, label=label)
        ax.legend(loc="upper right")
    ax.grid(False, axis="x")
    ax.set(title=title, ylabel=ylabel)
    return figure


@styled
def plot_bits(w: np.ndarray, quantized: np.ndarray, bits: int, accuracies: dict[int, float]) -> Picture:
    """Return, for one bit width, a layer's weights with their levels, the errors, and the network's accuracy.

    Parameters
    ----------
    w, quantized : a layer's weights before and after, of the same shape; the grid reaches to the largest weight and
        has a zero, so it has ``2**bits - 1`` levels.
    accuracies : every bit width -> fraction correct of the whole network.

    Examples
    --------
    >>> w = np.linspace(-1, 1, 99)
    >>> figure = plot_bits(w, w.round(), 2, {2: 0.3, 3: 0.8})
    """
    figure, [[counts, errors, line]] = new_figure(1, 3)
    largest, levels = float(np.abs(quantized).max()), 2**bits - 1
    _draw_weights(counts, w, np.linspace(-largest, largest, levels))
    counts.set_title(f"{bits} bits: {len(np.unique(quantized))} of {levels} levels in use", fontsize=13)
    error = np.ravel(np.subtract(quantized, w))
    widest = float(np.abs(w).max()) / 2
    errors.hist(error, bins=81, range=(-widest, widest), histtype="stepfilled", color=COLOURS["accent"])
    errors.locator_params(axis="x", nbins=4)
    errors.set(title=f"error: {np.sqrt(np.mean(error**2)):.4f} rms", xlabel="quantized - weight", ylabel="how many")
    line.plot(list(accuracies), [100 * a for a in accuracies.values()], "o-", color=COLOURS["random"])
    line.plot(bits, 100 * accuracies[bits], "o", color=COLOURS["w2a2"], markersize=12)
    line.set(title=f"accuracy: {accuracies[bits]:.1%}", xlabel="bits", ylabel="test accuracy (%)", ylim=(0, 100))
    line.invert_xaxis()
    return figure


@styled
def plot_gradients(x: np.ndarray, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Picture:
    """Return functions above their gradients, one column each.

    Parameters
    ----------
    x : ``(N,)``.
    curves : a title -> (values, gradients), each ``(N,)``.

    Examples
    --------
    >>> x = np.linspace(-1, 1, 9)
    >>> figure = plot_gradients(x, {"identity": (x, np.ones(9))})
    """
    figure, axes = new_figure(2, len(curves), height=4.6, sharex=True, sharey="row")
    for column, (title, (values, gradients)) in zip(axes.T, curves.items(), strict=True):
        column[0].plot(x, values, color=COLOURS["w2a2"], linewidth=2)
        column[0].set_title(title)
        column[1].plot(x, gradients, color=COLOURS["w4a4"], linewidth=2)
        column[1].set(xlabel="x", ylim=(-0.2, 1.3))
    axes[0, 0].set_ylabel("value")
    axes[1, 0].set_ylabel("gradient that\nautograd returns")
    return figure


@styled
def plot_paths(paths: dict[str, np.ndarray], levels: np.ndarray, target: float) -> Picture:
    """Return how a latent number and its quantized value move while they are trained towards `target`.

    Parameters
    ----------
    paths : a title -> ``(steps, 2)``: the latent number and its quantized value.
    levels : ``(L,)``, some below and some above the target.

    Examples
    --------
    >>> figure = plot_paths({"round": np.zeros((5, 2))}, np.array([-1.0, 0.0, 1.0]), target=0.3)
    """
    figure, axes = new_figure(1, len(paths), height=4, sharey=True)
    border = (max(level for level in levels if level <= target) + min(level for level in levels if level > target)) / 2
    for ax, (title, path) in zip(axes[0], paths.items(), strict=True):
        ax.grid(False)
        for i, level in enumerate(levels):
            ax.axhline(level, color=COLOURS["random"], linewidth=0.8, label="" if i else "levels")
        ax.axhline(target, color="black", linestyle="--", linewidth=1.5, label="target")
        ax.axhline(border, color=COLOURS["accent"], linestyle=":", linewidth=1.5, label="border of two levels")
        ax.plot(path[:, 0], color=COLOURS["w4a4"], linewidth=2, label="latent number")
        ax.step(range(len(path)), path[:, 1], color=COLOURS["w2a2"], linewidth=2, where="post", label="quantized")
        ax.set(title=title, xlabel="training step")
    axes[0, 0].set_ylabel("value")
    _legend_below(figure, columns=5)
    return figure


# ---------------------------------------------------------------- lesson 02


def _draw_activations(ax: Any, x: np.ndarray, bits: int, alpha: float) -> None:
    """Draw a histogram of positive activations on a logarithmic scale, with the levels from 0 to `alpha`."""
    x = np.ravel(x)
    ax.hist(x[x > 0], bins=60, color=COLOURS["data"], histtype="stepfilled")  # one shape draws faster than 60 bars
    ax.axvspan(alpha, max(x.max(), alpha), color=COLOURS["accent"], alpha=0.2, linewidth=0, label="clipped")
    _draw_levels(ax, np.linspace(0, alpha, 2**bits))
    ax.grid(False)
    ax.set(xlabel="activation", ylabel="how many", yscale="log")
    ax.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.yaxis.set_major_formatter("{x:,.0f}")  # powers of ten in mathematical type take 20 ms
    ax.legend(loc="upper right")


@styled
def plot_grids(x: np.ndarray, bits: int, alphas: dict[str, float]) -> Picture:
    """Return the same activations under several clips, side by side.

    Parameters
    ----------
    alphas : a title -> where the levels end.

    Examples
    --------
    >>> figure = plot_grids(np.linspace(0, 5, 99), 2, {"all": 5.0, "clipped": 2.0})
    """
    figure, axes = new_figure(1, len(alphas), sharey=True)
    for ax, (title, alpha) in zip(axes[0], alphas.items(), strict=True):
        _draw_activations(ax, x, bits, alpha)
        ax.set_title(f"{title}: {2**bits} levels up to {alpha:.2f}")
        ax.label_outer()
    return figure


@styled
def plot_slopes(alpha: float, nudge: float) -> Picture:
    """Return the clip before and after alpha is nudged, and its two slopes, by x and by alpha.

    Examples
    --------
    >>> figure = plot_slopes(alpha=2.0, nudge=0.3)
    """
    figure, axes = new_figure(1, 3)
    x = np.linspace(-1, 2 * alpha, 601)
    values, by_x, by_alpha = axes[0]
    values.plot(x, x.clip(0, alpha + nudge), "--", color=COLOURS["accent"], label=f"alpha = {alpha + nudge:g}")
    values.plot(x, x.clip(0, alpha), color=COLOURS["plain"], label=f"alpha = {alpha:g}")
    values.set(title="The clip", ylabel="y")
    by_x.plot(x, (x > 0) & (x < alpha), color=COLOURS["plain"])
    by_x.set(title="Slope by x", ylabel="dy/dx")
    by_alpha.plot(x, x >= alpha, color=COLOURS["accent"])
    by_alpha.set(title="Slope by alpha", ylabel="dy/d alpha")
    for ax in axes[0]:
        ax.axvline(alpha, color=COLOURS["random"], linewidth=1, linestyle=":")
        ax.set_xlabel("x")
    values.legend(loc="lower right", fontsize=11)
    return figure


@styled
def plot_pact(
    x: np.ndarray, bits: int, alpha: float, alphas: np.ndarray, rounding: np.ndarray, clipping: np.ndarray
) -> Picture:
    """Return the PACT function, a layer's activations with its levels, and the errors at every alpha that was tried.

    Parameters
    ----------
    x : activations, ``(N,)``.
    bits, alpha : the function that is drawn.
    alphas, rounding, clipping : ``(M,)``; the mean squared errors of rounding and of clipping at each alpha.

    Examples
    --------
    >>> alphas = np.array([1.0, 2.0])
    >>> figure = plot_pact(np.linspace(0, 5, 99), 2, 1.5, alphas, alphas**2 / 108, np.array([0.5, 0.1]))
    """
    figure, [[function, counts, errors]] = new_figure(1, 3, width=11, height=3.9)
    top = float(alphas[-1])
    line = np.linspace(-0.1 * top, top, 801)
    step = alpha / (2**bits - 1)
    function.plot(line, line.clip(0), "--", color=COLOURS["random"], linewidth=1.5, label="ReLU")
    function.plot(line, np.round(line.clip(0, alpha) / step) * step, color=COLOURS["w2a2"], label="PACT")
    room = (-0.05 * top, 1.06 * top)
    function.set(title=f"PACT, {bits} bits, alpha {alpha:.2f}", xlabel="input x", ylabel="output", ylim=room)
    function.legend(loc="upper left")
    _draw_activations(counts, x, bits, alpha)
    counts.set(title=f"{np.mean(x[x > 0] > alpha):.1%} of the positive clipped", xlim=(-0.02 * float(x.max()), None))
    counts.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=10)
    _draw_errors(errors, alphas, rounding, clipping, alpha, name="alpha")
    errors.set(title=f"Error at {bits} bits")
    return figure


@styled
def plot_points(values: dict[str, Sequence[float]], title: str, reference: float | None = None) -> Picture:
    """Return accuracies, a column an entry: a point a seed, a bar at their mean, and a dashed line at `reference`.

    Examples
    --------
    >>> figure = plot_points({"fp32": [90.0, 89.4], "w2a2": [88.0, 88.5]}, "Two seeds", reference=90.0)
    """
    figure, [[ax]] = new_figure()
    for i, (name, points) in enumerate(values.items()):
        mean = float(np.mean(points))
        ax.plot([i] * len(points), points, "o", color=COLOURS.get(name, COLOURS["plain"]), alpha=0.7, markersize=8)
        ax.plot([i - 0.2, i + 0.2], [mean, mean], color="black", linewidth=2)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        ax.text(i + 0.25, mean, f"{mean:.1f}", va="center", bbox=box)
    if reference is not None:
        ax.axhline(reference, color=COLOURS["fp32"], linestyle="--", linewidth=1.2, label="float network, mean")
        ax.legend(loc="best")
    ax.margins(y=0.15)
    ax.grid(False, axis="x")
    ax.set(title=f"{title} (points: seeds, bar: mean)", ylabel="test accuracy (%)", xlim=(-0.5, len(values) - 0.3))
    ax.set_xticks(range(len(values)), list(values))
    return figure


@styled
def plot_alphas(paths: dict[str, tuple[Sequence[float], Sequence[float]]], title: str, xlabel: str) -> Picture:
    """Return the paths of alphas while they learn.

    Parameters
    ----------
    paths : a name -> (times, alphas).

    Examples
    --------
    >>> figure = plot_alphas({"relu1": ([0, 50], [2.0, 1.9])}, "Alphas", "training step")
    """
    figure, [[ax]] = new_figure()
    for i, (name, (times, alphas)) in enumerate(paths.items()):
        colour = PALETTE[("black", "blue", "vermilion", "green", "purple")[i % 5]]
        ax.plot(times, alphas, "osD^v"[i % 5] + "-", markersize=4, color=colour, label=name)
    ax.set(title=title, xlabel=xlabel, ylabel="alpha", ylim=(0, None))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def plot_weight_grids(grids: dict[str, tuple[np.ndarray, np.ndarray]]) -> Picture:
    """Return histograms of weights with the levels that each weight quantizer puts on them.

    Parameters
    ----------
    grids : a title -> (the values that are rounded, the values after rounding), each of any shape.

    Examples
    --------
    >>> w = np.linspace(-1, 1, 99)
    >>> figure = plot_weight_grids({"rounded": (w, w.round()), "halves": (w, np.round(2 * w) / 2)})
    """
    figure, axes = new_figure(1, len(grids))
    for ax, (title, (w, quantized)) in zip(axes[0], grids.items(), strict=True):
        _draw_weights(ax, w, quantized)
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6))
        ax.set(title=title, xlabel="weight (lines: the levels)")
    return figure


# ---------------------------------------------------------------- saliency maps and their measures (lessons 03 to 06)


def series_styles(names: Collection[str]) -> list[dict[str, Any]]:
    """Return a colour, a line style and a mark for each name; the first word of a name sets the colour.

    Up to four names that share a colour differ in their lines, so "w2a2" and "w2a2 guided" are kin and can be told
    apart. Seven names in a row have seven marks, which tell them apart without colours, too. A first word that has no
    colour of its own takes one that the others leave.

    Examples
    --------
    >>> [style["linestyle"] for style in series_styles(["fp32", "fp32 twin", "w2a2"])]
    ['-', '--', '-']
    """
    known = COLOURS | METHOD_COLOURS
    taken = {known.get(name.split()[0]) for name in names}
    others = itertools.cycle([c for c in METHOD_COLOURS.values() if c not in taken] or METHOD_COLOURS.values())
    styles: list[dict[str, Any]] = []
    for name in names:
        colour = known.get(name.split()[0]) or next(others)
        kin = sum(style["color"] == colour for style in styles)
        marker = "osD^vPX"[len(styles) % 7]
        styles.append({"color": colour, "linestyle": ("-", "--", ":", "-.")[kin % 4], "marker": marker})
    return styles


@styled
def saliency_grid(
    images: np.ndarray,
    maps: dict[str, np.ndarray],
    shared: str = "row",
    row_titles: Sequence[str] = (),
    unit: str = "saliency",
    title: str = "",
) -> Picture:
    """Return a row an image: the image, then its map under each name, with colour bars.

    Parameters
    ----------
    images : ``(N, H, W)`` or ``(N, C, H, W)``, uint8, or float in [0, 1].
    maps : a column's name, such as a model's or a method's -> ``(N, H, W)``.
    shared : which maps share one colour scale, and so can be compared by their size:

        - "row": the maps of one image; for several models under one method.
        - "column": the maps under one name; for several methods, whose units differ.
        - "all": all of them.
        - "map": none. Each map is shown as a share of its own largest values; only shapes can be compared.

        A scale ends at the 99th percentile of the maps that share it.
    row_titles : one short text an image.
    unit : what the colour bars count.

    Examples
    --------
    >>> maps = np.random.default_rng(0).random((2, 8, 8))
    >>> figure = saliency_grid(np.zeros((2, 8, 8), np.uint8), {"fp32": maps, "w2a2": maps / 2}, shared="row")
    """
    if shared not in ("row", "column", "all", "map"):
        raise ValueError(f"shared must be 'row', 'column', 'all' or 'map'; got {shared!r}")
    rows, columns = len(images), len(maps) + 1
    stack = np.stack([np.asarray(m, dtype=float) for m in maps.values()], axis=1)  # (N, names, H, W)
    axis = {"row": (1, 2, 3), "column": (0, 2, 3), "all": None, "map": (2, 3)}[shared]
    tops = np.broadcast_to(np.quantile(np.abs(stack), 0.99, axis=axis, keepdims=True), (rows, columns - 1, 1, 1))
    if shared == "map":
        stack, tops = stack / np.maximum(tops, 1e-12), np.ones_like(tops)
    side = min(7.8 / columns, 2)
    figure, axes = new_figure(rows, columns, width=side * columns + 1.2, height=side * rows + 0.9)
    pictures = np.empty((rows, columns - 1), dtype=object)
    for i in range(rows):
        _draw_image(axes[i, 0], images[i])
        axes[i, 0].set_ylabel(row_titles[i] if i < len(row_titles) else "", fontsize=11)
        for j in range(columns - 1):
            pictures[i, j] = _draw_map(axes[i, j + 1], stack[i, j], tops[i, j, 0, 0], bool((stack < 0).any()))
    for ax, name in zip(axes[0], ["image", *maps], strict=True):
        ax.set_title(name.replace("_", " ").replace(" ", "\n", 1) if columns > 5 else name, fontsize=11)
    _add_colour_bars(figure, axes[:, 1:], pictures, shared, unit)
    if title:
        figure.suptitle(title)
    return figure


def _add_colour_bars(figure: Picture, axes: np.ndarray, pictures: np.ndarray, shared: str, unit: str) -> None:
    def add(picture: Any, beside: np.ndarray, label: str, **options: Any) -> None:
        bar = figure.colorbar(picture, ax=list(beside.flat), label=label, extend="max", **options)
        bar.locator = matplotlib.ticker.MaxNLocator(2 if shared == "column" else 4)
        bar.ax.tick_params(labelsize=10)

    if shared == "row":
        for i in range(len(axes)):
            add(pictures[i, 0], axes[i], unit if i == len(axes) // 2 else "", pad=0.01)
    elif shared == "column":
        for j in range(axes.shape[1]):
            add(pictures[0, j], axes[:, j], "", location="bottom", shrink=0.9, pad=0.01)
    else:
        label = f"{unit} (share of the map's 99th percentile)" if shared == "map" else unit
        add(pictures[0, 0], axes, label, pad=0.01, aspect=30)


@styled
def curves_with_intervals(
    panels: dict[str, dict[str, np.ndarray]], x: np.ndarray, xlabel: str, ylabel: str, log: bool = False
) -> Picture:
    """Return mean curves with bands: the 95 % interval of the mean over the images.

    Parameters
    ----------
    panels : a panel's title -> a curve's name -> one curve an image, ``(N, S)``. NaN is left out.
    x : ``(S,)``.
    log : a logarithmic x axis.

    Examples
    --------
    >>> curves = np.random.default_rng(0).random((20, 3))
    >>> figure = curves_with_intervals({"deletion": {"gradient": curves}}, [0, 0.5, 1], "deleted", "probability")
    """
    figure, axes = new_figure(1, len(panels), height=4.4, sharey=True)
    for ax, (title, curves) in zip(axes[0], panels.items(), strict=True):
        _draw_curves(ax, curves, x)
        ax.set(title=title, xlabel=xlabel)
        if log:
            ax.set_xscale("log")
    axes[0, 0].set_ylabel(ylabel)
    _legend_below(figure)
    return figure


def _draw_curves(ax: Any, curves: dict[str, np.ndarray], x: np.ndarray) -> None:
    """Draw mean curves with the 95 % interval of the mean over the rows of each, ``(N, S)``."""
    for (name, values), style in zip(curves.items(), series_styles(curves), strict=True):
        mean = np.nanmean(values, axis=0)
        error = np.array([_half_interval(column) for column in np.transpose(values)])
        every = -(-len(mean) // 8)  # a mark at each point would hide a long line
        ax.plot(x, mean, label=name.replace("_", " "), linewidth=2, markevery=every, markersize=6, **style)
        ax.fill_between(x, mean - error, mean + error, color=style["color"], alpha=0.2, linewidth=0)


def _half_interval(values: np.ndarray) -> float:
    """Return half the width of the 95 % interval of the mean of some numbers; NaN is left out."""
    values = np.asarray(values, dtype=float)
    low, high = interval(values[np.isfinite(values)])
    return (high - low) / 2


@styled
def distributions(
    panels: dict[str, dict[str, np.ndarray]],
    xlabels: Sequence[str],
    log: bool = False,
    sharex: bool = False,
) -> Picture:
    """Return, for each panel, how a number is spread over the images: a row a name.

    A dot is the median, a thick line the middle half of the images, a thin one the middle nine tenths.
    Where there is a "random", its median is a dashed line.

    Parameters
    ----------
    panels : a panel's title -> a name -> one number an image, ``(N,)``. NaN is left out.
    xlabels : what the numbers of each panel are, with the unit or the direction that is good.
    log : logarithmic axes.
    sharex : one range for all panels.

    Examples
    --------
    >>> values = np.linspace(0, 1, 20)
    >>> figure = distributions({"Focus": {"gradient": values, "random": values / 2}}, ["Gini index"])
    """
    most = max(len(groups) for groups in panels.values())
    figure, axes = _figure_of_panels(len(panels), 2, 0.32 * most + 1.5, sharey="row", sharex=sharex)
    for ax, (title, groups), xlabel in zip(axes, panels.items(), xlabels, strict=True):
        _draw_spreads(ax, groups)
        ax.set(title=title, xlabel=xlabel)
        if log:
            ax.set_xscale("log")
        else:
            ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
    return figure


def _draw_spreads(ax: Any, groups: dict[str, np.ndarray]) -> None:
    for row, (values, style) in enumerate(zip(groups.values(), series_styles(groups), strict=True)):
        p05, p25, p50, p75, p95 = np.nanquantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
        ax.hlines(row, p05, p95, color=style["color"], linewidth=1.5)
        ax.hlines(row, p25, p75, color=style["color"], linewidth=8, alpha=0.6)
        ax.plot(p50, row, "o", color=style["color"], markeredgecolor="white", markersize=9)
    for name, values in groups.items():
        if name.split()[0] == "random":
            ax.axvline(np.nanmedian(values), color=COLOURS["random"], linestyle="--", linewidth=1.5, zorder=0)
    ax.set_yticks(range(len(groups)), [name.replace("_", " ") for name in groups])
    ax.set_ylim(len(groups) - 0.5, -0.5)


# ---------------------------------------------------------------- lesson 03


@styled
def plot_method(image: np.ndarray, saliency: np.ndarray, deletion: dict[str, np.ndarray], title: str) -> Picture:
    """Return an image, its saliency map, and how fast the probability falls when its pixels are deleted.

    Parameters
    ----------
    image : ``(1, H, W)`` or ``(H, W)``, uint8.
    saliency : ``(H, W)``.
    deletion : a name -> probabilities from no pixel deleted to all of them, ``(steps + 1,)``.

    Examples
    --------
    >>> curves = {"gradient": np.array([1.0, 0.1]), "random": np.array([1.0, 0.4])}
    >>> figure = plot_method(np.zeros((8, 8), np.uint8), np.eye(8), curves, "gradient")
    """
    figure, [[original, shown, ax]] = new_figure(1, 3, height=3.4, width_ratios=(1, 1, 1.4))
    _draw_image(original, image)
    _draw_map(shown, saliency)
    _set_titles((original, shown), "image", title)
    for (name, curve), style in zip(deletion.items(), series_styles(deletion), strict=True):
        x = np.linspace(0, 100, len(curve))
        ax.plot(x, np.multiply(curve, 100), label=name.replace("_", " "), markersize=5, **style)
    ax.set(title="pixels deleted, most salient first", xlabel="deleted (%)", ylabel="probability (%)", ylim=(0, 102))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=len(deletion), fontsize=10)
    return figure


@styled
def plot_completeness(panels: dict[str, tuple[np.ndarray, np.ndarray]]) -> Picture:
    """Return how a logit changes on the way from black to an image, beside the sum of the gradients on that way.

    Parameters
    ----------
    panels : a model's name -> (the change of the logit, the sum of gradients up to there), each ``(steps + 1,)``.

    Examples
    --------
    >>> way = np.linspace(0, 1, 9)
    >>> figure = plot_completeness({"fp32": (way**2, way**2), "w2a2": (way.round(), way)})
    """
    figure, axes = new_figure(1, len(panels), height=3.8, sharey=True)
    for ax, (name, (change, summed)) in zip(axes[0], panels.items(), strict=True):
        way = np.linspace(0, 100, len(change))
        ax.plot(way, change, color="black", linewidth=2, label="what the logit does")
        ax.plot(way, summed, "--", color=METHOD_COLOURS["integrated_gradients"], linewidth=2, label="gradients summed")
        ax.set(title=name, xlabel="way to the image (%)")
    axes[0, 0].set_ylabel("change of the logit")
    _legend_below(figure)
    return figure


# ---------------------------------------------------------------- lesson 07


@styled
def plot_products(window: np.ndarray, weights: np.ndarray) -> Picture:
    """Return the integers under a filter, the filter's integers and their products, for one input channel.

    Cells below 0 are orange, those above purple.

    Parameters
    ----------
    window, weights : integers, ``(kh, kw)``.

    Examples
    --------
    >>> figure = plot_products(np.array([[0, 3], [1, 2]]), np.array([[1, -1], [-3, 3]]))
    """
    products = np.asarray(window) * np.asarray(weights)
    figure, axes = new_figure(1, 3, height=3.4)
    total = str(products.sum()).replace("-", "−")
    titles = ("integers of the input", "integers of the filter", f"products, sum {total}")
    for ax, numbers, title in zip(axes[0], (window, weights, products), titles, strict=True):
        top = max(1, int(np.abs(numbers).max()))
        ax.imshow(numbers, cmap=SIGNED_MAP_COLOURS, vmin=-1.6 * top, vmax=1.6 * top)
        for (row, column), number in np.ndenumerate(numbers):
            ax.text(column, row, str(number).replace("-", "−"), ha="center", va="center", fontsize=15)
        ax.set_title(title)
        _hide_ticks(ax)
    return figure


@styled
def plot_byte(codes: Sequence[int], bits: int) -> Picture:
    """Return the eight bits of a byte with the numbers that are packed into it, the first in the lowest bits.

    Parameters
    ----------
    codes : ``8 // bits`` integers in two's complement.

    Examples
    --------
    >>> figure = plot_byte([1, -2, 0, -1], bits=2)
    """
    if len(codes) * bits != 8:
        raise ValueError(f"a byte holds {8 // bits} numbers of {bits} bits; got {len(codes)}")
    figure, [[ax]] = new_figure(height=2.5)
    byte = 0
    colours = [COLOURS[name] for name in ("data", "guided", "mixed-4/2", "accent")]
    for place, code in enumerate(codes):
        field = int(code) & (2**bits - 1)
        byte |= field << (place * bits)
        left = 8 - (place + 1) * bits
        ax.barh(0, bits, left=left, color=colours[place % 4], edgecolor="white", linewidth=4, height=1, alpha=0.6)
        ax.text(left + bits / 2, 0.85, f"number {place}: {code}".replace("-", "−"), ha="center", fontsize=13)
        for i, bit in enumerate(f"{field:0{bits}b}"):
            ax.text(left + i + 0.5, 0, bit, ha="center", va="center", fontsize=22)
    for i in range(8):
        ax.text(i + 0.5, -0.85, f"bit {7 - i}", ha="center", va="center", fontsize=12)
    ax.set(xlim=(0, 8), ylim=(-1.2, 1.3), title=f"one byte: {byte:08b}, which is {byte} or hexadecimal {byte:02x}")
    ax.axis("off")
    return figure


@styled
def plot_widths(widths: dict[str, dict[str, int]]) -> Picture:
    """Return how many bits the accumulators of each layer need, with lines at the widths that processors have.

    Parameters
    ----------
    widths : up to four kinds, such as "worst case" -> a layer's name -> bits.

    Examples
    --------
    >>> figure = plot_widths({"worst case": {"conv1": 19, "fc1": 15}, "seen": {"conv1": 17, "fc1": 10}})
    """
    figure, [[ax]] = new_figure(height=3.8)
    share = 0.8 / len(widths)
    colours = ("random", "w4a4", "guided", "w2a2")
    for i, ((name, layers), colour) in enumerate(zip(widths.items(), colours, strict=False)):
        places = np.arange(len(layers)) + (i - (len(widths) - 1) / 2) * share
        ax.bar(places, list(layers.values()), share, color=COLOURS[colour], label=name)
        for place, bits in zip(places, layers.values(), strict=True):
            # At the foot, where no line at a width of a processor crosses the number.
            box = {"facecolor": "white", "linewidth": 0, "pad": 1.5}
            ax.text(place, 2, str(bits), ha="center", va="center", fontsize=10, bbox=box)
    for width in (8, 16, 32):
        ax.axhline(width, color=COLOURS["fp32"], linestyle="--", linewidth=1.2)
        ax.text(len(layers) - 0.45, width, f"int{width}", va="center", fontsize=12)
    ax.set_xticks(range(len(layers)), list(layers))
    ax.grid(False, axis="x")
    ax.set(title="How wide must an accumulator be?", ylabel="bits, sign included", xlim=(-0.6, len(layers) - 0.5))
    _legend_below(figure, columns=2)
    return figure


@styled
def plot_file(parts: dict[str, tuple[int, int]], size: int) -> Picture:
    """Return a map of a file: a cell a byte, 256 in a row, coloured by what it belongs to.

    Parameters
    ----------
    parts : a name -> (first byte, number of bytes). Bytes of no part are "all else".
    size : bytes of the whole file.

    Examples
    --------
    >>> figure = plot_file({"conv1": (300, 200), "fc1": (800, 9000)}, size=10_000)
    """
    columns = 256
    owners = np.zeros(-(-size // columns) * columns)
    owners[size:] = np.nan
    for number, (start, length) in enumerate(parts.values(), 1):
        owners[start : start + length] = number
    palette = [COLOURS[name] for name in ("random", "accent", "w2a2", "mixed-4/2", "data", "guided", "w4a4")]
    palette = (palette + palette[1:] * (len(parts) // 6 + 1))[: len(parts) + 1]
    figure, [[ax]] = new_figure(height=4.2)
    colours = matplotlib.colors.ListedColormap(palette)
    grid = owners.reshape(-1, columns)
    ax.imshow(grid, cmap=colours, vmin=-0.5, vmax=len(parts) + 0.5, aspect="auto", extent=(0, columns, len(grid), 0))
    ax.grid(False)
    ax.set(title=f"{size:,} bytes, one after the other", xlabel="byte in its row", ylabel=f"row of {columns} bytes")
    counted = {"all else": size - sum(length for _, length in parts.values())}
    counted |= {name: length for name, (_, length) in parts.items()}
    boxes = [matplotlib.patches.Patch(color=colour) for colour in palette]
    labels = [f"{name}: {length:,}" for name, length in counted.items()]
    ax.legend(boxes, labels, loc="center left", bbox_to_anchor=(1, 0.5), title="bytes")
    return figure


@styled
def plot_costs(panels: dict[str, dict[str, dict[str, float]]]) -> Picture:
    """Return costs of files as multiples of those of "fp32", on logarithmic axes: a row a file, a marker a network.

    Parameters
    ----------
    panels : a panel's title -> a network's name -> a file's name -> its cost, in any unit.

    Examples
    --------
    >>> costs = {"lenet5": {"fp32": 180.0, "int8": 50.0}}
    >>> figure = plot_costs({"bytes": costs, "time": costs})
    """
    figure, axes = new_figure(1, len(panels), height=4.2, sharey=True)
    for ax, (title, networks) in zip(axes[0], panels.items(), strict=True):
        looks = zip(networks.items(), "os^D", METHOD_COLOURS.values(), strict=False)
        for i, ((name, costs), marker, colour) in enumerate(looks):
            ratios = [cost / costs["fp32"] for cost in costs.values()]
            places = np.arange(len(costs)) + 0.22 * (i - (len(networks) - 1) / 2)  # side by side, or one hides another
            ax.plot(ratios, places, marker, color=colour, markersize=8, label=name)
        ax.axvline(1, color=COLOURS["fp32"], linestyle="--", linewidth=1.2)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x >= 1 else f"1/{1 / x:g}")
        ax.set(title=title, xlabel="times fp32's")
        ax.set_yticks(range(len(costs)), list(costs))
        ax.margins(x=0.12)
    axes[0, 0].set_ylim(len(costs) - 0.5, -0.5)
    _legend_below(figure)
    return figure


@styled
def plot_deployed(
    image: np.ndarray,
    probabilities: np.ndarray,
    saliency: np.ndarray,
    class_names: Sequence[str],
    label: int,
    name: str,
    cost: str,
) -> Picture:
    """Return an image with the prediction and the occlusion map of a file, and what the file costs above them.

    Parameters
    ----------
    image : ``(1, H, W)`` or ``(H, W)``, uint8.
    probabilities : ``(classes,)``, from 0 to 1.
    saliency : ``(H, W)``, by how much the logit falls.
    label : number of the right class.
    name, cost : of the file, in words.

    Examples
    --------
    >>> half = np.array([0.5, 0.5])
    >>> figure = plot_deployed(np.zeros((8, 8), np.uint8), half, np.eye(8), ["bag", "shirt"], 0, "int8", "1 kB")
    """
    figure, axes = new_figure(1, 3, height=3.3)
    _draw_image(axes[0, 0], image)
    _draw_prediction(axes[0, 1], probabilities, class_names, COLOURS["data"], label)
    picture = _draw_map(axes[0, 2], saliency, signed=True)
    figure.colorbar(picture, ax=axes[0, 2], label="fall of the logit", extend="both")
    _set_titles(axes[0], f"image: {class_names[label]}", "prediction", "occlusion map")
    figure.suptitle(f"{name}: {cost}")
    return figure


# ---------------------------------------------------------------- lesson 04


class Frame(NamedTuple):
    """What a network shows of itself at one moment of its training.

    Attributes
    ----------
    step, epoch : when, counted from 1.
    maps : ``(N, H, W)``, the maps of N fixed images.
    replaced : bool ``(N, H, W)``, which pixels would be replaced.
    terms : the terms of the loss at that batch, nats.
    """

    step: int
    epoch: int
    maps: np.ndarray
    replaced: np.ndarray
    terms: dict[str, float]


def coloured_where(images: np.ndarray, replaced: np.ndarray) -> np.ndarray:
    """Return images ``(N, C, H, W)``, uint8, as RGB ``(N, H, W, 3)``, with one colour where `replaced` is True.

    Examples
    --------
    >>> coloured_where(np.zeros((1, 1, 1, 2), np.uint8), np.array([[[False, True]]]))[0, 0].round(1).tolist()
    [[0.0, 0.0, 0.0], [0.8, 0.5, 0.7]]
    """
    pixels = np.moveaxis(np.asarray(images), 1, -1) / 255
    return np.where(np.asarray(replaced)[..., None], matplotlib.colors.to_rgb(COLOURS["accent"]), pixels)


@styled
def plot_masking(
    image: np.ndarray,
    saliency: np.ndarray,
    replaced: np.ndarray,
    masked: np.ndarray,
    probabilities: tuple[np.ndarray, np.ndarray],
    class_names: Sequence[str],
    label: int,
) -> Picture:
    """Return a saliency map, the pixels that it gives up, the image without them, and what the network says of it.

    Parameters
    ----------
    image, masked : ``(C, H, W)``, uint8; before and after the pixels are replaced.
    saliency : ``(H, W)``.
    replaced : bool ``(H, W)``.
    probabilities : of the image and of the masked image, each ``(classes,)``, 0 to 1.
    label : number of the right class.

    Examples
    --------
    >>> image, half = np.zeros((1, 8, 8), np.uint8), np.array([0.5, 0.5])
    >>> figure = plot_masking(image, np.eye(8), np.eye(8) > 0, image, (half, half), ["bag", "shirt"], 0)
    """
    figure, axes = new_figure(1, 4, width=11, height=3.2, width_ratios=(1, 1, 1, 1.3))
    before, after = probabilities
    _draw_map(axes[0, 0], saliency)
    _draw_rgb(axes[0, 1], coloured_where(image[None], replaced[None])[0])
    _draw_image(axes[0, 2], masked)
    ax = axes[0, 3]
    _draw_prediction(ax, after, class_names, COLOURS["data"], label)
    ax.plot(np.multiply(before, 100), range(len(before)), "|", color="black", markersize=12, label="whole image")
    titles = ("saliency map", f"{replaced.mean():.0%} to replace", "what the network gets")
    _set_titles(axes[0], *titles, "prediction (black: whole image)")
    return figure


def _draw_rgb(ax: Any, picture: np.ndarray) -> None:
    """Draw a picture, ``(H, W, 3)`` in [0, 1], without ticks."""
    ax.imshow(picture)
    _hide_ticks(ax)


def frame_tiles(images: np.ndarray, frame: Frame) -> np.ndarray:
    """Return one RGB picture ``(2 * H + 1, N * (W + 1) - 1, 3)``: the maps in a row, below them the pixels that stay.

    Each map is shown as a share of its own 99th percentile; replaced pixels have one colour.

    Parameters
    ----------
    images : ``(N, C, H, W)``, uint8.

    Examples
    --------
    >>> frame = Frame(1, 1, np.ones((3, 4, 4)), np.zeros((3, 4, 4), bool), {})
    >>> frame_tiles(np.zeros((3, 1, 4, 4), np.uint8), frame).shape
    (9, 14, 3)
    """
    tops = np.quantile(np.abs(frame.maps), 0.99, axis=(1, 2), keepdims=True)
    maps = matplotlib.colormaps[MAP_COLOURS](np.abs(frame.maps) / np.maximum(tops, 1e-12))[..., :3]
    cells = np.stack([maps, coloured_where(images, frame.replaced)])  # (2, N, H, W, 3)
    cells = np.pad(cells, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1)  # a white line between
    rows, columns, height, width, _ = cells.shape
    return cells.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)[:-1, :-1]


@styled
def plot_training_now(images: np.ndarray, frames: Sequence[Frame], steps: int) -> Picture:
    """Return the last frame's maps and masks, and the terms of the loss so far: the picture of the live view.

    Parameters
    ----------
    images : ``(N, C, H, W)``, uint8.
    frames : from the first to the newest.
    steps : how many batches the training has.

    Examples
    --------
    >>> frame = Frame(1, 1, np.ones((2, 8, 8)), np.zeros((2, 8, 8), bool), {"cross_entropy": 2.3})
    >>> figure = plot_training_now(np.zeros((2, 1, 8, 8), np.uint8), [frame], steps=10)
    """
    figure, [[pictures, ax]] = new_figure(1, 2, width=10, height=3.2, width_ratios=(1.5, 1))
    # Places by hand: a layout that is computed anew for each frame costs more time, and lets the picture jump.
    figure.set_layout_engine("none")
    pictures.set_position((0.01, 0.03, 0.56, 0.86))
    ax.set_position((0.66, 0.17, 0.32, 0.72))
    _draw_rgb(pictures, frame_tiles(images, frames[-1]))
    pictures.set_title(f"epoch {frames[-1].epoch}: maps, and the pixels that stay")
    at = [frame.step for frame in frames]
    for name, marker in (("cross_entropy", "o"), ("divergence", "s"), ("loss", "o")):
        if name in frames[-1].terms:
            colour = COLOURS["guided" if name == "divergence" else "plain"]
            values = [frame.terms.get(name, np.nan) for frame in frames]
            ax.plot(at, values, f"{marker}-", color=colour, markersize=4, label=name.replace("_", "-"))
    ax.set(title="terms of the loss", xlabel="batch", ylabel="nats", xlim=(0, 1.02 * steps), ylim=(0, None))
    ax.legend(loc="upper right", fontsize=10)
    return figure


@styled
def training_strip(images: np.ndarray, frames: dict[str, Sequence[Frame]]) -> Picture:
    """Return the last frame of each epoch side by side, one network above the other; of the first two images.

    Parameters
    ----------
    images : ``(N, C, H, W)``, uint8.
    frames : a network's name -> its frames.

    Examples
    --------
    >>> frame = Frame(1, 1, np.ones((2, 8, 8)), np.zeros((2, 8, 8), bool), {})
    >>> figure = training_strip(np.zeros((2, 1, 8, 8), np.uint8), {"plain": [frame], "guided": [frame]})
    """
    last = {name: list({frame.epoch: frame for frame in some}.values()) for name, some in frames.items()}
    columns = max(len(some) for some in last.values())
    side = 10 / columns
    figure, axes = new_figure(len(last), columns, width=10, height=len(last) * (side + 0.25) + 0.1)
    for ax in axes.flat:
        ax.axis("off")
    for row, (name, some) in zip(axes, last.items(), strict=True):
        for ax, frame in zip(row, some, strict=False):
            tiles = frame_tiles(images[:2], frame._replace(maps=frame.maps[:2], replaced=frame.replaced[:2]))
            _draw_rgb(ax, tiles)
            ax.set_title(f"{name}, epoch {frame.epoch}", fontsize=11)
        row[0].axis("on")
        row[0].spines[:].set_visible(False)
        row[0].tick_params(length=0)
        row[0].set_yticks([len(tiles) / 4, 3 * len(tiles) / 4], ["map", "pixels\nthat stay"], fontsize=10)
    return figure


@styled
def seeds_with_intervals(
    panels: dict[str, dict[str, dict[Any, Sequence[np.ndarray]]]],
    xlabel: str,
    ylabels: Sequence[str],
    join: bool = True,
) -> Picture:
    """Return, for each panel and each entry of the x axis, one point a seed with the 95 % interval over the images.

    A line joins the means over the seeds; where the entries have no order, a dash marks each. Points of one entry that
    lie further apart than their bars are long differ by the seed, not by the choice of images.

    Parameters
    ----------
    panels : a panel's title -> a series' name -> an entry of the x axis -> one array a seed, ``(N,)``.
    ylabels : what the numbers of each panel are, with the unit or the direction that is good.
    join : whether the entries have an order that a line may follow.

    Examples
    --------
    >>> values = {"plain": [np.arange(9), np.arange(9) + 1], "0.5": [np.arange(9), np.arange(9) + 2]}
    >>> figure = seeds_with_intervals({"Focus": {"gradient": values}}, "mask ratio", ["Gini index"])
    """
    figure, axes = _figure_of_panels(len(panels), most=2, row=3.1)
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    styles = dict(zip(names, series_styles(names), strict=True))
    for ax, (title, series), ylabel in zip(axes, panels.items(), ylabels, strict=True):
        for number, (name, entries) in enumerate(series.items()):
            style = styles[name]
            look = {"fmt": style["marker"], "color": style["color"], "markersize": 6, "linewidth": 1.5}
            means = [np.mean([np.nanmean(v) for v in seeds]) for seeds in entries.values()]
            dash = {} if join else {"linestyle": "none", "marker": "_", "markersize": 22, "markeredgewidth": 2}
            places = np.arange(len(entries)) + 0.22 * (number - (len(series) - 1) / 2)
            ax.plot(places, means, **style | {"marker": "none"} | dash)
            for place, seeds in zip(places, entries.values(), strict=True):
                for seed, values in enumerate(seeds):
                    x = place + 0.08 * (seed - (len(seeds) - 1) / 2)
                    bar, label = _half_interval(values), name.replace("_", " ")
                    ax.errorbar(x, np.nanmean(values), bar, label=label, **look)
            ax.set_xticks(range(len(entries)), [str(entry) for entry in entries])
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        ax.margins(x=0.08, y=0.15)
    if len(names) > 1:
        _legend_below(figure)
    return figure


# ---------------------------------------------------------------- lesson 05


def pareto_front(scores: np.ndarray) -> np.ndarray:
    """Return which rows no other row beats: none is at least as good in every column and better in one.

    Parameters
    ----------
    scores : ``(N, K)``; larger is better in every column, so put a minus before costs.

    Returns
    -------
    bool ``(N,)``. Equal rows do not beat each other.

    Examples
    --------
    >>> pareto_front(np.array([[-100, 0.9], [-50, 0.8], [-70, 0.7]])).tolist()
    [True, True, False]
    """
    scores = np.asarray(scores)
    others, own = scores[:, None], scores[None, :]
    return ~((others >= own).all(-1) & (others > own).any(-1)).any(0)


@styled
def plot_pareto(sizes: dict[str, float], panels: dict[str, dict[str, float]], xlabel: str, title: str = "") -> Picture:
    """Return networks by size and by what they are good for; rings and a line mark those that no other one beats.

    Filled points are guided, hollow ones are not; those "from its twin" are diamonds, those of another "ratio" squares.
    The first word of a name sets the colour.

    Parameters
    ----------
    sizes : a network's name -> its size, the smaller the better.
    panels : a measure -> the same names -> a number, the larger the better.
    xlabel : what the sizes are, with the unit.

    Examples
    --------
    >>> figure = plot_pareto({"fp32": 9, "w2a2 guided": 1}, {"accuracy": {"fp32": 0.9, "w2a2 guided": 0.8}}, "kB")
    """
    figure, axes = new_figure(1, len(panels), height=4.2)
    for ax, (measure, values) in zip(axes[0], panels.items(), strict=True):
        points = np.array([[sizes[name], value] for name, value in values.items()])
        front = points[pareto_front(points * [-1, 1])]
        front = front[front[:, 0].argsort()]
        ax.step(front[:, 0], front[:, 1], where="post", color=COLOURS["random"], linewidth=1.5, zorder=0)
        rings = {"markerfacecolor": "none", "markeredgecolor": "black", "markersize": 16}
        ax.plot(front[:, 0], front[:, 1], "o", zorder=0, label="beaten by none", **rings)
        for (name, (x, y)), style in zip(zip(values, points, strict=True), series_styles(values), strict=True):
            face = style["color"] if "guided" in name else "white"
            marker = "D" if "from its twin" in name else "s" if "ratio" in name else "o"
            ax.plot(x, y, marker, color=style["color"], markerfacecolor=face, markersize=9, label=name)
        ax.set(title=measure, xlabel=xlabel, xscale="log")
        ax.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 3)))
        ax.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
        ax.minorticks_off()
        ax.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        if measure == "accuracy":
            ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
        ax.margins(0.12)
    figure.suptitle(title)
    _legend_below(figure)
    return figure


@styled
def plot_effects(panels: dict[str, dict[str, np.ndarray]], floors: dict[str, float], title: str) -> Picture:
    """Return mean differences with the 95 % interval of the mean over the images, on a grey band: the noise floor.

    Parameters
    ----------
    panels : a panel's title -> a row's name -> one difference an image, ``(N,)``. NaN is left out.
    floors : a panel's title -> how far two trainings lie apart that differ only in the seed.
    title : what the differences are.

    Examples
    --------
    >>> figure = plot_effects({"Gini": {"w2a2": np.array([0.1, 0.2])}}, {"Gini": 0.05}, "guided minus plain")
    """
    most = max(len(rows) for rows in panels.values())
    figure, axes = new_figure(1, len(panels), height=0.45 * most + 2.3, sharey=True)
    for ax, (panel, rows) in zip(axes[0], panels.items(), strict=True):
        band = ax.axvspan(-floors[panel], floors[panel], color=COLOURS["random"], alpha=0.35, linewidth=0)
        ax.axvline(0, color="black", linewidth=1)
        for i, ((_, values), style) in enumerate(zip(rows.items(), series_styles(rows), strict=True)):
            error = _half_interval(values)
            bar = ax.errorbar(np.nanmean(values), i, xerr=error, fmt="o", color=style["color"], capsize=4, markersize=8)
        ax.set_yticks(range(len(rows)), list(rows))
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_title(panel)
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(3, min_n_ticks=2))
        ax.tick_params(axis="x", labelsize=10)
    figure.suptitle(title)
    labels = ["mean difference, 95 % interval over the images", "as far apart as another random start"]
    figure.legend([bar, band], labels, loc="outside lower center", ncols=2)
    return figure


@styled
def plot_combined(
    image: np.ndarray,
    saliency: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    label: int,
    measured: dict[str, float],
    others: Sequence[dict[str, float]],
    title: str,
) -> Picture:
    """Return an image, a network's map and prediction for it, and how the network stands among others.

    Parameters
    ----------
    image : ``(C, H, W)`` or ``(H, W)``, uint8.
    saliency : ``(H, W)``.
    probabilities : ``(classes,)``.
    label : the right class.
    measured : a measure -> this network's number.
    others : the same for all networks; the first is the plain fp32 network. Each row runs from the lowest to the
        highest of them.

    Examples
    --------
    >>> half, image = np.array([0.5, 0.5]), np.zeros((8, 8), np.uint8)
    >>> figures = [{"accuracy": 0.9}, {"accuracy": 0.8}]
    >>> figure = plot_combined(image, np.eye(8), half, ["bag", "shirt"], 0, figures[1], figures, "w2a2")
    """
    figure, axes = new_figure(1, 4, height=3.3)
    # Fixed places, because the layout engine takes a third of the time, and a slider draws this anew at every step.
    figure.set_layout_engine("none")
    for ax, (left, width) in zip(axes[0], ((0.005, 0.16), (0.17, 0.16), (0.435, 0.15), (0.745, 0.18)), strict=True):
        ax.set_position((left, 0.2, width, 0.61))
    _draw_image(axes[0, 0], image)
    _draw_map(axes[0, 1], saliency)
    _draw_prediction(axes[0, 2], probabilities, class_names, COLOURS["data"], label)
    titles = (f"image: {class_names[label]}", "saliency map", "prediction", "over many images")
    _set_titles(axes[0], *titles, fontsize=11)
    ax = axes[0, 3]
    values = np.array([list(other.values()) for other in [*others, measured]])
    shares = (values - values.min(0)) / np.maximum(np.ptp(values, axis=0), 1e-12)
    rows = np.arange(len(measured))
    ax.plot(shares[1:-1], np.broadcast_to(rows, shares[1:-1].shape), "|", color=COLOURS["random"], markersize=9)
    ax.plot(shares[0], rows, "o", color="black", markerfacecolor="white", markersize=10, label="fp32, plain")
    ax.plot(shares[-1], rows, "o", color=COLOURS["guided"], markersize=7, label="this one")
    for row, value in zip(rows, measured.values(), strict=True):
        ax.text(1.12, row, f"{value:.3f}", va="center", fontsize=11)
    ax.set_yticks(rows, list(measured), fontsize=11)
    ax.set_xticks([0, 1], ["lowest", "highest"], fontsize=10)
    ax.set(xlim=(-0.08, 1.08), ylim=(len(measured) - 0.4, -0.6))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=10, handletextpad=0)
    figure.suptitle(title)
    return figure


# ---------------------------------------------------------------- lesson 06


def _draw_against_bits(ax: Any, series: dict[str, dict[str, Sequence[float]]]) -> None:
    """Draw the mean of each series, its 95 % interval and, to the right, a dot a seed, precision by precision.

    The means of each series have a mark of their own, so that they can be told apart without colours, too. Two seeds
    have no stroke: Student's t is 12.7 there, and the stroke would hide all others.
    """
    precisions = list(dict.fromkeys(precision for values in series.values() for precision in values))
    beside = {precision: [name for name in series if precision in series[name]] for precision in precisions}
    apart = min(0.24, 0.84 / max(map(len, beside.values())))
    for (name, values), style in zip(series.items(), series_styles(series), strict=True):
        places = [
            precisions.index(precision) + (beside[precision].index(name) - (len(beside[precision]) - 1) / 2) * apart
            for precision in values
        ]
        for place, seeds in zip(places, values.values(), strict=True):
            if len(seeds) > 1:
                ax.plot([place + 0.4 * apart] * len(seeds), seeds, ".", color=style["color"], alpha=0.9, markersize=5)
            if len(seeds) > 2:
                ax.plot([place, place], interval(seeds), color=style["color"], linewidth=2)
        means = [np.mean(seeds) for seeds in values.values()]
        ax.plot(places, means, style["marker"], color=style["color"], markersize=6.5, mec="white", label=name)
    ax.set_xticks(range(len(precisions)), [precision.replace("mixed-", "mixed\n") for precision in precisions])
    ax.set_xlim(-0.5, len(precisions) - 0.5)


@styled
def plot_against_bits(
    panels: dict[str, dict[str, dict[str, Sequence[float]]]],
    title: str,
    floors: dict[str, tuple[float, float]] | None = None,
    chance: dict[str, float] | None = None,
) -> Picture:
    """Return measures against the bits: a dot a seed, the mean, and its 95 % interval over three seeds or more.

    Parameters
    ----------
    panels : a measure -> a kind of training -> a precision -> one value a seed.
    floors : a measure -> from where to where plain fp32 networks of other seeds lie: a grey band.
    chance : a measure -> the random map's value: a dashed line. In panels of a gain it is 0.

    Accuracies, told by the word, are shown in percent.

    Examples
    --------
    >>> panels = {"accuracy": {"plain": {"fp32": [0.9, 0.91], "w2a2": [0.88, 0.87]}}}
    >>> figure = plot_against_bits(panels, "FashionMNIST-mini")
    """
    figure, axes = _figure_of_panels(len(panels), most=3, row=2.9, rest=1.0)
    for ax, (measure, series) in zip(axes, panels.items(), strict=True):
        if floors and measure in floors:
            band = {"alpha": 0.25, "linewidth": 0, "label": "plain fp32, lowest to highest seed"}
            ax.axhspan(*floors[measure], color=COLOURS["random"], **band)
        at_random = (chance or {}).get(measure, 0 if "gain" in measure else None)
        if at_random is not None:
            ax.axhline(at_random, color=COLOURS["random"], linestyle="--", linewidth=1.5, label="random map")
        _draw_against_bits(ax, series)
        ax.set_title(measure)
        ax.tick_params(axis="x", labelsize=9)
        ax.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        if "accuracy" in (measure, *title.split()):
            ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    _legend_below(figure)
    figure.suptitle(title)
    return figure


@styled
def plot_measures(
    records: pd.DataFrame,
    title: str,
    measures: Collection[str] = tuple(MEASURES),
    kinds: Sequence[str] = ("plain", "guided", "published"),
    column: str = "objective",
) -> Picture:
    """Return `plot_against_bits` of one data set's records, with the noise floor and the random map.

    Parameters
    ----------
    records : `with_measures`, `main_records` of one data set.
    measures : columns of `records`; what no record holds is left out.
    kinds : which trainings to draw, as `column` names them.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = {"objective": "plain", "precision": ["fp32", "fp32", "w2a2"], "seed": [0, 1, 0], "Gini": [0.5, 0.6, 0.4]}
    >>> figure = plot_measures(pd.DataFrame(rows), "FashionMNIST-mini", ["Gini"])
    """
    measures = [measure for measure in measures if records[measure].notna().any()]
    chance = {"on object": records["random: foreground mass"].mean()} if "on object" in measures else {}
    panels = {measure: values_by_precision(records, measure, kinds, column) for measure in measures}
    return plot_against_bits(panels, title, noise_floor(records, measures), chance)


@styled
def plot_correlations(matrix: np.ndarray, names: Sequence[str], title: str) -> Picture:
    """Return a matrix of correlations between measures as coloured and numbered cells.

    Parameters
    ----------
    matrix : ``(K, K)``, from -1 to 1; NaN is left white.
    names : K measures.

    Examples
    --------
    >>> figure = plot_correlations(np.eye(2), ["accuracy", "Gini"], "rank correlation over the trainings")
    """
    figure, [[ax]] = new_figure(1, 1, height=0.52 * len(names) + 2.2)
    cells = ax.imshow(matrix, cmap=SIGNED_MAP_COLOURS, vmin=-1, vmax=1)
    for i, j in np.ndindex(*matrix.shape):
        if np.isfinite(matrix[i, j]):
            colour = "white" if abs(matrix[i, j]) > 0.6 else "black"
            ax.text(j, i, f"{round(matrix[i, j], 1) + 0.0:+.1f}", ha="center", va="center", fontsize=10, color=colour)
    ax.set_xticks(range(len(names)), names, rotation=35, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.grid(False)
    figure.colorbar(cells, ax=ax, label="rank correlation", shrink=0.8)
    ax.set_title(title)
    return figure


@styled
def plot_choice_of_study(
    series: dict[str, dict[str, Sequence[float]]],
    precision: str,
    differences: dict[int, float],
    measure: str,
    title: str,
) -> Picture:
    """Return one measure against the bits, and beside it what guidance changes at one precision, a bar a seed.

    Parameters
    ----------
    series : as a panel of `plot_against_bits`; may hold no value.
    precision : whose differences are shown on the right; its place is marked on the left.
    differences : seed -> guided minus plain; may be empty.

    Examples
    --------
    >>> series = {"plain": {"fp32": [0.9, 0.91]}, "guided": {"fp32": [0.89, 0.9]}}
    >>> figure = plot_choice_of_study(series, "fp32", {0: -0.01, 2: -0.01}, "accuracy", "FashionMNIST-mini")
    """
    figure, [[left, right]] = new_figure(1, 2, height=3.6, width_ratios=[2, 1])
    precisions = list(dict.fromkeys(p for values in series.values() for p in values))
    if precision in precisions:
        place = precisions.index(precision)
        left.axvspan(place - 0.45, place + 0.45, color=COLOURS["data"], alpha=0.2, linewidth=0)
    if precisions:
        _draw_against_bits(left, series)
        left.legend(loc="best")
    left.set(title=title, ylabel=measure)
    right.axhline(0, color="black", linewidth=1)
    right.bar(range(len(differences)), list(differences.values()), color=COLOURS["guided"])
    right.set(title=f"{precision}: guided minus plain", xlabel="seed", ylabel=f"change of {measure}")
    right.set_xticks(range(len(differences)), list(differences))
    for ax, shown in ((left, precisions), (right, differences)):
        if not len(shown):
            ax.text(0.5, 0.6, "no record", ha="center", va="center", transform=ax.transAxes)
    return figure


# ---------------------------------------------------------------- lesson 08


@styled
def plot_sentence(answers: dict[str, dict[str, dict[str, float]]], title: str, xlabel: str) -> Picture:
    """Return differences with their 95 % intervals: a panel a data set, a row a way to ask.

    A triangle points to where a difference surely lies, above or below 0; a circle cannot be told from 0. The titles
    count both. A difference of one seed has no interval.

    Parameters
    ----------
    answers : a panel's title -> a row -> what `evidence.compare` returns.

    Examples
    --------
    >>> found = {"difference": 0.1, "low": 0.05, "high": 0.15}
    >>> figure = plot_sentence({"MNIST": {"gradient": found}}, "guided minus plain", "deletion gain, blur")
    """
    ways = list(next(iter(answers.values())))
    figure, [axes] = new_figure(1, len(answers), height=0.42 * len(ways) + 1.7)
    looks = {1: (">", PALETTE["blue"]), -1: ("<", PALETTE["vermilion"]), 0: ("o", PALETTE["grey"])}
    for ax, (name, rows) in zip(axes, answers.items(), strict=True):
        ax.axvline(0, color="black", linewidth=1)
        signs = []
        for place, found in enumerate(rows.values()):
            signs.append((found["low"] > 0) - (found["high"] < 0))
            marker, colour = looks[signs[-1]]
            ax.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=2)
            face = colour if signs[-1] else "white"
            ax.plot(found["difference"], place, marker=marker, color=colour, markerfacecolor=face, markersize=8)
        ax.set(title=f"{name}\n{signs.count(1)} above, {signs.count(-1)} below", xlabel=xlabel)
        ax.locator_params(axis="x", nbins=2)
        ax.xaxis.set_major_formatter("{x:g}")  # three numbers in a narrow panel: 0.000 would touch its neighbours
        ax.margins(x=0.12)
        ax.set(yticks=[], ylim=(len(ways) - 0.5, -0.5))
    axes[0].set_yticks(range(len(ways)), ways)
    figure.suptitle(title)
    return figure
