"""Saving and restoring: training states to resume, networks to publish and to teach.

Both are one safetensors file: flat names, no pickle, metadata in the header. It is written beside
its place and renamed, so a kill leaves the old file or the new one and never half of one.
"""

import hashlib
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from kdlib import models
from kdlib.history import write_text

PRETRAINED = pathlib.Path(__file__).resolve().parent.parent / "pretrained"
SUFFIX = ".safetensors"
HEADER = "kdlib"  # the metadata entry that holds ours, as JSON


def save_tree(path, tree, metadata: dict) -> None:
    """Write a pytree of arrays and a dict of JSON values. Random keys are stored as their data."""
    arrays = {name: np.asarray(_raw(leaf)) for name, leaf in _named_leaves(tree)}
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    # One entry: several would be written in a random order, and the file's SHA-256 with them.
    header = {HEADER: json.dumps(metadata)}
    safetensors.numpy.save_file(arrays, scratch, metadata=header)
    scratch.replace(path)


def load_arrays(path) -> tuple[dict[str, np.ndarray], dict]:
    """Flat arrays and metadata of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or no safetensors file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or no safetensors checkpoint: {error}") from error
    return arrays, json.loads(header.get(HEADER, "{}"))


def restore_tree(path, like):
    """The tree saved at ``path``, in the form of ``like``, and the metadata.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_arrays`, or the tree has another form.
    """
    arrays, metadata = load_arrays(path)
    leaves = []
    for name, leaf in _named_leaves(like):
        raw = _raw(leaf)
        if name not in arrays or arrays[name].shape != raw.shape:
            raise ValueError(
                f"{path} doesn't hold this run's state: '{name}' is missing or differs"
            )
        value = jnp.asarray(arrays[name])
        leaves.append(value if raw is leaf else jax.random.wrap_key_data(value))
    return jax.tree.unflatten(jax.tree.structure(like), leaves), metadata


def _named_leaves(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield ".".join(_part(step) for step in path), leaf


def _part(step) -> str:
    return str(next(getattr(step, k) for k in ("name", "key", "idx") if hasattr(step, k)))


def _raw(leaf):
    is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def save_network(path, model: nnx.Module, metadata: dict) -> None:
    """Write a network to publish or to teach: parameters, batch and input statistics.

    Args:
        path: with or without ``.safetensors``.
        metadata: JSON values; ``architecture`` and ``classes`` (a list of names) are what
            :func:`load_network` needs.
    """
    save_tree(_with_suffix(path), nnx.to_pure_dict(nnx.state(model)), metadata)


def load_network(
    path, architecture: str | None = None, classes: int | None = None, dtype=jnp.float32
):
    """A network in evaluation mode, and its metadata.

    Args:
        path: with or without ``.safetensors``. A file that a ``MANIFEST.json`` beside it lists is
            checked against the SHA-256 there.
        architecture: what the file must hold, in any spelling; None takes what it holds.
        classes: how many classes it must have.
        dtype: what its convolutions compute in.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or damaged, or holds another architecture or number of classes.
    """
    path = _with_suffix(path)
    if not path.is_file():
        here = sorted(p.stem for p in path.parent.glob(f"*{SUFFIX}"))
        hint = f"; {path.parent} holds {', '.join(here)}" if here else ""
        raise FileNotFoundError(f"no checkpoint {path}{hint}")
    listed = manifest(path.parent).get(path.stem)
    if listed and listed["sha256"] != sha256(path):
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one in MANIFEST.json")
    arrays, metadata = load_arrays(path)
    if "architecture" not in metadata or "classes" not in metadata:
        raise ValueError(f"{path} holds no network (a training state?): give a network's file")
    held = metadata["architecture"]
    if architecture and models.canonical(architecture) != held:
        raise ValueError(f"{path} holds a {held}, not a {models.canonical(architecture)}")
    if classes and len(metadata["classes"]) != classes:
        raise ValueError(
            f"{path} knows {len(metadata['classes'])} classes and the data has {classes}: "
            "train a teacher on this data, or choose the data it was trained on"
        )
    channels = len(arrays["normalise.mean"])
    blank = nnx.eval_shape(
        lambda: models.build(
            held,
            len(metadata["classes"]),
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            dtype=dtype,
        )
    )
    blank.eval()
    graph, state = nnx.split(blank)
    leaves = []
    for name, leaf in _named_leaves(nnx.to_pure_dict(state)):
        if name not in arrays or arrays[name].shape != leaf.shape:
            raise ValueError(f"{path} is no {held}: '{name}' is missing or has another shape")
        leaves.append(jnp.asarray(arrays[name]))
    structure = jax.tree.structure(nnx.to_pure_dict(state))
    return nnx.merge(graph, jax.tree.unflatten(structure, leaves)), metadata


def pretrained(name: str) -> nnx.Module:
    """A network of the ``pretrained`` folder, by name: ``pretrained("shapes_res20")``."""
    return load_network(PRETRAINED / name)[0]


def publish(name: str, model: nnx.Module, metadata: dict, folder=PRETRAINED) -> pathlib.Path:
    """Add a network to a folder of checkpoints and list it in the folder's ``MANIFEST.json``."""
    path = _with_suffix(pathlib.Path(folder) / name)
    save_network(path, model, metadata)
    listed = manifest(folder) | {name: metadata | {"file": path.name, "sha256": sha256(path)}}
    text = json.dumps(dict(sorted(listed.items())), indent=1)
    write_text(pathlib.Path(folder) / "MANIFEST.json", text)
    return path


def manifest(folder=PRETRAINED) -> dict[str, dict]:
    """What a folder's ``MANIFEST.json`` says of its checkpoints, by name; empty without one."""
    path = pathlib.Path(folder) / "MANIFEST.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def sha256(path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def _with_suffix(path) -> pathlib.Path:
    path = pathlib.Path(path).expanduser()
    return path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
