# %% [markdown]
# # 07 Deployment
#
# You turn a trained low-bit network into whole numbers and into a file, and measure what that saves and what it does
# not.

# %% [markdown]
# ## What you will be able to do
#
# - say why a fake-quantized network and its version in integers give the same answers;
# - compute a convolution in integers, and say how wide its sums may become;
# - fold a batch-norm into the convolution before it;
# - pack four weights into a byte, and find them again in a file;
# - read a table of bytes, milliseconds and bit operations, and say which of its numbers are measured;
# - check that a deployed network looks at the same pixels as the one that was trained.

# %% [markdown]
# ## What you need first
#
# Lessons [01](01_quantization.ipynb) and [02](02_pact.ipynb): grids, fake quantization, SAWB, PACT. The section on
# pixels builds on [03](03_saliency_maps.ipynb).
#
# New words, all in the [glossary](GLOSSARY.md): [code](GLOSSARY.md#code), [accumulator](GLOSSARY.md#accumulator),
# [requantization](GLOSSARY.md#requantization), [pack](GLOSSARY.md#pack), [ONNX](GLOSSARY.md#onnx) and
# [occlusion](GLOSSARY.md#occlusion).
#
# About 85 minutes: 40 to read and play, 42 for the exercises, and 3 of computing.

# %% [markdown]
# ## Set-up

# %% tags=["parameters"]
SCALE = None  # "smoke", "class" or "full"; None reads $QSAL_SCALE, else "class"

# %%
import dataclasses
import os
import platform
import subprocess
import sys
import tempfile
import timeit
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from captum.attr import Occlusion

from qsal_helpers import build_model, checks, describe, evaluate, fit, load_data, metrics, plots, quantize, widgets
from qsal_helpers import export, folding, quantization

SCALE = SCALE or os.environ.get("QSAL_SCALE", "class")
sizes = {"smoke": (1000, 1, 3, 3), "class": ("mini", 4, 40, 60), "full": ("full", 8, 200, 200)}
SIZE, EPOCHS, IMAGES, RUNS = sizes[SCALE]
SEED, FOLDER = 0, Path(tempfile.mkdtemp())
print(f"Python {platform.python_version()}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}")

# %% [markdown]
# ## Why is the fake exact?
#
# In lessons 01 and 02 nothing was ever stored in 2 bits. Every weight was a float that happened to lie on a grid. This
# was the *fake* in fake quantization. Does a real integer network give the same answers, or only similar ones?
#
# Take four weights and four activations. A weight is a **code**, a whole number, times the **scale** of its layer.
# An activation is a whole number times the step of its PACT.

# %%
# NBVAL_CHECK_OUTPUT
codes, inputs = torch.tensor([3, -1, 1, -3]), torch.tensor([2, 0, 3, 1])
scale, step = 0.07, 0.5
fake = ((scale * codes) * (step * inputs)).sum()
whole = (codes * inputs).sum()
print(f"fake: {fake:.4f}    integers: {whole}, times both scales: {whole * scale * step:.4f}")

# %% [markdown]
# Both scales are the same in every term, so they can stand in front of the sum. With codes $q_i$, scale $s$,
# activations $a_i$ in whole numbers, and step $t$:
#
# $$\sum_i (s\, q_i)(t\, a_i) = s\, t \sum_i q_i\, a_i .$$
#
# The sum on the right has whole numbers only. It is computed without any rounding, and $s\,t$ is one float that may
# wait until the end. The fake on the left is rounded by float32 at about the eighth digit. So of the two, the
# integers are the more exact. The fake is what training needs: it has gradients.
#
# What remains to be shown is that nothing between two layers needs floats either.

# %% [markdown]
# ## Networks to deploy
#
# We train the CNN of the earlier lessons in fp32, with 4 bits and with 2 bits. A second fp32 network, from another
# random start, is the **twin**: it will tell us which differences are ordinary. The 8-bit network is the fp32 one,
# quantized after training.

# %%
data = load_data("fashion-mnist", SIZE)
plan = {"fp32": ("fp32", SEED), "fp32 twin": ("fp32", SEED + 1), "w4a4": ("w4a4", SEED), "w2a2": ("w2a2", SEED)}
models = {}
for name, (precision, seed) in plan.items():
    torch.manual_seed(seed)
    models[name] = quantize(build_model("cnn"), precision)
    fit(models[name], data, epochs=EPOCHS, seed=seed)
    models[name].cpu().eval()

# %%
sample = data.normalise(data.train.images[:200])
models["w8a8"] = quantization.calibrate(quantize(models["fp32"], "w8a8"), sample).eval()
for name, model in models.items():
    print(f"{name:10} {evaluate(model, data):.1%} of {len(data.test)} test images are right")

# %% [markdown]
# `to_integer` turns a quantized network into a list of steps in NumPy. Here is all that the 2-bit network computes for
# one image. Look at the second column.

# %%
two, net = models["w2a2"], export.to_integer(models["w2a2"], data)
values = net.values(data.test.images[:1])
for name, array in values.items():
    shape = " x ".join(map(str, array.shape[1:]))
    print(f"{name:14} {array.dtype!s:6} {shape:13} from {array.min():12,} to {array.max():12,}")

# %% [markdown]
# There is no float from the image to the logits. "ones" is an image of ones. Normalisation subtracts a mean from every
# pixel, but not from the border of zeros that a convolution puts around the image; the sums over "ones" account for it.
#
# The first and the last layer have 8 bits, so their inputs reach higher. Behind `relu1` to `relu3` nothing exceeds 3:
# two bits.

# %% [markdown]
# ## One convolution by hand
#
# Take the second convolution, one of its filters, and the place where that filter answers most strongly. Below are the
# integers under the filter in one of the 24 input channels.

# %%
filters = net["conv2"].codes
one = int(two.bn2.weight.argmax())
row, column = np.unravel_index(values["conv2"][0, one].argmax(), values["conv2"].shape[2:])
padded = np.pad(values["pool1"][0].astype(int), ((0, 0), (1, 1), (1, 1)))
window = padded[:, row : row + 3, column : column + 3]
channel = window.std((1, 2)).argmax()
plots.plot_products(window[channel], filters[one, channel])

# %% [markdown]
# The codes of a 2-bit filter are −3, −1, 1 and 3: four levels, evenly spaced, none at 0. The inputs are 0, 1, 2 or 3.
# So the products are small whole numbers. Now all 24 channels:

# %%
by_hand = (window * filters[one]).sum()
print("sum of all products by hand:", by_hand, "   by the integer network:", values["conv2"][0, one, row, column])

# %%
scale = quantization.weight_codes(two.conv2.weight, 2)[1].item()
step = two.relu1.alpha.item() / 3  # 2 bits: three gaps from 0 to alpha
with torch.no_grad():
    fake = two[:5](data.normalise(data.test.images[:1]))[0, one, row, column]
print(f"fake-quantized torch: {fake:.6f}    by hand, times both scales: {by_hand * scale * step:.6f}")

# %% [markdown]
# The number that collects such a sum is called an **accumulator**.

# %% [markdown]
# ## How wide is an accumulator?
#
# A chip has to set aside a fixed number of bits for it. A signed number of $b$ bits reaches from $-2^{b-1}$ to
# $2^{b-1} - 1$. When a sum goes beyond, it **overflows**: it starts again at the other end, without a word.

# %%
# NBVAL_CHECK_OUTPUT
total = np.array([100], np.int8)
for _ in range(3):
    total = total + np.array([20], np.int8)
    print(total[0])

# %% [markdown]
# ### Exercise 1: find the overflow (easy, 8 minutes)
#
# A sum has `terms` products. Each is a code from `-largest_weight` to `largest_weight` times an input from 0 to
# `largest_input`. Return the bits of the smallest signed accumulator in which no such sum overflows. All arguments
# are whole numbers above 0. Python's `n.bit_length()` tells how many bits a whole number has.


# %%
def accumulator_bits(largest_weight, largest_input, terms): ...


# %%
_ = checks.check_accumulator_bits(accumulator_bits)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def accumulator_bits(largest_weight, largest_input, terms):
#     largest_sum = largest_weight * largest_input * terms
#     return largest_sum.bit_length() + 1  # one more for the sign
# ```
#
# </details>
#
# This is the worst case: all weights and inputs at their ends, all with the same sign. What do our networks need? For a
# given filter the worst case is smaller, as its codes are known. No input is negative, so either its positive codes add
# up or its negative ones. And what test images really bring about is smaller still.


# %%
STEP = {"conv1": "conv1.image.0"}  # the first layer's sum over the pixels; all others have the layer's name


def widths(model):
    network, worst, seen = export.to_integer(model, data), {}, {}
    sums = network.values(data.test.images[:100])
    for layer in describe(model):
        name = STEP.get(layer["name"], layer["name"])
        codes = network[name].codes.reshape(len(network[name].codes), -1).astype(int)
        all_at_the_end = max(codes.clip(min=0).sum(1).max(), -codes.clip(max=0).sum(1).min())
        worst[layer["name"]] = int(all_at_the_end * (2 ** layer["activation_bits"] - 1)).bit_length() + 1
        seen[layer["name"]] = int(np.abs(sums[name]).max()).bit_length() + 1
    return {"worst case of the weights": worst, "seen on 100 test images": seen}


needed = {f"{name}, {what}": bits for name in ("w8a8", "w2a2") for what, bits in widths(models[name]).items()}
plots.plot_widths(needed)

# %% [markdown]
# The three layers in the middle of w2a2 need about half of what they need in w8a8, and would be safe with 16 bits. The
# first and the last layer have 8 bits in both networks. `to_integer` takes 32 bits wherever the worst case fits.
#
# What does an overflow do? We narrow one layer's accumulator to 16 bits, let it overflow, and count.


# %%
def narrowed(network, name):
    step = dataclasses.replace(network[name], codes=network[name].codes.astype(np.int16))
    return dataclasses.replace(network, steps=tuple(step if s.name == name else s for s in network.steps))


def overflow(model, name):
    network, some = export.to_integer(model, data), data.test[: 5 * RUNS]
    small = narrowed(network, name)
    wrong = small.values(some.images[:50])[name] != network.values(some.images[:50])[name]
    right = small(some.images).argmax(1) == some.labels.numpy()
    return f"{wrong.mean():6.1%} of the sums are wrong, {right.mean():5.1%} of the images right"


for precision in ("w8a8", "w2a2"):
    for layer in describe(models[precision]):
        print(f"{precision} {layer['name']:6} {overflow(models[precision], STEP.get(layer['name'], layer['name']))}")

# %% [markdown]
# Compare with the figure: where the bar of what is seen stays at or below the line of int16, no sum is wrong. Where it
# does not, about a tenth of wrong sums costs about half of the right answers, or more: each is wrong by 65,536 or a
# multiple of it, not by 1.

# %% [markdown]
# ## Back to two bits
#
# The accumulator of `conv2` holds numbers far above 3, and the next layer wants 0, 1, 2 or 3. In floats:
# multiply by $r = s\,t / t'$, where $t'$ is the step of the next PACT, round, and clip. This is **requantization**.
# How does a chip multiply by 0.0137 if it has no floats?
#
# It multiplies by a whole number $m$ and drops $k$ bits, which divides by $2^k$. The scale becomes $m / 2^k$.

# %%
# NBVAL_CHECK_OUTPUT
ratio = 0.0137
for k in (8, 16, 31):
    m = round(ratio * 2**k)
    print(f"k = {k:2}: m = {m:9,}, m / 2**k = {m / 2**k:.10f}")

# %% [markdown]
# Dropping bits rounds down. To round to the nearest, add one half first, which is $2^{k-1}$.

# %%
# NBVAL_CHECK_OUTPUT
sums = np.arange(-2000, 2001)
in_integers = (sums * m + 2 ** (k - 1)) >> k
print("differing from round(sum * ratio):", (in_integers != np.rint(sums * ratio)).sum(), "of", len(sums))

# %% [markdown]
# So nothing between two layers needs floats. Does the whole network agree? We compare the integers behind every PACT
# with those of the fake-quantized network, for 100 images. (Our integer network takes wider $m$, up to about 50 bits,
# because NumPy has integers of 64 bits. A chip would take 31.)


# %%
@torch.no_grad()
def fake_integers(model, images):
    x, found = data.normalise(images), {}
    for name, module in model.named_children():
        x = module(x)
        if isinstance(module, quantization.PACT):
            found[name] = (x / (module.alpha / (2**module.bits - 1))).round().int().numpy()
    return found


whole = net.values(data.test.images[:100])
for name, fake in fake_integers(two, data.test.images[:100]).items():
    print(f"{name}: {(fake != whole[name]).sum()} of {fake.size:,} activations differ")

# %% [markdown]
# None, or one or two in millions. (Where such a one comes from is told below, where torch, integers and files are
# compared.)

# %% [markdown]
# ## Folding a batch-norm
#
# One thing was passed over. Behind each convolution stands a batch-norm, and it is full of floats. Where did it go?
#
# When a network is used, a batch-norm is a fixed straight line for each channel. With the running mean $\mu$, the
# running variance $v$, the learned $\gamma$ and $\beta$, and a small $\varepsilon$ against division by zero:
#
# $$\mathrm{BN}(y) = g\,(y - \mu) + \beta, \qquad g = \frac{\gamma}{\sqrt{v + \varepsilon}} .$$
#
# A convolution is linear: $y = w * x + b$, where $*$ stands for the convolution and $b$ for its bias. Put this in:
#
# $$\mathrm{BN}(w * x + b) = (g\,w) * x + g\,(b - \mu) + \beta .$$
#
# That is again a convolution, with another weight and another bias. To **fold** is to replace both layers by it.
#
# ### Exercise 2: fold it (medium, 10 minutes)
#
# `weight` has shape `(filters, channels, 3, 3)`; `bias` has shape `(filters,)`, as have the tensors of `bn`. This `bn`
# is an `nn.BatchNorm2d` with `bn.weight` ($\gamma$), `bn.bias` ($\beta$), `bn.running_mean`, `bn.running_var` and
# `bn.eps`.
#
# Return two tensors, the new weight and the new bias: `return new_weight, new_bias`.


# %%
def fold_batch_norm(weight, bias, bn): ...


# %%
_ = checks.check_fold_batch_norm(fold_batch_norm)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def fold_batch_norm(weight, bias, bn):
#     gain = bn.weight / torch.sqrt(bn.running_var + bn.eps)
#     return weight * gain.view(-1, 1, 1, 1), gain * (bias - bn.running_mean) + bn.bias
# ```
#
# </details>
#
# The package's version is `folding.fold`. It returns the network as a short list, without batch-norms.

# %%
steps = {step.name: step for step in folding.fold(models["fp32"], data)}
print(len(list(models["fp32"])), "layers become", len(steps), "steps:", ", ".join(steps))

# %%
first, conv, bn = steps["conv1"].layer, models["fp32"].conv1, models["fp32"].bn1
with torch.no_grad():
    both = bn(conv(sample))
    weight, bias = (torch.from_numpy(array).float() for array in (first.weight, first.bias))
    folded = torch.conv2d(sample, weight, bias, padding=1)
print(f"largest difference {(both - folded).abs().max():.1e}, largest output {both.abs().max():.1f}")

# %% [markdown]
# With low-bit weights there is a trap. If we folded first and rounded then, $g\,w$ would be rounded, which is another
# grid and another network than the one we trained. So we leave the codes alone and fold $g$ into the *scale*: each
# filter gets a scale of its own. It goes into $r$, and the bias into the accumulator, as a 32-bit integer.

# %%
folded = {step.name: step for step in folding.fold(two, data)}["conv2"].layer
print("codes of conv2:", np.unique(folded.codes), " scales, one a filter:", folded.scale[:4].round(4), "...")
print("biases in steps of the accumulator:", net["relu2"].bias[:8], "...")

# %% [markdown]
# These biases were rounded: a bias is no whole number of the accumulator's steps, and rounding it loses up to half a
# step. That remainder is known before anything runs: so it is multiplied by $m$, too, and added together with the one
# half. Is it worth the care? Here is the integer network without the remainders:


# %%
def one_half_only(step):
    if not isinstance(step, export.Requantize):
        return step
    return dataclasses.replace(step, rounding=2 ** (step.shift - 1))


for without in (("relu1", "relu2", "relu3", "relu4"), ("relu4",)):
    steps = tuple(one_half_only(step) if step.name in without else step for step in net.steps)
    found = dataclasses.replace(net, steps=steps).values(data.test.images[:100])
    differ = [f"{name} {(found[name] != whole[name]).mean():.1%}" for name in ("relu1", "relu2", "relu3", "relu4")]
    print(f"without the rests of {', '.join(without)}: activations that differ: {', '.join(differ)}")

# %% [markdown]
# If the numbers are to agree, yes: without the remainders ("rests") the difference grows from layer to layer. (What
# that costs in accuracy we have not measured.) The second line tells why: `relu4`'s own remainders change few of its
# activations. Most of the harm comes from before. Each sum of `fc1` has 2,352 inputs. When a few in a hundred of them
# are off by a level, hardly any sum stays what it was, and the 8 bits of `relu4` are fine enough to show it.
#
# One layer in the middle of the 2-bit network, whole:
#
# ![A chain of boxes from left to right. Inputs from 0 to 3 and codes −3, −1, 1 and 3 meet in a 32-bit accumulator,
# which sums their products. Requantization adds the bias, multiplies by m, adds one half and what the bias lost in
# rounding, and drops k bits. A clip to 0
# to 3 gives the outputs, which have 2 bits again. Below: scales and batch-norm were made into m, k and the bias of each
# filter before anything runs, and the ends of the clip are those of PACT.](images/integer_pipeline.svg)

# %% [markdown]
# ## Four weights in a byte
#
# The smallest thing that a computer's memory can name is a byte, 8 bits. A 2-bit network whose weights fill a byte each
# is no smaller than an 8-bit one. To gain anything we have to **pack**.
#
# Two bits name four numbers. Signed numbers are usually written in **two's complement**: the highest bit counts
# negative. At 2 bits it counts −2 and the other one +1, so 00, 01, 10, 11 mean 0, 1, −2, −1.
#
# Our codes are −3, −1, 1, 3. Subtract 1 and halve: −2, −1, 0, 1. These are what the file stores.

# %%
stored = (filters - 1) // 2
plots.plot_byte(stored.ravel()[:4].tolist(), bits=2)

# %% [markdown]
# The first number lies in the lowest bits, on the right. This order is a convention; ONNX uses it, and so do we.
#
# ### Exercise 3: pack (medium, 10 minutes)
#
# `codes` is an int8 tensor of numbers from −2 to 1; its length is a multiple of 4. Return a uint8 tensor with four
# numbers in each byte, as in the figure. Four tools: `codes[1::4]` takes every fourth number, from place 1 on;
# `codes & 3` keeps the two lowest bits of each number; `<< 2` moves bits two places to the left; and `|` puts two
# numbers with separate bits together.


# %%
def pack_four(codes): ...


# %%
_ = checks.check_pack_four(pack_four)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def pack_four(codes):
#     low = codes & 3
#     return (low[0::4] | low[1::4] << 2 | low[2::4] << 4 | low[3::4] << 6).to(torch.uint8)
# ```
#
# </details>
#
# The package has `pack_bits` and `unpack_bits`, for 1 to 8 bits and any length.

# %%
packed = export.pack_bits(stored, bits=2)
back = export.unpack_bits(packed, bits=2, length=stored.size)
print(f"{stored.size:,} weights, {packed.nbytes:,} bytes; all come back: {(back == stored.ravel()).all()}")

# %% [markdown]
# ## The file, byte by byte
#
# **ONNX** is a file format for networks: a list of operations with names, and the numbers they need. Many programs can
# run it. Since 2025 it can hold integers of 2 bits. We write the 2-bit network with `storage="packed"` and look for our
# bytes in it.

# %%
path = export.save_onnx(two, FOLDER / "two.onnx", data, storage="packed")
content = path.read_bytes()
start = content.find(packed.tobytes())
print(f"{len(content):,} bytes; the weights of conv2 begin at byte {start:,}")
print("the file there: ", content[start : start + 12].hex(" "))
print("what we packed: ", packed[:12].tobytes().hex(" "))

# %% [markdown]
# They are there, in one piece. (Each byte is written here with two *hexadecimal* digits, one for four bits: 0 to 9, and
# a to f for 10 to 15.) And what is the rest? We ask `onnx` for the numbers in the file, and look for the weights of
# each layer.

# %%
tensors = {tensor.name: tensor.raw_data for tensor in onnx.load(path).graph.initializer}
weights = {layer["name"]: tensors[f"{layer['name']}.weight.integers"] for layer in describe(two)}
parts = {name: (content.find(raw), len(raw)) for name, raw in weights.items()}
plots.plot_file(parts, len(content))

# %%
other = len(content) - sum(map(len, weights.values()))
floats = sum(len(raw) for name, raw in tensors.items() if "integers" not in name)
print(f"not weights: {other:,} bytes, of them biases, scales and other numbers {floats:,}; the rest: names, operations")
print(f"float weights would take {4 * sum(layer['parameters'] for layer in describe(two)):,} bytes")

# %% [markdown]
# One layer holds most of the bytes. And there is a remainder that no packing can shrink. In a small network it weighs
# more than in a large one.

# %% [markdown]
# ## Running it without torch
#
# A phone or a small board does not want torch. **onnxruntime** is a library that runs ONNX files. The next cell
# starts a fresh Python that imports NumPy and onnxruntime only.

# %%
program = """
import sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
logits = session.run(None, {"image": np.load(sys.argv[2])})[0]
print("classes:", logits.argmax(1), " torch was imported:", "torch" in sys.modules)
"""
np.save(FOLDER / "images.npy", data.test.images[:8].numpy())
done = subprocess.run([sys.executable, "-c", program, path, FOLDER / "images.npy"], capture_output=True, text=True)
print(done.stdout.strip() or done.stderr)

# %%
with torch.no_grad():
    print("torch:  ", two(data.normalise(data.test.images[:8])).argmax(1).numpy())

# %% [markdown]
# There are two ways to store low-bit weights:
#
# - "packed": each in its own bits, two or four to a byte. onnxruntime unpacks them and computes in float32.
# - "int8": each in a byte of its own. onnxruntime has fast routines for 8-bit integers, with 32-bit integer biases. The
#   first layer stays in float, because it reads the normalised image. Only `to_integer` does without any float.
#
# Do torch, the integers and both files agree, on all test images? The first number counts images of the same class.
# The second counts images for which all ten logits agree within one unit: one step of the last accumulator, in which
# the integer logits are counted.


# %%
def file_logits(path):
    session = export.onnx_session(path)
    return np.concatenate([session.run(None, {"image": some.numpy()})[0] for some in data.test.images.split(200)])


@torch.no_grad()
def torch_logits(model):
    return torch.cat([model(data.normalise(some)) for some in data.test.images.split(200)]).numpy()


# %%
def agreement(model):
    integers, wanted = export.to_integer(model, data), torch_logits(model)
    found, unit = {"integers": integers(data.test.images) * integers.output_scale}, integers.output_scale
    for storage in ("packed", "int8"):
        found[f"ONNX {storage}"] = file_logits(export.save_onnx(model, FOLDER / "agreement.onnx", data, storage))
    same = {form: (logits.argmax(1) == wanted.argmax(1)).sum() for form, logits in found.items()}
    close = {form: (abs(logits - wanted).max(1) <= unit).sum() for form, logits in found.items()}
    return {form: f"{same[form]}, {close[form]}" for form in found}


pd.DataFrame({precision: agreement(models[precision]) for precision in ("w8a8", "w4a4", "w2a2")}).T

# %% [markdown]
# Were both numbers complete, the two would compute the same. Here the second often is not, and in the int8 file even
# the first may miss an image or two. What happened?
#
# torch adds floats, and each addition is off by a ten-millionth or so. That is far less than a step. But an activation
# is rounded to a level, and if its sum lies on the border between two levels, a ten-millionth decides. One level more
# or less is many units of a logit. In the int8 file, biases rounded to whole numbers do the same. More levels mean more
# borders: compare w8a8 with w2a2.
#
# Can this be repaired? Here integers help once more. The accumulator holds whole numbers, so between two neighbouring
# sums lies an empty stretch. Draw the borders of the rounding on the same line. Where a sum and a border fall together,
# there is doubt; in an empty stretch a border harms nobody. A bias shifts all borders of its filter at once. So we may
# move it, by at most half a step of the accumulator, until every border lies at least four hundredths of a step away
# from the whole numbers. That is more than the rounding of floats can cross.


# %%
def borders_between_sums(model):
    layer = {step.name: step for step in folding.fold(model, data)}["conv2"].layer
    accumulator = layer.scale * model.relu1.alpha.item() / 3
    borders = (np.arange(3) + 0.5) * model.relu2.alpha.item() / 3
    return (borders - layer.bias[:, None]) / accumulator[:, None]


aligned = export.align_biases(two, data)
places = {"as trained": borders_between_sums(two), "aligned": borders_between_sums(aligned)}
closest = {name: abs(b - b.round()).min(1) for name, b in places.items()}
worst = closest["as trained"].argmin()
print(f"borders of filter {worst} of conv2, in steps of the accumulator")
for name in places:
    print(f"{name:11} {places[name][worst].round(3)}  closest of all filters: {closest[name].min():.4f}")

# %% [markdown]
# The printed filter is the one with the border closest to a whole number. Now every border keeps its distance. Some had
# to move past a whole number. A sum of just that size then changes sides: it was rounded up, and now it is rounded
# down, or the reverse. That is safe, but it is another network.
#
# `align_biases` keeps the borders away from the whole numbers, for each filter of each layer, and at the same time
# makes the biases such as the int8 routines can express. Where a filter has too many borders for a good place, it also
# changes the gain of its batch-norm, by a few thousandths. The result is an ordinary torch network with slightly other
# parameters. It is the one to export.

# %%
pd.DataFrame({f"{p}, aligned": agreement(export.align_biases(models[p], data)) for p in ("w8a8", "w4a4", "w2a2")}).T

# %%
moved = torch_logits(aligned).argmax(1) != torch_logits(two).argmax(1)
print(f"of {len(data.test)} images, {moved.sum()} get another class from w2a2 by aligning its biases")
for name, model in (("as trained", two), ("aligned", aligned)):
    print(f"{name:11} {(torch_logits(model).argmax(1) == data.test.labels.numpy()).mean():.2%} right")

# %% [markdown]
# With 8 bits there is little room. The 255 borders of a filter lie everywhere between the whole numbers, and with 8-bit
# weights an int8 routine takes no finer bias than whole steps of the accumulator. For w8a8 the first number says
# whether it matters. Here it is complete: no image changes class on the way into a file.
#
# So aligning has a price: a few images change class, as the last cell shows.

# %% [markdown]
# ## What does it save?
#
# Three networks: our trained CNN; `vgg_small`, a larger one; and `lenet5`, a tiny one. The last two are untrained:
# size and time do not depend on what the weights are, so their accuracy is of no interest here. All times are measured
# here and now, with one thread; calls take turns, and we take the median.
#
# **Predict first.** From 8 bits to 2 each weight needs a quarter of the bits. What will follow in a packed file, and
# what in an int8 one: the bytes, the time, the memory?


# %%
def write_all(name, by_precision):
    files = {"fp32": export.save_onnx(by_precision["fp32"], FOLDER / f"{name}.onnx", data, "float32")}
    for storage in ("int8", "packed"):
        for bits in (8, 4, 2):
            model = export.align_biases(by_precision[f"w{bits}a{bits}"], data)
            target = FOLDER / f"{name}-{bits}-{storage}.onnx"
            files[f"{bits} bits, {storage}"] = export.save_onnx(model, target, data, storage)
    return files


def untrained(name):
    torch.manual_seed(SEED)
    model = build_model(name).eval()
    return {"fp32": model} | {f"w{bits}a{bits}": quantize(model, f"w{bits}a{bits}") for bits in (8, 4, 2)}


files = {"cnn": write_all("cnn", models)}
files |= {name: write_all(name, untrained(name)) for name in ("vgg_small", "lenet5")}


# %%
def measure(name):
    sessions = {file: export.onnx_session(path, threads=1) for file, path in files[name].items()}
    return {
        "bytes": {file: path.stat().st_size for file, path in files[name].items()},
        "ms, 1 image": export.latencies(sessions, batch=1, runs=RUNS),
        "ms, 64 images": export.latencies(sessions, batch=64, runs=RUNS // 10 + 1),
    }


measured = {name: measure(name) for name in files}
costs = {cost: {name: measured[name][cost] for name in files} for cost in measured["cnn"]}
plots.plot_costs(costs)


# %% tags=["measures-time"]
def right(path):
    return (file_logits(path).argmax(1) == data.test.labels.numpy()).mean()


def table(name):
    frame = pd.DataFrame(measured[name]).round(3)
    frame.insert(1, "times smaller", (frame["bytes"]["fp32"] / frame["bytes"]).round(2))
    frame["peak memory, MiB"] = [round(export.peak_memory(p), 1) for p in files[name].values()]
    return frame.astype({"bytes": int})


summary = table("cnn")
summary["accuracy"] = [f"{right(p):.1%}" for p in files["cnn"].values()]
summary

# %% tags=["measures-time"]
table("vgg_small")

# %% [markdown]
# What does each column mean, and what does it not?
#
# - **bytes** is the file. It decides download and storage. In packed files it follows the bits. The two 8-bit layers,
#   and what is not weights (see "The file, byte by byte"), keep it from the full factor of 16. In int8 files each
#   weight takes a byte, whatever its bits.
# - **ms** is this machine, this version of onnxruntime, one thread. Compare rows, not with other machines. "int8" is
#   what its routines are made for, so the bit width changes the time in int8 only a little. "packed" is unpacked to
#   floats once, when `onnx_session` opens the file: small files, and no gain in time.
# - **peak memory** is that of the whole process above onnxruntime's own. It holds weights, activations and working
#   space; packed weights are unpacked in memory, so there it does not follow the bits. NaN: this system does not tell.
# - **accuracy** is on the test images, of one training.

# %% tags=["measures-time"]
for column in ("ms, 1 image", "ms, 64 images"):
    for name, times in costs[column].items():
        ratios = [
            f"{file}: {times[file] / times['fp32']:.2f}" for file in ("8 bits, int8", "2 bits, int8", "2 bits, packed")
        ]
        print(f"{name:10} {column}, times fp32's:  {'   '.join(ratios)}")

# %% [markdown]
# Read your own lines; these are of the machine that made the printed ones. There the larger network gains: `vgg_small`
# takes about a third of the time in int8. Our CNN is about even with fp32: here a little faster, in an earlier run, on
# another machine, up to a third slower. `lenet5` takes about half as long again, or more, in both.
#
# Why do small networks gain so little? A likely part of it: the normalisation and `conv1` stay in floats, and
# onnxruntime 1.31 is slow at max-pooling 8-bit numbers (`benchmarks/RESULTS.md`).
#
# Packed files take somewhat longer than fp32, too: by then their weights are floats, and the activations are rounded in
# addition.

# %% [markdown]
# ## Two numbers that are not measured
#
# Papers on quantization often report **bit operations** and **energy**. Both are estimates. Bit operations count each
# multiplication as (bits of the weight) × (bits of the input): what a circuit made for exactly these bits would do.
#
# For energy we take numbers that Horowitz published in 2014 for one kind of chip: a multiplication with its addition
# takes 4.6 pJ (picojoules) in float32, and 0.3 pJ in 8 bits with a 32-bit accumulator; reading one bit from the main
# memory takes about 20 pJ. Below 8 bits we let both, multiplication and addition, shrink with the bit operations. That
# last step is our assumption, and it flatters few bits: a real addition keeps its 32.


# %%
def estimates(model):
    rows = describe(model)
    bit_operations = sum(row["bit_operations"] for row in rows)
    floats = any(row["weight_bits"] == 32 for row in rows)
    compute = sum(row["macs"] for row in rows) * 4.6 if floats else bit_operations / 64 * 0.3
    memory = sum(row["parameters"] * row["weight_bits"] for row in rows) * 20
    return {
        "bit operations, millions (estimate)": round(bit_operations / 1e6),
        "computing, µJ (estimate)": round(compute / 1e6, 2),
        "reading the weights once, µJ (estimate)": round(memory / 1e6, 2),
    }


pd.DataFrame({name: estimates(models[name]) for name in ("fp32", "w8a8", "w4a4", "w2a2")}).T

# %% [markdown]
# Set the first column beside the milliseconds: the estimate falls to about a tenth from 8 bits to 2, the time in int8
# changes far less. In our packed files everything is computed in float32, in the int8 files in 8 bits but for the first
# layer. (onnxruntime has a matrix product that reads 2-bit weights, MatMulNBits. That one computes in 8 bits or in
# floats, too.)
#
# And the memory column stands beside the computing column as a reminder: for a network that is read from the main
# memory for each image, moving the weights may take more energy than computing with them. There the file size is
# the number that counts.
#
# ### What would make 2 bits fast?
#
# Take the weights 3, 1, 2 and the activations 1, 3, 2. Write the low bits of all weights as one word, 1 1 0, and their
# high bits as another, 1 0 1. The activations have the words 1 1 0 and 0 1 1.
#
# AND of the two low words is 1 1 0: two ones. Low weights with high activations: 0 1 0, one. High with low: 1 0 0, one.
# High with high: 0 0 1, one. A high bit counts twice as much, so the sum is $2 + 2 \cdot 1 + 2 \cdot 1 + 4 \cdot 1 =
# 10$. And $3 \cdot 1 + 1 \cdot 3 + 2 \cdot 2$ is 10, too.
#
# So a sum of products needs only ANDs, each for many numbers at once, and counts of ones. Such a count is called
# **popcount**, and processors have an instruction for it:
#
# $$\sum_n u_n a_n = \sum_{i,j} 2^{i+j}\, \mathrm{popcount}(U_i \wedge A_j)$$
#
# Here $u_n$ and $a_n$ are the weights and the activations, $U_i$ is the word that holds bit $i$ of all weights, $A_j$
# that with bit $j$ of all activations, and $\wedge$ is AND.


# %%
def planes(numbers):
    return [sum(int(number >> i & 1) << n for n, number in enumerate(numbers)) for i in (0, 1)]


u, a = np.random.default_rng(SEED).integers(0, 4, (2, 64))
by_bits = sum(2 ** (i + j) * (p & q).bit_count() for i, p in enumerate(planes(u)) for j, q in enumerate(planes(a)))
print("64 multiplications:", u @ a, "   4 ANDs and 4 counts:", by_bits)

# %% [markdown]
# Our codes are $q = 2u - 3$, so $\sum q\,a = 2 \sum u\,a - 3 \sum a$. It is exact. Is it fast? NumPy can count ones,
# too. We take the size of a layer of `vgg_small`: 196 pixels, 128 filters, 1,152 weights in each.


# %%
def bit_words(numbers, bit):
    return np.packbits(numbers >> bit & 1, axis=1).view(np.uint64)


def product(a, u):
    pairs = [(i, j) for i in (0, 1) for j in (0, 1)]
    counts = [
        np.bitwise_count(bit_words(a, j)[:, None] & bit_words(u, i)).sum(2, dtype=np.int64) << i + j for i, j in pairs
    ]
    return sum(counts)


generator = np.random.default_rng(SEED)
a, u = (generator.integers(0, 4, (rows, 1152), dtype=np.uint8) for rows in (196, 128))
floats = a.astype(np.float32), u.T.astype(np.float32)
print("equal:", (product(a, u) == floats[0] @ floats[1]).all())
for name, run in {"popcount in NumPy": lambda: product(a, u), "float32": lambda: floats[0] @ floats[1]}.items():
    print(f"{name:18} {1000 * min(timeit.repeat(run, number=1, repeat=RUNS)):7.3f} ms")

# %% [markdown]
# It is not. Each AND writes its result to memory and each count reads it again, and that costs more than the
# multiplications that were saved. (`python -m benchmarks.deployment` has the same product in onnxruntime's int8.)
#
# What would it take? A compiled routine that holds the words in registers and counts them there. Even then, count the
# instructions. A processor with 512-bit registers does 512 of our multiplications with 4 ANDs, 4 counts and 4
# additions: 12 instructions. The same processor usually has an instruction (VNNI) that multiplies and adds 64 pairs of
# 8-bit integers: 8 instructions for 512. By this estimate 2 bits do not beat 8 there, however well the routine is
# written. With 1 bit it would be 3 against 8. Popcount pays on processors without such an instruction, and where
# the time goes into reading weights from memory. Otherwise 2 bits need a circuit of their own.

# %% [markdown]
# ## Does it look at the same pixels?
#
# The deployed network has no gradients, so the maps of lesson 03 are out of reach. But there is a map that only asks
# for answers.
#
# **Occlusion**: cover a small square of the image and see how far the logit of the class falls. Move the square over
# the whole image; a pixel gets the mean fall of all squares that covered it. We use squares of 4 × 4 pixels, two
# pixels apart. They are grey. Black squares would change nothing on the black background, and all maps would agree
# there without any merit, as in lesson 03.


# %%
def occlusion_maps(logits, images, target):
    answer = lambda x: torch.as_tensor(logits(x.to(torch.uint8).numpy())).float()
    options = {"sliding_window_shapes": (1, 4, 4), "strides": (1, 2, 2), "baselines": 128.0}
    maps = Occlusion(answer).attribute(images.float(), target=target, perturbations_per_eval=8, **options)
    return maps[:, 0].detach()


@torch.no_grad()
def answers_of(model, images):
    return model(data.normalise(torch.from_numpy(images)))


# %%
with torch.no_grad():
    some = data.test[: 20 * IMAGES]
    votes = torch.stack([models[name](data.normalise(some.images)).argmax(1) for name in plan])
chosen = some[((votes == some.labels).all(0)).nonzero().flatten()[:IMAGES]]
images, target = chosen.images, chosen.labels
print(f"{len(images)} test images that all four trained networks get right")

# %%
maps = {name: occlusion_maps(lambda x, m=models[name]: answers_of(m, x), images, target) for name in plan}
maps["w2a2 integers"] = occlusion_maps(lambda x: net(x) * net.output_scale, images, target)
session = export.onnx_session(files["cnn"]["2 bits, packed"])
maps["w2a2 file"] = occlusion_maps(lambda x: session.run(None, {"image": x})[0], images, target)
maps["random"] = torch.rand(maps["fp32"].shape, generator=torch.Generator().manual_seed(SEED))
difference = (maps["w2a2 integers"] - maps["w2a2"]).abs()
print(f"w2a2 in integers and in torch: maps differ by at most {difference.max():.1e} logits")
print(f"the largest value of a w2a2 map is {maps['w2a2'].abs().max():.1f} logits")

# %%
shown = {name: maps[name][:3] for name in ("fp32", "fp32 twin", "w2a2", "w2a2 file")}
names = [data.class_names[label] for label in target[:3]]
plots.saliency_grid(images[:3], shown, shared="row", row_titles=names, unit="fall of the logit", title="Occlusion maps")

# %% [markdown]
# Purple: covering these pixels lowers the logit. Orange: it raises it.
#
# On the sandal the darkest purple lies above the shoe, where the image is black. There the grey square takes nothing
# away, it puts something in. As in lesson 04, the fill is a part of the question.
#
# The last two columns answer ours: the deployed network looks where the torch network looks that it was made from. This
# is no surprise after the agreement of their answers, and it is worth a measurement all the same, as a map asks about
# images that are in no test set.
#
# Whether 2 bits look where *fp32* looks is another question. The fp32 twin sets the mark. We compare how much each
# pixel matters, whatever the sign.

# %%
pairs = {f"{name} / w2a2": (name, "w2a2") for name in ("w2a2 integers", "w2a2 file")}
pairs |= {f"{name} / fp32": (name, "fp32") for name in ("fp32 twin", "w4a4", "w2a2", "random")}
kinship = {
    label: {name: measure(maps[first].abs(), maps[second].abs()).numpy() for name, (first, second) in pairs.items()}
    for label, measure in (("all pixels", metrics.rank_correlation), ("top tenth", metrics.top_k_overlap))
}
plots.distributions(kinship, ["rank correlation of the magnitudes", "share of the top tenth in common"])

# %%
pd.DataFrame({label: {name: np.median(v) for name, v in rows.items()} for label, rows in kinship.items()}).round(3)

# %% [markdown]
# In the figure a dot is the median over the images (the table holds these), the thick line the middle half, the thin
# one nine tenths, and the dashed line the random map's median.
#
# The integers repeat the network that they were made from. The file holds the aligned network, so its map may move a
# little. Both are little against what separates a 2-bit network from fp32, and that was there after training.
#
# Do 2 bits look where fp32 looks? Nearly as much as another fp32 network does: the medians of w2a2 lie a little below
# the twin's, and the middle halves overlap. With 4 bits the map is nearer. As in lesson 03 the twin is at a
# disadvantage, because w4a4 and w2a2 share fp32's first weights. And this is one training of each kind.

# %% [markdown]
# ## Choose a file
#
# Now all of it at once, for our CNN: which file would you ship?
#
# **Predict first.** Below you choose the bits, the storage and the image. Which moves the map more, bits or storage?
# Which file do you take if it must be small, and which if it must be fast?

# %%
some_images, some_labels = images[:8], target[:8]
keys = {(32, "float32"): "fp32"} | {(b, s): f"{b} bits, {s}" for b in (8, 4, 2) for s in ("int8", "packed")}
sessions = {file: export.onnx_session(path) for file, path in files["cnn"].items()}
run = lambda file: lambda x: sessions[file].run(None, {"image": x})[0]
file_maps = {key: occlusion_maps(run(file), some_images, some_labels).numpy() for key, file in keys.items()}
probabilities = {key: torch.as_tensor(run(file)(some_images.numpy())).softmax(1).numpy() for key, file in keys.items()}
words = {}
for key, file in keys.items():
    row = summary.loc[file]
    words[key] = f"{row['bytes']:,} bytes, {row['ms, 1 image']:.2f} ms an image, {row['accuracy']} right"

# %%
key = (2, "packed")
plots.plot_deployed(
    some_images[0], probabilities[key][0], file_maps[key][0], data.class_names, target[0], keys[key], words[key]
)

# %%
widgets.deployment_panel(some_images.numpy(), some_labels.tolist(), data.class_names, probabilities, file_maps, words)

# %% [markdown]
# **What to notice.** With 4 and 2 bits the storage moves the bytes; with 8 both files are nearly of one size.
# Prediction and map it leaves as they are, or nearly. With fewer bits the map moves. In the run printed here the
# milliseconds move far less than the bytes: the network is small. So if the file must be small, take 2 bits, packed; if
# it must be fast, measure a larger network first. A map in this panel is scaled to its own largest values: compare
# shapes.

# %% [markdown]
# ## Exercises
#
# Exercises 1 to 3 stand in the text above.
#
# ### Exercise 4: how many bits does a 2-bit weight hold? (open, 10 minutes)
#
# A file that is packed can perhaps be compressed further. If the four codes were equally frequent and independent, it
# could not. The **entropy** $-\sum p \log_2 p$, with $p$ the share of each code, is the mean number of bits that are
# really needed if codes are independent of each other. The next cell prints it for each 2-bit layer, and what `zlib`
# makes of the whole file. Which layer wastes the most? Would you ship compressed files? What would it take to use
# them? Try the files with 4 bits, too.

# %%
for name in ("conv2", "conv3", "fc1"):
    _, counts = np.unique(net[name].codes, return_counts=True)
    share = counts / counts.sum()
    print(f"{name}: shares {share.round(3)}, entropy {-(share * np.log2(share)).sum():.2f} bits a weight")
for file in ("fp32", "2 bits, int8", "2 bits, packed"):
    raw = files["cnn"][file].read_bytes()
    print(f"{file:15} {len(raw):9,} bytes, compressed {len(zlib.compress(raw, 9)):9,}")

# %% [markdown]
# <details><summary>What to look for</summary>
#
# The entropy cannot exceed 2. The further it lies below, the more a compressor may gain. `fc1` wastes the most, about a
# quarter of a bit a weight, and nine tenths of the weights are there. SAWB spreads them over all four levels, so there
# is not much more to gain. Look at the second file: 2-bit codes in bytes, unpacked. A compressor
# finds the six idle bits by itself, so a *download* may be small without packing. But to run, the file has to be
# decompressed to its full size, and the memory of the device sees that.
#
# </details>
#
# ### Exercise 5: which file for whom? (open, 4 minutes)
#
# Three devices: a web page that downloads the network for each visitor, a camera that looks at 25 images a second, and
# a sensor that runs from a battery and wakes up once an hour. For each, which column of the tables decides, and which
# file would you take? Is that column measured or estimated?
#
# <details><summary>One answer</summary>
#
# The page wants few bytes: packed. The camera wants few milliseconds: take the fastest row that you measured *on the
# camera's own processor*. The sensor wants little energy, for which we have an estimate only; with one image an hour,
# reading the weights may be most of it, which speaks for few bytes again. Someone has to measure it.
#
# </details>

# %% [markdown]
# ## In this lesson
#
# - Scales can be pulled out of a sum, so the fake-quantized network and the integers compute the same, but for the
#   rounding of floats.
# - An accumulator must hold the largest sum, and its sign. Overflow is silent.
# - A batch-norm folds into a scale for each filter and a bias. The codes stay.
# - Below 8 bits a file gets smaller only if its weights are packed. Names, scales and biases remain.
# - Packed files save bytes. Whether int8 files save time depends on the network. How many images come at once
#   changes how much: measure.
# - Bit operations and energy are estimates of a machine that is not the one you measure on.
# - The integers look at the same pixels as the torch network that they were made from, the file at nearly the same.

# %% [markdown]
# ## References
#
# - Jacob et al. (2018). *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference.*
#   [arXiv:1712.05877](https://arxiv.org/abs/1712.05877)
# - Horowitz (2014). *Computing's Energy Problem (and What We Can Do about It).* ISSCC.
# - Zeiler, Fergus (2014). *Visualizing and Understanding Convolutional Networks.*
#   [arXiv:1311.2901](https://arxiv.org/abs/1311.2901) (occlusion)
# - Nagel et al. (2021). *A White Paper on Neural Network Quantization.*
#   [arXiv:2106.08295](https://arxiv.org/abs/2106.08295)
# - [ONNX operators](https://onnx.ai/onnx/operators/): QuantizeLinear and DequantizeLinear.

# %% [markdown]
# ## Next
#
# [08 How far it carries](08_how_far.ipynb): lesson 06's answers about bits, guidance and maps, on other data and by
# other measures.
