"""The README's examples do what it says."""

import re
from pathlib import Path

import pytest
import torch
from shared import random_data

import qsal_helpers
from qsal_helpers import study
from qsal_helpers.onnx_files import onnx_session

README = Path(__file__).parent.parent / "README.md"


def table_of_the_study():
    """The rows of the README's table, its header first; a row is its name and its cells."""
    [table] = re.findall(r"^\| \| FashionMNIST-mini .*?(?=\n\n)", README.read_text(encoding="utf8"), re.M | re.DOTALL)
    header, _, *lines = ([cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines())
    return header, lines


def test_the_readme_s_table_of_the_study_says_what_the_records_say():
    found = study.against_fp32(study.load_records(README.parent / "notebooks/results/study"))
    header, rows = table_of_the_study()
    letters = lambda names: [re.sub("[^a-z0-9]", "", name.lower()) for name in names]
    assert letters(header) == ["", *letters(found.columns)]
    assert len({name for name, *_ in rows}) == len(rows) == 9
    assert rows == [[name, *found.loc[name]] for name, *_ in rows]


def test_the_command_that_the_readme_names_prints_that_table(monkeypatch, capsys):
    assert "`python -m qsal_helpers.study table` prints them" in README.read_text(encoding="utf8")
    monkeypatch.chdir(README.parent)
    study.main(["table"])
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    rows = [" ".join(row).strip() for row in table_of_the_study()[1]]
    assert [row for row in rows if row not in printed] == []


def test_the_readme_s_examples_quantize_and_train_torchvision_s_resnet18(tmp_path, monkeypatch):
    data = random_data(3, 32, 40)
    monkeypatch.setattr(qsal_helpers, "load_data", lambda *a, **k: data)

    three_lines, with_a_twin, own = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf8"), re.DOTALL)
    names = {}
    with pytest.warns(UserWarning, match=r"^layer4\.1\.conv2 \(4 bits\) of ResNet read more bits"):
        exec(three_lines.replace("epochs=5", "epochs=1"), names)

    layers = [m for m in names["model"].modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert [layer.weight_bits for layer in layers] == [8] + [4] * (len(layers) - 2) + [8]
    assert not any(isinstance(m, torch.nn.ReLU) for m in names["model"].modules())
    assert names["history"].epochs == 1
    assert names["objective"].mask_ratio == 0.5

    with pytest.warns(UserWarning, match=r"^layer4\.1\.conv2 \(2 bits\) of ResNet read more bits"):
        exec(with_a_twin.replace("epochs=5", "epochs=1"), names)
    bits = [m.weight_bits for m in names["small"].modules() if hasattr(m, "weight_bits")]
    assert bits == [8] + [2] * (len(layers) - 2) + [8]
    start, end = names["twin"].state_dict()["conv1.weight"], names["small"].state_dict()["conv1.weight"]
    assert 0 < (start - end).norm() < start.norm()  # networks of other starts lie 1.4 times that apart

    monkeypatch.chdir(tmp_path)
    named = {"images": data.train.images, "labels": data.train.labels}
    names |= {f"{part}_{what}": value for part in ("train", "test") for what, value in named.items()}
    names |= {name: getattr(data, name) for name in ("class_names", "mean", "std")}
    exec(own.replace("epochs=5", "epochs=1"), names)
    logits = onnx_session("small.onnx").run(None, {"image": data.train.images.numpy()})[0]
    assert names["mine"].name == "mine" and logits.shape == (40, 10)
