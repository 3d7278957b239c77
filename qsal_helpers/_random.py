"""Random numbers for a while, without a trace in the caller's."""

import contextlib
from collections.abc import Iterator

import torch


def random_state_kept(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Put torch's random state back at the end: the CPU's, and that of `device`."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Fix torch's random numbers for a while; the caller's go on afterwards as if nothing had been drawn.

    Examples
    --------
    >>> with seeded(0, torch.device("cpu")):
    ...     first = torch.rand(3)
    >>> with seeded(0, torch.device("cpu")):
    ...     bool((torch.rand(3) == first).all())
    True
    """
    with random_state_kept(device):
        # Not torch.manual_seed, which seeds every GPU, whose states nothing would put back.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
