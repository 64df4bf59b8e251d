"""The student's own past as its teacher: an exponential moving average of its weights."""

from flax import nnx

from kdlib.distillers import Distiller, SoftLogits
from kdlib.transfer.offline import prepared, taught
from kdlib.transfer.supervised import Setup, Supervised, require


class EMATeacher(Supervised):
    """The average of the student's weights so far, in evaluation mode, teaches the student.

    Args:
        decay: of the average; early on it is at most ``(1 + step) / (10 + step)``.
        distiller: what is taught; None is ``SoftLogits(temperature=4, alpha=0.5)`` that warms up
            over a third of the run: an untrained average has nothing to teach (measured: without
            it, runs collapse).
        deploy: ``"student"`` or ``"average"``, which of the two is tested and used.

    Raises:
        ValueError: a decay outside 0..1, or another ``deploy``.

    Reference:
        Tarvainen, Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv:1703.01780
        (there for unlabelled pictures too; unverified in its details).
    """

    family, passes = "SelfDistillation", (1, 1)

    def __init__(self, decay: float = 0.99, distiller: Distiller | None = None,
                 deploy: str = "student"):  # fmt: skip
        known = 0 < decay < 1 and deploy in ("student", "average")
        require(known, f"{decay=}, {deploy=}: give a decay below 1, and 'student' or 'average'")
        self.decay, self.distiller, self.deploy = decay, distiller, deploy
        self.average = decay  # Supervised.after_step moves the average

    def trained(self, setup: Setup):
        distiller = self.distiller or SoftLogits(4.0, alpha=0.5).scheduled(warmup=1 / 3)
        lesson = prepared(distiller, setup, setup.student, setup.student, deploys=False)
        return {"average": nnx.clone(setup.student), "distiller": lesson}

    def loss(self, trained, frozen, batch):
        trained.average.eval()
        student, teacher = trained.student(batch.images), trained.average(batch.images)
        return taught(trained.distiller, student, teacher, batch)

    def network(self, trained, frozen):
        return trained.average if self.deploy == "average" else trained.student
