"""Born-again networks: every generation learns from the one before it."""

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.distillers import Distiller, SoftLogits
from kdlib.models import Outputs
from kdlib.transfer.offline import prepared, taught
from kdlib.transfer.supervised import Loss, Setup, Supervised, cross_entropy, require


class Ensemble(nnx.Module):
    """Networks whose class probabilities are averaged; shows the first one's features."""

    def __init__(self, members):
        self.members = nnx.data(list(members))

    def __call__(self, images: jax.Array) -> Outputs:
        shown = [member(images) for member in self.members]
        each = jnp.stack([jax.nn.log_softmax(s.logits) for s in shown])  # (members, n, k)
        return shown[0]._replace(logits=jax.nn.logsumexp(each, 0) - jnp.log(len(shown)), head=())


class BornAgain(Supervised):
    """A network is trained, then a fresh one of the same kind with it as teacher, and so on.

    The first generation learns from labels alone; the recipe's epochs are run through once per
    generation, with a new learning-rate schedule each. The state holds all generations.

    Args:
        generations: how many networks, the plain first one included; at least 2, which is the
            cheapest: the paper goes on to more.
        distiller: what is taught; None is ``½ CE + ½ KL`` at temperature 1.
        ensemble: test and use the averaged probabilities of all generations, not the last.

    Raises:
        ValueError: fewer than two generations.

    Reference:
        Furlanello et al., "Born-Again Neural Networks", ICML 2018, arXiv:1805.04770 (temperature
        and number of generations from memory: unverified). Its other two losses, pictures weighed
        by the teacher's confidence and wrong classes permuted, are left out.
    """

    family, passes = "SelfDistillation", (1, 1)

    def __init__(self, generations: int = 2, distiller: Distiller | None = None,
                 ensemble: bool = False):  # fmt: skip
        require(generations >= 2, f"{generations=}: give at least 2, the first is plain")
        self.generations, self.distiller, self.ensemble = int(generations), distiller, ensemble
        self.still = tuple(f"past_{g}" for g in range(1, self.generations))

    def trained(self, setup: Setup):
        distiller = self.distiller or SoftLogits(temperature=1.0, alpha=0.5)
        lesson = prepared(distiller, setup, setup.student, setup.student, deploys=False)
        return {"distiller": lesson} | {name: nnx.clone(setup.student) for name in self.still}

    def loss(self, trained, frozen, batch):
        # past_1 is always the latest: the teacher. Progress counts all generations.
        done = batch.progress * self.generations
        generation = jnp.floor(done - 1e-4)
        batch = batch._replace(progress=done - generation)
        trained.past_1.eval()
        student, teacher = trained.student(batch.images), trained.past_1(batch.images)
        loss = taught(trained.distiller, student, teacher, batch)
        later = lambda value, first=0.0: jnp.where(generation < 1, first, value)
        task = later(loss.task, cross_entropy(student.logits, batch.labels))
        parts = loss.parts | {"knowledge": later(loss.parts["knowledge"])}
        return Loss(task, later(loss.knowledge), parts, student.logits)

    def next_generation(self, state, fresh):
        """The state that starts a generation, given the last one's and a new one."""

        def inherit(old, new):
            older = zip(self.still, ("student", *self.still), strict=False)
            return new | {name: old[younger] for name, younger in older if younger in old}

        params, rest = inherit(state.params, fresh.params), inherit(state.rest, fresh.rest)
        return fresh._replace(params=params, rest=rest, key=state.key, step=state.step)

    def network(self, trained, frozen):
        generations = [trained.student, *(getattr(trained, name) for name in self.still)]
        return Ensemble(generations) if self.ensemble else trained.student
