"""Deep mutual learning: students of equal standing teach each other."""

from itertools import permutations

import jax

from kdlib.distillers import Distiller, SoftLogits
from kdlib.transfer.offline import prepared, taught
from kdlib.transfer.supervised import Loss, Setup, Supervised, require


class DML(Supervised):
    """Peers learn from labels and from each other: ``CE_i + mean over j≠i of KL(p_j ‖ p_i)``.

    Args:
        peers: names of the other networks, of any architecture; None is one like the student.
        order: ``"simultaneous"``: all update from the same predictions; ``"sequential"``: one
            after the other, each seeing the others' updated predictions, as in the paper's
            algorithm. It costs a forward pass of all peers and a backward pass of one, per network.
        distiller: what they teach each other; None is the paper's KL at temperature 1.

    Raises:
        ValueError: another order, or no peers.

    Reference:
        Zhang et al., "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384;
        YingZhangDUT/Deep-Mutual-Learning:train_models.py (which sums over the peers).
    """

    family = "Online"

    def __init__(self, peers: tuple[str | None, ...] = (None,), order: str = "simultaneous",
                 distiller: Distiller | None = None):  # fmt: skip
        known = order in ("simultaneous", "sequential")
        require(known, f"order={order!r}: give 'simultaneous' or 'sequential'")
        require(peers, "peers=(): give at least one, None for a network like the student")
        self.passes = (len(peers) + 1) ** (2 if order == "sequential" else 1), 0
        self.peers, self.order, self.distiller = tuple(peers), order, distiller
        self.names = ["student", *(f"peer_{i}" for i in range(1, len(peers) + 1))]
        if order == "sequential":
            lessons = {i: [f"distiller_{i}_{j}" for j in self.names if j != i] for i in self.names}
            self.turns = tuple((name, *lessons[name]) for name in self.names)

    def trained(self, setup: Setup):
        nets = {f"peer_{i}": setup.peer(i, name) for i, name in enumerate(self.peers, 1)}
        everyone = {"student": setup.student, **nets}
        distiller = self.distiller or SoftLogits(temperature=1.0, alpha=1.0, gamma=1.0)
        lesson = lambda i, j: prepared(distiller, setup, everyone[i], everyone[j], deploys=False)
        return nets | {f"distiller_{i}_{j}": lesson(i, j) for i, j in permutations(everyone, 2)}

    def loss(self, trained, frozen, batch):
        shows = {name: getattr(trained, name)(batch.images) for name in self.names}
        task, lesson, parts = 0.0, 0.0, {}
        for name in self.names:
            others = [taught(getattr(trained, f"distiller_{i}_{j}"), shows[i], shows[j], batch)
                      for i, j in permutations(self.names, 2) if i == name]  # fmt: skip
            mean = jax.tree.map(lambda *values: sum(values) / len(values), *others)
            task, lesson = task + mean.task, lesson + mean.knowledge
            parts |= {f"{name}_{k}".removeprefix("student_"): v for k, v in mean.parts.items()}
        return Loss(task, lesson, parts, shows["student"].logits)
