"""ONE: several last stages on shared lower ones, and a gate that mixes them into a teacher."""

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.distillers import soft_logit_loss
from kdlib.distillers.base import BatchNorm, positive, require
from kdlib.transfer.supervised import Loss, Setup, Supervised, cross_entropy, shows


class Gate(nnx.Module):
    """Shares of the branches per picture: softmax(ReLU(BN(FC(pooled shared feature))))."""

    def __init__(self, width: int, branches: int, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, branches, rngs=rngs)
        self.norm = BatchNorm(branches, rngs=rngs)

    def __call__(self, feature: jax.Array) -> jax.Array:
        return nnx.softmax(nnx.relu(self.norm(self.linear(feature.mean((1, 2))))))  # (n, branches)


class Branch(nnx.Module):
    """Another network's last stage and classifier."""

    def __init__(self, network: nnx.Module):
        self.stage, self.classifier = network.stages[-1], network.classifier

    def __call__(self, shared: jax.Array) -> jax.Array:
        return self.classifier(self.stage(shared)[0].mean((1, 2)))  # (n, k)


class ONE(Supervised):
    """``Σ CE_i + CE_gated + w · Σ T² · KL(gated ‖ branch_i)``: the ensemble teaches its branches.

    The student's stages but the last are shared; its own last stage is the first branch and what
    is used afterwards. ``w = exp(−5 (1 − progress/ramp)²)`` until ``ramp`` of the run, then 1. The
    student has to be a network of :mod:`kdlib.models`.

    Args:
        branches: how many last stages, the student's included; at least 2.
        temperature: T of the divergence.
        ramp: share of the run until the divergence has its full weight (80 of 300 epochs).

    Reference:
        Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018,
        arXiv:1806.04606; Lan1991Xu/ONE_NeurIPS2018:cifar_one.py, loss/kl_loss.py, utils/ramps.py.
    """

    family = "Online"

    def __init__(self, branches: int = 3, temperature: float = 3.0, ramp: float = 80 / 300):
        require(branches >= 2, f"{branches=}: give at least 2 branches")
        positive(temperature=temperature, ramp=ramp)
        self.branches, self.temperature, self.ramp = branches, float(temperature), float(ramp)

    def trained(self, setup: Setup):
        shown = shows(setup.student, setup.image_shape)
        branches = {f"branch_{i}": Branch(setup.peer(i)) for i in range(1, self.branches)}
        return branches | {"gate": Gate(shown.features[-2].shape[-1], self.branches, setup.rngs)}

    def loss(self, trained, frozen, batch):
        student = trained.student(batch.images)
        shared = student.features[-2]
        branches = [getattr(trained, f"branch_{i}") for i in range(1, self.branches)]
        logits = [student.logits, *(branch(shared) for branch in branches)]
        gated = (trained.gate(shared).T[..., None] * jnp.stack(logits)).sum(0)  # (n, k)
        ces = [cross_entropy(z, batch.labels) for z in logits]
        gated_ce = cross_entropy(gated, batch.labels)
        teacher = {"teacher_logits": jax.lax.stop_gradient(gated), "temperature": self.temperature}
        lesson = sum(soft_logit_loss(student_logits=z, **teacher) for z in logits)
        ramp = jnp.exp(-5 * (1 - jnp.minimum(batch.progress / self.ramp, 1)) ** 2)
        parts = {"cross_entropy": ces[0], "knowledge": lesson, "gated_cross_entropy": gated_ce}
        return Loss(sum(ces) + gated_ce, ramp * lesson, parts, logits[0])
