"""Factor transfer: a translator of the student's map imitates a paraphrase of the teacher's."""

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.distillers.attention import attention_map
from kdlib.distillers.base import Distiller, l2_normalise, pool_to_smaller
from kdlib.distillers.fitnet import hint_loss


def factor_loss(*, student: jax.Array, teacher: jax.Array, mode: str = "attention") -> jax.Array:
    """Mean absolute difference of factors ``[n, h, w, c]`` made unit vectors: of their mean squares
    over channels (``mode="attention"``) or of all values (``"vector"``). A scalar."""
    if mode == "attention":
        s, t = attention_map(feature=student), attention_map(feature=teacher)  # (n, h·w)
    else:
        s, t = (l2_normalise(x.reshape(len(x), -1)) for x in (student, teacher))  # (n, h·w·c)
    return jnp.abs(s - t).mean()


def leaky_relu(x: jax.Array) -> jax.Array:
    return nnx.leaky_relu(x, 0.1)


def convolutions(widths, sizes, activation, rngs, norm=True) -> nnx.Sequential:
    """Convolutions from each width to the next, each with batch norm or not, and activation."""
    layers = []
    for c_in, c_out, size in zip(widths[:-1], widths[1:], sizes, strict=True):
        layers.append(nnx.Conv(c_in, c_out, (size, size), use_bias=not norm, rngs=rngs))
        layers += [nnx.BatchNorm(c_out, momentum=0.9, epsilon=1e-5, rngs=rngs)] if norm else []
        layers.append(activation)
    return nnx.Sequential(*layers)


class FT(Distiller):
    """``CE + beta · |F(translator(f_s)) − F(paraphraser(f_t))|`` on the last maps.

    The paraphraser encodes the teacher's map and decodes it again. It learns only by the mean
    squared error of that: alone beside CE for the first ninth of the run (30 of 270 epochs), and
    throughout, lest weight decay undo it.

    Args:
        k: share of the teacher's channels in a factor, above 0, at most 1, else ValueError.
        beta: weight of the factors' distance, above 0; the authors' is 500, with ``"vector"``.
        mode: ``"attention"`` or ``"vector"``, see :func:`factor_loss`.

    Reference:
        Kim et al., NeurIPS 2018, arXiv:1802.04977; HobbitLong/RepDistiller:distiller_zoo/FT.py,
        models/util.py. Differs from both, which train the paraphraser first and then freeze it.
    """

    zero_at_match = False
    contextual = True
    pretrain = 1 / 9
    pretrain_ce = 1.0

    def __init__(self, k: float = 0.5, beta: float = 200.0, mode: str = "attention"):
        if not (0 < k <= 1 and beta > 0 and mode in ("attention", "vector")):
            raise ValueError(f"{k=}, {beta=}, {mode=}: give 0 < k <= 1, 0 < beta, a known mode")
        self.k, self.beta, self.mode = float(k), float(beta), mode
        self.weight = self.beta

    def prepare(self, student, teacher, rngs, labels):
        c_s, c_t = student.features[-1].shape[3], teacher.features[-1].shape[3]
        factor, sizes = max(1, int(self.k * c_t)), (3, 3, 3)
        widths = c_t, c_t, factor, factor
        self.encode = convolutions(widths, sizes, leaky_relu, rngs, norm=False)
        self.decode = convolutions(widths[::-1], sizes, leaky_relu, rngs, norm=False)
        self.translate = convolutions((c_s, c_s, factor, factor), sizes, leaky_relu, rngs)

    def knowledge(self, student, teacher, labels, batch=None):
        factor = self.encode(teacher.features[-1])
        paraphrase = hint_loss(student=self.decode(factor), teacher=teacher.features[-1])
        s, t = self.translate(student.features[-1]), jax.lax.stop_gradient(factor)
        s, t = pool_to_smaller(s, t)
        distance = factor_loss(student=s, teacher=t, mode=self.mode)
        first = (1.0 if batch is None else batch.progress) <= self.pretrain
        # The weight of all this is beta: so the paraphrase weighs 1.
        return jnp.where(first, 0.0, distance) + paraphrase / self.beta
