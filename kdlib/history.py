"""What a run leaves behind: its settings, its protocol, and every metric of every epoch."""

import hashlib
import json
import os
import pathlib
import platform
from dataclasses import asdict, dataclass, field

import flax
import jax
import numpy as np
import optax

from kdlib.files import read_json, write_text


@dataclass
class History:
    """The record of one run, for all of its seeds. Tables and figures are drawn from these."""

    config: dict  # what was chosen, JSON only: on one machine, equal configs give equal numbers
    protocol: dict  # how it was measured: device, versions, sizes and costs, what is reported
    seeds: list[int]
    # Metric → one list per seed → one value per epoch: shares (0..1), nats, seconds wall-clock.
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    # Metrics of the trained networks on the test set, one value per seed: ece, agreement, ….
    final: dict[str, list[float]] = field(default_factory=dict)

    def append(self, seed: int, values: dict[str, float]) -> None:
        """Add one epoch's values to a seed's curves."""
        for name, value in values.items():
            curves = self.curves.setdefault(name, [[] for _ in self.seeds])
            curves[self.seeds.index(seed)].append(float(value))

    def ran(self, **facts: str) -> None:
        """Add what a part of the run was computed on to the protocol: ``"one, then another"``."""
        for name, fact in facts.items():
            each = f"{self.protocol.get(name) or fact}, then {fact}".split(", then ")
            self.protocol[name] = ", then ".join(dict.fromkeys(each))

    def last(self, metric: str = "test_accuracy") -> np.ndarray:
        """The value after the last epoch, ``[seeds]``: what the cookbook reports."""
        return np.array([curve[-1] for curve in self.curves[metric]])

    def best(self, metric: str = "test_accuracy") -> np.ndarray:
        """The best epoch's value, ``[seeds]``: chosen on the test set, so it flatters.

        Of several generations it is the last one's: the others are not the network reported.
        """
        at = self.points(metric) > self.epochs - self.epochs // self.protocol.get("generations", 1)
        return self.curve(metric)[:, at].max(1)

    def curve(self, metric: str) -> np.ndarray:
        """``[seeds, points]``; a point per epoch, or per tested epoch (:meth:`points`)."""
        return np.array(self.curves[metric])

    def points(self, metric: str, seed: int | None = None) -> np.ndarray:
        """The epochs, from 1, that a curve's points belong to; of the first seed if None."""
        place = 0 if seed is None else self.seeds.index(seed)
        count, done = len(self.curves[metric][place]), len(self.curves["seconds"][place])
        every = self.config["recipe"].get("test_every", 1)
        tested, last = np.arange(1, done + 1), self.protocol.get("epochs", done)
        return tested if count == done else tested[(tested % every == 0) | (tested == last)]

    # Epochs that every seed has finished.
    epochs = property(lambda self: min(map(len, self.curves["seconds"])) if self.curves else 0)

    def seconds(self) -> float:
        """Training time of a seed: the median epoch times the epochs, so that one slow epoch on a
        shared machine changes nothing."""
        return float(np.median(self.curve("seconds")) * self.epochs)

    def save(self, path) -> None:
        """Write as JSON; a reader never sees half a file."""
        write_text(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path) -> "History":
        """Raises ValueError for a file that holds no record."""
        return read_json(path, "delete it, run it anew", lambda content: cls(**content))


def device(count: int = 1) -> str:
    """What this process computes on, for records: ``"cpu, 2 cores"``, ``"4 x NVIDIA H200"``."""
    first = next(iter(jax.numpy.zeros(()).devices()))
    if first.platform == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"cpu, {cores} core{'s' * (cores > 1)}" + f" as {count} devices" * (count > 1)
    return f"{count} x " * (count > 1) + first.device_kind


def code() -> str:
    """What computes, for records: ``"kdlib 1a2b3c4d, jax 0.10.2"``, a digest of the sources."""
    files = sorted(pathlib.Path(__file__).parent.rglob("*.py"))
    digest = hashlib.sha256(b"".join(map(pathlib.Path.read_bytes, files))).hexdigest()
    return f"kdlib {digest[:8]}, jax {jax.__version__}"


def versions() -> dict[str, str]:
    """Versions that decide a result: Python, JAX, Flax, Optax, NumPy."""
    modules = {"jax": jax, "flax": flax, "optax": optax, "numpy": np}
    return {"python": platform.python_version()} | {k: m.__version__ for k, m in modules.items()}
