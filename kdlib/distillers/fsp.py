"""Flow of the solution procedure: how two maps of a network go together, channel by channel."""

from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.distillers.base import Adapter, Distiller, pool_to_smaller, stages_of
from kdlib.distillers.fitnet import hint_loss


def flow_matrix(*, first: jax.Array, second: jax.Array) -> jax.Array:
    """Mean over positions of channel products of maps ``[n, h, w, c]``, ``[n, h, w, d]`` of one
    network, the larger pooled to the other's sides: ``[n, c, d]``."""
    a, b = pool_to_smaller(first.astype(jnp.float32), second.astype(jnp.float32))
    return jnp.einsum("nhwc,nhwd->ncd", a, b, precision="highest") / (a.shape[1] * a.shape[2])


class FSP(Distiller):
    """``CE + beta · Σ_stages mean (G_s − G_t)²``, G the flow from a stage's input to its output.

    Where channels differ, a 1x1 convolution of the student's map makes them equal.

    Args:
        beta: weight of the sum. ValueError if the networks' numbers of stages differ.
        original: the sum alone for the first 30/270 of the run, then none, as in the paper.

    Reference:
        Yim et al., CVPR 2017; HobbitLong/RepDistiller:distiller_zoo/FSP.py, helper/pretrain.py.
        By default added to CE, as in AberHu/Knowledge-Distillation-Zoo.
    """

    def __init__(self, beta: float = 1.0, original: bool = False):
        self.beta = self.weight = float(beta)
        self.original = original
        if original:
            self.pretrain, self.afterwards = 30 / 270, 0.0

    def prepare(self, student, teacher, rngs, labels):
        stages_of(student, teacher)
        self.adapters = nnx.data([])
        for s, t in zip(student.features, teacher.features, strict=True):
            goal = jax.ShapeDtypeStruct((*s.shape[:3], t.shape[3]), s.dtype)
            self.adapters.append(Adapter(s, goal, rngs, norm=False, always=False))

    def knowledge(self, student, teacher, labels):
        adapted = [adapt(x) for adapt, x in zip(self.adapters, student.features, strict=True)]
        pairs = zip(pairwise(adapted), pairwise(teacher.features), strict=True)
        flows = ([flow_matrix(first=a, second=b) for a, b in pair] for pair in pairs)
        return sum(hint_loss(student=s, teacher=t) for s, t in flows)
