# %% [markdown]
# # 03 Saliency maps
#
# You draw saliency maps by hand, measure whether they deserve belief, and see what 2 bits do to them.

# %% [markdown]
# ## What you will be able to do
#
# - say what question a saliency map answers before you look at it;
# - write the gradient map and integrated gradients yourself;
# - judge a map by numbers: is it faithful, focused, on the object, and does it depend on the network at all?
# - recognise a map that looks good and says nothing about the network;
# - say what quantization does to gradients, and which methods keep quiet about it.

# %% [markdown]
# ## What you need first
#
# Lessons [01](01_quantization.ipynb) and [02](02_pact.ipynb): rounding, the straight-through estimator, PACT.
#
# New words, all in the [glossary](GLOSSARY.md): [logit](GLOSSARY.md#logit), [integrated
# gradients](GLOSSARY.md#integrated-gradients), [deletion](GLOSSARY.md#deletion), [Gini
# index](GLOSSARY.md#gini-index), [randomisation check](GLOSSARY.md#randomisation-check) and [noise
# floor](GLOSSARY.md#noise-floor).
#
# About 70 minutes: 35 to read and play, 31 for the exercises, and 3 of computing.

# %% [markdown]
# ## Set-up

# %% tags=["parameters"]
SCALE = None  # "smoke", "class" or "full"; None reads $QSAL_SCALE, else "class"

# %%
import os
import platform
import warnings

import captum
import pandas as pd
import torch
from captum.attr import GuidedBackprop
from torch.nn import functional as F

from qsal_helpers import build_model, checks, evaluate, fit, load_data, metrics, plots, quantize, widgets
from qsal_helpers.saliency import completeness_error, saliency_map

SCALE = SCALE or os.environ.get("QSAL_SCALE", "class")
SIZE, EPOCHS, IMAGES = {"smoke": (1000, 2, 8), "class": ("mini", 4, 200), "full": ("full", 8, 1000)}[SCALE]
SEED = 0
warnings.filterwarnings("ignore", message="integrated gradients do not add up")  # the last section shows why
print(f"Python {platform.python_version()}, torch {torch.__version__}, captum {captum.__version__}, scale {SCALE}")

# %% [markdown]
# ## What does a map claim?
#
# Take a network that calls an image "Sandal". Three people ask three questions:
#
# 1. Which pixels, if they changed *a little*, would move the answer most?
# 2. How much did each pixel *contribute*, compared with an image that shows nothing, the **baseline**?
# 3. *Where* in the image did a late layer find what speaks for "Sandal"?
#
# Each question has its own map, and the three maps can differ without any of them being wrong.
# So a map without its question claims nothing. Ask first, then look.
#
# | method | its question | its unit |
# |---|---|---|
# | gradient | 1 | logits per unit of a pixel |
# | SmoothGrad | 1, on average over noisy copies of the image | logits per unit of a pixel |
# | input × gradient, integrated gradients | 2 | logits |
# | Grad-CAM | 3 | its own |
#
# A **logit** is one of the ten numbers that the last layer hands out, one a class. The largest one wins.
# We write $f_c(x)$ for the logit of class $c$ when the image is $x$.

# %% [markdown]
# ## Four networks to ask
#
# We train one network four times: in fp32, in fp32 from another random start (its **twin**), with 4 bits, with 2 bits.
#
# The twin is there for honesty. (In lesson 02 a float twin shared the start. This one does not.) Two fp32 networks with
# the same accuracy do not have the same maps.
# What differs between twins is ordinary. Only what differs by more can be blamed on the bits.

# %%
data = load_data("fashion-mnist", SIZE)
plan = {"fp32": ("fp32", SEED), "fp32 twin": ("fp32", SEED + 1), "w4a4": ("w4a4", SEED), "w2a2": ("w2a2", SEED)}
networks = {}
for name, (precision, seed) in plan.items():
    torch.manual_seed(seed)
    networks[name] = quantize(build_model("cnn"), precision)
    fit(networks[name], data, epochs=EPOCHS, seed=seed)

# %%
for name, network in networks.items():
    print(f"{name:10} {evaluate(network, data):.1%} of the test images are right")

# %% [markdown]
# We explain test images that all four networks get right. Then there is one class to explain, and no doubt about it.

# %%
with torch.no_grad():
    some = data.test[: 3 * IMAGES]
    answers = torch.stack([network(data.normalise(some.images)).argmax(1) for network in networks.values()])
right = (answers == some.labels).all(0)
chosen = some[right.nonzero().flatten()[:IMAGES]]
images, target = chosen.images, chosen.labels
x, fp32 = data.normalise(images), networks["fp32"]
names = [data.class_names[label] for label in target]
print(f"{right.float().mean():.0%} of the first {len(some)} test images are right four times; we take {len(x)} of them")

# %% [markdown]
# ## The gradient by hand
#
# Take a "network" with two pixels and one logit: three times the first pixel minus twice the second.

# %%
# NBVAL_CHECK_OUTPUT
pixels = torch.tensor([2.0, 5.0], requires_grad=True)
logit = 3 * pixels[0] - 2 * pixels[1]
print(torch.autograd.grad(logit, pixels)[0].tolist())

# %% [markdown]
# Change the first pixel by 0.01 and the logit moves by 0.03. Change the second and it moves by −0.02.
# The **gradient** collects these rates, one a pixel. For a network it is the same, with more pixels:
#
# $$ G(x) = \left| \frac{\partial f_c(x)}{\partial x} \right| $$
#
# The bars mean magnitude: we ask *how strongly* a pixel moves the logit, not in which direction. Where the direction
# matters, further down, we leave the bars away and say so.
# An image with several channels has one gradient a channel. We add their magnitudes, so that a map has one number a
# pixel.
#
# ### Exercise 1: the gradient map (medium, 8 minutes)
#
# `model` maps images `x`, of shape `(N, C, H, W)`, to logits `(N, classes)`. `target`, `(N,)`, holds the class to
# explain for each image. Return the map, `(N, H, W)`: the magnitudes, added up over the channels.
#
# Three hints:
#
# - `torch.autograd.grad(number, x)[0]` is the gradient of one number. `x` must have been marked before: `x =
# x.clone().requires_grad_()`.
# - `logits.gather(1, target[:, None])` picks each image's own logit.
# - To get one number from many images, add up their logits: each depends on its own image only.


# %%
def gradient_map(model, x, target): ...


# %%
_ = checks.check_gradient_map(gradient_map)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def gradient_map(model, x, target):
#     x = x.clone().requires_grad_()
#     score = model(x).gather(1, target[:, None]).sum()
#     return torch.autograd.grad(score, x)[0].abs().sum(1)
# ```
#
# </details>
#
# The package's `saliency_map` does the same, in batches, and leaves the network as it was.
# Beside it stands a map that knows nothing: random numbers. A measure that praises this one, too, praises nothing.

# %%
maps = {"gradient": saliency_map(fp32, x, target), "random": saliency_map(fp32, x, target, "random")}
columns = {"gradient (logits per unit)": maps["gradient"][:3], "random (no unit)": maps["random"][:3]}
plots.saliency_grid(images[:3], columns, shared="column", row_titles=names, title="A map, and noise")

# %% [markdown]
# Each column has a colour bar of its own: logits per unit of a pixel have nothing to do with random numbers. (The unit
# of a normalised pixel is the standard deviation of the data's pixels.) One hopes to see the object, and sees specks.
# Is that the network, or the method?
#
# ## How steady is it?
#
# Add a little noise to an image, so little that the network's answer stays. Does the map stay as well?
#
# We measure with **rank correlation**: sort the pixels of both maps by saliency, and correlate the places.
# It is 1 for the same order and about 0 for orders that know nothing of each other.

# %%
LEVELS = [0.01, 0.03, 0.1, 0.2]  # standard deviation of the noise, as a share of the image's range
noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED)) * (x.max() - x.min())
with torch.no_grad():
    kept = [(fp32(x + level * noise).argmax(1) == target).float().mean() for level in LEVELS]
print("answers that stay:", ", ".join(f"{share:.0%}" for share in kept), "at noise", LEVELS)


# %%
def steadiness(map_of):
    clean = map_of(x, 0)
    noisy = [map_of(x + level * noise, 1) for level in LEVELS]
    return torch.stack([metrics.rank_correlation(clean, m) for m in noisy], 1).numpy()


steady = {
    "gradient": steadiness(lambda at, _: saliency_map(fp32, at, target)),
    "smooth_grad": steadiness(lambda at, seed: saliency_map(fp32, at, target, "smooth_grad", samples=16, seed=seed)),
}
plots.curves_with_intervals(
    {"Same image, a little noise": steady}, LEVELS, "noise (share of the range)", "rank correlation with the clean map"
)

# %% [markdown]
# The band around each line is the 95 % interval of the mean over all images.
#
# Look at the gradient's line where nearly all answers stay: the order of the pixels has already changed a lot.
# The slope of a network with ReLUs jumps whenever a ReLU opens or closes, and there are thousands of them.
# So the gradient at one point is a true answer to a very local question.
#
# The second line belongs to the remedy, which draws noise of its own. Each noisy image gets a fresh draw here (another
# `seed`). With one draw for both maps the line would start near 1, and a part of that would be the shared noise.
#
# ## SmoothGrad
#
# **SmoothGrad** asks the gradient at many noisy copies of the image and takes the mean:
#
# $$ S(x) = \left| \frac{1}{n} \sum_{k=1}^{n} \frac{\partial f_c(x + \varepsilon_k)}{\partial x} \right| $$
#
# Here $n$ is the number of samples, and each $\varepsilon_k$ is a fresh image of normal noise; its standard deviation
# is 15 % of the image's range. How many samples are enough? Draw two sets of noise and compare the two maps.

# %%
SAMPLES = [1, 4, 16]
smooth = lambda n, seed: saliency_map(fp32, x, target, "smooth_grad", samples=n, seed=seed)
agreement = {n: metrics.rank_correlation(smooth(n, seed=1), smooth(n, seed=2)) for n in SAMPLES}
for n, values in agreement.items():
    print(f"{n:2} samples: two draws agree with a rank correlation of {values.median():.2f} (median of the images)")

# %%
smoothed = {f"n = {n}": smooth(n, seed=0)[:3] for n in SAMPLES}
columns = {"gradient": maps["gradient"][:3]} | smoothed
plots.saliency_grid(images[:3], columns, shared="map", row_titles=names, title="SmoothGrad with n samples")

# %% [markdown]
# Here each map is shown as a share of its own largest values: what counts is the shape.
#
# The map grows steadier with the samples, and it costs as many gradients as there are samples. Even 16 are not enough:
# two draws agree by 0.65. (That is why the second line in the figure before starts at about 0.65, and not near 1.)
#
# Steadier is not the same as truer: the question has changed from "at this image" to "around this image".
#
# ## Integrated gradients
#
# Question 2 was: how much did each pixel *contribute*, compared with black? The gradient cannot say. Take one pixel $x$
# and the logit $1 - \mathrm{ReLU}(1 - x)$. It climbs from 0 to 1 while $x$ goes from 0 to 1, and then stays at 1. At
# $x = 2$ the pixel has contributed 1, and the slope is 0.
#
# **Integrated gradients** walk from a **baseline** $b$, here the black image, in a straight line to $x$, and average
# the gradient on the way. Let $t$ run from 0, the baseline, to 1, the image:
#
# $$ I(x) = (x - b) \cdot \int_0^1 \frac{\partial f_c\big(b + t\,(x - b)\big)}{\partial x} \, dt $$
#
# They come with a promise, called **completeness**: the numbers of all pixels add up to $f_c(x) - f_c(b)$.
# This is the fundamental theorem of calculus: sum the slope along a way, and you get how far you have climbed.
#
# ### Exercise 2: the average along the way (medium, 10 minutes)
#
# `x` holds images, `(N, C, H, W)`, and `baseline` one image for all, `(1, C, H, W)`; `target` is `(N,)`, as above;
# `steps` is a whole number.
#
# Replace the integral by a mean over `steps` points, for example $t = (k + \frac12) / \text{steps}$ for $k = 0, 1,
# \dots, \text{steps} - 1$. Keep signs and channels: the result has the shape of `x`.


# %%
def my_integrated_gradients(model, x, baseline, target, steps): ...


# %%
_ = checks.check_integrated_gradients(my_integrated_gradients)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_integrated_gradients(model, x, baseline, target, steps):
#     total = torch.zeros_like(x)
#     for k in range(steps):
#         point = (baseline + (k + 0.5) / steps * (x - baseline)).requires_grad_()
#         score = model(point).gather(1, target[:, None]).sum()
#         total += torch.autograd.grad(score, point)[0]
#     return (x - baseline) * total / steps
# ```
#
# </details>
#
# Does the package's version keep the promise on the fp32 network? `completeness_error` is the distance between the
# sum and $f_c(x) - f_c(b)$, as a share of the latter.

# %%
for steps in (4, 16, 64):
    error = completeness_error(fp32, x, target, steps=steps)
    print(f"{steps:2} steps: median error {error.median():.2%}")

# %% [markdown]
# More steps, less error: the promise is kept as well as we care to pay for.
# Remember this. At the end of the lesson we ask a 2-bit network the same.
#
# ## Grad-CAM and guided backprop
#
# **Grad-CAM** answers question 3. It takes the activations of a late layer, here the last one before the image is
# flattened. That layer has 7 × 7 places, and many channels. Each channel gets a weight: the mean gradient of the logit
# with respect to it. The map is the weighted sum of the channels, its positive part, enlarged to 28 × 28 pixels. So it
# is smooth by construction, and cannot show anything finer than 4 × 4 pixels. Where no place speaks for the class,
# nothing is left of it.
#
# **Input × gradient** is a short cut to question 2: the gradient times the image, pixel by pixel. Its
# baseline is the value 0 of the *normalised* image, which is the data set's mean grey. So a black background is not 0
# in it, and it may get saliency. Integrated gradients above started from black.
#
# Input × gradient and integrated gradients have signs: a pixel may speak for the class or against it. The pictures and
# measures below take the magnitudes. Only where numbers must add up do we keep the signs.
#
# **Guided backprop** is the gradient with one change: on the way back, every ReLU also stops what is negative.
# The picture becomes crisper. Which question it answers is not clear, and we will see what follows from that.

# %%
OPTIONS = {"smooth_grad": {"samples": 16}, "integrated_gradients": {"steps": 32}, "grad_cam": {"layer": "relu3"}}
METHODS = [
    *("gradient", "input_x_gradient", "smooth_grad", "integrated_gradients"),
    *("grad_cam", "guided_backprop", "random"),
]
maps = {method: saliency_map(fp32, x, target, method, **OPTIONS.get(method, {})) for method in METHODS}
first = {name: m[:4] for name, m in maps.items()}
plots.saliency_grid(images[:4], first, shared="map", title="Seven methods, one network")

# %% [markdown]
# Seven maps of each image. Some look like what a human would have drawn. That is a statement about us.
#
# ## Is it faithful?
#
# A map claims that some pixels matter. So take these pixels away and look at the network.
#
# **Deletion**: paint the pixels black, the most salient first, and watch the probability of the class. The faster it
# falls, the more faithful the map. **Insertion**: start from black and put the pixels back, the most salient first. The
# faster it rises, the better. The figure shows by how much each map beats random numbers. The **area** under the curve
# of the probability itself is one number: low is good for deletion, high for insertion.

# %%
SHARE = torch.linspace(0, 100, 29)  # 28 steps
deletion = {n: metrics.deletion_auc(fp32, x, m, target, return_curve=True) for n, m in maps.items()}
insertion = {n: metrics.insertion_auc(fp32, x, m, target, return_curve=True) for n, m in maps.items()}
beyond = lambda curves: {n: 100 * (curve - curves["random"]).numpy() for n, curve in curves.items()}
plots.curves_with_intervals(
    {"Deletion: below 0 is better": beyond(deletion), "Insertion: above 0 is better": beyond(insertion)},
    SHARE.numpy(),
    "pixels changed (%)",
    "probability minus random's (points)",
)

# %% [markdown]
# All pixels gone, or none: there every map says the same. In between, a map earns its keep by how far it gets away from
# the random map, the line at 0. The plain gradient hardly leaves it.
#
# **Predict first.** Below you choose the method, the number of samples, and the image. For one image the curves are
# rough. Will the map that looks best to you also be the one whose curve falls fastest? Will more samples help the
# curve as much as they help the picture?

# %%
shown = min(8, len(x))
draws = {"smooth_grad": ("samples", [1, 2, 4, 8, 16, 32]), "integrated_gradients": ("steps", [1, 2, 4, 8, 16, 32])}
few = {name: {0: maps[name][:shown]} for name in METHODS if name not in draws}
for name, (option, counts) in draws.items():
    few[name] = {n: saliency_map(fp32, x[:shown], target[:shown], name, **{option: n}) for n in counts}
falls = {
    name: {n: metrics.deletion_auc(fp32, x[:shown], m, target[:shown], return_curve=True) for n, m in some.items()}
    for name, some in few.items()
}
plots.plot_method(
    images[0],
    few["smooth_grad"][32][0],
    {"smooth_grad": falls["smooth_grad"][32][0], "random": falls["random"][0][0]},
    "smooth grad, 32",
)

# %%
order = ["smooth_grad", "integrated_gradients", *(m for m in METHODS if m not in (*draws, "random"))]
widgets.method_panel(images[:shown].numpy(), {name: few[name] for name in order}, falls)

# %% [markdown]
# **What to notice.** Beauty and speed are two things: look for an image on which a speckled map falls faster than a
# tidy one. And on some images even the random curve falls fast. On others, like the printed one, the curve falls, and
# then the network grows surer than before. An image full of holes is unlike any that it was trained on, so a single
# curve need not fall.

# %%
for name in draws:
    heights = {n: f"{curves.mean():.2f}" for n, curves in falls[name].items()}
    print(f"{name}: mean height of the {shown} curves, by {draws[name][0]}: {heights}")
print(f"random: {falls['random'][0].mean():.2f}")

# %% [markdown]
# More samples make SmoothGrad's picture tidier. Its curves do not follow: their mean height stays between 0.43 and 0.47
# from 1 sample to 32 (random 0.54). One image proves nothing and eight prove little, so we go back to all of them.
#
# ## Is it focused, and on the object?
#
# **Focus**: does a map name few pixels? The **Gini index** is 0 if all pixels share the saliency equally,
# and close to 1 if one pixel has it all. **Entropy** asks the same with other weights: $-\sum_i p_i \log p_i$, where
# $p_i$ is the share of pixel $i$ in the saliency. Low means focused; a map of 784 equal pixels has $\log 784 = 6.66$.
#
# **On the object**: in FashionMNIST the background is black, so we know which pixels are the object. The
# **foreground mass** is the share of the saliency on them. The **pointing game** asks only whether the largest value
# lies on them.

# %%
mask = metrics.object_mask(images)
measures = {
    "deletion area": lambda m: metrics.deletion_auc(fp32, x, m, target),
    "insertion area": lambda m: metrics.insertion_auc(fp32, x, m, target),
    "Gini index": metrics.gini,
    "foreground mass": lambda m: metrics.foreground_mass(m, mask),
}
scores = {label: {name: measure(m).numpy() for name, m in maps.items()} for label, measure in measures.items()}
plots.distributions(scores, ["lower is better", "higher is better", "higher is more focused", "share on the object"])

# %% [markdown]
# A dot is the median, the thick line holds the middle half of the images, the thin one nine tenths. The dashed line
# is the random map's median.

# %%
table = {label: {name: values.mean() for name, values in rows.items()} for label, rows in scores.items()}
table["pointing game"] = {name: metrics.pointing_game(m, mask).mean().item() for name, m in maps.items()}
table["entropy"] = {name: metrics.entropy(m).mean().item() for name, m in maps.items()}
pd.DataFrame(table).round(3)

# %% [markdown]
# Read the means row by row. Integrated gradients seem to win everything: they delete fast, they are focused, and all
# of their mass lies on the object.
#
# All of it? Not nearly all, but every last bit. When a number is that good, ask where it comes from.
#
# Look at the pointing game, too. Chance is the object's share of the area, 48 %. The gradient hits the object in 41 %
# of the images, guided backprop in 39 %, SmoothGrad in 29 %. All three are below chance, and SmoothGrad, the lowest, is
# steadier than the gradient. Steady, faithful and on the object are three things.
#
# Grad-CAM can leave nothing of a map: in the figure its Gini reaches down to 0, the value of a map whose pixels are all
# equal. Such maps count here as chance on the object, and they delete row by row. So its row says less than the others.
#
# ## Is it sane?
#
# A map that explains what a network has *learned* must change when the network forgets. The **randomisation check**
# replaces all weights by random ones and asks for the rank correlation of the maps before and after. Near 0 is sane.
# Near 1 means: an untrained network orders the pixels in nearly the same way. (Pixels that are 0 in both maps count as
# agreement.)

# %%
tested = [method for method in METHODS if method != "random"]
check = {m: metrics.randomisation_check(fp32, x, target, m, **OPTIONS.get(m, {})) for m in tested}
twins = {
    m: metrics.rank_correlation(maps[m], saliency_map(networks["fp32 twin"], x, target, m, **OPTIONS.get(m, {})))
    for m in tested
}
plots.distributions(
    {
        "with an untrained network": {m: v.numpy() for m, v in check.items()},
        "with the trained twin": {m: v.numpy() for m, v in twins.items()},
    },
    ["rank correlation (0 is sane)", "rank correlation"],
    sharex=True,
)

# %% [markdown]
# Compare left and right. We would expect a map that shows what training has put into a network to agree more with a
# trained twin than with an untrained network. Where the left side is far above 0, a good part of the map was there
# before the training. Where both sides are equally high, nearly all of it was. (One untrained network and one twin.)
#
# Below are the medians. A
# Grad-CAM map of which nothing is left has no order of pixels, so such images are left out.

# %%
pd.DataFrame(
    {
        "untrained": {m: v.nanmedian().item() for m, v in check.items()},
        "trained twin": {m: v.nanmedian().item() for m, v in twins.items()},
    }
).round(2)

# %% [markdown]
# Integrated gradients: next to no difference; the next section asks why. Input × gradient: 0.20 of its 0.28 is there
# without any training. Guided backprop starts at 0.31, and training adds more to it than to any other but Grad-CAM.
#
# ## A map that looks good and is wrong
#
# Let us look at integrated gradients of a network that was never trained, and at something that comes from no network
# at all: the brightness of the image.

# %%
torch.manual_seed(SEED + 2)
untrained, black = build_model("cnn").eval(), x.min()
suspects = {
    "trained": maps["integrated_gradients"],
    "untrained": saliency_map(untrained, x, target, "integrated_gradients", steps=32),
    "brightness": (x - black)[:, 0],
    "random": maps["random"],
}
plots.saliency_grid(
    images[:4],
    {name: m[:4] for name, m in suspects.items()},
    shared="map",
    row_titles=names,
    title="Integrated gradients, and two maps of no network",
)

# %%
suspects["gradient"] = maps["gradient"]
judged = {
    "foreground mass": {name: metrics.foreground_mass(m, mask) for name, m in suspects.items()},
    "Gini": {name: metrics.gini(m) for name, m in suspects.items()},
    "deletion to black": {name: metrics.deletion_auc(fp32, x, m, target) for name, m in suspects.items()},
    "deletion to blur": {name: metrics.deletion_auc(fp32, x, m, target, fill="blur") for name, m in suspects.items()},
}
pd.DataFrame({label: {name: v.mean() for name, v in row.items()} for label, row in judged.items()}).astype(float).round(
    3
)

# %% [markdown]
# The untrained network has learned nothing. Its map lies on the object all the same, is about as focused as the trained
# network's, and in deletion to black it beats the plain gradient of the trained network. So does the brightness.
#
# The reason stands in the formula: integrated gradients *multiply by* $x - b$. Where the image is black, the map is 0,
# whatever the network thinks. Where it is bright, the map can be large. The outline in the map is the shoe's own.
#
# And deletion to black agrees, because it shares the blind spot: painting a bright pixel black changes the image most.
# In the last column deleted pixels are blurred instead. There the integrated gradients of the trained network do hardly
# better than random numbers. The plain gradient does, which looked worse in every other column.
#
# Nothing here is false: with their signs the numbers do add up to the change of the logit. False is the reading "the
# network looks at the object". The map says so before the network is asked.
#
# And the rank correlation of 0.91 with an untrained network? About half of a picture is black, and there all these maps
# are 0. So take numbers drawn at random, set them to 0 off the object, and compare. Then compare on the object's own
# pixels only.


# %%
def on_object(a, b):
    flat = [(m[pixels][None, None], n[pixels][None, None]) for m, n, pixels in zip(a, b, mask, strict=True)]
    return torch.cat([metrics.rank_correlation(*pair) for pair in flat])


rivals = {name: suspects[name] for name in ("untrained", "brightness")}
rivals["trained twin"] = saliency_map(networks["fp32 twin"], x, target, "integrated_gradients", steps=32)
rivals["random, 0 off the object"] = maps["random"] * mask
compared = {"all pixels": metrics.rank_correlation, "the object's pixels": on_object}
pd.DataFrame(
    {
        label: {n: how(suspects["trained"], m).median().item() for n, m in rivals.items()}
        for label, how in compared.items()
    }
).round(2)

# %% [markdown]
# So most of the 0.91 is the background. On the object's own pixels the untrained network agrees by 0.28 and the trained
# twin by 0.36. So training adds 0.08, about what it adds to the gradient map (0.10).
#
# But the brightness, which has seen no network, agrees as well as the twin: 0.38. (One untrained network, one twin.)

# %% [markdown]
# ## What do few bits do to a gradient?
#
# In a quantized network every activation is a staircase. What is the slope of a staircase? Zero, except at the steps.
# So the *true* gradient of a w2a2 network is 0 nearly everywhere, and a map of it would be black.
#
# What `autograd` returns is the **straight-through** gradient of lessons 01 and 02: a stand-in that lets training go
# on. Is it good for explaining?
#
# **Predict first.** Change each pixel of the object by a ten-thousandth. What will the logit of the 2-bit network do,
# and what will its gradient say?
#
# Here is a test. A gradient predicts what a small change $d$ of the image does to the logit: $\sum_i d_i \, \partial
# f_c / \partial x_i$ over the pixels $i$, here with the signs. Make the change and compare. We draw eight random
# changes of the object's pixels for each image, and correlate what was predicted with what happened. The unit is that
# of the normalised image, which the network sees: 1 is the standard deviation of all pixels of the data.

# %%
SIZES = [1e-4, 1e-3, 1e-2, 1e-1, 1]  # standard deviation of the change of a normalised pixel
changes = torch.randn(8, *x.shape, generator=torch.Generator().manual_seed(SEED)) * mask[:, None]


@torch.no_grad()
def foresight(network, signed):
    logit = lambda images: network(images).gather(1, target[:, None])[:, 0]
    before, columns = logit(x), []
    for size in SIZES:
        happened = torch.stack([logit(x + size * change) - before for change in changes])
        predicted = (size * changes[:, :, 0] * signed).sum((2, 3))
        columns.append(F.cosine_similarity(happened, predicted, dim=0))
    return torch.stack(columns, 1).numpy()


# %%
signed = {name: saliency_map(network, x, target, absolute=False) for name, network in networks.items()}
sight = {name: foresight(network, signed[name]) for name, network in networks.items()}
plots.curves_with_intervals(
    {"Does the gradient predict what a change does?": sight},
    SIZES,
    "size of the change (normalised pixels)",
    "correlation",
    log=True,
)

# %%
pd.DataFrame({name: values.mean(0) for name, values in sight.items()}, index=pd.Index(SIZES, name="size")).round(2)

# %% [markdown]
# This correlation takes off no mean (it is a cosine). Where a change did nothing at all it counts as 0.
#
# In fp32 the prediction is nearly perfect for tiny changes, and fades for large ones: a gradient is a local statement.
# With few bits it says next to nothing about tiny changes: they do nothing, or jump a whole step. Larger changes follow
# a landscape of which the straight-through gradient is a sketch. At a size of 0.1 the sketch is better with 4 bits than
# with 2 (0.42 and 0.14; fp32 0.57). At the largest size all four networks are alike: there fp32's own gradient predicts
# no more than the others.
#
# The staircase is one suspect. Max-pooling is a second: it hands the gradient to one winner among four activations.
# With four levels many windows have several winners, and the gradient goes to one of them by its position. How many?


# %%
@torch.no_grad()
def tied(network):
    activations = network[:3](x)  # up to the first ReLU or PACT
    windows = F.unfold(activations.flatten(0, 1)[:, None], 2, stride=2)
    largest = windows.amax(1, keepdim=True)
    inside = F.unfold(mask[:, None].float(), 2, stride=2).amin(1).repeat_interleave(activations.shape[1], 0) > 0
    counted = inside & (largest[:, 0] > 0)
    return ((windows == largest).sum(1) > 1)[counted].float().mean()


for name, network in networks.items():
    print(f"{name:10} several equal winners in {tied(network):.0%} of the first pooling's windows")

# %% [markdown]
# Counted are windows on the object whose winner is above 0; elsewhere no gradient passes, or all pixels are black. In
# most of them the gradient takes an arbitrary one of several equal ways (a clipped winner passes none). How much of the
# failed prediction comes from this, and how much from the staircase, we have not tested.
#
# Now the maps. One row is one image, and the four maps in it share one colour scale.

# %%
gradients = {name: m.abs() for name, m in signed.items()}
plots.saliency_grid(
    images[:4],
    {n: m[:4] for n, m in gradients.items()},
    shared="row",
    row_titles=names,
    unit="|gradient|",
    title="One image, four networks, one scale",
)

# %% [markdown]
# Are the maps of the low-bit networks different from fp32's? Different from what is the question: the twin's map is
# different, too. So we compare each network's maps with fp32's, over all images, and put the twin beside. Once by all
# pixels, and once by the *top tenth*: which share of the most salient tenth of one map is in that of the other? By
# chance it is a tenth.

# %%
others = {name: m for name, m in gradients.items() if name != "fp32"} | {"random": maps["random"]}
kinship = {
    label: {name: measure(gradients["fp32"], m).numpy() for name, m in others.items()}
    for label, measure in (("all pixels", metrics.rank_correlation), ("top tenth", metrics.top_k_overlap))
}
plots.distributions(kinship, ["rank correlation with fp32's map", "share in common with fp32's top tenth"])

# %%
pd.DataFrame(kinship).map(lambda values: pd.Series(values).median()).round(2)

# %% [markdown]
# The twin is the noise floor: only the seed separates it from fp32. The seed draws the first weights, the order of the
# images, and which of them are held back. So the twin is at a disadvantage, for w4a4 and w2a2 share all three with
# fp32.
#
# By both measures the w4a4 maps lie closer to fp32's than the twin's do. Much of that closeness is the shared seed. The
# w2a2 maps lie about as far as the twin's, although the shared seed helps them. These are one training each. Lesson 08
# compares without that help: there 2 bits change a map a little more than another random start does.
#
# Are the low-bit maps *worse*? Each network's map is judged on that network, and the random map on the same one is
# subtracted, because networks differ in how fast they give up an image.


# %%
def gained(area, network, m):
    return area(network, x, m, target) - area(network, x, maps["random"], target)


looked = {
    "Gini index": lambda network, m: metrics.gini(m),
    "foreground mass": lambda network, m: metrics.foreground_mass(m, mask),
    "deletion area minus random's": lambda network, m: gained(metrics.deletion_auc, network, m),
    "insertion area minus random's": lambda network, m: gained(metrics.insertion_auc, network, m),
}
quality = {
    label: {name: score(network, gradients[name]).numpy() for name, network in networks.items()}
    for label, score in looked.items()
}
for label in ("Gini index", "foreground mass"):  # the areas have the random map in them already
    quality[label]["random"] = looked[label](None, maps["random"]).numpy()
plots.distributions(
    quality, ["higher is more focused", "share on the object", "below 0 is better", "above 0 is better"]
)

# %%
means = {label: {name: values.mean() for name, values in rows.items()} for label, rows in quality.items()}
pd.DataFrame(means).round(3).astype(object).fillna("")

# %%
for name, gains in quality["insertion area minus random's"].items():
    error = 1.96 * gains.std() / len(gains) ** 0.5
    print(
        f"{name:10} insertion gains {gains.mean():+.3f} ± {error:.3f} on random, and wins on {(gains > 0).mean():.0%}"
    )

# %% [markdown]
# The ± is the 95 % interval of the mean over the images; it knows nothing of other trainings. So compare the distance
# between fp32 and w2a2 with the distance between the twins before you call it an effect of the bits. In the run printed
# here the first is the larger one, for insertion (0.050, twins 0.018) and for deletion (0.029, twins 0.001). In focus
# and in the share on the object it is the smaller one: these say nothing of the bits here. (A random map has 0.333 and
# 0.479. So none of the four networks puts much more on the object than chance.)
#
# Is the 2-bit map still better than random? In insertion it is worse, and its interval leaves out 0. Is that the bits?
# We ran the same cells, with the same seeds, on a processor of another kind. It rounds differently, and in a training
# that grows to another network. There the w2a2 map gained +0.006 ± 0.015, and the twin no more than +0.015 ± 0.016.
# One training of each kind is little evidence, however narrow its interval: lesson 06 repeats this over five seeds.

# %% [markdown]
# ## Which methods lie about it?
#
# **Integrated gradients** promise to add up. The promise rests on calculus: the gradient is the slope of the logit.
# Follow one image from black. The black line is the logit. The dashed one is the sum of the gradients so far.


# %%
def along(network, number, steps=200):
    way, image = torch.linspace(0, 1, steps + 1), x[number]
    points = black + way.view(-1, 1, 1, 1) * (image - black)
    gradient = saliency_map(network, points, int(target[number]), absolute=False)
    slope = (gradient * (image - black)[0]).sum((1, 2))
    with torch.no_grad():
        logit = network(points)[:, target[number]]
    return logit - logit[0], F.pad(torch.cumulative_trapezoid(slope, way), (1, 0))


quantized = ["fp32", "w4a4", "w2a2"]
missed = {n: {s: completeness_error(networks[n], x, target, steps=s) for s in (8, 64)} for n in quantized}
ordinary = int(missed["w4a4"][64].argsort()[len(x) // 2])
plots.plot_completeness({name: along(networks[name], ordinary) for name in quantized})

# %% [markdown]
# The image shown is the one whose sum misses with 4 bits by the median of all images. One image is an anecdote all the
# same. Here is the error of completeness on all of them, with few steps and with many.

# %%
plots.distributions(
    {f"{s} steps": {n: missed[n][s].numpy() for n in quantized} for s in (8, 64)},
    ["completeness error (share of the change)"] * 2,
    log=True,
    sharex=True,
)

# %%
for name in quantized:
    print(f"{name}: median error {missed[name][8].median():.1%} with 8 steps, {missed[name][64].median():.1%} with 64")

# %% [markdown]
# In fp32 the error melts away with more steps. With few bits it stays: no number of steps mends a slope that is not the
# slope. With 4 bits the sum misses by 8.5 % of the change, with 2 bits by 34.7 % (medians, 64 steps). So with 2 bits a
# pixel's number is its contribution only roughly. `saliency_map` warns about this; we silenced the warning in the
# set-up to show it here.
#
# **Guided backprop** lies more quietly. Captum, the library behind our function, changes the way back through modules
# of the class `nn.ReLU`. A PACT is none. So nothing is changed, and no error says so.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Captum's note that it sets hooks
    for name in quantized:
        guided = GuidedBackprop(networks[name]).attribute(x.clone().requires_grad_(), target)[:, 0]
        ours = saliency_map(networks[name], x, target, "guided_backprop", absolute=False)
        print(f"{name}: Captum's differs from the plain gradient by at most {(guided - signed[name]).abs().max():.3f},")
        print(
            f"{'':{len(name)}}  ours differs from the plain gradient by at most {(ours - signed[name]).abs().max():.3f}"
        )

# %% [markdown]
# On quantized networks Captum alone returns the plain gradient under another name. Our function puts an `nn.ReLU`
# before each PACT in a copy of the network. The output stays, and guided backprop becomes what it claims to be. What it
# claims is another matter: look again at its row in the randomisation check. A good part of its map is there with an
# untrained network.

# %% [markdown]
# ## Exercises
#
# Exercises 1 and 2 stand above, where their lines are needed.
#
# ### Exercise 3: mass on the object (easy, 5 minutes)
#
# `maps` is `(N, H, W)` and not negative; `mask` is `(N, H, W)` and True on the object. Return, for each map, the share
# of its sum that lies on the object, `(N,)`.


# %%
def foreground_share(maps, mask): ...


# %%
_ = checks.check_foreground_share(foreground_share)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def foreground_share(maps, mask):
#     return (maps * mask).sum((1, 2)) / maps.sum((1, 2))
# ```
#
# </details>
#
# ### Exercise 4: does a map know its class? (open, 8 minutes)
#
# A map explains one class. Then the map for another class should look different. The next cell compares, for each
# method, the map of the right class with that of the class in second place. Which methods tell the two classes
# apart? Compare with the randomisation check: are the same methods suspicious? What would you show a user who asks
# "why not the other class"?

# %%
with torch.no_grad():
    second = fp32(x).topk(2).indices[:, 1]
for method in tested:
    other = saliency_map(fp32, x, second, method, **OPTIONS.get(method, {}))
    print(f"{method:22} median rank correlation {metrics.rank_correlation(maps[method], other).nanmedian():.2f}")

# %% [markdown]
# <details><summary>One answer</summary>
#
# A high number means that the map hardly depends on the class. Grad-CAM (0.11), the gradient (0.22), SmoothGrad (0.26)
# and input × gradient (0.32) change with the class. Integrated gradients (0.92) and guided backprop (0.76) hardly do.
#
# Integrated gradients are high for the reason of the section above: both maps carry the factor $x - b$. So over all
# pixels they fail both tests, and most of the 0.92 may be the black background.
#
# Guided backprop is high because most of its picture is made by the ReLUs that it stops, whatever the class. It fails
# this test, and passes the other in part: training does change its map. One test does not replace the other.
#
# With magnitudes there is a second reason: a pixel that speaks for one class often speaks against its rival, and the
# magnitude hides the sign.
#
# To answer "why this and not that", explain the *difference* of the two logits, and keep the signs.
#
# </details>

# %% [markdown]
# ## In this lesson
#
# - A map answers one question. The question comes first.
# - The gradient is exact and local. Averages of gradients are steadier and answer a wider question.
# - Faithful, focused, on the object, sane: these are four questions, and a map can pass three and fail the fourth.
# - Multiplying by the distance from black puts every map on the object, and deletion to black rewards that.
# - The random map and the seed-to-seed twin belong beside every number.
# - With few bits the gradient is a stand-in. It says next to nothing about a tiny change of the image. About one of 0.1
#   it says three quarters of what fp32's says with 4 bits, and little with 2.
# - With few bits completeness breaks, and Captum's guided backprop turns into the plain gradient without a word.

# %% [markdown]
# ## References
#
# - Simonyan, Vedaldi, Zisserman, *Deep Inside Convolutional Networks*, 2014: the gradient map.
# - Smilkov et al., *SmoothGrad*, 2017.
# - Sundararajan, Taly, Yan, *Axiomatic Attribution for Deep Networks*, 2017: integrated gradients.
# - Selvaraju et al., *Grad-CAM*, 2017. Springenberg et al., *Striving for Simplicity*, 2015: guided backprop.
# - Petsiuk, Das, Saenko, *RISE*, 2018: deletion and insertion.
# - Adebayo et al., *Sanity Checks for Saliency Maps*, 2018: the randomisation check.
# - Hurley, Rickard, *Comparing Measures of Sparsity*, 2009: the Gini index.
# - Park et al., *Attribution Preservation in Network Compression*, 2020: compression deforms maps.

# %% [markdown]
# ## Next
#
# [04 Saliency-guided training](04_saliency_guided_training.ipynb): can training itself make the maps clearer?
