"""Simple distillation: learn the teacher's last map, then use the teacher's own classifier."""

from flax import nnx

from kdlib.distillers.base import Distiller, convolutions, mean_square, require, same_sides


class Reused(nnx.Module):
    """A student whose last map goes through a projector into a copy of the teacher's classifier; a
    classifier of the student's own is left out."""

    def __init__(self, student: nnx.Module, projector: nnx.Module, classifier: nnx.Linear):
        if width := getattr(getattr(student, "classifier", None), "in_features", 0):
            student = nnx.clone(student)
            none = {"kernel_init": nnx.initializers.zeros, "rngs": nnx.Rngs(0)}
            student.classifier = nnx.Linear(width, 0, **none)
        self.student, self.projector, self.classifier = student, projector, nnx.clone(classifier)

    def __call__(self, images):
        outputs = self.student(images)
        embedding = self.projector(outputs.features[-1]).mean((1, 2))  # (n, d of the teacher)
        return outputs._replace(logits=self.classifier(embedding), embedding=embedding, head=())


class SimKD(Distiller):
    """``mean (projector(f_s) − f_t)²`` on the last maps, the larger one pooled, no labels.

    What predicts is the student's body, the projector and the teacher's classifier: see
    :meth:`deploy`, and count the parameters of all three. ValueError if the teacher shows none; it
    has to hold it as ``classifier``.

    Args:
        factor: by how much the projector's middle is narrower than the teacher's map, from 1.

    Reference:
        Chen et al., CVPR 2022, arXiv:2203.14001; DefangChen/SimKD:models/util.py, helper/loops.py.
        Differs from the latter, which pools a larger student's map before the projector.
    """

    ce_weight, zero_at_match = 0.0, False

    def __init__(self, factor: int = 2):
        require(factor >= 1, f"{factor=}: give a whole number from 1, usually 2")
        self.factor = factor

    def prepare(self, student, teacher, rngs, labels):
        require(teacher.head, "SimKD needs the teacher's classifier: choose one that shows it")
        c_s, c_t = (x.features[-1].shape[3] for x in (student, teacher))
        widths = c_s, *(max(1, c_t // self.factor),) * 2, c_t
        self.projector = convolutions(widths, (1, 3, 1), nnx.relu, rngs)

    def knowledge(self, student, teacher, labels):
        return mean_square(*same_sides(self.projector(student.features[-1]), teacher.features[-1]))

    def logits(self, student, teacher):
        projector = nnx.clone(self.projector)  # a prediction must not move its batch statistics
        return projector(student.features[-1]).mean((1, 2)) @ teacher.head[0] + teacher.head[1]

    def deploy(self, student, teacher):
        return Reused(student, self.projector, teacher.classifier)
