"""Which GPUs a process may use, by names that tell them apart on their host. Torch-free."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A name for each GPU that CUDA will number 0, 1, … in a process started here.

    SLURM may give every task its own GPU and call it 0 in each, so the driver's unique ids are asked for.
    """
    try:
        command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30)
        present = [line.strip() for line in listed.stdout.splitlines() if line.strip()] if listed.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        # without the tool, at least their number
        present = sorted(name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit())
    return chosen(present, environment.get("CUDA_VISIBLE_DEVICES"))


def chosen(present: Sequence[str], visible: str | None) -> list[str]:
    """What CUDA_VISIBLE_DEVICES leaves of the GPUs that are there: indices, or beginnings of ids, up to the first that isn't there.

    >>> chosen(["GPU-a1", "GPU-b2"], "1"), chosen(["GPU-a1", "GPU-b2"], "GPU-b"), chosen(["GPU-a1"], "")
    (['GPU-b2'], ['GPU-b2'], [])
    """
    if visible is None:
        return list(present)
    found = []
    for word in filter(None, (part.strip() for part in visible.split(","))):
        if word.isdigit():
            match = list(present[int(word) : int(word) + 1])
        elif word.startswith("MIG-"):
            match = [word] if present else []
        else:
            match = [gpu for gpu in present if gpu.startswith(word)][:1]
        if not match:
            break
        found += match
    return found
