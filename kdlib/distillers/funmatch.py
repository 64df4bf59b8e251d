"""Function matching: no labels, one hard view that teacher and student both see, patience."""

from kdlib.distillers.base import Distiller
from kdlib.distillers.soft_logits import soft_logit_loss


class FunMatch(Distiller):
    """``T² · KL`` alone, on strongly changed and mixed pictures that both networks see alike.

    Args:
        temperature: T, 1 to 10 in the paper.
        mixup: parameter of the Beta distribution pictures are mixed by, above 0.

    Raises:
        ValueError: a temperature or parameter that is not above 0.

    Reference:
        Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022,
        arXiv:2106.05237; google-research/big_vision:trainers/proj/distill/distill.py. The schedule
        there is very long; the strong view here is :func:`kdlib.data.strong`.
    """

    ce_weight = 0.0
    invariances = ("constant per row of logits",)

    def __init__(self, temperature: float = 2.0, mixup: float = 1.0):
        if not temperature > 0 or not mixup > 0:
            raise ValueError(f"FunMatch({temperature=}, {mixup=}): give numbers above 0")
        self.temperature, self.mixup = float(temperature), float(mixup)

    def knowledge(self, student, teacher, labels):
        return soft_logit_loss(
            student_logits=student.logits, teacher_logits=teacher.logits,
            temperature=self.temperature,
        )  # fmt: skip
