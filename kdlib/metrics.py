"""What is measured: paired verdicts, calibration, fidelity to a teacher, attention on objects."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdlib.names import require


class Interval(NamedTuple):
    """A mean over seeds and the half-width of its 95 % confidence interval (nan for one seed)."""

    mean: float
    half: float

    def __str__(self) -> str:
        """In per cent, ``"46.1 ± 0.8"``; the half-width only where there are several seeds."""
        return f"{100 * self.mean:.1f}" + f" ± {100 * self.half:.1f}" * (not np.isnan(self.half))


def interval(values) -> Interval:
    """Mean and Student-t 95 % interval of independent runs' values, ``[seeds]``."""
    values, half = np.asarray(values, float), float("nan")
    if len(values) > 1:
        from scipy import stats  # slow to import, and needed only here

        half = stats.t.ppf(0.975, len(values) - 1) * (values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(float(values.mean()), float(half))


def compare(values, baseline) -> tuple[Interval, str]:
    """Paired difference to a baseline, and a verdict.

    The seeds must be the same in both: they share initial weights and data order. Where that
    makes their accuracies rise and fall together, the difference varies less than either.

    Args:
        values, baseline: one accuracy per seed, ``[seeds]``.

    Returns:
        The interval of the difference, and ``"better"`` or ``"worse"`` where it excludes zero,
        ``"inconclusive"`` where it doesn't, has no width, or there is one seed.

    Raises:
        ValueError: the two have different numbers of seeds.
    """
    values, baseline = np.asarray(values, float), np.asarray(baseline, float)
    require(len(values) == len(baseline), f"{len(values)} and {len(baseline)}: take the same seeds")
    difference = interval(values - baseline)
    if not abs(difference.mean) > difference.half > 1e-6:  # nan is neither; less is rounding
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
    (n, h, w, _), (_, height, width) = features.shape, masks.shape
    energy = (features.astype(jnp.float32) ** 2).mean(-1)  # (n, h, w)
    covered = masks.reshape(n, h, height // h, w, width // w).mean((2, 4))  # (n, h, w)
    return (energy * covered).sum((1, 2)) / jnp.maximum(energy.sum((1, 2)), 1e-12)


class Calibration(NamedTuple):
    """How far probabilities can be believed.

    ``nll`` (nats) and ``brier`` (0..2) are means over pictures; ``ece`` is the mean distance of
    confidence and accuracy over bins of confidence, weighted by ``share``, each bin's share of the
    pictures. ``confidence``, ``accuracy`` and ``share`` are ``[bins]``, zero where a bin is empty.
    """

    nll: float
    brier: float
    ece: float
    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray


def calibration(logits, labels, bins: int = 15) -> Calibration:
    """Calibration of ``logits [n, k]`` against labels int ``[n]``, in equal bins of confidence.

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599.
    """
    log_p = np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)), float)
    p, labels = np.exp(log_p), np.asarray(labels)
    top, right = p.max(-1), p.argmax(-1) == labels
    place = np.clip(np.ceil(top * bins).astype(int) - 1, 0, bins - 1)
    share = np.bincount(place, minlength=bins) / len(labels)
    mean = lambda x: np.bincount(place, x, bins) / len(labels) / np.maximum(share, 1e-12)
    confidence, accuracy = mean(top), mean(right)
    nll = -log_p[np.arange(len(labels)), labels].mean()
    brier = ((p - np.eye(p.shape[-1])[labels]) ** 2).sum(-1).mean()
    ece = (share * np.abs(confidence - accuracy)).sum()
    return Calibration(float(nll), float(brier), float(ece), confidence, accuracy, share)


def cka(x, y) -> float:
    """Linear centred kernel alignment of two embeddings ``[n, d]``, ``[n, e]``: 0 to 1.

    Reference:
        Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019,
        arXiv:1905.00414.
    """
    x, y = (np.asarray(z, float) - np.mean(z, axis=0, dtype=float) for z in (x, y))
    norm = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / norm) if norm else 0.0


def quality(student, teacher, labels) -> dict[str, float]:
    """Calibration of a student, and its fidelity to a teacher, from what both show for a split.

    Args:
        student, teacher: :class:`Outputs` with ``logits [n, k]`` and ``embedding [n, d]``.
        labels: int ``[n]``.

    Returns:
        ``nll``, ``brier``, ``ece``; ``agreement``, the share of pictures where both name the same
        class; ``kl``, KL(teacher ‖ student) in nats; ``cka`` of the embeddings.
    """
    found = calibration(student.logits, labels)
    s, t = (np.asarray(jax.nn.log_softmax(z.logits), float) for z in (student, teacher))
    agreement, kl = (s.argmax(-1) == t.argmax(-1)).mean(), (np.exp(t) * (t - s)).sum(-1).mean()
    return {"nll": found.nll, "brier": found.brier, "ece": found.ece, "agreement": float(agreement),
            "kl": float(kl), "cka": cka(student.embedding, teacher.embedding)}  # fmt: skip
