"""Logit regression: the student's scores before the softmax should be the teacher's."""

from kdlib.distillers.base import Distiller, mean_square


class LogitMSE(Distiller):
    """``CE + beta · mean over pictures and classes (s − t)²``, of the logits ``[n, k]``.

    Args:
        beta: weight of the knowledge.

    Reference:
        Ba, Caruana, NeurIPS 2014, arXiv:1312.6184; beta as in
        AberHu/Knowledge-Distillation-Zoo:kd_losses/logits.py.
    """

    def __init__(self, beta: float = 0.1):
        self.beta = self.weight = float(beta)

    def knowledge(self, student, teacher, labels):
        return mean_square(student.logits, teacher.logits)
