"""What a few seeds show: intervals, comparisons paired by seed, and a correction for many questions at once.

The rows compared are a table's with one run each: `qsal_helpers.study.load_records` returns one, but any with a column
"seed" will do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of a few values, such as one a seed, by Student's t.

    Half its width is t * s / sqrt(n): s is the sample's standard deviation, n how many values there are, and t
    Student's quantile for n - 1 degrees of freedom. One value has no interval: (nan, nan).

    Examples
    --------
    >>> low, high = interval([1.0, 2.0, 3.0])
    >>> round(low, 2), round(high, 2)
    (-0.48, 4.48)
    """
    from scipy import stats

    values = np.asarray(list(values), dtype=float)
    if len(values) < 2:
        return math.nan, math.nan
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def chosen(records: pd.DataFrame, wanted: dict[str, Any]) -> pd.DataFrame:
    """Return the records that are as `wanted`, a column -> what it must be; their index is the seed.

    Examples
    --------
    >>> import pandas as pd
    >>> records = pd.DataFrame({"precision": ["w2a2", "w4a4"], "seed": [0, 3], "accuracy": [0.7, 0.8]})
    >>> chosen(records, {"precision": "w4a4"}).accuracy.to_dict()
    {3: 0.8}
    """
    return records[(records[list(wanted)] == list(wanted.values())).all(axis=1)].set_index("seed", drop=False)


def compare(records: pd.DataFrame, value: str, one: dict[str, Any], base: dict[str, Any]) -> dict[str, float]:
    """Return by how much `value` differs between two kinds of runs, paired by their seeds.

    Runs of one seed share the first weights' seed and the order of the images. Where that makes them alike, their
    difference has less noise in it than the two have by themselves; where it does not, pairing gains nothing and costs
    degrees of freedom.

    Parameters
    ----------
    records : of `load_records`.
    one, base : a column of `records` -> what it must be, for instance ``{"precision": "w2a2"}``.

    Returns
    -------
    ``difference`` (one minus base, mean over the seeds that both have), ``low`` and ``high`` (its 95 % interval), ``p``
    (two-sided paired t-test; NaN with fewer than two seeds, or if the difference is the same at each, which tells
    nothing of its spread) and ``seeds``. All this knows of other seeds, and nothing of other test images.

    Raises
    ------
    ValueError if a description fits two runs of one seed.

    Examples
    --------
    >>> import pandas as pd
    >>> records = pd.DataFrame({"bits": [2, 2, 4, 4], "seed": [0, 1, 0, 1], "accuracy": [0.7, 0.8, 0.8, 0.92]})
    >>> found = compare(records, "accuracy", {"bits": 4}, {"bits": 2})
    >>> round(found["difference"], 3), found["seeds"]
    (0.11, 2)
    """
    from scipy import stats

    pair = []
    for wanted in (one, base):
        values = chosen(records, wanted)[value].dropna()
        if not values.index.is_unique:
            raise ValueError(f"{wanted} fits more than one run of a seed; name more columns")
        pair.append(values)
    differences = (pair[0] - pair[1]).dropna()
    low, high = interval(differences)
    spread = differences.std() if len(differences) > 1 else math.nan
    # Equal differences of rounded numbers still differ in their last digits.
    p = float(stats.ttest_1samp(differences, 0).pvalue) if spread > 1e-9 * differences.abs().max() else math.nan
    return {"difference": float(differences.mean()), "low": low, "high": high, "p": p, "seeds": len(differences)}


def holm(p_values: Iterable[float]) -> list[float]:
    """Return p-values corrected for how many there are (Holm 1979). NaN stays NaN and does not count.

    The smallest is multiplied by how many there are, the second smallest by one less, and so on; none may end up below
    a smaller one's, or above 1. So the chance of one false alarm among all of them is at most the level.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.5])
    [0.03, 0.08, 0.5]
    """
    p = np.asarray(list(p_values), dtype=float)
    order, corrected = p.argsort()[: np.isfinite(p).sum()], np.full(len(p), math.nan)  # NaN is sorted to the end
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected.tolist()


def differences(records: pd.DataFrame, one: dict[str, Any], base: dict[str, Any], measures: Iterable[str]) -> pd.Series:
    """Return one minus base in each of the measures, in words: a column of a table.

    The mean over the seeds that both have, its 95 % interval, and a star if it stands Holm's correction over the
    measures of this column. Two seeds are too few for a star and say so, as does one, which has no interval. Where the
    two kinds have no seed in common, the text is empty.

    Parameters
    ----------
    records, one, base : see `compare`.
    measures : columns of `records`.

    Examples
    --------
    >>> import pandas as pd
    >>> accuracy = [0.7, 0.8, 0.75, 0.8, 0.91, 0.84]
    >>> records = pd.DataFrame({"bits": [2, 2, 2, 4, 4, 4], "seed": [0, 1, 2] * 2, "accuracy": accuracy})
    >>> differences(records, {"bits": 4}, {"bits": 2}, ["accuracy"])["accuracy"]
    '+0.100 (+0.075 to +0.125)*'
    """
    import pandas as pd

    measures = list(measures)
    found = [compare(records, measure, one, base) for measure in measures]
    corrected = holm(each["p"] for each in found)
    return pd.Series([_in_words(*both) for both in zip(found, corrected, strict=True)], measures)


def pseudo_values(whole: float, without: Iterable[float]) -> list[float]:
    """Return the jackknife's pseudo-values: what each of n seeds adds to a number that was computed from all of them.

    n * whole - (n - 1) * without. Of a mean of n values they are these values. So their `interval` is one for numbers
    whose parts are not independent, such as a mean over pairs of seeds (Tukey 1958).

    Parameters
    ----------
    whole : the number, from all seeds.
    without : the same number n times, each time with another seed left out.

    Examples
    --------
    >>> pseudo_values(2.0, [2.5, 2.0, 1.5])  # of the mean of 1, 2 and 3
    [1.0, 2.0, 3.0]
    """
    left_out = np.asarray(list(without), dtype=float)
    return (len(left_out) * whole - (len(left_out) - 1) * left_out).tolist()


def _in_words(found: dict[str, float], corrected: float) -> str:
    if not found["seeds"]:
        return ""
    if found["seeds"] == 1:
        return f"{found['difference']:+.3f} (one seed)"
    note = " (two seeds)" if found["seeds"] == 2 else "*" if corrected < 0.05 else ""
    return f"{found['difference']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f}){note}"
