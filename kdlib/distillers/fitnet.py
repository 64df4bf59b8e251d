"""FitNets: a regressor on one of the student's maps predicts the teacher's map."""

from kdlib.distillers.base import Adapter, Distiller, mean_square, stages_of


class FitNet(Distiller):
    """``CE + beta · mean (regressor(f_s) − f_t)²``, with a convolution, batch norm and ReLU.

    Args:
        beta: weight of the hint.
        stage: whose maps are compared, from 1; ValueError if a network doesn't have it.
        original: the hint alone for the first fifth of the run, then none, as in
            ``FitNet(original=True) + SoftLogits``; the paper's two stages, lengths unverified.

    Reference:
        Romero et al., ICLR 2015, arXiv:1412.6550; HobbitLong/RepDistiller:helper/loops.py.
    """

    zero_at_match = False

    def __init__(self, beta: float = 100.0, stage: int = 2, original: bool = False):
        self.beta = self.weight = float(beta)
        self.stage, self.original = stage, original
        self.pretrain, self.afterwards = (0.2, 0.0) if original else (0.0, 1.0)

    def prepare(self, student, teacher, rngs, labels):
        ((s, t),) = stages_of(student, teacher, (self.stage,))
        self.regressor = Adapter(s, t, rngs, relu=True)

    def knowledge(self, student, teacher, labels):
        s, t = (x.features[self.stage] for x in (student, teacher))
        return mean_square(self.regressor(s), t)
