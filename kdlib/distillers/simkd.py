"""Simple distillation: learn the teacher's last map, then use the teacher's own classifier."""

import jax
from flax import nnx

from kdlib.distillers.base import Distiller, pool_to_smaller
from kdlib.distillers.fitnet import hint_loss
from kdlib.distillers.ft import convolutions


class Reused(nnx.Module):
    """A student whose last map goes through a projector into a copy of the teacher's classifier."""

    def __init__(self, student: nnx.Module, projector: nnx.Module, classifier: nnx.Linear):
        self.student, self.projector = student, projector
        self.classifier = nnx.clone(classifier)

    def __call__(self, images: jax.Array):
        outputs = self.student(images)
        embedding = self.projector(outputs.features[-1]).mean((1, 2))  # (n, d of the teacher)
        return outputs._replace(logits=self.classifier(embedding), embedding=embedding)


class SimKD(Distiller):
    """``mean (projector(f_s) − f_t)²`` on the last maps, the larger one pooled, and no labels.

    What predicts is the student's body, the projector and the teacher's classifier: see
    :meth:`deploy`, and count the parameters of all three. ValueError if the teacher shows none.

    Args:
        factor: by how much the projector's middle is narrower than the teacher's map, from 1.

    Reference:
        Chen et al., CVPR 2022, arXiv:2203.14001; DefangChen/SimKD:models/util.py, helper/loops.py.
    """

    ce_weight = 0.0
    zero_at_match = False

    def __init__(self, factor: int = 2):
        if not factor >= 1:
            raise ValueError(f"factor={factor}: give a whole number from 1, usually 2")
        self.factor = factor

    def prepare(self, student, teacher, rngs, labels):
        if not teacher.head:
            raise ValueError("SimKD needs the teacher's classifier: choose a network that shows it")
        c_s, c_t = student.features[-1].shape[3], teacher.features[-1].shape[3]
        middle = max(1, c_t // self.factor)
        self.projector = convolutions((c_s, middle, middle, c_t), (1, 3, 1), nnx.relu, rngs)

    def knowledge(self, student, teacher, labels):
        s, t = pool_to_smaller(self.projector(student.features[-1]), teacher.features[-1])
        return hint_loss(student=s, teacher=t)

    def logits(self, student, teacher):
        projector = nnx.clone(self.projector)  # a prediction must not move its batch statistics
        embedding = projector(student.features[-1]).mean((1, 2))
        return embedding @ teacher.head[0] + teacher.head[1]

    def deploy(self, student, teacher):
        return Reused(student, self.projector, teacher.classifier)
