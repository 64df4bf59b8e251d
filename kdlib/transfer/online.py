"""Online transfer as in the original cookbook: the teacher is trained at the same time."""

from kdlib.distillers import Distiller
from kdlib.transfer.offline import prepared, taught
from kdlib.transfer.supervised import Setup, Supervised, cross_entropy


class Online(Supervised):
    """A teacher learns from the labels, a student from both, on the same batches.

    The teacher normalises by the batch's statistics, as it trains, and is discarded at the end;
    it learns nothing from its student.

    Args:
        distiller: what is taught.
        teacher_arch: name of the teacher's network; None takes the student's.

    Reference:
        sseung0703/Lightweighting_Cookbook:KD/transfer/Online.py.
    """

    family, passes = "Online", (2, 0)

    def __init__(self, distiller: Distiller, teacher_arch: str | None = None):
        self.distiller, self.teacher_arch = distiller, teacher_arch

    def trained(self, setup: Setup):
        teacher = setup.peer(1, self.teacher_arch)
        lesson = prepared(self.distiller, setup, setup.student, teacher)
        return {"teacher": teacher, "distiller": lesson}

    def loss(self, trained, frozen, batch):
        student, teacher = trained.student(batch.images), trained.teacher(batch.images)
        loss = taught(trained.distiller, student, teacher, batch)
        teacher_ce = cross_entropy(teacher.logits, batch.labels)
        parts = loss.parts | {"teacher_cross_entropy": teacher_ce}
        return loss._replace(task=loss.task + teacher_ce, parts=parts)

    def network(self, trained, frozen):
        return trained.distiller.deploy(trained.student, trained.teacher)
