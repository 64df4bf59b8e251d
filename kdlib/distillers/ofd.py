"""Overhaul of feature distillation: the teacher's positive values, and how negative is enough."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.scipy.stats import norm

from kdlib.distillers.base import Adapter, Distiller, stages_of


def negative_margin(*, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Mean of the negative values of a batch norm with ``scale``, ``bias`` ``[c]``, as if normal:
    ``bias − |scale| · φ(bias/scale) / Φ(−bias/|scale|)``, φ and Φ the standard normal density and
    distribution; ``−3 |scale|`` where Φ, the share of negatives, is at most 0.001. ``[c]``."""
    spread = jnp.maximum(jnp.abs(scale.astype(jnp.float32)), 1e-12)
    share = norm.cdf(-bias / spread)
    mean = bias - spread * norm.pdf(bias / spread) / jnp.maximum(share, 0.001)
    return jnp.where(share > 0.001, mean, -3 * spread)


def partial_loss(*, student: jax.Array, teacher: jax.Array, margin: jax.Array) -> jax.Array:
    """``mean over pictures of Σ (s − t')²`` where s > t' or t' > 0, with ``t' = max(t, margin)``,
    of maps before the ReLU ``[n, h, w, c]`` and margins ``[c]``: a scalar."""
    student, target = student.astype(jnp.float32), jnp.maximum(teacher, margin)
    counts = (student > target) | (target > 0)
    return jnp.where(counts, (student - target) ** 2, 0.0).sum((1, 2, 3)).mean()


class OFD(Distiller):
    """``CE + weight · Σ_stages partial / 2^(L − l)`` on the stages' maps before the last ReLU.

    The student's maps pass a 1x1 convolution with batch norm. ValueError if the teacher's stages
    don't end in batch norms, or numbers of stages differ.

    Args:
        weight: of the sum; 1e-4 is advised for students of ResNet-20's size (their issue 13).
        teacher_training: the frozen teacher normalises by the batch, as in the authors' code.

    Reference:
        Heo et al., ICCV 2019, arXiv:1904.01866;
        clovaai/overhaul-distillation:CIFAR-100/distiller.py.
    """

    zero_at_match = False

    def __init__(self, weight: float = 1e-3, teacher_training: bool = False):
        self.weight, self.teacher_training = float(weight), teacher_training

    def prepare(self, student, teacher, rngs, labels):
        stages_of(student, teacher)
        if len(teacher.norms) != len(teacher.preacts):
            raise ValueError("OFD needs batch norms that end the teacher's stages: choose another")
        pairs = zip(student.preacts, teacher.preacts, strict=True)
        self.connectors = nnx.data([Adapter(s, t, rngs) for s, t in pairs])

    def knowledge(self, student, teacher, labels):
        stages = zip(self.connectors, student.preacts, teacher.preacts, teacher.norms, strict=True)
        total = 0.0
        for connect, s, t, (scale, bias) in stages:
            margin = negative_margin(scale=scale, bias=bias)
            total = total / 2 + partial_loss(student=connect(s), teacher=t, margin=margin)
        return total
