"""Pallas kernels for the elementwise work of a block on NVIDIA GPUs, with fewer passes over memory than XLA's.

`add_layer_norm` is bias + residual + LayerNorm, `add_activate` is bias + activation.  Their backward passes also sum the
gradients of the biases and of LayerNorm's parameters, which XLA computes in kernels of their own.

Off the GPU, the kernels run in Pallas's interpreter: slowly, to test them.  It cannot run in `shard_map` with its checks.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas
from jax.experimental.pallas import triton

BLOCK = 4096
"""Elements of one array in a block; a wider row is one block."""

COLUMNS = 1024
"""Columns of a program of the backward pass of `add_activate`."""

PROGRAMS = 512
"""Programs that share the rows in a backward pass; each writes one partial sum.  About four for each multiprocessor of an H200."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def add_layer_norm(x: Array, y: Array, y_bias: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """LayerNorm of x + (y + y_bias), in float32.

    Args:
      x: residual [..., H].
      y: product [..., H], of x's dtype.
      y_bias, scale, bias: parameters [H], float32.
      epsilon: added to the variance.

    Returns:
      [..., H], of x's dtype.
    """
    return _layer_norm_forward(x, y, y_bias, scale, bias, epsilon)[0]


def _layer_norm_forward(
    x: Array, y: Array, y_bias: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, Any]:
    width = x.shape[-1]
    rows, columns = _rows(x), pallas.next_power_of_2(width)
    block_rows = max(1, BLOCK // columns)

    def kernel(
        x_ref: Any, y_ref: Any, y_bias_ref: Any, scale_ref: Any, bias_ref: Any, out_ref: Any, sum_ref: Any
    ) -> None:
        block = _Block(pallas.program_id(0) * block_rows, block_rows, 0, columns, (rows, width))
        y_biased = (block.load(y_ref) + block.load_row(y_bias_ref)).astype(y.dtype).astype(jnp.float32)
        summed = (block.load(x_ref) + y_biased).astype(x.dtype)
        block.store(sum_ref, summed)
        normalized, _ = block.normalize(summed.astype(jnp.float32), epsilon)
        block.store(out_ref, normalized * block.load_row(scale_ref) + block.load_row(bias_ref))

    like_x = _shape((rows, width), x.dtype, x)
    out, summed = _call(kernel, (pallas.cdiv(rows, block_rows),), (like_x, like_x), "add_layer_norm")(
        x.reshape(rows, width), y.reshape(rows, width), y_bias, scale, bias
    )
    return out.reshape(x.shape), (summed, scale)


def _layer_norm_backward(epsilon: float, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, ...]:
    summed, scale = saved
    rows, width = summed.shape
    columns = pallas.next_power_of_2(width)
    block_rows = max(1, BLOCK // columns)
    programs = min(PROGRAMS, pallas.cdiv(rows, block_rows))

    def kernel(summed_ref: Any, scale_ref: Any, gradient_ref: Any, input_gradient_ref: Any, *partial_refs: Any) -> None:
        program = pallas.program_id(0)

        def add(step: Array, partials: tuple[Array, ...]) -> tuple[Array, ...]:
            first = (program + step * programs) * block_rows
            block = _Block(first, block_rows, 0, columns, (rows, width))
            normalized, rstd = block.normalize(block.load(summed_ref), epsilon)
            gradient = block.load(gradient_ref)
            scaled = gradient * block.load_row(scale_ref)
            mean = jnp.sum(scaled, axis=1, keepdims=True) / width
            projection = jnp.sum(scaled * normalized, axis=1, keepdims=True) / width
            input_gradient = (scaled - mean - normalized * projection) * rstd
            block.store(input_gradient_ref, input_gradient)
            terms = (input_gradient, gradient * normalized, gradient)
            return tuple(partial + term for partial, term in zip(partials, terms, strict=True))

        zeros = jnp.zeros((block_rows, columns), jnp.float32)
        steps = pallas.cdiv(pallas.cdiv(rows, block_rows), programs)
        partials = jax.lax.fori_loop(0, steps, add, (zeros, zeros, zeros))
        row = _Block(program, 1, 0, columns, (programs, width))
        for ref, partial in zip(partial_refs, partials, strict=True):
            row.store(ref, jnp.sum(partial, axis=0, keepdims=True))

    sums = _shape((programs, width), jnp.float32, summed)
    shapes = (_shape((rows, width), summed.dtype, summed), sums, sums, sums)
    call = _call(kernel, (programs,), shapes, "add_layer_norm_backward")
    input_gradient, *partials = call(summed, scale, gradient.reshape(rows, width))
    input_gradient = input_gradient.reshape(gradient.shape)
    return input_gradient, input_gradient, *(jnp.sum(partial, axis=0) for partial in partials)


add_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def add_activate(x: Array, bias: Array, activation: Callable[[Array], Array]) -> Array:
    """Activation, in float32, of x + bias, rounded to x's dtype.  Only its backward pass is a kernel; XLA fuses the forward pass as well.

    Args:
      x: product [..., F].
      bias: parameter [F], float32.
      activation: elementwise function.

    Returns:
      [..., F], of x's dtype.
    """
    return activation((x + bias.astype(x.dtype)).astype(jnp.float32)).astype(x.dtype)


def _activate_forward(x: Array, bias: Array, activation: Callable[[Array], Array]) -> tuple[Array, tuple[Array, Array]]:
    return add_activate(x, bias, activation), (x, bias)


def _activate_backward(
    activation: Callable[[Array], Array], saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, bias = saved
    rows, width = _rows(x), x.shape[-1]
    columns = min(COLUMNS, pallas.next_power_of_2(width))
    block_rows = max(1, BLOCK // columns)
    programs = min(PROGRAMS, pallas.cdiv(rows, block_rows))

    def kernel(x_ref: Any, bias_ref: Any, gradient_ref: Any, input_gradient_ref: Any, partial_ref: Any) -> None:
        program, first_column = pallas.program_id(0), pallas.program_id(1) * columns

        def add(step: Array, partial: Array) -> Array:
            first = (program + step * programs) * block_rows
            block = _Block(first, block_rows, first_column, columns, (rows, width))
            biased = (block.load(x_ref) + block.load_row(bias_ref).astype(x.dtype)).astype(x.dtype)
            pull = jax.vjp(activation, biased.astype(jnp.float32))[1]
            (input_gradient,) = pull(block.load(gradient_ref))
            block.store(input_gradient_ref, input_gradient)
            return partial + input_gradient

        steps = pallas.cdiv(pallas.cdiv(rows, block_rows), programs)
        partial = jax.lax.fori_loop(0, steps, add, jnp.zeros((block_rows, columns), jnp.float32))
        row = _Block(program, 1, first_column, columns, (programs, width))
        row.store(partial_ref, jnp.sum(partial, axis=0, keepdims=True))

    shapes = (_shape((rows, width), x.dtype, x), _shape((programs, width), jnp.float32, x))
    grid = (programs, pallas.cdiv(width, columns))
    call = _call(kernel, grid, shapes, "add_activate_backward")
    input_gradient, partial = call(x.reshape(rows, width), bias, gradient.reshape(rows, width))
    return input_gradient.reshape(x.shape), jnp.sum(partial, axis=0)


add_activate.defvjp(_activate_forward, _activate_backward)


class _Block:
    """A block of an array [rows, width], in a kernel.  Triton needs powers of two, so what lies outside is masked."""

    def __init__(self, first_row: Any, rows: int, first_column: Any, columns: int, shape: tuple[int, int]) -> None:
        self.row = first_row + jnp.arange(rows)[:, None]
        self.column = first_column + jnp.arange(columns)[None, :]
        self.width = shape[1]
        self.mask = (self.row < shape[0]) & (self.column < shape[1])

    def load(self, ref: Any) -> Array:
        """The block of a [rows, width] array in float32, 0 outside: a gradient of 0 adds nothing to the sums over rows."""
        return triton.load(ref.at[self.row, self.column], mask=self.mask, other=0.0).astype(jnp.float32)

    def load_row(self, ref: Any) -> Array:
        """The columns of a [width] array: [1, columns], 0 outside."""
        return triton.load(ref.at[self.column], mask=self.column < self.width, other=0.0)

    def store(self, ref: Any, values: Array) -> None:
        triton.store(ref.at[self.row, self.column], values.astype(ref.dtype), mask=self.mask)

    def normalize(self, x: Array, epsilon: float) -> tuple[Array, Array]:
        """Rows with mean 0 and variance 1, and the reciprocals [rows, 1] of their standard deviations."""
        mean = jnp.sum(x, axis=1, keepdims=True) / self.width
        centered = jnp.where(self.mask, x - mean, 0.0)
        rstd = jax.lax.rsqrt(jnp.sum(centered * centered, axis=1, keepdims=True) / self.width + epsilon)
        return centered * rstd, rstd


def _rows(x: Array) -> int:
    return math.prod(x.shape[:-1])


def _shape(shape: tuple[int, ...], dtype: Any, like: Array) -> jax.ShapeDtypeStruct:
    """The shape of an output that varies over the same mesh axes as `like`, inside shard_map."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type)


def _call(kernel: Callable[..., None], grid: tuple[int, ...], shapes: Sequence[jax.ShapeDtypeStruct], name: str) -> Any:
    return pallas.pallas_call(
        kernel,
        grid=grid,
        out_shape=tuple(shapes),
        compiler_params=triton.CompilerParams(num_warps=8),
        interpret=jax.default_backend() != "gpu",
        name=name,
    )
