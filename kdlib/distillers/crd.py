"""Contrastive representation distillation: tell the same picture's embedding from others'."""

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.distillers.base import Array, Distiller, l2_normalise, require


class Bank(nnx.Variable):
    """What the contrast remembers: part of the state, not trained."""


def contrast_loss(*, log_scores: Array, pictures: int) -> Array:
    """``−mean over rows of [log x₊/(x₊ + c) + Σ_K log c/(x₋ + c)]``, ``c = K / pictures`` of the
    training set (+1e-7 in denominators), of log x ``[n, 1 + K]``, positives first: a scalar."""
    noise = (log_scores.shape[1] - 1) / pictures
    c = jnp.log(noise + 1e-7)
    same = -nnx.softplus(c - log_scores[:, 0])  # (n,)
    other = jnp.log(noise) - c - nnx.softplus(log_scores[:, 1:] - c)  # (n, K)
    return -(same + other.sum(-1)).mean()


class CRD(Distiller):
    """``CE + beta · (contrast of z_s with the teacher's bank + of z_t with the student's)``.

    z are unit vectors of linear maps of the embeddings; banks remember them for all training
    pictures. Scores are ``exp(bank · z / temperature) / Z``, Z as in the first batch; negatives are
    of other classes, drawn with replacement. Without a batch nothing is remembered.

    Args:
        beta: weight of the contrast.
        temperature: at least 0.02; ValueError for it or others out of range.
        negatives: K, from 1; at most the number of training pictures.
        dim: of z; the banks take 8 · dim bytes per training picture.
        momentum: share of the old vector when a bank is updated, 0 to 1.

    Reference:
        Tian et al., ICLR 2020, arXiv:1910.10699; HobbitLong/RepDistiller:crd/criterion.py,
        crd/memory.py, where negatives are drawn without replacement if there are enough.
    """

    zero_at_match, any_order, contextual = False, False, True

    def __init__(self, beta: float = 0.8, temperature: float = 0.07, negatives: int = 16384,
                 dim: int = 128, momentum: float = 0.5):  # fmt: skip
        require(temperature >= 0.02, f"{temperature=}: give 0.02 or more")
        require(min(negatives, dim) >= 1, f"{negatives=}, {dim=}: give whole numbers from 1")
        require(0 <= momentum <= 1, f"{momentum=}: give 0 to 1")
        self.beta, self.temperature, self.momentum = float(beta), float(temperature), momentum
        self.negatives, self.dim, self.weight = negatives, dim, self.beta

    def prepare(self, student, teacher, rngs, labels):
        sides = student.embedding.shape[1], teacher.embedding.shape[1]
        self.embed = nnx.data([nnx.Linear(d, self.dim, rngs=rngs) for d in sides])
        banks = jax.random.uniform(rngs.params(), (2, len(labels), self.dim), minval=-1.0)
        self.banks, self.constants = Bank(banks * (3 / self.dim) ** 0.5), Bank(jnp.zeros(2))  # Z
        count = jnp.bincount(labels, length=student.logits.shape[1])
        self.classes = Bank(jnp.stack([jnp.cumsum(count) - count, count]))  # start, length
        self.order = Bank(jnp.argsort(labels))  # of the pictures, class by class

    def others(self, key, labels):
        """Random pictures of other classes than ``labels`` ``[n]``: positions ``[n, K]``."""
        order, m = self.order[...], len(self.order[...])
        start, count = self.classes[...][:, labels, None]  # (n, 1)
        drawn = jax.random.randint(key, (len(labels), min(self.negatives, m)), 0, m - count)
        return order[jnp.where(drawn < start, drawn, drawn + count)]

    def knowledge(self, student, teacher, labels, batch=None):
        embeddings, banks = (student.embedding, teacher.embedding), self.banks[...]  # (2, m, dim)
        z = jnp.stack([l2_normalise(f(e)) for f, e in zip(self.embed, embeddings, strict=True)])
        n, m = len(labels), banks.shape[1]
        index, key = (batch.index, batch.key) if batch else (jnp.arange(n) % m, jax.random.key(0))
        columns = jnp.concatenate([index[:, None], self.others(key, labels)], 1)  # (n, 1 + K)
        cosine = jnp.einsum("snd,smd->snm", z[::-1], banks)  # a side's bank, the other side's z
        scores = jnp.take_along_axis(cosine, columns[None], -1) / self.temperature  # (2, n, 1 + K)
        first = m * jnp.exp(jax.lax.stop_gradient(scores)).mean((1, 2))  # (2,)
        constants = jnp.where(self.constants[...] > 0, self.constants[...], first)
        if batch is not None:
            moved = l2_normalise(self.momentum * banks[:, index] + (1 - self.momentum) * z)
            self.banks[...] = banks.at[:, index].set(jax.lax.stop_gradient(moved))
            self.constants[...] = constants
        scores = scores - jnp.log(constants)[:, None, None]
        return sum(contrast_loss(log_scores=x, pictures=m) for x in scores)
