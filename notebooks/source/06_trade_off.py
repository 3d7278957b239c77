# %% [markdown]
# # 06 The trade-off
#
# You read the records of many trainings and find out which claims about small, readable networks they bear out.

# %% [markdown]
# ## What you will be able to do
#
# - put an interval on a figure that rests on a few seeds;
# - compare two kinds of training pair by pair, and ask many questions without fooling yourself;
# - say what bits and guidance cost and bring, with the number behind each word;
# - explain why two measures of a map can disagree, and what to do then;
# - add a run of your own to the study.

# %% [markdown]
# ## What you need first
#
# Lesson [05](05_combined_method.ipynb): the combined method, its measures, and a first verdict from one training each.
#
# New words, all in the [glossary](GLOSSARY.md): [confidence interval](GLOSSARY.md#confidence-interval), [paired
# test](GLOSSARY.md#paired-test), [p-value](GLOSSARY.md#p-value), [Holm's correction](GLOSSARY.md#holms-correction),
# [distillation](GLOSSARY.md#distillation), [temperature](GLOSSARY.md#temperature) and
# [sensitivity](GLOSSARY.md#sensitivity).
#
# About 88 minutes: 53 to read and play, 34 for the exercises, and 1 of computing. Nothing is trained here. How far the
# answers carry, to other data, measures and choices, is the question of lesson [08](08_how_far.ipynb).

# %% [markdown]
# ## Set-up

# %% tags=["parameters"]
SCALE = None  # "smoke", "class" or "full"; None reads $QSAL_SCALE, else "class"

# %%
import os
import platform
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from qsal_helpers import checks, load_data, plots, study, widgets
from qsal_helpers.checkpoints import load_model
from qsal_helpers.evidence import chosen, compare, differences, holm, interval
from qsal_helpers.study import GAINS, PRECISIONS, main_records, noise_floor, values_by_precision, with_measures

SCALE = SCALE or os.environ.get("QSAL_SCALE", "class")
FOLDER = Path("results/study")
records = with_measures(study.load_records(FOLDER))
print(f"Python {platform.python_version()}, torch {torch.__version__}, {len(records)} records, scale {SCALE}")

# %% [markdown]
# ## What is in the records?
#
# Each record is one training: what was trained, how, and everything that was measured. Who did the computing? We did,
# once, on two cores of a server. (Nearly all published runs but those of FashionMNIST-mini, most with a random mask,
# and some single ones were done on a processor of another kind; "A run of your own" says what that changes.) You read
# the result in seconds, the same at every scale.
#
# Three kinds of training come first. (The others, as those named "published-…", have one choice changed. Two of them
# are explained below, the rest in lesson [08](08_how_far.ipynb).)
#
# - **plain**: cross-entropy;
# - **guided**: this package's `SaliencyGuided()`, from lesson 04, with the signed ranking;
# - **published**: the authors' own procedure, `SaliencyGuided.as_published()`. Here masked images go through batch-norm
#   like all others.
#
# "-mini" are the small sets of this package, so you can do these runs again at home. The others are the official sets
# with all their training images. Every network is the lessons' "cnn", trained for 8 epochs; only that of CIFAR-10 is
# ResNet-20, trained for 6 epochs with crops and flips. A tenth of the training images is held back each time, and the
# weights kept are those of the epoch that does best on it. Accuracy is taken over all test images: 2,000 of
# fashion-mnist-mini, 1,000 of mnist-mini, 10,000 of each official set. The maps' measures are taken over the first 500
# (CIFAR-10: 200).
#
# How many seeds does each cell have?

# %%
main = main_records(records)
counts = main.pivot_table(index=["set", "objective"], columns="precision", values="seed", aggfunc="count")
counts.reindex(columns=PRECISIONS).fillna(0).astype(int)

# %% [markdown]
# ## How much is one training worth?
#
# Train the same network twice, with another seed. The seed draws the first weights, the images held back, the order of
# the others and the random fills. Nothing of interest differs. Do you get the same accuracy?

# %%
SET = "fashion-mnist-mini"
here = main[main.set == SET]
fp32 = here[(here.objective == "plain") & (here.precision == "fp32")].set_index("seed").accuracy
print(", ".join(f"seed {seed}: {value:.2%}" for seed, value in fp32.items()))

# %% [markdown]
# You do not. So a difference between two single trainings says little: part of it is the draw of the seed.
#
# With n values the mean is steadier than each of them. How steady? Let $s$ be their standard deviation, with n - 1
# below the fraction line, as torch's `std` has it. The mean of n values varies by about $s / \sqrt{n}$, its **standard
# error**. The 95 % **confidence interval** of the mean is
#
# $$\bar{v} \pm t \, \frac{s}{\sqrt{n}}$$
#
# Here $\bar{v}$ is the mean. For many values $t$ is 1.96. For few it is larger, because $s$ itself is then a rough
# guess: for five values it is 2.78, for three 4.30. It comes from Student's distribution with n - 1 degrees of freedom:
# the point that 2.5 % of it lie above.
#
# What does the interval promise? If we repeated the whole study many times, 95 of 100 such intervals would hold the
# true mean. That rests on an assumption: the values of different seeds scatter around it roughly like a normal
# distribution. Three or five seeds cannot check it.
#
# ### Exercise 1: half the width (easy, 5 minutes)
#
# Write `half_width`: what stands behind the ±, for a tensor of values and a given t.


# %%
def half_width(values, t): ...


# %%
_ = checks.check_half_width(half_width)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def half_width(values, t):
#     return t * values.std() / len(values) ** 0.5
# ```
#
# </details>
#
# The package's version looks t up by itself and returns both ends.

# %%
low, high = interval(fp32)
print(f"fp32, plain, {len(fp32)} seeds: mean {fp32.mean():.2%}, 95 % interval {low:.2%} to {high:.2%}")

# %% [markdown]
# ## What do bits cost in accuracy?
#
# **Predict first.** Write down two numbers: how many points of accuracy you expect 2 bits to cost, and guidance.

# %%
sets = ["fashion-mnist-mini", "mnist-mini", "fashion-mnist", "mnist", "cifar10"]
plots.plot_against_bits(
    {name: values_by_precision(main[main.set == name], "accuracy") for name in sets}, "test accuracy"
)

# %% [markdown]
# A small dot is one training. The mark to its left is the mean, and the stroke is its 95 % interval, drawn from three
# seeds on. Look first at how far dots of one colour scatter at one place: that is chance. Then compare the means of
# neighbours.
#
# Each panel has an axis of its own: that of the official MNIST spans one point, that of CIFAR-10 twelve. MNIST-mini and
# the official MNIST have three seeds, so $t$ is 4.30 there, and the strokes are long; the official FashionMNIST has
# four. CIFAR-10 has one training of each kind, which knows nothing of a second one. There the bits cost points, up to
# ten of them. Everywhere else they cost a point at most, or nothing that can be told from 0.
#
# One kind of training stands out, the published one. On clothes it loses five to six points, where our guided one loses
# 0.1 to 0.9. Why? There are several suspects.
#
# One is batch-norm. Its running statistics, which are used at test time, are gathered from all images that pass in
# training, and in the published procedure half of these are masked. The test images are not. So there is a fourth kind
# of run, "published-frozen": the published procedure in everything, but masked images leave the statistics alone.
#
# Another is the ranking, which goes by the sign of the gradient. A fifth kind, "published-magnitude", changes this
# alone, to what the prose of the paper on guided training says (lesson 04).

# %%
kinds = ["plain", "guided", "published", "published-magnitude", "published-frozen"]
for kind in kinds:
    found = chosen(here, {"precision": "fp32", "objective": kind})
    low, high = interval(found.accuracy)
    kept = f"epoch {found.best_epoch.mean():.1f} of 8"
    print(f"{kind:20} mean {found.accuracy.mean():.2%}, interval {low:.2%} to {high:.2%}, {len(found)} seeds, {kept}")

# %% [markdown]
# The ranking alone brings back about half of the loss, clean statistics alone three quarters, neither all of it: both
# means stay below plain training's interval. Our guided training keeps the ranking by sign and has clean statistics,
# and in fp32 it loses no more than these seeds can tell. (It differs in four things more: it ranks by the gradient of
# the loss, takes that from the training pass itself, uses one dropout mask for both images, and moves only the masked
# image's prediction.) The authors' own network for MNIST has no batch-norm, so there the statistics do no harm.
#
# The last column is a third suspect: the epoch that was kept, on average over the seeds. Published training keeps the
# 5th, plain training the 7th. So here the published network, and its map, is one of less training. That it keeps the
# 7th with clean statistics may be a part of what these bring back.

# %% [markdown]
# ## What do bits save?
#
# The size does not depend on the seed, and guidance does not change it. So this table is exact.

# %%
costs = here.groupby("precision")[["packed_bytes", "bit_operations"]].first().reindex(PRECISIONS).dropna()
costs = costs.assign(smaller=costs.packed_bytes["fp32"] / costs.packed_bytes)
costs = costs.assign(fewer=costs.bit_operations["fp32"] / costs.bit_operations)
costs.columns = ["weights (bytes)", "bit operations an image", "times smaller", "times fewer operations"]
costs.map("{:,.0f}".format).assign(**{c: costs[c].map("{:.1f}".format) for c in costs.columns[2:]})

# %% [markdown]
# The number of bit operations is an estimate of the work (products times both bit widths), not a time. Lesson
# [07](07_deployment.ipynb) measures bytes on disk and milliseconds.

# %% [markdown]
# ## What do bits and guidance do to the map?
#
# As in lesson 05 we look at gains: by how much the gradient map beats the random map on the same network. Deletion and
# insertion need a fill, and lesson 05 has shown that the fill matters. So each comes twice, with black and with a blur.
#
# To these come Gini (focus), the share of the map on the object, and **sensitivity**: by how much the map changes,
# relative to itself, at most, over ten draws of tiny noise in the image. A low sensitivity is a steady map.

# %%
MEASURES = ["accuracy", *study.MEASURES]
plots.plot_measures(here, "FashionMNIST-mini")

# %% [markdown]
# The grey band is the **noise floor**: there lie the plain fp32 networks, which differ in nothing but the seed. The
# dashed line is the random map: of a gain it is 0 by definition, of the share on the object it is the object's share of
# the area. A gain below it means that the map orders the pixels worse than a random order does.
#
# Read one panel at a time. Which of them tell the same story? Which contradict each other?
#
# <details><summary>What we see</summary>
#
# From fp32 to 2 bits the plain network's four gains and its share on the object fall together. Gini and sensitivity
# tell another story: with 2 bits the map is a little more focused, and with few bits it is steadier.
#
# </details>

# %%
plots.plot_measures(main[main.set == "mnist-mini"], "MNIST-mini")

# %% [markdown]
# On MNIST-mini, with three seeds, the loss at 2 bits is larger: the plain map keeps about three tenths of its gains,
# loses much of its share on the object, and is less focused. Guidance brings it back to the object. It returns all of
# the insertion gain with black, and a third to three fifths of the other three.
#
# But not everything goes the same way as on FashionMNIST-mini. In fp32 and with 4 bits guidance *lowers* both deletion
# gains and raises the insertion gain with black, at all three seeds.

# %% [markdown]
# ## Is the difference real?
#
# Two intervals may overlap, and the difference can still be real. Why? Because runs come in **pairs**: seed 0 of one
# kind and seed 0 of the other start from the same random numbers and see the images in the same order. What both share
# drops out of their difference.
#
# That helps where the two move together, and costs a little where they do not.
#
# So take the differences first: $d_i = a_i - b_i$, where $a_i$ is the value of the one kind at seed $i$ and $b_i$ that
# of the other. Then ask how far their mean is away from 0, in units of
# its standard error:
#
# $$t = \frac{\bar{d}}{s_d / \sqrt{n}}$$
#
# Here $\bar{d}$ is the mean of the n differences and $s_d$ their standard deviation. (This $t$ is computed from the
# data. The $t$ of the interval above was the value that $|t|$ exceeds by chance once in twenty times.) A large $|t|$ is
# hard to get by chance. How hard, says the **p-value**: the probability of a $|t|$ at least as large if there were no
# difference.
#
# ### Exercise 2: the paired statistic (medium, 8 minutes)
#
# Write `paired_t` for two tensors of the same length.


# %%
def paired_t(a, b): ...


# %%
_ = checks.check_paired_t(paired_t)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def paired_t(a, b):
#     d = a - b
#     return d.mean() / (d.std() / len(d) ** 0.5)
# ```
#
# </details>
#
# `compare` of the package does this with the records. Does guidance change the focus of a w2a2 network's maps?

# %%
plain, guided = ({b: {"precision": b, "objective": kind} for b in PRECISIONS} for kind in ("plain", "guided"))
found = compare(here, "Gini", guided["w2a2"], plain["w2a2"])
print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))

# %% [markdown]
# By 0.012. If there were no difference, a $|t|$ as large as this would come once in 50 times.
#
# Do the two of a pair move together at all? Correlate them over the five seeds: guided with plain at each precision,
# and few bits with fp32, for every measure.

# %%
pairs = [(guided[bits], plain[bits]) for bits in PRECISIONS] + [(plain[b], plain["fp32"]) for b in PRECISIONS[1:]]
together = [chosen(here, one)[m].corr(chosen(here, base)[m]) for one, base in pairs for m in MEASURES]
print(f"{sum(r > 0 for r in together)} of {len(together)} correlations are above 0, mean {np.mean(together):+.2f}")

# %% [markdown]
# Chance alone would put half of them above 0, and five seeds tell little about one correlation. So we see little of it
# here. (The maps themselves do share something: "Is it still the same map?" in lesson [08](08_how_far.ipynb).) Then
# pairing hardly sharpens the answer. It costs a little: five differences tell less about their spread than two times
# five values do. We decided on it before we looked, and stay with it.

# %% [markdown]
# ## Many questions, some lucky answers
#
# We are about to ask dozens of such questions. If nothing at all were going on, each would still have a p below 0.05
# with probability 0.05. Of twenty questions one comes out "significant" on average.
#
# **Holm's correction** guards against that. Sort the p-values. Multiply the smallest by how many there are, $m$, the
# second by $m - 1$, and so on. None may end up below a smaller one's, so take the running maximum, and none above 1.
# After that, the chance of even *one* false alarm among these $m$ questions is at most 0.05.
#
# An example with three: 0.01, 0.04 and 0.5 become 0.03, 0.08 and 0.5. The second is no longer below 0.05.
#
# ### Exercise 3: Holm's correction (hard, 9 minutes)
#
# Write `my_holm` for a tensor of p-values; the answer stands in the order given.


# %%
def my_holm(p): ...


# %%
_ = checks.check_holm(my_holm)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_holm(p):
#     order = p.argsort()
#     factors = torch.arange(len(p), 0, -1)
#     raised = (p[order] * factors).cummax(0).values.clamp(max=1)
#     answer = torch.empty_like(p)
#     answer[order] = raised
#     return answer
# ```
#
# </details>

# %%
# NBVAL_CHECK_OUTPUT
print([round(p, 3) for p in holm([0.01, 0.04, 0.5])])

# %% [markdown]
# ## Who is right?
#
# Two papers stand behind this course, both listed at the end. What do their abstracts say that can be tested?
#
# - **Paper A** (Maleki and others): the combination of few bits and guidance keeps the accuracy, and it is more
#   interpretable. We take this as: guided w4a4 and w2a2 against plain fp32.
# - **Paper B** (Mousa Rezabeyk and others): fewer bits cost accuracy, and they cost clarity of the maps. We take this
#   as: plain w4a4 and w2a2 against plain fp32. (B's networks were guided, too. We ask plain ones, because that keeps
#   bits and guidance apart; guided ones follow in lesson [08](08_how_far.ipynb), "What do more digits say?".)
# - **Both** rest on a third sentence: guidance helps the map. We ask it where it is needed most, at w2a2.
#
# A used MNIST and CIFAR-10, B used MNIST and FashionMNIST. We ask every claim on every set.
#
# Neither names a measure of "interpretable" or "clear", so each stands for seven of ours. "More" means: more gain, more
# focus, more on the object, less sensitivity. That choice is ours. Holm's correction runs over all the questions of one
# claim.
#
# "Accuracy is kept" is another kind of question: a difference near 0 is what it hopes for. So we need to say how much
# loss we would still call kept: half a point, our choice. It counts as kept if the whole interval lies above -0.5
# points, and as lost if it lies below. These two intervals are not corrected.

# %%
WANTED = study.MEASURES  # each measure -> 1 where more is better, -1 where less is
claims = [("A: accuracy is kept", "accuracy", guided[b], plain["fp32"], 0) for b in ("w4a4", "w2a2")]
claims += [
    ("A: more interpretable", m, guided[b], plain["fp32"], w) for b in ("w4a4", "w2a2") for m, w in WANTED.items()
]
claims += [("B: fewer bits cost accuracy", "accuracy", plain[b], plain["fp32"], -1) for b in ("w4a4", "w2a2")]
claims += [
    ("B: fewer bits cost clarity", m, plain[b], plain["fp32"], -w) for b in ("w4a4", "w2a2") for m, w in WANTED.items()
]
claims += [("Both: guidance helps the map", m, guided["w2a2"], plain["w2a2"], w) for m, w in WANTED.items()]
print(f"{len(claims)} questions a data set")


# %%
def verdict(row):
    if row["seeds"] < 3:
        return "too few seeds"
    if row["wanted"] == 0:
        return "kept" if row["low"] > -0.005 else "lost" if row["high"] < -0.005 else "undecided"
    if not row["corrected p"] < 0.05:
        return "undecided"
    return "as claimed" if row["difference"] * row["wanted"] > 0 else "the opposite"


# %%
def judged(name):
    frame, rows = main[main.set == name], []
    for claim, measure, one, base, wanted in claims:
        kinds = [f"{side['precision']} {side['objective']}" for side in (one, base)]
        row = {"claim": claim, "measure": measure, "compared": " − ".join(kinds), "wanted": wanted}
        rows.append(row | compare(frame, measure, one, base))
    rows = pd.DataFrame(rows)
    rows["corrected p"] = rows.p.where(rows.wanted != 0).groupby(rows.claim).transform(holm)
    return rows.assign(verdict=[verdict(row) for row in rows.to_dict("records")])


verdicts = {name: judged(name) for name in sets if name != "cifar10"}


# %%
def readable(name):
    frame, signed = verdicts[name], "{:+.3f}".format
    span = [f"{signed(r.difference)} ({signed(r.low)} to {signed(r.high)})" for r in frame.itertuples()]
    shown = frame[["claim", "measure", "compared"]].assign(difference=span, p=frame["corrected p"].round(4))
    return shown.assign(verdict=frame.verdict).set_index("claim")


table = readable(SET)
table[table.verdict != "undecided"]

# %% [markdown]
# Each row has the mean difference over the seeds, its 95 % interval, the p-value after Holm's correction over the rows
# of its claim, and what follows. The rows left out are undecided; `table` has them all. "Undecided" is an answer: these
# seeds cannot tell.
#
# From here on two words have a fixed meaning. A difference is **sure** if its own 95 % interval leaves out 0. It
# **stands the correction** if Holm's p-value is below 0.05. The second is much harder.
#
# This lesson prints about 180 intervals, and lesson 08 some 760 more. If nothing were going on, one in twenty would
# leave out 0; in both lessons about half do. So most of what is sure is real. But do not build on a single one.
#
# The same for all sets, counted (CIFAR-10 has one seed, and no verdict):

# %%
count = pd.concat(verdicts, names=["set"]).reset_index()
count.pivot_table(index=["set", "claim"], columns="verdict", values="measure", aggfunc="count").fillna(0).astype(int)

# %% [markdown]
# How to read "undecided"? The smallest of fourteen p-values has to come from a difference of 6 standard errors with
# five seeds, and of 17 with three. Those after it need a little less. So the intervals say more than the verdicts.
#
# Two things the verdicts do not say. The guard holds within one claim on one data set. What is left, if all questions
# of a set count as one family?

# %%
for name, frame in verdicts.items():
    stand = frame.verdict.isin(["as claimed", "the opposite"]).sum()
    left = sum(p < 0.05 for p in holm(frame.p.where(frame.wanted != 0)))
    print(f"{name}: {stand} differences stand within their claim, {left} over all questions of the set")

# %% [markdown]
# And the intervals know of other seeds, not of other images: all runs were judged on the same test images. For an
# accuracy of 90 % on 2,000 of them the standard error over images alone is 0.7 points.
#
# What about accuracy? By the margin of half a point the combination with 4 bits has kept it on the official MNIST; on
# the official FashionMNIST it loses 0.3 points on average, and four seeds cannot exclude 0.6. (CIFAR-10 has no verdict;
# lesson [08](08_how_far.ipynb) looks at its single trainings.) With 2 bits it has lost a point on FashionMNIST, and
# kept it on MNIST. But that margin is generous where fp32 errs on 0.57 % of the images: the guided 2-bit networks
# surely lose 0.17 points there, which is almost a third more errors.
#
# These are the signs on which all seeds agree, measure by measure:


# %%
def agreed(frame, measure, one, base):
    """Return "+" or "-" where one minus base has that sign at every seed, else "?"."""
    differences = (chosen(frame, one)[measure] - chosen(frame, base)[measure]).dropna()
    return "+" if (differences > 0).all() else "-" if (differences < 0).all() else "?"


def signs(frame, asked):
    cells = pd.DataFrame({name: {m: agreed(frame, m, *pair) for m in MEASURES} for name, pair in asked.items()}).T
    chance, all_agree = cells.size / 2 ** (frame.seed.nunique() - 1), (cells != "?").sum().sum()
    print(f"all seeds agree in {all_agree} of {cells.size} cells; by chance they would in {chance:.1f}")
    return cells


asked = {f"{bits}: few bits − fp32, plain": (plain[bits], plain["fp32"]) for bits in PRECISIONS[1:]}
asked |= {f"{bits}: guided − plain": (guided[bits], plain[bits]) for bits in PRECISIONS}
signs(here, asked)

# %% [markdown]
# A sign is a hint, and a few of these are luck. Nor are the cells independent. The first three rows subtract the same
# five fp32 networks, so one lucky fp32 network colours a whole column. And gains go together. What stands the
# correction is more than a sign. Three things stand out in the tables printed here.
#
# 1. With 2 bits all four gains fall. That is the firmest finding: all seeds agree, with both fills, and all four
#    p-values stand the correction within their claim. For the map of a plain network paper B has the sign right. But
#    the map becomes more focused and steadier.
# 2. Guidance raises Gini and the deletion gain with blur at every seed and every precision.
# 3. By these seven measures the seeds show no loss in the quantized networks' maps by guidance. (Others do show one:
#   lesson [08](08_how_far.ipynb), "Would another method, or another unit, say the same?" and "What do the left-out
#   measures say?".) In fp32 it has a price by these, too: the deletion gain with black, the share on the object and the
#   steadiness fall.
#
# One warning belongs to this. Lesson 04's ranking by sign became our default *because* it did well on these images and
# these seeds (lesson [08](08_how_far.ipynb), "Which ranking?"). So they flatter it, and the official sets have the
# better word.
#
# How much of what 2 bits took does guidance give back?

# %%
mean_gains = here.groupby(["objective", "precision"])[GAINS].mean()
plain_two = mean_gains.loc["plain", "w2a2"]
taken, given = mean_gains.loc["plain", "fp32"] - plain_two, mean_gains.loc["guided", "w2a2"] - plain_two
print(", ".join(f"{gain}: {share:.0%}" for gain, share in (given / taken).items()))

# %% [markdown]
# A part of three gains, and nothing of the fourth. Two of these returns are sure, and only that of insertion with black
# stands the correction. And held against plain fp32, as paper A would have it, the combination with 2 bits is more
# focused, but less on the object, and two of its gains are smaller. These four stand the correction. With 4 bits only
# one difference does: the map is steadier.
#
# And the accuracy? At most precisions the seeds cannot tell the cost of guidance from 0, and in plain networks they
# cannot tell that of two bits. But asked four times, a question is weaker than asked once. So take means at each seed:
# for guidance over the four precisions, for two bits over plain and guided networks. (We thought of this after we had
# seen the single answers, so take it as a hint for the next study.)


# %%
def accuracy_costs(name):
    by_seed = main[main.set == name].pivot_table(index="seed", columns=["objective", "precision"], values="accuracy")
    guidance = (by_seed["guided"] - by_seed["plain"])[list(PRECISIONS)].mean(axis=1)
    two_bits = pd.concat([by_seed[kind]["w2a2"] - by_seed[kind]["fp32"] for kind in ("plain", "guided")], axis=1)
    return {"guidance": guidance.dropna(), "two bits": two_bits.dropna().mean(axis=1)}


for name in verdicts:
    for what, costs in accuracy_costs(name).items():
        low, high = interval(costs)
        print(f"{name:19} {what + ':':10} {costs.mean():+.2%} ({low:+.2%} to {high:+.2%}), {len(costs)} seeds")

# %% [markdown]
# Both cost about half a point on the FashionMNIST sets, and these seeds are sure of it. On the official MNIST two bits
# surely cost a tenth of a point, and guidance nothing that they can tell. Which two numbers had you written down?

# %% [markdown]
# ## What became of lesson 05's verdicts?
#
# Lesson 05 had one training of each kind, with 3 epochs where these have 8. On FashionMNIST it put the guided w4a4
# network ahead of plain fp32 in Gini and both gains. At 2 bits it could tell neither what guidance does to the share on
# the object and the gains, nor what the bits do to them. What do five seeds say?
#
# In the table, and in those to come unless we say otherwise, a star marks what stands Holm's correction over the
# measures of its column. A column asks fewer questions than a claim, so a star is weaker than a verdict of the section
# before. Accuracy stands as a fraction: -0.010 is one point.

# %%
frame, then = here, ["accuracy", "Gini", "on object", "deletion gain, black", "insertion gain, black"]
asked = {
    "w4a4 guided − fp32 plain": (guided["w4a4"], plain["fp32"]),
    "w2a2 guided − w2a2 plain": (guided["w2a2"], plain["w2a2"]),
    "w2a2 plain − fp32 plain": (plain["w2a2"], plain["fp32"]),
}
minus = partial(differences, measures=MEASURES)  # the star, the interval and how many seeds, in words
pd.DataFrame({name: minus(frame, *pair, measures=then) for name, pair in asked.items()})

# %% [markdown]
# Of the three leads of guided w4a4 only the one in Gini is left. In both gains the mean now points the other way, and
# for that of deletion even the whole interval does. At 2 bits five seeds can tell more: guidance surely raises the
# insertion gain, and the bits surely take from both gains and from the share on the object. Even Gini has turned:
# lesson 05 saw it fall a little, here it surely rises.
#
# Lesson 05 also saw 2 bits lose 1.2 points of accuracy. Here they lose 0.3 points on average, and the seeds
# cannot tell that from 0.
#
# Lesson 05 had kept its own rule: each lead was larger than its interval over the images and than the distance of the
# twins. What went wrong? A part may be that other things were asked: those networks had learned for 3 epochs, and their
# maps were judged on images that as many of them as possible get right. But the rule itself is too weak. One pair of
# twins is one draw of that distance, and for some measures theirs lay close together. And an interval over images says
# how well *these two* networks are known, not how the next two will differ.
#
# So the rule of lesson 05 is necessary and not enough. One training can tell you what to ask five about.

# %% [markdown]
# ## Where the measures disagree
#
# If all measures of a map measured one thing, a training that is good by one would be good by the others. Is it so?
# Take every training on one data set as a point, and correlate the measures over these points, by rank.

# %%
measured = here[MEASURES].rename(columns={"sensitivity": "steadiness"})
measured["steadiness"] *= -1
title = f"{SET}: rank correlation over trainings"
plots.plot_correlations(measured.corr("spearman").to_numpy(), list(measured), title)

# %% [markdown]
# In this picture larger is better for every measure (steadiness is minus sensitivity). Orange and violet mark the two
# signs, and white means that the two know nothing of each other.
#
# A cell that is clearly negative, say below -0.4, is a pair of measures that pull apart: the trainings that are good by
# the one are bad by the other. They cannot both be called quality without saying which one is meant.
#
# Why do they pull apart? The points are of several kinds: so many bits, this or that objective. Is it the kinds that
# differ, or do two trainings of *one* kind differ in this way, too? Take each kind's mean off, and look again.

# %%
within = measured - measured.groupby([here.objective, here.precision]).transform("mean")
plots.plot_correlations(within.corr("spearman").to_numpy(), list(within), f"{title} of one kind")

# %% [markdown]
# Between kinds, focus (Gini) pulled apart from accuracy and from the object. Within one kind little of that is left. So
# it comes from what was done to the networks: a training that buys focus pays with another measure. Two gains with the
# same fill go together in both pictures. Accuracy and steadiness lean apart in both, mildly. Is it the same on another
# set?

# %%
digits_mini = main[main.set == "mnist-mini"]
pair = digits_mini[["Gini", "on object"]]
of_one_kind = pair - pair.groupby([digits_mini.objective, digits_mini.precision]).transform("mean")
pooled, within = (frame.corr("spearman").iloc[0, 1] for frame in (pair, of_one_kind))
print(f"MNIST-mini: rank correlation of Gini and the share on the object {pooled:+.2f}, within one kind {within:+.2f}")

# %% [markdown]
# There the two go together, also within one kind. On digits a focused map is one on the digit.
#
# That is no defect of the measures. Each asks another question:
#
# - deletion: can the prediction live **without** these pixels?
# - insertion: can it live **from** these pixels alone?
# - Gini: is the answer short?
# - on object: does it agree with what **we** think is the object?
# - sensitivity: does it stay the same when nothing of interest changes?

# %% [markdown]
# ## Everything under your hand
#
# **Predict first.** The more is masked, the larger the insertion gain of a w2a2 network? With black, with a blur, with
# both?

# %%
tried = main_records(records, "mask_ratio")
tried = tried[tried.objective.isin(["plain", "guided"])]
tried = tried.assign(ratio=tried.mask_ratio.where(tried.objective == "guided", 0.0))


def by_precision(frame, measure):
    found = {p: frame[frame.precision == p] for p in PRECISIONS}
    return {p: dict(zip(rows.seed, rows[measure], strict=True)) for p, rows in found.items() if len(rows)}


values = {
    (name, measure, ratio): by_precision(frame, measure)
    for (name, ratio), frame in tried.groupby(["set", "ratio"], sort=False)
    for measure in MEASURES
    if frame[measure].notna().all()
}

# %%
first = {
    kind: {p: list(seeds.values()) for p, seeds in values[SET, "insertion gain, blur", ratio].items()}
    for kind, ratio in (("plain", 0), ("guided (ratio 0.5)", 0.5))
}
pair = [values[SET, "insertion gain, blur", ratio]["w2a2"] for ratio in (0, 0.5)]
by_seed = {seed: pair[1][seed] - pair[0][seed] for seed in sorted(set(pair[0]) & set(pair[1]))}
plots.plot_choice_of_study(first, "w2a2", by_seed, "insertion gain, blur", SET)

# %%
widgets.study_panel(values, list(PRECISIONS))

# %% [markdown]
# **What to notice.** Bars that point both ways are chance. Bars that all point one way are a hint: five do so by chance
# once in 16, three once in 4, and two every second time. Switch the fill of a gain from black to blur, and see whether
# the sign stays. Some combinations have no record yet.
#
# Lesson 05 ended with a network of 2 bits, guided with a ratio of 0.75. What does each ratio change in a plain w2a2
# network?

# %%
by_ratio, two = tried[tried.set == SET], {f"ratio {r}": {"precision": "w2a2", "ratio": r} for r in (0, 0.25, 0.5, 0.75)}
pd.DataFrame({name: minus(by_ratio, of, two["ratio 0"]) for name, of in two.items() if name != "ratio 0"})

# %% [markdown]
# Both insertion gains rise with the ratio, and so does the price: on average 0.4, 0.7 and 1.0 points of accuracy.
# Whoever wants to lose less than half a point masks a quarter of the pixels. But a ratio of 0.25 gives back nothing
# that these seeds can tell, and lowers the deletion gain with black still further, by 0.024. That stands the
# correction. And held against plain fp32?

# %%
pd.DataFrame({name: minus(by_ratio, of, {"precision": "fp32", "ratio": 0}) for name, of in two.items()})

# %% [markdown]
# At a ratio of 0.75 none of the seven measures of the map is surely worse than plain fp32's, and two are better after
# the correction: the deletion gain with blur, and Gini. It has its price: 1.3 points of accuracy. And "not surely
# worse" is weak praise: the means of the gains with black are 43 and 63 % of fp32's. Besides, 0.75 is the best of three
# ratios by these very images and seeds, which flatters it.
#
# And with all the images? The official FashionMNIST, again minus plain w2a2:

# %%
OFFICIAL = "fashion-mnist"
official = tried[tried.set == OFFICIAL]
pd.DataFrame({f"ratio {r}": minus(official, two[f"ratio {r}"], two["ratio 0"]) for r in (0.25, 0.5, 0.75)})

# %% [markdown]
# There, too, less masking costs less: 0.2 points on average, which these seeds cannot tell from 0, where a ratio of 0.5
# costs 0.8. With it the deletion gain with black surely falls; with 0.25 no gain surely changes. But by both ratios the
# map goes *off* the object, by nearly as much with a quarter of the pixels (0.066) as with half (0.080). A ratio of
# 0.75 has one seed here, which says the same of the object. Lesson [08](08_how_far.ipynb) comes back to that.

# %% [markdown]
# ## Can two bits have the maps of fp32?
#
# Neither paper says. Guidance gave back a part of what two bits had taken. What else could one try?
#
# Choosing by the test images would be grading our own exam. So more masking, another fill, and help from an fp32
# network were compared on training images held back for that (`python -m benchmarks.recipes`). Once we broke this rule:
# we dropped a longer training after a look at its test accuracy at seeds 0 and 1. So these two seeds may flatter what
# follows, and one column below leaves them out.
#
# The fp32 network is the small network's **float twin** of lesson 02: same data, same seed, trained first. It can help
# in two ways.
#
# - The small network **starts** from the twin's weights, not from random ones.
# - The small network **learns** from the twin's answers as well as from the labels. This is
#   [distillation](GLOSSARY.md#distillation).
#
# What is in an answer that is not in the label? Here are one shirt and an fp32 network:

# %%
model = load_model("results/checkpoints/fashion-mnist/fp32-0.safetensors")
data = load_data("fashion-mnist")
shirts = data.test[data.test.labels == data.class_names.index("Shirt")]
with torch.inference_mode():
    logits = model(data.normalise(shirts.images[:1]))[0]
for T in (1, 4):
    softened = (logits / T).softmax(0).tolist()
    best = sorted(zip(softened, data.class_names, strict=True), reverse=True)[:4]
    print(f"T = {T}:", ", ".join(f"{name} {p:.1%}" for p, name in best))

# %% [markdown]
# The label says "Shirt", and nothing else. The answer also says what this shirt is like. At the
# [temperature](GLOSSARY.md#temperature) $T = 1$ that is nearly hidden. Divide the logits by 4 before the softmax, and
# it shows.
#
# So the objective gets a second term. Let $p$ be the twin's softened probabilities and $q$ the small network's:
#
# $$\text{cross-entropy} + T^2 \, \mathrm{KL}(p \,\|\, q)$$
#
# Here KL is the divergence of lesson 04. $T^2$ is there because the gradient of this KL shrinks with $1/T^2$. The
# temperature of 4 is our choice.
#
# Two trainings are twice as many epochs. So one kind without help stands beside these: 16 epochs from random weights.
#
# **Predict first.** Which of the three brings the map back: the start, the answers, or the epochs?

# %%
helped = main_records(records, "start", "distilled", "epochs")
helped = helped[helped.objective == "plain"].assign(longer=helped.epochs == 16)
KINDS = {
    "neither": {"start": "scratch", "distilled": False, "longer": False},
    "16 epochs": {"start": "scratch", "distilled": False, "longer": True},
    "answers": {"start": "scratch", "distilled": True, "longer": False},
    "start": {"start": "twin", "distilled": False, "longer": False},
    "start and answers": {"start": "twin", "distilled": True, "longer": False},
}


def kind_of(precision, kind="neither", name=SET):
    return {"set": name, "precision": precision} | KINDS[kind]


def seeds_by_help(value):
    found = {kind: {p: list(chosen(helped, kind_of(p, kind))[value]) for p in ("fp32", "w2a2")} for kind in KINDS}
    return {kind: {p: seeds for p, seeds in each.items() if seeds} for kind, each in found.items()}


shown = ["accuracy", *GAINS, "on object"]
title = f"{SET}: help from the float twin"
chance = {"on object": here["random: foreground mass"].mean()}
plots.plot_against_bits({value: seeds_by_help(value) for value in shown}, title, noise_floor(here, shown), chance)

# %% [markdown]
# How much of what two bits took comes back? In brackets, the lowest and the highest of the seeds:


# %%
def given_back(name):
    columns = [*GAINS, "on object"]
    fp32, base = (chosen(helped, kind_of(p, name=name))[columns] for p in ("fp32", "w2a2"))
    taken, shares = (fp32 - base).mean(), {}
    for kind in list(KINDS)[1:]:
        each = (chosen(helped, kind_of("w2a2", kind, name))[columns] - base) / taken
        shares[kind] = each.agg(lambda v: f"{v.mean():.0%} ({v.min():.0%} to {v.max():.0%})")
    return pd.DataFrame(shares)


given_back(SET)

# %% [markdown]
# None of the three alone. More epochs bring back nothing of the gains with blur. The answers bring back nothing of the
# share on the object. The start brings back about half to three quarters of each, and costs 0.6 points of accuracy.
# Only with start and answers is every mean beyond fp32's. Single seeds scatter widely.
#
# How surely is that network as good as plain fp32? At seeds 0 and 1 a variant was dropped by its test accuracy, so the
# second column is the fairer one. The next two hold it against an fp32 network with the same help, and against two bits
# that have trained as long without help. The last asks what the help does for fp32 itself.

# %%
recipe, others = kind_of("w2a2", "start and answers"), helped[helped.seed >= 2]
helped_fp32 = kind_of("fp32", "start and answers")
found = {"minus fp32": minus(helped, recipe, kind_of("fp32"))}
found["minus fp32, seeds 2 to 4"] = minus(others, recipe, kind_of("fp32"))
found["minus helped fp32"] = minus(helped, recipe, helped_fp32)
found["minus w2a2, 16 epochs"] = minus(helped, recipe, kind_of("w2a2", "16 epochs"))
found["helped fp32 minus fp32"] = minus(helped, helped_fp32, kind_of("fp32"))
pd.DataFrame(found)

# %% [markdown]
# Over five seeds the map is on average at least as good as fp32's by each of the seven measures. Two gains are surely
# larger. Focus and steadiness are better by more than the correction asks. How much worse could the map be? By the ends
# of these intervals no gain is more than 0.008 lower. At seeds 2 to 4 one larger gain is left, and the ends are
# wider.
#
# An fp32 network with the same help differs from it in focus and steadiness only. For fp32 itself the help moves these
# two, and nothing else surely. Against 16 epochs without help all four gains are larger, and stand the correction.
#
# No guidance is in this, and the quantizers are the same. So at least on this set a map at two bits need not be worse
# than fp32's: it depends on where training starts and what it is asked for.
#
# The accuracy is within a point of fp32's, and that is all one can say. Its mean is 0.1 points lower over five seeds,
# and 0.4 at seeds 2 to 4. On held-back images it was 0.1 points lower at seeds 0 and 1, and 0.8 at two seeds more,
# where the deletion gain with black was seven tenths of fp32's (`benchmarks/RESULTS.md`).
#
# What does the help cost? A second training, and a slower one: each step takes two more passes forward, one of the twin
# and one of the network itself. The finished network is as small and as fast as any other with two bits.
#
# And on other data? These had no part in the choice.

# %%
names = [name for name in sets if name != SET and "twin" in set(helped[helped.set == name].start)]
found = {
    (name, f"minus {bits}"): minus(helped, recipe | {"set": name}, kind_of(bits, name=name))
    for name in names
    for bits in ("fp32", "w2a2")
}
pd.DataFrame(found)

# %% [markdown]
# On MNIST-mini most of what two bits had taken comes back: each gain is surely above plain w2a2's. fp32's map it does
# not reach: two gains stay surely below, one of them also after the correction. The accuracy stays surely below, too,
# by two or three images in 1,000.
#
# On the official FashionMNIST (four seeds) all four gains lie above fp32's on average, three of them surely. Two of
# these stand the correction, and so does the better steadiness. The price is half a point of accuracy, and it stands
# the correction, too.
#
# On the official MNIST (one seed) each gain lies far above plain w2a2's, and near fp32's or above it.
#
# On CIFAR-10 (one seed) nine of the ten lost points of accuracy come back, all of what the insertion gain with blur had
# lost, and more than half with black. The deletion gains fall; they lie below 0 even in fp32 (lesson
# [08](08_how_far.ipynb)). Both trainings together take twelve epochs, where fp32 had six; without help 24 epochs reach
# 84.1 %. So how much of it is the help, and how much the epochs, this does not tell.
#
# And with 4 bits? There is one seed of two sets:

# %%
four_bits = ("w4a4", "start and answers")
found = {
    (name, f"minus {bits}"): minus(helped, kind_of(*four_bits, name), kind_of(bits, name=name))
    for name in (OFFICIAL, "cifar10")
    for bits in ("fp32", "w4a4")
}
pd.DataFrame(found)

# %% [markdown]
# On CIFAR-10 the network ends 1.6 points above plain fp32, which had six epochs and no help. (With 24 epochs it is 0.2
# points: lesson [08](08_how_far.ipynb).) How much of that is the help, and how much the epochs, this does not tell. On
# the official FashionMNIST, where 4 bits had cost no accuracy, the help costs 0.4 points and moves no gain by more than
# 0.02.

# %% [markdown]
# ## Small, accurate, readable: who is left?
#
# Lesson 05 drew a Pareto front through single trainings. Here each point is the mean over the seeds. Filled points are
# guided, hollow ones are not, and a ring marks what none beats. The square is guidance with a ratio of 0.75, the
# diamond the recipe of the last section.

# %%
points = {p: chosen(here, plain[p]) for p in PRECISIONS}
points |= {f"{p} guided": chosen(here, guided[p]) for p in PRECISIONS}
points["w2a2 guided, ratio 0.75"] = chosen(by_ratio, two["ratio 0.75"])
points["w2a2 from its twin"] = chosen(helped, recipe)
sizes = {name: frame.packed_bytes.iloc[0] / 1000 for name, frame in points.items()}
wishes = ("accuracy", "deletion gain, black", "insertion gain, blur")
means = {wish: {name: frame[wish].mean() for name, frame in points.items()} for wish in wishes}
plots.plot_pareto(sizes, means, "size (kB)", f"{SET}: means over the seeds")

# %% [markdown]
# By accuracy three are left: fp32, mixed-4/2 and the diamond, within 0.14 points of each other. By the deletion gain
# with black the diamond is left alone: nothing larger has a higher mean. By the insertion gain with blur it does not
# lead. Guided w2a2 with a ratio of 0.75 is as small and has a little more, and pays with 1.2 points of accuracy; guided
# fp32 has more, too, and is 16 times as large. The diamond's lead over fp32 by deletion is not sure, nor are the two
# leads over it by insertion.

# %% [markdown]
# ## A run of your own
#
# Each record holds the command that does its run again. On the same kind of processor the same figures come out, to the
# digit. Another processor adds up in another order, so there the run ends a little elsewhere, as another seed's would.

# %%
print(records.command[records.set == SET].iloc[-1])

# %% [markdown]
# Add your own run in the same way. From the repository's folder, `python -m qsal_helpers.study run --size mini
# --precision w2a2 --objective guided --mask-ratio 0.3` takes some minutes and writes one more record. Run this notebook
# again, and the new mask ratio appears in the panel of "Everything under your hand". `python -m qsal_helpers.study
# list` shows what is done, and `... table` prints the papers' comparison. Its last part is the whole study in one
# table: the accuracy, how many of the seven measures are surely better and worse than plain fp32's, and over how many
# seeds. (Nothing is corrected in it.)

# %%
study.against_fp32(study.load_records(FOLDER))

# %% [markdown]
# In Python a run of your own is two lines; say `TRAIN = True` to go through with it:

# %%
TRAIN = False
runs = [study.Run(size="mini", precision="w2a2", objective="guided", mask_ratio=0.3, seed=seed) for seed in range(3)]
done = study.run_all(runs, FOLDER) if TRAIN else []
print("\n".join(run.id for run in runs))

# %% [markdown]
# These are the names of the files to come. The last part is made from all settings, so no two kinds of run share one.
# Kill it and start it again: only what is missing is done.

# %% [markdown]
# ## Exercises
#
# Exercises 1 to 3 stand above, where their lines are needed. Together they take 22 minutes.
#
# ### Exercise 4: your own claim (open, 12 minutes)
#
# Find one sentence about guidance or bits that you believe after lesson 05. Turn it into a row: a measure, two kinds of
# training, and the sign that you expect. Write all three down **before** you run the next cell with them. The measures
# are those in `MEASURES`; a kind has a precision ("fp32", "w4a4", "mixed-4/2", "w2a2") and an objective ("plain",
# "guided", "published").
#
# How many questions did you ask before you found a "significant" one? What should your p-value be multiplied by? And
# how many seeds would you need, if the interval is twice as wide as the difference?

# %%
mine = compare(
    here,
    "on object",
    {"precision": "fp32", "objective": "guided"},
    {"precision": "fp32", "objective": "plain"},
)
print(", ".join(f"{name} {value:.4g}" for name, value in mine.items()))

# %% [markdown]
# <details><summary>One answer</summary>
#
# Count every question that you looked at, also those that you did not write down, and multiply your p-value by that
# number: this is Holm's first step, and the safe one. An interval twice as wide as the difference ends at 0. If mean
# and spread stayed as they are, one seed more than five would do: the width shrinks with the root of their number, and
# t falls, too, together to 0.85 of it. But they will not stay, so plan for several more, and fix their number before
# you train them. Whoever adds seeds until the interval leaves 0 will get there by chance. And a question found with the
# old seeds is answered by the new ones alone.
#
# </details>

# %% [markdown]
# ## In this lesson
#
# - **Few bits.** On the small sets two bits cost the plain gradient's map much of its gains over a random map. On
#   FashionMNIST-mini that stands the correction over the claim. Accuracy hardly moves in plain "cnn". In ResNet-20 on
#   CIFAR-10 it falls by ten points in six epochs (one seed).
# - **Guidance.** On FashionMNIST-mini it returns a part of three of the four gains that two bits had taken, and costs
#   0.7 points of accuracy there (over all precisions surely 0.6, a question asked afterwards). The published procedure
#   costs five to six points on clothes.
# - **Paper A.** By our rule accuracy is kept on the official MNIST with 4 bits and with 2; on the official FashionMNIST
#   it is lost with 2, and with 4 four seeds cannot tell. On CIFAR-10, one of A's own sets, our one seed loses three
#   points with 4. The better map stands in two rows of fourteen on the official MNIST. On the other sets more rows say
#   the opposite.
# - **Paper B.** The lost clarity stands in six rows of fourteen on FashionMNIST-mini (two say the opposite) and in one
#   on MNIST-mini, on the official sets in none. The lost accuracy stands nowhere.
# - Neither paper has it: on FashionMNIST-mini a 2-bit network that starts from its fp32 twin and learns from its
#   answers has gains like plain fp32's.
# - How far does all this carry? Lesson [08](08_how_far.ipynb) holds it against other data, controls, units and methods.
# - One training is a draw. With a few, Student's t gives an interval for the mean. Pairs by seed make it narrower where
#   both move together. On FashionMNIST-mini we saw little of that.
# - Many questions need a correction, or chance will answer some of them.
# - "Undecided" is a result. So is "the opposite".
# - The measures of a map ask different questions. Where they disagree, a claim has to name its measure and its fill.

# %% [markdown]
# ## References
#
# - Maleki and others, 2024: [arXiv 2412.03915](https://arxiv.org/abs/2412.03915) (paper A).
# - Mousa Rezabeyk and others, 2024: [arXiv 2411.05858](https://arxiv.org/abs/2411.05858) (paper B).
# - Ismail, Corrada Bravo and Feizi, 2021: Improving deep learning interpretability by saliency guided training.
#   NeurIPS; "published" is their procedure.
# - Yeh and others, 2019: [On the (in)fidelity and sensitivity of explanations](https://arxiv.org/abs/1901.09392).
# - Holm, 1979: A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6.
# - Tomsett and others, 2020: [Sanity checks for saliency metrics](https://arxiv.org/abs/1912.01451), on how noisy these
#   measures are.
# - Gomez and others, 2022: [Metrics for saliency map evaluation of deep learning explanation
#   methods](https://arxiv.org/abs/2201.13291), on images unlike any the network has seen.

# %% [markdown]
# ## Next
#
# [07 Deployment](07_deployment.ipynb): from fake-quantized numbers to a file of integers. Or first [08 How far it
# carries](08_how_far.ipynb): the same questions on other data, with other methods and measures.
