"""Teacher-free distillation, the form with a teacher: an earlier copy of the same network."""

from kdlib.distillers.base import Distiller
from kdlib.distillers.soft_logits import soft_logit_loss


class TfKDSelf(Distiller):
    """``(1 − alpha) · CE + alpha · multiplier · T² · mean of KL``, the mean also over the classes.

    Args:
        alpha, multiplier, temperature: 0.95, 50 and 6 in the authors' ResNet-18 run on CIFAR-100.
            Divided by k classes, the divergence weighs ``alpha · multiplier / k``.

    Raises:
        ValueError: a value out of range.

    Reference:
        Yuan et al. 2020, arXiv:1909.11723;
        yuanli2333/Teacher-free-Knowledge-Distillation:my_loss_function.py.
    """

    invariances = ("constant per row of logits",)

    def __init__(self, alpha: float = 0.95, multiplier: float = 50.0, temperature: float = 6.0):
        if not 0 <= alpha <= 1 or not temperature > 0:
            raise ValueError(f"TfKDSelf({alpha=}, {temperature=}): give alpha from 0 to 1 and a "
                             "temperature above 0")  # fmt: skip
        self.alpha, self.multiplier, self.temperature = alpha, multiplier, float(temperature)
        self.ce_weight, self.weight = 1 - alpha, alpha * multiplier

    def knowledge(self, student, teacher, labels):
        divergence = soft_logit_loss(
            student_logits=student.logits, teacher_logits=teacher.logits,
            temperature=self.temperature,
        )  # fmt: skip
        return divergence / student.logits.shape[-1]
