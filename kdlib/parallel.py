"""Several devices for one run: its seeds are dealt out, then the pictures of every batch.

Seeds know nothing of each other, so a device that has its own talks to no other. Devices that are
left share the batches of a seed: each computes with its part of the pictures, and batch statistics
and gradients are summed over them, so that a run learns what it would have learned on one device,
up to rounding. Pictures, labels and frozen teachers are on every device.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdlib.names import require

SEEDS, PICTURES = "seeds", "pictures"


def mesh(devices: int | None, seeds: int, batch_size: int) -> Mesh:
    """The devices of a run, ``[seeds, pictures]``.

    Args:
        devices: how many; None takes as many as deal the seeds out evenly.
        seeds: how many are trained together: 1 where they are trained one after the other.
        batch_size: pictures per step.

    Raises:
        ValueError: none or more devices than there are, a batch that they can't share evenly, or a
            JAX before 0.8, which can't map convolutions over seeds on several.
    """
    chosen = jax.config.jax_default_device is not None
    found = list(jnp.zeros(()).devices()) if chosen else jax.local_devices()
    most = len(found) if jax.__version_info__ >= (0, 8) else 1
    devices = next(n for n in range(most, 0, -1) if seeds % n == 0) if devices is None else devices
    why = " (one was chosen, as --gpu_id does)" if chosen else ""
    require(0 < devices <= len(found), f"devices={devices}: JAX has {len(found)} to use here{why}")
    require(devices <= most, f"devices={devices}: with JAX {jax.__version__} it is one; take 0.8")
    columns = devices // (rows := math.gcd(seeds, devices))
    require(batch_size % columns == 0, f"devices={devices}: {columns} can't share a batch of "
            f"{batch_size} evenly; take another batch size or number of devices")  # fmt: skip
    return Mesh(np.array(found[:devices]).reshape(rows, columns), (SEEDS, PICTURES))


def spread(tree, mesh: Mesh, *axes: str):
    """The arrays of a tree on all devices: each whole everywhere, or its first axes dealt out along
    the named ``axes`` of the mesh."""
    spec = NamedSharding(mesh, PartitionSpec(*axes))
    return tree if mesh.size == 1 else jax.device_put(tree, spec)


def together(tree, mesh: Mesh):
    """The arrays of a tree on the first device alone."""
    return tree if mesh.size == 1 else jax.device_put(tree, mesh.devices[0, 0])


def by_picture(tree, mesh: Mesh, batch_size: int):
    """Inside a jitted function: arrays whose first axis is the batch's, dealt out along it.

    Where the batch doesn't go round evenly, every device keeps all of it.
    """
    if mesh.shape[PICTURES] == 1 or batch_size % mesh.shape[PICTURES]:
        return tree
    here = jax.sharding.get_abstract_mesh()  # where each device maps over its seeds: another one
    spec = NamedSharding(mesh if here.empty else here, PartitionSpec(PICTURES))
    deal = lambda x: jax.lax.with_sharding_constraint(x, spec)
    return jax.tree.map(lambda x: deal(x) if jnp.shape(x)[:1] == (batch_size,) else x, tree)


def each_seed(function, mesh: Mesh, in_axes: tuple):
    """``function`` mapped over seeds, ``in_axes`` as in ``jax.vmap``.

    Each device maps over those it has, by itself: left to the compiler, the convolutions of several
    seeds, one grouped convolution, need not stay apart.
    """
    stacked = jax.vmap(function, in_axes=in_axes)
    if mesh.shape[SEEDS] == 1:
        return stacked
    spec = lambda axis: PartitionSpec() if axis is None else PartitionSpec(SEEDS)
    specs = jax.tree.map(spec, in_axes, is_leaf=lambda axis: axis is None)
    return jax.shard_map(stacked, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(SEEDS),
                         axis_names={SEEDS}, check_vma=False)  # fmt: skip
