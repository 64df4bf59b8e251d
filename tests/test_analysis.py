"""Gradient ratios and sweeps, against plain computations of the same."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kdlib
from kdlib import analysis, check, distillers, transfer
from kdlib.models import Outputs
from kdlib.program import Program, Recipe
from kdlib.train import networks
from kdlib.transfer import Offline, Supervised

QUICK = Recipe(epochs=4, batch_size=32, learning_rate=0.05)


def test_the_ratio_is_that_of_two_gradients(tiny, teacher):
    transfer = Offline(teacher, distillers.make("SoftLogits(alpha=0.75)"))
    found = analysis.gradient_ratio("ResNet8x0.25", tiny, transfer, QUICK, at=(0.0,), batches=1)

    student = kdlib.models.build("ResNet8x0.25", 4, mean=tiny.mean, std=tiny.std, seed=0)
    student.train()
    program = Program(networks("ResNet8x0.25", tiny, QUICK), tiny, transfer, QUICK, fused=False)
    state = program.init(0)
    batch = program.batch(state, program._order(state), program.pictures)
    graph, params, rest = nnx.split(student, nnx.Param, ...)
    target = jax.nn.softmax(teacher(batch.images).logits / 4)

    def loss(params, which):
        logits = nnx.merge(graph, params, rest, copy=True)(batch.images).logits
        if which == "task":
            return -0.25 * jax.nn.log_softmax(logits)[jnp.arange(32), batch.labels].mean()
        return -0.75 * 16 * (target * jax.nn.log_softmax(logits / 4)).sum(-1).mean()

    norms = {}
    for which in ("task", "lesson"):
        grads = jax.tree.leaves(jax.grad(loss)(params, which))
        norms[which] = np.sqrt(sum(float((g**2).sum()) for g in grads))
    np.testing.assert_allclose(found[0.0], norms["lesson"] / norms["task"], rtol=1e-3)


@pytest.mark.slow
def test_the_ratio_scales_with_the_weight_and_follows_the_run(tiny, teacher):
    ratio = lambda text: analysis.gradient_ratio(
        "ResNet8x0.25", tiny, Offline(teacher, distillers.make(text)), QUICK, at=(0.0, 0.25, 1.0)
    )
    one, ten = ratio("AT(beta=1)"), ratio("AT(beta=10)")
    assert list(one) == [0.0, 0.25, 1.0] and len(set(one.values())) == 3
    np.testing.assert_allclose(ten[0.0], 10 * one[0.0], rtol=1e-3)


class Two(nnx.Module):
    """A parameter for the task, and one for the knowledge."""

    def __init__(self, seed):
        self.task, self.lesson = nnx.Param(jnp.zeros(())), nnx.Param(jnp.zeros(()))

    def __call__(self, images):
        logits = jnp.zeros((len(images), 4)) + self.task[...]
        return Outputs(logits, logits, (), ())


class Known(Supervised):
    """Gradients as long as the positions of a batch's first and last picture say."""

    def loss(self, trained, frozen, batch):
        first, last = batch.index[0] + 1.0, batch.index[-1] + 1.0
        student = trained.student
        task, lesson = first * student.task[...], last * student.lesson[...]
        return transfer.Loss(task, lesson, {}, student(batch.images).logits)


def test_the_ratio_is_of_means_over_batches_of_the_epoch(tiny):
    recipe = Recipe(epochs=2, batch_size=16)
    program = Program(networks(Two, tiny, recipe), tiny, Known(), recipe, fused=False)
    found = analysis.gradient_ratio(Two, tiny, Known(), recipe, at=(0.0, 0.5, 1.0), batches=3)
    for share, epoch in ((0.0, 0), (0.5, 1), (1.0, 1)):  # at the end, the last once more
        order = program.order(program.init(0)._replace(step=jnp.int32(epoch * program.steps)))
        first, last = 1 + np.asarray(order)[:3, [0, -1]].T
        np.testing.assert_allclose(found[share], last.mean() / first.mean(), rtol=1e-5)


@pytest.mark.parametrize("spec", ["BornAgain", "Longer"])
def test_methods_of_several_runs_have_no_ratio(spec, tiny):
    with pytest.raises(ValueError, match="is no single run: measure its distiller by Offline"):
        analysis.gradient_ratio("ResNet8x0.25", tiny, transfer.make(spec), Recipe(batch_size=32))


def test_without_cross_entropy_there_is_no_ratio(tiny, teacher):
    transfer = Offline(teacher, distillers.make("FunMatch"))
    found = analysis.gradient_ratio("ResNet8x0.25", tiny, transfer, QUICK, at=(0.0,), batches=1)
    assert found == {0.0: float("inf")}


@pytest.mark.slow
def test_a_sweep_is_the_runs_it_stands_for(tiny, teacher):
    """One program for all cells, looped or vmapped, gives what each distiller gives alone."""
    recipe = replace(QUICK, epochs=1)
    settings = {"temperatures": (1.0, 4.0), "alphas": (0.5,), "progress": False}
    looped, fused = (
        analysis.sweep("ResNet8x0.25", tiny, teacher, recipe, fused=fused, **settings)
        for fused in (False, True)
    )
    assert looped.shape == (2, 1, 1)
    np.testing.assert_allclose(looped, fused, atol=0.11)  # two of the 20 validation pictures
    transfer = Offline(teacher, distillers.make("SoftLogits(temperature=4.0, alpha=0.5)"))
    run = kdlib.fit("ResNet8x0.25", tiny, transfer, recipe, progress=False)
    alone = run.history.last("validation_accuracy")
    np.testing.assert_allclose(looped[1, 0], alone, atol=0.11)


def test_a_sweep_weighs_as_soft_logits_do():
    swept, plain = analysis.SweptSoftLogits(), distillers.SoftLogits(temperature=3, alpha=0.25)
    swept.temperature[...], swept.alpha[...] = jnp.float32(3), jnp.float32(0.25)
    pair = check.outputs(0), check.outputs(1)
    lessons = [method(*pair, jnp.arange(4)) for method in (swept, plain)]
    np.testing.assert_allclose(*lessons, rtol=1e-6)
    np.testing.assert_allclose(swept.weights(1.0), plain.weights(1.0))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_cell_of_a_sweep_is_where_its_settings_say(split, tiny, monkeypatch):
    """Of untrained networks whose score is what they were made with."""
    data = tiny if split == "validation" else replace(tiny, validation=None)

    def scores(program, state):
        cell, seed = state.rest["distiller"], jax.random.key_data(state.key)[-1]
        score = [[100 * cell["temperature"] + 10 * cell["alpha"] + seed, 0]]
        return {name: np.array(score if name == split else [[0, 0]]) for name in program.splits}

    monkeypatch.setattr(Program, "run_epoch", lambda program, state, shown: (state, {}))
    monkeypatch.setattr(Program, "scores", scores)
    grid = {"temperatures": (1, 2, 3), "alphas": (0.25, 0.5), "seeds": 2}
    found = analysis.sweep(Two, data, Two(7), QUICK, **grid, fused=False, progress=False)
    temperatures, alphas = np.array([100, 200, 300])[:, None, None], np.array([2.5, 5])[:, None]
    np.testing.assert_allclose(found, temperatures + alphas + np.arange(2))
