"""Teachers from elsewhere: the original cookbook's checkpoints, and PyTorch's CIFAR ResNets.

Either becomes what :mod:`kdlib.checkpoint` holds of a network of ours, arrays by name and facts:

- The original's ``pretrained/res56_c10`` is flax msgpack, with ``conv_init``, ``block_0_0/conv0``,
  ``classifier`` and so on under ``params`` and ``batch_stats``; later versions of its code call two
  norms ``norm1`` and ``norm_proj``. Its stride-2 convolutions pad as XLA's "SAME" does.
- PyTorch's state dicts, zipped (since 1.6) or not, have names like ``layer1.0.conv1.weight``.
  Shortcuts that change shape are projections, as in chenyaofo/pytorch-cifar-models, or every second
  pixel between channels of zeros, He et al.'s option A, as in akamaster/pytorch_resnet_cifar10:
  here a projection whose kernel selects, and a batch norm that changes nothing.

No file runs code. A pickle is a program that calls what it names; here it is given stand-ins for
the few names that a state dict needs, and refused with any other. PyTorch itself isn't needed.
"""

import io
import pickle
import pickletools
import re
import zipfile

import numpy as np
from flax import serialization, traverse_util

from kdlib import models
from kdlib.names import require

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # PyTorch's, of files that aren't zipped

# Means and standard deviations of inputs by the number of classes, as the authors write them: of
# pixels 0..255 in the original's loader, 0..1 in the others'. Akamaster's are ImageNet's.
ORIGINAL = {10: ((113.9, 123.0, 125.3), (66.7, 62.1, 63.0)), 100: ((112, 124, 129), (70, 65, 68))}
AKAMASTER = {10: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
CHENYAOFO = {10: ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
             100: ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))}  # fmt: skip

NAMES = (  # patterns and what they become, in this order: of both, the original's, PyTorch's
    (r"bn(?=\d|_)", "norm"), (r"^(params|batch_stats)/", ""), (r"^(conv|norm)_init/", r"stem_\1/"),
    (r"^block_(\d+)_(\d+)/(block_\d+_\d+/)?", r"stages.\1.blocks.\2."),
    (r"\.(conv|norm)1/", r".\g<1>2/"), (r"\.(conv|norm)0/", r".\g<1>1/"),
    (r"\.(conv|norm)_proj/", r".shortcut.\1/"), ("/", "."),
    (r"^((_orig_)?mod\w*\.)+", ""), (r"^(conv|norm)1\.", r"stem_\1."), (r"\.running_", "."),
    (r"^(linear|fc)\.", "classifier."), (r"^layer(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.(downsample|shortcut)\.0\.", ".shortcut.conv."), (r"(conv\d?|fier)\.weight", r"\1.kernel"),
    (r"\.(downsample|shortcut)\.1\.", ".shortcut.norm."), (r"\.weight", ".scale"))  # fmt: skip


def read(path, normalise=None) -> tuple[dict[str, np.ndarray], dict] | None:
    """A network's arrays by our names, and its facts; None for a file of another kind.

    The kind shows in the first bytes, not in the file's name.

    Args:
        path: a ``pathlib.Path`` of a file that is there.
        normalise: ``(mean, std)`` per channel of the inputs it was trained on, of pixels 0..1 or,
            with a deviation above 1, 0..255. A PyTorch file doesn't say; None takes what its kind's
            authors took: akamaster's if no shortcut has weights, else chenyaofo's.

    Returns:
        Float32 arrays, and ``architecture``, ``classes`` (numbers, as text), ``same_padding`` and
        ``normalise``, the mean and standard deviation taken.

    Raises:
        ValueError: the file is damaged, asks for more than data, or holds no ResNet for CIFAR.
    """
    data = path.read_bytes()
    # A safetensors file begins with the length of its header: of petabytes, if it matched this.
    is_original = bool(re.match(rb"[\x81-\x8f][\xa1-\xbf][a-z_]{4}", data))
    if not is_original and not data.startswith((b"PK\x03\x04", MAGIC)):
        return None
    try:
        tree = serialization.msgpack_restore(data) if is_original else _pytorch(data)
        return _network(tree, is_original, normalise)
    except Exception as error:  # a file made to do harm may fail in any way
        reason = " ".join(f"{type(error).__name__}, {error}".removeprefix("ValueError, ").split())
        raise ValueError(f"{path} is damaged or no ResNet of a known kind: {reason}") from error


def _network(tree, is_original, normalise):
    arrays = {k: tree[k] for k in ("params", "batch_stats")} if is_original else tree
    arrays = traverse_util.flatten_dict(arrays, sep="/")
    for pattern, ours in NAMES:
        arrays = {re.sub(pattern, ours, name): value for name, value in arrays.items()}
    place = re.compile(r"^stages\.(\d+)\.blocks\.(\d+)\.")
    blocks = {(int(m[1]), int(m[2])) for m in map(place.match, arrays) if m}
    i, j = min(blocks, default=(0, 0))  # some count from 0, some from 1
    ours = lambda m: f"stages.{int(m[1]) - i}.blocks.{int(m[2]) - j}."
    arrays = {place.sub(ours, name): value for name, value in arrays.items()}
    authors = ORIGINAL if is_original else CHENYAOFO
    if not is_original and not any(".shortcut." in name for name in arrays):
        authors, unit = AKAMASTER, {"scale": (1 + 1e-5) ** 0.5, "bias": 0, "mean": 0, "var": 1}
        for at in ("stages.1.blocks.0.", "stages.2.blocks.0."):
            c, d = arrays[f"{at}conv1.kernel"].shape[2:]  # channels in and out
            arrays |= {f"{at}shortcut.norm.{k}": np.full(d, v) for k, v in unit.items()}
            # Half of the zeros are before the channels passed on, half behind.
            arrays[f"{at}shortcut.conv.kernel"] = np.eye(c, d, (d - c) // 2)[None, None]
    classes = len(arrays["classifier.bias"])
    width = arrays["stages.0.blocks.0.conv1.kernel"].shape[-1] / 16
    mean, std = normalise or authors.get(classes, authors[10])
    sound = np.isfinite([*mean, *std]).all() and min(std) > 0
    require(sound, f"normalise={normalise}: give finite numbers, standard deviations above 0")
    scale = 255 if max(std) <= 1 else 1
    arrays |= {"normalise.mean": np.multiply(mean, scale), "normalise.std": np.multiply(std, scale)}
    facts = {"architecture": models.canonical(f"ResNet{2 * len(blocks) + 2}x{width:g}"),
             "classes": [str(label) for label in range(classes)], "normalise": [mean, std],
             "same_padding": is_original}  # fmt: skip
    return {name: np.asarray(value, np.float32) for name, value in arrays.items()}, facts


def _pytorch(data):
    tree, storages = _zipped(data) if data.startswith(b"PK") else _unzipped(data)
    for wrapper in ("state_dict", "model", "net"):
        tree = tree[wrapper] if isinstance(tree.get(wrapper), dict) else tree
    arrays = {name: _view(value, storages) for name, value in tree.items()
              if getattr(value, "args", None) and "num_batches" not in name}  # fmt: skip
    # Strides of 0 would make large tensors of small files.
    require(sum(v.nbytes for v in arrays.values()) <= len(data), "its tensors outgrow the file")
    # Out, in, height, width there; height, width, in, out here.
    return {k: np.moveaxis(v, (0, 1), (-1, -2)) if v.ndim > 1 else v for k, v in arrays.items()}


def _view(tensor, storages):
    """An array of a tensor, or of a parameter around one; NumPy refuses to reach beyond."""
    tensor = tensor.args[0] if isinstance(tensor.args[0], _StandIn) else tensor
    (key, first), offset, shape, strides = tensor.args[:4]
    flat = storages[key]
    offset, strides = (first + offset) * flat.itemsize, [s * flat.itemsize for s in strides]
    return np.ndarray(shape, flat.dtype, flat, offset, strides)


def _zipped(data):
    archive = zipfile.ZipFile(io.BytesIO(data))
    require(not any(entry.compress_type for entry in archive.infolist()), "it is compressed")
    root = next(n for n in archive.namelist() if n.endswith("/data.pkl")).removesuffix(".pkl")
    tree, kinds = _unpickled(io.BytesIO(archive.read(f"{root}.pkl")))
    return tree, {k: np.frombuffer(archive.read(f"{root}/{k}"), kinds[k]) for k in kinds}


def _unzipped(data):
    file = io.BytesIO(data)
    (*_, (tree, kinds)), storages = [_unpickled(file) for _ in range(4)], {}
    for key in _unpickled(file)[0]:  # behind magic number, version, system and the tree
        size = int.from_bytes(file.read(8), "little") * np.dtype(kinds[key]).itemsize
        storages[key] = np.frombuffer(file.read(size), kinds[key])
    return tree, storages


def _unpickled(file):
    """The next pickle of a file, and the types of the storages it names, by their keys."""
    start = file.tell()
    for code, value, end in pickletools.genops(file):  # checks lengths before they are allocated
        require(code.name != "LONG_BINPUT" or value <= end, "its pickle asks for too much memory")
    file.seek(start)
    unpickler = _Unpickler(file)
    unpickler.kinds = {}
    return unpickler.load(), unpickler.kinds


class _StandIn(dict):
    """Stands for what a pickle calls: takes everything, does nothing, and can be filled."""

    def __init__(self, *args):
        super().__init__(*(arg for arg in args if isinstance(arg, list)))
        self.args = args

    def __setstate__(self, state):
        """So that a pickle can't set attributes, neither an instance's nor the class's own."""


# Beside the weights there may be a score, NumPy's perhaps, and the state of an optimizer.
STAND_INS = (r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)|"
             r"numpy\.(dtype|_?core\.multiarray\.scalar)|_codecs\.encode")  # fmt: skip
STORAGES = {"Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "bfloat16", "Long": "i8",
            "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?"}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        asked = f"{module}.{name}"
        storage = re.fullmatch(r"torch\.(?:cuda\.)?(\w+)Storage", asked)
        found = STORAGES.get(storage[1]) if storage else re.fullmatch(STAND_INS, asked) and _StandIn
        require(found, f"its pickle asks for {asked}, which no state dict needs")
        return found

    def persistent_load(self, pid):
        """A storage: its key, and where a view of it begins."""
        _, kind, key, _, _, *view = pid
        # NumPy would read a storage of "O" as objects, that is at whatever addresses it holds.
        require(kind in STORAGES.values(), f"its pickle asks for a storage of {kind!r}")
        self.kinds[key] = kind
        return key, view[0][1] if view and view[0] else 0
