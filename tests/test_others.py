"""Teachers from elsewhere: their files' answers, what is refused, and that nothing is executed."""

import io
import os
import pathlib
import pickle
import struct
import zipfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization
from jax import lax
from PIL import Image

import evaluate
import kdlib
import train_w_kd
from kdlib import checkpoint, cli, compare, others

DATA = pathlib.Path(__file__).resolve().parent / "data"  # make_torch_files.py there made them
ANSWERS = dict(np.load(DATA / "torch_logits.npz"))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TORCH_FILES = {
    "padded_legacy.th": "padded", "padded_zip.pt": "padded", "projected_zip.pt": "projected",
    "projected_strides_legacy.pth": "projected", "projected_strides_zip.pth": "projected",
    "projected_double.pth": "projected", "padded_half_parameters.pth": "half",
}  # fmt: skip


# --- the original cookbook's files


def original_tree(blocks=1, width=4, classes=5, seed=0):
    """Variables as the original names them, of a trained network's spread, by their full names."""
    rng = np.random.default_rng(seed)
    tree = {"params": {}, "batch_stats": {}}

    def conv(name, size, c_in, c_out):
        kernel = rng.normal(0, (2 / (size * size * c_in)) ** 0.5, (size, size, c_in, c_out))
        tree["params"][name] = {"kernel": kernel.astype(np.float32)}

    def norm(name, c):
        draw = lambda low, high: rng.uniform(low, high, c).astype(np.float32)
        tree["params"][name] = {"scale": draw(0.5, 2), "bias": draw(-1, 1)}
        tree["batch_stats"][name] = {"mean": draw(-1, 1), "var": draw(0.5, 2)}

    conv("conv_init", 3, 3, width)
    norm("bn_init", width)
    c_in = width
    for i in range(3):
        for j in range(blocks):
            name, c = f"block_{i}_{j}", width * 2**i
            conv(f"{name}/conv0", 3, c_in, c)
            norm(f"{name}/bn0", c)
            conv(f"{name}/conv1", 3, c, c)
            norm(f"{name}/bn1", c)
            if c_in != c:
                conv(f"{name}/conv_proj", 1, c_in, c)
                norm(f"{name}/bn_proj", c)
            c_in = c
    kernel = rng.normal(0, 0.5, (c_in, classes)).astype(np.float32)
    bias = rng.normal(size=classes).astype(np.float32)
    tree["params"]["classifier"] = {"kernel": kernel, "bias": bias}
    return tree


def original_forward(tree, images, blocks=1):
    """The original's network, written down plainly: every convolution pads "SAME"."""
    params, stats = tree["params"], tree["batch_stats"]

    def conv(name, x, stride=1):
        layout = ("NHWC", "HWIO", "NHWC")
        kernel = params[name]["kernel"]
        return lax.conv_general_dilated(x, kernel, (stride,) * 2, "SAME", dimension_numbers=layout)

    def norm(name, x):
        p, s = params[name], stats[name]
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    x = (images - np.array([113.9, 123.0, 125.3])) / np.array([66.7, 62.1, 63.0])
    x = jax.nn.relu(norm("bn_init", conv("conv_init", x.astype(np.float32))))
    for i in range(3):
        for j in range(blocks):
            name, stride = f"block_{i}_{j}", 2 if i and not j else 1
            y = jax.nn.relu(norm(f"{name}/bn0", conv(f"{name}/conv0", x, stride)))
            y = norm(f"{name}/bn1", conv(f"{name}/conv1", y))
            if f"{name}/conv_proj" in params:
                x = norm(f"{name}/bn_proj", conv(f"{name}/conv_proj", x, stride))
            x = jax.nn.relu(x + y)
    head = params["classifier"]
    return x.mean((1, 2)) @ head["kernel"] + head["bias"]


def nested(name: str) -> list[str]:
    """As the original's modules nest: a block's layers are named with the block's name again."""
    return [name.split("/")[0], name] if "/" in name else [name]


def later(name: str) -> list[str]:
    return nested(name.replace("/bn1", "/norm1").replace("bn_proj", "norm_proj"))


def from_one(name: str) -> list[str]:
    block, _, rest = name.partition("/")
    if not rest:
        return [name]
    i, j = (int(number) + 1 for number in block.split("_")[1:])
    return [f"block_{i}_{j}", rest]


def write_original(path, tree, place=nested):
    """The file of a training state, its variables where ``place`` puts them."""
    state = {"step": np.int32(78000), "params": {}, "batch_stats": {}, "opt_state": {}}
    for kind, layers in tree.items():
        for name, variables in layers.items():
            at = state[kind]
            for part in place(name):
                at = at.setdefault(part, {})
            at.update(variables)
    state["opt_state"] = {"0": {"trace": state["params"]}, "1": {}}
    path.write_bytes(serialization.msgpack_serialize(state))
    return path


def pictures(count, side, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.mark.parametrize("place", [nested, later, from_one, lambda name: [name]])
def test_the_original_s_files_answer_as_the_original_did(tmp_path, place):
    tree = original_tree(blocks=2)
    path = write_original(tmp_path / "res14_c5", tree, place)
    model, facts = checkpoint.load_network(path, "resnet-14x0.25", "abcde")
    images = pictures(3, 16)
    np.testing.assert_allclose(
        model(images).logits, original_forward(tree, images, 2), rtol=1e-4, atol=1e-4
    )
    assert facts["same_padding"] and facts["classes"] == list("01234")
    np.testing.assert_array_equal(model.normalise.mean[...], np.float32([113.9, 123.0, 125.3]))


def test_large_convolutions_pad_as_the_original_s_too(tmp_path):
    """Of a size that a CPU's own convolutions are called for; of two classes of inputs, CIFAR's."""
    tree = original_tree(width=16, classes=100)
    file = write_original(tmp_path / "res8_c100", tree)
    model, _ = checkpoint.load_network(file, "ResNet8", range(100))
    np.testing.assert_array_equal(model.normalise.mean[...], [112, 124, 129])
    model.normalise.mean[...] = jnp.array([113.9, 123.0, 125.3])
    model.normalise.std[...] = jnp.array([66.7, 62.1, 63.0])
    images = pictures(16, 32)
    wanted = original_forward(tree, images)
    np.testing.assert_allclose(model(images).logits, wanted, rtol=1e-4, atol=1e-3)


def test_its_padding_survives_what_is_done_with_a_teacher(tmp_path):
    tree = original_tree()
    path = write_original(tmp_path / "res8", tree)
    images, (model, facts) = pictures(4, 16), checkpoint.load_network(path)
    wanted = model(images).logits
    symmetric = kdlib.models.build("ResNet8x0.25", 5)
    symmetric.eval()
    nnx.update(symmetric, nnx.state(model))
    assert abs(symmetric(images).logits - wanted).max() > 0.1  # it matters
    for other in (nnx.clone(model), nnx.merge(*nnx.split(model))):
        np.testing.assert_array_equal(other(images).logits, wanted)
    told = {key: facts[key] for key in ("architecture", "classes")}
    checkpoint.save_network(tmp_path / "ours", model, told)
    again, _ = checkpoint.load_network(tmp_path / "ours")
    np.testing.assert_array_equal(again(images).logits, wanted)
    half = checkpoint.load_network(path, dtype=jnp.bfloat16)[0](images).logits
    assert 0 < abs(half - wanted).max() < 0.1 * abs(wanted).max()


def test_symmetric_networks_are_saved_as_such(tmp_path):
    model = kdlib.models.build("ResNet8x0.25", 2)
    facts = {"architecture": "ResNet8x0.25", "classes": ["a", "b"]}
    checkpoint.save_network(tmp_path / "plain", model, facts)
    again, held = checkpoint.load_network(tmp_path / "plain")
    assert not held["same_padding"] and not again.same_padding
    with pytest.raises(ValueError, match="holds its own input statistics"):
        checkpoint.load_network(tmp_path / "plain", normalise=IMAGENET)


def test_classes_in_another_order_are_refused(tmp_path):
    facts = {"architecture": "ResNet8x0.25", "classes": ["a", "b"]}
    checkpoint.save_network(tmp_path / "plain", kdlib.models.build("ResNet8x0.25", 2), facts)
    checkpoint.load_network(tmp_path / "plain", classes="ab")
    with pytest.raises(ValueError, match="in another order"):
        checkpoint.load_network(tmp_path / "plain", classes="ba")


def test_arrays_of_another_shape_are_refused(tmp_path):
    checkpoint.save_tree(tmp_path / "state", {"a": np.zeros((2, 3)), "b": np.zeros(2)}, {})
    with pytest.raises(ValueError, match="'a' is missing or has another shape"):
        checkpoint.restore_tree(tmp_path / "state", {"a": jnp.zeros((3, 2)), "b": jnp.zeros(2)})


@pytest.mark.parametrize(("width", "name"), [(4, "x0.25"), (8, "x0.5"), (16, ""), (24, "x1.5")])
def test_the_width_is_read_from_the_channels(tmp_path, width, name):
    file = write_original(tmp_path / "res8", original_tree(width=width))
    assert others.read(file)[1]["architecture"] == f"ResNet8{name}"


# --- PyTorch's files


@pytest.mark.parametrize(("name", "answer"), TORCH_FILES.items())
def test_pytorch_s_files_answer_as_in_pytorch(name, answer):
    model, facts = checkpoint.load_network(DATA / name, "ResNet8x0.25", "abcde", normalise=IMAGENET)
    assert facts["normalise"] == [*IMAGENET] and not facts["same_padding"]
    logits = model(ANSWERS["images"]).logits
    np.testing.assert_allclose(logits, ANSWERS[answer], rtol=1e-4, atol=1e-5)


def test_input_statistics_are_the_authors_unless_given():
    taken = lambda name, **given: checkpoint.load_network(DATA / name, **given)[0].normalise
    for name, mean, std in [
        ("padded_legacy.th", *IMAGENET),
        ("projected_zip.pt", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ]:
        found = taken(name)
        np.testing.assert_allclose(found.mean[...], 255 * np.array(mean), rtol=1e-6)
        np.testing.assert_allclose(found.std[...], 255 * np.array(std), rtol=1e-6)
    found = taken("padded_zip.pt", normalise=((128, 127, 126), (64, 63, 62)))  # of pixels 0..255
    assert found.mean[...].tolist() == [128, 127, 126] and found.std[...].tolist() == [64, 63, 62]
    with pytest.raises(ValueError, match="above 0"):
        taken("padded_zip.pt", normalise=((0.5,) * 3, (0.0,) * 3))
    for wrong in (((0.5, float("nan"), 0.5), (1.0,) * 3), ((0.5,) * 3, (1.0, float("inf"), 1.0))):
        with pytest.raises(ValueError, match="give finite numbers"):
            taken("padded_zip.pt", normalise=wrong)


def test_input_statistics_of_a_hundred_classes_are_cifar_100_s(tmp_path):
    file = write_original(tmp_path / "res8_c100", original_tree(classes=100))
    assert others.read(file)[1]["normalise"] == [(112, 124, 129), (70, 65, 68)]
    tree = others._pytorch((DATA / "projected_zip.pt").read_bytes())
    tree |= {"fc.weight": np.zeros((16, 100)), "fc.bias": np.zeros(100)}
    assert others._network(tree, False, None)[1]["normalise"] == [
        (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)]  # fmt: skip


def test_deviations_tell_the_units_whatever_the_means_are():
    for std, expected in ((0.5, 127.5), (255.0, 255.0)):
        file, given = DATA / "padded_zip.pt", ((0.0,) * 3, (std,) * 3)
        model, _ = checkpoint.load_network(file, normalise=given)
        np.testing.assert_allclose(model.normalise.std[...], expected)


@pytest.mark.parametrize(
    "prefix",
    ["model.", "module.", "module.model.", "module.module.", "_orig_mod.", "_orig_mod.module."],
)
def test_wrappers_of_a_network_leave_their_names(prefix):
    tree = others._pytorch((DATA / "projected_zip.pt").read_bytes())
    wrapped = {prefix + name: value for name, value in tree.items()}
    (plain, facts), (found, same) = (others._network(t, False, None) for t in (tree, wrapped))
    assert facts == same and plain.keys() == found.keys()
    for name, value in plain.items():
        np.testing.assert_array_equal(found[name], value)


def test_padded_shortcuts_pass_every_second_pixel_on_as_it_is():
    block = checkpoint.load_network(DATA / "padded_zip.pt")[0].stages[1].blocks[0]
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    expected = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2)))
    np.testing.assert_allclose(block.shortcut(x), expected, rtol=1e-6)


def test_a_listed_network_s_namesake_of_others_is_no_damaged_one(tmp_path):
    model = kdlib.models.build("ResNet8x0.25", 2)
    facts = {"architecture": "ResNet8x0.25", "classes": ["a", "b"]}
    checkpoint.publish("res8", model, facts, tmp_path)
    write_original(tmp_path / "res8", original_tree())
    assert len(checkpoint.load_network(tmp_path / "res8")[1]["classes"]) == 5
    assert len(checkpoint.load_network(tmp_path / "res8.safetensors")[1]["classes"]) == 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"architecture": "ResNet56"}, "holds a ResNet8x0.25, not a ResNet56"),
        ({"classes": "abcdefghij"}, r"knows 5 classes and the data has 10, not the same \(0, 1, "),
        ({"architecture": "ResNet20"}, "holds a ResNet8x0.25, not a ResNet20"),
    ],
)
def test_files_of_another_network_are_refused(tmp_path, asked, message):
    for path in (DATA / "padded_zip.pt", write_original(tmp_path / "res8", original_tree())):
        with pytest.raises(ValueError, match=message):
            checkpoint.load_network(path, **asked)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["params"].pop("block_1_0/conv_proj"),
        lambda tree: tree["params"].pop("classifier"),
        lambda tree: tree["batch_stats"].pop("bn_init"),
        lambda tree: tree.pop("batch_stats"),
        lambda tree: tree["params"].update(extra={"kernel": np.ones(3)}),
        lambda tree: tree["params"]["conv_init"].update(bias=np.ones(4)),
        lambda tree: tree["params"]["conv_init"].update(kernel="text"),
        lambda tree: tree["params"].clear(),
    ],
)
def test_files_with_more_or_less_than_a_resnet_are_refused(tmp_path, change):
    tree = original_tree()
    change(tree)
    path = write_original(tmp_path / "res8", tree, lambda name: [name])
    if "batch_stats" not in tree:
        path.write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(ValueError, match="res8 is ") as error:
        checkpoint.load_network(path)
    assert "\n" not in str(error.value)


# --- files made by hand: what they may ask for, and what not


def op(value) -> bytes:
    """The opcodes that push a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def tensor(kind=b"ctorch\nFloatStorage\n", key="0", offset=0, size=(2, 3), stride=(3, 1), view=None,
           name=b"_rebuild_tensor_v2"):  # fmt: skip
    storage = b"(" + op("storage") + kind + op(key) + op("cpu") + op(6)
    storage += (op(view) if view else b"") + b"tQ"
    arguments = storage + op(offset) + op(size) + op(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n" + name + b"\n(" + arguments + b"tR"


def tree_of(*pairs) -> bytes:
    return b"\x80\x02}(" + b"".join(op(name) + value for name, value in pairs) + b"u."


RAW = np.arange(6, dtype=np.float32)


def zipped(code: bytes, raw=RAW.tobytes(), how=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/data/0", raw)
    return file.getvalue()


def legacy(code: bytes, raw=RAW.tobytes(), count=6, system=None) -> bytes:
    head = others.MAGIC + pickle.dumps(1001, 2) + (system or pickle.dumps({}, 2))
    return head + code + pickle.dumps(["0"], 2) + struct.pack("<q", count) + raw


CONTAINERS = pytest.mark.parametrize("container", [zipped, legacy])


@CONTAINERS
def test_tensors_of_every_form_are_read(container):
    code = tree_of(
        ("plain", tensor()),
        ("cuda", tensor(kind=b"ctorch.cuda\nFloatStorage\n")),
        ("first version", tensor(name=b"_rebuild_tensor")),
        ("transposed", tensor(size=(3, 2), stride=(1, 3))),
        ("offset", tensor(offset=2, size=(2,), stride=(3,))),
        ("view", tensor(view=("v", 1, 3), offset=1, size=(2,), stride=(1,))),
        ("scalar", tensor(offset=5, size=(), stride=())),
    )
    found = others._pytorch(container(code, count=6) if container is legacy else container(code))
    wanted = {
        "plain": RAW.reshape(2, 3).T, "cuda": RAW.reshape(2, 3).T,
        "first version": RAW.reshape(2, 3).T, "transposed": RAW.reshape(2, 3),
        "offset": RAW[[2, 5]], "view": RAW[[2, 3]], "scalar": RAW[5],
    }  # fmt: skip  # tensors of two axes are turned: kernels
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


KINDS = {
    "Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": jnp.bfloat16, "Long": "i8",
    "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?",
}  # fmt: skip


@CONTAINERS
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_every_type_are_read(container, kind):
    values = np.arange(-3, 3).astype(KINDS[kind])
    storage = f"ctorch\n{kind}Storage\n".encode()
    code = tree_of(("a", tensor(kind=storage, size=(6,), stride=(1,))))
    found = others._pytorch(container(code, values.tobytes()))["a"]
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


def test_ordered_dictionaries_of_python_2_are_read():
    """They are called with a list of pairs, and not filled later."""
    pair = b"](" + op("a") + tensor() + b"e"
    code = b"\x80\x02ccollections\nOrderedDict\n](" + pair + b"e\x85R."
    assert set(others._pytorch(zipped(code))) == {"a"}


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_score_beside_the_weights_may_be_numpy_s(protocol):
    head = pickle.dumps({"acc": np.float64(93.5), "best": np.array(93.5)[()]}, protocol)[:-1]
    code = head + op("state_dict") + tree_of(("a", tensor()))[2:-1] + b"s."
    assert set(others._pytorch(zipped(code))) == {"a"}


class Runs:
    """What a pickle would call when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def refused(path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.load_network(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))


@CONTAINERS
@pytest.mark.parametrize("function", [os.system, eval, exec, __import__, getattr])
def test_no_code_of_a_pickle_is_executed(tmp_path, container, function):
    done = tmp_path / "done"
    code = f"open({str(done)!r}, 'w').close()"
    given = {os.system: (f"touch {done}",), eval: (code,), exec: (code,)}
    attack = Runs(function, *given.get(function, ("os", "system")))
    for protocol in (0, 2, 4):
        for content in ({"conv1.weight": attack}, attack, {"state_dict": {"a": [attack]}}):
            code = pickle.dumps(content, protocol)
            message = rf"its pickle asks for \w+\.{function.__name__}"
            refused(tmp_path / "file.pt", container(code), message)
            assert not done.exists()
    if function in given:  # the attack would have worked
        pickle.loads(code)
        assert done.exists()


@CONTAINERS
@pytest.mark.parametrize(
    "name",
    ["torch load", "torch.storage _load_from_bytes", "torch.hub load", "torch.serialization load",
     "torch._utils _rebuild_tensor_v2.__globals__", "torch Storage", "torch.cuda.x FloatStorage",
     "collections OrderedDict.fromkeys", "collections namedtuple", "functools partial",
     "copyreg _reconstructor", "numpy fromfile", "kdlib.others _StandIn", "builtins exec",
     "__builtin__ eval", "nt system", "torch.nn.modules.conv Conv2d", "argparse Namespace"],
)  # fmt: skip
def test_only_names_of_a_state_dict_are_known(tmp_path, container, name):
    module, _, attribute = name.partition(" ")
    text = f"its pickle asks for {module}.{attribute}"
    old = f"c{module}\n{attribute}\n".encode()
    new = op(module) + op(attribute) + b"\x93"
    for code in (b"\x80\x02" + old + b".", b"\x80\x04" + new + b".", b"\x80\x02" + old + b")R."):
        refused(tmp_path / "file", container(code), text)


def test_every_pickle_of_an_unzipped_file_is_guarded(tmp_path):
    attack, good = pickle.dumps(Runs(os.system, f"touch {tmp_path}/done"), 2), tree_of()
    refused(tmp_path / "a", legacy(good, system=attack), r"asks for \w+\.system")
    refused(tmp_path / "b", others.MAGIC + attack + legacy(good)[len(others.MAGIC) :], "asks for")
    keys = others.MAGIC + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + good + attack
    refused(tmp_path / "c", keys, "asks for")
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    "code",
    [
        tensor(offset=1), tensor(offset=-1), tensor(offset=2**62), tensor(offset=0.5),
        tensor(size=(3, 3)), tensor(stride=(-3, 1)), tensor(stride=(4, 1)), tensor(stride=(3,)),
        tensor(size=(2**40,), stride=(0,)), tensor(size=(2**62, 2**62), stride=(1, 1)),
        tensor(size=(-1, 3)), tensor(size=(1,) * 99, stride=(1,) * 99), tensor(size=b"12"),
        tensor(view=("v", 4, 2)), tensor(view=("v", -1, 2)), tensor(view=("v", "x", 2)),
        tensor(key="1"), tensor(key="../data.pkl"), tensor(kind=b"ctorch\nDoubleStorage\n"),
        tensor(kind=op("O")), tensor(kind=op("object")), tensor(kind=op("S9")), tensor(kind=op(7)),
        tensor(kind=b"ctorch\nUntypedStorage\n"), tensor(kind=b"ccollections\nOrderedDict\n"),
        b"ctorch._utils\n_rebuild_tensor_v2\n)R", b"ctorch._utils\n_rebuild_tensor_v2\n)\x81",
        b"ctorch._utils\n_rebuild_parameter\n" + op(("0", 0)) + b"R",
        b"ctorch._utils\n_rebuild_tensor_v2\n}" + op("args") + op(1) + b"sb",  # of the class
        b"ctorch\nFloatStorage\n}b", b"ctorch\nFloatStorage\n)R", b"P0\n", op("text") + b"Q",
        b"r\xff\xff\xff\xff", b"\x8e" + struct.pack("<Q", 2**62), b"\x8b\xff\xff\xff\x7f", b"0",
    ],
)  # fmt: skip
@CONTAINERS
def test_tensors_beyond_their_storage_and_broken_pickles_are_refused(tmp_path, container, code):
    refused(tmp_path / "file", container(tree_of(("conv1.weight", code))), "is damaged or no ResN")


@CONTAINERS
def test_small_files_ask_for_no_large_memory(tmp_path, container):
    for code, message in [
        (tensor(size=(1000,), stride=(0,)), "outgrow the file"),
        (b"r\xff\xff\xff\x0f", "too much memory"),
    ]:
        refused(tmp_path / "file", container(tree_of(("conv1.weight", code))), message)


@CONTAINERS
@pytest.mark.parametrize("kind", ["O", "object", "O8", "S9", "V4", "i4,O", 7, None, ("f4",)])
def test_storages_of_other_types_are_refused(tmp_path, container, kind):
    """NumPy would take a buffer as one of objects, that is of addresses."""
    code = tree_of(("conv1.weight", tensor(kind=op(kind), size=(), stride=())))
    refused(tmp_path / "file", container(code), "asks for a storage of")


@CONTAINERS
def test_a_pickle_can_t_change_the_stand_ins(tmp_path, container):
    code = b"ccollections\nOrderedDict\n" + op((None, {"left": 1})) + b"b"
    refused(tmp_path / "file", container(tree_of(("conv1.weight", code))), "damaged")
    assert not hasattr(others._StandIn, "left")


def test_other_broken_containers_are_refused(tmp_path):
    path, good = tmp_path / "file", tree_of(("a", tensor()))
    refused(path, zipped(good, how=zipfile.ZIP_DEFLATED), "compressed")
    refused(path, zipped(good, raw=RAW.tobytes()[:-3]), "damaged")
    for count in (2**62, -1, 5, 10**6):
        refused(path, legacy(good, count=count), "damaged")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("other", b"x")
    refused(path, file.getvalue(), "damaged")
    refused(path, b"\x84\xa6params" + b"\xdf\xff\xff\xff\xff", "damaged")  # a map of billions
    for lines in ("", "import os", "\x80\x04."):
        path.write_text(lines)
        with pytest.raises(ValueError, match="truncated or no safetensors"):
            checkpoint.load_network(path)


@pytest.mark.parametrize("name", ["padded_legacy.th", "projected_zip.pt", "original"])
def test_truncated_and_altered_files_load_or_are_refused(tmp_path, name):
    """Nothing but a ValueError comes out of a damaged file."""
    path = tmp_path / "file"
    whole = DATA / name
    if name == "original":
        whole = write_original(tmp_path / "whole", original_tree())
    content, rng = whole.read_bytes(), np.random.default_rng(0)
    for length in np.linspace(20, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"damaged|truncated"):
            others.read(path) or checkpoint.load_arrays(path)
    refusals = 0
    for place in rng.integers(0, min(len(content), 5000), 300):
        altered = bytearray(content)
        altered[place] ^= 1 << rng.integers(8)
        path.write_bytes(altered)
        try:
            others.read(path) or checkpoint.load_arrays(path)
        except ValueError:
            refusals += 1
    assert refusals > 30


# --- command lines


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A folder of 16x16 pictures of five classes."""
    root = tmp_path_factory.mktemp("data") / "letters"
    for split, count in (("train", 4), ("test", 2)):
        for label in range(5):
            (root / split / "abcde"[label]).mkdir(parents=True)
            for i in range(count):
                picture = pictures(1, 16, seed=10 * label + i)[0]
                Image.fromarray(picture).save(root / split / "abcde"[label] / f"{i}.png")
    return root


def test_the_scripts_take_such_teachers(letters, tmp_path, capsys):
    teacher, run = write_original(tmp_path / "res8_c5", original_tree()), tmp_path / "run"
    train_w_kd.main(
        f"--student_arch ResNet8x0.25 --teacher_arch ResNet8x0.25 --teacher_param {teacher} "
        f"--dataset {letters} --train_path {run} --batch_size 10 --train_epoch 1 "
        "--val_batch_size 10 --no-do_log".split()
    )
    printed = capsys.readouterr().out
    assert "inputs normalised by [(113.9, 123.0, 125.3), (66.7, 62.1, 63.0)]" in printed
    held = checkpoint.load_network(run / "student-seed-0")[1]["teacher"]
    assert held["file"] == str(teacher) and held["normalise"][0] == [113.9, 123.0, 125.3]
    given = "--normalise 0.5 0.5 0.5 0.25 0.25 0.25"
    for extra, words in (("", "[(0.485, 0.456"), (given, "[[0.5, 0.5, 0.5], [0.25, 0.25, 0.25]]")):
        file = DATA / "padded_legacy.th"
        evaluate.main(f"--trained_param {file} --dataset {letters} {extra}".split())
        printed = capsys.readouterr().out
        assert f"inputs normalised by {words}" in printed
        assert "ResNet8x0.25 on " in printed and "accuracy" in printed
    with pytest.raises(SystemExit):
        cli.run(lambda: evaluate.main(
            f"--trained_param {file} --dataset {letters} --arch ResNet56".split()))  # fmt: skip
    message = capsys.readouterr().err
    assert message.endswith("holds a ResNet8x0.25, not a ResNet56\n") and message.count("\n") == 1


def test_a_preset_s_teacher_has_had_its_epochs_or_says_no_number(tmp_path, monkeypatch):
    """A file of ours that was trained too briefly is refused; the original's own is taken."""
    full = kdlib.preset("full")
    data = kdlib.data.Dataset("tiny", "noise", tuple("01234"), None, None)
    chosen = replace(full, teacher="ResNet8x0.25", pretrained="res8")
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path)
    facts = {"architecture": "ResNet8x0.25", "classes": list("01234"), "recipe": {"epochs": 6}}
    checkpoint.publish("res8", kdlib.models.build("ResNet8x0.25", 5), facts, tmp_path)
    with pytest.raises(ValueError, match="was trained for 6 of 200 epochs: make a teacher with"):
        compare.load_teacher(chosen, data)
    write_original(tmp_path / "res8", original_tree())
    assert compare.load_teacher(chosen, data).classifier.kernel.shape[1] == 5
