"""The drivers lower for accelerators: no operation of theirs exists on CPUs only. (`test_tpu` also compiles them.)"""

from typing import Any

import jax
import numpy as np
from conftest import Tiny
from jax.export import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnist_flax import compiled

PLATFORMS = ("cuda", "rocm", "tpu")
SPLIT = jax.ShapeDtypeStruct((200, 28, 28, 1), np.uint8), jax.ShapeDtypeStruct((200,), np.int32)
ORDER = jax.ShapeDtypeStruct((2, 16), np.int32)


def placed(tree: object, mesh: Mesh, *axes: str | None, members: tuple[int, ...] = ()) -> Any:
    """The shapes and types of a tree, split over the devices along these axes."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(members + leaf.shape, leaf.dtype, sharding=sharding), tree)


def test_the_drivers_lower(tiny: Tiny) -> None:
    """For eight devices: a batch of 16 split over them, and two members on each."""
    run, program = (jax.eval_shape(tiny.init, tiny.hparams()), tiny.hparams()), tiny.program
    data, member = (Mesh(np.asarray(jax.devices()), (axis,)) for axis in ("data", "member"))
    one = *placed((*run, SPLIT), data), placed(ORDER, data, None, "data")
    *many, order = placed((*run, ORDER), member, "member", members=(16,))
    split, shared_order = placed((SPLIT, ORDER), member)
    static: dict[str, Any] = {"program": program, "mesh": member, "at_once": 2}
    exported = [
        export(compiled.train_steps, platforms=PLATFORMS)(*one, program=program),
        export(compiled.eval_steps, platforms=PLATFORMS)(*one, program=program),
        export(compiled.train_members, platforms=PLATFORMS)(*many, split, order, **static),
        export(compiled.eval_members, platforms=PLATFORMS)(*many, split, shared_order, **static),
    ]
    assert all(each.platforms == PLATFORMS and each.nr_devices == 8 for each in exported)
