"""Nobody teaches: the student learns from the labels alone. The form every transfer follows."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from kdlib.data import Batch, Pictures, mix
from kdlib.models import Outputs
from kdlib.names import require, settings, written


class Loss(NamedTuple):
    """What a transfer returns.

    ``task`` and ``knowledge`` are weighted scalars whose sum is minimised; ``parts`` are scalars to
    record; ``logits`` ``[n, k]`` are what the trained network predicts.
    """

    task: jax.Array
    knowledge: jax.Array
    parts: dict[str, jax.Array]
    logits: jax.Array

    total = property(lambda self: self.task + self.knowledge)


class Setup(NamedTuple):
    """What a transfer builds its modules from, for one seed.

    ``student`` is the network to train, ``network(name, seed)`` makes another (None: one like the
    student), ``labels`` are the training set's, ``image_shape`` is ``(h, w, c)``.
    """

    seed: int
    student: nnx.Module
    network: Callable[[str | None, int], nnx.Module]
    labels: jax.Array
    classes: int
    image_shape: tuple[int, int, int]

    # Random streams for whatever is not a network; not those of the student's weights.
    rngs = property(lambda self: nnx.Rngs(1_000_003 + self.seed))

    def peer(self, number: int, name: str | None = None) -> nnx.Module:
        """Another network to train, with initial weights of its own."""
        return self.network(name, self.seed + 1000 * number)


_forward = jax.jit(lambda graph, state, images: nnx.merge(graph, state)(images), static_argnums=0)


def shows(network: nnx.Module, image_shape: tuple[int, int, int]) -> Outputs:
    """Shapes of what a network shows for two pictures; a network's like is traced once."""
    pictures = jax.ShapeDtypeStruct((2, *image_shape), jnp.uint8)
    return _forward.eval_shape(*nnx.split(network), pictures)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats of logits ``[n, k]`` with int32 ``[n]`` or shares ``[n, k]``."""
    logits = logits.astype(jnp.float32)  # a network of one's own may show bfloat16
    if labels.ndim == 1:
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return optax.losses.softmax_cross_entropy(logits, labels).mean()


class Supervised:
    """Plain training with cross-entropy: a teacher's own training, and every student's baseline.

    A transfer says which modules train beside the student (:meth:`trained`) and which stay as they
    are (:meth:`frozen`), what a batch is, and the loss of all that. The baselines that comparisons
    tend to leave out are settings of this one.

    Args:
        smoothing: share of every label given to all classes alike (label smoothing).
        mixup, cutmix: parameter of the Beta distribution pictures are mixed by; 0 is off.
        average: decay of an exponential moving average of the weights, used in place of the last.
        longer: factor on the epochs: plain training with the compute of a costlier method.

    Raises:
        ValueError: a setting out of its range.

    Reference:
        Szegedy et al., CVPR 2016, arXiv:1512.00567 (label smoothing); for mixup and CutMix see
        :func:`kdlib.data.mix`.
    """

    family = "Supervised"
    generations = 1  # how often the epochs of the recipe are run through
    turns: tuple[tuple[str, ...], ...] = ()  # modules updated one group after the other
    still: tuple[str, ...] = ("average",)  # modules that no gradient (or weight decay) moves
    views = 1  # random views of a picture in an epoch
    passes = (1, 0)  # forward passes of networks that train, and of frozen ones, per picture
    smoothing = mixup = cutmix = average = 0.0  # off, also in the transfers that follow this form
    longer = 1.0
    frozen_training = False  # whether frozen modules normalise by the batch's statistics

    def __init__(self, smoothing: float = 0.0, mixup: float = 0.0, cutmix: float = 0.0,
                 average: float = 0.0, longer: float = 1.0):  # fmt: skip
        known = min(smoothing, average, mixup, cutmix) >= 0 and max(smoothing, average) < 1
        require(known and longer > 0, f"{smoothing=}, {mixup=}, {cutmix=}, {average=}, {longer=}: "
                "give shares below 1, none below 0, and longer above 0")  # fmt: skip
        self.smoothing, self.mixup, self.cutmix = smoothing, mixup, cutmix
        self.average, self.longer = average, longer

    name = property(lambda self: type(self).__name__)

    @property
    def spec(self) -> str:
        """The text that makes this transfer again; only what differs from the defaults."""
        values = {name: getattr(self, name) for name in settings(type(self))}
        changed = {k: v for k, v in values.items() if v != settings(type(self))[k].default}
        plain = "cross-entropy" if type(self) is Supervised else self.name
        return written(self.name, changed) if changed else plain

    def trained(self, setup: Setup) -> dict[str, nnx.Module]:
        """Modules that train beside the student, fresh for a seed."""
        return {"average": nnx.clone(setup.student)} if self.average else {}

    def frozen(self) -> dict[str, nnx.Module]:
        """Modules that never change."""
        return {}

    def batch(self, view: Callable, pictures: Pictures, index, key, progress, classes) -> Batch:
        """The batch at ``index``; ``view(key, index)`` makes a randomly shifted, mirrored view."""
        images, labels, targets = view(key, index), pictures.labels[index], None
        if self.smoothing or self.mixup or self.cutmix:
            targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), self.smoothing)
        for alpha, cut, fold in ((self.mixup, False, 11), (self.cutmix, True, 12)):
            if alpha:
                mix_key = jax.random.fold_in(key, fold)
                images, targets = mix(mix_key, images, targets, alpha=alpha, cut=cut)
        extra = self.extra(view, pictures, index, key)
        return Batch(images, labels, index, progress, key, targets, extra)

    def extra(self, view: Callable, pictures: Pictures, index, key):
        """What a batch holds as ``extra``: another view ``[n, h, w, c]``, a list of them, or None.
        Arguments as in :meth:`batch`."""

    def loss(self, trained: nnx.Module, frozen: nnx.Module, batch: Batch) -> Loss:
        """The loss of one batch.

        Args:
            trained: holds ``student`` and what :meth:`trained` named, in training mode.
            frozen: holds what :meth:`frozen` named, in evaluation mode.
        """
        logits = trained.student(batch.images).logits
        ce = cross_entropy(logits, batch.labels if batch.targets is None else batch.targets)
        return Loss(ce, jnp.zeros(()), {"cross_entropy": ce}, logits)

    def after_step(self, params: dict, rest: dict, step: jax.Array) -> tuple[dict, dict]:
        """Changes to the state that are no gradient steps; both are dicts by module."""
        decay = jnp.minimum(self.average, (1 + step) / (10 + step))  # a shorter memory at first
        is_float = lambda x: jnp.issubdtype(x.dtype, jnp.inexact)  # and no key of a dropout
        mix = lambda average, new: decay * average + (1 - decay) * new if is_float(new) else new
        move = lambda t: t | {k: jax.tree.map(mix, t[k], t["student"]) for k in t if k == "average"}
        return move(params), move(rest)

    def network(self, trained: nnx.Module, frozen: nnx.Module) -> nnx.Module:
        """The network to test and to use: the student, unless the method says otherwise."""
        return getattr(trained, "average", trained.student)
