"""Every figure of the course: pure functions from data to a `Picture`, a matplotlib figure.

One visual language: a colour means the same thing in every lesson. `style` sets fonts and lines for a projector.
Figures have a white background of their own, so that they read well in dark and light JupyterLab themes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from .training import History

# Okabe and Ito's palette, safe for the common kinds of colour blindness.
COLOURS = {
    "fp32": "#000000",
    "w4a4": "#0072B2",
    "mixed-4/2": "#009E73",
    "w2a2": "#D55E00",
    "plain": "#0072B2",
    "guided": "#E69F00",
    "random": "#999999",
    "data": "#56B4E9",
    "accent": "#CC79A7",
}
MAP_COLOURS = "magma"  # runs from dark to light, so that it survives a grey print


def style() -> dict[str, Any]:
    """Return the matplotlib settings that every figure uses.

    Examples
    --------
    >>> style()["figure.facecolor"]
    'white'
    """
    return {
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "figure.dpi": 100,
        "font.size": 12,
        "axes.titlesize": 13,
        "axes.labelsize": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "lines.linewidth": 2,
        "legend.frameon": False,
        "image.interpolation": "nearest",
    }


class Picture(Figure):
    """A figure that a notebook shows as a picture without pyplot: it belongs to no window and no global list.

    The memory is freed with the object, which matters when a slider draws hundreds of them.
    """

    def to_png(self) -> bytes:
        """Return the bytes of a PNG file at screen resolution.

        Examples
        --------
        >>> new_figure()[0].to_png()[1:4]
        b'PNG'
        """
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.to_png()


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
    with matplotlib.rc_context(style()):
        figure = Picture(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def show_images(images: np.ndarray, titles: Sequence[str] = (), columns: int = 8, title: str = "") -> Picture:
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
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, axes = new_figure(rows, columns, height=9 / columns * rows + 0.5)
    for ax in axes.flat:
        ax.axis("off")
    for i, (ax, image) in enumerate(zip(axes.flat, images, strict=False)):
        draw_image(ax, image)
        if i < len(titles):
            ax.set_title(titles[i], fontsize=11)
    if title:
        figure.suptitle(title)
    return figure


def draw_image(ax: Any, image: np.ndarray) -> None:
    """Draw one image, ``(H, W)`` or ``(C, H, W)``, uint8 or float in [0, 1], on `ax` without ticks.

    Examples
    --------
    >>> figure, axes = new_figure()
    >>> draw_image(axes[0, 0], np.zeros((1, 28, 28), dtype=np.uint8))
    """
    image = np.asarray(image)
    if image.ndim == 3:
        image = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    top = 255 if image.dtype == np.uint8 else 1
    ax.imshow(image, cmap="gray", vmin=0, vmax=top)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)


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
    loss, accuracy = axes[0, 0], axes[0, 1]
    loss.plot(epochs, history.loss, "o-", color=COLOURS["plain"])
    loss.set(title="Training loss", xlabel="epoch", ylabel="loss (nats)")
    accuracy.plot(epochs, np.multiply(history.validation_accuracy, 100), "o-", color=COLOURS["plain"])
    if history.best_epoch:
        accuracy.axvline(history.best_epoch, color=COLOURS["random"], linestyle="--", label="weights kept")
        accuracy.legend(loc="lower right")
    accuracy.set(title="Validation accuracy", xlabel="epoch", ylabel="correct (%)")
    if history.alphas:
        for i, (name, values) in enumerate(history.alphas.items()):
            axes[0, 2].plot(
                epochs, values, "o-", label=name, color=matplotlib.colormaps["viridis"](i / len(history.alphas))
            )
        axes[0, 2].set(title="PACT's clips", xlabel="epoch", ylabel="alpha", ylim=(0, None))
        if len(history.alphas) <= 6:
            axes[0, 2].legend(fontsize=10)
    for ax in axes.flat:
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    return figure
