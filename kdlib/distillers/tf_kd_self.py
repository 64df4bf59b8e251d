"""Teacher-free distillation, the form with a teacher: an earlier copy of the same network."""

from kdlib.distillers.base import positive, require
from kdlib.distillers.soft_logits import SoftLogits


class TfKDSelf(SoftLogits):
    """``(1 − alpha) · CE + alpha · multiplier · T² · mean of KL``, the mean also over the classes.

    Args:
        alpha, multiplier, temperature: 0.95, 50 and 6 in the authors' ResNet-18 run on CIFAR-100.
            Divided by k classes, the divergence weighs ``alpha · multiplier / k``. ValueError for
            an alpha out of 0..1 or a temperature that is not above 0.

    Reference:
        Yuan et al. 2020, arXiv:1909.11723;
        yuanli2333/Teacher-free-Knowledge-Distillation:my_loss_function.py.
    """

    def __init__(self, alpha: float = 0.95, multiplier: float = 50.0, temperature: float = 6.0):
        positive(temperature=temperature)
        require(0 <= alpha <= 1, f"{alpha=}: give a share, 0 to 1")
        self.alpha, self.multiplier, self.temperature = alpha, multiplier, float(temperature)
        self.ce_weight, self.weight = 1 - alpha, alpha * multiplier

    def knowledge(self, student, teacher, labels):
        return super().knowledge(student, teacher, labels) / student.logits.shape[-1]
