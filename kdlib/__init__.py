"""Knowledge distillation in JAX and Flax: networks, jitted training, distillers, transfer.

The floors, from the top: ``compare`` and ``cli`` · ``presets`` · ``check`` · ``plots`` · ``report``
· ``analysis`` · ``train``, ``program``, ``score`` and ``parallel`` · ``fingerprint``,
``checkpoint`` · ``transfer`` (who teaches) · ``distillers`` (what is taught) · ``metrics`` ·
``models`` · ``data``.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before JAX starts: its C++ side is talkative

import ctypes
import sys

import jax

from kdlib import analysis, check, checkpoint, data, distillers, metrics, models, transfer
from kdlib.checkpoint import pretrained
from kdlib.data import load
from kdlib.data.sources import cache_dir
from kdlib.distillers import AttentionTransfer, SoftLogits
from kdlib.history import History, device, versions
from kdlib.presets import PRESETS, Preset, preset
from kdlib.program import Recipe
from kdlib.train import Run, evaluate, fit, predict
from kdlib.transfer import Offline, Supervised

# Compiled programs are kept between runs: a second start takes a second instead of a dozen.
if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
# Those with calls of oneDNN can't be (models/convolution.py).


def _keep_memory() -> None:
    """Have glibc keep what is freed, unless the environment gives it other orders.

    A step on a CPU works in one block of up to a gigabyte. Given back after each step, it has to be
    had again page by page. Only the main thread's heap has room for such a block, so that thread is
    to ask for it, and runs programs itself. XLA's other threads have heaps of their own: with a
    common one they wait for each other at each of a step's many small requests.
    """
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        tell = getattr(ctypes.CDLL(None), "mallopt", lambda *order: None)  # other C libraries: none
        for option, value in ((-4, 0), (-1, -1)):  # no mmap, never trim
            tell(option, value)
        jax.config.update("jax_cpu_enable_async_dispatch", False)


_keep_memory()


def setup(name: str | None = None) -> Preset:
    """Start a notebook: print what it runs on, set the style of figures, return the preset.

    Args:
        name: a preset's; None takes that of ``KDLIB_PRESET``, or ``workshop``.

    Raises:
        ValueError: no such preset.
    """
    from kdlib import plots

    plots.use_style()
    chosen = preset(name)
    found = " · ".join(f"{module} {version}" for module, version in versions().items())
    print(f"{found}\n{device()} · preset {chosen.name}")
    return chosen
