"""Intervals, comparisons and corrections hold what they promise, against scipy and by counting."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from qsal_helpers.evidence import compare, differences, holm, interval, pseudo_values


def test_the_interval_of_a_mean_is_that_of_scipy_and_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    samples = generator.normal(3.0, 2.0, (2000, 4))
    intervals = np.array([interval(sample) for sample in samples])
    covered = ((intervals[:, 0] < 3) & (intervals[:, 1] > 3)).mean()
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)
    expected = stats.t.interval(0.95, 3, samples[0].mean(), stats.sem(samples[0]))
    assert np.allclose(intervals[0], expected)
    assert all(math.isnan(end) for end in interval([1.0]))


def test_a_comparison_pairs_runs_by_their_seeds_and_equals_the_paired_t_test():
    a, b = [0.9, 0.8, 0.85, 0.95], [0.85, 0.79, 0.8, 0.97]
    rows = [{"bits": 4, "seed": s, "accuracy": v} for s, v in enumerate(a)]
    rows += [{"bits": 2, "seed": s, "accuracy": v} for s, v in reversed(list(enumerate(b)))]
    rows += [{"bits": 2, "seed": 9, "accuracy": 0.1}]
    found = compare(pd.DataFrame(rows), "accuracy", {"bits": 4}, {"bits": 2})
    assert math.isclose(found["p"], stats.ttest_rel(a, b).pvalue) and found["seeds"] == 4
    assert math.isclose(found["difference"], np.mean(np.subtract(a, b)))
    assert np.allclose((found["low"], found["high"]), stats.ttest_rel(a, b).confidence_interval(0.95))


def test_a_comparison_needs_two_seeds_for_a_verdict_and_one_run_a_seed():
    frame = pd.DataFrame({"bits": [4, 2], "seed": [0, 0], "accuracy": [0.9, 0.8]})
    found = compare(frame, "accuracy", {"bits": 4}, {"bits": 2})
    assert math.isclose(found["difference"], 0.1) and math.isnan(found["p"]) and found["seeds"] == 1
    with pytest.raises(ValueError, match="more than one run"):
        compare(frame, "accuracy", {"seed": 0}, {"bits": 2})


def test_the_same_difference_at_every_seed_tells_nothing_of_its_spread_and_has_no_p_value():
    frame = pd.DataFrame({"bits": [4, 4, 2, 2], "seed": [0, 1, 0, 1], "accuracy": [0.75, 0.5, 0.5, 0.25]})
    found = compare(frame, "accuracy", {"bits": 4}, {"bits": 2})
    assert found["difference"] == 0.25 and math.isnan(found["p"])
    frame["accuracy"] = [0.9, 0.8, 0.8, 0.7]  # equal but for the last binary digit
    assert math.isnan(compare(frame, "accuracy", {"bits": 4}, {"bits": 2})["p"])


def test_holms_correction_keeps_false_alarms_among_many_tests_at_the_level():
    generator = np.random.default_rng(0)
    alarms = np.mean([min(holm(generator.random(10))) < 0.05 for _ in range(2000)])
    assert alarms < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)
    assert holm([0.5, 0.01, 0.04]) == [0.5, 0.03, 0.08]
    assert holm([0.3, 0.01, 0.011]) == [0.3, 0.03, 0.03]  # none below a smaller one's
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.01, math.nan])[0] == 0.01 and math.isnan(holm([0.01, math.nan])[1])


def test_a_column_of_differences_stars_what_stands_the_correction_over_it_and_marks_too_few_seeds():
    generator = np.random.default_rng(0)
    rows = [{"bits": bits, "seed": seed} for bits in (2, 4) for seed in range(5)]
    frame = pd.DataFrame(rows).assign(sure=[0, 0, 0, 0, 0, 1, 1.1, 1, 0.9, 1], none=generator.normal(size=10))
    frame["almost"] = [0, 0, 0, 0, 0, 0.3, 1, 0.4, 0.5, 0.2]  # p = 0.026 by itself, twice that beside a surer one
    four, two = {"bits": 4}, {"bits": 2}
    alone, among = (differences(frame, four, two, m)["almost"] for m in (["almost"], ["almost", "sure", "none"]))
    found = compare(frame, "almost", four, two)
    assert among == f"{found['difference']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})" and alone == among + "*"
    assert differences(frame, four, two, ["sure"])["sure"].endswith(")*")
    assert differences(frame[frame.seed < 2], four, two, ["sure"])["sure"].endswith(" (two seeds)")
    assert differences(frame[frame.seed < 1], four, two, ["sure"])["sure"] == "+1.000 (one seed)"
    assert differences(frame[frame.bits == 4], four, two, ["sure"])["sure"] == ""


def test_pseudo_values_of_a_mean_are_the_values_and_those_of_a_variance_have_the_unbiased_one_as_their_mean():
    values = np.random.default_rng(0).normal(size=6)
    without = [np.delete(values, i) for i in range(6)]
    assert np.allclose(pseudo_values(values.mean(), [rest.mean() for rest in without]), values)
    found = pseudo_values(values.var(), [rest.var() for rest in without])
    assert math.isclose(np.mean(found), values.var(ddof=1))
