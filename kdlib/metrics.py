"""What is measured: paired comparisons with verdicts, and how much attention is on the object."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Interval(NamedTuple):
    """A mean over seeds and the half-width of its 95 % confidence interval (nan for one seed)."""

    mean: float
    half: float

    def __str__(self) -> str:
        """In per cent, ``"46.1 ± 0.8"``; the half-width only where there are several seeds."""
        spread = "" if np.isnan(self.half) else f" ± {100 * self.half:.1f}"
        return f"{100 * self.mean:.1f}{spread}"


def interval(values) -> Interval:
    """Mean and Student-t 95 % interval of independent runs' values, ``[seeds]``."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return Interval(float(values.mean()), float("nan"))
    from scipy import stats  # slow to import, and needed only here

    error = values.std(ddof=1) / np.sqrt(len(values))
    return Interval(float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * error))


def compare(values, baseline) -> tuple[Interval, str]:
    """Paired difference to a baseline, and a verdict.

    The seeds must be the same in both: they share initial weights and data order, so the
    difference varies less than either.

    Args:
        values, baseline: one accuracy per seed, ``[seeds]``.

    Returns:
        The interval of the difference, and ``"better"`` or ``"worse"`` where it excludes zero,
        ``"inconclusive"`` where it doesn't or there is one seed.

    Raises:
        ValueError: the two have different numbers of seeds.
    """
    values, baseline = np.asarray(values, float), np.asarray(baseline, float)
    if values.shape != baseline.shape:
        raise ValueError(f"{len(values)} seeds against {len(baseline)}: compare the same seeds")
    difference = interval(values - baseline)
    if np.isnan(difference.half) or abs(difference.mean) <= difference.half:
        return difference, "inconclusive"
    return difference, "better" if difference.mean > 0 else "worse"


def object_share(features: jax.Array, masks: jax.Array) -> jax.Array:
    """Share of a feature map's attention that lies on the object, per picture.

    The attention (mean of squares over channels) is spread evenly over the pixels each position
    covers. A map that looks everywhere alike scores the object's share of the area.

    Args:
        features: ``[n, h, w, c]``.
        masks: bool ``[n, H, W]``, with H and W multiples of h and w.

    Returns:
        ``[n]``, 0 to 1.
    """
    n, h, w, _ = features.shape
    height, width = masks.shape[1:]
    energy = (features.astype(jnp.float32) ** 2).mean(-1)  # (n, h, w)
    covered = masks.reshape(n, h, height // h, w, width // w).mean((2, 4))  # (n, h, w)
    return (energy * covered).sum((1, 2)) / jnp.maximum(energy.sum((1, 2)), 1e-12)
