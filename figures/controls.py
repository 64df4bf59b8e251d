"""Which part of a teacher's answer helps? Soft logits with its wrong classes told wrongly.

``python -m kdlib.compare --methods plain SoftLogits figures/controls.py:Shuffled``; recorded in
``figures/controls``, and the story is in notebook 02. Shuffling is the control of Furlanello et
al., "Born-Again Neural Networks", ICML 2018, arXiv:1805.04770, section 3.2 (from memory).
"""

import jax
import jax.numpy as jnp

from kdlib.distillers import SoftLogits


class Shuffled(SoftLogits):
    """Soft logits of a teacher whose classes, but the one it names, change places at random.

    Every answer stays as sure and as soft as it was; which other class is how likely is lost.
    """

    contextual, zero_at_match = True, False

    def knowledge(self, student, teacher, labels, batch):
        logits = shuffled(teacher.logits, batch.key)
        return super().knowledge(student, teacher._replace(logits=logits), labels)


class Alike(SoftLogits):
    """Soft logits of a teacher that finds all classes, but the one it names, equally likely."""

    zero_at_match = False

    def knowledge(self, student, teacher, labels):
        logits = alike(teacher.logits, self.temperature)
        return super().knowledge(student, teacher._replace(logits=logits), labels)


def shuffled(logits: jax.Array, key: jax.Array) -> jax.Array:
    """``logits [n, k]`` whose smaller ones change places within each row, drawn by ``key``."""
    named = logits.argmax(-1, keepdims=True) == jnp.arange(logits.shape[-1])  # (n, k)
    first = lambda place: jnp.argsort(jnp.where(named, -1.0, place), -1)  # the named, then others
    taken = jnp.take_along_axis(logits, first(jax.random.uniform(key, logits.shape)), -1)
    return jnp.take_along_axis(taken, jnp.argsort(first(jnp.arange(logits.shape[-1])), -1), -1)


def alike(logits: jax.Array, temperature: float) -> jax.Array:
    """``logits [n, k]`` with one value for all but the largest of a row, so that together they are
    as likely as before at ``temperature``."""
    named = logits.argmax(-1, keepdims=True) == jnp.arange(logits.shape[-1])  # (n, k)
    others = jax.nn.logsumexp(logits / temperature, -1, where=~named, keepdims=True)
    return jnp.where(named, logits, temperature * (others - jnp.log(logits.shape[-1] - 1)))
