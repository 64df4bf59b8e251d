"""Distillation-oriented training: a momentum of its own for the gradient of the knowledge."""

import jax
import jax.numpy as jnp
import optax


def dot(decay, schedule, momentum: float, delta: float) -> optax.GradientTransformation:
    """SGD with two momentum buffers; its gradients are a pair, of the task and of the knowledge.

    The task's buffer (weight decay included) has momentum ``momentum − delta``, the knowledge's
    ``momentum + delta``; the update is minus the learning rate times their sum, without Nesterov's
    step, whatever the recipe says. A parameter that only one loss reaches has that one's momentum.
    Differs from the authors' code, where such a parameter keeps ``momentum``, with its decay.

    Reference:
        Zhao et al., "DOT: A Distillation-Oriented Trainer", ICCV 2023, arXiv:2307.08436;
        megvii-research/mdistiller:mdistiller/engine/dot.py.
    """
    buffers = optax.trace(momentum - delta), optax.trace(momentum + delta)
    rate = optax.scale_by_learning_rate(schedule)

    def init(params):
        return decay.init(params), *(buffer.init(params) for buffer in buffers), rate.init(params)

    def update(grads, state, params):
        task, decay_state = decay.update(grads[0], state[0], params)
        task, task_state = buffers[0].update(task, state[1])
        lesson, lesson_state = buffers[1].update(grads[1], state[2])
        both, rate_state = rate.update(jax.tree.map(jnp.add, task, lesson), state[3])
        return both, (decay_state, task_state, lesson_state, rate_state)

    return optax.GradientTransformation(init, update)
