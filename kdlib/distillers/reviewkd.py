"""Knowledge review: the student's deeper maps help its earlier ones to match the teacher's."""

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.distillers.base import (  # isort: skip
    Adapter, BatchNorm, Conv, Distiller, mean_square, pool_evenly, stages_of)  # fmt: skip


def hierarchical_loss(*, student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Mean squared difference of maps ``[n, h, w, c]``, averaged with weights 1, 1/2, 1/4, 1/8 over
    themselves and their poolings to 4x4, 2x2, 1x1, as far as these are smaller. A scalar."""
    s, t = student.astype(jnp.float32), teacher.astype(jnp.float32)
    pooled = ([pool_evenly(x, side) for x in (s, t)] for side in (4, 2, 1) if side < s.shape[1])
    losses = [mean_square(*pair) / 2**k for k, pair in enumerate([(s, t), *pooled])]
    return sum(losses) / (2 - 2 / 2 ** len(losses))


class Fusion(nnx.Module):
    """Fuses a student's map with the deeper fusion's, gated by both: to a map of the teacher's
    shape, and to what the next fusion gets."""

    def __init__(self, student, teacher, middle, first, rngs):
        inner = jax.ShapeDtypeStruct((*student.shape[:3], middle), student.dtype)
        self.enter, (*self.sides, c_out) = Adapter(student, inner, rngs), teacher.shape[1:]
        self.gate = None if first else Conv(2 * middle, 2, (1, 1), padding=0, rngs=rngs)
        self.leave = Conv(middle, c_out, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm = BatchNorm(c_out, rngs=rngs)

    def __call__(self, x: jax.Array, deeper: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        x = self.enter(x)  # (n, h, w, middle)
        if self.gate is not None:
            deeper = jax.image.resize(deeper, x.shape, "nearest")
            gates = nnx.sigmoid(self.gate(jnp.concatenate([x, deeper], -1)))  # (n, h, w, 2)
            x = gates[..., :1] * x + gates[..., 1:] * deeper
        x = jax.image.resize(x, (len(x), *self.sides, x.shape[3]), "nearest")
        return self.norm(self.leave(x)), x


def levels(student, teacher) -> list[tuple]:
    """Maps to compare: the pooled ones, then from the last stage (teacher's before the ReLU) up."""
    pooled = student.embedding[:, None, None], teacher.embedding[:, None, None]  # (n, 1, 1, d)
    return [pooled, *zip(student.features[:0:-1], teacher.preacts[::-1], strict=True)]


class ReviewKD(Distiller):
    """``CE + weight · Σ hierarchical`` over fusions of the student's maps, from the pooled one up.

    Args:
        weight: of the sum, after growing for a twelfth of the run (20 of 240 epochs); published:
            0.6 (ResNet-56 to 20) to 8 (ShuffleNets). ValueError if numbers of stages differ.

    Reference:
        Chen et al., CVPR 2021, arXiv:2104.09044; megvii-research/
        mdistiller:mdistiller/distillers/ReviewKD.py (no stem, as there; a larger map of the
        student's is shrunk to the pixels in the middle, there to those before them).
    """

    zero_at_match, warmup = False, 1 / 12

    def __init__(self, weight: float = 0.6):
        self.weight = float(weight)

    def prepare(self, student, teacher, rngs, labels):
        stages_of(student, teacher)
        middle, self.fusions = min(512, student.embedding.shape[1]), nnx.data([])
        for s, t in jax.eval_shape(levels, student, teacher):
            self.fusions.append(Fusion(s, t, middle, not len(self.fusions), rngs))

    def knowledge(self, student, teacher, labels):
        total, deeper = 0.0, None
        for fuse, (s, t) in zip(self.fusions, levels(student, teacher), strict=True):
            fused, deeper = fuse(s, deeper)
            total += hierarchical_loss(student=fused, teacher=t)
        return total
