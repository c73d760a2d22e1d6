"""Fused attention of accelerators: scores never reach memory. Which is used: `attention.attend`.

B batch, L query length, S key length, H query heads, G key/value heads, K head dim, E of the values.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bigmodel.ops import sharding

LANES = 128  # of a TPU's vector unit: a block is a multiple of it
BLOCK = 512  # queries, and keys, that a kernel holds at once


def splash_takes(length: int, size: int) -> bool:
    return length % LANES == 0 and size % LANES == 0


def splash(
    q_BHLK: jax.Array, k_BGSK: jax.Array, v_BGSE: jax.Array, causal: bool, heads: str | None, length: str | None
) -> jax.Array:
    """Splash attention (JAX's Pallas kernel for TPUs), BHLE; q is scaled. On a CPU it is interpreted, slowly.

    Each device runs it on its own examples, `heads` and `length`: logical axes of H and L on the mesh.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    H, L, S = q_BHLK.shape[1], q_BHLK.shape[2], k_BGSK.shape[2]
    mesh = sharding.current()
    of_q = sharding.spec(q_BHLK.shape, ("batch", heads, length, None), mesh) if mesh else P(None, None, None, None)
    of_kv = P(*of_q[:2], None, None)

    def count(axes: Any) -> int:
        if axes is None or mesh is None:
            return 1
        return sharding.product(mesh, (axes,) if isinstance(axes, str) else axes)

    mask = masks.CausalMask((L, S)) if causal else masks.FullMask((L, S))
    q_block, kv_block = _block(L // count(of_q[2])), _block(S)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * H),
        head_shards=count(of_q[1]),
        q_seq_shards=count(of_q[2]),
        block_sizes=kernels.BlockSizes(
            block_q=q_block, block_kv=kv_block, block_kv_compute=kv_block,
            block_q_dkv=q_block, block_kv_dkv=kv_block, block_kv_dkv_compute=kv_block,
            block_q_dq=q_block, block_kv_dq=kv_block,
        ),
        interpret=sharding.platform() == "cpu",
    )  # fmt: skip

    def local(kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.vmap(kernel)(q, k, v)

    if mesh is None or mesh.size == 1:
        return local(kernel, q_BHLK, k_BGSK, v_BGSE)
    of_kernel = kernel.manual_sharding_spec(jax.sharding.NamedSharding(mesh, P(*of_q[1:3])))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(of_kernel, of_q, of_kv, of_kv), out_specs=of_q, check_vma=False)
    return mapped(kernel, q_BHLK, k_BGSK, v_BGSE)


def _block(size: int) -> int:
    return next(b for b in range(min(BLOCK, size), 0, -LANES) if size % b == 0)


def cudnn_takes(q_BHLK: jax.Array, v_BGSE: jax.Array) -> bool:
    K = q_BHLK.shape[3]
    return q_BHLK.dtype in (jnp.bfloat16, jnp.float16) and v_BGSE.shape[3] == K and K <= 128 and K % 8 == 0


def cudnn(q_BHLK: jax.Array, k_BGSK: jax.Array, v_BGSK: jax.Array, causal: bool) -> jax.Array:
    """cuDNN's flash attention, BHLK; q is scaled."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BHLK, k_BGSK, v_BGSK))
    out = jax.nn.dot_product_attention(q, k, v, scale=1.0, is_causal=causal, implementation="cudnn")
    return out.transpose(0, 2, 1, 3)
