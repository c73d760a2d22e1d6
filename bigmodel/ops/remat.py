"""What the backward pass computes again, and whether a stack of layers is unrolled."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel.ops import sharding

RESIDUAL = "residual"  # the name of what enters a block
POLICIES = {
    "none": None,  # nothing is computed again
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # all but products with weights
    "full": jax.checkpoint_policies.nothing_saveable,  # all of a block, from what enters it
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(  # as full; what enters lies in host memory
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[RESIDUAL],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}

PART_BYTES = 2**25  # of a feed-forward layer's activations that a device has at once, where they are computed again
AUTO_UNROLL = 8  # benchmarks/scan_or_unroll.py: unrolled steps are faster on a CPU; scan compiles faster past this


def unrolls(depth: int) -> bool:
    """Whether a stack of `depth` layers is compiled layer by layer, where the config doesn't say."""
    return depth <= AUTO_UNROLL and sharding.platform() == "cpu"


def ffn_parts(shape: Sequence[int], ffn: int, dtype: Any) -> int:
    """Into how many parts of its units a feed-forward layer is cut. One where nothing is computed again, or where other
    devices have parts of it, whose sums would be exchanged a part at a time."""
    if sharding.execution().remat not in ("full", "offload") or sharding.shards("ffn") > 1:
        return 1
    bytes_ = math.prod(shape[:-1]) * ffn * dtype.itemsize / sharding.shards("batch", "length")
    return max((k for k in (1, 2, 4, 8) if bytes_ / k >= PART_BYTES and ffn % k == 0 and ffn // k >= 512), default=1)


def sum_of_parts(part: Callable[..., jax.Array], like: jax.Array, *weights: Any) -> jax.Array:
    """The sum of part(*w) over the leading axis of the weights. Each part is computed again in the backward pass, so
    that the activations of one are in memory at a time."""

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(total: jax.Array, ws: Any) -> Any:
        return total + part(*ws), None

    return jax.lax.scan(body, jnp.zeros_like(like), weights)[0]
