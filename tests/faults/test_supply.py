"""What is started listens to this machine alone, asks for its token, and comes from pinned packages."""

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest
from lessons import ROOT
from packaging.version import Version

PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())


def status(address):
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:  # it does not listen yet
        return None


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab as `make lab` starts it: its process and the address that it prints."""
    home = tmp_path_factory.mktemp("home")
    variables = os.environ | {"HOME": str(home), "JUPYTER_CONFIG_DIR": str(home), "JUPYTER_RUNTIME_DIR": str(home)}
    command = [sys.executable, "tools/lab.py", "--no-browser", "--port=0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=ROOT, env=variables, text=True, **pipes)
    try:
        said = ""
        for line in process.stdout:
            said += line
            if found := re.search(r"http://(\S+?):(\d+)/lab\S*token=(\w+)", line):
                break
        else:
            raise AssertionError(said[-3000:])
        host, port, token = found.groups()
        deadline = time.monotonic() + 120
        while status(f"http://{host}:{port}/api?token={token}") != 200:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        yield process, host, port, token
    finally:
        process.kill()
        process.wait()


def test_jupyterlab_listens_on_loopback_alone(lab):
    process, host, port, _ = lab
    addresses = {c.laddr.ip for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN"}
    assert addresses <= {"127.0.0.1", "::1"} and addresses
    assert host in ("127.0.0.1", "localhost") and int(port) > 0


def test_jupyterlab_answers_nobody_without_its_token(lab):
    _, _, port, token = lab
    server = f"http://127.0.0.1:{port}/api/contents"
    assert status(f"{server}?token={token}") == 200 and len(token) >= 32
    assert status(server) in (401, 403) and status(f"{server}?token=wrong") in (401, 403)


# The first version without the fault, from the projects' own security notes.
MENDED = {
    "torch": "2.6.0",  # CVE-2025-32434: torch.load executed code in spite of weights_only=True
    "onnx": "1.16.2",  # CVE-2024-5187: files outside the folder of a model
    "jupyterlab": "4.4.8",  # CVE-2025-59842: links without noopener
    "jupyter_core": "5.8.1",  # CVE-2025-30167: configuration from a folder that others may write to
    "nbconvert": "7.17.0",  # CVE-2025-53000: a program searched for in the working folder
    "tornado": "6.5",  # CVE-2025-47287: a log that grows without end
    "pillow": "11.3.0",  # CVE-2025-48379: writing beyond a buffer
    "urllib3": "2.6.0",  # CVE-2025-66418: decompression without a bound
    "requests": "2.32.4",  # CVE-2024-47081: credentials for another host
    "jinja2": "3.1.6",  # CVE-2025-27516: a way out of the sandbox
    "h11": "0.16.0",  # CVE-2025-43859: lenient chunked bodies
    "protobuf": "6.31.1",  # CVE-2025-4565: recursion without a bound
}


@pytest.mark.parametrize("name", MENDED)
def test_no_pinned_version_is_older_than_the_one_that_mended_a_known_fault(name):
    known = {pin.lower().replace("-", "_"): version for pin, version in PINS.items()}
    assert Version(known[name]) >= Version(MENDED[name])
