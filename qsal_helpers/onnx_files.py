"""Quantized models as ONNX files of a few bits a weight, and sessions that run them rightly."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession, SessionOptions
from torch import nn

from ._arguments import check_choice, check_path, check_whole, first_line
from .checkpoints import _write
from .data import ImageData
from .folding import Layer, Step, container_codes, fold, integer_inputs

STORAGES = ("int8", "packed", "float32")
PRODUCER = "qsal_helpers"
_OWN_NAMES = re.compile(r"logits|zero|float_zero|top\d+|image\..*")  # of the tensors that belong to no step


def save_onnx(model: nn.Module, path: str | os.PathLike, data: ImageData, storage: str = "int8") -> Path:
    """Write a model, quantized or float, as an ONNX file that reads uint8 images and returns float logits.

    Quantized weights are integers, scaled by ``DequantizeLinear``. Activations are uint8 from ``QuantizeLinear``,
    clipped to their own bits. Batch-norms are folded, and the image's normalisation is the first two operations.

    Parameters
    ----------
    model : as in evaluation mode; it is not changed.
    path : the file to write, usually ``something.onnx``.
    data : what the model was trained on; gives ``mean``, ``std`` and the shape of an image.
    storage : how the weights lie in the file:

        - "int8", for speed: weights in 8-bit containers and int32 biases, for which onnxruntime has integer
          kernels. Biases are rounded to the accumulator's steps, which may move activations by one level, and these
          add up: on ResNet-20 logits moved by up to a twentieth of the largest, and one to three predictions of a
          hundred changed. After `align_biases` they are exact, so export what that returns.
        - "packed", for size: weights of 2 bits as int2 (opset 25), of 3 and 4 bits as int4 (opset 21), of more as int8;
          computed in float32.
        - "float32": weights as floats; also for models that are not quantized.

        `onnx_session` sets the right options. In a session of your own, "int8" needs ``session.x64quantprecision`` at
        "1" on x86 processors without VNNI, or sums saturate. The other two give the same logits in any session, and run
        1.5 to 4 times as fast with ``session.disable_quant_qdq`` at "1", which unpacks the weights only once.

    Returns
    -------
    The path.

    Raises
    ------
    ValueError for an unknown storage, or if the model holds an operation that is not known (it is named).

    Examples
    --------
    >>> import tempfile
    >>> from qsal_helpers import build_model, load_data, quantize
    >>> data = load_data("mnist", size=100)
    >>> path = save_onnx(quantize(build_model("lenet5"), "w2a2"), tempfile.mkdtemp() + "/lenet5.onnx", data, "packed")
    >>> session = onnx_session(path)
    >>> session.run(None, {"image": data.test.images[:3].numpy()})[0].shape
    (3, 10)
    """
    path = check_path(path)
    check_choice(storage, "storage", STORAGES)
    # A step that is called like a tensor of the writer's own gets a dot in front, with which no module's name begins.
    apart = lambda name: f".{name}" if _OWN_NAMES.fullmatch(name) else name
    steps = [replace(s, name=apart(s.name), inputs=tuple(map(apart, s.inputs))) for s in fold(model, data)]
    steps = _pool_before_rounding(steps, integer_inputs(steps) if storage == "int8" else ())
    writer = _Writer(storage, steps)
    for step in steps:
        writer.add(step)
    writer.node("Identity", [writer.real(steps[-1].name)], "logits")
    graph = helper.make_graph(
        writer.nodes,
        type(model).__name__,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *steps[0].shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", *steps[-1].shape])],
        writer.tensors,
    )
    opset = helper.make_opsetid("", writer.opset)
    proto = helper.make_model(
        graph, producer_name=PRODUCER, opset_imports=[opset], ir_version=helper.find_min_ir_version_for([opset])
    )
    helper.set_model_props(proto, {"storage": storage, "precision": str(getattr(model, "precision", "fp32"))})
    onnx.checker.check_model(proto, full_check=True)
    _write(path, proto.SerializeToString())
    return path


def onnx_session(path: str | os.PathLike, threads: int | None = None) -> InferenceSession:
    """Open a file of `save_onnx` in onnxruntime, on the CPU, with the options that make it fast and its sums right.

    "int8" files are computed in integers. There, processors without VNNI instructions are told to add up without
    saturation, which is slower; with VNNI no sum saturates. "packed" and "float32" files are computed in float32, so
    onnxruntime's rewriting for integers is switched off for them.

    Parameters
    ----------
    threads : threads for one operation; by default onnxruntime's own choice.

    Returns
    -------
    A session: ``session.run(None, {"image": uint8 images (N, C, H, W)})[0]`` gives float logits.

    Raises
    ------
    FileNotFoundError if there is no such file; ValueError if it is truncated, refers to other files, or is not from
    `save_onnx`.
    """
    path = check_path(path)
    if threads is not None:
        check_whole(threads, "threads", high=1024)
    content = path.read_bytes()
    storage = _check_file(content, path)
    options = SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    if storage == "int8":
        if not _has_vnni():
            options.add_session_config_entry("session.x64quantprecision", "1")
    else:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each way to fail, without a common one
        raise ValueError(f"{path} cannot be run ({first_line(error)}); write it again with save_onnx") from error


def latencies(sessions: Mapping[Any, InferenceSession], batch: int, runs: int = 50) -> dict[Any, float]:
    """Return milliseconds for one call of each session: the median over `runs` calls that take turns.

    Taking turns gives each session the same share of whatever else the machine is doing. Images are random; how long
    a network takes does not depend on what is in them.

    Parameters
    ----------
    sessions : a name -> a session of `onnx_session`; one thread each (``threads=1``) gives the steadiest times.
    batch : images a call.

    Examples
    --------
    >>> import tempfile
    >>> from qsal_helpers import build_model, load_data
    >>> path = save_onnx(build_model("lenet5"), tempfile.mkdtemp() + "/a.onnx", load_data("mnist", 100), "float32")
    >>> latencies({"fp32": onnx_session(path, threads=1)}, batch=1, runs=5)["fp32"] > 0
    True
    """
    check_whole(batch, "batch", high=100_000)
    check_whole(runs, "runs")
    random, images = np.random.default_rng(0), {}
    for name, session in sessions.items():
        (image,) = session.get_inputs()
        images[name] = {image.name: random.integers(0, 256, (batch, *image.shape[1:]), dtype=np.uint8)}
    times: dict[Any, list[float]] = {name: [] for name in sessions}
    for run in range(runs + 2):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, images[name])
            if run >= 2:  # the first calls allocate
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(path: str | os.PathLike, threads: int = 1) -> float:
    """Return the memory, in MiB, that loading a file and running it on one image takes at its peak.

    A fresh process opens the file with onnxruntime alone, without torch. Counted is what it takes above onnxruntime
    itself. The number is read from ``/proc``; on systems without it, which are not Linux, the answer is NaN.

    Examples
    --------
    >>> import tempfile
    >>> from qsal_helpers import build_model, load_data
    >>> path = save_onnx(build_model("lenet5"), tempfile.mkdtemp() + "/a.onnx", load_data("mnist", 100), "float32")
    >>> peak_memory(path) < 100 or not Path("/proc").exists()
    True
    """
    check_whole(threads, "threads")
    storage = _check_file(Path(path).read_bytes(), path)
    command = [sys.executable, "-c", _PEAK_PROGRAM, str(path), storage, str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


_PEAK_PROGRAM = """
import re, sys
from pathlib import Path
import numpy as np, onnxruntime
def peak():
    # Not getrusage: its peak begins with that of the process which started this one.
    status = Path("/proc/self/status")
    return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) / 1024 if status.exists() else float("nan")
path, options = sys.argv[1], onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
if sys.argv[2] != "int8":
    options.add_session_config_entry("session.disable_quant_qdq", "1")
before = peak()
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
image = session.get_inputs()[0]
session.run(None, {image.name: np.zeros((1, *image.shape[1:]), np.uint8)})
print(peak() - before)
"""


def _has_vnni() -> bool:
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux: unknown, so the slower and always right way
        return False


def _check_file(content: bytes, path: str | os.PathLike) -> str:
    """Return how the weights are stored, or raise a `ValueError` that says what is wrong with the file."""
    try:
        proto = onnx.load_from_string(content)
    except DecodeError as error:
        raise ValueError(f"{path} is truncated or no ONNX file; write it again with save_onnx") from error
    tensors = [*proto.graph.initializer, *(a.t for node in proto.graph.node for a in node.attribute)]
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors):
        raise ValueError(f"{path} keeps weights in other files, which is refused; write it again with save_onnx")
    storage = {p.key: p.value for p in proto.metadata_props}.get("storage")
    if proto.producer_name != PRODUCER or (storage is not None and storage not in STORAGES):
        raise ValueError(f"{path} was not written by save_onnx; open it with onnxruntime.InferenceSession yourself")
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}); write it again with save_onnx") from error
    if storage is None:
        raise ValueError(f"{path} is truncated; write it again with save_onnx")
    return storage


class _Writer:
    """Collects nodes and tensors. `integers` maps a step to its uint8 tensor's name and scale."""

    def __init__(self, storage: str, steps: list[Step]) -> None:
        self.storage = storage
        self.integer_inputs = integer_inputs(steps)
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.integers: dict[str, tuple[str, float]] = {}
        self.opset = 21

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        if name not in {tensor.name for tensor in self.tensors}:
            self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def real(self, name: str) -> str:
        """Return the name of a step's output as floats; integers are turned into floats once for each reader."""
        if name == "image":
            return self.real_image
        if name not in self.integers:
            return name
        tensor, scale = self.integers[name]
        constant, made = self.constant(f"{tensor}.scale", np.float32(scale)), f"{tensor}.float{len(self.nodes)}"
        if self.storage == "int8":
            return self.node("DequantizeLinear", [tensor, constant, self.constant("zero", np.uint8(0))], made)
        # Not DequantizeLinear, from which onnxruntime concludes that the layer may be computed in integers: it would
        # round weights and biases that nothing has aligned, and change predictions.
        return self.node("Mul", [self.node("Cast", [tensor], f"{made}.cast", to=TensorProto.FLOAT), constant], made)

    def add(self, step: Step) -> None:
        options, name = step.options, step.name
        if step.kind == "image":
            self._normalise(options["mean"], options["std"])
        elif step.kind == "layer":
            self._layer(step)
        elif step.kind == "pact":
            self._quantize(step)
        elif step.kind == "clip":
            source = self.real(step.inputs[0])
            if options["high"] is None:
                self.node("Relu", [source], name)
            else:
                low = self.constant("float_zero", np.float32(0))
                high = self.constant(f"{name}.high", np.float32(options["high"]))
                self.node("Clip", [source, low, high], name)
        elif step.kind == "add":
            self.node("Add", [self.real(source) for source in step.inputs], name)
        elif step.kind == "average_pool":
            self.node("AveragePool", [self.real(step.inputs[0])], name, **_window_attributes(options))
        else:
            self._move(step)

    def _normalise(self, mean: np.ndarray, std: np.ndarray) -> None:
        scale, shift = (v.astype(np.float32).reshape(-1, 1, 1) for v in (1 / (255 * std), -mean / std))
        pixels = self.node("Cast", ["image"], "image.pixels", to=TensorProto.FLOAT)
        scaled = self.node("Mul", [pixels, self.constant("image.scale", scale)], "image.scaled")
        self.real_image = self.node("Add", [scaled, self.constant("image.shift", shift)], "image.normalised")

    def _layer(self, step: Step) -> None:
        layer, name = step.layer, step.name
        source = self.real(step.inputs[0])
        weight, bias = self._weight_and_bias(name, layer)
        if layer.weight.ndim == 2:
            self.node("Gemm", [source, weight, bias], name, transB=1)
        else:
            padding = [*layer.padding, *layer.padding]
            self.node("Conv", [source, weight, bias], name, strides=list(layer.stride), pads=padding)

    def _weight_and_bias(self, name: str, layer: Layer) -> tuple[str, str]:
        kernel = container_codes(layer) if self.storage == "int8" else None
        if kernel and name in self.integer_inputs:
            input_step = self.integer_inputs[name]
            codes, scale, steps = _int32_bias(*kernel, layer.bias, input_step)
            bias = self._dequantize(f"{name}.bias", steps, scale * input_step)
            return self._dequantize(f"{name}.weight", codes, scale), bias
        bias = self.constant(f"{name}.bias", layer.bias.astype(np.float32))
        if self.storage == "float32" or layer.bits == 32:
            return self.constant(f"{name}.weight", layer.weight.astype(np.float32)), bias
        return self._dequantize(f"{name}.weight", *kernel) if kernel else self._packed(name, layer), bias

    def _packed(self, name: str, layer: Layer) -> str:
        container = {2: ml_dtypes.int2, 3: ml_dtypes.int4, 4: ml_dtypes.int4}.get(layer.bits, np.int8)
        if layer.bits == 2:
            self.opset = 25
        if not layer.odd:
            return self._dequantize(f"{name}.weight", layer.codes.astype(container), layer.scale)
        # 2**bits odd numbers fit into `bits` bits as (code - 1) / 2; then code * scale = stored * 2 scale + scale.
        stored = (layer.codes - 1) // 2
        even = self._dequantize(f"{name}.weight", stored.astype(container), 2 * layer.scale)
        half = layer.scale.astype(np.float32).reshape(-1, *(1,) * (layer.codes.ndim - 1))
        return self.node("Add", [even, self.constant(f"{name}.half_step", half)], f"{name}.odd_weight")

    def _dequantize(self, name: str, integers: np.ndarray, scale: np.ndarray) -> str:
        inputs = [self.constant(f"{name}.integers", integers), self.constant(f"{name}.scale", scale.astype(np.float32))]
        if integers.dtype == np.int8:
            # Zeros are the default, but onnxruntime 1.31 puts a wrong shape there when it moves a Gemm's weight.
            # One for each weight, because its optimizer fails on one that several nodes share.
            inputs.append(self.constant(f"{name}.zeros", np.zeros(len(scale), np.int8)))
        return self.node("DequantizeLinear", inputs, name, axis=0)

    def _quantize(self, step: Step) -> None:
        top, scale = step.options["top"], step.options["step"]
        inputs = [self.real(step.inputs[0]), self.constant(f"{step.name}.scale", np.float32(scale))]
        tensor = self.node("QuantizeLinear", [*inputs, self.constant("zero", np.uint8(0))], step.name)
        if top < 255:
            # Behind the rounding, because a Clip before it would keep onnxruntime from using an integer kernel.
            bounds = [self.constant("zero", np.uint8(0)), self.constant(f"top{top}", np.uint8(top))]
            tensor = self.node("Clip", [tensor, *bounds], f"{step.name}.clipped")
        self.integers[step.name] = (tensor, scale)

    def _move(self, step: Step) -> None:
        source, name = step.inputs[0], step.name
        tensor, scale = self.integers.get(source, (self.real_image if source == "image" else source, None))
        if step.kind == "max_pool":
            self.node("MaxPool", [tensor], name, **_window_attributes(step.options))
        elif step.kind == "flatten":
            self.node("Flatten", [tensor], name)
        elif step.kind == "pad":
            widths = np.array(step.options["widths"]).T.ravel()
            # onnxruntime 1.31 merges a Pad without named axes into a pooling behind it, which then pads with other
            # numbers, or with more than it can.
            axes = self.constant(f"{name}.axes", np.arange(len(widths) // 2))
            self.node("Pad", [tensor, self.constant(f"{name}.widths", widths.astype(np.int64)), "", axes], name)
        else:
            end = np.iinfo(np.int64).max
            slices = [(s.start or 0, end if s.stop is None else s.stop, s.step or 1) for s in step.options["slices"]]
            starts, ends, steps = np.array(slices, np.int64).T
            columns = {"starts": starts, "ends": ends, "axes": np.arange(len(slices)), "steps": steps}
            self.node("Slice", [tensor, *(self.constant(f"{name}.{k}", v) for k, v in columns.items())], name)
        if scale is not None:
            self.integers[name] = (name, scale)


def _pool_before_rounding(steps: list[Step], integer_layers: Container[str]) -> list[Step]:
    """Return the steps with a max-pooling in front of the PACT that it alone reads, where that PACT rounds floats.

    Rounding keeps the order of numbers, so the results are the same. But in onnxruntime 1.31 pooling floats is several
    times as fast as pooling 8-bit integers, and fewer numbers are left to round. Behind one of `integer_layers` the
    rounding stays where it is, because without it no integer kernel is used.
    """
    readers = Counter(name for step in steps for name in step.inputs)
    pacts = {step.name for step in steps if step.kind == "pact" and step.inputs[0] not in integer_layers}
    pools = {
        s.inputs[0]: s for s in steps if s.kind == "max_pool" and s.inputs[0] in pacts and readers[s.inputs[0]] == 1
    }
    moved, done = [], {pool.name for pool in pools.values()}
    for step in steps:
        if step.name in pools:
            pool = pools[step.name]
            # The names change places, too: who read the pooled numbers now reads the rounded ones.
            moved.append(replace(pool, name=step.name, inputs=step.inputs))
            moved.append(replace(step, name=pool.name, inputs=(step.name,), shape=pool.shape))
        elif step.name not in done:
            moved.append(step)
    return moved


def _int32_bias(
    codes: np.ndarray, scale: np.ndarray, bias: np.ndarray, input_step: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes, scales and int32 biases; the accumulator's step is ``scale * input_step``.

    A channel whose weights are so small beside its bias that the bias would not fit into int32 is constant to nine
    digits: its codes become 0, and its scale such that the bias fits.
    """
    grid = scale * input_step
    constant = np.abs(bias) >= 2**30 * grid
    scale = np.where(constant, np.maximum(np.abs(bias), 1e-30) / 2**24 / input_step, scale)
    codes = np.where(constant.reshape(-1, *(1,) * (codes.ndim - 1)), 0, codes).astype(np.int8)
    return codes, scale, np.rint(bias / (scale * input_step)).astype(np.int32)


def _window_attributes(options: dict[str, tuple[int, int]]) -> dict[str, list[int]]:
    padding = [*options["padding"], *options["padding"]]
    return {"kernel_shape": list(options["kernel"]), "strides": list(options["stride"]), "pads": padding}
