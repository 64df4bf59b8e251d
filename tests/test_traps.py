"""Mistakes that leave every loss plausible: what teaches whom, from which view, in which mode."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CLASSES
from flax import nnx
from test_methods import S, T, Y, loss_of, shows

import kdlib
from kdlib import distillers, transfer
from kdlib.data import Batch, Pictures
from kdlib.distillers import soft_logit_loss
from kdlib.models import Outputs
from kdlib.program import Program, Recipe
from kdlib.train import networks, predict
from kdlib.transfer import Offline, Supervised
from kdlib.transfer.ps_kd import Table

RECIPE = Recipe(epochs=1, batch_size=32)


def echo(images):
    """A network whose logits are its pictures."""
    return Outputs(images, images, (), ())


class Part(nnx.Module):
    """A stage that halves the sides of its map."""

    def __init__(self, rngs):
        self.linear, self.norm = nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.linear(nnx.avg_pool(x, (2, 2), (2, 2))))
        return nnx.relu(x), x


class Small(nnx.Module):
    """A network of two stages, without what takes long to compile."""

    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.stem = nnx.Linear(3, 4, rngs=rngs)
        self.stages = nnx.data([Part(rngs), Part(rngs)])
        self.classifier = nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, images):
        features, preacts = [nnx.relu(self.stem(images / 64.0 - 2.0))], []
        for stage in self.stages:
            x, preact = stage(features[-1])
            features.append(x)
            preacts.append(preact)
        embedding = features[-1].mean((1, 2))
        head = (self.classifier.kernel[...], self.classifier.bias[...])
        norms = tuple((part.norm.scale[...], part.norm.bias[...]) for part in self.stages)
        logits = self.classifier(embedding)
        return Outputs(logits, embedding, tuple(features), tuple(preacts), head, norms)


def program_of(tiny, spec, recipe=RECIPE, network=Small):
    """A program, and its state before the first step."""
    made = transfer.make(spec) if isinstance(spec, str) else spec
    program = Program(networks(network, tiny, recipe), tiny, made, recipe, fused=False)
    return program, program.init(0)


def stepped(program, state, steps=1):
    """The state after some steps."""
    order = program.order(state)
    for _ in range(steps):
        state, _ = program.step(state, order, program.frozen, program.pictures)
    return state


def unmoved(before, after):
    """Names of the leaves that are the same in two trees."""
    pairs = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return [jax.tree_util.keystr(name) for (name, a), b in pairs if np.array_equal(a, b)]


# --- the teacher's side of a lesson gets no gradient


def one(gate):
    student = lambda images: Outputs(jnp.asarray(S), None, (None, jnp.zeros(1), None), ())
    parts = {"student": student, "branch_1": lambda shared: jnp.asarray(T)}
    return loss_of("ONE(branches=2)", gate=lambda shared: jax.nn.softmax(gate), **parts).knowledge


def byot(last):
    logits, feature = last
    student = lambda images: Outputs(logits, None, (None, None, feature), ())
    early = lambda feature: (jnp.ones((4, 1, 1, 4)), jnp.asarray(S))
    return loss_of("BYOT", student=student, exit_1=early).knowledge


def cs_kd(partner):
    batch = Batch(jnp.asarray(S), Y, extra=partner)
    return transfer.make("CSKD").loss(types.SimpleNamespace(student=echo), None, batch).knowledge


def ddgsd(views):
    """What is left when each view has learned from the other as from a constant."""
    a, b = views
    batch = Batch(a, Y, extra=b)
    found = transfer.make("DDGSD(mmd=0)").loss(types.SimpleNamespace(student=echo), None, batch)
    pairs = ((a, jnp.asarray(T)), (b, jnp.asarray(S)))
    return found.knowledge - sum(
        soft_logit_loss(student_logits=s, teacher_logits=t, temperature=4.0) for s, t in pairs
    )


def online(teacher):
    lesson = {"distiller": distillers.make("SoftLogits")}
    spec = "Online(distiller=SoftLogits)"
    return loss_of(spec, student=shows(S), teacher=shows(teacher), **lesson).knowledge


@pytest.mark.parametrize(
    ("lesson", "teacher"),
    [
        (one, np.tile(np.float32([1, 0]), (4, 1))),  # equal shares are a stationary point
        (byot, (T, np.zeros((4, 1, 1, 4), np.float32))),
        (cs_kd, T),
        (ddgsd, (S, T)),
        (online, T),
    ],
    ids=["ONE", "BYOT", "CSKD", "DDGSD", "Online"],
)
def test_a_lesson_does_not_move_its_teacher(lesson, teacher):
    for grad in jax.tree.leaves(jax.grad(lesson)(jax.tree.map(jnp.asarray, teacher))):
        np.testing.assert_allclose(grad, 0.0, atol=1e-6)


# --- PS-KD's table


def test_the_table_is_read_and_written_at_the_pictures_own_places():
    labels = jnp.array([0, 1, 3, 2, 1, 4, 1])
    setup = types.SimpleNamespace(labels=labels, classes=10)
    (table,) = transfer.make("PSKD").trained(setup).values()
    assert isinstance(table, Table)
    np.testing.assert_array_equal(table.answers[...], jax.nn.one_hot(labels, 10))
    held = jax.nn.softmax(jax.random.normal(jax.random.key(0), (7, 10)))
    table.answers[...] = held
    places = np.array([2, 6, 5, 1])
    batch = Batch(None, Y, jnp.asarray(places), 1.0)
    modules = types.SimpleNamespace(student=shows(S), table=table)
    found = transfer.make("PSKD").loss(modules, None, batch)
    soft = optax.losses.softmax_cross_entropy(jnp.asarray(S), held[places]).mean()
    np.testing.assert_allclose(found.parts["knowledge"], soft, rtol=1e-5)
    expected = held.at[places].set(jax.nn.softmax(S))
    np.testing.assert_allclose(table.answers[...], expected, rtol=1e-5)


@pytest.mark.parametrize("spec", ["plain", "PSKD", "CSKD", "DDGSD", "KDCL"])
def test_a_batch_holds_the_pictures_its_index_says(spec, tiny):
    recipe = Recipe(epochs=1, batch_size=32, crop=0.0, flip=0.0)
    program, state = program_of(tiny, spec, recipe)
    batch = program.batch(state, program.order(state), program.pictures)
    np.testing.assert_array_equal(batch.images, tiny.train.images[batch.index])
    np.testing.assert_array_equal(batch.labels, tiny.train.labels[batch.index])


def test_progress_is_the_share_of_the_run_when_the_epoch_ends(tiny):
    program, state = program_of(tiny, "plain", Recipe(epochs=4, batch_size=32))
    order, steps = program.order(state), jnp.arange(8)
    told = lambda step: program.batch(state._replace(step=step), order, program.pictures).progress
    np.testing.assert_allclose([told(step) for step in steps], np.repeat([1, 2, 3, 4], 2) / 4)


def test_every_step_draws_views_of_its_own(tiny):
    program, state = program_of(tiny, "plain")
    always = jnp.zeros((2, 32), jnp.int32)  # one picture
    view = lambda step: program.batch(state._replace(step=step), always, program.pictures).images
    first, second = view(jnp.int32(0)), view(jnp.int32(1))
    assert not np.array_equal(first, second)


def test_smoothing_gives_every_class_its_share():
    smooth = transfer.make("Supervised(smoothing=0.2)")
    batch = smooth.batch(marked, Pictures(None, LABELS), INDEX, jax.random.key(0), 1.0, 4)
    assert np.unique(batch.targets).tolist() == pytest.approx([0.05, 0.85])
    np.testing.assert_array_equal(batch.targets.argmax(1), LABELS)


# --- who normalises by the batch's statistics


@pytest.mark.parametrize(
    ("spec", "name", "trains"),
    [
        ("EMATeacher", "average", False),
        ("BornAgain", "past_1", False),
        ("Online(distiller=SoftLogits)", "teacher", True),
        ("DML", "peer_1", True),
        ("KDCL", "peer_1", True),
    ],
)
def test_a_teacher_normalises_by_the_batch_only_while_it_trains(spec, name, trains, tiny):
    program, state = program_of(tiny, spec)
    batch = program.batch(state, program.order(state), program.pictures)
    _, (_, rest) = program.objective(state.params, state.rest, program.frozen, batch)
    assert not unmoved(state.rest["student"], rest["student"])
    still = unmoved(state.rest[name], rest[name])
    assert len(still) == (0 if trains else len(jax.tree.leaves(rest[name])))


@pytest.mark.parametrize("text", ["OFD", "OFD(teacher_training=True)"])
@pytest.mark.parametrize("other", ["", "SoftLogits + "], ids=["alone", "sum"])
def test_ofd_says_how_its_frozen_teacher_normalises(text, other, tiny):
    teacher = Small(7)
    program, state = program_of(tiny, Offline(teacher, distillers.make(other + text)))
    batch = program.batch(state, program.order(state), program.pictures)
    trained, frozen = nnx.merge(program.graph, state.params, state.rest), nnx.clone(teacher)
    frozen.train() if "True" in text else frozen.eval()
    shown = trained.student(batch.images), frozen(batch.images)
    expected = trained.distiller(*shown, batch.labels, batch)
    _, (found, _) = program.objective(state.params, state.rest, program.frozen, batch)
    np.testing.assert_allclose(found.parts["knowledge"], expected, rtol=1e-4)


def test_a_prediction_does_not_depend_on_the_other_pictures(tiny):
    model, images = Small(0), tiny.test.images
    model.train()
    whole = predict(model, images)
    for name in ("logits", "embedding"):
        alone, shown = getattr(predict(model, images[:2]), name), getattr(whole, name)
        np.testing.assert_allclose(alone, shown[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", ["EMA", "EMATeacher"])
def test_an_average_is_of_the_statistics_too(spec):
    tree = lambda: {"student": {"x": jnp.float32(2)}, "average": {"x": jnp.float32(1)}}
    for step, decay in ((0, 0.1), (10**6, transfer.make(spec).average)):
        for moved in transfer.make(spec).after_step(tree(), tree(), jnp.int32(step)):
            assert float(moved["student"]["x"]) == 2
            np.testing.assert_allclose(moved["average"]["x"], decay + 2 * (1 - decay), rtol=1e-5)


# --- what trains does train


@pytest.mark.parametrize("spec", ["FitNet", "CRD", "ONE", "BYOT"])
def test_a_step_moves_every_parameter_beside_the_student(spec, tiny):
    """By its gradient: without weight decay, which would move what nothing else does."""
    recipe = Recipe(epochs=1, batch_size=32, weight_decay=0.0)
    program, state = program_of(tiny, transfer.make(spec, Small(7)), recipe)
    after = stepped(program, state)
    assert state.params.keys() == after.params.keys() and len(after.params) > 1
    assert not unmoved(state.params, after.params)


# --- distillation-oriented training


class Two(nnx.Module):
    """A parameter for the task, and one for the knowledge."""

    def __init__(self, seed):
        self.task, self.lesson = nnx.Param(jnp.zeros(())), nnx.Param(jnp.zeros(()))

    def __call__(self, images):
        logits = jnp.zeros((len(images), CLASSES)) + self.task[...]
        return Outputs(logits, logits, (), ())


class Slopes(Supervised):
    """Both losses fall by 1 for each step up of their parameter."""

    def loss(self, trained, frozen, batch):
        student = trained.student
        task, lesson = -student.task[...], -student.lesson[...]
        return transfer.Loss(task, lesson, {}, student(batch.images).logits)


def test_dot_gives_the_knowledge_the_larger_momentum(tiny):
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=1.0, decay_points=(), weight_decay=0.0,
                    dot=0.075)  # fmt: skip
    program, state = program_of(tiny, Slopes(), recipe, Two)
    found = stepped(program, state, steps=2).params["student"]
    np.testing.assert_allclose(found["task"], 1 + (1 + 0.825), rtol=1e-5)
    np.testing.assert_allclose(found["lesson"], 1 + (1 + 0.975), rtol=1e-5)


# --- pictures and views that belong together

LABELS = jnp.array([0, 0, 0, 0, 1, 1, 2])
INDEX = jnp.arange(7)


def marked(key, index):
    """Views that tell their picture and their key: their whole part and the rest."""
    return index + jax.random.uniform(key, index.shape)


def batches(spec, seeds=5):
    for seed in range(seeds):
        pictures, key = Pictures(None, LABELS), jax.random.key(seed)
        yield transfer.make(spec).batch(marked, pictures, INDEX, key, 1.0, 3)


def test_a_partner_is_another_picture_of_the_class():
    met = set()
    for batch in batches("CSKD", seeds=20):
        partner = np.floor(batch.extra).astype(int)
        np.testing.assert_array_equal(LABELS[partner], LABELS)
        assert (partner == INDEX).tolist() == [False] * 6 + [True]  # the last is alone
        assert not np.array_equal(batch.extra[-1], batch.images[-1])  # but has another view
        met |= {*zip(INDEX.tolist(), partner.tolist(), strict=True)}
    assert len(met) == 4 * 3 + 2 + 1


@pytest.mark.parametrize("spec", ["DDGSD", "KDCL", "KDCL(peers=(None, None))"])
def test_views_of_a_picture_differ(spec):
    for batch in batches(spec):
        others = batch.extra if isinstance(batch.extra, list) else [batch.extra]
        for a, b in itertools.combinations([batch.images, *others], 2):
            np.testing.assert_array_equal(np.floor(a), np.floor(b))
            assert not np.isclose(a, b, rtol=0, atol=1e-6).any()


def test_every_peer_sees_its_own_view():
    batch = Batch(jnp.asarray(S), Y, extra=[jnp.asarray(T)])
    peers = types.SimpleNamespace(student=echo, peer_1=echo)
    found = transfer.make("KDCL").loss(peers, None, batch)
    ces = [transfer.cross_entropy(jnp.asarray(z), Y) for z in (S, T)]
    np.testing.assert_allclose(found.task, 0.5 * sum(ces), rtol=1e-5)


def offline_batch(spec, images):
    index = jnp.arange(len(images))
    pictures = Pictures(images, jnp.zeros(len(images), jnp.int32))
    still = lambda key, index: images[index]
    batch = Offline(None, distillers.make(spec)).batch
    return jax.jit(lambda key: batch(still, pictures, index, key, 1.0, 3))(jax.random.key(1))


def test_mlkd_compares_a_weak_and_a_strong_view():
    """Of one grey picture and black ones: a strong view has a hole, and is black where it was."""
    images = jnp.zeros((8, 16, 16, 3)).at[0].set(200.0)
    batch = offline_batch("MLKD", images)
    np.testing.assert_array_equal(batch.images, images)
    assert (batch.extra != images).any((1, 2, 3)).all()
    assert (jnp.median(batch.extra, (1, 2, 3)) > 0).tolist() == [True] + [False] * 7
    # And its loss shows both networks the second view.
    lesson, twice = distillers.make("MLKD"), lambda images: echo(2 * images)
    modules = types.SimpleNamespace(student=echo, distiller=lesson)
    frozen, other = types.SimpleNamespace(teacher=twice), jnp.asarray(T)
    batch = Batch(jnp.asarray(S), Y, extra=other)
    found = Offline(None, lesson).loss(modules, frozen, batch)
    shown = batch._replace(extra=(echo(other), twice(other)))
    expected = lesson(echo(batch.images), twice(batch.images), Y, shown)
    np.testing.assert_allclose(found.parts["knowledge"], expected, rtol=1e-5)


def test_funmatch_mixes_strong_views():
    """Of plain grey pictures: a strong view has a hole, a mixture of two such has both holes."""
    images = jnp.zeros((8, 16, 16, 3)) + 25.0 * jnp.arange(1, 9)[:, None, None, None]
    batch = offline_batch("FunMatch", images)
    greys = [len(np.unique(np.round(picture, 1))) for picture in np.asarray(batch.images)]
    assert max(greys) > 2


# --- whose weights


@pytest.mark.parametrize(
    "spec", ["DML(peers=(None, None))", "KDCL(peers=(None, None))", "ONE",
             "Online(distiller=SoftLogits)"])  # fmt: skip
def test_no_two_networks_start_alike(spec, tiny):
    make = networks(Small, tiny, RECIPE)
    student = make(None, 0)
    labels = jnp.asarray(tiny.train.labels)
    setup = transfer.Setup(0, student, make, labels, CLASSES, tiny.image_shape)
    beside = transfer.make(spec).trained(setup).items()
    kept = [student, *(m for name, m in beside if name.startswith(("peer", "branch", "teacher")))]
    assert len(kept) == (2 if spec.startswith("Online") else 3)
    for a, b in itertools.combinations([m.classifier.kernel[...] for m in kept], 2):
        assert not np.allclose(a, b)


def test_a_generation_starts_afresh(tiny):
    """At a learning rate of 0, networks end with the weights that they started with."""
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=0.0)
    run = kdlib.fit(Small, tiny, transfer.make("BornAgain(generations=3)"), recipe,
                    progress=False)  # fmt: skip
    modules = run.modules[0]
    starts = [m.classifier.kernel[...] for m in (modules.past_2, modules.past_1, modules.student)]
    np.testing.assert_allclose(starts[0], Small(0).classifier.kernel[...], rtol=1e-6)
    for a, b in itertools.combinations(starts, 2):
        assert not np.allclose(a, b)


def test_the_last_epoch_is_tested_whatever_the_interval(tiny):
    recipe = Recipe(epochs=3, batch_size=32, test_every=2)
    run = kdlib.fit(Small, tiny, recipe=recipe, progress=False)
    assert run.history.curve("test_accuracy").shape == (1, 2)  # after the second and the third


@pytest.mark.parametrize("which", ["student", "average"])
def test_an_averaging_teacher_leaves_the_network_asked_for(which):
    spec = "EMATeacher" if which == "student" else "EMATeacher(deploy='average')"
    modules = types.SimpleNamespace(student="student", average="average")
    assert transfer.make(spec).network(modules, None) == which


def test_an_ensemble_holds_every_generation_once():
    each = (S, T, S[:, ::-1])
    names = ("student", "past_1", "past_2")
    modules = types.SimpleNamespace(**{n: shows(z) for n, z in zip(names, each, strict=True)})
    together = transfer.make("BornAgain(generations=3, ensemble=True)").network(modules, None)
    mean = np.mean([jax.nn.softmax(z) for z in each], axis=0)
    np.testing.assert_allclose(jax.nn.softmax(together(None).logits), mean, rtol=1e-5)
