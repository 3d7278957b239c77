# %% [markdown]
# # 01 Quantization basics
#
# You learn what is lost when a number is stored in few bits, measure it against theory, and see what it does to a
# network.

# %% [markdown]
# ## What you will be able to do
#
# - write the uniform quantizer, and say how large its error is;
# - tell how many decibels one bit buys, and why;
# - choose a clip: the range that a grid covers;
# - choose between symmetric and asymmetric grids, and between one scale for a layer and one for each channel;
# - quantize a trained network, and say what breaks;
# - explain why training stops at a rounding, and write the straight-through estimator that gets past it.

# %% [markdown]
# ## What you need first
#
# [00 Start here](00_start_here.ipynb).
#
# New words, all in the [glossary](GLOSSARY.md): [level](GLOSSARY.md#level), [grid](GLOSSARY.md#grid),
# [clip](GLOSSARY.md#clip), [fake quantization](GLOSSARY.md#fake-quantization), [SAWB](GLOSSARY.md#sawb) and
# [straight-through estimator](GLOSSARY.md#straight-through-estimator).
#
# About 75 minutes: 30 to read and play, 43 for the exercises, and 1 to 2 of computing.

# %% [markdown]
# ## Set-up

# %% tags=["parameters"]
SCALE = None  # "smoke", "class" or "full"; None reads $QSAL_SCALE, else "class"

# %%
import copy
import os
import platform

import pandas as pd
import torch

from qsal_helpers import Precision, build_model, checks, describe, evaluate, fit, load_data, plots, widgets
from qsal_helpers import quantize, quantize_uniform, quantize_weight
from qsal_helpers.quantization import calibrate, weight_scale

SCALE = SCALE or os.environ.get("QSAL_SCALE", "class")
SIZE, EPOCHS = {"smoke": (1000, 1), "class": ("mini", 5), "full": ("full", 8)}[SCALE]
SEED = 0
BITS = [2, 3, 4, 5, 6, 7, 8]
torch.manual_seed(SEED)
print(f"Python {platform.python_version()}, torch {torch.__version__}, scale {SCALE}")

# %% [markdown]
# ## Which values can a few bits name?
#
# PyTorch stores a weight as *float32*: 32 bits, about four billion possible values. How few would do?
#
# With 2 bits there are four words: 00, 01, 10 and 11. Each can stand for one value, which we call a **level**.
# All levels together are a **grid**. If they are evenly spaced, the grid is **uniform**, and the distance between two
# neighbours is its **step**.

# %%
plots.plot_number_lines(-1, 1, bits=[2, 3, 4])

# %% [markdown]
# To **quantize** a value is to replace it by the nearest level. Values beyond the ends of the grid go to the
# nearest end: they are **clipped**.
#
# Take 2 bits from 0 to 1. The levels are 0, 1/3, 2/3 and 1. What becomes of 0.1, 0.6 and 3?

# %%
# NBVAL_CHECK_OUTPUT
quantize_uniform(torch.tensor([0.1, 0.6, 3.0]), bits=2, low=0.0, high=1.0)

# %% [markdown]
# In symbols: the grid has $b$ bits and reaches from $l$ (low) to $h$ (high). It has $2^b$ levels, and between
# them $2^b - 1$ gaps. So its step is
#
# $$s = \frac{h - l}{2^b - 1}.$$
#
# The quantized value of $x$ is
#
# $$Q(x) = l + s \cdot \mathrm{round}\!\left(\frac{\mathrm{clip}(x, l, h) - l}{s}\right).$$
#
# $\mathrm{round}(\dots)$ counts steps from the low end. The whole number that comes out is what a chip would store.
# Here we turn it back into a float, so that the rest of PyTorch can go on with it. This is called **fake
# quantization**.
#
# The picture has 2 bits from −1 to 1. Four words name four levels, and between them lie three gaps.
#
# ![A staircase with four stairs. The value runs to the right from below l = −1 to above h = 1, the level upwards. The
# words 00, 01, 10 and 11 stand for the levels −1, −1/3, 1/3 and 1. A step is (h − l) / 3. Values beyond l and h are
# clipped to the lowest and the highest stair. A dashed diagonal shows the values without
# rounding.](images/quantizer.svg)

# %% [markdown]
# ### Exercise 1: the uniform quantizer (medium, 8 minutes)
#
# Write $Q(x)$. `x` is a tensor, `bits` a whole number; `low` and `high` are numbers. Return a tensor of the shape of
# `x` that holds the levels themselves, such as 1/3, and not their places in the grid.
#
# Two tools: `x.clamp(low, high)` clips, and `torch.round` rounds.


# %%
def my_quantize(x, bits, low, high): ...


# %%
_ = checks.check_quantizer(my_quantize)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_quantize(x, bits, low, high):
#     step = (high - low) / (2**bits - 1)
#     return low + step * torch.round((x.clamp(low, high) - low) / step)
# ```
#
# </details>
#
# The package's version is `quantize_uniform`. Here it is at 2 bits from −1 to 1, for all values from −1.5 to 1.5.

# %%
values = torch.linspace(-1.5, 1.5, 1001)
plots.plot_rounding(values, quantize_uniform(values, bits=2, low=-1.0, high=1.0))

# %% [markdown]
# On the left is a staircase with one stair a level. On the right is the **error**, quantized value minus value.
# Inside the range it stays within half a step. Outside it grows without bound: that is the price of clipping.

# %% [markdown]
# ## How large is the rounding error?
#
# Half a step at most; but how much on average? That depends on where in a step the values fall.
#
# If the values spread over many steps, every place between two levels should be about equally likely. Call the error
# $e$. Then it is **uniformly distributed** between $-s/2$ and $s/2$, and the mean of its square is
#
# $$\frac{1}{s}\int_{-s/2}^{s/2} e^2 \, de = \frac{s^2}{12}.$$
#
# Is this so? Take bell-shaped values, as weights often are, on a grid from −4 to 4.


# %%
def error_in_steps(x, bits, clip):
    step = 2 * clip / (2**bits - 1)
    return (quantize_uniform(x, bits, -clip, clip) - x) / step


# %%
bell = torch.randn(100_000).clamp(-4, 4)
errors = {f"{bits} bits": error_in_steps(bell, bits, clip=4.0) for bits in (6, 3, 2)}
for name, error in errors.items():
    print(f"{name}: mean square {error.square().mean():.4f} steps², theory {1 / 12:.4f}")

# %%
plots.plot_error_density(errors)

# %% [markdown]
# With 6 bits theory and measurement agree. With 3 bits they still do, although a step is a little wider than the bell's
# standard deviation. With 2 bits a step is 2.7 of them: the places between two levels are no longer equally likely, and
# the theory is 7 % off. So use $s^2/12$ up to a step of about one standard deviation, and measure beyond.

# %% [markdown]
# ## What does one more bit buy?
#
# One bit more halves the step, nearly. So it divides the mean squared error $s^2/12$ by four, nearly.
#
# Such ratios are counted in **decibels** (dB): ten times the base-10 logarithm of a ratio of mean squares.
# A factor of four is $10 \log_{10} 4$ = 6.02 dB. The **signal-to-noise ratio** compares the mean square of the values
# with the mean square of the error.


# %%
def decibels(x, quantized):
    return 10 * torch.log10(x.square().mean() / (quantized - x).square().mean()).item()


# %% [markdown]
# For values spread evenly over the whole grid, from $-c$ to $c$, the mean square is $c^2/3$. With $s = 2c / (2^b -
# 1)$ the ratio becomes
#
# $$10 \log_{10} \frac{c^2 / 3}{s^2 / 12} = 20 \log_{10} (2^b - 1) \approx 6.02\, b .$$
#
# Let us measure it, for three kinds of values. Each grid reaches exactly to the largest of them.

# %%
signals = {
    "uniform": torch.rand(100_000) * 2 - 1,
    "sine wave": torch.sin(torch.linspace(0, 200, 100_000)),
    "bell": torch.randn(100_000),
}

# %%
measured = {}
for name, x in signals.items():
    clip = x.abs().max().item()
    measured[name] = [decibels(x, quantize_uniform(x, bits, -clip, clip)) for bits in BITS]
    print(f"{name:10} the step from 7 to 8 bits buys {measured[name][-1] - measured[name][-2]:.2f} dB")

# %%
plots.plot_decibels(BITS, measured)

# %% [markdown]
# The circles lie on the line. The other two run beside it, at the same slope once there are a few bits. A sine wave
# lies higher, because it spends most of its time near its ends. A bell lies lower, because its few extreme values
# stretch the grid and most levels serve almost nobody.
#
# That is a waste. Must a grid reach to the largest value?

# %% [markdown]
# ## A network to squeeze
#
# From here on we use real weights. This network is small: three convolutions and two linear layers. Behind each layer
# but the last stand a batch-norm and a ReLU. The batch-norm brings the numbers of each **channel**, the output of one
# filter, to mean 0 and spread 1, and then applies a scale and a shift that are learned.

# %%
data = load_data("fashion-mnist", SIZE)
torch.manual_seed(SEED)
model = build_model("cnn")
fit(model, data, epochs=EPOCHS, seed=SEED)
accuracy = evaluate(model, data)
print(f"The float network is right on {accuracy:.1%} of {len(data.test)} test images.")

# %%
for layer in describe(model):
    print(f"{layer['name']}: {layer['parameters']:7,} parameters")

# %% [markdown]
# ## Clip or round?
#
# Let a grid reach from $-c$ to $c$; $c$ is its **clip**. A large clip means wide steps, so all values are rounded
# coarsely. A small clip means fine steps, but the values beyond it are cut off.
#
# No value suffers from both: one beyond the clip lands exactly on the outermost level. So the two errors add up.


# %%
def split_error(w, bits, clip):
    clipped = w.clamp(-clip, clip)
    rounding = (quantize_uniform(w, bits, -clip, clip) - clipped).square().mean()
    clipping = (clipped - w).square().mean()
    return rounding.item(), clipping.item()


# %% [markdown]
# We try sixty clips on the weights of the second convolution, for each number of bits.

# %%
w = model.conv2.weight.detach()
clips = w.abs().max() * torch.linspace(0.05, 1, 60)
errors = {bits: torch.tensor([split_error(w, bits, clip.item()) for clip in clips]).T for bits in BITS}
total = {bits: errors[bits].sum(0) for bits in BITS}

# %% [markdown]
# **Predict first.** Below, the grid has 2 bits and nothing is clipped. Orange are its levels on the left, and its clip
# on the right. The star marks the best clip, well inside. With more bits, will it lie further in, or further out? Where
# at 4 bits, where at 8?

# %%
plots.plot_clipping(w.flatten(), 2, clips[-1].item(), clips.numpy(), *errors[2].numpy())

# %%
widgets.clip_panel(w.flatten().numpy(), clips.numpy(), {bits: errors[bits].numpy() for bits in BITS})

# %% [markdown]
# **What to notice.** The dashed curve (rounding) falls as the clip comes in, the dotted one (clipping) rises. Their sum
# has its least value, the star, where one starts to gain less than the other loses. With few bits rounding is
# the larger worry, so it pays to clip much. With many bits the star moves out.

# %%
for bits in BITS:
    best = total[bits].argmin()
    gain = 10 * torch.log10(total[bits][-1] / total[bits][best])
    print(f"{bits} bits: best clip at {clips[best] / clips[-1]:4.0%} of the largest weight, gain {gain:.1f} dB")

# %% [markdown]
# ### Exercise 2: the best clip (medium, 10 minutes)
#
# `w` is a tensor of weights, `bits` a whole number. Return the clip for which a grid from `-clip` to `clip` has the
# least mean squared error on `w`. The answer is one number above 0.
#
# Trying many clips is good enough. `quantize_uniform(w, bits, -clip, clip)` gives the quantized weights.


# %%
def best_clip(w, bits): ...


# %%
_ = checks.check_best_clip(best_clip)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def best_clip(w, bits):
#     largest = w.abs().max().item()
#     clips = [largest * i / 100 for i in range(1, 101)]
#     errors = [(quantize_uniform(w, bits, -clip, clip) - w).square().mean().item() for clip in clips]
#     return clips[errors.index(min(errors))]
# ```
#
# </details>
#
# Is there a rule without a search? **SAWB** is one (statistics-aware weight binning, Choi et al. 2019). It reads the
# clip off two
# averages, the root of the mean square $\sqrt{E[w^2]}$ and the mean magnitude $E|w|$. At 2 bits the
# clip is $3.12\,\sqrt{E[w^2]} - 2.064\,E|w|$. For bell-shaped weights of spread 1 this is 1.47; a search finds about
# 1.5. At 3 and 4 bits the constants are others. Above 4 bits our package takes the largest weight: the paper's line for
# 8 bits can come out below 0 for a trained layer. The lesson on PACT uses it.

# %% [markdown]
# ## Symmetric or asymmetric?
#
# A grid from $-c$ to $c$ is **symmetric**. A grid from any low to any high end is **asymmetric**.
#
# Weights fall on both sides of zero. Activations do not: after a ReLU, which replaces negative numbers by 0, they are
# never negative. What does a symmetric grid do with its negative half?

# %%
sample = data.normalise(data.train.images[:100])
with torch.no_grad():
    activations = model[:3](sample)
zeros = (activations == 0).float().mean()
print(f"activations after relu1: from {activations.min():.1f} to {activations.max():.1f}; {zeros:.0%} are exactly 0")

# %%
for name, x in {"weights": w, "activations": activations}.items():
    low, high = x.min().item(), x.max().item()
    clip = max(-low, high)
    symmetric = decibels(x, quantize_uniform(x, 6, -clip, clip))
    asymmetric = decibels(x, quantize_uniform(x, 6, low, high))
    print(f"{name:12} symmetric {symmetric:.1f} dB, asymmetric {asymmetric:.1f} dB: gain {asymmetric - symmetric:.1f}")

# %% [markdown]
# For activations the asymmetric grid gains more than the 6 dB that one whole bit is worth. The symmetric one spends
# half of its levels where there is no value. It also has no level at 0, where many activations lie; the asymmetric
# one stores those without error. For the weights there is little to gain.
#
# The usual choice follows: symmetric for weights, asymmetric from 0 for activations.
#
# One detail is left. Can a symmetric grid have a level at 0? Not with an even number of levels. The scheme "minmax"
# of our package gives up one level to have it. At 2 bits three are left:

# %%
quantize_weight(w, 2, "minmax").unique()

# %% [markdown]
# ## One scale for a layer, or one for each channel?
#
# A convolution has one filter for each of its output channels. If one filter is large and the others are small, a
# common grid is too coarse for the small ones. A grid **per channel** costs one more stored number a channel.
#
# We compare the two at 4 bits on the first convolution, which has the fewest weights.

# %%
first = model.conv1.weight.detach()
channel_errors = {
    "one scale": quantize_weight(first, 4, "minmax"),
    "a scale a channel": quantize_weight(first, 4, "minmax", per_channel=True),
}
mean_squares = {name: (q - first).square().mean((1, 2, 3)).numpy() for name, q in channel_errors.items()}
plots.plot_channels(first.abs().amax((1, 2, 3)).numpy(), mean_squares)

# %% [markdown]
# Most channels gain from a scale of their own, with much scatter. Towards the right end, where the large weights are,
# there is less to gain: the largest channel sets the common scale.

# %%
for name in ("conv1", "conv2", "conv3", "fc1", "fc2"):
    weight = model.get_submodule(name).weight.detach()
    one, many = (decibels(weight, quantize_weight(weight, 4, "minmax", per_channel=c)) for c in (False, True))
    print(f"{name}: {one:.1f} dB with one scale, {many:.1f} dB with one a channel: gain {many - one:.1f} dB")

# %% [markdown]
# ## What happens to a network that is quantized after training?
#
# Rounding the numbers of a trained network, without training it again, is **post-training quantization**.
# Errors of single weights are not what we care about. What does it do to the accuracy?
#
# Weights get the symmetric grid of the scheme "minmax", up to the largest weight and with a level at 0: at 2 bits it
# has three levels. Activations get a grid from 0 to a clip. `calibrate` shows the network 100 training images and sets
# each clip so that 99.9 % of a layer's positive activations lie below it. Where activations stay in float, the
# clip is the largest of them, so next to nothing is clipped.
#
# `Precision` says who gets how many bits. By itself it leaves 8 to the first and the last layer (lesson 02 says why).
# Here no layer is spared, so `first` and `layers` name these two. A pair holds the bits of a layer's weights and of its
# input.
#
# A fourth curve shows SAWB, the rule that clips weights at 2 to 4 bits.


# %%
def quantized(weights=32, activations=32, scheme="minmax"):
    precision = Precision(weights, activations, first=weights, layers={"fc2": (weights, activations)})
    return calibrate(quantize(model, precision, scheme), sample, quantile=1.0 if activations == 32 else 0.999)


# %%
accuracies = {
    "weights": [evaluate(quantized(weights=bits), data) for bits in BITS],
    "weights, clipped by SAWB": [evaluate(quantized(weights=bits, scheme="sawb"), data) for bits in (2, 3, 4)],
    "activations": [evaluate(quantized(activations=bits), data) for bits in BITS],
    "both": [evaluate(quantized(bits, bits), data) for bits in BITS],
}
plots.plot_accuracy(BITS, accuracies, reference=accuracy)

# %%
print(f"{'bits':26}" + "".join(f"{bits:7}" for bits in BITS))
for name, values in accuracies.items():
    print(f"{name:26}" + "".join(f"{value:7.1%}" for value in values))

# %% [markdown]
# From 8 bits down to 4 little is lost. Each bit takes away 6 dB or a little more; the network bears it, up
# to a point. Then it falls off a cliff: with 2-bit weights on a grid up to the largest weight it does hardly
# better than guessing, which would be right on 10 % of the images. SAWB's 2 bits keep most of the accuracy. Why?
#
# Two things differ. The wide grid reaches to the largest weight. And as it has a level at 0, it has only three levels:
# from 3 bits to 2 its gaps go from six to two, a third, where one bit fewer should about halve them. SAWB has four
# levels. Which of the two does the harm? We take them apart.
#
# (One thing more in the table is odd. At 3 and 4 bits SAWB is *behind* the wide grid, though a good clip leaves less
# squared error there, too; see "Clip or round?". So the least squared error is not yet the best accuracy. Lesson 02
# comes back to that.)


# %%
def on_levels(levels, clip_of):
    small, gaps = copy.deepcopy(model), levels - 1
    for layer in describe(model):
        weight = small.get_submodule(layer["name"]).weight.data
        clip = clip_of(weight)
        weight.copy_(torch.round((weight.clamp(-clip, clip) + clip) / (2 * clip) * gaps) / gaps * 2 * clip - clip)
    return f"{evaluate(small, data):.1%}"


clips_of = {
    "up to the largest": lambda weight: weight.abs().max(),
    "SAWB's clip": lambda weight: weight_scale(weight, 2),
}
pd.DataFrame({name: {f"{n} levels": on_levels(n, clip) for n in (3, 4)} for name, clip in clips_of.items()})

# %% [markdown]
# Either remedy alone, a fourth level or a good clip, wins back most of the loss; the clip does more. Both together are
# SAWB, and here they do no better than the clip alone. Lesson 00 had SAWB: that is why its 2-bit weights did so
# much better.
#
# Do activations bear 2 bits better than weights? These curves do not say. The activations are clipped, too, where 99.9
# % of them lie below, and they have four levels. The weights on the wide grid have no clip and three. With a good clip
# and four levels the weights come closer: 80.9 % against 88.1 in this training.

# %% [markdown]
# **Predict first.** The next figure puts three things side by side for 8-bit weights: the weights of the second
# convolution with their levels, the errors, and the accuracy of the whole network. (Of more than 64 levels only the two
# ends are drawn.)
# At how many bits will most weights of this layer land on the level 0?

# %%
grids = {bits: quantize_weight(w, bits, "minmax").flatten().numpy() for bits in BITS}
by_bits = dict(zip(BITS, accuracies["weights"], strict=True))
plots.plot_bits(w.flatten().numpy(), grids[8], 8, by_bits)

# %%
widgets.bits_panel(w.flatten().numpy(), grids, by_bits)

# %% [markdown]
# **What to notice.** The levels stay evenly spaced, whatever the histogram does. Here are 2 bits:

# %%
plots.plot_bits(w.flatten().numpy(), grids[2], 2, by_bits)

# %% [markdown]
# Only −c, 0 and c are left. Nearly all weights lie nearer to 0 than to c, so they become 0, and the histogram of errors
# takes the shape of the weights. (It looks wider because its axis ends at c/2.) And at 3 bits?

# %%
for bits in BITS:
    print(f"{bits} bits: {(grids[bits] == 0).mean():.0%} of the layer's weights are 0")

# %% [markdown]
# ### What breaks?
#
# Which layer is to blame? We put the weights of one layer at a time on 2 bits and leave all others alone.


# %%
def one_layer(name, scheme):
    precision = Precision(32, 32, first=32, last=32, layers={name: (2, 32)})
    return evaluate(calibrate(quantize(model, precision, scheme), sample, quantile=1.0), data)


# %%
layers = [layer["name"] for layer in describe(model)]
alone = {name: 100 * one_layer(name, "minmax") for name in layers}
plots.plot_bars(alone, "Only this layer has 2-bit weights", "test accuracy (%)", reference=100 * accuracy)

# %% [markdown]
# The layers differ much. Why? Let us look at the largest weight of each, counted in typical weights (the root of the
# mean square), and at how many weights become 0. Beside them stands the accuracy if SAWB clips that layer.

# %%
for name in layers:
    weight = model.get_submodule(name).weight.detach()
    ratio = weight.abs().max() / weight.square().mean().sqrt()
    zero = (quantize_weight(weight, 2, "minmax") == 0).float().mean()
    print(f"{name}: largest weight {ratio:4.1f} x typical, {zero:4.0%} become 0; SAWB: {one_layer(name, 'sawb'):.1%}")

# %% [markdown]
# In `fc1` the largest weight is nearly seven times a typical one. The grid stretches to it, and nearly all weights
# become 0: the layer is all but erased. So are `conv2` and `conv3`. With SAWB, its clip and its fourth level, most of
# the damage is gone.
#
# The table does not explain everything. `conv1` has the mildest tails and the fewest zeros, and is hurt all the same.
# `fc2` loses nine tenths of its weights and gives up 6 points, `conv1` fewer weights and nearly five times as many
# points. And `conv3` ruins the network, though `conv2` loses as many of its weights and `fc1` more. How much a layer
# matters is a second question, and only a test answers it.
#
# How does a network err whose weights and activations all have 2 bits on these wide grids? All classes are equally
# frequent among the test images, so a good network names each about equally often.

# %%
with torch.no_grad():
    said = quantized(2, 2)(data.normalise(data.test.images)).argmax(1)
share = {name: 100 * (said == i).float().mean().item() for i, name in enumerate(data.class_names)}
plots.plot_bars(share, "What the network says with 2 bits for weights and activations", "of all answers (%)")

# %% [markdown]
# It does not err a little everywhere. To six images in seven it gives one and the same answer, to the others a second
# one. Eight of the classes it never names.
#
# Could training repair such a network, with its few bits in place? There we meet a wall.

# %% [markdown]
# ## Why does training stop at a rounding?
#
# Training follows gradients: it asks how the loss changes if a weight changes a little. But if a weight changes a
# little, its rounded value does not change at all. The staircase is flat; its gradient is 0 almost everywhere.
#
# PyTorch knows that, and `torch.round` hands back a gradient of 0.

# %%
# NBVAL_CHECK_OUTPUT
number = torch.tensor(0.7, requires_grad=True)
torch.round(number).backward()
number.grad

# %% [markdown]
# With a gradient of 0 no weight moves. The way out is a useful lie. On the way forward, round. On the way back,
# pretend that the rounding was not there and hand the gradient straight through. This is the **straight-through
# estimator**, STE for short (Bengio et al. 2013).
#
# Why might that work? Seen from afar, the staircase is the diagonal inside the range, and flat outside. So
# `quantize_uniform` pretends a slope of 1 inside and keeps the 0 outside.


# %%
def rounded_as_it_is(x, bits, low, high):
    step = (high - low) / (2**bits - 1)
    return low + step * torch.round((x.clamp(low, high) - low) / step)


# %%
curves = {}
for name, quantizer in {"rounding as it is": rounded_as_it_is, "straight-through": quantize_uniform}.items():
    x = torch.linspace(-1.5, 1.5, 1000, requires_grad=True)
    y = quantizer(x, 2, -1.0, 1.0)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    curves[name] = (y.detach().numpy(), gradient.numpy())
plots.plot_gradients(x.detach().numpy(), curves)

# %% [markdown]
# ### Exercise 3: the straight-through estimator (medium, 10 minutes)
#
# `x` is a tensor. Return a tensor of its shape whose value is `torch.round(x)` and whose gradient by `x` is 1. One line
# is enough.
# `.detach()` helps: it keeps a tensor's value and cuts its gradient.


# %%
def my_round(x): ...


# %%
_ = checks.check_round_ste(my_round)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_round(x):
#     return x + (torch.round(x) - x).detach()
# ```
#
# The value is x + round(x) − x = round(x). The bracket is detached, so only the first x carries a gradient, and its
# gradient is 1. (The package uses a `torch.autograd.Function` instead: floating-point addition can end a hair
# beside the level.)
#
# </details>
#
# ### Does it train?
#
# Let us train a single number. Its 2-bit value should come near the target 0.1. The number that we train stays a
# float and is called **latent**; only its quantized value enters the loss.


# %%
def train_number(quantizer, target=0.1, steps=60, lr=0.02):
    latent, path = torch.tensor(-0.9, requires_grad=True), []
    for _ in range(steps):
        value = quantizer(latent, 2, -1.0, 1.0)
        (gradient,) = torch.autograd.grad((value - target) ** 2, latent)
        path.append((latent.item(), value.item()))
        latent.data -= lr * gradient
    return torch.tensor(path).numpy()


# %%
paths = {
    "rounding as it is": train_number(rounded_as_it_is),
    "straight-through": train_number(quantize_uniform),
}
plots.plot_paths(paths, levels=torch.linspace(-1, 1, 4).numpy(), target=0.1)

# %% [markdown]
# Without the STE nothing moves. With it the latent number walks, and its quantized value climbs level by level.
#
# Then it does not settle. The target lies between two levels. On one of them the lie says "up", on the other
# "down", and the latent number hops to and fro over the border between them. A smaller learning rate makes these hops
# shorter, not rarer: try `lr=0.002, steps=600`. Where training stops, chance decides which of the two levels is left.
#
# Now the whole network, with 2 bits for everything, before and after one epoch of training with straight-through
# gradients. Once on the wide grids up to each layer's largest weight, and once on the grids that SAWB clips.

# %%
for scheme in ("minmax", "sawb"):
    small = quantized(2, 2, scheme)
    before = evaluate(small, data)
    fit(small, data, epochs=1, seed=SEED)
    print(f"{scheme:6}: {before:.1%} when rounded, {evaluate(small, data):.1%} after one epoch; float {accuracy:.1%}")

# %% [markdown]
# On the clipped grids one epoch wins back nearly nine tenths of what rounding cost. On the wide grids the network
# starts with nearly all of its weights at 0, and the same epoch brings it to half of the images. (On another kind of
# processor it stayed at 10 %: so much hangs on chance here.) The straight-through estimator lets gradients pass. In one
# epoch it does not make a bad grid good. More epochs might do more; we did not try.
#
# Training with the quantizers in place is called **quantization-aware training**. The clips of the activations were
# trained along here, without a word. The next lesson tells how, and asks whether it helps.

# %% [markdown]
# ## Exercises
#
# Exercises 1 to 3 stand in the text above.
#
# ### Exercise 4: how many bits for a given quality? (easy, 5 minutes)
#
# A uniform signal fills its grid. `wanted` is a number of decibels. Return the fewest bits, a whole number from 1 up,
# that give at least so much signal-to-noise ratio.
#
# Use the formula of the section on decibels: the exact one, before the $\approx$. With few bits 6.02 a bit is too good.


# %%
def bits_needed(wanted): ...


# %%
_ = checks.check_bits_needed(bits_needed)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import math
#
#
# def bits_needed(wanted):
#     bits = 1
#     while 20 * math.log10(2**bits - 1) < wanted:
#         bits += 1
#     return bits
# ```
#
# </details>
#
# ### Exercise 5: where would you spend your bits? (open, hard, 10 minutes)
#
# Run the cell as it stands: with 3 bits for all weights the network has a certain size and accuracy.
#
# Then change the first line. Give each layer bits of its own, from 2 to 8, so that the network is *smaller* and
# *better* than that. Look at two things first: the number of parameters of each layer, and what two bits for one layer
# alone cost. The cell clips by SAWB up to 4 bits, so take the accuracies printed under the figure "Only this layer has
# 2-bit weights", not the bars, which clip nothing.

# %%
mine = {"conv1": 3, "conv2": 3, "conv3": 3, "fc1": 3, "fc2": 3}  # change these

precision = Precision(32, 32, layers={name: (bits, 32) for name, bits in mine.items()})
network = calibrate(quantize(model, precision, "sawb"), sample, quantile=1.0)
kilobytes = sum(layer["packed_bytes"] for layer in describe(network)) / 1000
print(f"{kilobytes:.1f} kB, accuracy {evaluate(network, data):.1%}")

# %% [markdown]
# <details><summary>One answer</summary>
#
# `fc1` holds most of the parameters, so nearly all bytes are saved there: give it 2 bits. The convolutions are small,
# so they may have 6 or 8 bits each and the network is still smaller: with 2 bits for `fc1` and 8 for the others it has
# 107.9 kB instead of 125.2. Whether it is also better is for your numbers to say. Beware of one thing: if you try many
# settings and keep the best *test* accuracy, you have fitted the test images. A real search uses a validation set,
# images cut off from the training part.
#
# </details>

# %% [markdown]
# ## In this lesson
#
# - A uniform quantizer clips, counts steps, rounds, and turns the count back into a value.
# - Up to a step of about one standard deviation of the values, the error is uniform with mean square $s^2/12$.
# - Each further bit buys close to 6.02 dB; a grid stretched by a few extreme values starts from a lower point.
# - The best clip balances rounding and clipping. The fewer bits, the further in it lies.
# - Symmetric grids suit weights, grids from 0 suit activations after a ReLU. A scale a channel helps where channels
#   differ.
# - A network quantized after training bears 8 bits well. At 2 bits the clip of the weights decides most; a fourth
#   level helps where the clip is bad.
# - Rounding has a gradient of 0. The straight-through estimator replaces it by 1, so that training can go on. In one
#   epoch it did not mend a bad grid.

# %% [markdown]
# ## References
#
# - Bengio, Léonard, Courville (2013). *Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
#   Computation.* [arXiv:1308.3432](https://arxiv.org/abs/1308.3432)
# - Choi et al. (2019). *Accurate and Efficient 2-bit Quantized Neural Networks.* MLSys. (SAWB)
# - Nagel et al. (2021). *A White Paper on Neural Network Quantization.*
#   [arXiv:2106.08295](https://arxiv.org/abs/2106.08295)

# %% [markdown]
# ## Next
#
# [02 PACT](02_pact.ipynb): can a network learn how far its numbers should reach?
