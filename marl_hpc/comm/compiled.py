"""Mixing rows by a C kernel that is compiled where it runs: faster than PyTorch's sparse product, where there is a C compiler.

PyTorch's is the default, since it needs no compiler, and the oracle. Both sum in the order of agents; the kernel rounds once for each
neighbor on every processor, PyTorch's as its library for this processor does. Imports nothing of ours but errors.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from marl_hpc.config import ConfigError

NUMBERS = {torch.float32: "float", torch.float64: "double"}
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC")
CACHE_BYTES = 32 << 20  # a result that is larger isn't found in a cache again, and is written past them


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The kernel for numbers of this type. Raises ConfigError where it can't be compiled."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory(
        prefix="marl_hpc-"
    ) as folder:  # not kept: another node of a cluster may have another processor
        built = Path(folder) / "mix.so"
        command = [*compiler, *FLAGS, f"-DNUMBER={NUMBERS[dtype]}", "-o", str(built), str(Path(__file__).with_name("mix.c")), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            if not done.returncode:
                return ctypes.CDLL(str(built))
            said = done.stderr.strip()
        except (OSError, subprocess.TimeoutExpired) as error:  # no compiler, or nothing that was built there may be loaded
            said = str(error)
    raise ConfigError(
        f"kernel 'compiled' needs a C compiler on every rank's host, and {shlex.join(compiler)!r} failed ({said[:500]}): install gcc "
        "(Debian: apt-get install gcc libc6-dev), name another compiler in CC, or take kernel 'torch'"
    )


def mixer(weights: Tensor, source: Tensor, target: Tensor) -> Callable[[], None]:
    """A call that writes weights @ source into target, wherever they lie now: sparse CSR [n, m] of int32 indices, [m, P] and [n, P], both
    contiguous, of one dtype, on the CPU."""
    function = library(source.dtype).mix
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    starts, columns, values = weights.crow_indices(), weights.col_indices(), weights.values()
    if not (source.is_contiguous() and target.is_contiguous() and starts.dtype == columns.dtype == torch.int32):
        raise AssertionError("rows must be contiguous and indices int32")
    streaming = target.numel() * target.element_size() > CACHE_BYTES
    arguments = (
        pointer(starts.data_ptr()), pointer(columns.data_ptr()), pointer(values.data_ptr()), integer(len(target)),
        pointer(source.data_ptr()), pointer(target.data_ptr()), integer(target.shape[1]),
        ctypes.c_int(streaming),
    )  # fmt: skip
    function.restype = None
    return functools.partial(_call, function, arguments, (starts, columns, values, source, target))


def _call(function: Callable[..., None], arguments: tuple[object, ...], kept: tuple[Tensor, ...]) -> None:
    """`kept`: whose memory the arguments point to."""
    function(*arguments)
