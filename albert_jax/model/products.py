"""Matrix products in the compute dtype, and which of them backward keeps.

Every product of the block bears a name, so that a remat policy is a list of names (`POLICIES`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from albert_jax.config import InputError

DENSE, SCORES, CONTEXT, KEPT = "dense", "scores", "context", "kept"
"""Outputs of dense layers; attention's two products; dropout's masks, whose random bits are dear."""


def _named(*names: str) -> Any:
    by_name = jax.checkpoint_policies.save_only_these_names(*names)

    def policy(primitive: Any, *arguments: Any, **parameters: Any) -> Any:
        # Fused attention leaves what its own backward reads, which no name can be given to.
        fused = CONTEXT in names and primitive.name.startswith("dot_product_attention_fwd")
        return fused or by_name(primitive, *arguments, **parameters)

    return policy


POLICIES: dict[str, Any] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "elementwise": _named(DENSE, SCORES, CONTEXT, KEPT),
    "dots": _named(DENSE, KEPT),
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""Name -> what of a block backward finds; it makes the rest again.  Each keeps less than the one before."""


def dense(x: Array, kernel: Array, bias: Array) -> Array:
    """x [..., K], kernel [K, M], bias [M], all of one dtype -> [..., M], to be found by the policies under `DENSE`."""
    return named((_bfloat16_on_cpu if _on_cpu(x) else _dense)(x, kernel, bias), DENSE)


def einsum(subscripts: str, x: Array, y: Array, name: str) -> Array:
    """`jnp.einsum`, to be found by the policies under `name`: of float32 where x is bfloat16 on a CPU, else of x's dtype."""
    wider = jnp.float32 if _on_cpu(x) else None
    return named(jnp.einsum(subscripts, x, y, preferred_element_type=wider), name)


def cudnn_attention(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """cuDNN's attention: query, key and value [B, S, N, D] -> [B, S, N, D], under the name `CONTEXT`.

    Of `mask` [B, S] only the number of ones counts: given as a mask, cuDNN would also compute the gradient of a bias.

    Raises:
      InputError: there is no cuDNN, or it does not do this on the device.
    """
    lengths = jnp.maximum(jnp.sum(mask, axis=-1, dtype=jnp.int32), 1)  # a row of padding alone gives no NaN
    padded: Any = {"query_seq_lengths": lengths, "key_value_seq_lengths": lengths}
    try:
        return named(jax.nn.dot_product_attention(query, key, value, implementation="cudnn", **padded), CONTEXT)
    except (RuntimeError, ValueError) as error:  # which JAX raises as it traces
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"model.attention_implementation 'cudnn': {reason}; on this device use 'xla'") from None


def named(x: Array, name: str) -> Array:
    """x, to be found by the policies under `name`."""
    return checkpoint_name(x, name)


def _on_cpu(x: Array) -> bool:
    return x.dtype == jnp.bfloat16 and jax.default_backend() == "cpu"


def _dense(x: Array, kernel: Array, bias: Array) -> Array:
    if kernel.dtype != jnp.float32 and jax.default_backend() == "gpu":
        # Where it sees the kernel's cast, XLA:GPU takes that into the product, and leaves the bias to a kernel of its own.
        kernel = jax.lax.optimization_barrier(kernel)
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))) + bias


@jax.custom_vjp
def _bfloat16_on_cpu(x: Array, kernel: Array, bias: Array) -> Array:
    # XLA:CPU computes a product in float32 unless both operands are bfloat16, the result is float32, and the first
    # operand's contracted axis is its last: at half the speed, and autodiff's own backward is never of that form.
    return (_accumulated(x, kernel, 0) + bias.astype(jnp.float32)).astype(x.dtype)


def _accumulated(x: Array, y: Array, axis: int) -> Array:
    dimensions = (((x.ndim - 1,), (axis,)), ((), ()))
    product = jax.lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)
    # A transpose of the result, folded into the product, would be a form that XLA:CPU has no code for.
    return jax.lax.optimization_barrier(product)


def _forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return _bfloat16_on_cpu(x, kernel, bias), (x, kernel)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    x, kernel = saved
    # Rows of several axes are laid out anew by the reshape: a mere transpose would be folded into the product.
    columns = jnp.moveaxis(x, -1, 0).reshape(x.shape[-1], -1)
    rows = gradient.reshape(-1, gradient.shape[-1])
    summed = jnp.sum(rows, axis=0, dtype=jnp.float32)
    of_x, of_kernel = _accumulated(gradient, kernel, 1), _accumulated(columns, rows, 0)
    return of_x.astype(x.dtype), of_kernel.astype(x.dtype), summed.astype(x.dtype)


_bfloat16_on_cpu.defvjp(_forward, _backward)
