"""Figures show the data they are given, on the scales they claim."""

import inspect
import io
import itertools
import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t

from qsal_helpers import pact, plots, quantize_uniform
from qsal_helpers.evidence import interval
from qsal_helpers.training import History

# ---------------------------------------------------------------- saliency maps and their measures


def maps_of(seed=0, images=3, names=("fp32", "w2a2"), low=0.0):
    generator = np.random.default_rng(seed)
    return {name: generator.uniform(low, 1 + i, (images, 8, 8)) for i, name in enumerate(names)}


def limits(figure, images, columns):
    """Return the colour limits of each map, (images, maps, 2)."""
    axes = figure.axes[: images * columns]
    clims = [ax.images[0].get_clim() for ax in axes]
    return np.array(clims).reshape(images, columns, 2)[:, 1:]


def grid(shared, low=0.0):
    figure = plots.saliency_grid(np.zeros((3, 8, 8), np.uint8), maps_of(low=low), shared=shared)
    return limits(figure, images=3, columns=3)


def test_maps_of_one_row_share_a_scale_and_rows_differ():
    tops = grid("row")[..., 1]
    assert np.allclose(tops[:, :1], tops) and len(np.unique(tops[:, 0])) == 3


def test_maps_of_one_column_share_a_scale_and_columns_differ():
    tops = grid("column")[..., 1]
    assert np.allclose(tops[:1], tops) and tops[0, 0] < tops[0, 1]


def test_all_maps_can_share_one_scale():
    assert len(np.unique(grid("all")[..., 1])) == 1


def test_a_shared_scale_ends_at_the_99th_percentile_of_the_maps_that_share_it():
    everything = np.stack(list(maps_of().values()))
    assert grid("all")[0, 0, 1] == pytest.approx(np.quantile(everything, 0.99))
    assert grid("row")[1, 0, 1] == pytest.approx(np.quantile(everything[:, 1], 0.99))
    assert grid("column")[0, 1, 1] == pytest.approx(np.quantile(everything[1], 0.99))


def test_scales_of_signed_maps_are_symmetric_also_where_a_map_has_one_sign():
    maps = {"fp32": -np.ones((1, 8, 8)), "w2a2": np.ones((1, 8, 8))}
    figure = plots.saliency_grid(np.zeros((1, 8, 8), np.uint8), maps, shared="row")
    pictures = [ax.images[0] for ax in figure.axes[1:3]]
    assert {picture.get_clim() for picture in pictures} == {(-1, 1)}
    assert {picture.get_cmap().name for picture in pictures} == {plots.SIGNED_MAP_COLOURS}


def test_a_grid_has_a_colour_bar_for_each_scale():
    for shared, bars in {"row": 3, "column": 2, "all": 1, "map": 1}.items():
        figure = plots.saliency_grid(np.zeros((3, 8, 8), np.uint8), maps_of(), shared=shared)
        assert len(figure.axes) == 9 + bars


def test_an_unknown_way_to_share_a_scale_is_refused():
    with pytest.raises(ValueError, match="shared must be"):
        plots.saliency_grid(np.zeros((3, 8, 8), np.uint8), maps_of(), shared="columns")


def test_a_name_without_a_colour_of_its_own_takes_none_of_the_others():
    colours = [style["color"] for style in plots.series_styles(["plain", "guided", "another", "a fourth"])]
    assert len(set(colours)) == 4


def test_kin_share_a_colour_and_differ_in_their_lines():
    fp32, twin, w2a2 = plots.series_styles(["fp32", "fp32 twin", "w2a2"])
    assert fp32["color"] == twin["color"] != w2a2["color"]
    assert fp32["linestyle"] != twin["linestyle"]


def test_a_dashed_line_marks_the_random_map_where_it_is_known():
    kinds = {"plain": {"fp32": [0.4, 0.5]}}
    panels = dict.fromkeys(("deletion gain, black", "on object", "Gini"), kinds)
    figure = plots.plot_against_bits(panels, "a set", chance={"on object": 0.3})
    marked = [[line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"] for ax in figure.axes]
    assert marked == [[0], [0.3], []]


def test_seven_names_in_a_row_can_be_told_apart_without_colours():
    assert len({style["marker"] for style in plots.series_styles(list("abcdefg"))}) == 7


def test_the_legend_shows_the_marks_that_tell_curves_apart():
    figure = plots.curves_with_intervals({"panel": dict.fromkeys("abc", np.eye(3))}, [0, 1, 2], "x", "y")
    shown = [handle.get_marker() for handle in figure.legends[0].legend_handles]
    assert shown == [line.get_marker() for line in figure.axes[0].lines]
    assert len(set(shown)) == 3


def test_curves_show_the_mean_and_the_95_percent_interval_of_the_mean():
    curves = np.array([[0.0, 1.0], [2.0, 3.0], [np.nan, 5.0]])
    figure = plots.curves_with_intervals({"panel": {"fp32": curves}}, [0, 1], "x", "y")
    ax = figure.axes[0]
    assert ax.lines[0].get_ydata() == pytest.approx([1, 3])
    band = ax.collections[0].get_paths()[0].vertices
    heights = [np.ptp(band[band[:, 0] == x, 1]) for x in (0, 1)]
    # Student's quantiles for 1 and 2 degrees of freedom; the samples' standard deviations are sqrt(2) and 2.
    assert heights == pytest.approx([2 * t.ppf(0.975, 1), 2 * t.ppf(0.975, 2) * 2 / np.sqrt(3)])


def test_a_spread_is_a_thin_line_over_nine_tenths_and_a_thick_one_over_the_middle_half_of_the_images():
    ax = plots.distributions({"panel": {"fp32": np.arange(101.0)}}, ["unit"]).axes[0]
    ends = {lines.get_linewidths()[0]: lines.get_segments()[0][:, 0].tolist() for lines in ax.collections}
    assert [ends[width] for width in sorted(ends)] == [[5, 95], [25, 75]]


def test_what_the_logit_does_is_drawn_apart_from_the_gradients_summed():
    ax = plots.plot_completeness({"w2a2": (np.array([0.0, 1.0, 1.0]), np.array([0.0, 2.0, 3.0]))}).axes[0]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert drawn == {
        "what the logit does": [[0, 0], [50, 1], [100, 1]],
        "gradients summed": [[0, 0], [50, 2], [100, 3]],
    }


def test_accuracies_over_bits_stand_at_their_bits_also_where_a_name_has_fewer_of_them():
    ax = plots.plot_accuracy([8, 4, 2], {"weights": [0.9, 0.8, 0.3], "both": [0.85]}, reference=0.95).axes[0]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.lines[:2]}
    assert drawn == {"weights": [[8, 90], [4, 80], [2, 30]], "both": [[8, 85]]}
    assert set(ax.lines[2].get_ydata()) == {95}


def test_the_errors_of_the_channels_stand_in_the_order_of_their_largest_weights():
    sizes, points = plots.plot_channels(np.array([3.0, 1.0, 2.0]), {"one scale": np.array([0.3, 0.1, 0.2])}).axes
    assert [bar.get_height() for bar in sizes.patches] == [1, 2, 3]
    assert points.lines[0].get_ydata().tolist() == [0.1, 0.2, 0.3]


def test_a_spread_marks_the_median_and_leaves_nan_out():
    values = np.array([1.0, 2.0, 7.0, np.nan])
    figure = plots.distributions({"panel": {"fp32": values, "random": values - 1}}, ["unit"])
    ax = figure.axes[0]
    assert [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"] == [2, 1]
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [1]
    assert (ax.get_title(), ax.get_xlabel()) == ("panel", "unit")


# ---------------------------------------------------------------- lessons 00 to 03


def test_the_bars_of_a_prediction_are_its_probabilities_in_percent_and_the_right_class_alone_is_bold():
    probabilities = np.array([0.5, 0.2, 0.3])
    ax = plots.plot_prediction(np.zeros((8, 8), np.uint8), probabilities, ["bag", "shirt", "coat"], 1, "title").axes[1]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(100 * probabilities)
    bold = [label.get_text() for label in ax.get_yticklabels() if label.get_fontweight() == "bold"]
    assert bold == ["shirt"]


def test_a_history_marks_the_epoch_whose_weights_are_kept():
    history = History(loss=[3.0, 2.0, 1.0], validation_accuracy=[0.5, 0.75, 0.625], best_epoch=2)
    accuracy = plots.plot_history(history).axes[1]
    kept = next(line for line in accuracy.lines if line.get_label() == "weights kept")
    epochs, percent = accuracy.lines[0].get_data()
    assert kept.get_xdata()[0] == epochs[percent.argmax()] == 2


def test_the_star_is_at_the_least_sum_of_both_errors_and_the_line_at_the_clip_that_is_drawn():
    clips = np.linspace(0.5, 2, 7)
    sums = clips**2 + 2 / clips  # falls, then rises: the least is at 1
    ax = plots.plot_clipping(np.linspace(-1, 1, 9), 2, 0.75, clips, clips**2, 2 / clips).axes[1]
    (star,) = [line for line in ax.lines if line.get_marker() == "*"]
    assert star.get_xydata().tolist() == [[1, sums.min()]] and star.get_label() == "best clip 1.00"
    assert ax.lines[-1].get_xdata() == [0.75, 0.75]


def test_the_theory_of_decibels_is_the_power_of_a_uniform_signal_over_that_of_a_uniform_error():
    bits = np.array([1, 2, 5])
    step = 2 / (2.0**bits - 1)  # between levels from -1 to 1
    theory = plots.plot_decibels(bits, {"uniform": bits}).axes[0].lines[0]
    assert theory.get_ydata() == pytest.approx(10 * np.log10((2**2 / 12) / (step**2 / 12)))


def test_the_error_in_the_title_of_a_bit_width_is_the_root_of_the_mean_square():
    w = np.linspace(-1, 1, 99)
    title = plots.plot_bits(w, w.round(), 2, {2: 0.3}).axes[1].get_title()
    assert title == f"error: {np.linalg.norm(w.round() - w) / np.sqrt(w.size):.4f} rms"


def test_the_border_of_two_levels_is_as_far_from_the_level_below_the_target_as_from_the_one_above():
    ax = plots.plot_paths({"round": np.zeros((5, 2))}, np.array([-2.0, 1.0, 5.0, 7.0]), target=2.0).axes[0]
    (border,) = [line.get_ydata()[0] for line in ax.lines if line.get_label() == "border of two levels"]
    assert border - 1 == 5 - border


def test_the_slopes_of_the_clip_are_those_of_the_clip_that_is_drawn():
    alpha, nudge = 2.0, 0.25
    values, by_x, by_alpha = plots.plot_slopes(alpha, nudge).axes
    (x, nudged), (_, clipped) = (line.get_data() for line in values.lines[:2])
    away = (np.abs(x) > 0.1) & (
        (x < alpha - 0.1) | (x > alpha + nudge)
    )  # a kink has no slope, and the nudge has a width
    for ax, slope in ((by_x, np.gradient(clipped, x)), (by_alpha, (nudged - clipped) / nudge)):
        assert ax.lines[0].get_ydata()[away].astype(float) == pytest.approx(slope[away], abs=1e-9)
        assert set(ax.lines[0].get_ydata()[away]) == {False, True}


def test_the_share_clipped_is_of_the_positive_activations():
    x = np.array([-3.0, -1, 0, 0, 0, 0.5, 1, 2, 2.5, 3])
    alphas = np.array([1.0, 2.0])
    ax = plots.plot_pact(x, 2, 2.0, alphas, alphas, alphas).axes[1]
    assert ax.get_title() == f"{sum(x > 2) / sum(x > 0):.1%} of the positive clipped"


def test_the_bar_and_the_number_of_a_column_of_points_are_their_mean():
    values = {"fp32": [90.0, 92.0, 97.0], "w2a2": [88.0]}
    ax = plots.plot_points(values, "seeds").axes[0]
    means = [sum(points) / len(points) for points in values.values()]
    assert [line.get_ydata().tolist() for line in ax.lines if line.get_marker() != "o"] == [[m, m] for m in means]
    assert [float(text.get_text()) for text in ax.texts] == means


def test_deletion_goes_from_no_pixel_on_the_left_to_all_on_the_right():
    curve = np.array([1.0, 0.5, 0.25, 0.125, 0.0625])
    ax = plots.plot_method(np.zeros((8, 8), np.uint8), np.eye(8), {"gradient": curve}, "gradient").axes[2]
    assert ax.lines[0].get_xydata().tolist() == [[25 * i, 100 * p] for i, p in enumerate(curve)]
    assert not ax.xaxis_inverted()


# ---------------------------------------------------------------- lesson 04


def test_the_bars_of_a_masking_are_the_masked_image_s_and_the_ticks_the_whole_one_s():
    image, before, after = np.zeros((1, 8, 8), np.uint8), np.array([0.75, 0.25]), np.array([0.375, 0.625])
    ax = plots.plot_masking(image, np.eye(8), np.eye(8) > 0, image, (before, after), ["bag", "shirt"], 0).axes[3]
    assert [bar.get_width() for bar in ax.patches] == (100 * after).tolist()
    assert ax.lines[0].get_xdata().tolist() == (100 * before).tolist() and "black: whole image" in ax.get_title()


def frames(epochs, images=2):
    terms = {"cross_entropy": 1.0, "divergence": 0.2}
    maps = np.random.default_rng(0).random((images, 4, 4))
    return [plots.Frame(step, epoch, maps * step, maps < 0.5, terms) for step, epoch in enumerate(epochs, start=1)]


def test_replaced_pixels_have_one_colour_and_the_others_their_own():
    images = np.array([[[[0, 255], [51, 102]]]], np.uint8)
    picture = plots.coloured_where(images, np.array([[[True, False], [False, True]]]))
    assert np.allclose(picture[0, 0, 0], picture[0, 1, 1])
    assert np.allclose(picture[0, 0, 1], 1) and np.allclose(picture[0, 1, 0], 0.2)


def test_a_frame_shows_maps_above_masks_whatever_the_size_of_the_gradients():
    images, (first, second) = np.zeros((2, 1, 4, 4), np.uint8), frames([1, 1])
    assert np.allclose(plots.frame_tiles(images, first), plots.frame_tiles(images, second))
    below = plots.frame_tiles(images, first)[5:, :4]
    assert np.allclose(below, plots.coloured_where(images[:1], first.replaced[:1])[0])


def test_the_strip_shows_the_last_frame_of_each_epoch_of_each_network():
    strip = plots.training_strip(
        np.zeros((2, 1, 4, 4), np.uint8), {"plain": frames([1, 1, 2]), "guided": frames([1, 2])}
    )
    assert [ax.get_title() for ax in strip.axes] == [f"{n}, epoch {e}" for n in ("plain", "guided") for e in (1, 2)]


# ---------------------------------------------------------------- lesson 07


def test_products_are_summed_in_the_title():
    figure = plots.plot_products(np.array([[0, 3], [1, 2]]), np.array([[1, -1], [-3, 3]]))
    assert figure.axes[2].get_title() == "products, sum 0"
    assert [text.get_text() for text in figure.axes[2].texts] == ["0", "−3", "−3", "6"]


def test_a_byte_shows_its_bits_with_the_first_number_on_the_right():
    ax = plots.plot_byte([1, -2, 0, -1], bits=2).axes[0]
    bits = {round(text.get_position()[0] - 0.5): text.get_text() for text in ax.texts if text.get_text() in "01"}
    assert "".join(bits[place] for place in range(8)) == "11001001"
    assert "201" in ax.get_title() and "c9" in ax.get_title()


def test_a_byte_that_is_not_filled_is_refused():
    with pytest.raises(ValueError, match="a byte holds 4 numbers of 2 bits; got 3"):
        plots.plot_byte([1, 0, 1], bits=2)


def test_every_byte_of_a_file_is_coloured_by_its_owner():
    ax = plots.plot_file({"conv1": (300, 200), "fc1": (800, 900)}, size=2000).axes[0]
    cells = ax.images[0].get_array().ravel()
    assert [int((cells == owner).sum()) for owner in range(3)] == [900, 200, 900]
    assert (cells[300:500] == 1).all() and (cells[800:1700] == 2).all()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["all else: 900", "conv1: 200", "fc1: 900"]


def test_costs_are_shown_as_multiples_of_the_reference():
    figure = plots.plot_costs({"bytes": {"lenet5": {"fp32": 180.0, "int8": 45.0}}})
    assert figure.axes[0].lines[0].get_xdata() == pytest.approx([1, 0.25])


def test_widths_have_a_bar_for_each_kind_and_layer():
    ax = plots.plot_widths({kind: {"conv1": 19, "fc1": 15} for kind in "abcd"}).axes[0]
    assert len(ax.patches) == 8
    assert len({bars[0].get_facecolor() for bars in ax.containers}) == 4


# ---------------------------------------------------------------- lesson 05


def test_the_pareto_front_holds_exactly_the_rows_that_no_row_beats():
    scores = np.random.default_rng(0).integers(0, 4, (40, 3))
    front = plots.pareto_front(scores)
    for row, stays in zip(scores, front, strict=True):
        assert stays != any((other >= row).all() and (other > row).any() for other in scores)


def test_equal_rows_stay_on_the_pareto_front_together():
    assert plots.pareto_front(np.array([[1, 1], [1, 1], [0, 1]])).tolist() == [True, True, False]


def test_a_pareto_figure_rings_and_joins_the_front_and_each_kind_of_training_has_its_mark():
    values = {"fp32": 0.9, "fp32 twin": 0.8, "w2a2": 0.7, "w4a4 guided": 0.85, "w2a2 from its twin": 0.75}
    sizes = {"fp32": 9, "fp32 twin": 9, "w2a2": 2, "w4a4 guided": 4, "w2a2 from its twin": 2}
    values, sizes = values | {"w2a2 guided, ratio 0.75": 0.6}, sizes | {"w2a2 guided, ratio 0.75": 2}
    ax = plots.plot_pareto(sizes, {"accuracy": values}, "kB").axes[0]
    line, rings, *marks = ax.lines
    assert line.get_xydata().tolist() == rings.get_xydata().tolist() == [[2, 0.75], [4, 0.85], [9, 0.9]]
    assert [mark.get_markerfacecolor() == "white" for mark in marks] == [True, True, True, False, True, False]
    assert [mark.get_marker() for mark in marks] == ["o", "o", "o", "o", "D", "s"]


def test_effects_show_the_mean_its_interval_and_the_noise_floor():
    values = np.array([0.0, 0.1, 0.2, np.nan])
    figure = plots.plot_effects({"Gini": {"w2a2": values}}, {"Gini": 0.05}, "difference")
    ax = figure.axes[0]
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert legend == {"mean difference, 95 % interval over the images", "as far apart as another random start"}
    (bar,) = ax.containers
    (segment,) = bar.lines[2][0].get_segments()
    assert bar.lines[0].get_xdata() == pytest.approx(0.1)
    assert segment[:, 0] == pytest.approx(interval(values[:3]))
    assert ax.patches[0].get_extents().transformed(ax.transData.inverted()).intervalx == pytest.approx([-0.05, 0.05])


def test_the_means_of_a_precision_stand_around_its_tick_without_gaps_for_kinds_that_have_no_run_there():
    series = {
        "plain": {"fp32": [0.8, 0.9], "w2a2": [0.7]},
        "start": {"w2a2": [0.6]},
        "both": {"fp32": [0.9], "w2a2": [0.8]},
    }
    ax = plots.plot_against_bits({"accuracy": series}, "FashionMNIST-mini").axes[0]
    means = [line for line in ax.lines if line.get_label() in series]
    assert [line.get_ydata().tolist() for line in means] == [pytest.approx([0.85, 0.7]), [0.6], [0.9, 0.8]]
    assert [line.get_xdata() for line in means] == [pytest.approx(x) for x in ([-0.12, 0.76], [1.0], [0.12, 1.24])]
    assert len({line.get_marker() for line in means}) == 3


def test_a_mean_over_bits_has_a_dot_beside_it_for_each_of_several_seeds_and_a_stroke_from_three_seeds_on():
    values = {"fp32": [0.9], "w4a4": [0.8, 0.9], "w2a2": [0.7, 0.8, 0.9]}
    *beside, mean = plots.plot_against_bits({"accuracy": {"plain": values}}, "FashionMNIST-mini").axes[0].lines
    drawn = [(*line.get_xdata(), *line.get_ydata()) for line in beside]
    dots = [(1.096, 1.096, *values["w4a4"]), (2.096, 2.096, 2.096, *values["w2a2"])]
    assert drawn == [pytest.approx(numbers) for numbers in (*dots, (2, 2, *interval(values["w2a2"])))]
    assert mean.get_ydata() == pytest.approx([0.9, 0.85, 0.8])


def test_measures_against_bits_say_what_the_band_and_the_dashed_line_are_and_give_accuracy_in_percent():
    series = {"plain": {"fp32": [0.8, 0.9]}}
    panels, floors = {"accuracy": series, "deletion gain, blur": series}, {"deletion gain, blur": (0.1, 0.2)}
    figure = plots.plot_against_bits(panels, "FashionMNIST-mini", floors)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["plain", "plain fp32, lowest to highest seed", "random map"]
    accuracy, gain = (ax.yaxis.get_major_formatter()(0.85) for ax in figure.axes[:2])
    assert accuracy.startswith("85") and accuracy.endswith("%") and not gain.endswith("%")


def test_measures_of_records_have_their_means_noise_floor_and_random_map_and_leave_out_what_no_record_holds():
    rows = [("plain", "fp32", 0, 0.4), ("plain", "fp32", 1, 0.5), ("guided", "fp32", 0, 0.9), ("other", "w2a2", 0, 0.1)]
    records = pd.DataFrame(rows, columns=["objective", "precision", "seed", "on object"])
    records = records.assign(**{"Gini": np.nan, "random: foreground mass": 0.3})
    (ax,) = plots.plot_measures(records, "a set", ["Gini", "on object"]).axes
    assert ax.get_title() == "on object"
    means = {
        line.get_label(): line.get_ydata() for line in ax.lines if line.get_label() in ("plain", "guided", "other")
    }
    assert means == {"plain": pytest.approx([0.45]), "guided": pytest.approx([0.9])}
    (band,) = ax.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.4, 0.5))
    assert [line.get_ydata()[0] for line in ax.lines if line.get_label() == "random map"] == [pytest.approx(0.3)]


def test_a_network_stands_between_the_lowest_and_the_highest_of_all():
    image, half = np.zeros((8, 8), np.uint8), np.array([0.5, 0.5])
    everything = [{"accuracy": 0.9}, {"accuracy": 0.7}, {"accuracy": 0.8}]
    figure = plots.plot_combined(image, np.eye(8), half, ["bag", "shirt"], 0, everything[2], everything, "w2a2")
    ax = figure.axes[3]
    assert ax.lines[1].get_xdata() == pytest.approx([1]) and ax.lines[2].get_xdata() == pytest.approx([0.5])
    assert [text.get_text() for text in ax.texts] == ["0.800"]


# ---------------------------------------------------------------- lesson 06


def test_a_correlation_is_written_in_its_own_cell_and_coloured_with_its_own_sign():
    matrix = np.array([[1.0, -0.5], [0.25, np.nan]])
    ax = plots.plot_correlations(matrix, ["accuracy", "Gini"], "title").axes[0]
    (cells,) = ax.images
    assert np.array_equal(cells.get_array().filled(np.nan), matrix, equal_nan=True) and cells.get_clim() == (-1, 1)
    written = {text.get_position()[::-1]: float(text.get_text()) for text in ax.texts}
    assert written == {place: round(matrix[place], 1) for place in ((0, 0), (0, 1), (1, 0))}


def test_the_bar_of_a_seed_is_the_change_that_it_was_given():
    series, differences = {"plain": {"fp32": [0.9, 0.8]}}, {0: -0.125, 2: 0.25}
    ax = plots.plot_choice_of_study(series, "fp32", differences, "accuracy", "a set").axes[1]
    assert {
        int(label.get_text()): bar.get_height() for label, bar in zip(ax.get_xticklabels(), ax.patches, strict=True)
    } == differences


# ---------------------------------------------------------------- lesson 08


def test_a_triangle_points_to_where_a_difference_surely_lies_and_a_circle_cannot_be_told_from_0():
    found = {"a": (0.2, 0.1, 0.3), "b": (-0.2, -0.3, -0.1), "c": (0.1, -0.1, 0.3), "d": (0.4, math.nan, math.nan)}
    rows = {way: dict(zip(("difference", "low", "high"), numbers, strict=True)) for way, numbers in found.items()}
    figure = plots.plot_sentence({"MNIST": rows, "CIFAR-10": {way: rows["c"] for way in rows}}, "title", "a gain")
    left, right = figure.axes
    marks = [line for line in left.lines if line.get_marker() != "None"]
    assert [mark.get_marker() for mark in marks] == [">", "<", "o", "o"]
    assert [(mark.get_xdata()[0], mark.get_ydata()[0]) for mark in marks] == [(0.2, 0), (-0.2, 1), (0.1, 2), (0.4, 3)]
    assert (left.get_title(), right.get_title()) == ("MNIST\n1 above, 1 below", "CIFAR-10\n0 above, 0 below")
    assert [label.get_text() for label in left.get_yticklabels()] == list(rows) and left.yaxis_inverted()
    assert "1 above, 1 below" in figure.words()


# ---------------------------------------------------------------- one visual language


def test_a_figure_is_drawn_in_the_course_s_style_from_first_to_last_line_and_leaves_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    figure = plots.plot_bits(np.linspace(-1, 1, 99), np.linspace(-1, 1, 99).round(), 2, {2: 0.3, 3: 0.8})
    figure.to_png()
    assert dict(matplotlib.rcParams) == before
    assert plots.style()["lines.linewidth"] != before["lines.linewidth"]
    assert figure.axes[2].lines[0].get_linewidth() == plots.style()["lines.linewidth"]


def test_a_legend_is_drawn_in_the_course_s_style():
    ax = plots.plot_decibels([2, 3], {"uniform": [9.5, 16.9]}).axes[0]
    assert ax.get_legend().get_texts()[0].get_fontsize() == plots.style()["legend.fontsize"]
    assert ax.get_legend().get_frame().get_edgecolor()[3] == 0


def test_every_function_that_returns_a_figure_draws_in_the_style():
    makers = [
        f for _, f in inspect.getmembers(plots, inspect.isfunction) if "Picture" in str(f.__annotations__.get("return"))
    ]
    assert len(makers) > 30
    assert [f.__name__ for f in makers if not hasattr(f, "__wrapped__")] == []


def test_a_figure_is_opaque_and_white_so_that_it_can_be_read_on_a_dark_page():
    pixels = matplotlib.image.imread(io.BytesIO(plots.plot_bars({"a": 1.0}, "title", "unit").to_png()))
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 1).all()
    assert pixels.shape[2] == 3 or (pixels[..., 3] == 1).all()


def test_all_colours_come_from_one_palette():
    assert set(plots.COLOURS.values()) | set(plots.METHOD_COLOURS.values()) <= set(plots.PALETTE.values())
    assert {entry["color"] for entry in plots.style()["axes.prop_cycle"]} < set(plots.PALETTE.values())


# Machado, Oliveira, Fernandes (2009), table 1, severity 1.0; they act on linear RGB.
BLINDNESS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def seen(colour, kind):
    """Return a colour as CIELAB coordinates in the eyes of somebody with that kind of colour vision."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(BLINDNESS[kind]) @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = np.array(to_xyz) @ linear / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", BLINDNESS)
@pytest.mark.parametrize(
    "together",
    [
        [plots.COLOURS[name] for name in ("fp32", "w4a4", "mixed-4/2", "w2a2", "random")],
        [plots.COLOURS[name] for name in ("plain", "guided", "random")],
        [plots.COLOURS[name] for name in ("data", "accent", "w2a2", "fp32")],
        [*plots.METHOD_COLOURS.values(), plots.COLOURS["random"]],
    ],
    ids=["precisions", "objectives", "errors", "methods"],
)
def test_colours_that_share_a_figure_can_be_told_apart_with_every_kind_of_colour_vision(together, kind):
    distances = [np.linalg.norm(seen(a, kind) - seen(b, kind)) for a, b in itertools.combinations(together, 2)]
    assert min(distances) > 10  # a difference of 2.3 is the least that an eye notices


def test_the_number_of_a_bar_stands_clear_of_the_lines_at_the_widths_of_processors():
    ax = plots.plot_widths({"worst case": {"conv1": 15, "fc1": 31}, "seen": {"conv1": 7, "fc1": 16}}).axes[0]
    numbers = [text for text in ax.texts if text.get_text().isdigit()]
    assert [text.get_text() for text in numbers] == ["15", "31", "7", "16"]
    boxes = [text.get_window_extent().transformed(ax.transData.inverted()) for text in numbers]
    assert not [box for box in boxes for width in (8, 16, 32) if box.y0 <= width <= box.y1]


def test_every_interval_of_a_mean_is_students_with_nan_left_out_and_each_seed_has_its_own():
    values = np.array([0.1, 0.4, np.nan, 0.35, 0.9])
    low, high = interval(values[np.isfinite(values)])
    curves = plots.curves_with_intervals({"p": {"a": np.stack([values, values], 1)}}, [0, 1], "x", "y").axes[0]
    band = curves.collections[0].get_paths()[0].vertices[:, 1]
    assert [band.min(), band.max()] == pytest.approx([low, high])
    seeds = plots.seeds_with_intervals({"p": {"a": {"plain": [values, values + 1]}}}, "x", ["y"]).axes[0]
    assert len(seeds.containers) == 2
    for ax, axis in ((seeds, 1), (plots.plot_effects({"p": {"a": values}}, {"p": 0.05}, "x").axes[0], 0)):
        (bar,) = ax.containers[0].lines[2]
        assert bar.get_segments()[0][:, axis].tolist() == pytest.approx([low, high])


def lines_across(ax):
    """Where the vertical lines of a figure's one collection stand."""
    (lines,) = ax.collections
    return [segment[0, 0] for segment in lines.get_segments()]


def levels(bits, low, high):
    return quantize_uniform(torch.linspace(low, high, 999, dtype=torch.float64), bits, low, high).unique().tolist()


def test_a_history_shows_each_epoch_s_loss_and_its_accuracy_in_percent():
    loss, accuracy = plots.plot_history(History(loss=[3.0, 2.0], validation_accuracy=[0.5, 0.75], best_epoch=2)).axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 3], [2, 2]]
    assert accuracy.lines[0].get_xydata().tolist() == [[1, 50], [2, 75]]


def test_a_row_of_explanations_shows_its_own_network_s_prediction_and_map():
    answers = {"fp32": np.array([0.75, 0.25]), "w2a2": np.array([0.125, 0.875])}
    maps = {"fp32": np.eye(8), "w2a2": 1 - np.eye(8)}
    axes = plots.plot_explanations(np.zeros((8, 8), np.uint8), answers, maps, ["bag", "shirt"], 0).axes
    for name, (_, bars, shown) in zip(maps, np.reshape(axes, (2, 3)), strict=True):
        assert [bar.get_width() for bar in bars.patches] == (100 * answers[name]).tolist()
        assert np.array_equal(shown.images[0].get_array(), maps[name])


def test_a_number_line_marks_the_levels_of_the_quantizer():
    for bits, line in zip((2, 3, 5), plots.plot_number_lines(-1, 2, (2, 3, 5)).axes[0].lines, strict=True):
        assert line.get_xdata() == pytest.approx(levels(bits, -1, 2))


def test_value_and_error_add_up_to_the_quantized_value():
    x = np.linspace(-1, 1, 9)
    stairs, saw = plots.plot_rounding(x, x.round()).axes
    assert (x + saw.lines[0].get_ydata()).tolist() == x.round().tolist() == stairs.lines[1].get_ydata().tolist()


def test_measured_and_expected_densities_of_errors_have_an_area_of_one():
    ax = plots.plot_error_density({"4 bits": np.linspace(-0.5, 0.5, 1000)}).axes[0]
    assert sum(bar.get_height() * bar.get_width() for bar in ax.patches) == pytest.approx(1)
    assert np.trapezoid(*ax.lines[0].get_data()[::-1]) == 1


def test_a_histogram_is_of_the_weights_and_its_lines_are_the_rounded_ones():
    w = np.linspace(-1, 1, 60)
    ax = plots.plot_weight_grids({"rounded": (w, w.round())}).axes[0]
    assert lines_across(ax) == [-1, 0, 1]
    assert ax.patches[0].get_path().vertices[:, 1].max() == 1  # 80 bins for 60 weights that differ


def test_the_levels_and_the_function_that_are_drawn_are_those_of_the_quantizers():
    clips, x = np.array([0.5, 1.0]), np.linspace(0, 5, 99)
    weights = plots.plot_clipping(np.linspace(-1, 1, 99), 3, 0.75, clips, clips, clips).axes[0]
    assert lines_across(weights) == pytest.approx(levels(3, -0.75, 0.75))
    drawn = plots.plot_pact(x, 2, 1.5, np.array([1.0, 2.0]), clips, clips).axes[0].lines[1]
    assert drawn.get_ydata() == pytest.approx(pact(torch.from_numpy(drawn.get_xdata()), 1.5, 2).numpy())


def test_a_function_stands_above_its_own_gradient():
    x = np.linspace(-1, 1, 9)
    values, gradients = plots.plot_gradients(x, {"square": (x**2, 2 * x)}).axes
    assert values.lines[0].get_xydata().tolist() == np.stack([x, x**2], 1).tolist()
    assert gradients.lines[0].get_xydata().tolist() == np.stack([x, 2 * x], 1).tolist()


def test_an_occlusion_map_has_signed_colours_also_where_the_logit_falls_everywhere():
    half = np.array([0.5, 0.5])
    figure = plots.plot_deployed(np.zeros((8, 8), np.uint8), half, np.ones((8, 8)), ["bag", "shirt"], 0, "int8", "1 kB")
    picture = figure.axes[2].images[0]
    assert picture.get_clim() == (-1, 1) and picture.get_cmap().name == plots.SIGNED_MAP_COLOURS


def test_a_method_looks_the_same_in_every_panel_of_seeds_and_unlike_the_others():
    entries, looks = {"plain": [np.arange(9.0)]}, {}
    panels = {"A": ["gradient", "random"], "B": ["gradient", "input_x_gradient", "random"], "C": ["random"]}
    series = {title: dict.fromkeys(names, entries) for title, names in panels.items()}
    for ax in plots.seeds_with_intervals(series, "ratio", "abc").axes:
        for bar in ax.containers:
            looks.setdefault(bar.get_label(), set()).add((bar.lines[0].get_marker(), bar.lines[0].get_color()))
    assert [len(each) for each in looks.values()] == [1, 1, 1] and len(set().union(*looks.values())) == 3


@pytest.mark.parametrize("join", [True, False])
def test_a_line_joins_the_means_of_entries_that_have_an_order_and_no_others(join):
    entries = {"plain": [np.arange(9.0)], "0.5": [np.arange(9.0) + 1]}
    ax = plots.seeds_with_intervals({"Gini": {"gradient": entries}}, "ratio", ["Gini"], join=join).axes[0]
    means = ax.lines[0]
    assert means.get_ydata().tolist() == [4, 5] and (means.get_linestyle() == "None") == (not join)
