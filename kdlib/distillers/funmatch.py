"""Function matching: no labels, one hard view that teacher and student both see, patience."""

from kdlib.distillers.base import positive
from kdlib.distillers.soft_logits import SoftLogits


class FunMatch(SoftLogits):
    """``T² · KL`` alone, on strongly changed and mixed pictures that both networks see alike.

    Args:
        temperature: T, 1 to 10 in the paper; above 0 (ValueError else).
        mixup: parameter of the Beta distribution pictures are mixed by, above 0 too.

    Reference:
        Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022,
        arXiv:2106.05237; google-research/big_vision:trainers/proj/distill/distill.py. The schedule
        there is very long; the strong view here is :func:`kdlib.data.strong`.
    """

    ce_weight = 0.0

    def __init__(self, temperature: float = 2.0, mixup: float = 1.0):
        positive(temperature=temperature, mixup=mixup)
        self.temperature, self.mixup = float(temperature), float(mixup)
