"""Flow of the solution procedure: how two maps of a network go together, channel by channel."""

from itertools import pairwise

import jax.numpy as jnp

from kdlib.distillers.base import Array, Distiller, adapters, mean_square, same_sides


def flow_matrix(*, first: Array, second: Array) -> Array:
    """Mean over positions of channel products of maps ``[n, h, w, c]``, ``[n, h, w, d]`` of one
    network, the larger pooled to the other's sides: ``[n, c, d]``."""
    a, b = same_sides(first.astype(jnp.float32), second.astype(jnp.float32))
    return jnp.einsum("nhwc,nhwd->ncd", a, b, precision="highest") / (a.shape[1] * a.shape[2])


class FSP(Distiller):
    """``CE + beta · Σ_stages mean (G_s − G_t)²``, G the flow from a stage's input to its output.

    Where channels differ, a 1x1 convolution of the student's map makes them equal.

    Args:
        beta: weight of the sum. ValueError if the networks' numbers of stages differ.
        original: the sum alone for the first 30/270 of the run, then none, as in the paper.

    Reference:
        Yim et al., CVPR 2017; HobbitLong/RepDistiller:distiller_zoo/FSP.py, helper/pretrain.py.
        Added to CE by default, which is ours: there, and in AberHu/Knowledge-Distillation-Zoo
        (whose weight is for the mean over stages), it is a first phase.
    """

    def __init__(self, beta: float = 1.0, original: bool = False):
        self.beta = self.weight = float(beta)
        self.original = original
        self.pretrain, self.afterwards = (30 / 270, 0.0) if original else (0.0, 1.0)

    def prepare(self, student, teacher, rngs, labels):
        kind = {"norm": False, "always": False, "resize": False}
        self.adapters = adapters(student, teacher, rngs, "features", **kind)

    def knowledge(self, student, teacher, labels):
        adapted = [adapt(x) for adapt, x in zip(self.adapters, student.features, strict=True)]
        flows = [[flow_matrix(first=a, second=b) for a, b in pairwise(maps)]
                 for maps in (adapted, teacher.features)]  # fmt: skip
        return sum(map(mean_square, *flows))
