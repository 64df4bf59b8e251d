"""Several devices: the same results, no talk between seeds, and errors that say what to do.

Those that need several run in a process of their own, in which JAX sees one CPU as four devices.
"""

import functools
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import CLASSES, make_tiny
from flax import nnx

import kdlib
from kdlib import models, parallel, transfer
from kdlib.history import device
from kdlib.program import Program
from kdlib.progress import Progress

SEVERAL = jax.__version_info__ >= (0, 8)
HERE = pathlib.Path(__file__).resolve().parent
RECIPE = kdlib.Recipe(epochs=2, batch_size=16, learning_rate=0.02, pad=1, eval_batch_size=10)
STUDENT = "ResNet8x0.25"


def with_four_devices(test):
    """Run a test in a process that sees four devices."""

    @pytest.mark.skipif(not SEVERAL, reason="kdlib uses several devices from JAX 0.8 on")
    @functools.wraps(test)
    def outer():
        flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
        code = f"import conftest, test_parallel; test_parallel.{test.__name__}.__wrapped__()"
        path = os.pathsep.join([str(HERE.parent), str(HERE)])
        subprocess.run(
            [sys.executable, "-c", code], check=True, timeout=300,
            env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path},
        )  # fmt: skip

    return outer


def network(seed):
    data = make_tiny()
    return models.build(STUDENT, CLASSES, mean=data.mean, std=data.std, seed=seed)


def taught(method="SoftLogits"):
    return transfer.make(method, network(7))


def fit(devices, seeds=2, fused=True, method="SoftLogits", **options):
    options = {"recipe": RECIPE, "progress": False} | options
    return kdlib.fit(STUDENT, make_tiny(), taught(method), seeds=seeds, fused=fused,
                     devices=devices, **options)  # fmt: skip


def same(run, other, rtol=1e-4):
    for metric in ("train_loss", "test_loss", "test_accuracy"):
        found, expected = run.history.curve(metric), other.history.curve(metric)
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-6, err_msg=metric)


def program(devices, seeds, fused):
    mesh = parallel.mesh(devices, seeds, RECIPE.batch_size)
    made = Program(lambda _, seed: network(seed), make_tiny(), taught(), RECIPE, fused, mesh)
    return made, made.start(range(seeds))


@with_four_devices
def test_seeds_and_pictures_on_several_devices_learn_what_they_learn_on_one():
    one = fit(1)
    for devices in (2, 4):  # a seed each; two devices for each seed
        run = fit(devices)
        same(run, one)
        assert run.history.protocol["device"].endswith(f"as {devices} devices")
        for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(run.student))):
            assert len(leaf.devices()) == 1  # to be used beside anything else
    same(fit(4, seeds=1, fused=False), fit(1, seeds=1, fused=False))


@with_four_devices
def test_devices_that_have_seeds_of_their_own_never_talk():
    talk = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    for devices, expected in ((2, set()), (4, {"all-reduce"})):
        made, state = program(devices, 2, fused=True)
        compiled = made.epoch.lower(state, made.frozen, made.pictures).compile()
        assert set(re.findall(talk, compiled.as_text())) == expected
        assert made.scores(state)["test"].shape == (2, 2)


@with_four_devices
def test_nothing_is_compiled_after_the_first_epoch():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    silent = Progress("", 1, enabled=False)
    for seeds, fused in ((2, True), (1, False)):
        made, state = program(4, seeds, fused)
        for epoch in range(3):
            before = len(compiled)
            state, _ = made.run_epoch(state, silent)
            made.scores(state)
            assert epoch == 0 or len(compiled) == before, compiled[before:]
        assert compiled
        pieces = jax.tree.leaves(state.params)[0].sharding
        assert pieces.is_fully_replicated != fused, pieces  # as it was placed


@with_four_devices
def test_a_run_may_go_on_with_another_number_of_devices():
    whole = fit(1)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder) / "run"

        def stop(record, epoch, seeds, networks):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(4, run_dir=folder, on_epoch=stop)
        run = fit(2, run_dir=folder)
        same(run, whole)
        assert run.history.protocol["device"].endswith("as 4 devices, then " + device(2))


@with_four_devices
def test_a_record_names_each_device_of_a_run_once():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder) / "run"

        def stop(record, epoch, seeds, networks):
            raise KeyboardInterrupt

        short = {"run_dir": folder, "fused": False, "recipe": replace(RECIPE, epochs=4)}
        for devices in (4, 2, 2):  # both seeds, twice on the same
            with pytest.raises(KeyboardInterrupt):
                fit(devices, on_epoch=stop, **short)
        found = fit(2, **short).history.protocol["device"]
        assert found == f"{device(4)}, then {device(2)}"


@pytest.mark.slow
@with_four_devices
def test_methods_with_memory_generations_and_peers_learn_the_same():
    for method in ("CRD", "BornAgain", "DML", "SimKD", "PSKD"):
        run = fit(4, method=method)
        # What a bank or a peer feeds back makes more of rounding than one network does.
        same(run, fit(1, method=method), rtol=1e-3)
        kdlib.evaluate(run.student, make_tiny().test)  # SimKD's holds a part of its teacher


@with_four_devices
def test_as_many_as_deal_the_seeds_out_evenly_unless_told():
    shape = lambda *told: dict(parallel.mesh(*told).shape)
    assert shape(None, 2, 16) == {"seeds": 2, "pictures": 1}
    assert shape(None, 3, 16) == {"seeds": 3, "pictures": 1}
    assert shape(None, 5, 16) == shape(None, 1, 16) == {"seeds": 1, "pictures": 1}
    assert shape(4, 6, 16) == {"seeds": 2, "pictures": 2}
    for devices in (5, 0, -1):
        with pytest.raises(ValueError, match=f"devices={devices}: JAX has 4"):
            parallel.mesh(devices, 5, 16)
    with pytest.raises(ValueError, match="3 can't share a batch of 16 evenly"):
        fit(3, seeds=1)
    jax.config.update("jax_default_device", jax.devices()[2])  # as --gpu_id 2 does
    assert parallel.mesh(None, 4, 16).devices.tolist() == [[jax.devices()[2]]]
    with pytest.raises(ValueError, match="JAX has 1 to use here"):
        parallel.mesh(2, 4, 16)
    with jax.default_device("cpu"):
        assert parallel.mesh(None, 4, 16).devices.tolist() == [[jax.devices()[0]]]
    recipe = replace(RECIPE, epochs=1)
    leaf = jax.tree.leaves(nnx.to_pure_dict(nnx.state(fit(None, recipe=recipe).student)))[0]
    assert leaf.devices() == {jax.devices()[2]}


def test_the_command_line_says_how_many_there_are(tmp_path):
    command = [sys.executable, str(HERE.parent / "train.py"), "--devices", "2", "--dataset",
               "shapes", "--arch", "ResNet8x0.25", "--train_path", str(tmp_path)]  # fmt: skip
    reply = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    assert reply.returncode == 2 and reply.stderr == "error: devices=2: JAX has 1 to use here\n"


@pytest.mark.skipif(SEVERAL, reason="this JAX can use several devices")
def test_an_older_jax_uses_one_and_says_so(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [*jax.devices()] * 4)
    assert parallel.mesh(None, 2, 16).size == 1
    with pytest.raises(ValueError, match=r"devices=2: with JAX .+ it is one; take 0\.8"):
        parallel.mesh(2, 2, 16)
