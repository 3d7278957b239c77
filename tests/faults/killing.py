"""Kill a process that writes a file, again and again at other moments, and look what is left of the file.

python tests/faults/killing.py checkpoint FOLDER 100     (or: onnx, record, training)

Every third child is killed by the kernel at a random byte of the file, every third at a random open, rename or removal
of a file, and every third at a random time. Prints how often the old content was left, the new one, and neither.
"""

import collections
import json
import os
import random
import resource
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from qsal_helpers import build_model, fit, quantize
from qsal_helpers.checkpoints import load_model, read_notes, save_model
from qsal_helpers.data import ImageData, Split

DIED_AT_EVENT = 9


def few_images():
    images = torch.arange(40 * 256).remainder(251).to(torch.uint8).view(40, 1, 16, 16)
    split = Split(images, torch.arange(40) % 2)
    return ImageData("few", split, split, ("a", "b"), (0.5,), (0.5,))


class Checkpoint:
    """The notes say which content it is, and the whole file has to load."""

    def __init__(self, folder):
        self.path = folder / "model.safetensors"
        self.models = {"old": build_model("lenet5", image_size=16), "new": build_model("lenet5", image_size=16)}

    def write(self, which):
        save_model(self.models[which], self.path, which=which)

    def read(self):
        which = read_notes(self.path)["which"]
        state = self.models[which].state_dict()
        whole = all(torch.equal(value, state[name]) for name, value in load_model(self.path).state_dict().items())
        return which if whole else "neither"


class Onnx:
    """The file has to be equal to one of two that were written in peace."""

    def __init__(self, folder):
        self.path, self.data = folder / "model.onnx", few_images()
        nets = (nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 2)) for _ in range(2))
        self.models = {which: quantize(net, "w4a4") for which, net in zip(("old", "new"), nets, strict=True)}
        self.contents = {}
        for which in self.models:
            self.write(which)
            self.contents[self.path.read_bytes()] = which

    def write(self, which):
        from qsal_helpers.export import save_onnx

        save_onnx(self.models[which], self.path, self.data)

    def read(self):
        return self.contents.get(self.path.read_bytes(), "neither")


class Record:
    """A record of the study, which `read_record` has to accept."""

    def __init__(self, folder):
        from qsal_helpers import study

        self.study, self.folder, self.run = study, folder, study.Run(size=100)
        self.path = folder / f"{self.run.id}.json"

    def write(self, which):
        self.study._write_record(self.folder, self.run, self.study._failed(self.run, which, "x" * 20_000))

    def read(self):
        return self.study.read_record(self.folder, self.run)["reason"]


class Training:
    """A training with `resume`: whenever it is killed, the next call ends with the numbers of an undisturbed one."""

    def __init__(self, folder):
        self.path, self.data = folder / "training.pt", few_images()
        self.undisturbed = self.train(folder / "other.pt")
        (folder / "other.pt").unlink()

    def train(self, path, **options):
        torch.manual_seed(0)
        net = quantize(nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 2)), "w4a4")
        history = fit(net, self.data, epochs=4, batch_size=8, progress=False, resume=path, **options)
        return history.loss, history.alphas, [value.tolist() for value in net.state_dict().values()]

    def write(self, which):
        if which == "old":
            self.path.unlink(missing_ok=True)
        else:
            self.train(self.path)

    def read(self):
        before = "new" if self.path.exists() else "old"
        return before if self.train(self.path) == self.undisturbed else "neither"


KINDS = {"checkpoint": Checkpoint, "onnx": Onnx, "record": Record, "training": Training}


def die_at_byte(number):
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))


def die_at_event(number):
    seen = []

    def look(event, _):
        if event in ("open", "os.rename", "os.remove"):
            seen.append(event)
            if len(seen) == number:
                os._exit(DIED_AT_EVENT)

    sys.addaudithook(look)


def kill_one(kind, way, point, seconds, size):
    """Let a child write the new content and kill it on the way; return whether it died."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        if way == 0:
            die_at_byte(int(point * 1.05 * size))
        if way == 1:
            die_at_event(1 + int(point * 8))
        kind.write("new")
        os._exit(0)
    if way == 2:
        time.sleep(point * seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] != 0


def main(name, folder, kills):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    # tqdm shares its lock, and a thread, with forked children: a child killed with the lock in hand stops its parent.
    # On the class that all bars derive from: torch's own do not use the one of tqdm.auto.
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())
    kind = KINDS[name](Path(folder))
    kind.write("new")
    started = time.perf_counter()
    kind.write("new")
    seconds, size = 1.1 * (time.perf_counter() - started), kind.path.stat().st_size
    outcomes, chance = collections.Counter(), random.Random(0)
    for number in range(kills):
        kind.write("old")
        outcomes["killed"] += kill_one(kind, number % 3, chance.random(), seconds, size)
        try:
            outcomes[kind.read()] += 1
        except (ValueError, OSError) as error:
            outcomes["neither"] += 1
            print(error, file=sys.stderr)
    print(json.dumps({"old": 0, "new": 0, "neither": 0, **outcomes}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
