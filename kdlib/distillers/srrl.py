"""Softmax regression representation learning: features that the teacher's classifier can read."""

from kdlib.distillers.base import Adapter, Distiller, mean_square, require


class SRRL(Distiller):
    """``CE + alpha · mean (pool u − e_t)² + beta · mean (head_t(pool u) − logits_t)²``.

    u is a 1x1 convolution with batch norm and ReLU of the student's last map; the gradient passes
    through the teacher's fixed classifier. ValueError if the teacher shows none.

    Args:
        alpha, beta: weights of matching the embedding, and the logits.

    Reference:
        Yang et al., ICLR 2021; jingyang2017/KD_SRRL:distiller_zoo/AIN.py,
        train_imagenet_distillation.py.
    """

    zero_at_match = False

    def __init__(self, alpha: float = 1.0, beta: float = 1.0):
        self.alpha, self.beta = float(alpha), float(beta)

    def prepare(self, student, teacher, rngs, labels):
        require(teacher.head, "SRRL needs the teacher's classifier: choose a network that shows it")
        maps = student.features[-1], teacher.features[-1]
        self.connector = Adapter(*maps, rngs, relu=True, resize=False)  # both are pooled

    def knowledge(self, student, teacher, labels):
        embedding = self.connector(student.features[-1]).mean((1, 2))  # (n, d)
        logits = embedding @ teacher.head[0] + teacher.head[1]  # (n, k)
        match = mean_square(embedding, teacher.embedding)
        return self.alpha * match + self.beta * mean_square(logits, teacher.logits)
