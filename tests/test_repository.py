"""The repository itself: requirements, notebooks, pretrained files, imports, records."""

import ast
import dataclasses
import itertools
import json
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdlib
from figures import controls, draw
from kdlib import check, checkpoint, distillers, metrics, report, transfer
from kdlib.history import History
from kdlib.presets import PRESETS, TABLES

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PREPARE = runpy.run_path(str(ROOT / "notebooks" / "prepare.py"))
EXERCISES = runpy.run_path(str(check.FILE))["EXERCISES"]

# From the ground up; a module may import from its own floor's left and from the floors before.
FLOORS = [
    "files", "names", "models", "others", "checkpoint", "fingerprint", "data", "metrics",
    "distillers", "transfer", "history", "progress", "dot", "parallel", "score", "program", "train",
    "analysis", "tensorboard", "report", "plots", "check", "presets", "cli", "compare",
]  # fmt: skip


def modules():
    for path in sorted((ROOT / "kdlib").rglob("*.py")):
        parts = path.relative_to(ROOT / "kdlib").with_suffix("").parts
        if parts != ("__init__",):
            yield path, parts[0]


def imported(path) -> set[str]:
    """Floors of kdlib that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "kdlib":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kdlib."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("kdlib.")}
    return found


def test_imports_only_go_down():
    for path, floor in modules():
        above = {name for name in imported(path) if FLOORS.index(name) > FLOORS.index(floor)}
        assert not above, f"{path.relative_to(ROOT)} imports upwards: {above}"


def code_lines(path) -> int:
    """Lines of a file that are neither blank, nor comments, nor docstrings."""
    text = path.read_text()
    said = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            said |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(1 for i, line in lines if line.strip() and line.strip()[0] != "#" and i not in said)


def test_files_and_functions_are_read_in_one_sitting():
    for path, floor in modules():
        lines = path.read_text().count("\n")
        is_method = floor in ("distillers", "transfer") and path.stem not in (
            "base", "supervised", "__init__",
        )  # fmt: skip
        assert lines <= (120 if is_method else 300), f"{path.name}: {lines} lines"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 75, f"{path.name}:{node.name}: {length} lines"
    # 40 methods, 5 kinds of network, 4 transfers, fast convolutions, several devices, teachers from
    # elsewhere, and every wrong input named: no room for a second way to do a thing.
    assert sum(code_lines(path) for path in (ROOT / "kdlib").rglob("*.py")) < 3885


def test_public_functions_are_documented():
    for path, _ in modules():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def requirements() -> list[str]:
    return [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]


def test_environment_yml_has_the_requirements_of_pyproject():
    pip_section = (ROOT / "environment.yml").read_text().split("- pip:")[1]
    listed = re.findall(r"^ +- (.+)$", pip_section, re.MULTILINE)
    assert sorted(listed) == sorted(requirements())


def test_constraints_name_no_index_and_pin_what_is_required():
    text = (ROOT / "constraints.txt").read_text()
    assert "http" not in text and "--" not in text
    pinned = {name.lower().replace("-", "_") for name in re.findall(r"^([\w-]+)==", text, re.M)}
    for requirement in requirements():
        assert re.match(r"[\w-]+", requirement)[0].lower().replace("-", "_") in pinned, requirement


@pytest.mark.parametrize("module", ["kdlib", "train_w_kd"])
def test_a_start_is_quick_and_leaves_heavy_packages_out(module):
    code = (
        "import time, sys; t = time.time(); import jax, flax.nnx; base = time.time() - t;"
        f"import {module};"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'matplotlib.pyplot',"
        "'tensorboardX', 'PIL', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy; print(time.time() - t - base)"
    )
    run = [sys.executable, "-c", code]
    reply = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(reply.stdout) < 2


# --- notebooks


def cells(path, kind=None):
    notebook = json.loads(path.read_text())
    return [c for c in notebook["cells"] if kind in (None, c["cell_type"])]


def source(cell) -> str:
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
class TestNotebook:
    def test_it_was_run_from_top_to_bottom_without_noise(self, path):
        code = [c for c in cells(path, "code") if source(c).strip()]
        assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
        for cell in code:
            for output in cell["outputs"]:
                assert output["output_type"] != "error", source(cell)
                assert output.get("name") != "stderr", output
                assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})

    def test_it_is_small_and_has_no_metadata_of_one_machine(self, path):
        assert path.stat().st_size <= 500_000
        notebook = json.loads(path.read_text())
        assert PREPARE["prepare"](json.loads(path.read_text())) == notebook

    def test_cells_are_short(self, path):
        for cell in cells(path, "code"):
            if not source(cell).startswith(PREPARE["MARK"]):
                assert len(source(cell).splitlines()) <= 40

    def test_checked_cells_are_marked_well_and_silent(self, path):
        marked = 0
        for cell in cells(path, "code"):
            for line in source(cell).splitlines():
                if "NBVAL_" in line:
                    assert line.strip() == "# NBVAL_CHECK_OUTPUT", line
                    assert cell["outputs"], "a checked cell without output checks nothing"
                    marked += 1
        assert marked >= 2

    def test_no_shell_lines_and_no_pip_that_runs_locally(self, path):
        for cell in cells(path, "code"):
            assert not re.search(r"^\s*[!%]", source(cell), re.MULTILINE)

    def test_its_contents_links_lead_somewhere(self, path):
        text = "\n".join(source(c) for c in cells(path, "markdown"))
        heads = {re.sub(r"\s+", "-", h.strip()) for h in re.findall(r"^#+ (.+)$", text, re.M)}
        for anchor in re.findall(r"\]\(#([^)]+)\)", text):
            assert anchor in heads, anchor

    def test_the_readme_links_to_it(self, path):
        assert f"notebooks/{path.name}" in (ROOT / "README.md").read_text()


def test_the_time_of_a_notebook_s_run_is_kept_until_the_next():
    at = lambda second: f"2026-01-01T00:00:{second:02d}.000000Z"
    timed = lambda *ends: dict(
        zip(("iopub.status.busy", "iopub.status.idle"), map(at, ends), strict=False)
    )
    cell = lambda **metadata: {"cell_type": "code", "source": "1", "metadata": metadata}
    cells = [cell(execution=timed(0, 20)), cell(execution=timed(30, 33)),
             cell(execution=timed(40)), cell()]  # fmt: skip
    once = PREPARE["prepare"]({"cells": cells, "metadata": {}})  # the third was stopped
    assert once["metadata"]["kdlib"] == {"seconds": 23}
    assert not any(cell["metadata"] for cell in once["cells"])
    assert PREPARE["prepare"](once)["metadata"]["kdlib"] == {"seconds": 23}
    assert PREPARE["prepare"]({"cells": [cell()], "metadata": {}})["metadata"]["kdlib"] == {
        "seconds": None
    }


def test_exercises_are_asked_once_and_answered_in_solutions():
    asked = {}
    for path in NOTEBOOKS:
        found = re.findall(r'check\.answer\("(\d\d-\d)"', path.read_text().replace('\\"', '"'))
        asked[path.stem] = found
    solved = asked.pop("solutions")
    lessons = [exercise for found in asked.values() for exercise in found]
    assert sorted(lessons) == sorted(solved) == sorted(EXERCISES)
    for cell in cells(ROOT / "notebooks" / "solutions.ipynb", "code"):
        if "check.answer" in source(cell):
            assert "passed" in "".join("".join(o.get("text", "")) for o in cell["outputs"])


def naive_entropy(logits, temperature):
    p = jax.nn.softmax(logits / temperature)
    return -(p * jnp.log(p)).sum(-1)


def from_step_one(steps, decay=0.99):
    """What is left of the start where the first step is step 1."""
    return np.prod([min(decay, (1 + step) / (10 + step)) for step in range(1, steps + 1)])


def one_sided(differences):
    """The share of sign choices whose mean is as far *above* zero."""
    signs = np.array(list(itertools.product([-1, 1], repeat=len(differences))))
    return ((signs * differences).mean(-1) >= abs(np.mean(differences)) - 1e-9).mean()


def one_gap(student, plain, teacher):
    """The share closed as if the plain student's luck were in the gains alone."""
    return metrics.interval((student - plain) / (teacher - plain.mean()))


@pytest.mark.parametrize(("exercise", "near", "difference"), [
    ("02-1", naive_entropy, "got [nan], expected [0] there"),
    ("05-2", from_step_one, "got [0.18181818 0.004995   0.00029091], expected [0.1 "),
    ("09-1", one_sided, "got [0.03125 0.125   0.5    ], expected [0.0625 0.25   1.    ] there"),
    ("09-2", one_gap, "got [0.25006438], expected [0.37694221] there"),
])  # fmt: skip
def test_nearly_right_answers_are_refused_with_what_differs(exercise, near, difference, capsys):
    check.answer(exercise, near)
    assert difference in capsys.readouterr().out


def test_teachers_that_tell_less_are_as_sure_of_the_class_they_name():
    logits = 3 * jax.random.normal(jax.random.key(0), (50, 5))
    moved, flat = controls.shuffled(logits, jax.random.key(1)), controls.alike(logits, 4.0)
    named = np.asarray(logits.argmax(-1))
    assert (np.sort(moved) == np.sort(logits)).all()
    rows, (before, after) = np.arange(50), (jax.nn.softmax(z / 4) for z in (logits, flat))
    assert (moved[rows, named] == logits[rows, named]).all()
    assert np.allclose(before[rows, named], after[rows, named], rtol=1e-5)
    others = lambda z: np.asarray(z)[np.arange(5) != named[:, None]].reshape(50, 4)
    assert np.ptp(others(flat), 1).max() == 0
    orders = {tuple(row) for row in np.argsort(np.argsort(others(moved)), 1)}
    places = (others(moved)[:, :, None] == others(logits)[:, None]).mean(0)  # from each to each
    assert len(orders) > 12 and np.allclose(places, 1 / 4, atol=0.2)


def test_unfinished_and_wrong_answers_are_named_not_raised(capsys):
    def stub(*args):
        raise NotImplementedError

    for exercise in EXERCISES:
        if exercise != "01-2":
            check.answer(exercise, stub)
            assert "not done yet" in capsys.readouterr().out
            check.answer(exercise, lambda *args: np.zeros(3))
            assert f"exercise {exercise}: not yet" in capsys.readouterr().out
            check.answer(exercise, lambda *args: None)
            assert "it returns nothing: is there a return?" in capsys.readouterr().out, exercise
    with pytest.raises(ValueError, match="no exercise"):
        check.answer("99-9", stub)


def test_the_set_up_cell_works_from_an_empty_folder_on_colab(tmp_path, monkeypatch):
    """With git and pip imitated: what would be run, in which order."""
    ran, content = [], tmp_path / "content"
    content.mkdir()
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    run = lambda address: exec(
        PREPARE["SETUP"].format(address=address).replace("/content", str(content)), {})  # fmt: skip
    with pytest.raises(AssertionError, match="upload kd-cookbook"):
        run("")
    for name in ("kd-cookbook/", "some-other-name-main/", ""):  # as packed by whatever packs
        with zipfile.ZipFile(content / "kd-cookbook.zip", "w") as archive:
            archive.writestr(f"{name}pyproject.toml", "")
            archive.writestr(f"{name}kdlib/__init__.py", "")
        ran.clear()
        run("")
        assert (content / "kd-cookbook" / "kdlib" / "__init__.py").exists()
        assert sys.path[0] == str(content / "kd-cookbook")
        installed = " ".join(" ".join(command) for command in ran)
        assert "--no-deps" in installed and not re.search(r"\b(jax|flax|jaxlib)\b", installed)
        shutil.rmtree(content / "kd-cookbook")
        shutil.rmtree(content / "unpacked", ignore_errors=True)
    (content / "kd-cookbook.zip").unlink()
    monkeypatch.setattr(subprocess, "run", lambda command, check: (
        ran.append(command), (content / "kd-cookbook").mkdir(exist_ok=True)))  # fmt: skip
    ran.clear()
    run("https://example.org/kd")
    assert ran[0][:2] == ["git", "clone"]


# --- pretrained files and records


@pytest.mark.parametrize("name", checkpoint.manifest())
def test_pretrained_files_load_and_are_what_the_manifest_says(name):
    facts = checkpoint.manifest()[name]
    file = checkpoint.PRETRAINED / facts["file"]
    assert checkpoint.sha256(file) == facts["sha256"] and file.stat().st_size < 5_000_000
    model, metadata = checkpoint.load_network(checkpoint.PRETRAINED / name, facts["architecture"])
    assert kdlib.models.cost(model).parameters == facts["parameters"]
    assert metadata["test_accuracy"] == facts["test_accuracy"]
    assert {"data", "recipe", "seed", "device"} <= set(facts)


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("res20_c10", "reduced/demo/teacher"),
        ("res8_c10", "reduced/demo/plain"),
        ("res8_c10_kd", "reduced/demo/SoftLogits-AT-beta=1000"),
        ("res56_c10", "short/demo/teacher"),
        ("res32_c10", "short/demo/plain"),
        ("res32_c10_kd", "short/demo/OFD"),
    ],
)
def test_the_manifest_has_the_accuracies_of_all_recorded_seeds(name, record):
    facts = checkpoint.manifest()[name]
    last = History.load(ROOT / "figures" / f"{record}.json").last()
    assert facts["every_seed"] == [round(float(value), 4) for value in last] and len(last) > 1
    assert facts["test_accuracy"] == facts["every_seed"][0]


@pytest.mark.parametrize("name", ["workshop", "reduced"])  # full's takes a GPU, and is refused
def test_a_preset_s_published_teacher_was_trained_as_the_preset_says(name):
    chosen, facts = PRESETS[name], checkpoint.manifest()[PRESETS[name].pretrained]
    assert facts["architecture"] == chosen.teacher
    asked = json.loads(json.dumps(dataclasses.asdict(chosen.teacher_recipe)))
    assert {key: asked[key] for key in facts["recipe"]} == facts["recipe"]
    assert name != "reduced" or facts["data"]["train"] == chosen.subset  # its students' pictures


def test_every_pretrained_file_is_in_the_manifest():
    files = {p.name for p in (ROOT / "pretrained").glob("*.safetensors")}
    assert files == {facts["file"] for facts in checkpoint.manifest().values()}


@pytest.mark.parametrize(
    "name", [n for n, f in checkpoint.manifest().items() if f["data"]["name"] == "shapes"]
)
def test_shapes_networks_score_what_the_manifest_says(name):
    test = kdlib.load("shapes").test
    found = kdlib.evaluate(kdlib.pretrained(name), test)["accuracy"]
    assert found == pytest.approx(checkpoint.manifest()[name]["test_accuracy"], abs=0.002)


@pytest.mark.slow
@pytest.mark.tfds
@pytest.mark.parametrize(
    "name", [n for n, f in checkpoint.manifest().items() if f["data"]["name"] == "cifar10"]
)
def test_cifar_networks_score_what_the_manifest_says(cifar10, name):
    facts = checkpoint.manifest()[name]
    if facts["data"]["source"] != cifar10.source:
        pytest.skip(f"{name} was measured on {facts['data']['source']}, here is {cifar10.source}")
    found = kdlib.evaluate(kdlib.pretrained(name), cifar10.test)["accuracy"]
    assert found == pytest.approx(facts["test_accuracy"], abs=0.002)


def test_a_damaged_pretrained_file_is_refused(tmp_path):
    model = kdlib.models.build("ResNet8x0.25", 2)
    facts = {"architecture": "ResNet8x0.25", "classes": ["a", "b"]}
    path = checkpoint.publish("small", model, facts, tmp_path)
    checkpoint.load_network(tmp_path / "small")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        checkpoint.load_network(tmp_path / "small")


def test_the_readme_s_map_is_the_table_of_methods():
    """A row per distiller, in the table's order, with its place, kind, year and paper."""
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \| .+ \| (.+) \|$", text, re.M)
    expected = [
        (
            name,
            m.where,
            m.what,
            f"[{m.year}](https://arxiv.org/abs/{m.arxiv})" if m.arxiv else str(m.year),
        )
        for name, m in distillers.METHODS.items()
    ]
    assert rows == expected
    for name in [*transfer.TRANSFERS, *transfer.NICKNAMES, *transfer.FAMILIES]:
        if name not in ("plain", "TfKDSelf"):
            assert f"`{name}`" in text, name


@pytest.mark.parametrize("table", ["offline", "online", "self"])
def test_the_recorded_tables_hold_every_method_with_five_seeds(table):
    records = report.recorded(table)
    assert tuple(records.histories) == kdlib.preset("workshop").table(table)
    for name, history in records.histories.items():
        assert len(history.seeds) >= 5 and set(history.final) == set(report.QUALITY), name
        assert history.config["recipe"]["epochs"] == kdlib.preset("workshop").recipe.epochs


def test_every_method_is_in_a_table():
    """What nobody compares, nobody trusts."""
    listed = " ".join(spec for table in ("offline", "online", "self") for spec in TABLES[table])
    for name in [*distillers.METHODS, *transfer.TRANSFERS, *transfer.NICKNAMES]:
        assert name in listed or name == "Supervised", name


def test_the_readme_s_tables_and_sentences_are_the_recorded_ones():
    """What `make figures` would write into README.md stands there."""
    text = (ROOT / "README.md").read_text()
    for block in draw.BLOCKS:
        assert text.count(f"<!-- draw.py: {block} -->") == 1, block
    assert draw.fill(text) == text, "run make figures"
    number = accuracies(report.recorded("offline"))["OFD"]
    assert number in text and draw.fill(text.replace(number, "98.4 ± 1.3")) == text


def accuracies(records) -> dict[str, str]:
    return {n: str(kdlib.metrics.interval(h.last())) for n, h in records.histories.items()}


def test_a_number_outside_the_readme_s_written_blocks_has_no_interval():
    """Accuracies stand where they are written from records, and nowhere else."""
    text = (ROOT / "README.md").read_text()
    outside = re.sub(r"<!-- draw\.py: .*?<!-- end -->", "", text, flags=re.DOTALL)
    assert not re.findall(r"\d ± \d", outside)


def test_a_sentence_whose_verdict_the_records_no_longer_give_is_refused():
    records = report.recorded("shapes")
    assert draw.verdict(records, "SoftLogits", "better").startswith("3.9")
    with pytest.raises(ValueError, match="rewrite"):
        draw.verdict(records, "AT(beta=100)", "better")
    with pytest.raises(ValueError, match="no block"):
        draw.fill("<!-- draw.py: nothing -->\n<!-- end -->".replace("\n", "\nold\n"))


def test_notebook_09_types_no_result():
    """Its prose holds no decimals, and every printed result is one that nbval compares."""
    path = ROOT / "notebooks" / "09_results.ipynb"
    for cell in cells(path, "markdown"):
        text = re.sub(r"arXiv:[\d.]+|0\.975|95 % interval", "", source(cell))
        assert not re.findall(r"\d[.,]\d|\d %", text), text
    for cell in cells(path, "code"):
        kinds = {kind for output in cell["outputs"] for kind in output.get("data", {"text": ""})}
        if not kinds or "image/png" in kinds or re.search(r"setup\(|answer\(", source(cell)):
            continue
        assert "# NBVAL_CHECK_OUTPUT" in source(cell), source(cell)


def test_an_interval_in_a_notebook_s_prose_is_one_that_is_printed():
    """When records are measured again, sentences that keep an old interval are found."""
    intervals = lambda text: re.findall(r"\d+\.\d+ ± \d+\.\d+", text)
    printed = {found for path in NOTEBOOKS for cell in cells(path, "code")
               for output in cell["outputs"] for found in intervals(shown(output))}  # fmt: skip
    for path in NOTEBOOKS:
        for cell in cells(path, "markdown"):
            for sentence in re.split(r"(?<=[.:;?]) ", source(cell)):
                if "README of" not in sentence:  # what others published
                    assert set(intervals(sentence)) <= printed, f"{path.name}: {sentence}"


def shown(output) -> str:
    """The text of a cell's output, without pictures."""
    kinds = output.get("data", {}) | {"text/plain, printed": output.get("text", "")}
    return " ".join("".join(text) for kind, text in kinds.items() if kind.startswith("text"))


def test_every_recorded_table_has_its_figures():
    for name in draw.TABLES:
        folder = ROOT / "figures" / name
        if (folder / "records.json").exists():
            drawn = {path.stem for path in folder.glob("*.png")}
            assert {"curves", "comparison", "gap", "cost", "calibration"} <= drawn, name
            records = report.Records.load(folder)
            table = report.results_table(records.histories, teacher=records.teacher)
            assert (folder / "table.md").read_text().startswith(table), name


def test_the_readme_s_ratios_are_the_recorded_ones():
    works = json.loads((ROOT / "benchmarks/results/speed-cpu.json").read_text())["works"]
    text = (ROOT / "README.md").read_text()
    for work, words in {
        "plain": "{} times as long for a plain",
        "soft logits": "{} with soft logits",
        "attention": "{} with attention",
        "teacher": "{} for the ResNet-56 itself",
    }.items():
        assert words.format(f"{works[work]['ratio']['PyTorch, resident']:.2f}") in text, work
    pairs = (work["seconds_per_step"].values() for work in works.values())
    each = [mine / peer for sides in pairs for mine, peer in zip(*sides, strict=True)]
    spread = f"which spread from {min(each):.2f} to {max(each):.2f}"
    assert f"of {len(each) // 4} rounds, {spread}" in text
    assert f"in {works['soft logits']['first_epoch_seconds']:.0f} s each time" in text
    alone = json.loads((ROOT / "benchmarks/results/speed-cpu-one-core.json").read_text())
    ratio = lambda work: f"{alone['works'][work]['ratio']['PyTorch, resident']:.2f}"
    *first, last = map(ratio, ("plain", "soft logits", "attention", "teacher"))
    told = f"on one core {', '.join(first)} and {last} ({alone['rounds'] * alone['passes']} rounds)"
    assert told in text and alone["device"] == "cpu, 1 core"
    alone = json.loads((ROOT / "benchmarks/results/speed-cpu-older.json").read_text())
    *first, last = map(ratio, ("plain", "soft logits", "attention", "teacher"))
    assert f"gave {', '.join(first)} and {last} ({alone['rounds']} rounds): [benchmarks" in text
    floor = json.loads((ROOT / "benchmarks/results/floor-cpu.json").read_text())
    assert floor["device"] == alone["device"] == "cpu, 2 cores"
    far = f"{floor['summary']['step_over_floor']:.1f} times as long as its multiply-adds alone"
    assert far in text
    assert floor["summary"]["floor_seconds"]["operations"] == max(
        floor["summary"]["floor_seconds"].values()
    )  # else it isn't the multiply-adds that count
    taught = report.recorded("short/demo").histories[
        "SoftLogits"
    ]  # the original's command, but shorter
    hours = 200 * np.median(taught.curve("seconds")) / 3600
    assert f"200 epochs would take some {hours:.0f} hours on 2 CPU cores" in text
    profile = json.loads((ROOT / "benchmarks/results/profile-cpu.json").read_text())
    ratios = [t["kdlib, to kernels"] / t["PyTorch, to kernels"] for t in profile["layers"].values()]
    assert f"{min(ratios):.1f} to {max(ratios):.1f} times as long as they" in text


@pytest.mark.parametrize(("printed", "passes"), [("2.5000", True), ("2.5001", False)])
def test_a_changed_checked_output_makes_the_run_fail(tmp_path, printed, passes):
    """The flags of `make test`, on a notebook whose stored output is right or wrong."""
    cell = {
        "cell_type": "code", "id": "a", "metadata": {}, "execution_count": 1,
        "source": "# NBVAL_CHECK_OUTPUT\nprint(f'{5 / 2:.4f}')",
        "outputs": [{"output_type": "stream", "name": "stdout", "text": f"{printed}\n"}],
    }  # fmt: skip
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "one.ipynb").write_text(json.dumps(PREPARE["prepare"](notebook)))
    flags = re.search(r"-p no:python.*?nbval_sanitize\.cfg", (ROOT / "Makefile").read_text(), re.S)
    command = [
        sys.executable,
        "-m",
        "pytest",
        *flags[0].replace("\\\n", " ").split(),
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode == 0) == passes, done.stdout
    assert passes or "1 failed" in done.stdout
