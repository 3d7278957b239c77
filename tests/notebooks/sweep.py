"""Move every control of every panel of a lesson over its whole range, inside the lesson's kernel."""

import random

import ipywidgets

from qsal_helpers.widgets import PANELS


def family(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from family(child)


def values_of(control, most=12):
    """Return the values of a control, or `most` of them, its two ends among them."""
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
    elif isinstance(control, ipywidgets.Checkbox | ipywidgets.ToggleButton):
        values = [False, True]
    elif hasattr(control, "max") and isinstance(control.value, int | float):
        steps = round((control.max - control.min) / (control.step or 1))
        values = [control.min + i * control.step for i in range(steps)] + [control.max]
    else:
        return []
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def faults_shown(panel):
    return [widget.value for widget in family(panel) if "qsal-error" in widget._dom_classes and widget.value]


def picture(panel):
    return [bytes(widget.value) for widget in family(panel) if isinstance(widget, ipywidgets.Image)]


def sweep(panel):
    faults = []
    for control in family(panel):
        seen, values = [], values_of(control)
        before = control.value if values else None
        for value in values:
            try:
                control.value = value
                shown = faults_shown(panel)
            except Exception as error:
                shown = [f"{type(error).__name__}: {error}"]
            faults += [f"{control.description} = {value!r}: {text}" for text in shown]
            seen.append(picture(panel))
        if len(values) > 1 and all(state == seen[0] for state in seen):
            faults.append(f"{control.description} moves nothing")
        if values:
            control.value = before
    return faults


def sweep_all():
    faults = [fault for panel in PANELS for fault in sweep(panel)]
    assert not faults, "; ".join(faults)


def wander(panel, moves, seed=0):
    """Set random controls to random values, one after the other."""
    chance, faults = random.Random(seed), []
    controls = [(control, values) for control in family(panel) if (values := values_of(control, most=1000))]
    before = [control.value for control, _ in controls]
    for _ in range(moves if controls else 0):
        control, values = chance.choice(controls)
        control.value = chance.choice(values)
        faults += [f"{control.description} = {control.value!r}: {text}" for text in faults_shown(panel)]
    for (control, _), value in zip(controls, before, strict=True):
        control.value = value
    return faults


def wander_all(moves):
    faults = [fault for panel in PANELS for fault in wander(panel, moves)]
    assert not faults, "; ".join(faults[:20])
    print(f"{len(PANELS)} panels, {moves} moves each")
