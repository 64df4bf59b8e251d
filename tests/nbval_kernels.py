"""Kernels of notebooks under test listen at sockets in a folder, one folder for each worker.

A port is free when it is chosen and may be taken when the kernel is up, seconds later: with two
workers beside each other, now and then a kernel "died before replying".
"""

import functools
import tempfile

import nbval.kernel

FOLDER = tempfile.TemporaryDirectory()  # removed when the process ends
nbval.kernel.KernelManager = functools.partial(
    nbval.kernel.KernelManager, transport="ipc", ip=f"{FOLDER.name}/kernel"
)
