"""Be your own teacher: the last exit of a network teaches exits at its earlier stages."""

import jax
from flax import nnx

from kdlib.distillers import soft_logit_loss
from kdlib.distillers.base import Adapter, positive, require
from kdlib.transfer.supervised import Loss, Setup, Supervised, cross_entropy, shows


class Exit(nnx.Module):
    """A bottleneck that gives an early feature map the last one's shape, and a classifier."""

    def __init__(self, feature, last, classes: int, rngs: nnx.Rngs):
        self.bottleneck = Adapter(feature, last, rngs, relu=True)
        self.classifier = nnx.Linear(last.shape[-1], classes, rngs=rngs)

    def __call__(self, feature: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.bottleneck(feature)  # (n, h, w, c) of the last stage
        return x, self.classifier(x.mean((1, 2)))


class BYOT(Supervised):
    """``(1 − alpha) Σ_i CE_i + Σ_{i<L} alpha · T² · KL(z_L ‖ z_i) + beta · mean (F_i − F_L)²``.

    ``alpha=0, beta=0`` is deep supervision: the ablation that says how much is distillation.

    Args:
        alpha: share of the divergence from the last exit.
        temperature: T of it.
        beta: weight of the distance between an exit's feature map and the last.

    Raises:
        ValueError: a value out of range.

    Reference:
        Zhang et al., "Be Your Own Teacher", ICCV 2019, arXiv:1905.08094;
        luanyunteng/pytorch-be-your-own-teacher:train.py; beta with the mean: winycg/Self-KD-Lib.
    """

    family = "SelfDistillation"

    def __init__(self, alpha: float = 0.1, temperature: float = 3.0, beta: float = 0.05):
        require(0 <= alpha <= 1 and beta >= 0, f"{alpha=}, {beta=}: give alpha 0 to 1, beta >= 0")
        positive(temperature=temperature)
        self.alpha, self.temperature, self.beta = alpha, float(temperature), beta

    def trained(self, setup: Setup):
        _, *maps, end = shows(setup.student, setup.image_shape).features
        return {f"exit_{i}": Exit(f, end, setup.classes, setup.rngs) for i, f in enumerate(maps, 1)}

    def loss(self, trained, frozen, batch):
        student = trained.student(batch.images)
        last = jax.lax.stop_gradient(student)
        ces, lesson = [cross_entropy(student.logits, batch.labels)], 0.0
        for i, feature in enumerate(student.features[1:-1], 1):
            early, logits = getattr(trained, f"exit_{i}")(feature)
            ces.append(cross_entropy(logits, batch.labels))
            pair = {"student_logits": logits, "teacher_logits": last.logits}
            lesson += self.alpha * soft_logit_loss(**pair, temperature=self.temperature)
            lesson += self.beta * ((early - last.features[-1]) ** 2).mean()
        parts = {"cross_entropy": ces[0], "knowledge": lesson}
        return Loss((1 - self.alpha) * sum(ces), lesson, parts, student.logits)
