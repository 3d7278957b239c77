"""Seconds of one training step against what a user would write instead: `python -m benchmarks.training`.

Every row is a ratio to the plain fp32 step (forward, cross-entropy, backward, SGD; NCHW; tensors in memory), taken
round by round in one interleaved run, so that a drift of the machine leaves it alone. Needs the extra `dev`.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from qsal_helpers import SaliencyGuided, build_model, quantize
from qsal_helpers.quantization import PACT, QuantConv2d, QuantLinear
from qsal_helpers.study import machine
from qsal_helpers.training import cross_entropy

TARGETS = {
    "plain": (0.72, 0.8),
    "w4a4": (0.9, 0.95),
    "w2a2": (0.9, 0.95),
    "guided": (1.45, 1.6),
    "guided w4a4": (1.8, 1.95),
}


def brevitas_twin(model: nn.Module, bits: int = 4) -> nn.Module:
    """Return `model` with Brevitas' convolutions, linear layers and ReLUs of `bits` bits, 8 at both ends."""
    import brevitas.nn as qnn

    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for name, module in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        width = 8 if name in (names[0], names[-1]) else bits
        if isinstance(module, nn.Conv2d):
            keys = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
            new = qnn.QuantConv2d(
                **{k: getattr(module, k) for k in keys}, bias=module.bias is not None, weight_bit_width=width
            )
        elif isinstance(module, nn.Linear):
            new = qnn.QuantLinear(
                module.in_features, module.out_features, bias=module.bias is not None, weight_bit_width=width
            )
        elif isinstance(module, nn.ReLU):
            new = qnn.QuantReLU(bit_width=bits, return_quant_tensor=False)
        else:
            continue
        setattr(model.get_submodule(parent), child, new)
    return model


def guided_as_its_authors(model: nn.Module, x: Tensor, y: Tensor, ratio: float = 0.5) -> Tensor:
    """Ismail et al.'s published procedure: a saliency pass in evaluation mode, then a loop over images on the CPU."""
    model.eval()
    inputs = x.clone().requires_grad_()
    scores = model(inputs).gather(1, y[:, None]).sum()
    (saliency,) = torch.autograd.grad(scores, inputs)
    model.train()
    masked, saliency = x.clone().cpu(), saliency.cpu().numpy()
    for i in range(len(x)):
        lowest = saliency[i].reshape(-1).argsort()[: int(ratio * saliency[i].size)]
        low, high = masked[i].min().item(), masked[i].max().item()
        masked[i].view(-1)[torch.from_numpy(lowest)] = torch.empty(len(lowest)).uniform_(low, high)
    logits, masked_logits = model(x), model(masked.to(x.device))
    divergence = F.kl_div(
        F.log_softmax(masked_logits, 1), F.log_softmax(logits, 1), reduction="batchmean", log_target=True
    )
    return F.cross_entropy(logits, y) + divergence


def step_of(
    model: nn.Module, objective: Callable, x: Tensor, y: Tensor, ours: bool, bfloat16: bool = False
) -> Callable[[], float]:
    """Return a function that trains one step, as `fit` does (`ours`) or as a user would write it."""
    if ours:
        model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, fused=ours)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, bfloat16, cache_enabled=False):
            loss = objective(model, x, y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def check_levels(model: nn.Module, x: Tensor) -> None:
    """Fail if a quantized layer holds more values than its bits allow."""
    from qsal_helpers.quantization import quantize_weight

    for layer in model.modules():
        if isinstance(layer, QuantConv2d | QuantLinear):
            values = quantize_weight(layer.weight, layer.weight_bits, layer.scheme).unique()
            assert len(values) <= 2**layer.weight_bits, layer
    for layer in (m for m in model.modules() if isinstance(m, PACT)):
        layer.register_forward_hook(lambda m, i, o: _at_most(o, 2**m.bits))
    model(x)
    for layer in (m for m in model.modules() if isinstance(m, PACT)):
        layer._forward_hooks.clear()


def _at_most(values: Tensor, number: int) -> None:
    assert len(values.unique()) <= number, (len(values.unique()), number)


def measure(name: str, rounds: int, brevitas_warm_up: int) -> list[str]:
    """Return the table's rows for one network."""
    channels, size = (1, 28) if name == "cnn" else (3, 32)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, channels, size, size, generator=generator)
    y = torch.randint(0, 10, (128,), generator=generator)

    def twin(precision: str = "fp32") -> nn.Module:
        torch.manual_seed(0)
        return quantize(build_model(name, channels), precision)

    # Both sides must compute the same before their times mean anything.
    plain, ours = cross_entropy(twin(), x, y), cross_entropy(twin().to(memory_format=torch.channels_last), x, y)
    assert abs(plain.item() - ours.item()) < 1e-5 * max(1, plain.item()), (plain.item(), ours.item())
    for precision in ("w4a4", "w2a2"):
        check_levels(twin(precision), x)

    guided, published = SaliencyGuided(), SaliencyGuided.as_published()
    torch.manual_seed(0)
    brevitas = brevitas_twin(twin())
    steps = {
        "base": step_of(twin(), cross_entropy, x, y, ours=False),
        "plain": step_of(twin(), cross_entropy, x, y, ours=True),
        "w4a4": step_of(twin("w4a4"), cross_entropy, x, y, ours=True),
        "w2a2": step_of(twin("w2a2"), cross_entropy, x, y, ours=True),
        "guided": step_of(twin(), guided, x, y, ours=True),
        "guided w4a4": step_of(twin("w4a4"), guided, x, y, ours=True),
        "guided as published (ours)": step_of(twin(), published, x, y, ours=True),
        "guided, authors' loop": step_of(twin(), guided_as_its_authors, x, y, ours=False),
        "Brevitas w4a4": step_of(brevitas, cross_entropy, x, y, ours=False),
        "Brevitas w4a4, authors' loop": step_of(brevitas, guided_as_its_authors, x, y, ours=False),
    }
    for key, precision, objective in (
        ("plain", "fp32", cross_entropy),
        ("w4a4", "w4a4", cross_entropy),
        ("w2a2", "w2a2", cross_entropy),
        ("guided", "fp32", guided),
        ("guided w4a4", "w4a4", guided),
    ):
        steps[f"{key}, bfloat16"] = step_of(twin(precision), objective, x, y, ours=True, bfloat16=True)
    brevitas_too = copy.deepcopy(brevitas)
    steps["Brevitas w4a4, bfloat16"] = step_of(brevitas_too, cross_entropy, x, y, ours=False, bfloat16=True)
    # Brevitas collects statistics in its first 300 steps and is faster afterwards.
    for _ in tqdm(range(brevitas_warm_up), desc=f"{name}: Brevitas' first steps", leave=False):
        steps["Brevitas w4a4"]()
        steps["Brevitas w4a4, bfloat16"]()
    seconds: dict[str, list[float]] = {key: [] for key in steps}
    for i in tqdm(range(rounds + 2), desc=f"{name}: rounds", leave=False):
        for key, step in steps.items():
            started = time.perf_counter()
            step()
            if i > 1:
                seconds[key].append(time.perf_counter() - started)

    def ratio(a: str, b: str) -> float:
        return statistics.median(p / q for p, q in zip(seconds[a], seconds[b], strict=True))

    column = 0 if name == "cnn" else 1
    lines = [
        f"\n**{name}**, batch 128, {rounds} rounds\n",
        "| step | ms (median) | ratio to base | target |",
        "|---|---|---|---|",
    ]
    for key, values in seconds.items():
        target = f"≤ {TARGETS[key][column]}" if key in TARGETS else ""
        lines.append(f"| {key} | {1e3 * statistics.median(values):.1f} | {ratio(key, 'base'):.2f} | {target} |")
    against_loop, against = ratio("guided w4a4", "Brevitas w4a4, authors' loop"), ratio("w4a4", "Brevitas w4a4")
    limits = (0.4, 0.5) if name == "cnn" else (0.45, 0.7)
    lines.append(f"| guided w4a4 / Brevitas under the authors' loop | | {against_loop:.2f} | ≤ {limits[0]} |")
    lines.append(f"| w4a4 / Brevitas, steady state | | {against:.2f} | ≤ {limits[1]} |")
    against = ratio("w4a4, bfloat16", "Brevitas w4a4, bfloat16")
    lines.append(f"| w4a4 / Brevitas, steady state, both bfloat16 | | {against:.2f} | |")
    floor = ratio("guided", "plain")
    lines.append(f"| guided / plain (floor 2 by count of passes) | | {floor:.2f} | |")
    floor = ratio("guided as published (ours)", "plain")
    lines.append(f"| as published / plain (floor 8/3) | | {floor:.2f} | |")
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["cnn", "resnet20"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--brevitas-warm-up", type=int, default=310)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {machine()['processor']}")
    for name in arguments.models:
        print("\n".join(measure(name, arguments.rounds, arguments.brevitas_warm_up)), flush=True)


if __name__ == "__main__":
    main()
