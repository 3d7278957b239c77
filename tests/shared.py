"""What more than one file of tests needs."""

import re

import pytest
import torch

from qsal_helpers.data import ImageData, Split

on_each_device = pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_data(channels=1, side=16, number=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (number, channels, side, side), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(number) % 10)
    return ImageData(
        "random", split, split, tuple("abcdefghij"), (0.49, 0.42, 0.45)[:channels], (0.2, 0.3, 0.25)[:channels]
    )


def one_sentence(caught):
    """The message of a caught exception, after a check that it is one sentence on one line; paths may make it long."""
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and len(message) > 20
    return message


def short_sentence(caught):
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 300
    return message


def text_of(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def solutions(notebook):
    """The solutions that stand folded in a lesson: the function's name -> its code."""
    blocks = re.findall(r"```python\n(.*?)```", text_of(notebook), re.DOTALL)
    return {name: block for block in blocks for name in re.findall(r"^def (\w+)\(", block, re.MULTILINE)}
