"""Matrix products in the compute dtype, and which of them are saved for the backward pass.

Every product in the block has a name, so a remat policy is a list of names (`POLICIES`).  The default, `elementwise`,
recomputes elementwise values: the scan stacks everything that is saved L times, which costs more time and memory than
recomputing.  If you have the memory, set `remat: none`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from albert_jax.config import InputError, first_line

DENSE, SCORES, CONTEXT, DROPOUT_MASK = "dense", "scores", "context", "dropout_mask"
"""Names: outputs of dense layers; attention's two products; dropout masks, whose random bits are expensive."""


def _save(*names: str) -> Any:
    save_names = jax.checkpoint_policies.save_only_these_names(*names)

    def policy(primitive: Any, *arguments: Any, **parameters: Any) -> Any:
        # The residuals of fused attention have no names.
        fused = CONTEXT in names and primitive.name.startswith("dot_product_attention_fwd")
        return fused or save_names(primitive, *arguments, **parameters)

    return policy


POLICIES: dict[str, Any] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "elementwise": _save(DENSE, SCORES, CONTEXT, DROPOUT_MASK),
    "dots": _save(DENSE, DROPOUT_MASK),
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""Name -> remat policy: which values of a block are saved for the backward pass.  Each saves less than the one before."""


def dense(x: Array, kernel: Array, bias: Array) -> Array:
    """x [..., K] times kernel [K, M] plus bias [M], all of one dtype; named `DENSE`."""
    return named((_dense_bfloat16_on_cpu if _is_bfloat16_on_cpu(x) else _dense)(x, kernel, bias), DENSE)


def einsum(subscripts: str, x: Array, y: Array, name: str) -> Array:
    """`jnp.einsum` with a name for the remat policies; float32 if x is bfloat16 on a CPU, else x's dtype."""
    result_dtype = jnp.float32 if _is_bfloat16_on_cpu(x) else None
    return named(jnp.einsum(subscripts, x, y, preferred_element_type=result_dtype), name)


def cudnn_attention(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """cuDNN's attention of query, key and value [B, S, N, D] -> [B, S, N, D]; named `CONTEXT`.

    cuDNN gets the number of ones in each row of `mask` [B, S], because it would treat a mask as a bias and compute its
    gradient.  So masks with holes need XLA's attention.

    Raises:
      InputError: cuDNN is missing or does not support the device.
    """
    lengths = jnp.maximum(jnp.sum(mask, axis=-1, dtype=jnp.int32), 1)  # 1: a row with only padding must not give NaN
    seq_lengths: Any = {"query_seq_lengths": lengths, "key_value_seq_lengths": lengths}
    try:
        context = jax.nn.dot_product_attention(query, key, value, implementation="cudnn", **seq_lengths)
        return named(context, CONTEXT)
    except (RuntimeError, ValueError) as error:  # raised by JAX while tracing
        reason = first_line(error).rstrip(".")
        raise InputError(f"model.attention_implementation 'cudnn': {reason}; on this device use 'xla'") from None


def named(x: Array, name: str) -> Array:
    """Give x a name for the remat policies."""
    return checkpoint_name(x, name)


def _is_bfloat16_on_cpu(x: Array) -> bool:
    return x.dtype == jnp.bfloat16 and jax.default_backend() == "cpu"


def _dense(x: Array, kernel: Array, bias: Array) -> Array:
    if kernel.dtype != jnp.float32 and jax.default_backend() == "gpu":
        # Without the barrier XLA:GPU fuses the kernel's cast into the product, and the bias no longer fuses.
        kernel = jax.lax.optimization_barrier(kernel)
    if jax.default_backend() != "cpu":
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))) + bias
    # In one product over [B * S, K], because the kernel's gradient then contracts one axis.  To contract B and S, XLA:CPU first
    # copies the transposed gradient, and loss and gradients take 10 to 14 % longer.
    product = jax.lax.dot(x.reshape(-1, x.shape[-1]), kernel)
    return product.reshape(*x.shape[:-1], -1) + bias


@jax.custom_vjp
def _dense_bfloat16_on_cpu(x: Array, kernel: Array, bias: Array) -> Array:
    # XLA:CPU uses its bfloat16 kernels only if both operands are bfloat16, the result is float32, and the first operand's
    # contracted axis is its last.  Otherwise it computes in float32 at half the speed.  The gradients of autodiff do not have
    # this form, so they are written by hand; forward-mode differentiation does not work.
    return (_accumulated(x, kernel, 0) + bias.astype(jnp.float32)).astype(x.dtype)


def _accumulated(x: Array, y: Array, axis: int) -> Array:
    dimensions = (((x.ndim - 1,), (axis,)), ((), ()))
    product = jax.lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)
    # XLA:CPU cannot run the product with a transpose of the result folded into it.
    return jax.lax.optimization_barrier(product)


def _forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return _dense_bfloat16_on_cpu(x, kernel, bias), (x, kernel)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    x, kernel = saved
    # The reshape copies, so that the transpose is not folded into the product.
    columns = jnp.moveaxis(x, -1, 0).reshape(x.shape[-1], -1)
    rows = gradient.reshape(-1, gradient.shape[-1])
    bias_gradient = jnp.sum(rows, axis=0, dtype=jnp.float32)
    x_gradient, kernel_gradient = _accumulated(gradient, kernel, 1), _accumulated(columns, rows, 0)
    return x_gradient.astype(x.dtype), kernel_gradient.astype(x.dtype), bias_gradient.astype(x.dtype)


_dense_bfloat16_on_cpu.defvjp(_forward, _backward)
