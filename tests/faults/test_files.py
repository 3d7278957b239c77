"""Files are there whole or not at all, whatever happens to the disk, the network, or the process that writes them."""

import errno
import json
import os
import pathlib
import pickle
import random
import resource
import subprocess
import sys
import textwrap

import onnx
import pytest
import torch
from killing import KINDS, Checkpoint, Training, few_images
from shared import one_sentence
from stand_in import lay_out_as_torchvision
from torch import nn

from qsal_helpers import data as data_module
from qsal_helpers import fit, load_data
from qsal_helpers.data import DataDamaged, DataNotFound
from qsal_helpers.export import onnx_session, save_onnx

HERE = pathlib.Path(__file__).parent
CONFINED = [sys.executable, str(HERE / "confined.py"), sys.executable]


def in_a_process(*command, **options):
    options = {"capture_output": True, "text": True, "cwd": HERE.parent.parent, **options}
    outcome = subprocess.run(list(map(str, command)), **options)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return outcome.stdout


# ---------------------------------------------------------------- killed


def assert_old_or_new(kind, folder, times):
    outcomes = json.loads(in_a_process(sys.executable, HERE / "killing.py", kind, folder, times))
    print(kind, outcomes)
    assert outcomes["old"] + outcomes["new"] == times and outcomes["neither"] == 0
    assert outcomes["killed"] > times / 3 and outcomes["old"] > 0


@pytest.mark.parametrize(("kind", "times"), [("checkpoint", 90), ("onnx", 60), ("record", 90), ("training", 12)])
def test_a_writer_killed_at_any_moment_leaves_the_old_content_or_the_new_one(kind, times, tmp_path):
    assert_old_or_new(kind, tmp_path, times)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_a_writer_killed_at_a_thousand_moments_leaves_the_old_content_or_the_new_one(kind, tmp_path):
    assert_old_or_new(kind, tmp_path, 100 if kind == "training" else 1000)


# ---------------------------------------------------------------- no room


class NoRoom:
    """Files may not grow beyond some bytes: to a writer the same as a disk that is full at that byte."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.mark.parametrize("kind", ["checkpoint", "onnx", "record"])
def test_a_disk_that_is_full_at_any_byte_keeps_the_old_file_and_leaves_no_other(kind, tmp_path):
    kind = KINDS[kind](tmp_path)
    kind.write("old")
    size, chance = kind.path.stat().st_size, random.Random(0)
    for room in [0, 1, size // 2, *(chance.randrange(size - 1) for _ in range(20))]:
        with pytest.raises(OSError) as caught, NoRoom(room):
            kind.write("new")
        assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
        assert kind.read() == "old" and list(tmp_path.iterdir()) == [kind.path]
    kind.write("new")
    assert kind.read() == "new" and list(tmp_path.iterdir()) == [kind.path]


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_a_training_on_a_full_disk_keeps_its_old_file_and_goes_on_to_the_same_numbers(share, tmp_path):
    kind = Training(tmp_path)
    kind.train(kind.path)
    no_room = NoRoom(int(share * kind.path.stat().st_size))
    kind.path.unlink()

    def fill_the_disk(progress):
        if progress.epoch == 3:
            no_room.__enter__()

    try:
        with pytest.raises(OSError):
            kind.train(kind.path, callback=fill_the_disk, callback_every=5)
    finally:
        no_room.__exit__()
    assert list(tmp_path.iterdir()) == [kind.path]
    assert len(torch.load(kind.path, weights_only=True)["history"]["loss"]) == 2
    assert kind.train(kind.path) == kind.undisturbed


@pytest.fixture
def mini_for_full(tmp_path_factory, monkeypatch):
    """Let the mini set stand in for MNIST, also where it is downloaded from."""
    import torchvision

    checksums = lay_out_as_torchvision("mnist", tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.setitem(data_module._FULL_FILES, "mnist", checksums)
    download = lambda self: lay_out_as_torchvision("mnist", pathlib.Path(self.root))
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)


@pytest.mark.parametrize("room", [0, 5000, 500_000, 3_000_000])
def test_a_download_onto_a_full_disk_says_so_and_leaves_nothing(room, mini_for_full, tmp_path):
    with pytest.raises(DataNotFound, match="free space") as caught, NoRoom(room):
        load_data("mnist", "full", root=tmp_path, download=True)
    assert str(tmp_path) in one_sentence(caught) and list(tmp_path.iterdir()) == []
    assert len(load_data("mnist", "full", root=tmp_path, download=True).train) == 4000


DOWNLOAD = """
import sys
from qsal_helpers import load_data
try:
    load_data(sys.argv[1], "full", root=sys.argv[2], download=True)
except FileNotFoundError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_a_download_without_any_network_is_told_in_one_sentence_and_leaves_nothing(name, tmp_path):
    said = in_a_process(*CONFINED, "-c", DOWNLOAD, name, tmp_path)
    assert said.splitlines()[-1].startswith(f"{name} could not be downloaded to {tmp_path} (")
    assert "internet connection" in said and list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_to_is_told_in_one_sentence(tmp_path):
    tmp_path.chmod(0o555)
    for folder in (tmp_path, tmp_path / "new"):
        said = in_a_process(*CONFINED, "-c", DOWNLOAD, "mnist", folder)
        assert len(said.splitlines()) == 1
        assert said.startswith(f"mnist could not be downloaded to {folder} ([Errno 13] Permission denied")
        assert "may be written to" in said
    tmp_path.chmod(0o755)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_for_a_folder_without_write_permission_is_an_error_that_names_it(tmp_path):
    program = (
        "import sys; from qsal_helpers import build_model; from qsal_helpers.checkpoints import save_model\n"
        "try: save_model(build_model('lenet5'), sys.argv[1] + '/a.safetensors')\n"
        "except PermissionError as error: print(error)"
    )
    tmp_path.chmod(0o555)
    said = in_a_process(*CONFINED, "-c", program, tmp_path)
    tmp_path.chmod(0o755)
    assert "Permission denied" in said and str(tmp_path) in said and list(tmp_path.iterdir()) == []


def test_eight_processes_that_fill_one_cache_at_once_all_get_the_data_and_leave_nothing_else(mini_for_full, tmp_path):
    program = textwrap.dedent(f"""
        import os, pathlib, sys, time
        sys.path.insert(0, {str(HERE)!r})
        import torchvision
        from qsal_helpers import data, load_data
        from stand_in import lay_out_as_torchvision
        root, elsewhere = map(pathlib.Path, sys.argv[1:])
        data._FULL_FILES["mnist"] = lay_out_as_torchvision("mnist", elsewhere)
        torchvision.datasets.MNIST.download = lambda self: lay_out_as_torchvision("mnist", pathlib.Path(self.root))
        for attempt in range(5):
            children = []
            for number in range(8):
                children.append(os.fork())
                if children[-1] == 0:
                    time.sleep(number * attempt * 0.002)
                    os._exit(len(load_data("mnist", "full", root=root / str(attempt), download=True).train) != 4000)
            assert not any(os.waitpid(child, 0)[1] for child in children)
            cache = root / str(attempt)
            print(sorted(str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file()))
    """)
    said = in_a_process(sys.executable, "-c", program, tmp_path / "root", tmp_path / "elsewhere")
    assert said.splitlines() == [str(sorted(data_module._FULL_FILES["mnist"]))] * 5


@pytest.mark.parametrize("file", data_module._MINI_FILES["mnist"])
def test_a_data_file_with_any_bit_flipped_or_cut_at_any_byte_is_refused(file, tmp_path, monkeypatch):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for other in data_module._MINI_FILES["mnist"]:
        (folder / other).symlink_to(data_module._MINI_FOLDER / "mnist" / other)
    good, path, chance = (data_module._MINI_FOLDER / "mnist" / file).read_bytes(), folder / file, random.Random(file)
    monkeypatch.setattr(data_module, "_MINI_FOLDER", tmp_path)
    path.unlink()
    for number in range(40):
        content = bytearray(good)
        if number % 2:
            content[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        else:
            del content[chance.randrange(len(good)) :]
        path.write_bytes(content)
        with pytest.raises(DataDamaged, match="truncated or altered") as caught:
            load_data("mnist", size=10)
        assert str(path) in one_sentence(caught)


# ---------------------------------------------------------------- hostile


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "executed"),)


def tiny():
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 2))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_in_place_of_any_file_that_we_read_is_refused_and_never_run(tmp_path):
    from qsal_helpers.checkpoints import load_model, read_notes
    from qsal_helpers.study import read_record

    plain, zipped = tmp_path / "plain", tmp_path / "zipped"
    plain.write_bytes(pickle.dumps(Evil(tmp_path)))
    torch.save({"steps": 10, "model": Evil(tmp_path)}, zipped)
    for path in (plain, zipped):
        (tmp_path / "run.json").write_bytes(path.read_bytes())
        for read in (
            lambda path=path: load_model(path),
            lambda path=path: read_notes(path),
            lambda path=path: onnx_session(path),
            lambda path=path: fit(tiny(), few_images(), epochs=1, progress=False, resume=path),
            lambda: read_record(tmp_path, "run"),
        ):
            with pytest.raises(ValueError) as caught:
                read()
            assert "\n" not in str(caught.value) and len(str(caught.value)) > 20
    assert not (tmp_path / "executed").exists()


def test_an_onnx_file_whose_weights_lie_outside_is_refused_and_the_outside_file_is_not_read(tmp_path):
    secret = tmp_path / "secret"
    os.mkfifo(secret)  # whoever opened it for reading would wait for ever
    path = save_onnx(tiny(), tmp_path / "a.onnx", few_images(), "float32")
    for location in ("secret", "../secret", str(secret), "/etc/hostname"):
        model = onnx.load_model(path)
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=location)
        hostile = tmp_path / "hostile.onnx"
        hostile.write_bytes(model.SerializeToString())
        with pytest.raises(ValueError, match="in other files, which is refused"):
            onnx_session(hostile)


def test_a_damaged_onnx_file_is_refused_or_runs_and_never_crashes(tmp_path):
    good = save_onnx(tiny(), tmp_path / "a.onnx", few_images(), "float32").read_bytes()
    damaged, program = (
        tmp_path / "damaged",
        (
            "import pathlib, sys, numpy as np\n"
            "from qsal_helpers.export import onnx_session\n"
            "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
            "    try:\n"
            "        onnx_session(path).run(None, {'image': np.zeros((1, 1, 16, 16), np.uint8)})\n"
            "        print('runs')\n"
            "    except ValueError as error:\n"
            "        print('refused' if len(str(error).splitlines()) == 1 else f'no sentence: {error}')\n"
        ),
    )
    damaged.mkdir()
    chance = random.Random(0)
    graph = [n for n in range(len(good)) if n < 200 or n > len(good) - 600]
    for number in range(100):
        content = bytearray(good)
        content[chance.choice(graph)] ^= 1 << chance.randrange(8)
        (damaged / f"{number}.onnx").write_bytes(content if number % 4 else content[: chance.randrange(len(good))])
    said = in_a_process(sys.executable, "-c", program, damaged).splitlines()
    assert len(said) == 100 and set(said) <= {"runs", "refused"} and said.count("refused") >= 25


def test_a_checkpoint_of_a_killed_writer_does_not_disturb_the_next_one(tmp_path):
    kind = Checkpoint(tmp_path)
    (tmp_path / f".{kind.path.name}.of-a-dead-process").write_bytes(b"half")
    kind.write("new")
    assert kind.read() == "new"
