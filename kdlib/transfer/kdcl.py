"""Collaborative learning: peers see different views and learn from one target made of them all."""

import jax
import jax.numpy as jnp

from kdlib.distillers import soft_logit_loss
from kdlib.distillers.base import positive, require
from kdlib.transfer.supervised import Loss, Setup, Supervised, cross_entropy

TARGETS = ("mean", "naive", "linear", "minlogit")


def collaborative_target(*, logits: jax.Array, labels: jax.Array, target: str) -> jax.Array:
    """The teacher that several networks make together.

    Args:
        logits: ``[networks, n, k]``.
        labels: int32 ``[n]``.
        target: ``"mean"`` of the logits; ``"naive"``: those of the network with the lowest
            cross-entropy; ``"linear"``: the convex combination of lowest cross-entropy by 200 steps
            of gradient descent; ``"minlogit"``: per class the smallest of the logits after
            subtracting the true class's. All but the mean are from memory of the paper: unverified.
            Its fifth way, weights from a validation set, is left out.

    Returns:
        ``[n, k]``.

    Reference:
        Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020;
        mean: shaoeric/Online-Knowledge-Distillation-via-Collaborative-Learning:train.py.
    """
    if target == "mean":
        return logits.mean(0)
    if target == "naive":
        return logits[jnp.stack([cross_entropy(z, labels) for z in logits]).argmin()]
    if target == "minlogit":
        return (logits - jnp.take_along_axis(logits, labels[None, :, None], axis=-1)).min(0)
    mixed = lambda shares: (shares[:, None, None] * logits).sum(0)
    slope = jax.grad(lambda free: cross_entropy(mixed(jax.nn.softmax(free)), labels))

    def step(_, free_and_seen):  # Adagrad's, since a slope is as large as logits differ
        free, seen = free_and_seen
        seen += ((along := slope(free)) ** 2).sum()
        return free - along / jnp.sqrt(seen + 1e-12), seen

    start = jnp.zeros(len(logits)), jnp.zeros(())
    return mixed(jax.nn.softmax(jax.lax.fori_loop(0, 200, step, start)[0]))


class KDCL(Supervised):
    """``(1 − alpha) · CE_i + alpha · T² · KL(target ‖ p_i)`` for every network.

    Args:
        target: how the target is made, see :func:`collaborative_target`.
        peers: names of the other networks; None is one like the student.
        temperature, alpha: T, and the share of the divergence.

    Raises:
        ValueError: an unknown target, or a value out of range.

    Reference:
        As :func:`collaborative_target`. T 4 and alpha 0.5 are the re-implementation's; the paper
        has T 2 and weight 1 (unverified).
    """

    family = "Online"

    def __init__(self, target: str = "mean", peers: tuple[str | None, ...] = (None,),
                 temperature: float = 4.0, alpha: float = 0.5):  # fmt: skip
        require(target in TARGETS, f"target={target!r}: give one of {', '.join(TARGETS)}")
        require(peers and 0 <= alpha <= 1, f"{peers=}, {alpha=}: give a peer, a share from 0 to 1")
        positive(temperature=temperature)
        self.target, self.peers, self.passes = target, tuple(peers), (len(peers) + 1, 0)
        self.temperature, self.alpha = float(temperature), float(alpha)

    def trained(self, setup: Setup):
        return {f"peer_{i}": setup.peer(i, name) for i, name in enumerate(self.peers, 1)}

    def extra(self, view, pictures, index, key):
        return [view(jax.random.fold_in(key, i), index) for i in range(1, len(self.peers) + 1)]

    def loss(self, trained, frozen, batch):
        peers = (getattr(trained, f"peer_{i}") for i in range(1, len(self.peers) + 1))
        pairs = zip([trained.student, *peers], [batch.images, *batch.extra], strict=True)
        logits = jnp.stack([network(images).logits for network, images in pairs])
        fixed = jax.lax.stop_gradient(logits)
        target = collaborative_target(logits=fixed, labels=batch.labels, target=self.target)
        ces = [cross_entropy(z, batch.labels) for z in logits]
        teacher = {"teacher_logits": target, "temperature": self.temperature}
        lessons = [soft_logit_loss(student_logits=z, **teacher) for z in logits]
        parts = {"cross_entropy": ces[0], "knowledge": lessons[0]}
        return Loss((1 - self.alpha) * sum(ces), self.alpha * sum(lessons), parts, logits[0])
