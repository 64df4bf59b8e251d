"""Gradient ratios and sweeps, against plain computations of the same."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kdlib
from kdlib import analysis, distillers, transfer
from kdlib.program import Program, Recipe
from kdlib.train import networks
from kdlib.transfer import Offline

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
