"""The mini sets, laid out as torchvision lays out the full ones, stand in for these: 47 MB less, and no download."""

import gzip
import hashlib
from pathlib import Path

from qsal_helpers import data


def lay_out_as_torchvision(name, root):
    """Write the mini set where torchvision looks for the full one; return the sha256 of each file."""
    checksums = {}
    for file in data._MINI_FILES[name]:
        content = gzip.decompress((data._MINI_FOLDER / name / file).read_bytes())
        path = Path(data._TORCHVISION_NAME[name], "raw", file.removesuffix(".gz"))
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        checksums[path.as_posix()] = hashlib.sha256(content).hexdigest()
    return checksums
