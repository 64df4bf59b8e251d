"""Offline transfer: a pretrained teacher that no longer changes."""

from flax import nnx

from kdlib.distillers import Distiller
from kdlib.transfer.supervised import Batch, Loss, Supervised, cross_entropy


class Offline(Supervised):
    """The student learns from labels and from a frozen teacher in evaluation mode.

    Both see the same augmented pictures; the teacher normalises them with its own statistics.

    Args:
        teacher: a trained network.
        distiller: what is taught.
    """

    name = "Offline"

    def __init__(self, teacher: nnx.Module, distiller: Distiller):
        self.teacher, self.distiller = teacher, distiller

    @property
    def spec(self) -> str:
        return self.distiller.spec

    def trained(self) -> dict[str, nnx.Module]:
        return {"distiller": self.distiller}

    def frozen(self) -> dict[str, nnx.Module]:
        return {"teacher": self.teacher}

    def loss(self, trained: nnx.Module, frozen: nnx.Module, batch: Batch) -> Loss:
        student = trained.student(batch.images)
        teacher = frozen.teacher(batch.images)
        ce = cross_entropy(student.logits, batch.labels)
        knowledge = trained.distiller(student, teacher, batch.labels)
        total = trained.distiller.total(ce, knowledge)
        return Loss(total, {"cross_entropy": ce, "knowledge": knowledge}, student)
