"""Move every control of every panel of a lesson over its whole range, inside the lesson's kernel."""

import ipywidgets

from qsal_helpers.widgets import PANELS


def family(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from family(child)


def values_of(control):
    """Return up to twelve values of a control, its two ends among them."""
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
    elif isinstance(control, ipywidgets.Checkbox | ipywidgets.ToggleButton):
        values = [False, True]
    elif hasattr(control, "max") and isinstance(control.value, int | float):
        steps = round((control.max - control.min) / (control.step or 1))
        values = [control.min + i * control.step for i in range(steps)] + [control.max]
    else:
        return []
    return [values[round(i * (len(values) - 1) / 11)] for i in range(12)] if len(values) > 12 else values


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
