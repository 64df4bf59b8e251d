"""Overhaul of feature distillation: the teacher's positive values, and how negative is enough."""

import jax.numpy as jnp
from jax.scipy.stats import norm

from kdlib.distillers.base import Array, Distiller, adapters, halving, require


def negative_margin(*, scale: Array, bias: Array) -> Array:
    """Mean of the negative values of a batch norm with ``scale``, ``bias`` ``[c]``, as if normal:
    ``bias − |scale| · φ(bias/scale) / Φ(−bias/|scale|)``, φ and Φ the standard normal density and
    distribution; ``−3 |scale|`` where Φ, the share of negatives, is at most 0.001. ``[c]``."""
    spread = jnp.maximum(jnp.abs(scale.astype(jnp.float32)), 1e-12)
    share = norm.cdf(-bias / spread)
    mean = bias - spread * norm.pdf(bias / spread) / jnp.maximum(share, 0.001)
    return jnp.where(share > 0.001, mean, -3 * spread)


def partial_loss(*, student: Array, teacher: Array, margin: Array) -> Array:
    """``mean over pictures of Σ (s − t')²`` where s > t' or t' > 0, with ``t' = max(t, margin)``,
    of maps before the ReLU ``[n, h, w, c]`` and margins ``[c]``: a scalar."""
    student, target = student.astype(jnp.float32), jnp.maximum(teacher, margin)
    counts = (student > target) | (target > 0)
    return jnp.where(counts, (student - target) ** 2, 0.0).sum((1, 2, 3)).mean()


class OFD(Distiller):
    """``CE + weight · Σ_stages partial / 2^(L − l)`` on the stages' maps before the last ReLU.

    The student's maps pass a 1x1 convolution with batch norm; where sides differ a strided or
    transposed one, so the sum is over the teacher's positions (mdistiller pools the teacher's map
    to the student's instead, and its weight means less). ValueError if the teacher's stages don't
    end in batch norms, or numbers of stages differ.

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
        self.connectors = adapters(student, teacher, rngs)
        require(len(teacher.norms) == len(teacher.preacts),
                "OFD needs batch norms that end the teacher's stages: choose another")  # fmt: skip

    def knowledge(self, student, teacher, labels):
        margins = [negative_margin(scale=scale, bias=bias) for scale, bias in teacher.norms]
        maps = zip(self.connectors, student.preacts, teacher.preacts, margins, strict=True)
        return halving(partial_loss(student=f(s), teacher=t, margin=m) for f, s, t, m in maps)
