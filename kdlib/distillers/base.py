"""What every distiller is: a knowledge loss, and how it joins the cross-entropy."""

import inspect

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.models import Outputs


class Distiller(nnx.Module):
    """A loss between what a student and its teacher show for the same pictures.

    The total loss is ``ce_weight · cross-entropy + weight · knowledge``. A subclass sets the two
    weights, computes :meth:`knowledge`, and may hold variables of its own (they are trained and
    checkpointed with the student). Distillers add up: ``SoftLogits() + AttentionTransfer()``.

    Attributes:
        ce_weight: weight of the cross-entropy with the labels.
        weight: weight of the knowledge loss.
        zero_at_match: whether the knowledge loss is zero when student and teacher show the same.
    """

    ce_weight: float = 1.0
    weight: float = 1.0
    zero_at_match: bool = True

    def knowledge(self, student: Outputs, teacher: Outputs, labels: jax.Array) -> jax.Array:
        """The knowledge loss, unweighted: a scalar. ``labels`` is int32 ``[n]``."""
        raise NotImplementedError

    def __call__(self, student: Outputs, teacher: Outputs, labels: jax.Array) -> jax.Array:
        # Once, for all distillers and transfers: a teacher may be training at the same time, but
        # never to please its student.
        return self.knowledge(student, jax.lax.stop_gradient(teacher), labels)

    def total(self, cross_entropy: jax.Array, knowledge: jax.Array) -> jax.Array:
        """What the student minimises."""
        return self.ce_weight * cross_entropy + self.weight * knowledge

    def __add__(self, other: "Distiller") -> "Sum":
        return Sum(self, other)

    @classmethod
    def settings(cls) -> dict[str, inspect.Parameter]:
        """What the constructor takes, by name."""
        parameters = dict(inspect.signature(cls.__init__).parameters)
        return {name: p for name, p in parameters.items() if name != "self"}

    @property
    def spec(self) -> str:
        """The text that makes this distiller again: ``SoftLogits(temperature=4.0, alpha=0.9)``."""
        settings = [f"{name}={getattr(self, name)!r}" for name in self.settings()]
        return f"{type(self).__name__}({', '.join(settings)})"


class Sum(Distiller):
    """Several distillers at once.

    The weighted knowledge losses add up; the weights of the cross-entropy multiply, so a distiller
    that leaves it alone (weight 1) does not dilute another's choice.
    """

    def __init__(self, *parts: Distiller):
        flat = [p for part in parts for p in (part.parts if isinstance(part, Sum) else [part])]
        self.parts = nnx.data(flat)
        for part in flat:
            self.ce_weight = self.ce_weight * part.ce_weight
        self.zero_at_match = all(part.zero_at_match for part in flat)

    def knowledge(self, student: Outputs, teacher: Outputs, labels: jax.Array) -> jax.Array:
        losses = [part.weight * part(student, teacher, labels) for part in self.parts]
        return sum(losses)

    @property
    def spec(self) -> str:
        return " + ".join(part.spec for part in self.parts)


def l2_normalise(vector: jax.Array) -> jax.Array:
    """Unit length along the last axis; zero vectors stay zero and get a zero gradient."""
    square = (vector**2).sum(-1, keepdims=True)
    return vector * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def pool_to_smaller(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Average-pool the larger of two feature maps to the smaller one's sides.

    Args:
        a, b: ``[n, h, w, c]`` each, with sides of their own.

    Raises:
        ValueError: the larger side is no multiple of the smaller.
    """
    height, width = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
    return _pool(a, height, width), _pool(b, height, width)


def _pool(x, height, width):
    n, h, w, c = x.shape
    if h % height or w % width:
        raise ValueError(
            f"a feature map of {h}x{w} can't be pooled to {height}x{width}: choose a student and a "
            "teacher whose maps are multiples of each other, or other stages"
        )
    return x.reshape(n, height, h // height, width, w // width, c).mean((2, 4))  # (n, H, W, c)
