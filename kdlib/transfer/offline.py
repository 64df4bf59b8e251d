"""Offline transfer: a pretrained teacher that no longer changes."""

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.data import Batch, mix, strong
from kdlib.distillers import Distiller, own
from kdlib.transfer.supervised import Loss, Setup, Supervised, cross_entropy, require, shows


def prepared(distiller, setup: Setup, student, teacher, offline=False, deploys=True) -> Distiller:
    """A copy of a distiller with variables for these two networks.

    Raises ValueError for one that needs views that only ``offline`` transfer makes, or a teacher
    in training mode or a network after training that this one doesn't leave (``deploys``).
    """
    seen = offline or (distiller.views == 1 and not distiller.mixup)
    leaves = deploys or not (distiller.deploys or distiller.teacher_training)
    require(seen and leaves, f"{distiller.spec} needs a frozen teacher: give --transfer Offline")
    distiller = nnx.clone(distiller)
    shown = (shows(network, setup.image_shape) for network in (student, teacher))
    distiller.prepare(*shown, setup.rngs, setup.labels)
    return distiller


def taught(distiller: Distiller, student, teacher, batch: Batch) -> Loss:
    """The loss of a student that learns from labels and, by a distiller, from a teacher."""
    logits = distiller.logits(student, jax.lax.stop_gradient(teacher))
    ce = cross_entropy(logits, batch.labels)
    knowledge = distiller(student, teacher, batch.labels, batch)
    ce_weight, weight = distiller.weights(batch.progress)
    parts = {"cross_entropy": ce, "knowledge": knowledge}
    return Loss(ce_weight * ce, weight * knowledge, parts, logits)


class Offline(Supervised):
    """The student learns from labels and from a frozen teacher in evaluation mode.

    Both see the same augmented pictures; the teacher normalises them with its own statistics.

    Args:
        teacher: a trained network.
        distiller: what is taught: a distiller, its class, or a function as of :func:`own`.
    """

    family = "Offline"

    def __init__(self, teacher: nnx.Module, distiller: Distiller):
        self.teacher, self.distiller = teacher, (distiller := own(distiller))
        self.frozen_training = distiller.teacher_training
        self.views, self.passes = distiller.views, (distiller.views, distiller.views)

    spec = property(lambda self: self.distiller.spec)

    def trained(self, setup: Setup) -> dict[str, nnx.Module]:
        return {"distiller": prepared(self.distiller, setup, setup.student, self.teacher, True)}

    def frozen(self) -> dict[str, nnx.Module]:
        return {"teacher": self.teacher}

    def batch(self, view, pictures, index, key, progress, classes) -> Batch:
        images, extra = view(key, index), None
        if alpha := self.distiller.mixup:
            images = strong(jax.random.fold_in(key, 21), images)
            nothing = jnp.zeros((len(index), 1))  # labels are not looked at
            images, _ = mix(jax.random.fold_in(key, 22), images, nothing, alpha=alpha, cut=False)
        if self.distiller.views == 2:
            extra = strong(jax.random.fold_in(key, 23), view(jax.random.fold_in(key, 24), index))
        return Batch(images, pictures.labels[index], index, progress, key, extra=extra)

    def loss(self, trained, frozen, batch) -> Loss:
        student, teacher = trained.student(batch.images), frozen.teacher(batch.images)
        if (extra := batch.extra) is not None:
            batch = batch._replace(extra=(trained.student(extra), frozen.teacher(extra)))
        return taught(trained.distiller, student, teacher, batch)

    def network(self, trained, frozen) -> nnx.Module:
        return trained.distiller.deploy(trained.student, frozen.teacher)
