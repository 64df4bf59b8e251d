"""Every method of every family: golden values of the losses, training, kills, resuming."""

import functools
import json
import shutil
import types

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

import kdlib
import train_w_kd
from kdlib import checkpoint, distillers, plots, transfer
from kdlib.data import Batch
from kdlib.models import Outputs
from kdlib.presets import TABLES, preset
from kdlib.program import Program, Recipe, dot
from kdlib.train import networks
from kdlib.transfer import Offline, Setup, collaborative_target, virtual_teacher
from kdlib.transfer.offline import taught

S, T, Y = golden.student_logits(), golden.teacher_logits(), jnp.asarray(golden.LABELS)


def shows(logits):
    """A network that shows these logits, whatever it is shown."""
    embedding = jnp.asarray(logits)[:, :4]
    return lambda images: Outputs(jnp.asarray(logits), embedding, (), ())


def loss_of(spec, progress=1.0, extra=None, **modules):
    """A transfer's real loss on made-up networks."""
    batch = Batch(None, Y, jnp.arange(4), progress, extra=extra)
    return transfer.make(spec).loss(types.SimpleNamespace(**modules), None, batch)


# --- golden values


def test_dml_with_two_peers():
    lessons = distillers.make("SoftLogits(temperature=1, alpha=1, gamma=1)")
    pair = {"distiller_student_peer_1": lessons, "distiller_peer_1_student": lessons}
    found = loss_of("DML", student=shows(S), peer_1=shows(T), **pair)
    np.testing.assert_allclose(found.parts["knowledge"], 2.142272, rtol=1e-4)
    np.testing.assert_allclose(found.parts["cross_entropy"], 3.615938, rtol=1e-4)


def test_one_at_temperature_3():
    """Two branches; the gate picks the second for every picture, so the gated logits are T."""
    gate = lambda shared: jnp.tile(jnp.array([0.0, 1.0]), (4, 1))
    student = lambda images: Outputs(jnp.asarray(S), None, (None, jnp.zeros(1), None), ())
    parts = {"student": student, "gate": gate, "branch_1": lambda shared: jnp.asarray(T)}
    found = loss_of("ONE(branches=2)", **parts)
    np.testing.assert_allclose(found.parts["knowledge"], 3.482483, rtol=1e-4)
    early = loss_of("ONE(branches=2, ramp=0.5)", progress=0.25, **parts)
    np.testing.assert_allclose(early.knowledge, np.exp(-5 * 0.25) * 3.482483, rtol=1e-4)


def test_kdcl_mean():
    found = loss_of("KDCL", student=shows(S), peer_1=shows(T), extra=[None])
    parts = found.parts
    np.testing.assert_allclose(
        0.5 * parts["cross_entropy"] + 0.5 * parts["knowledge"], 2.259878, rtol=1e-4
    )


def test_tf_kd_reg_as_coded():
    np.testing.assert_allclose(loss_of("TfKD", student=shows(S)).total, 4.037825, rtol=1e-4)


def test_the_coded_virtual_teacher_is_all_but_uniform():
    hundred = virtual_teacher(labels=Y, classes=100, temperature=20.0, how="code")
    np.testing.assert_allclose(hundred[0, 3], 0.01050, atol=5e-6)
    np.testing.assert_allclose(hundred[0, 0], 0.00999, atol=6e-6)
    paper = virtual_teacher(labels=Y, classes=100, temperature=1.0, how="paper")
    np.testing.assert_allclose(paper[0, 3], 0.99, rtol=1e-5)


def test_ps_kd_with_a_share_of_04():
    class Answers:
        def __init__(self):
            self.value = jax.nn.softmax(T)

        def __getitem__(self, index):
            return self.value

        def __setitem__(self, index, value):
            self.value = value

    table = types.SimpleNamespace(answers=Answers())
    found = loss_of("PSKD(alpha=0.8)", progress=0.5, student=shows(S), table=table)
    np.testing.assert_allclose(found.total, 3.590533, rtol=1e-4)
    np.testing.assert_allclose(table.answers.value, jax.nn.softmax(S), rtol=1e-5)


# --- independent references


def softmax(z, temperature=1.0):
    e = np.exp(np.asarray(z, float) / temperature)
    return e / e.sum(-1, keepdims=True)


def kl(t, s, temperature):
    p, q = softmax(t, temperature), softmax(s, temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1).mean()


def ce(z):
    return -np.log(softmax(z)[np.arange(4), golden.LABELS]).mean()


def test_byot_adds_its_exits():
    features = tuple(jnp.full((4, 1, 1, 4), float(i)) for i in range(4))
    student = lambda images: Outputs(jnp.asarray(T), None, features, ())
    early = jnp.full((4, 1, 1, 4), 1.5)
    exits = {f"exit_{i}": lambda f: (early, jnp.asarray(S)) for i in (1, 2)}
    found = loss_of("BYOT", student=student, **exits)
    task = 0.9 * (ce(T) + 2 * ce(S))
    lesson = 2 * (0.1 * kl(T, S, 3.0) + 0.05 * (1.5 - 3.0) ** 2)
    np.testing.assert_allclose([found.task, found.knowledge], [task, lesson], rtol=1e-4)


def test_cs_kd_and_ddgsd_compare_two_pictures():
    student = lambda images: Outputs(*(jnp.asarray(x) for x in images), (), ())
    other, first = (T, T[:, :4]), (S, S[:, :4])
    batch = Batch(first, Y, extra=other)
    modules = types.SimpleNamespace(student=student)
    found = transfer.make("CSKD(weight=3)").loss(modules, None, batch)
    np.testing.assert_allclose(found.total, ce(S) + 3 * kl(T, S, 4.0), rtol=1e-4)
    found = transfer.make("DDGSD(mmd=2.0)").loss(modules, None, batch)
    gap = ((S[:, :4].astype(float).mean(0) - T[:, :4].astype(float).mean(0)) ** 2).sum()
    expected = (ce(S) + ce(T)) / 2 + kl(T, S, 4.0) + kl(S, T, 4.0) + 2 * gap
    np.testing.assert_allclose(found.total, expected, rtol=1e-4)


@pytest.mark.parametrize("target", ["naive", "linear", "minlogit"])
def test_collaborative_targets(target):
    logits = np.stack([S, T]).astype(float)
    found = np.asarray(collaborative_target(logits=jnp.stack([S, T]), labels=Y, target=target))
    if target == "naive":
        expected = min(logits, key=ce)
    elif target == "minlogit":
        expected = np.array([
            [min(z[n, c] - z[n, golden.LABELS[n]] for z in logits) for c in range(10)]
            for n in range(4)
        ])  # fmt: skip
    else:  # the best of a fine grid of convex combinations
        shares = np.linspace(0, 1, 1001)
        best = min(ce(a * logits[0] + (1 - a) * logits[1]) for a in shares)
        assert ce(found) <= best + 1e-3
        return
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_linear_target_is_the_best_combination_however_far_apart_logits_lie():
    rng, labels = np.random.default_rng(0), np.arange(128) % 10
    for spread in (0.5, 6.0, 20.0):  # a fixed step swings to and fro from 4 on
        logits = spread * rng.normal(size=(2, 128, 10))
        for z in logits:
            right = rng.random(128) < 0.8
            z[right, labels[right]] += 3 * spread
        logits = jnp.asarray(logits, jnp.float32)
        found = collaborative_target(logits=logits, labels=labels, target="linear")
        shares = np.linspace(0, 1, 101)
        cost = lambda z: float(transfer.cross_entropy(z, jnp.asarray(labels)))
        assert cost(found) <= 1.001 * min(cost(a * logits[0] + (1 - a) * logits[1]) for a in shares)


def test_losses_of_bfloat16_logits_are_computed_in_float32():
    half = lambda z: jnp.asarray(z, jnp.bfloat16)
    pair = {"student_logits": half(T + 0.1 * S), "teacher_logits": half(T)}
    found = distillers.soft_logit_loss(**pair, temperature=1.0)
    far = [np.asarray(z, float) for z in pair.values()]
    np.testing.assert_allclose(found, kl(far[1], far[0], 1.0), rtol=1e-3)
    task = transfer.cross_entropy(half(S), jnp.asarray(Y))
    np.testing.assert_allclose(task, ce(np.asarray(half(S), float)), rtol=1e-5)
    lesson = lambda z: loss_of("TfKD", student=shows(z)).parts["knowledge"]
    wide = half(30 * S)
    np.testing.assert_allclose(lesson(wide), lesson(wide.astype(jnp.float32)), rtol=1e-5)


def test_logits_of_a_borrowed_classifier_are_not_standardised():
    with pytest.raises(ValueError, match="give one of logits"):
        distillers.make("LSKD(of=SimKD())")


def test_tf_kd_self_averages_over_classes_too():
    loss = distillers.make("TfKDSelf")
    found = golden.minimised(loss, ce(S), loss(shows(S)(None), shows(T)(None), Y))
    np.testing.assert_allclose(found, 0.05 * ce(S) + 0.95 * 50 * kl(T, S, 6.0) / 10, rtol=1e-4)


def test_dot_keeps_a_momentum_for_each_loss():
    optimizer = dot(optax.add_decayed_weights(0.1), lambda step: 0.5, 0.9, 0.075)
    w, task, lesson = 2.0, 0.0, 0.0
    params, state = jnp.float32(w), optimizer.init(jnp.float32(w))
    for g_task, g_lesson in ((1.0, -2.0), (0.5, 3.0), (-1.0, 1.0)):
        grads = jnp.float32(g_task), jnp.float32(g_lesson)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        task = (0.9 - 0.075) * task + g_task + 0.1 * w
        lesson = (0.9 + 0.075) * lesson + g_lesson
        w -= 0.5 * (task + lesson)
        np.testing.assert_allclose(params, w, rtol=1e-5)


def test_distillation_oriented_training_runs_and_is_another(tiny, teacher):
    transfer_ = lambda: transfer.make("SoftLogits", teacher)
    runs = [
        kdlib.fit("ResNet8x0.25", tiny, transfer_(), Recipe(epochs=2, batch_size=32, dot=delta),
                  progress=False)
        for delta in (0.0, 0.075)
    ]  # fmt: skip
    assert runs[1].history.config["recipe"]["dot"] == 0.075
    a, b = (run.student.classifier.kernel[...] for run in runs)
    assert np.isfinite(b).all() and not np.allclose(a, b)


# --- gradients go where they belong


@pytest.mark.parametrize("spec", ["DML", "KDCL"])
def test_peers_do_not_please_each_other(spec):
    """The student's own terms must not move its peer."""
    lessons = distillers.make("SoftLogits(temperature=1, alpha=1, gamma=1)")

    def student_terms(peer):
        pair = {"distiller_student_peer_1": lessons, "distiller_peer_1_student": lessons}
        found = loss_of(spec, student=shows(S), peer_1=shows(peer), extra=[None], **pair)
        return found.parts["knowledge"] + found.parts["cross_entropy"]

    assert not jax.grad(student_terms)(jnp.asarray(T)).any()


def test_sequential_peers_see_each_others_updates(tiny):
    recipe = Recipe(epochs=1, batch_size=32)
    runs = [
        kdlib.fit("ResNet8x0.25", tiny, transfer.make(f"DML(order='{order}')"), recipe,
                  progress=False).modules[0]
        for order in ("simultaneous", "sequential")
    ]  # fmt: skip
    assert not np.allclose(*(run.peer_1.classifier.kernel[...] for run in runs), atol=1e-7)


def test_the_average_follows_and_later_generations_inherit(tiny):
    recipe = Recipe(epochs=2, batch_size=32)
    modules = kdlib.fit("ResNet8x0.25", tiny, transfer.make("BornAgain"), recipe, progress=False)
    plain = kdlib.fit("ResNet8x0.25", tiny, None, recipe, progress=False)
    past = modules.modules[0].past_1.classifier.kernel[...]
    np.testing.assert_allclose(past, plain.student.classifier.kernel[...], rtol=2e-5, atol=1e-6)
    assert modules.history.epochs == 4
    ema = kdlib.fit("ResNet8x0.25", tiny, transfer.make("EMA"), recipe, progress=False)
    kernels = [m.classifier.kernel[...] for m in (ema.student, ema.modules[0].student)]
    assert not np.allclose(*kernels) and np.allclose(*kernels, atol=0.5)


def test_what_is_still_is_moved_by_nothing_but_its_rule(tiny):
    """Neither gradients nor weight decay: a past generation keeps its bits, an average follows."""
    recipe = Recipe(epochs=2, batch_size=32)
    run = kdlib.fit("ResNet8x0.25", tiny, transfer.make("BornAgain(generations=3)"), recipe,
                    progress=False)  # fmt: skip
    shorter = kdlib.fit("ResNet8x0.25", tiny, transfer.make("BornAgain"), recipe, progress=False)
    assert run.history.epochs == 6
    kept = (run.modules[0].past_2, shorter.modules[0].past_1)  # the first generation of both
    a, b = (jax.tree.leaves(nnx.state(network)) for network in kept)
    assert all(np.allclose(x, y, rtol=2e-5, atol=1e-6) for x, y in zip(a, b, strict=True))
    make = networks("ResNet8x0.25", tiny, recipe)
    program = Program(make, tiny, transfer.make("EMA"), recipe, fused=False)
    state = program.init(0)
    after, _ = program.step(state, program.order(state), program.frozen, program.pictures)
    decay = min(0.99, 1 / 10)
    for before, new, average in zip(
        *(jax.tree.leaves(tree) for tree in (
            state.params["average"], after.params["student"], after.params["average"])),
        strict=True,
    ):  # fmt: skip
        expected = decay * np.asarray(before) + (1 - decay) * np.asarray(new)
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-7)


def test_simkd_is_tested_with_its_projector(tiny, teacher):
    fit = functools.partial(kdlib.fit, "ResNet8x0.25", tiny, progress=False,
                            recipe=Recipe(epochs=1, batch_size=32))  # fmt: skip
    run = fit(Offline(teacher, distillers.make("SimKD")))
    found = kdlib.evaluate(run.student, tiny.test)["accuracy"]
    assert found == pytest.approx(run.history.last()[0])
    assert run.history.protocol["trained_parameters"] > run.history.protocol["parameters"]
    for needs in ("SRRL", "CATKD", "SimKD"):  # its classifier belongs to the projector's maps
        with pytest.raises(ValueError, match="classifier"):
            fit(transfer.make(needs, run.student))


def test_a_teacher_learns_nothing_by_its_own_classifier_in_the_student(tiny, teacher):
    """FT's first phase wakes the cross-entropy of SimKD, which predicts with that classifier."""
    lesson, shown = distillers.make("FT + SimKD"), teacher(jnp.asarray(tiny.train.images[:8]))
    lesson.prepare(shown, shown, nnx.Rngs(0), Y)
    batch = Batch(None, jnp.arange(8) % 4, jnp.arange(8), 0.01)

    def loss(kernel):
        above = shown._replace(head=(kernel, shown.head[1]))
        found = taught(nnx.clone(lesson), shown, above, batch)
        return found.task + found.knowledge

    assert lesson.weights(0.01)[0] > 0 and not jax.grad(loss)(shown.head[0]).any()


# --- every method trains, is killed, and resumes, through the real command line

METHODS = [
    *((name, "Offline") for name in distillers.METHODS),
    ("SoftLogits + AT", "Offline"),
    ("FitNet(original=True) + SoftLogits", "Offline"),
    *((s, transfer.make(s).family) for table in ("online", "self") for s in TABLES[table]),
    ("AT", "SelfDistillation"),
    ("SimKD", "Online"),
    ("KDCL(target='naive')", "Online"),
    ("KDCL(target='minlogit')", "Online"),
    ("DML(peers=('WRN10-1',))", "Online"),
]


STATE = "state-seed-0.safetensors"


@pytest.fixture(scope="module")
def smoke(tiny, tmp_path_factory):
    """The smoke preset's networks on a folder of 64 tiny pictures, and an untrained teacher's."""
    chosen, root = preset("smoke"), tmp_path_factory.mktemp("smoke")
    for part, split in (("train", tiny.train), ("test", tiny.test)):
        for i, (picture, label) in enumerate(zip(split.images, split.labels, strict=True)):
            folder = root / "tiny" / part / tiny.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{i:02}.png")
    teacher = kdlib.models.build(chosen.teacher, 4, mean=tiny.mean, std=tiny.std, seed=3)
    facts = {"architecture": chosen.teacher, "classes": list(tiny.classes)}
    checkpoint.save_network(root / "teacher", teacher, facts)
    return f"--student_arch {chosen.student} --dataset {root / 'tiny'} --batch_size 32 " \
           f"--train_epoch 2 --no-do_log --teacher_param {root / 'teacher'}"  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "family"), dict.fromkeys(METHODS))
def test_every_method_resumes_bit_for_bit(spec, family, smoke, tmp_path, monkeypatch):
    """From what a kill after its first epoch leaves, a run ends in the bytes of an undisturbed one.

    That a SIGKILL at a random step is no worse is tested in test_train.py; here every method's
    own state (banks, tables, averages, peers, generations) has to come back.
    """
    arguments = [*smoke.split(), "--distiller", spec, "--transfer", family, "--train_path"]
    save, whole, killed = checkpoint.save_tree, tmp_path / "whole", tmp_path / "killed"

    def save_and_copy(path, tree, metadata):
        save(path, tree, metadata)
        if not killed.exists():
            shutil.copytree(whole, killed)  # the folder as a kill at this moment would leave it

    for drawing in ("curves", "save"):  # curves.png is looked at in test_cli.py
        monkeypatch.setattr(plots, drawing, lambda *args, **kwargs: None)

    monkeypatch.setattr(checkpoint, "save_tree", save_and_copy)
    train_w_kd.main([*arguments, str(whole)])
    monkeypatch.setattr(checkpoint, "save_tree", save)
    assert checkpoint.load_arrays(killed / STATE)[1]["epoch"] == 1
    train_w_kd.main([*arguments, str(killed)])
    a, b = (checkpoint.load_arrays(path / STATE)[0] for path in (whole, killed))
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
    record = json.loads((killed / "history.json").read_text())
    assert all(np.isfinite(values).all() for values in record["curves"].values())


@pytest.mark.parametrize(
    ("spec", "family", "message"),
    [
        ("DML", "Offline", "'DML' is a method of the transfer Online, not of Offline"),
        ("AT", "Supervised", "needs a teacher"),
        ("BYOTT", None, "did you mean 'BYOT'?"),
        ("AT", "Onlin", "did you mean 'Online'?"),
        ("DML(order='first')", None, "'simultaneous' or 'sequential'"),
        ("KDCL(target='max')", None, "mean, naive, linear, minlogit"),
        ("BornAgain(generations=1)", None, "at least 2"),
        ("ONE(branches=1)", None, "at least 2 branches"),
        ("DML(peer=3)", None, "DML has no setting 'peer': it takes peers="),
        ("PSKD(alpha=2)", None, "0 to 1"),
        ("SoftLogits", "SelfDistillation", "try 'SoftLogits(alpha=0.5, warmup=0.3)'"),
        ("SoftLogits(temperature='a')", None, "SoftLogits takes temperature=4.0, alpha=0.9"),
        ("AT(warmup='a')", None, "not supported between"),
        ("DML(peers=2)", None, "not peers=2"),
        ("DML(peers='ResNet8')", None, "not peers='ResNet8'"),
        ("ONE(branches=2.5)", None, "not branches=2.5"),
        ("CRD(negatives=2.5)", None, "not negatives=2.5"),
        ("DML(warmup=0.1)", None, "DML takes no warmup"),
        ("PSKD + BYOT", None, "only distillers add up"),
        ("EMA(average=0.9)", None, "'EMA' is short for Supervised(average=0.99)"),
        ("TfKDSelf(alpha=0.9)", None, "'TfKDSelf' is short for BornAgain(distiller=TfKDSelf())"),
        ("Supervised(longer=0)", None, "longer above 0"),
        ("Supervised(smoothing=5)", None, "give shares below 1"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(spec, family, message):
    with pytest.raises(ValueError) as error:
        transfer.make(spec, family=family)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_peers_are_named_in_the_method_and_not_beside_it():
    with pytest.raises(ValueError, match="like DML\\(peers=\\('ResNet56',\\)\\)"):
        transfer.make("DML", teacher_arch="ResNet56")
    assert transfer.make("DML(peers=['ResNet56'])").peers == ("ResNet56",)
    assert transfer.make("TfKDSelf(alpha=0.9)", family="Online").family == "Online"


class Plain(nnx.Module):
    """A network of one's own: nothing moves but its parameters and the key of its dropout."""

    def __init__(self, seed, dropout):
        rngs = nnx.Rngs(seed)
        self.linear = nnx.Linear(192, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs) if dropout else None

    def __call__(self, images):
        hidden = images.reshape(len(images), -1) / 255.0
        hidden = self.dropout(hidden) if self.dropout else hidden
        logits = self.linear(hidden)
        return Outputs(logits, logits, (), ())


@pytest.mark.parametrize("dropout", [False, True], ids=["bare", "dropout"])
@pytest.mark.parametrize("spec", ["EMA", "EMATeacher", "BornAgain", "BornAgain(generations=3)"])
def test_networks_of_ones_own_need_no_batch_norm(spec, dropout, tiny):
    recipe = Recipe(epochs=2, batch_size=32)
    make = lambda seed: Plain(seed, dropout)
    run = kdlib.fit(make, tiny, transfer.make(spec), recipe, progress=False)
    assert np.isfinite(run.history.curve("train_loss")).all()
    if spec == "EMA":
        average, student = (m.linear.kernel[...] for m in (run.student, run.modules[0].student))
        assert not np.allclose(average, student)


def test_many_seeds_of_one_program_keep_their_state_in_one_file(tiny, tmp_path):
    """Their numbers in a row would be a longer name than file systems take."""
    recipe, make = Recipe(epochs=1, batch_size=32), lambda seed: Plain(seed, dropout=False)
    first, again = (kdlib.fit(make, tiny, recipe=recipe, seeds=100, fused=True, run_dir=tmp_path,
                              progress=False).history for _ in range(2))  # fmt: skip
    assert len(list(tmp_path.glob("state-seed-0-1-2-*"))) == 1
    assert first.curves == again.curves and len(first.seeds) == 100


@pytest.mark.parametrize(
    "spec", ["DML(distiller=SimKD)", "BornAgain(distiller=SimKD)", "EMATeacher(distiller=MLKD)",
             "EMATeacher(distiller=SimKD)", "Online(distiller=FunMatch)",
             "BornAgain(distiller=OFD(teacher_training=True))"])  # fmt: skip
def test_what_only_a_frozen_teacher_can_give_is_refused(spec, tiny):
    with pytest.raises(ValueError, match="needs a frozen teacher: give --transfer Offline"):
        kdlib.fit("ResNet8x0.25", tiny, transfer.make(spec), Recipe(epochs=1, batch_size=32))


@pytest.mark.parametrize("text", ["SimKD + AT", "AT + SimKD", "AT + SimKD + SP"])
def test_in_a_sum_the_part_with_a_network_of_its_own_answers(text, tiny, teacher):
    """Whoever comes last: the plain classifier gets no gradient beside SimKD."""
    both, data = distillers.make(text), jnp.asarray(tiny.test.images)
    shown = teacher(data)
    both.prepare(shown, shown, nnx.Rngs(0), jnp.asarray(tiny.train.labels))
    alone = next(part for part in both.parts if type(part).__name__ == "SimKD")
    assert jnp.array_equal(both.logits(shown, shown), alone.logits(shown, shown))
    assert type(both.deploy(teacher, teacher)) is not type(teacher)


@pytest.mark.parametrize(("name", "published"), [
    ("DML", {"peers": (None,), "order": "simultaneous"}),
    ("ONE", {"branches": 3, "temperature": 3, "ramp": 80 / 300}),
    ("KDCL", {"target": "mean", "temperature": 4, "alpha": 0.5}),
    ("BornAgain", {"generations": 2, "ensemble": False}),
    ("BYOT", {"alpha": 0.1, "temperature": 3, "beta": 0.05}),
    ("CSKD", {"temperature": 4, "weight": 1}),
    ("PSKD", {"alpha": 0.8}),
    ("TfKD", {"alpha": 0.1, "multiplier": 100, "temperature": 20, "virtual_teacher": "code"}),
    ("DDGSD", {"temperature": 4, "mmd": 0.0005}),
])  # fmt: skip
def test_defaults_of_methods_are_the_published_ones(name, published):
    made = transfer.make(name)
    assert {key: getattr(made, key) for key in published} == published


@pytest.mark.parametrize(("name", "ce", "weight"), [("DML", 1, 1), ("BornAgain", 0.5, 0.5)])
def test_what_methods_teach_by_default(name, ce, weight, tiny):
    """Temperature 1 and the published weights: a setting of soft logits."""
    student = kdlib.models.build("ResNet8x0.25", tiny.num_classes)
    network = lambda name, seed: student
    setup = Setup(0, student, network, jnp.asarray(tiny.train.labels), tiny.num_classes, (8, 8, 3))
    parts = transfer.make(name).trained(setup)
    lesson = next(part for part in parts.values() if isinstance(part, distillers.Distiller))
    assert (lesson.temperature, lesson.ce_weight, lesson.weight) == (1, ce, weight)


@pytest.mark.parametrize(("share", "epochs"), [(0.2, 15), (0.2, 30), (1 / 9, 63), (1 / 9, 234)])
def test_a_first_phase_has_its_whole_number_of_epochs(share, epochs):
    """Compiled, the share of a run is rounded, and could end the phase an epoch early."""
    silent = distillers.make("AT").scheduled(pretrain=share)
    silent.pretrain_ce, silent.ce_weight = 0.0, 1.0
    ce = jax.jit(lambda step: silent.weights((step + 1) / epochs)[0])
    assert sum(float(ce(jnp.int32(step))) == 0 for step in range(epochs)) == round(share * epochs)


@pytest.mark.parametrize(("spec", "epochs", "phase"), [
    ("AB", 80, 8), ("AB", 4, 1), ("AB", 1, 0), ("FT", 8, 1), ("SoftLogits", 4, 0),
    ("FSP(original=True)", 4, 1), ("FitNet(original=True) + SoftLogits", 4, 1),
])  # fmt: skip
def test_a_first_phase_lasts_an_epoch_at_least(spec, epochs, phase, tiny, teacher):
    """In a run of eight epochs a ninth of it would be none, and AB plain training by its name."""
    who, recipe = transfer.make(spec, teacher), Recipe(epochs=epochs, batch_size=16)
    program = Program(networks("ResNet8x0.25", tiny, recipe), tiny, who, recipe, fused=False)
    lesson = program.trained(program.start([0])).distiller
    for part in (lesson, *getattr(lesson, "parts", ())[:1]):
        done = (np.arange(epochs) + 1) / epochs
        assert (done <= part.pretrain + 1e-4).sum() == phase
    assert who.spec == transfer.make(spec).spec  # by which a run is known


@pytest.mark.parametrize(("spec", "waits", "learns", "dot"), [
    ("FT", ["distiller.translate"], ["distiller.encode", "student.classifier"], 0.0),
    ("FT", ["distiller.translate"], ["distiller.encode", "student.classifier"], 0.05),
    ("AB", ["student.classifier"], ["student.stages.2"], 0.0),
    ("FitNet(original=True) + SoftLogits", ["student.classifier", "student.stages.2"],
     ["distiller.parts.0.regressor", "student.stages.1"], 0.05),
])  # fmt: skip
def test_a_first_phase_leaves_alone_what_waits(spec, waits, learns, dot, tiny, teacher):
    """Weight decay would shrink it, in a phase of thousands of steps to nothing."""
    recipe = Recipe(epochs=10, batch_size=16, zero_init=False, weight_decay=0.1, dot=dot)
    who = transfer.make(spec, teacher)
    program = Program(networks("ResNet8x0.25", tiny, recipe), tiny, who, recipe, fused=False)
    state, order = program.start([0]), program.order(program.start([0]))

    def moved(state, after):
        pairs = zip(*(checkpoint.named_leaves(each.params) for each in (state, after)), strict=True)
        return {name for (name, old), (_, new) in pairs if not np.array_equal(old, new)}

    after, _ = program.step(state, order, program.frozen, program.pictures)
    found = moved(state, after)
    assert not [name for name in found if name.startswith(tuple(waits))]
    assert all(any(name.startswith(part) for name in found) for part in learns)
    late = after._replace(step=jnp.int32(9 * program.steps))
    later = moved(late, program.step(late, order, program.frozen, program.pictures)[0])
    assert all(any(name.startswith(part) for name in later) for part in waits)


def test_with_dot_a_first_phase_decays_what_either_loss_reaches(tiny, teacher):
    """The regressor is reached by the knowledge alone, and decay goes with the labels' momentum."""

    def regressor(decay):
        recipe = Recipe(epochs=10, batch_size=16, weight_decay=decay, dot=0.05)
        who = transfer.make("FitNet(original=True)", teacher)
        program = Program(networks("ResNet8x0.25", tiny, recipe), tiny, who, recipe, fused=False)
        state = program.start([0])
        state, _ = program.step(state, program.order(state), program.frozen, program.pictures)
        return state.params["distiller"]["regressor"]

    pairs = zip(*(jax.tree.leaves(regressor(decay)) for decay in (0.0, 0.1)), strict=True)
    kernels = [(a, b) for a, b in pairs if a.ndim > 1]
    assert kernels and not any(np.allclose(a, b, rtol=1e-3) for a, b in kernels)


def test_without_a_phase_all_parameters_decay(tiny, teacher):
    """As in PyTorch, those that the loss doesn't reach too: here the student's classifier."""
    recipe = Recipe(batch_size=16, weight_decay=0.1)
    who = transfer.make("SimKD", teacher)
    program = Program(networks("ResNet8x0.25", tiny, recipe), tiny, who, recipe, fused=False)
    state = program.start([0])
    after, _ = program.step(state, program.order(state), program.frozen, program.pictures)
    before, now = (s.params["student"]["classifier"]["kernel"] for s in (state, after))
    # Nesterov's first step is 1 + 0.9 times the gradient.
    np.testing.assert_allclose(now, before * (1 - 0.1 * 1.9 * 0.1), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["DML", "BornAgain", "CRD"])
def test_vmapped_seeds_equal_single_runs(spec, tiny, teacher):
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=0.02)
    fused, single = (
        kdlib.fit("ResNet8x0.25", tiny, transfer.make(spec, teacher), recipe, seeds=2, fused=fused,
                  progress=False)
        for fused in (True, False)
    )  # fmt: skip
    for a, b in zip(fused.students, single.students, strict=True):
        np.testing.assert_allclose(
            a.classifier.kernel[...], b.classifier.kernel[...], rtol=2e-3, atol=2e-4
        )
