"""Run a command without network, and without root's right to write where it may not.

python tests/faults/confined.py COMMAND ...

The network is taken away by a namespace of its own, with nothing but a loopback device. Where the system refuses that,
or has no such thing, a sentence on stderr says so, and Python programs are kept from connecting to anything but this
machine. Root ignores the modes of files; on Linux the command runs without that privilege, as it would for everybody
else.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys
import tempfile
from pathlib import Path

NEW_NETWORK, NEW_USER = 0x40000000, 0x10000000  # linux/sched.h
SIOCSIFFLAGS, UP_AND_RUNNING = 0x8914, 0x41  # linux/sockios.h, linux/if.h
DROP_FROM_BOUNDING_SET, DAC_OVERRIDE, DAC_READ_SEARCH = 24, 1, 2  # linux/prctl.h, linux/capability.h

REFUSE = """
import socket
def connect(self, address, connect=socket.socket.connect):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(101, "Network is unreachable")
    return connect(self, address)
socket.socket.connect = connect
"""


def leave_the_network() -> None:
    """Move this process into a network of its own, or at least keep its Python programs from others."""
    reason = f"{sys.platform} has none"
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(NEW_NETWORK | (0 if os.geteuid() == 0 else NEW_USER)) == 0:
            with socket.socket() as any_socket:
                request = struct.pack("16sH14x", b"lo", UP_AND_RUNNING)
                fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)
            return
        reason = os.strerror(ctypes.get_errno())
    print(f"no network namespace here ({reason}); Python's connections are refused instead", file=sys.stderr)
    folder = Path(tempfile.mkdtemp())
    (folder / "sitecustomize.py").write_text(REFUSE)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def heed_modes() -> None:
    """Give up root's right to read and write everything; whoever is not root never had it."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    for capability in (DAC_OVERRIDE, DAC_READ_SEARCH):
        libc.prctl(DROP_FROM_BOUNDING_SET, capability, 0, 0, 0)


if __name__ == "__main__":
    leave_the_network()
    heed_modes()
    os.execvp(sys.argv[1], sys.argv[1:])
