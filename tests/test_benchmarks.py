"""The benchmarks at a tiny scale; what they do on a GPU alone is imitated."""

import importlib
import json
import types

import jax
import numpy as np
import pytest

import kdlib
from benchmarks import cost, floor, records
from kdlib.program import Program


@pytest.fixture
def speed(monkeypatch):
    """``benchmarks.speed`` with small networks."""
    pytest.importorskip("torch")
    found = importlib.import_module("benchmarks.speed")
    monkeypatch.setattr(found, "WORKS", {"teacher": (8, None), "plain": (8, None),
                                         "soft logits": (8, 8), "attention": (8, 8)})  # fmt: skip
    return found


def tiny_recipe(batch_size=8, **settings):
    return kdlib.Recipe(batch_size=batch_size, zero_init=False, **settings)


# --- records


def test_a_record_goes_on_where_device_and_sizes_are_the_same(tmp_path, capsys):
    path, facts = tmp_path / "record.json", {"device": "one", "shape": (1, 2)}
    record = records.begin(path, facts, "works")
    assert record["works"] == {}
    record["works"]["a"] = 1
    records.save(path, record)
    assert records.begin(path, facts, "works")["works"] == {"a": 1}
    assert not capsys.readouterr().out
    assert records.begin(path, facts | {"device": "two"}, "works")["works"] == {}
    assert "was of another device: begun anew" in capsys.readouterr().out
    path.write_text("{")
    with pytest.raises(ValueError, match="delete it"):
        records.begin(path, facts, "works")


def test_what_is_left_is_what_was_not_measured_or_all():
    done = {"a": 1}
    assert records.left(done, ["a", "b"]) == ["b"] and done == {"a": 1}
    assert records.left(done, ["a"]) == ["a"] and done == {}


# --- speed


def test_sides_whose_losses_differ_are_found(speed, monkeypatch):
    """Of the peer's first four steps without momentum."""
    data, theirs, recipe = cost.noise(64), speed.Theirs, tiny_recipe(learning_rate=10.0)
    losses = speed.same_losses("plain", data, recipe)
    assert np.isclose(*losses.values(), rtol=3e-4)  # rounding is far below what is allowed

    def without(*args, **options):
        side = theirs(*args, **options)
        side.trainer.optimizer.param_groups[0].update(momentum=0.0, nesterov=False)
        return side

    monkeypatch.setattr(speed, "Theirs", without)
    with pytest.raises(AssertionError, match="plain: the losses differ"):
        speed.same_losses("plain", data, recipe)


def test_losses_are_compared_in_full_float32(speed):
    """Convolutions and products of the forward pass and of the gradients, on both sides."""
    torch = pytest.importorskip("torch")
    tf32 = lambda: (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    before = tf32()

    def precisions():
        ours = speed.Ours("plain", cost.noise(16), tiny_recipe())
        order = ours.program.order(ours.state)
        step = jax.jit(ours.program._step)
        text = step.lower(ours.state, order, ours.program.frozen, ours.program.pictures).as_text()
        lines = [x for x in text.splitlines() if "stablehlo.convolution" in x or "dot_general" in x]
        return [line.count("HIGHEST") for line in lines]

    with speed.exact():
        assert tf32() == (False, False)
        inside = precisions()
    assert len(inside) > 15 and set(inside) == {2}
    assert set(precisions()) == {0}
    with pytest.raises(ZeroDivisionError), speed.exact():
        raise ZeroDivisionError
    assert tf32() == before and True in before


def test_one_work_a_call_adds_up_to_one_record(speed, tmp_path, monkeypatch, capsys):
    result = {"seconds_per_step": {"kdlib": [2.0], "it": [1.0]}}
    monkeypatch.setattr(speed, "measure", lambda *_: result)
    monkeypatch.setattr(speed, "same_losses", lambda *_: {"kdlib": 1.0})
    path = tmp_path / "record.json"
    run = lambda work, rounds="5": speed.main(
        ["--work", work, "--steps", "1", "--rounds", rounds, "--out", str(path)])  # fmt: skip
    for work in ("plain", "attention", "teacher"):
        run(work)
    record = json.loads(path.read_text())
    assert list(record["works"]) == ["teacher", "plain", "attention"]
    assert record["works"]["plain"] == result | {"ratio": {"it": 2.0}, "losses": {"kdlib": 1.0}}
    shown = capsys.readouterr().out.split("record:")[-2].splitlines()[2:]
    assert [line.split()[0] for line in shown] == [w for w in record["works"] for _ in range(2)]
    run("plain", rounds="6")
    assert "of another rounds: begun anew" in capsys.readouterr().out
    assert list(json.loads(path.read_text())["works"]) == ["plain"]


def test_passes_go_over_all_works_and_their_rounds_are_joined(speed, tmp_path, monkeypatch):
    order, times = [], iter([2.0, 3.0, 4.0, 9.0])

    def measure(work, *_):
        order.append(work)
        return {"seconds_per_step": {"kdlib": [next(times)] * 2, "it": [1.0, 2.0]}}

    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr(speed, "same_losses", lambda *_: {})
    path = tmp_path / "record.json"
    speed.main(["--work", "plain", "teacher", "--rounds", "2", "--passes", "2", "--out", str(path)])
    assert order == ["plain", "teacher"] * 2
    plain = json.loads(path.read_text())["works"]["plain"]
    assert plain["seconds_per_step"] == {"kdlib": [2.0, 2.0, 4.0, 4.0], "it": [1.0, 2.0] * 2}
    assert plain["ratio"] == {"it": 2.0}  # of 2, 1, 4 and 2


def test_on_a_gpu_kdlib_is_timed_with_and_without_cuda_graphs(speed, monkeypatch):
    assert speed.graphs(False) == {}
    found = speed.graphs(True)
    assert bool(found) == (jax.__version_info__ >= (0, 10))
    made, side = [], types.SimpleNamespace(epoch=lambda: 0.0)
    monkeypatch.setattr(speed, "Ours", lambda *args: made.append(args[3:]) or side)
    monkeypatch.setattr(speed, "Theirs", lambda *args: side)
    monkeypatch.setattr(speed, "graphs", lambda gpu: found)
    measure = lambda **skip: speed.measure("plain", None, None, 1, 1, **skip)
    result = measure()
    assert list(result["seconds_per_step"]) == ["kdlib", *found, "PyTorch, resident"]
    assert set(speed.joined([result])["ratio"]) == {*found, "PyTorch, resident"}
    assert made == [(), *((options,) for options in found.values())]
    skipped = measure(skip=[*found, "PyTorch, resident"])
    assert list(skipped["seconds_per_step"]) == ["kdlib"]


@pytest.mark.parametrize("name", ["xla_gpu_enable_command_buffer", "xla_gpu_no_such_option"])
def test_options_of_xla_reach_the_program_of_an_epoch(speed, name, monkeypatch):
    """JAX refuses names and values that it doesn't know, on a CPU too."""
    monkeypatch.setattr(cost, "fused", lambda: True)
    monkeypatch.setattr(speed, "WORKS", {"plain": ("8x0.25", None)})
    options = {name: speed.GRAPHS["xla_gpu_enable_command_buffer"]}
    ours = speed.Ours("plain", cost.noise(4), tiny_recipe(2), options)
    if name in speed.graphs(True).get("kdlib, CUDA graphs", {}):
        assert ours.epoch() > 0
    else:
        with pytest.raises(Exception, match=f"(?i)option.*{name}|{name}.*(type|field)"):
            ours.epoch()


def test_the_loader_s_workers_stay_and_keep_the_order(speed):
    torch = pytest.importorskip("torch")
    split = cost.noise(16).train
    loader = speed.peer.Loader(
        split.images, split.labels, 4, torch.device("cpu"), 0, 0.0, workers=1
    )
    workers = set()
    for order in (np.arange(16), np.arange(16)[::-1]):
        batches = [[x.numpy() for x in batch] for batch in loader(order)]
        images, labels = (np.concatenate(each) for each in zip(*batches, strict=True))
        assert (images.transpose(0, 2, 3, 1) == split.images[order]).all()
        assert (labels == split.labels[order]).all()
        workers |= {worker.pid for worker in loader.batches._iterator._workers}
    assert len(workers) == 1


def test_the_peer_is_compiled_in_each_mode(speed, monkeypatch):
    torch, modes = pytest.importorskip("torch"), []
    monkeypatch.setattr(torch, "compile", lambda f, mode: modes.append(mode) or f)
    data, recipe = cost.noise(16), tiny_recipe()
    for batches, options in speed.variants(True).values():
        assert speed.Theirs("plain", data, recipe, batches, **options).trainer.bfloat16
    assert modes == ["default", "reduce-overhead"]


# --- cost


@pytest.fixture
def small_curves(monkeypatch):
    """A base and two curves of two points each; nothing is measured, but noted."""
    monkeypatch.setattr(cost, "BASE", {"depth": 8, "width": 1, "batch": 8, "pictures": 16,
                                       "seeds": 1, "devices": 1})  # fmt: skip
    monkeypatch.setattr(cost, "CURVES", {"depth": (8, 14), "seeds": (1, 2)})
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    measured = []

    def measure(**point):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append((point["depth"], point["seeds"]))
        return {"seconds": [1.0], "bytes": 1, "first_step_seconds": 1.0, "multiply_adds": 1}

    monkeypatch.setattr(cost, "measure", measure)
    return measured


def test_cost_curves_go_on_where_they_were_cut(small_curves, tmp_path):
    run = lambda: cost.main(["--curve", "depth", "seeds", "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        run()
    small_curves.clear()
    run()
    assert small_curves == [(8, 2)]
    record = json.loads((tmp_path / "cpu.json").read_text())
    assert {name: list(points) for name, points in record["curves"].items()} == {
        "depth": ["8", "14"], "seeds": ["1", "2"]}  # fmt: skip
    assert (tmp_path / "cpu.png").exists()
    small_curves.clear()
    with pytest.raises(KeyboardInterrupt):  # a whole record is measured anew
        run()
    assert len(small_curves) == 3


def test_cost_curves_of_another_machine_are_not_lost_for_one(small_curves, tmp_path, capsys):
    cost.main(["--curve", "depth", "--out", str(tmp_path)])
    path = tmp_path / "cpu.json"
    path.write_text(path.read_text().replace('"device": "cpu', '"device": "another cpu'))
    small_curves.clear()
    with pytest.raises(SystemExit):
        cost.main(["--curve", "seeds", "--out", str(tmp_path)])
    assert "holds curves of another cpu" in capsys.readouterr().err and not small_curves
    cost.main(["--curve", "depth", "--out", str(tmp_path)])
    assert small_curves == [(8, 1), (14, 1)]


@pytest.mark.parametrize("fused", [False, True])
def test_a_point_is_compiled_once(fused, monkeypatch):
    monkeypatch.setattr(cost, "fused", lambda: fused)
    recipe, traced = kdlib.Recipe, []
    monkeypatch.setattr(kdlib, "Recipe", lambda **s: recipe(**s | {"bfloat16": False}))
    objective = Program.objective
    monkeypatch.setattr(Program, "objective", lambda *args: traced.append(0) or objective(*args))
    point = cost.measure(8, 0.25, 4, 8, seeds=2, devices=1, rounds=2)
    assert len(traced) == 1 and len(point["seconds"]) == 2 and point["bytes"] > 1e5


# --- profile and floor


def test_a_gpu_s_kernels_are_summed_by_kind(monkeypatch, tmp_path, capsys):
    """The profiler's planes are imitated; names are of the kind that it shows."""
    pytest.importorskip("torch")
    profile = importlib.import_module("benchmarks.profile")
    event = lambda name, ms: types.SimpleNamespace(name=name, duration_ns=40e6 * ms)
    line = lambda name, *events: types.SimpleNamespace(name=name, events=events)
    plane = lambda name, *lines: types.SimpleNamespace(name=name, lines=lines)
    seen = [
        event("sm80_xmma_wgrad_implicit_gemm_bf16_nhwckrsc_nhwc_tilesize64", 3),
        event("loop_convert_fusion_12", 1), event("loop_convert_fusion", 1),
        event("input_reduce_fusion_3", 0.5), event("unheard_of", 0.25),
        event("void cudnn::nchwToNhwcKernel", 0.125),
    ]  # fmt: skip
    planes = [
        plane("/device:GPU:0", line("Stream #7(Compute)", *seen),
              line("XLA Ops", event("convolution", 9))),
        plane("/host:CPU", line("Stream #7", event("convolution", 9))),
    ]  # fmt: skip
    monkeypatch.setattr(profile, "traced", lambda run: run() or planes)
    monkeypatch.setattr(profile, "RESULTS", tmp_path)
    monkeypatch.setattr(cost, "fused", lambda: True)
    program = types.SimpleNamespace(
        start=lambda seeds: seeds, run_epoch=lambda state, progress: (state, {})
    )
    monkeypatch.setattr(floor, "program", lambda options, fused: program)
    profile.main()
    record = json.loads((tmp_path / "profile-gpu.json").read_text())
    kinds = {name.split(",")[0].split(":")[0]: ms for name, ms in record["step"]["kinds"].items()}
    assert kinds == {"convolutions": 6, "element by element": 4, "sums": 1, "others": 0.5,
                     "other layouts": 0.25}  # fmt: skip
    assert record["step"]["kernels"]["loop_convert_fusion"] == 4 and record["layers"] == {}
    assert "6.00 ms  convolutions" in capsys.readouterr().out


TINY = ["--teacher", "ResNet8x0.25", "--student", "ResNet8x0.25", "--steps", "2", "--batch_size",
        "2", "--seeds", "2", "--rounds", "1", "--matrix", "64", "--megabytes", "1"]  # fmt: skip


def test_the_floor_is_the_larger_of_operations_and_bytes():
    step = {"operations": 10.0, "bytes": 40.0}
    parts = {"ceilings": {"operations": 5.0, "bytes": 10.0}, "step": step,
             "seeds, 1": {"seconds": [16.0, 16.0, 99.0], "test_seconds": 2.0},
             "seeds, 5": {"seconds": [40.0], "test_seconds": 9.0}}  # fmt: skip
    found = floor.summary({"steps": 2, "parts": parts})
    assert found["floor_seconds"] == {"operations": 2.0, "bytes": 4.0}
    assert found["step_seconds"] == 8.0 and found["step_over_floor"] == 2.0
    assert found["seeds_ratio"] == 2.5
    assert found["minutes_of_200_epochs"] == 200 * 8 * 390 / 60
    assert found["minutes_with_a_test_each"] == pytest.approx(200 * 9 * 390 / 60)
    step["bytes"] = None  # of a back end that doesn't count
    assert floor.summary({"steps": 2, "parts": parts})["floor_seconds"] == {"operations": 2.0}


def test_operations_are_those_of_the_layers():
    """XLA counts the same step, without padding, and with what is done element by element."""
    options = types.SimpleNamespace(
        teacher="ResNet14x0.5", student="ResNet8x0.5", batch_size=8, steps=2)  # fmt: skip
    found = floor.counts(options)
    assert 0.8 < found["operations_by_xla"] / found["operations"] < 1.1
    teacher, student = 13 + 2, 7 + 2  # convolutions, those of shortcuts too
    assert sum(found["layouts"].values()) == teacher + 3 * student - 1  # none to the pictures
    assert found["bytes"] > 1e6


def test_ceilings_are_rates(monkeypatch):
    times = iter([2.0, 0.5])
    monkeypatch.setattr(floor, "fastest", lambda *_: next(times))
    assert floor.ceilings(100, 1, np.float32) == {"operations": 1e6, "bytes": 4e6}


def test_a_floor_goes_on_where_it_was_cut(tmp_path, monkeypatch, capsys):
    path, measured = tmp_path / "floor.json", []

    def measure(name):
        def of(options, seeds=None, *_):
            measured.append((name, seeds))
            if len(measured) == 4:
                raise KeyboardInterrupt
            return {"operations": 1, "bytes": 1, "seconds": [1.0], "test_seconds": 1.0}

        return of

    for name in ("ceilings", "counts", "epochs"):
        monkeypatch.setattr(floor, name, measure(name))
    with pytest.raises(KeyboardInterrupt):
        floor.main([*TINY, "--out", str(path)])
    assert list(json.loads(path.read_text())["parts"]) == ["ceilings", "step", "seeds, 1"]
    capsys.readouterr()
    floor.main([*TINY, "--out", str(path)])
    assert measured[3:] == [("epochs", 2)] * 2
    shown = capsys.readouterr().out
    assert shown.startswith("seeds, 2: measured\nceilings: ") and "2 seeds take 1.00" in shown
    assert json.loads(path.read_text())["summary"]["step_seconds"] == 0.5
    floor.main([*TINY, "--out", str(path)])  # anew
    assert len(measured) == 9


@pytest.mark.parametrize("fused", [False, True])
def test_epochs_of_several_seeds_are_timed(fused, monkeypatch):
    """One after the other, or as one program, in bfloat16."""
    monkeypatch.setattr(cost, "fused", lambda: fused)
    states, run = [], Program.run_epoch
    note = lambda self, state, progress: (
        states.append(state.step.shape) or run(self, state, progress)
    )
    monkeypatch.setattr(Program, "run_epoch", note)
    sizes = {"batch_size": 2, "steps": 2, "rounds": 1}
    options = types.SimpleNamespace(teacher="ResNet8x0.25", student="ResNet8x0.25", **sizes)
    found = floor.epochs(options, 2)
    assert states == ([(2,)] * 2 if fused else [()] * 4)
    assert len(found["seconds"]) == 1 and min(*found["seconds"], found["test_seconds"]) > 0


def test_the_floor_of_a_tiny_step_is_stated(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(floor, "epochs", lambda *_: {"seconds": [2.0], "test_seconds": 1.0})
    floor.main([*TINY, "--out", str(tmp_path / "floor.json")])
    record = json.loads((tmp_path / "floor.json").read_text())
    parts, found = record["parts"], record["summary"]
    for name, seconds in found["floor_seconds"].items():
        assert 0 < seconds == parts["step"][name] / parts["ceilings"][name] < 1
    assert "a step: 1000.00 ms" in capsys.readouterr().out and record["device"].startswith("cpu")
