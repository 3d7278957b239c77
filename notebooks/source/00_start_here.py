# %% [markdown]
# # 00 Start here
#
# You meet the question of this course in pictures, check your machine, and squeeze the weights of a network
# from 8 bits down to 2.

# %% [markdown]
# ## What you will be able to do
#
# - say what this course asks, and which numbers it will answer with;
# - tell whether your machine is ready, and what to do if it is not;
# - use sliders, exercises and scales;
# - see a prediction change as the weights of a network lose bits.

# %% [markdown]
# ## What you need first
#
# A little Python, and a little PyTorch: you have seen a tensor, a layer and a training loop.
# No knowledge of quantization or of explanations is assumed.
#
# New words, all in the [glossary](GLOSSARY.md): [weight](GLOSSARY.md#weight), [activation](GLOSSARY.md#activation),
# [accuracy](GLOSSARY.md#accuracy), [saliency map](GLOSSARY.md#saliency-map) and [w2a2](GLOSSARY.md#w2a2).
#
# About 25 minutes: 11 to read and play, 12 for the exercises, and 1 to 2 of computing.

# %% [markdown]
# ## Set-up

# %% tags=["parameters"]
SCALE = None  # "smoke", "class" or "full"; None reads $QSAL_SCALE, else "class"

# %%
import copy
import os
import platform

import torch
from torch import nn

from qsal_helpers import build_model, checks, evaluate, fit, load_data, plots, quantize, quantize_weight, widgets
from qsal_helpers.machine import check_machine
from qsal_helpers.saliency import saliency_map

SCALE = SCALE or os.environ.get("QSAL_SCALE", "class")
SIZE, EPOCHS = {"smoke": (1000, 1), "class": ("mini", 5), "full": ("full", 8)}[SCALE]
SEED = 0
print(f"Python {platform.python_version()}, torch {torch.__version__}, scale {SCALE}")

# %% [markdown]
# ## Is this machine ready?
#
# The next cell looks at your machine and says in words what is missing.

# %%
ready = check_machine()

# %% [markdown]
# ## What does this course ask?
#
# A network holds its knowledge in **weights**: numbers, each usually stored in 32 bits. This is called **fp32**. The
# network below has 334,000 of them, which is 1.3 MB. A small chip may have a quarter of that. Can 2 bits a weight do?
#
# And if so: do the small network's answers still hang on the right pixels?
#
# Let us train two networks on the same pictures of clothes. The first uses fp32.
# The second has 2 bits for most of its weights, and for most of the numbers that its layers hand on.
# (Its first and last layer keep 8 bits. Lesson 02 says why.)

# %%
data = load_data("fashion-mnist", SIZE)
x = data.normalise(data.test.images[:8])
plots.show_images(data.test.images[:8], [data.class_names[i] for i in data.test.labels[:8]])

# %% [markdown]
# These are the first eight test images: 28 × 28 grey pixels each, and one of ten classes.
# The names above them are the right answers.

# %%
torch.manual_seed(SEED)
networks = {"fp32": build_model("cnn")}
networks["w2a2"] = quantize(networks["fp32"], "w2a2")
print(f"{sum(weights.numel() for weights in networks['fp32'].parameters()):,} numbers")
for network in networks.values():
    fit(network, data, epochs=EPOCHS, seed=SEED)

# %% [markdown]
# `quantize` made a copy of the untrained network that uses few bits. "w2a2" reads: **w**eights 2 bits,
# **a**ctivations 2 bits. An **activation** is a number that a layer hands to the next one.
#
# How often is each network right on test images, which it has never seen? We call this fraction its **accuracy**.

# %%
for name, network in networks.items():
    print(f"{name}: {evaluate(network, data):.1%} of the test images are right")

# %% [markdown]
# Accuracy says how often a network is right. It does not say why.
#
# A **saliency map** gives a hint. It asks for every pixel: if this pixel changed a little, how much would the score
# of the predicted class change? This is a gradient, taken with respect to the image. Bright pixels matter most.

# %%
NUMBER = 7  # which of the eight images
probabilities = {name: network(x).softmax(1).detach()[NUMBER] for name, network in networks.items()}
maps = {name: saliency_map(network, x)[NUMBER] for name, network in networks.items()}
plots.plot_explanations(
    data.test.images[NUMBER], probabilities, maps, data.class_names, label=int(data.test.labels[NUMBER])
)

# %% [markdown]
# Each row is one network: the image, what the network says, and its map. Each map has a colour scale of its own, so
# compare shapes, not brightness. One caution: in the w2a2 network rounding swallows a tiny change whole, so its map
# shows a stand-in for the gradient. Lesson 03 measures how good a stand-in.
#
# Two maps of one image prove nothing. Look at them, and note what you would have to measure before you could say
# which one is "better". Set `NUMBER` to another image and run the cell again.
#
# This is the question of the course: **can a network be small and readable at the same time?**
# Two papers of 2024 combine the same two methods: training with few bits, and training that hides the least salient
# pixels. Their abstracts pull against each other. Maleki et al. say that the combination keeps accuracy and makes the
# network more interpretable. Mousa Rezabeyk et al. say that few bits cost both.
# We measure. For each network we ask for three things: its accuracy, its size in bytes, and how well its maps name the
# pixels that move its answer. Lesson 03 says how to measure the last.

# %% [markdown]
# ## How does this course work?
#
# **Lessons.** Each is a notebook. Run its cells in order, from the top, with Shift + Enter.
#
# | lesson | its question |
# |---|---|
# | 00 Start here | What is this about, and does it run here? |
# | [01 Quantization basics](01_quantization.ipynb) | What is lost when a number is rounded, and when does it matter? |
# | [02 PACT](02_pact.ipynb) | Can a network learn how far its numbers should reach? |
# | [03 Saliency maps](03_saliency_maps.ipynb) | Which pixels does an output hang on, and how do we know? |
# | [04 Saliency-guided training](04_saliency_guided_training.ipynb) | Can training make the maps clearer? |
# | [05 The combined method](05_combined_method.ipynb) | What happens when both are trained at once? |
# | [06 The trade-off](06_trade_off.ipynb) | How sure are we, over many trainings? |
# | [07 Deployment](07_deployment.ipynb) | What do few bits save in a file and on a chip? |
# | [08 How far it carries](08_how_far.ipynb) | On which data, by which measures, do the answers hold? |
#
# **Sliders.** Before each slider stands a question: "Predict first". Answer it before you touch the slider.
# Fixed pictures stand beside each slider, so the text also works on paper.
#
# **Exercises.** You write the lines that matter. A check tells you what is wrong with them, in words.
# If you leave an exercise alone, the lesson goes on with our version. Solutions are folded under each exercise.
#
# **Scales.** `SCALE` at the top of each lesson sets how much is computed. "smoke" takes seconds and only shows that
# everything runs. "class" is the default: at most a few minutes a lesson, on a laptop. "full" uses whole data sets.

# %% [markdown]
# ## What do fewer bits do to one prediction?
#
# Here we do something cruder than above. We take the *trained* fp32 network and round its weights afterwards:
# 8 bits allow at most 256 different weights in a layer, 2 bits allow 4. From 8 bits to 5 the levels reach to the
# layer's largest weight. With 4 bits and fewer a rule called SAWB chooses how far; lesson 01 comes back to it. Nothing
# is trained again.


# %%
def with_bits(model, bits):
    small = copy.deepcopy(model)
    for layer in small.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data = quantize_weight(layer.weight.data, bits)
    return small


# %%
rounded = {bits: with_bits(networks["fp32"], bits) for bits in range(8, 1, -1)}
answers = {bits: network(x).softmax(1).detach().numpy() for bits, network in rounded.items()}

# %% [markdown]
# **Predict first.** Below is the prediction for one image with 8-bit weights. The longest bar is what the network says;
# the class in bold is the right one. You will take bits away, one at a time.
# Will the bars change a little with every bit, or will they stand still for a while and then fall?

# %%
shown = data.test.images[0], data.class_names, int(data.test.labels[0])
plots.plot_prediction(shown[0], answers[8][0], *shown[1:], "prediction with 8-bit weights")

# %%
widgets.prediction_panel(data.test.images[:8].numpy(), data.test.labels[:8].tolist(), answers, data.class_names)

# %% [markdown]
# **What to notice.** Go through the eight images. For many of them the bars hardly move over the first bits that go,
# and most of the change comes with the last ones. Here is the first image again, with 2-bit weights:

# %%
print(", ".join(f"{bits} bits {answers[bits][0][shown[2]]:.0%}" for bits in answers), "for the right class")
plots.plot_prediction(shown[0], answers[2][0], *shown[1:], "prediction with 2-bit weights")

# %% [markdown]
# And all test images?

# %%
for bits, network in rounded.items():
    print(f"{bits} bits: {evaluate(network, data):.1%} of the test images are right")

# %% [markdown]
# Compare the last line of this list with the accuracy of the network that was *trained* at 2 bits. It is no fair match:
# that one keeps 8 bits in its first and last layer, which helps it, and its activations have 2 bits, which does not.
# The next lesson shows what breaks when one rounds afterwards, and lesson 02 what training with few bits makes of it.

# %% [markdown]
# ## Exercises
#
# ### Exercise 1: how many numbers? (easy, 2 minutes)
#
# Above stood 256 for 8 bits and 4 for 2. Why these? How many different numbers can a word of `bits` bits name? A word
# is a row of bits: 011 is a word of 3 bits.
#
# `bits` is a whole number. Return a whole number. Replace the three dots by your lines, of which the last begins with
# `return`, and run both cells. (A line `# NBVAL_CHECK_OUTPUT` is a mark for our tests; leave it.)


# %%
def number_of_levels(bits): ...


# %%
# NBVAL_CHECK_OUTPUT
_ = checks.check_number_of_levels(number_of_levels)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def number_of_levels(bits):
#     return 2**bits
# ```
#
# </details>
#
# ### Exercise 2: do two networks agree? (easy, 5 minutes)
#
# Two networks can be right equally often and still disagree. `outputs_a` and `outputs_b` are their outputs for the same
# images: two tensors of shape `(images, classes)`. The class of an image is the place of the largest number in its row.
#
# Return the fraction of images to which both give the same class, one number from 0 to 1.


# %%
def agreement(outputs_a, outputs_b): ...


# %%
_ = checks.check_agreement(agreement)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def agreement(outputs_a, outputs_b):
#     return (outputs_a.argmax(1) == outputs_b.argmax(1)).float().mean().item()
# ```
#
# </details>
#
# ### Exercise 3: the same accuracy, the same network? (open, 5 minutes)
#
# The next cell shows test images to which the fp32 network and the 2-bit network of the first section give
# different classes. How often does this happen, compared with the difference of the two accuracies? What does that
# tell you about judging a small network by its accuracy alone?

# %%
with torch.no_grad():
    test = data.normalise(data.test.images)
    said = {name: network(test).argmax(1) for name, network in networks.items()}
different = (said["fp32"] != said["w2a2"]).nonzero().flatten()
gap = abs(evaluate(networks["fp32"], data) - evaluate(networks["w2a2"], data))
print(f"{len(different) / len(test):.1%} of the test images get different classes; the accuracies differ by {gap:.1%}")
fp32_right, w2a2_right = (said[name][different] == data.test.labels[different] for name in ("fp32", "w2a2"))
print(f"of these {len(different)} images fp32 is right on {fp32_right.sum()}, w2a2 on {w2a2_right.sum()}")

# %%
titles = [f"{data.class_names[said['fp32'][i]]}\nor {data.class_names[said['w2a2'][i]]}" for i in different[:8]]
plots.show_images(data.test.images[different[:8]], titles, title="fp32 says the first, w2a2 the second")

# %% [markdown]
# <details><summary>One answer</summary>
#
# The two networks disagree on more images than the difference of their accuracies suggests. Mostly one is right where
# the other is wrong, and these cases cancel; now and then both are wrong, each in its own way. So accuracy alone does
# not tell whether a small network still does the same thing. One caution: two fp32 networks trained from different
# random starts disagree, too. Later lessons use such a pair to tell how much difference is ordinary.
#
# </details>

# %% [markdown]
# ## In this lesson
#
# - Weights and activations can be stored in few bits; "w2a2" means 2 bits for both.
# - A saliency map shows for each pixel how strongly a small change of it would change a score.
# - Rounding a trained network's weights costs little for the first bits that go, and much for the last ones.
# - Equal accuracy does not mean equal answers.

# %% [markdown]
# ## References
#
# - Mousa Rezabeyk et al. (2024). *Saliency Assisted Quantization for Neural Networks.*
#   [arXiv:2411.05858](https://arxiv.org/abs/2411.05858)
# - Maleki et al. (2024). *Quantized and Interpretable Learning Scheme for Deep Neural Networks in Classification Task.*
#   [arXiv:2412.03915](https://arxiv.org/abs/2412.03915)
# - Xiao, Rasul, Vollgraf (2017). *Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms.*
#   [arXiv:1708.07747](https://arxiv.org/abs/1708.07747)

# %% [markdown]
# ## Next
#
# [01 Quantization basics](01_quantization.ipynb): what is lost when a number is rounded, and when does it matter?
