"""QSAL: can a small network be a readable one, too?

model = quantize(build_model("resnet20", in_channels=3), "w4a4")   # how numbers are represented
objective = SaliencyGuided(mask_ratio=0.5)                         # what training asks for
history = fit(model, data, objective, epochs=5, seed=0)            # one loop for all of it
"""

from .data import ImageData, load_data
from .distillation import Distilled
from .guided import SaliencyGuided, mask_least_salient
from .models import build_model
from .quantization import PACT, Precision, calibrate, describe, pact, quantize, quantize_uniform, quantize_weight
from .saliency import saliency_map
from .training import evaluate, fit

__all__ = [
    "Distilled",
    "ImageData",
    "PACT",
    "Precision",
    "SaliencyGuided",
    "build_model",
    "calibrate",
    "describe",
    "evaluate",
    "fit",
    "load_data",
    "mask_least_salient",
    "pact",
    "quantize",
    "quantize_uniform",
    "quantize_weight",
    "saliency_map",
]
