"""Trained models in one small file: safetensors, whose JSON header says how to build the model again.

Nothing in such a file is ever executed, so a file from a stranger can do no more than fail to load.
"""

from __future__ import annotations

import json
import os
import uuid
import warnings
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ._arguments import check_flag, check_path
from .models import build_model
from .quantization import PACT, Precision, quantize

FORMAT = 1


class CheckpointError(ValueError):
    """A file is no checkpoint of this package, or a model cannot be put into one; the sentence says why."""


def save_model(model: nn.Module, path: str | os.PathLike, /, *, half: bool = False, **notes: Any) -> None:
    """Write a model made by `build_model`, quantized or not, to one file.

    The file appears whole or not at all: it is written under another name beside `path` and then renamed.

    Parameters
    ----------
    model : what `build_model` returned, or `quantize` made of that.
    path : the file; ``.safetensors`` is the usual ending. An older file of that name is replaced.
    half : store the weights of convolutions and linear layers in 16 bits, for about half the bytes. Statistics, biases
        and alphas keep theirs. `load_model` gives float32 again, with the weights rounded to 11 significant bits. A
        weight of a quantized layer that lies on the border between two levels can change its level by that: up to 8
        predictions of a thousand changed. A model of another dtype is stored as it is.
    notes : anything worth remembering, such as ``epochs=5`` or ``accuracy=0.91``; plain JSON values.

    Raises
    ------
    CheckpointError if the model was not made by `build_model` or was changed since, if a note is not plain JSON, or if
    a weight is too large for `half`.

    Examples
    --------
    >>> import tempfile
    >>> from qsal_helpers import build_model, quantize
    >>> path = Path(tempfile.mkdtemp()) / "small.safetensors"
    >>> save_model(quantize(build_model("lenet5"), "w4a4"), path, accuracy=0.9)
    >>> load_model(path).conv2.weight_bits, read_notes(path)
    (4, {'accuracy': 0.9})
    """
    path = check_path(path)
    check_flag(half, "half")
    if not isinstance(getattr(model, "recipe", None), dict):
        raise CheckpointError(
            f"{type(model).__name__} was not made by build_model, so a checkpoint could not say how to build it again; "
            "save its state_dict yourself"
        )
    precision = getattr(model, "precision", None)
    if not isinstance(precision, Precision | None):
        raise CheckpointError(f"model.precision must be a Precision, as quantize sets it; got {precision!r}")
    header = {
        "format": FORMAT,
        "recipe": model.recipe,
        "precision": None if precision is None else {**vars(precision), "layers": dict(precision.layers)},
        "scheme": getattr(model, "scheme", None),
        # What is in 16 bits already stays so.
        "half": half and any(_is_weight(value) for value in model.state_dict().values()),
        "channels_last": any(not w.is_contiguous() for w in model.parameters() if w.dim() == 4),
        "notes": notes,
    }
    if _structure(_rebuild(header, "the model")) != _structure(model):
        raise CheckpointError("the model was changed after build_model and quantize; a checkpoint cannot hold that")
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"notes must be plain JSON (text, finite numbers, lists, dicts): {error}") from error
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if half:
        tensors = {name: value.half() if _is_weight(value) else value for name, value in tensors.items()}
        if overflown := [n for n, value in tensors.items() if value.dtype == torch.float16 and value.isinf().any()]:
            raise CheckpointError(
                f"{overflown[0]!r} holds numbers beyond 65504, too large for 16 bits; save without half"
            )
    _write(path, safetensors.torch.save(tensors, metadata={"qsal": text}))


def load_model(path: str | os.PathLike) -> nn.Module:
    """Return the model in a file that `save_model` wrote: on the CPU, in evaluation mode, equal to the bit.

    A file written with ``half=True`` gives float32 again, with the weights it holds. The random state of the
    caller is left alone.

    Raises
    ------
    CheckpointError if the file is damaged, altered, of another version, or no checkpoint of this package;
    FileNotFoundError if there is none.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "small.safetensors"
    >>> save_model(build_model("lenet5"), path, seed=0)
    >>> load_model(path).recipe["name"], read_notes(path)
    ('lenet5', {'seed': 0})
    """
    header, tensors = _read(path, with_tensors=True)
    model = _rebuild(header, str(path))
    expected, found = (
        {name: (value.shape, value.is_floating_point()) for name, value in state.items()}
        for state in (model.state_dict(), tensors)
    )
    if found != expected:
        wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        raise CheckpointError(f"{path} does not fit the model it names: tensor {wrong[0]!r} is wrong or missing")
    if header.get("half"):
        tensors = {name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()}
    model.load_state_dict(tensors, assign=True)
    if header["channels_last"]:
        model.to(memory_format=torch.channels_last)
    return model.eval()


def read_notes(path: str | os.PathLike) -> dict[str, Any]:
    """Return the notes that were given to `save_model`, without loading the model. Raises as `load_model` does."""
    return _read(path, with_tensors=False)[0]["notes"]


def _is_weight(value: Tensor) -> bool:
    return value.dtype == torch.float32 and value.dim() >= 2


def _rebuild(header: dict[str, Any], source: str) -> nn.Module:
    try:
        # The meta device holds shapes without numbers: no time, no random numbers, and no memory for absurd sizes.
        # What quantize warns of it has said already, when the model was made.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = build_model(**header["recipe"])
            if header["precision"] is None:
                return model
            fields = dict(header["precision"])
            for name in ("weights", "activations"):
                fields[name] = tuple(fields[name]) if isinstance(fields[name], list) else fields[name]
            fields["layers"] = {name: tuple(pair) for name, pair in fields["layers"].items()}
            return quantize(model, Precision(**fields), header["scheme"])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{source} does not say how it was built: {error}") from error


def _structure(model: nn.Module) -> list[tuple[Any, ...]]:
    # What a PACT prints holds its alpha, which is no part of the structure.
    told = lambda m: m.bits if isinstance(m, PACT) else (m.extra_repr(), getattr(m, "activation_bits", None))
    modules = [(n, type(m), told(m)) for n, m in model.named_modules() if n]
    return modules + [(name, value.shape) for name, value in model.state_dict().items()]


def _read(path: str | os.PathLike, with_tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = check_path(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("qsal")
            # Clones, so that no tensor depends on the file once it is closed.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()} if with_tensors else {}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (safetensors.SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged, or no safetensors file: {error}") from error
    if text is None:
        raise CheckpointError(f"{path} is a safetensors file, but no checkpoint: its header lacks 'qsal'")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a header that is no JSON: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        raise CheckpointError(f"{path} has format {found!r}, and this version of qsal_helpers reads format {FORMAT}")
    missing = {"recipe", "precision", "scheme", "channels_last", "notes"} - set(header)
    if missing:
        raise CheckpointError(f"{path} has a header without {', '.join(sorted(missing))}")
    return header, tensors


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
