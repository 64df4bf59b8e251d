"""Factor transfer: a translator of the student's map imitates a paraphrase of the teacher's."""

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.distillers.attention import attention_map
from kdlib.distillers.base import Distiller, convolutions, l2_normalise, mean_square, same_sides
from kdlib.names import require

leaky_relu = lambda x: nnx.leaky_relu(x, 0.1)

# RepDistiller trains the paraphraser at learning rate 0.01, its students at 0.05; at a student's
# rate of 0.1 it diverges (measured on the embedded shapes: nan in the first epoch).
RECONSTRUCTION = 0.1


def factor_loss(*, student: jax.Array, teacher: jax.Array, mode: str = "attention") -> jax.Array:
    """Mean absolute difference of factors ``[n, h, w, c]`` made unit vectors: of their mean squares
    over channels (``mode="attention"``) or of all values (``"vector"``). A scalar."""
    if mode == "attention":
        s, t = attention_map(feature=student), attention_map(feature=teacher)  # (n, h·w)
    else:
        s, t = (l2_normalise(x.reshape(len(x), -1)) for x in (student, teacher))  # (n, h·w·c)
    return jnp.abs(s - t).mean()


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

    zero_at_match, contextual = False, True
    pretrain, pretrain_ce = 1 / 9, 1.0

    def __init__(self, k: float = 0.5, beta: float = 200.0, mode: str = "attention"):
        known = 0 < k <= 1 and beta > 0 and mode in ("attention", "vector")
        require(known, f"{k=}, {beta=}, {mode=}: give 0 < k <= 1, 0 < beta, a known mode")
        self.k, self.mode = float(k), mode
        self.beta = self.weight = float(beta)

    def prepare(self, student, teacher, rngs, labels):
        c_s, c_t = (x.features[-1].shape[3] for x in (student, teacher))
        c = max(1, int(self.k * c_t))  # of a factor
        chain = lambda norm, *widths: convolutions(widths, (3, 3, 3), leaky_relu, rngs, norm)
        self.encode, self.decode = chain(False, c_t, c_t, c, c), chain(False, c, c, c_t, c_t)
        self.translate = chain(True, c_s, c_s, c, c)

    def knowledge(self, student, teacher, labels, batch=None):
        factor = self.encode(teacher.features[-1])
        paraphrase = mean_square(self.decode(factor), teacher.features[-1])
        translated, factor = self.translate(student.features[-1]), jax.lax.stop_gradient(factor)
        s, t = same_sides(translated, factor)
        distance = factor_loss(student=s, teacher=t, mode=self.mode)
        first = (1.0 if batch is None else batch.progress) <= self.pretrain + 1e-4
        # The weight of all this is beta: so the paraphrase weighs RECONSTRUCTION.
        return jnp.where(first, 0.0, distance) + RECONSTRUCTION * paraphrase / self.beta
