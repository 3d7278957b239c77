"""Panels redraw when a control moves, and show what the control says."""

import numpy as np

from qsal_helpers import widgets

# ---------------------------------------------------------------- lesson 03


def method_panel():
    generator = np.random.default_rng(0)
    maps = {
        "smooth_grad": {n: generator.random((2, 8, 8)) for n in (1, 4)},
        "gradient": {0: generator.random((2, 8, 8))},
    }
    curves = {name: {n: generator.random((2, 5)) for n in some} for name, some in maps.items()}
    curves["random"] = {0: np.ones((2, 5))}
    box = widgets.method_panel(np.zeros((2, 1, 8, 8), np.uint8), maps, curves)
    return box.children[0].children, lambda: bytes(box.children[-1].value)


def test_the_number_of_samples_changes_smooth_grad_and_leaves_the_gradient_alone():
    (method, samples, _), picture = method_panel()
    before = picture()
    samples.value = 1
    assert picture() != before
    method.value = "gradient"
    before = picture()
    samples.value = 4
    assert picture() == before


def test_the_panel_of_methods_offers_every_method_with_a_map():
    (method, _, _), _ = method_panel()
    assert [value for _, value in method.options] == ["smooth_grad", "gradient"]
