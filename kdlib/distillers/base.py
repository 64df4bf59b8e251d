"""What every distiller is: a knowledge loss, how it joins the cross-entropy, and shared pieces."""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.data import Batch
from kdlib.models import Outputs

COMMON = ("warmup", "pretrain")  # settings that every distiller takes beside its own


class Distiller(nnx.Module):
    """A loss between what a student and its teacher show for the same pictures.

    The total loss is ``ce_weight · cross-entropy + weight · knowledge``. A subclass sets the two
    weights and computes :meth:`knowledge`. Variables of its own (regressors, memory banks) are made
    in :meth:`prepare`; they are trained and checkpointed with the student. Distillers add up:
    ``SoftLogits() + AttentionTransfer()``.

    Attributes:
        ce_weight, weight: of the cross-entropy with the labels, of the knowledge loss.
        zero_at_match: whether the knowledge loss is zero when student and teacher show the same.
        invariances: changes of both sides that leave the loss alone, names of ``check.CHANGES``.
        any_order: whether the order of the pictures in a batch leaves the loss alone.
        warmup: share of the run in which the weight of the knowledge grows linearly to its value.
        pretrain: share of the run, at its start, that belongs to the knowledge alone: the
            cross-entropy weighs ``pretrain_ce`` there, and other distillers of a sum are silent.
        afterwards: factor on ``weight`` once the pre-training is over.
        views: 2 for a loss that also compares a strongly augmented view (``batch.extra``).
        mixup: above 0, both networks see strongly changed, mixed pictures (and no labels).
        contextual: whether :meth:`knowledge` takes the batch as its fourth argument.
        teacher_training: whether the frozen teacher normalises by the batch's statistics.
    """

    ce_weight: float = 1.0
    weight: float = 1.0
    zero_at_match: bool = True
    invariances: tuple[str, ...] = ()
    any_order: bool = True
    warmup: float = 0.0
    pretrain: float = 0.0
    pretrain_ce: float = 0.0
    afterwards: float = 1.0
    views: int = 1
    mixup: float = 0.0
    contextual: bool = False
    teacher_training: bool = False

    def prepare(
        self, student: Outputs, teacher: Outputs, rngs: nnx.Rngs, labels: jax.Array
    ) -> None:
        """Make the variables whose shapes depend on the networks; called once per run.

        Args:
            student, teacher: what the networks show; only shapes are read.
            rngs: random streams for initial values.
            labels: of the whole training set, int32 ``[m]``.
        """

    def knowledge(self, student: Outputs, teacher: Outputs, labels: jax.Array) -> jax.Array:
        """The knowledge loss, unweighted: a scalar. ``labels`` is int32 ``[n]``."""
        raise NotImplementedError

    def __call__(self, student, teacher, labels, batch: Batch | None = None) -> jax.Array:
        # Once, for all distillers and transfers: a teacher may be training at the same time, but
        # never to please its student.
        teacher = jax.lax.stop_gradient(teacher)
        context = (batch,) if self.contextual else ()
        return self.knowledge(student, teacher, labels, *context)

    def weights(self, progress) -> tuple:
        """Weights of cross-entropy and knowledge when ``progress`` (0..1) of the run is done."""
        ramp = jnp.minimum(progress / self.warmup, 1.0) if self.warmup else 1.0
        if not self.pretrain:
            return self.ce_weight, self.weight * ramp
        first = progress <= self.pretrain
        ce = jnp.where(first, self.pretrain_ce, self.ce_weight)
        return ce, jnp.where(first, self.weight, self.afterwards * self.weight * ramp)

    def total(self, cross_entropy: jax.Array, knowledge: jax.Array, progress=1.0) -> jax.Array:
        """What the student minimises."""
        ce, weight = self.weights(progress)
        return ce * cross_entropy + weight * knowledge

    def logits(self, student: Outputs, teacher: Outputs) -> jax.Array:
        """What the distilled network predicts, ``[n, k]``."""
        return student.logits

    def deploy(self, student: nnx.Module, teacher: nnx.Module) -> nnx.Module:
        """The network to use after training: the student, unless the method adds to it."""
        return student

    def __add__(self, other: "Distiller") -> "Sum":
        return Sum(self, other)

    def scheduled(self, **settings: float) -> "Distiller":
        """Set ``warmup`` or ``pretrain``, shares of the run; returns the distiller itself.

        Raises:
            ValueError: a share out of 0..1.
        """
        for name, value in settings.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: give a share of the run, 0 to 1")
            setattr(self, name, float(value))
        return self

    @classmethod
    def settings(cls) -> dict[str, inspect.Parameter]:
        """What the constructor takes, by name."""
        parameters = dict(inspect.signature(cls.__init__).parameters)
        return {name: p for name, p in parameters.items() if name != "self"}

    @property
    def spec(self) -> str:
        """The text that makes this distiller again: ``SoftLogits(temperature=4.0, alpha=0.9)``."""
        shared = [k for k in COMMON if getattr(self, k) != getattr(type(self), k)]
        return spec(self, [*self.settings(), *shared])


def spec(method, settings) -> str:
    """``Name(setting=value, …)`` of a method, from its attributes."""
    values = [(name, getattr(method, name)) for name in settings]
    values = [f"{name}={getattr(value, 'spec', None) or repr(value)}" for name, value in values]
    return f"{type(method).__name__}({', '.join(values)})"


class Custom(Distiller):
    """A function ``(student, teacher, labels) -> scalar`` as a distiller.

    Attributes of the function with the names of :class:`Distiller`'s (``weight``, ``ce_weight``,
    ``zero_at_match``, ``invariances``) are taken over.
    """

    def __init__(self, function: Callable, address: str | None = None):
        self.function, self.address = function, address
        for name in ("ce_weight", "weight", "zero_at_match", "invariances", "any_order"):
            setattr(self, name, getattr(function, name, getattr(Distiller, name)))

    def knowledge(self, student, teacher, labels):
        return self.function(student, teacher, labels)

    @property
    def spec(self) -> str:
        place = f"{self.function.__module__}:{getattr(self.function, '__qualname__', 'own')}"
        return self.address or place


def own(given, address: str | None = None) -> Distiller:
    """A distiller from one's own object: a distiller, its class, or a function of three arguments.

    Raises:
        ValueError: it is none of these.
    """
    given = given() if isinstance(given, type) else given
    if not callable(given):
        raise ValueError(f"{address or given!r} is no distiller: give a function of (student, "
                         "teacher, labels), or a Distiller")  # fmt: skip
    return given if isinstance(given, Distiller) else Custom(given, address)


class Sum(Distiller):
    """Several distillers at once.

    The weighted knowledge losses add up; the weights of the cross-entropy multiply, so a distiller
    that leaves it alone (weight 1) does not dilute another's choice.
    """

    contextual = True

    def __init__(self, *parts: Distiller):
        flat = [p for part in parts for p in (part.parts if isinstance(part, Sum) else [part])]
        self.parts = nnx.data(flat)
        self.zero_at_match = all(part.zero_at_match for part in flat)
        self.any_order = all(part.any_order for part in flat)
        self.pretrain = max(part.pretrain for part in flat)
        self.pretrain_ce = max((p.pretrain_ce for p in flat if p.pretrain), default=0.0)
        self.views = max(part.views for part in flat)
        self.mixup = max(part.mixup for part in flat)
        self.teacher_training = any(part.teacher_training for part in flat)
        for part in flat:
            self.ce_weight = self.ce_weight * part.ce_weight

    def prepare(self, student, teacher, rngs, labels) -> None:
        for part in self.parts:
            part.prepare(student, teacher, rngs, labels)

    def knowledge(self, student, teacher, labels, batch=None) -> jax.Array:
        progress = 1.0 if batch is None else batch.progress
        total = 0.0
        for part in self.parts:
            weight = part.weights(progress)[1]
            if self.pretrain and not part.pretrain:
                weight = jnp.where(progress <= self.pretrain, 0.0, weight)
            total = total + weight * part(student, teacher, labels, batch)
        return total

    def logits(self, student, teacher):
        return self.parts[-1].logits(student, teacher)

    def deploy(self, student, teacher):
        return self.parts[-1].deploy(student, teacher)

    @property
    def spec(self) -> str:
        return " + ".join(part.spec for part in self.parts)


class Adapter(nnx.Module):
    """Bridges a student's feature map to the sides and channels of a teacher's.

    A 1x1 convolution where the sides agree, a strided one where the student's map is larger, a
    transposed one where it is smaller; batch norm and ReLU if asked. It is the one bridge of all
    methods; its parameters train with the student (HobbitLong/RepDistiller:models/util.py).

    Args:
        student, teacher: the maps ``[n, h, w, c]``; only shapes are read.
        norm, relu: what follows the convolution.
        always: False makes it the identity where the shapes agree.

    Raises:
        ValueError: sides that are no multiples of each other.
    """

    def __init__(self, student, teacher, rngs, *, norm=True, relu=False, always=True):
        (h, w, c_in), (height, width, c_out) = student.shape[1:], teacher.shape[1:]
        down, up = max(1, h // height), max(1, height // h)
        if (h * up, w * up) != (height * down, width * down):
            raise ValueError(
                f"a feature map of {h}x{w} can't be adapted to {height}x{width}: choose networks "
                "whose maps are multiples of each other"
            )
        self.identity, self.relu = not always and student.shape[1:] == teacher.shape[1:], relu
        if self.identity:
            return
        kind, stride, size = (nnx.ConvTranspose, up, 2 * up) if up > 1 else (nnx.Conv, down, 1)
        if down > 1:
            size = down + 1
        padding = "SAME" if up > 1 else [((size - 1) // 2, size // 2)] * 2
        self.conv = kind(
            c_in, c_out, (size, size), strides=(stride, stride), padding=padding,
            use_bias=not norm, rngs=rngs,
        )  # fmt: skip
        self.norm = nnx.BatchNorm(c_out, momentum=0.9, epsilon=1e-5, rngs=rngs) if norm else None

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.identity:
            return x
        x = self.conv(x)  # (n, H, W, C)
        x = x if self.norm is None else self.norm(x)
        return nnx.relu(x) if self.relu else x


def stages_of(student: Outputs, teacher: Outputs, chosen=None) -> list[int]:
    """Numbers, from 1, of the stages to compare: the chosen ones, or all.

    Raises:
        ValueError: a stage that is not there, or networks with different numbers of stages.
    """
    counts = len(student.features) - 1, len(teacher.features) - 1  # features[0] is the stem
    if counts[0] != counts[1]:
        raise ValueError(
            f"the student has {counts[0]} stages and the teacher {counts[1]}: this method needs as "
            "many in both"
        )
    stages = list(chosen or range(1, counts[0] + 1))
    if not all(1 <= stage <= counts[0] for stage in stages):
        raise ValueError(f"stages={tuple(stages)}: these networks have stages 1 to {counts[0]}")
    return stages


def l2_normalise(vector: jax.Array) -> jax.Array:
    """Unit length along the last axis; zero vectors stay zero and get a zero gradient."""
    square = (vector**2).sum(-1, keepdims=True)
    long = square > 1e-24
    return jnp.where(long, vector * jax.lax.rsqrt(jnp.where(long, square, 1.0)), 0.0)


def safe_sqrt(square: jax.Array) -> jax.Array:
    """Square root whose gradient at 0 is 0 instead of infinite."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def pool_to(x: jax.Array, height: int, width: int) -> jax.Array:
    """Average-pool a feature map ``[n, h, w, c]`` to ``[n, height, width, c]``.

    Raises:
        ValueError: the sides are no multiples of the new ones.
    """
    n, h, w, c = x.shape
    if h % height or w % width:
        raise ValueError(
            f"a feature map of {h}x{w} can't be pooled to {height}x{width}: choose a student and a "
            "teacher whose maps are multiples of each other, or other stages"
        )
    return x.reshape(n, height, h // height, width, w // width, c).mean((2, 4))  # (n, H, W, c)


def pool_to_smaller(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Average-pool the larger of two feature maps ``[n, h, w, c]`` to the smaller one's sides."""
    height, width = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
    return pool_to(a, height, width), pool_to(b, height, width)
