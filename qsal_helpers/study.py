"""The study: many trainings, each with a record that says all about it. `python -m qsal_helpers.study --help`.

A `Run` says what to train. `execute` trains and measures it. `run_all` does so for a list of runs, several at a time,
and writes one small JSON file a run the moment it ends. `load_records` reads them into a table.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import platform
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import metrics
from ._arguments import check_choice, check_whole
from ._forward import evaluation_mode
from ._random import seeded
from .checkpoints import _write, load_model, save_model
from .data import _CLASS_NAMES, ImageData, load_data
from .distillation import Distilled
from .evidence import chosen, compare
from .guided import FILLS, RANKINGS, SaliencyGuided
from .machine import _cores
from .models import _BUILDERS, build_model
from .quantization import SCHEMES, Precision, describe, quantize
from .saliency import device_of, explained_classes, saliency_map
from .training import History, Objective, cross_entropy, evaluate, fit

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("gradient", "input_x_gradient", "integrated_gradients", "random")
SHOWN = (
    "gradient: deletion, black",
    "gradient: insertion, black",
    "gradient: deletion, blur",
    "gradient: insertion, blur",
    "random: deletion, black",
    "random: insertion, black",
    "gradient: gini",
    "gradient: foreground mass",
    "gradient: sensitivity",
)
SUMMARY = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}

# An objective -> what it changes in the published procedure.
_PUBLISHED: dict[str, dict[str, Any]] = {
    "published": {},
    "published-frozen": {"freeze_statistics": True},
    "published-magnitude": {"rank_by": "magnitude"},
    "published-detached": {"detach_clean": True},
    "published-train": {"eval_saliency": False},
    "published-loss": {"saliency": "loss", "eval_saliency": False},
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "data": tuple(_CLASS_NAMES),
    "model": tuple(_BUILDERS),
    "scheme": SCHEMES,
    "objective": ("plain", "guided", *_PUBLISHED),
    "rank_by": RANKINGS,
    "fill": FILLS,
    "saliency": ("loss", "logit"),
    "start": ("scratch", "twin"),
    **dict.fromkeys(("distilled", "augment", "bfloat16"), (True, False)),
}


@dataclass(frozen=True)
class Run:
    """What one training of the study is: enough to do it again.

    Attributes
    ----------
    data, size : of `load_data`.
    model : of `build_model`.
    precision, scheme : of `quantize`; first, last : the bits of the end layers of a quantized model.
    objective : "plain", "guided" (`SaliencyGuided`), "published" (`SaliencyGuided.as_published`), or the latter with
        one choice changed. "published-frozen": masked images do not touch batch-norm's running statistics.
        "published-magnitude": the ranking is that of the paper's prose. "published-detached": the KL term moves only
        the prediction for the masked image. "published-train": the gradient that ranks is that of the training pass.
        "published-loss": so it is, and it is the loss's instead of the logit's.
    mask_ratio, weight, rank_by, fill, saliency, ramp_steps : of `SaliencyGuided`; "published" reads only the ratio,
        "plain" none.
    start : "scratch", or "twin": the weights of the plain fp32 network of the same seed, trained first.
    distilled : whether that twin is a teacher as well (`Distilled`).
    epochs, augment, bfloat16, seed : of `fit`. The seed also draws the first weights.
    explained : how many test images the maps' metrics are taken over, the first ones of the test set.

    Examples
    --------
    >>> run = Run("fashion-mnist", precision="w2a2", objective="guided", seed=1)
    >>> run.id
    'fashion-mnist-w2a2-guided-s1-5eaa00ac'
    """

    data: str = "fashion-mnist"
    size: str | int = "full"
    model: str = "cnn"
    precision: str = "fp32"
    scheme: str = "sawb"
    first: int = 8
    last: int = 8
    objective: str = "plain"
    mask_ratio: float = 0.5
    weight: float = 1.0
    rank_by: str = "signed"
    fill: str = "uniform"
    saliency: str = "loss"
    ramp_steps: int = 0
    start: str = "scratch"
    distilled: bool = False
    epochs: int = 8
    augment: bool = False
    bfloat16: bool = False
    explained: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if type(f.default) in (int, bool) and type(getattr(self, f.name)) is not type(f.default):
                raise TypeError(f"{f.name} must be of type {type(f.default).__name__}; got {getattr(self, f.name)!r}")
        for name in ("mask_ratio", "weight"):  # 1 and 1.0 are the same run and need the same name
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def id(self) -> str:
        """A short name that no other run has. A field added later leaves the ids of earlier runs as they are."""
        given = {f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) != f.default}
        digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.data}-{self.precision}-{self.objective}-s{self.seed}-{digest}".replace("/", "")

    @property
    def command(self) -> str:
        """The command that does this run again."""
        given = ((f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self))
        # Without any option the command would stand for the whole plan, so the data set is always named.
        options = (
            f"--{name.replace('_', '-')} {value}"
            for name, value, default in given
            if value != default or name == "data"
        )
        return " ".join(["python -m qsal_helpers.study run --folder build/again", *options])

    @property
    def twin(self) -> Run | None:
        """The plain fp32 run of the same seed that this one starts or learns from; None if it does neither."""
        if self.start == "scratch" and not self.distilled:
            return None
        shared = ("data", "size", "model", "epochs", "augment", "bfloat16", "seed")
        return Run(**{name: getattr(self, name) for name in shared})

    def check(self) -> None:
        """Raise `ValueError` for what could not be run, before a twin is trained for it."""
        check_choice(self.start, "start", _CHOICES["start"])
        check_choice(self.scheme, "scheme", SCHEMES)
        check_whole(self.explained, "explained")
        self._bits()
        dataclasses.replace(self, distilled=False).build_objective()

    def _bits(self) -> Precision:
        precision = Precision.parse(self.precision)
        if str(precision) == "fp32":
            return precision
        return dataclasses.replace(precision, first=self.first, last=self.last)

    def build(self, data: ImageData, twin: nn.Module | None = None) -> nn.Module:
        """Return the untrained model, or one with the weights of `twin`, the trained model of the run's `twin`."""
        self.check()
        with seeded(self.seed, torch.device("cpu")):
            model = build_model(self.model, in_channels=data.in_channels, num_classes=data.num_classes)
        if self.start == "twin":
            model.load_state_dict(twin.state_dict())
        return model if self.precision == "fp32" else quantize(model, self._bits(), self.scheme)

    def build_objective(self, twin: nn.Module | None = None) -> Objective:
        """Return what `fit` minimises; `twin` is the teacher of a distilled run."""
        check_choice(self.objective, "objective", _CHOICES["objective"])
        objective: Objective = cross_entropy
        if self.objective == "guided":
            objective = SaliencyGuided(
                self.mask_ratio, self.weight, self.rank_by, self.fill, self.saliency, ramp_steps=self.ramp_steps
            )
        elif self.objective in _PUBLISHED:
            published = SaliencyGuided.as_published(self.mask_ratio)
            objective = dataclasses.replace(published, **_PUBLISHED[self.objective])
        return Distilled(twin, objective) if self.distilled else objective


# ---------------------------------------------------------------- one run


def execute(run: Run, resume: str | os.PathLike | None = None, progress: bool = False) -> tuple[dict, nn.Module]:
    """Train and measure one run; return its record and the trained model, on the CPU.

    Parameters
    ----------
    resume : a file that lets a killed training go on from its last epoch; see `fit`. The training of a twin keeps its
        own, with ".twin" after the name.

    Returns
    -------
    record : plain JSON values. ``run`` (the fields), ``id``, ``command``, ``status`` ("done"), ``machine``,
        ``seconds`` of training (a twin's not counted), ``accuracy`` on the test images and of the explained ones,
        ``confidence``, ``parameters``, ``packed_bytes``, ``bit_operations``, ``history``, ``alphas``, and ``metrics``:
        name -> mean, standard deviation and quantiles over the explained images.

    Examples
    --------
    >>> record, model = execute(Run("fashion-mnist", size=500, model="lenet5", epochs=1, explained=4))
    >>> record["status"], sorted(record["metrics"])[0]
    ('done', 'gradient: deletion, black')
    """
    data = load_data(run.data, run.size)
    model, history = _train(run, data, resume, progress)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # where it was trained; `fit` puts it back
    rows = describe(model)
    record = {
        **_begun(run),
        "status": "done",
        "seconds": round(sum(history.seconds), 1),
        "accuracy": evaluate(model, data),
        "parameters": sum(row["parameters"] for row in rows),
        "packed_bytes": sum(row["packed_bytes"] for row in rows),
        "bit_operations": sum(row["bit_operations"] for row in rows),
        "history": {
            "loss": [round(loss, 5) for loss in history.loss],
            "validation_accuracy": [round(accuracy, 5) for accuracy in history.validation_accuracy],
            "best_epoch": history.best_epoch,
        },
        "alphas": _last_alphas(history),
        **measure(model, data, run.explained),
    }
    return record, model.cpu()


def _train(run: Run, data: ImageData, resume: str | os.PathLike | None, progress: bool) -> tuple[nn.Module, History]:
    run.check()
    twin = _train(run.twin, data, resume and f"{resume}.twin", progress)[0] if run.twin else None
    model, objective = run.build(data, twin), run.build_objective(twin)
    options = {name: getattr(run, name) for name in ("epochs", "seed", "augment", "bfloat16")}
    history = fit(model, data, objective, **options, resume=resume, progress=progress)
    if history.interrupted:
        raise KeyboardInterrupt
    return model, history


def measure(model: nn.Module, data: ImageData, explained: int = 500) -> dict[str, Any]:
    """Return how sure `model` is of the first `explained` test images, and how good the maps of its predictions are.

    Deletion and insertion are taken with two fills, because a network trained on masked images may have learned to
    bear one kind of filling: black (the value 0 of the raw image) and a blur. The metrics of the random map stand
    beside the others.

    Returns
    -------
    ``confidence``: mean probability of the predicted class. ``metrics``: "method: metric" -> summary over the images.
    The object's pixels are known only where the background is black: MNIST and FashionMNIST.

    Examples
    --------
    >>> found = measure(build_model("lenet5"), load_data("mnist", size=500), explained=4)
    >>> found["metrics"]["random: gini"]["images"]
    4
    """
    check_whole(explained, "explained")
    images = data.test.images[:explained]
    x = data.normalise(images).to(device_of(model, images))
    with evaluation_mode(model), torch.inference_mode():
        probabilities = torch.cat([model(part).softmax(1) for part in x.split(250)])
    target = probabilities.argmax(1)
    black = data.normalise(torch.zeros_like(images[:1]))[0, :, 0, 0].tolist()
    found: dict[str, Tensor] = {}
    for method in METHODS:
        with warnings.catch_warnings():
            # Known, and measured in lesson 03: completeness does not hold on quantized networks.
            warnings.filterwarnings("ignore", message="integrated gradients do not add up")
            maps = saliency_map(model, x, target, method)
        for name, fill in (("black", black), ("blur", "blur")):
            found[f"{method}: deletion, {name}"] = metrics.deletion_auc(model, x, maps, target, fill=fill)
            found[f"{method}: insertion, {name}"] = metrics.insertion_auc(model, x, maps, target, fill=fill)
        found[f"{method}: gini"] = metrics.gini(maps)
        found[f"{method}: entropy"] = metrics.entropy(maps)
        if data.name in ("mnist", "fashion-mnist"):
            mask = metrics.object_mask(images).to(x.device)
            found[f"{method}: foreground mass"] = metrics.foreground_mass(maps, mask)
            found[f"{method}: pointing game"] = metrics.pointing_game(maps, mask)
    signed = saliency_map(model, x, target, absolute=False)
    found["gradient: infidelity, normalized"] = metrics.infidelity(model, x, signed, target, normalize=True)
    found["gradient: sensitivity"] = metrics.sensitivity_max(model, x, target)
    found["gradient: randomisation"] = metrics.randomisation_check(model, x, target)
    return {
        "confidence": probabilities.amax(1).mean().item(),
        "metrics": {name: summary(values) for name, values in found.items()},
    }


def summary(values: Tensor) -> dict[str, float]:
    """Return mean, standard deviation and quantiles of one number an image, and of how many; NaNs are left out.

    Examples
    --------
    >>> summary(torch.tensor([1.0, 2.0, 3.0, float("nan")]))["mean"]
    2.0
    """
    good = values[values.isfinite()].double()
    if not len(good):
        return {"images": 0}
    quantiles = good.quantile(torch.tensor(list(SUMMARY.values()), dtype=good.dtype, device=good.device))
    numbers = {"mean": good.mean(), "sd": good.std(correction=0)} | dict(zip(SUMMARY, quantiles, strict=True))
    return {name: round(float(value), 5) for name, value in numbers.items()} | {"images": len(good)}


def machine() -> dict[str, Any]:
    """Return what the figures of a record may depend on: versions, processor, threads, device."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **{name: version(name) for name in ("torch", "captum", "numpy", "qsal-helpers")},
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def _last_alphas(history: History) -> dict[str, float]:
    return {name: round(values[history.best_epoch - 1], 5) for name, values in history.alphas.items()}


# ---------------------------------------------------------------- many runs


def run_all(
    runs: Iterable[Run],
    folder: str | os.PathLike,
    workers: int | None = None,
    client: Any = None,
    progress: bool = True,
) -> list[dict]:
    """Execute the runs that have no record in `folder` yet; return the records of all of them, in order.

    A record is written the moment its run ends, whole or not at all, with the trained model beside it. Kill this at
    any moment and call it again: only unfinished runs are done, each from its last finished epoch. A run that fails
    is recorded as failed, with the reason; delete that record to try again. Every run is a process of its own that
    imports the calling script, so a script calls this under ``if __name__ == "__main__":``.

    Parameters
    ----------
    folder : made if it is not there. Holds ``<id>.json`` and ``<id>.safetensors`` a run.
    workers : how many runs go on at a time, each in a process with its share of the cores. By default one a core, which
        wastes the fewest cycles on small networks; on a GPU four.
    client : a ``dask.distributed.Client``: then the runs are executed by its workers, and the records are written here.
        A run whose worker dies goes to another one.

    Examples
    --------
    >>> import tempfile
    >>> run = Run("mnist", size="mini", model="lenet5", epochs=1, explained=4)
    >>> [record] = run_all([run], tempfile.mkdtemp(), client=None, workers=1, progress=False)
    >>> record["status"]
    'done'
    """
    if workers is not None:
        check_whole(workers, "workers")
    runs, folder = list(dict.fromkeys(runs)), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [run for run in runs if not _record_path(folder, run).exists()]
    for run in set(runs) - set(missing):
        read_record(folder, run)  # a damaged one is told of now, not after hours
    workers = workers or (4 if torch.cuda.is_available() else _cores())
    finished = _on_a_cluster(missing, folder, client) if client else _in_processes(missing, folder, workers)
    for run in tqdm(finished, total=len(missing), disable=not progress, unit="run", smoothing=0):
        if progress:
            tqdm.write(_one_line(read_record(folder, run)))
    return [read_record(folder, run) for run in runs]


def _in_processes(runs: list[Run], folder: Path, workers: int) -> Iterable[Run]:
    """Yield each run when its record is there. A process a run: one that dies takes nothing else with it."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, _cores() // workers)
    waiting, running = list(runs), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                run = waiting.pop(0)
                process = context.Process(target=_work, args=(run, folder, threads))
                process.start()
                running[process.sentinel] = run, process
            for sentinel in multiprocessing.connection.wait(running):
                run, process = running.pop(sentinel)
                process.join()
                if not _record_path(folder, run).exists():
                    reason = (
                        f"the process ended with exit code {process.exitcode} before it could write a record; if a "
                        'script of yours called run_all, let it do so under if __name__ == "__main__":'
                    )
                    _write_record(folder, run, _failed(run, reason))
                yield run
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


def _work(run: Run, folder: Path, threads: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if _record_path(folder, run).exists():  # another command has done it meanwhile
        return
    torch.set_num_threads(threads)
    unfinished = folder / f"{run.id}.unfinished"
    try:
        record, model = execute(run, resume=unfinished)
        save_model(model, folder / f"{run.id}.safetensors", half=True)
        _write_record(folder, run, record)
        for path in (unfinished, Path(f"{unfinished}.twin")):
            path.unlink(missing_ok=True)
    except Exception as error:
        if not _record_path(folder, run).exists():
            _write_record(folder, run, _failed(run, f"{type(error).__name__}: {error}", traceback.format_exc()))


def _end_with_parent() -> None:
    """Without this a killed command would leave its runs behind, and the next one would do them at the same time."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


_ALONE = threading.Lock()


def _execute_alone(run: Run) -> tuple[dict, nn.Module]:
    with _ALONE:  # the threads of a worker share torch's random numbers
        return execute(run)


def _on_a_cluster(runs: list[Run], folder: Path, client: Any) -> Iterable[Run]:
    from concurrent.futures import CancelledError

    from dask.distributed import as_completed

    futures = {client.submit(_execute_alone, run, key=run.id): run for run in runs}
    for future in as_completed(futures):
        run = futures[future]
        try:
            record, model = future.result()
            save_model(model, folder / f"{run.id}.safetensors", half=True)
            _write_record(folder, run, record)
        except CancelledError:  # the cluster has gone, which is no fault of the run's
            raise
        except Exception as error:
            _write_record(folder, run, _failed(run, f"{type(error).__name__}: {error}"))
        future.release()
        yield run


def _failed(run: Run, reason: str, details: str = "") -> dict:
    return _begun(run) | {"status": "failed", "reason": reason, "details": details}


def _begun(run: Run) -> dict:
    return {"run": dataclasses.asdict(run), "id": run.id, "command": run.command, "machine": machine()}


def _record_path(folder: Path, run: Run) -> Path:
    return folder / f"{run.id}.json"


def _write_record(folder: Path, run: Run, record: dict) -> None:
    _write(_record_path(folder, run), (json.dumps(record, allow_nan=record["status"] == "failed") + "\n").encode())


# ---------------------------------------------------------------- the records


class RecordError(ValueError):
    """A file is no record of this study; the sentence says why."""


def read_record(folder: str | os.PathLike, run: Run | str) -> dict:
    """Return one record; `run` is the run or its id. Raises `RecordError` if the file is damaged or its run was edited.

    Examples
    --------
    >>> import tempfile
    >>> folder, run = tempfile.mkdtemp(), Run("mnist", size=500, model="lenet5", epochs=1, explained=4)
    >>> _ = run_all([run], folder, workers=1, progress=False)
    >>> read_record(folder, run)["status"]
    'done'
    """
    path = Path(folder) / f"{run.id if isinstance(run, Run) else run}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if unknown := set(record["run"]) - {f.name for f in dataclasses.fields(Run)}:
            raise RecordError(f"{path} is from another version of qsal_helpers: this one knows no {', '.join(unknown)}")
        expected, status = Run(**record["run"]).id, record["status"]
        needed = ("accuracy", "seconds", "history", "metrics") if status == "done" else ("reason",)
        if lacking := [name for name in needed if name not in record]:
            raise ValueError(f"it has no {' and no '.join(lacking)}")
    except RecordError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is no record of the study ({error}); delete it to do its run again") from None
    if isinstance(run, Run) and repr(Run(**record["run"])) != repr(run):  # NaN equals nothing, not even itself
        raise RecordError(f"{path} holds another run, whose id happens to be the same; put one of the two elsewhere")
    if not (record.get("id") == expected == path.stem) or status not in ("done", "failed"):
        raise RecordError(
            f"{path} was edited or renamed: its run is {expected!r}; delete it, and its run is done again"
        )
    return record


def load_records(folder: str | os.PathLike) -> pd.DataFrame:
    """Return the finished runs as a table: a row a run; its fields, figures and the mean of each metric as columns.

    The column "set" names data and size at once: "fashion-mnist-mini" is not the official "fashion-mnist".

    Raises
    ------
    FileNotFoundError if there is no such folder.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> _ = run_all([Run("mnist", size=500, model="lenet5", epochs=1, explained=4)], folder, workers=1, progress=False)
    >>> float(load_records(folder)["gradient: gini"][0]) > 0
    True
    """
    import pandas as pd

    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}; run_all(runs, folder) writes records into one")
    rows = []
    for path in sorted(Path(folder).glob("*.json")):
        record = read_record(folder, path.stem)
        if record["status"] == "done":
            figures = {k: v for k, v in record.items() if isinstance(v, (int, float, str))}
            figures["best_epoch"] = record["history"]["best_epoch"]
            means = {name: value.get("mean") for name, value in record["metrics"].items()}
            # Through Run, so that fields added later have their defaults in earlier records.
            run = Run(**record["run"])
            name = run.data if run.size == "full" else f"{run.data}-{run.size}"
            rows.append(figures | dataclasses.asdict(run) | {"set": name} | means)
    return pd.DataFrame(rows, columns=None if rows else [f.name for f in dataclasses.fields(Run)])


def _one_line(record: dict) -> str:
    if record["status"] == "failed":
        return f"{record['id']}: failed: {record['reason']}"
    return f"{record['id']}: accuracy {record['accuracy']:.2%}, {record['seconds']:.0f} s of training"


# ---------------------------------------------------------------- the study's own runs

PRECISIONS = ("fp32", "w4a4", "mixed-4/2", "w2a2")
MAIN_GROUPS = ("fashion-mnist-mini", "mnist-mini", "fashion-mnist", "mnist", "cifar10")


def plan() -> dict[str, list[Run]]:
    """Return the study's runs, by the question they answer.

    "fashion-mnist-mini" and "mnist-mini" are the small twins of the two big groups, on the data that the package holds:
    a laptop does them in a night.

    Examples
    --------
    >>> len(plan()["fashion-mnist"])
    60
    """
    cells = list(itertools.product(PRECISIONS, ("plain", "guided", "published")))
    low = ("w4a4", "w2a2")
    some = lambda seeds=3, **fields: [Run(precision=p, seed=s, **fields) for p in low for s in range(seeds)]
    cifar10 = Run("cifar10", model="resnet20", augment=True, explained=200, epochs=6)
    photographs = [
        dataclasses.replace(cifar10, precision=p, objective=o) for o in ("plain", "guided") for p in PRECISIONS
    ]
    ratios = (0.25, 0.75)
    return {
        **{
            name + suffix: [Run(name, size, precision=p, objective=o, seed=s) for s in range(5) for p, o in cells]
            for size, suffix in (("mini", "-mini"), ("full", ""))
            for name in ("fashion-mnist", "mnist")
        },
        "cifar10": photographs,
        "long": [
            Run(name, precision=p, augment=True, epochs=24, seed=seed)
            for seed in range(3)
            for name in ("fashion-mnist", "mnist")
            for p in ("fp32", *low)
        ]
        + [Run("fashion-mnist", precision="w4a4", augment=True, epochs=60)]
        + [
            Run(model="resnet20", precision="w4a4", augment=True, explained=200, epochs=epochs, bfloat16=True)
            for epochs in (12, 24)
        ]
        + [
            Run(name, precision=p, augment=True, epochs=24, start="twin", distilled=True)
            for name, p in (("mnist", "w2a2"), ("fashion-mnist", "w4a4"))
        ],
        "long-cifar10": [dataclasses.replace(run, epochs=24, bfloat16=True) for run in photographs]
        + [
            dataclasses.replace(cifar10, precision=p, start="twin", distilled=True, epochs=24, bfloat16=True)
            for p in low
        ],
        # What a GPU would be used for; two cores take a day and a half.
        "gpu-cifar10": [
            dataclasses.replace(run, epochs=60, bfloat16=True, seed=s) for s in range(3) for run in photographs
        ],
        # Does a training in bfloat16 end where one in float32 does?
        "bfloat16": [
            *(dataclasses.replace(cifar10, precision=p, bfloat16=True) for p in ("fp32", "w2a2")),
            *(Run(size="mini", precision=p, bfloat16=True, seed=s) for s in range(5) for p in ("fp32", *low)),
        ],
        # As many steps as the official sets' 8 epochs, on the small sets' images.
        "steps-mini": [
            Run("mnist", "mini", objective=o, epochs=120, seed=s) for s in range(3) for o in ("plain", "guided")
        ]
        + [Run(size="mini", precision=p, epochs=48, seed=s) for s in range(5) for p in ("fp32", "w2a2")],
        "ratios-mini": [run for r in ratios for run in some(5, size="mini", objective="guided", mask_ratio=r)],
        "statistics-mini": [Run(size="mini", objective="published-frozen", seed=seed) for seed in range(5)],
        # What sets the published procedure apart from the default, one choice at a time.
        "differences-mini": [
            Run("mnist", "mini", precision=p, objective=f"published-{choice}", seed=s)
            for s in range(3)
            for choice in ("frozen", "detached", "train", "loss")
            for p in ("fp32", *low)
        ],
        # The default with the published procedure's gradient.
        "logit-mini": [
            Run(data, "mini", precision=p, objective="guided", saliency="logit", seed=s)
            for data, seeds in (("mnist", 3), ("fashion-mnist", 5))
            for s in range(seeds)
            for p in ("fp32", *low)
        ],
        "prose-mini": [Run(size="mini", objective="published-magnitude", seed=seed) for seed in range(5)],
        "ranking-mini": [
            Run(size="mini", precision=p, objective="guided", rank_by="magnitude", seed=s)
            for s in range(5)
            for p in PRECISIONS
        ],
        "fills-mini": [run for fill in ("black", "blur") for run in some(size="mini", objective="guided", fill=fill)],
        # The control of guidance: as many pixels are masked, but any.
        "random-mini": [
            Run(data, "mini", precision=p, objective="guided", rank_by="random", seed=s)
            for data, seeds in (("fashion-mnist", 5), ("mnist", 3))
            for s in range(seeds)
            for p in PRECISIONS
        ],
        "random": [
            run for data in ("mnist", "fashion-mnist") for run in some(data=data, objective="guided", rank_by="random")
        ],
        "ratios": [run for ratio in ratios for run in some(objective="guided", mask_ratio=ratio)],
        "ranking": some(objective="guided", rank_by="magnitude"),
        "ends-mini": [
            Run(size="mini", precision=f"w{bits}a{bits}", first=bits, last=bits, seed=seed)
            for bits in (4, 2)
            for seed in range(5)
        ],
        "weights-mini": some(5, size="mini", scheme="dorefa"),
        "twin-fashion-mnist-mini": [
            Run(size="mini", precision=precision, start=start, distilled=distilled, seed=seed)
            for seed in range(5)
            for precision, start, distilled in (
                ("w2a2", "twin", True),
                ("fp32", "twin", True),
                ("w2a2", "twin", False),
                ("w2a2", "scratch", True),
            )
        ],
        "twice-mini": [Run(size="mini", precision=p, epochs=16, seed=s) for p in ("w2a2", "fp32") for s in range(5)],
        "twin-mnist-mini": [
            Run("mnist", "mini", precision=precision, start="twin", distilled=True, seed=seed)
            for seed in range(3)
            for precision in ("w2a2", "fp32")
        ],
        "twin-fashion-mnist": some(5, start="twin", distilled=True),
        "twin-mnist": some(data="mnist", start="twin", distilled=True),
        "twin-cifar10": [dataclasses.replace(cifar10, precision=p, start="twin", distilled=True) for p in low],
    }


def agreement(runs: Iterable[Run], folder: str | os.PathLike, progress: bool = True) -> pd.DataFrame:
    """Return how far the gradient maps of trained models agree with those of plain fp32 ones.

    The floor to hold the figures against is in the rows whose model is a plain fp32 one itself: two networks that
    differ in nothing but chance. Where model and reference share their seed, the one may have started from the other.

    Parameters
    ----------
    runs : runs on one data set, whose models lie in `folder`; those without a model are left out.

    Returns
    -------
    A row for each pair of a model and another, plain fp32 one: the ids ``id`` and ``reference``, and the
    means over the explained images of ``rank correlation``, ``top-k overlap`` and ``ssim``. The explained class is the
    reference's prediction.

    Examples
    --------
    >>> import tempfile
    >>> folder, small = tempfile.mkdtemp(), Run("mnist", size=500, model="lenet5", epochs=1, explained=4)
    >>> runs = [small, dataclasses.replace(small, seed=1)]
    >>> _ = run_all(runs, folder, workers=2, progress=False)
    >>> len(agreement(runs, folder, progress=False))
    2
    """
    import pandas as pd

    folder = Path(folder)
    runs = [run for run in dict.fromkeys(runs) if (folder / f"{run.id}.safetensors").exists()]
    plain = [run for run in runs if run.precision == "fp32" and run.objective == "plain" and not run.twin]
    models = {run: load_model(folder / f"{run.id}.safetensors") for run in runs}
    measures = {
        "rank correlation": metrics.rank_correlation,
        "top-k overlap": metrics.top_k_overlap,
        "ssim": metrics.ssim,
    }
    rows = []
    for reference in tqdm(plain, disable=not progress, unit="reference", leave=False):
        data = load_data(reference.data, reference.size)
        x = data.normalise(data.test.images[: reference.explained])
        target = explained_classes(models[reference], x, None)
        own = saliency_map(models[reference], x, target)
        for run in runs:
            if run != reference:
                other = saliency_map(models[run], x, target)
                means = {n: round(float(measure(own, other).nanmean()), 5) for n, measure in measures.items()}
                rows.append({"id": run.id, "reference": reference.id} | means)
    return pd.DataFrame(rows, columns=["id", "reference", *measures])


GAINS = [f"{kind} gain, {fill}" for kind in ("deletion", "insertion") for fill in ("black", "blur")]
_NAMES = {"Gini": "gini", "on object": "foreground mass", "sensitivity": "sensitivity"}
# The map's measures -> the direction that counts as better.
MEASURES = dict.fromkeys([*GAINS, *_NAMES], 1) | {"sensitivity": -1}


def with_measures(records: pd.DataFrame, method: str = "gradient", of_the_room: bool = False) -> pd.DataFrame:
    """Return the records with seven more columns, `MEASURES` of a method's map.

    A gain says by how much the map beats the random map. Above 0 it is better: a smaller area under the deletion curve,
    a larger one under the insertion curve. What the records do not hold of this method is NaN.

    Parameters
    ----------
    records : of `load_records`.
    method : one of `METHODS`.
    of_the_room : whether to divide each gain by the largest that there could be on this network: for deletion the
        random map's area, for insertion one minus it.

    Examples
    --------
    >>> import pandas as pd
    >>> areas = {f"random: {kind}, {fill}": [0.5] for kind in ("deletion", "insertion") for fill in ("black", "blur")}
    >>> areas |= {name.replace("random", "gradient"): [0.3] for name in areas}
    >>> with_measures(pd.DataFrame(areas))[GAINS].round(1).values.tolist()
    [[0.2, 0.2, -0.2, -0.2]]
    """
    found = {name: records.get(f"{method}: {field}", math.nan) for name, field in _NAMES.items()}
    for name in GAINS:
        kind, fill = name.split()[0], name.rpartition(", ")[2]
        chance = records[f"random: {kind}, {fill}"]
        gap = records[f"{method}: {kind}, {fill}"] - chance
        gain, room = (gap, 1 - chance) if kind == "insertion" else (-gap, chance)
        found[name] = gain / room if of_the_room else gain
    return records.assign(**found)


def values_by_precision(
    records: pd.DataFrame,
    value: str,
    kinds: Sequence[str] = ("plain", "guided", "published"),
    column: str = "objective",
) -> dict[str, dict[str, list[float]]]:
    """Return a kind of training -> a precision -> one value a seed, as `plots.plot_against_bits` takes it.

    Parameters
    ----------
    records : of one data set.
    kinds : what `column` must hold. Kinds and precisions without a record are left out.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = {"objective": "plain", "precision": ["w2a2", "fp32"], "seed": [0, 0], "accuracy": [0.8, 0.9]}
    >>> values_by_precision(pd.DataFrame(rows), "accuracy")
    {'plain': {'fp32': [0.9], 'w2a2': [0.8]}}
    """
    found: dict[str, dict[str, list[float]]] = {}
    for kind, precision in itertools.product(kinds, PRECISIONS):
        if values := list(chosen(records, {column: kind, "precision": precision})[value].dropna()):
            found.setdefault(kind, {})[precision] = values
    return found


def noise_floor(records: pd.DataFrame, values: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Return each measure -> the lowest and the highest plain fp32 network, which differ only in the seed.

    One network tells nothing of that: then the answer is empty.

    Parameters
    ----------
    records : `main_records` of one data set.
    values : columns of `records`.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = {"objective": "plain", "precision": "fp32", "seed": [0, 1], "accuracy": [0.9, 0.91]}
    >>> noise_floor(pd.DataFrame(rows), ["accuracy"])
    {'accuracy': (0.9, 0.91)}
    """
    fp32 = chosen(records, {"objective": "plain", "precision": "fp32"})
    return {value: (float(fp32[value].min()), float(fp32[value].max())) for value in values} if len(fp32) > 1 else {}


def main_records(records: pd.DataFrame, *varied: str) -> pd.DataFrame:
    """Return the records that differ from one of the plan's main runs in nothing but precision, objective and seed.

    Parameters
    ----------
    varied : further fields of `Run` in which they may differ, such as "mask_ratio".

    Examples
    --------
    >>> import pandas as pd
    >>> records = pd.DataFrame([dataclasses.asdict(Run(objective="guided", mask_ratio=r)) for r in (0.5, 0.75)])
    >>> len(main_records(records)), len(main_records(records, "mask_ratio"))
    (1, 2)
    """
    names = [f.name for f in dataclasses.fields(Run)]
    for name in varied:
        check_choice(name, "a varied field", names)
    kept = [name for name in names if name not in ("precision", "objective", "seed", *varied)]
    plans = plan()
    wanted = {tuple(getattr(run, name) for name in kept) for group in MAIN_GROUPS for run in plans[group]}
    return records.loc[[row in wanted for row in records[kept].itertuples(index=False, name=None)]]


def table(records: pd.DataFrame, value: str = "accuracy") -> pd.DataFrame:
    """Return the papers' comparison: mean ± standard deviation over seeds (how many), a column a precision.

    Only the `main_records` are counted.

    Examples
    --------
    >>> import pandas as pd
    >>> records = pd.DataFrame([dataclasses.asdict(Run(seed=s)) | {"accuracy": 0.93 + s / 100} for s in range(2)])
    >>> table(records).loc[("fashion-mnist", "full", "plain"), "fp32"]
    '0.935 ± 0.007 (2)'
    """
    main = main_records(records).dropna(subset=[value])
    groups = main.groupby(["data", "size", "objective", "precision"], sort=False)[value]
    spread = lambda v: f" ± {v.std():.3f}" if len(v) > 1 else ""
    cells = groups.agg(lambda v: f"{v.mean():.3f}{spread(v)} ({len(v)})")
    columns = [p for p in dict.fromkeys([*PRECISIONS, *main.precision]) if p in set(main.precision)]
    return cells.unstack("precision").reindex(columns=columns)


_SCRATCH = {"start": "scratch", "distilled": False}
_KINDS = {objective: {"objective": objective} | _SCRATCH for objective in ("plain", "guided", "published")} | {
    "from its twin": {"objective": "plain", "start": "twin", "distilled": True}
}


def against_fp32(records: pd.DataFrame) -> pd.DataFrame:
    """Return how each kind of network stands beside the plain fp32 one: a row a kind, a column a data set.

    A cell holds the mean accuracy, how many of the seven `MEASURES` of the gradient map are surely better and how many
    surely worse than plain fp32's, and over how many seeds. "Surely" means that the 95 % interval of the paired
    difference leaves out 0, for each difference by itself: nothing is corrected for how many were asked. With one seed
    there is no interval.

    Parameters
    ----------
    records : of `load_records`. Of these the `main_records` count, and those that start from a twin and learn from it.

    Examples
    --------
    >>> import pandas as pd
    >>> areas = [f"{m}: {k}, {f}" for m in METHODS for k in ("deletion", "insertion") for f in ("black", "blur")]
    >>> figures = {"set": "fashion-mnist", "accuracy": 0.9} | dict.fromkeys(areas, 0.5)
    >>> records = pd.DataFrame([dataclasses.asdict(Run(precision=p)) | figures for p in ("fp32", "w2a2")])
    >>> against_fp32(records)["fashion-mnist"].tolist()
    ['90.00% (1)', '90.00% (1)']
    """
    import pandas as pd

    main = main_records(with_measures(records), "start", "distilled")
    base = {"precision": "fp32"} | _KINDS["plain"]
    cells: dict[str, dict[str, str]] = {}
    for (kind, wanted), precision in itertools.product(_KINDS.items(), PRECISIONS):
        this = {"precision": precision} | wanted
        for name, frame in main.groupby("set"):
            if len(rows := chosen(frame, this)):
                several = this != base and len(set(rows.seed) & set(chosen(frame, base).seed)) > 1
                counted = _better_and_worse(frame, this, base) if several else ""
                cells.setdefault(f"{precision}, {kind}", {})[name] = (
                    f"{rows.accuracy.mean():.2%} {counted}({len(rows)})"
                )
    columns = [name for name in MAIN_GROUPS if name in set(main.set)]
    return pd.DataFrame.from_dict(cells, orient="index", columns=columns).fillna("")


def _better_and_worse(frame: pd.DataFrame, one: dict[str, Any], base: dict[str, Any]) -> str:
    signs = []
    for measure, good in MEASURES.items():
        found = compare(frame, measure, one, base)
        signs.append(good * np.sign(found["difference"]) * (found["p"] < 0.05))
    return f"{signs.count(1)} better, {signs.count(-1)} worse "


# ---------------------------------------------------------------- the command


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line says; end with a sentence where a record is damaged or the work is interrupted."""
    try:
        _command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads our lines, such as `head`, has seen enough; the interpreter would try once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except RecordError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")


def _command(arguments: list[str] | None) -> None:
    """List, execute and tabulate the study's runs."""
    parser = argparse.ArgumentParser(
        prog="python -m qsal_helpers.study",
        description="List, execute, resume and tabulate the runs of the study. Without options `run` executes the "
        "whole plan; a killed command goes on where it was when it is given again.",
    )
    parser.add_argument(
        "do",
        choices=["list", "run", "table", "agree"],
        help="list: each run and its accuracy, or 'to do'; run: do what has no record yet, from where a killed command "
        "left off; table: the finished runs beside each other; agree: how far the maps of their models agree, as CSV",
    )
    parser.add_argument("--folder", type=Path, default=Path("notebooks/results/study"), help="of the records")
    parser.add_argument("--group", choices=list(plan()), help="only the plan's runs on this question")
    parser.add_argument("--workers", type=int, help="runs at a time; by default one a core")
    parser.add_argument("--seeds", type=int, help="only the plan's runs with a seed below this")
    one = parser.add_argument_group("one run of your own instead of the plan's; see qsal_helpers.study.Run")
    for field in dataclasses.fields(Run):
        kind = type(field.default)
        kind = (lambda text: {"True": True, "False": False}.get(text, text)) if kind is bool else kind
        kind = (lambda text: int(text) if text.isdigit() else text) if field.name == "size" else kind
        option = f"--{field.name.replace('_', '-')}"
        one.add_argument(option, type=kind, choices=_CHOICES.get(field.name), help=f"default {field.default}")
    given = parser.parse_args(arguments)
    if given.workers is not None and given.workers < 1:
        parser.error(f"--workers must be at least 1; got {given.workers}")
    fields = {f.name: v for f in dataclasses.fields(Run) if (v := getattr(given, f.name)) is not None}
    if given.seeds is not None and given.seeds < 1:
        parser.error(f"--seeds must be at least 1; got {given.seeds}")
    if fields and (given.group or given.seeds is not None):
        parser.error("--group and --seeds choose among the plan's runs, so they do not go with a run of your own")
    if fields:
        runs = [Run(**fields)]
    else:
        groups = [plan()[given.group]] if given.group else plan().values()
        runs = [run for group in groups for run in group if given.seeds is None or run.seed < given.seeds]
    if given.do == "list":
        for run in runs:
            path = _record_path(given.folder, run)
            print(_one_line(read_record(given.folder, run)) if path.exists() else f"{run.id}: to do")
    elif given.do == "run":
        records = run_all(runs, given.folder, given.workers)
        for run in runs if fields else []:
            print(_one_line(read_record(given.folder, run)))
        if failed := sum(record["status"] == "failed" for record in records):
            sys.exit(f"{failed} of {len(records)} runs failed; their records say why. Delete these to try again")
    elif given.do == "agree":
        if fields or given.seeds is not None or given.workers is not None:
            parser.error("agree takes no options but --folder and --group")
        plans = plan()
        for name in [given.group] if given.group else MAIN_GROUPS:
            found = agreement(plans[name] + plans.get(f"twin-{name}", []), given.folder)
            if len(found):
                found.to_csv(given.folder / f"agreement-{name}.csv", index=False)
                print(f"{len(found)} pairs in {given.folder / f'agreement-{name}.csv'}")
            else:
                print(f"{name}: no two models in {given.folder}, one of them plain fp32; `run` makes them")
    else:
        records = load_records(given.folder) if given.folder.is_dir() else ()
        if len(records) and (given.group or given.seeds is not None or fields):
            records = records[records.id.isin([run.id for run in runs])]
        if len(records) and not len(main_records(records)):
            sys.exit(
                "these runs are finished, but the table shows the plan's main runs only; `list` prints the accuracies "
                "of the others, and load_records everything"
            )
        if not len(records):
            sys.exit(
                f"{given.folder} holds no record of such a finished run; make one with `run`, or name another --folder"
            )
        for value in (v for v in ("accuracy", *SHOWN) if v in records and records[v].notna().any()):
            text = table(records, value).fillna("").to_string()
            print(f"{value}: mean ± standard deviation over seeds (how many)", text, "", sep="\n")
        print("the gradient map's seven measures, beside plain fp32 (over how many seeds)")
        print(against_fp32(records).to_string())


if __name__ == "__main__":
    main()
