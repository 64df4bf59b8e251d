"""Saving and restoring: training states to resume, networks to publish and to teach.

Both are one safetensors file (flat names, no pickle, metadata in the header), replaced in one step.
Files of others that can teach are read too: :mod:`kdlib.others`.
"""

import hashlib
import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from kdlib import models, others
from kdlib.files import expand, read_json, replacing, write_text
from kdlib.names import require

PRETRAINED = pathlib.Path(__file__).resolve().parent.parent / "pretrained"
SUFFIX = ".safetensors"
HEADER = "kdlib"  # the metadata entry that holds ours, as JSON


def save_tree(path, tree, metadata: dict) -> None:
    """Write a pytree of arrays and a dict of JSON values. Random keys are stored as their data."""
    arrays = {name: np.asarray(_raw(leaf), order="C") for name, leaf in named_leaves(tree)}
    header = {HEADER: json.dumps(metadata)}  # several entries would be written in a random order
    with replacing(path) as scratch:
        scratch.write_bytes(safetensors.numpy.save(arrays, header))


def load_arrays(path) -> tuple[dict[str, np.ndarray], dict]:
    """Flat arrays and metadata of a file; FileNotFoundError without it, ValueError if damaged."""
    path = pathlib.Path(path)
    here = ", ".join(sorted(p.stem for p in path.parent.glob(f"*{SUFFIX}"))) or "none"
    require(path.is_file(), f"no checkpoint {path}; {path.parent} holds {here}", FileNotFoundError)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, json.loads((file.metadata() or {}).get(HEADER, "{}"))
    except (safetensors.SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is truncated or no safetensors checkpoint: {error}") from error


def restore_tree(path, like):
    """The tree saved at ``path`` and its metadata; ValueError unless formed like ``like``."""
    arrays, metadata = load_arrays(path)
    return _fill(like, arrays, f"{path} holds no state of this run, delete it"), metadata


def _fill(like, arrays, complaint):
    leaves, unknown = [], arrays.keys() - {name for name, _ in named_leaves(like)}
    require(not unknown, f"{complaint}: it has no '{min(unknown, default='')}'")
    for name, leaf in named_leaves(like):
        fits = name in arrays and arrays[name].shape == _raw(leaf).shape
        require(fits, f"{complaint}: '{name}' is missing or has another shape")
        value = jnp.asarray(arrays[name])
        leaves.append(value if _raw(leaf) is leaf else jax.random.wrap_key_data(value))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def named_leaves(tree, whole_lists: bool = False):
    """Pairs of a name, ``student.conv.kernel``, and a leaf; lists are leaves too if asked."""
    is_leaf = lambda value: whole_lists and isinstance(value, list)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def _raw(leaf):
    is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def save_network(path, model: nnx.Module, metadata: dict) -> None:
    """Write a network to publish or to teach: parameters, batch and input statistics.

    :func:`load_network` needs ``architecture`` and ``classes`` (a list of names) in the metadata.
    """
    metadata = metadata | {"same_padding": getattr(model, "same_padding", False)}
    save_tree(_with_suffix(path), nnx.to_pure_dict(nnx.state(model)), metadata)


def load_network(path, architecture: str | None = None, classes: Sequence[str] | None = None,
                 dtype=jnp.float32, normalise=None):  # fmt: skip
    """A network in evaluation mode, and its metadata.

    Args:
        path: with or without ``.safetensors``; checked against a ``MANIFEST.json`` that lists it.
            The original cookbook's files and PyTorch's are taken too, and told by their content.
        architecture, classes: what it must hold, in any spelling, and the names of the data's
            classes; None takes all.
        dtype: what its convolutions compute in.
        normalise: ``(mean, std)`` of the inputs, where a file of others doesn't hold them: as in
            :func:`kdlib.others.read`; the metadata's ``normalise`` says what was taken.

    Raises FileNotFoundError without a file, ValueError for a damaged one or what it must not hold.
    """
    path = file if (file := expand(path)).is_file() else _with_suffix(path)
    arrays, metadata = (path.is_file() and others.read(path, normalise)) or load_arrays(path)
    require(not normalise or "normalise" in metadata, f"{path} holds its own input statistics")
    listed = manifest(path.parent).get(path.stem)
    intact = not listed or listed.get("file") != path.name or listed["sha256"] == sha256(path)
    require(intact, f"{path} is damaged: not the SHA-256 of MANIFEST.json; publish or restore it")
    require({"architecture", "classes"} <= metadata.keys(),
            f"{path} holds no network (a training state?): give a network's file")  # fmt: skip
    held, theirs, known = metadata["architecture"], metadata["classes"], len(metadata["classes"])
    asked = models.canonical(architecture) if architecture else held
    require(asked == held, f"{path} holds a {held}, not a {asked}")
    nameless = "normalise" in metadata  # a file of others, or what was made of one
    fits = classes is None or list(classes) == theirs or (nameless and len(classes) == known)
    odd = ", ".join(sorted(map(str, set(theirs) ^ set(classes or ())))[:4]) or "in another order"
    require(fits, f"{path} knows {known} classes and the data has {len(classes or ())}, not the "
            f"same ({odd}): train a teacher on this data, or choose its own data")  # fmt: skip
    require("normalise.mean" in arrays, f"{path} holds a {held}, which can't be built by its name")
    ones = (1.0,) * len(arrays["normalise.mean"])  # replaced by the file's, as everything is
    network = models.build(held, known, mean=ones, std=ones, dtype=dtype,
                           same_padding=metadata.get("same_padding", False))  # fmt: skip
    network.eval()
    nnx.update(network, _fill(nnx.to_pure_dict(nnx.state(network)), arrays, f"{path} is no {held}"))
    return network, metadata


def pretrained(name: str) -> nnx.Module:
    """A network of the ``pretrained`` folder, by name: ``pretrained("shapes_res20")``."""
    return load_network(PRETRAINED / name)[0]


def publish(name: str, model: nnx.Module, metadata: dict, folder=PRETRAINED) -> pathlib.Path:
    """Add a network to a folder of checkpoints and list it in the folder's ``MANIFEST.json``."""
    save_network(path := _with_suffix(pathlib.Path(folder) / name), model, metadata)
    listed = manifest(folder) | {name: metadata | {"file": path.name, "sha256": sha256(path)}}
    write_text(path.with_name("MANIFEST.json"), json.dumps(dict(sorted(listed.items())), indent=1))
    return path


def manifest(folder=PRETRAINED) -> dict[str, dict]:
    """What a folder's ``MANIFEST.json`` says of its checkpoints, by name; empty without one."""
    path = pathlib.Path(folder) / "MANIFEST.json"
    return read_json(path, "restore or delete it", dict) if path.is_file() else {}


def sha256(path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def digest(tree) -> str:
    """16 hexadecimal digits that stand for the values of a module's or pytree's arrays."""
    leaves = jax.tree.leaves(nnx.state(tree) if isinstance(tree, nnx.Module) else tree)
    return hashlib.sha256(b"".join(np.asarray(_raw(v)).tobytes() for v in leaves)).hexdigest()[:16]


def _with_suffix(path) -> pathlib.Path:
    path = expand(path)
    return path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
