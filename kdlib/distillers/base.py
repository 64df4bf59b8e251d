"""What every distiller is: a knowledge loss, how it joins the cross-entropy, and shared pieces."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from kdlib.data import Batch
from kdlib.models import Outputs
from kdlib.models.network import BatchNorm, convolve, lecun_normal
from kdlib.names import require, settings, written

COMMON = ("warmup", "pretrain")  # settings that every distiller takes beside its own


class Distiller(nnx.Module):
    """A loss between what a student and its teacher show for the same pictures.

    The total loss is ``ce_weight · cross-entropy + weight · knowledge``. A subclass sets the two
    weights and computes :meth:`knowledge`. Variables of its own (regressors, memory banks) are made
    in :meth:`prepare`; they are trained and checkpointed with the student. Distillers add up.
    """

    ce_weight: float = 1.0  # of the cross-entropy with the labels
    weight: float = 1.0  # of the knowledge loss
    zero_at_match: bool = True  # the loss is zero when student and teacher show the same
    invariances: tuple[str, ...] = ()  # changes of both (of check.CHANGES) that leave it alone
    any_order: bool = True  # the order of the pictures in a batch leaves it alone
    warmup: float = 0.0  # share of the run in which its weight grows linearly to its value
    pretrain: float = 0.0  # share of the run (an epoch or more) when a sum's others are silent
    pretrain_ce: float = 0.0  # weight of the cross-entropy in that time
    afterwards: float = 1.0  # factor on the weight of the knowledge after that time
    views: int = 1  # 2 for a loss that also compares a strongly augmented view (batch.extra)
    mixup: float = 0.0  # above 0, both networks see strongly changed, mixed pictures (no labels)
    contextual: bool = False  # knowledge() takes the batch as its fourth argument
    address: str | None = None  # file.py:Name, of one's own
    teacher_training: bool = False  # the frozen teacher normalises by the batch's statistics

    def prepare(self, student: Outputs, teacher: Outputs, rngs: nnx.Rngs, labels: Array) -> None:
        """Make the variables whose shapes depend on the networks; called once per run. Only shapes
        of what they show are read; ``labels`` are the whole training set's, int32 ``[m]``."""

    def knowledge(self, student: Outputs, teacher: Outputs, labels: Array) -> Array:
        """The knowledge loss, unweighted: a scalar. ``labels`` is int32 ``[n]``."""
        raise NotImplementedError

    def __call__(self, student, teacher, labels, batch: Batch | None = None) -> Array:
        teacher = jax.lax.stop_gradient(teacher)  # it may be training, but never to please others
        loss = self.knowledge(student, teacher, labels, *([batch] if self.contextual else []))
        if loss is None or jnp.ndim(loss):
            raise ValueError(f"{self.spec} is {loss}: give a scalar, like a mean over pictures")
        return loss

    def weights(self, progress) -> tuple:
        """Weights of cross-entropy and knowledge when ``progress`` (0..1) of the run is done."""
        ramp = jnp.minimum(progress / self.warmup, 1.0) if self.warmup else 1.0
        if not self.pretrain:
            return self.ce_weight, self.weight * ramp
        first = progress <= self.pretrain + 1e-4  # progress is rounded
        # Mixed pictures have no label, in the first phase neither.
        ce = jnp.where(first, self.pretrain_ce * (not self.mixup), self.ce_weight)
        return ce, jnp.where(first, self.weight, self.afterwards * self.weight * ramp)

    def logits(self, student: Outputs, teacher: Outputs) -> Array:
        """What the distilled network predicts, ``[n, k]``."""
        return student.logits

    def deploy(self, student: nnx.Module, teacher: nnx.Module) -> nnx.Module:
        """The network to use after training: the student, unless the method adds to it."""
        return student

    def __add__(self, other: "Distiller") -> "Sum":
        return Sum(self, other)

    def scheduled(self, **settings: float) -> "Distiller":
        """Set ``warmup`` or ``pretrain``, shares of the run (ValueError if out of 0..1)."""
        for name, value in settings.items():
            require(0 <= value <= 1, f"{name}={value}: give a share of the run, 0 to 1")
            setattr(self, name, float(value))
        return self

    @property
    def spec(self) -> str:
        """The text that makes this distiller again: ``SoftLogits(temperature=4.0, alpha=0.9)``."""
        shared = [k for k in COMMON if getattr(self, k) != getattr(type(self), k)]
        values = {name: getattr(self, name) for name in [*self.settings, *shared]}
        name, is_function = self.address or type(self).__name__, self.settings == () and not shared
        return name if is_function or name.endswith(")") else written(name, values)

    settings = property(lambda self: settings(type(self)))  # that text can give

    # Whether the network to use is more than the student.
    deploys = property(lambda self: type(self).deploy is not Distiller.deploy)


def positive(**settings: float) -> None:
    """ValueError for a setting that is not above 0."""
    for name, value in settings.items():
        require(value > 0, f"{name}={value}: give a number above 0")


class Custom(Distiller):
    """A function ``(student, teacher, labels) -> scalar`` as a distiller; its attributes with the
    names of :class:`Distiller`'s, like ``weight`` and ``invariances``, are taken over."""

    def __init__(self, function, address: str | None = None):
        place = f"{function.__module__}:{getattr(function, '__qualname__', 'own')}"
        self.function, self.address = function, address or place
        for name in ("ce_weight", "weight", "zero_at_match", "invariances", "any_order", *COMMON):
            setattr(self, name, getattr(function, name, getattr(Distiller, name)))

    knowledge = property(lambda self: self.function)
    settings = ()


def own(given, address: str | None = None) -> Distiller:
    """A distiller from one's own distiller, its class, or function; else ValueError."""
    given = given() if isinstance(given, type) else given
    require(callable(given), f"{address or given!r} is no distiller: give a function of (student, "
                             "teacher, labels), or a Distiller")  # fmt: skip
    made = given if isinstance(given, Distiller) else Custom(given, address)
    made.address = address or made.address
    lost = ", ".join(f"self.{name}" for name in made.settings if not hasattr(made, name))
    require(not lost, f"{address or type(made)} doesn't keep what it is given: set {lost}")
    return made


class Sum(Distiller):
    """Several distillers at once: the weighted knowledge losses add up; the weights of the
    cross-entropy multiply, so who leaves it alone (weight 1) does not dilute another's choice."""

    contextual = True

    def __init__(self, *parts: Distiller):
        flat = [p for part in parts for p in (part.parts if isinstance(part, Sum) else [part])]
        self.parts = nnx.data(flat)
        self.speaker = next((i for i, part in enumerate(flat) if part.deploys), 0)  # SimKD
        joined = {"zero_at_match": all, "any_order": all, "teacher_training": any, "views": max,
                  "mixup": max, "pretrain": max, "ce_weight": math.prod}  # fmt: skip
        for name, join in joined.items():
            setattr(self, name, join(getattr(part, name) for part in flat))
        self.pretrain_ce = max((p.pretrain_ce for p in flat if p.pretrain), default=0.0)

    def prepare(self, student, teacher, rngs, labels):
        for part in self.parts:
            part.prepare(student, teacher, rngs, labels)

    def knowledge(self, student, teacher, labels, batch=None):
        progress, total = 1.0 if batch is None else batch.progress, 0.0
        for part in self.parts:
            weight = part.weights(progress)[1]
            if self.pretrain and not part.pretrain:
                weight = jnp.where(progress <= self.pretrain + 1e-4, 0.0, weight)
            total = total + weight * part(student, teacher, labels, batch)
        return total

    logits = property(lambda self: self.parts[self.speaker].logits)
    deploy = property(lambda self: self.parts[self.speaker].deploy)
    deploys = property(lambda self: self.parts[self.speaker].deploys)

    spec = property(lambda self: " + ".join(part.spec for part in self.parts))
    scheduled = lambda self, **settings: Sum(*(p.scheduled(**settings) for p in self.parts))


# To be given its padding in numbers.
Conv = functools.partial(nnx.Conv, conv_general_dilated=convolve, kernel_init=lecun_normal)


class Adapter(nnx.Module):
    """Bridges a student's feature map to the sides and channels of a teacher's.

    A 1x1 convolution where the sides agree, a strided one where the student's map is larger, a
    transposed one where it is smaller (HobbitLong/RepDistiller:models/util.py).

    Args:
        student, teacher: maps ``[n, h, w, c]``; only shapes are read. ValueError for sides that are
            no multiples of each other.
        norm, relu: whether batch norm and ReLU follow the convolution.
        always: False makes it the identity where the shapes agree.
        resize: False keeps the student's sides.
    """

    def __init__(self, student, teacher, rngs, *, norm=True, relu=False, always=True, resize=True):
        (h, w, c_in), (*sides, c_out) = student.shape[1:], teacher.shape[1:]
        height, width = sides if resize else (h, w)
        down, up = max(1, h // height), max(1, height // h)
        require((h * up, w * up) == (height * down, width * down),
                f"a feature map of {h}x{w} can't be adapted to {height}x{width}: choose networks "
                "whose maps are multiples of each other")  # fmt: skip
        self.activation = nnx.relu if relu else nnx.identity
        if not always and (h, w, c_in) == (height, width, c_out):
            self.conv = self.norm = nnx.identity
            return
        size = 2 * up if up > 1 else 1 + down * (down > 1)
        padding = "SAME" if up > 1 else [((size - 1) // 2, size // 2)] * 2
        kind, shape = nnx.ConvTranspose if up > 1 else Conv, (c_in, c_out, (size, size))
        self.conv = kind(*shape, (up * down,) * 2, padding=padding, use_bias=not norm,
                         kernel_init=lecun_normal, rngs=rngs)  # fmt: skip
        self.norm = BatchNorm(c_out, rngs=rngs) if norm else nnx.identity

    def __call__(self, x: Array) -> Array:
        return self.activation(self.norm(self.conv(x)))  # (n, H, W, C)


def adapters(student: Outputs, teacher: Outputs, rngs, maps="preacts", **settings):
    """An :class:`Adapter` for each pair of ``maps``; ValueError if numbers of stages differ."""
    stages_of(student, teacher)
    pairs = zip(getattr(student, maps), getattr(teacher, maps), strict=True)
    return nnx.data([Adapter(s, t, rngs, **settings) for s, t in pairs])


def convolutions(widths, sizes, activation, rngs, norm=True) -> nnx.Sequential:
    """Convolutions from each width to the next, each with batch norm or not, and activation."""
    layers = []
    for c_in, c_out, size in zip(widths[:-1], widths[1:], sizes, strict=True):
        conv = Conv(c_in, c_out, (size, size), padding=size // 2, use_bias=not norm, rngs=rngs)
        layers += [conv, BatchNorm(c_out, rngs=rngs), activation] if norm else [conv, activation]
    return nnx.Sequential(*layers)


def stages_of(student: Outputs, teacher: Outputs, chosen=None) -> list[tuple[Array, Array]]:
    """Both feature maps of the chosen stages, counted from 1, or of all. ValueError for a stage
    that is not there, and for networks with different numbers of stages."""
    mine, others = len(student.features) - 1, len(teacher.features) - 1  # features[0]: the stem
    require(mine == others, f"the student has {mine} stages and the teacher {others}: this method "
                            "needs as many in both")  # fmt: skip
    stages, there = tuple(chosen or range(1, mine + 1)), range(1, mine + 1)
    require({*stages} <= {*there}, f"{stages=}: these networks have stages 1 to {mine}")
    return [(student.features[i], teacher.features[i]) for i in stages]


def halving(losses) -> Array:
    """Sum of the stages' losses: the last one weighs 1, the one before 1/2, and so on."""
    return functools.reduce(lambda total, loss: total / 2 + loss, losses)


def mean_square(student: Array, teacher: Array) -> Array:
    """Mean squared difference over all elements of two arrays of one shape: a scalar."""
    return ((student.astype(jnp.float32) - teacher) ** 2).mean()


def l2_normalise(vector: Array) -> Array:
    """Unit length along the last axis; zero vectors stay zero and get a zero gradient."""
    square = (vector**2).sum(-1, keepdims=True)
    long = square > 1e-24
    return jnp.where(long, vector * jax.lax.rsqrt(jnp.where(long, square, 1.0)), 0.0)


def safe_sqrt(square: Array) -> Array:
    """Square root whose gradient at 0 is 0 instead of infinite."""
    above = square > 0
    return jnp.where(above, jnp.sqrt(jnp.where(above, square, 1.0)), 0.0)


def pool_evenly(x: Array, height: int, width: int | None = None) -> Array:
    """Means of a map ``[n, h, w, c]`` over boxes, ``[n, height, width or height, c]``; where sides
    don't divide, neighbouring boxes share a row or column."""
    (n, h, w, c), width = x.shape, width or height
    if h % height == w % width == 0:
        return x.reshape(n, height, h // height, width, w // width, c).mean((2, 4))
    for axis, side in ((1, height), (2, width)):
        size = x.shape[axis]
        ends = [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
        x = jnp.stack([jax.lax.slice_in_dim(x, *e, axis=axis).mean(axis) for e in ends], axis)
    return x


def same_sides(a: Array, b: Array) -> list[Array]:
    """Average-pool the larger of two feature maps ``[n, h, w, c]`` to the smaller one's sides;
    ValueError if a side is no multiple of the other's."""
    height, width = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
    for x in (a, b):
        require(x.shape[1] % height == x.shape[2] % width == 0,
                f"a feature map of {x.shape[1:3]} can't be pooled to {height, width}: choose "
                "networks whose maps are multiples of each other, or other stages")  # fmt: skip
    return [pool_evenly(x, height, width) for x in (a, b)]
