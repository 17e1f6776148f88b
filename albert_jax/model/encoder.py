"""The loop that runs the block L times, each time with the parameter sets that `sharing.py` assigns to it.

Shapes: as in `albert.py`.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.model.albert import AlbertConfig, Attention, FeedForward, Outputs, dense
from albert_jax.model.depth import max_layers
from albert_jax.model.per_pass import init_passes, injected, weighted_passes
from albert_jax.model.products import POLICIES
from albert_jax.model.sharing import PASSES

SITES_PER_BLOCK = 3
"""Dropout sites in a block.  Site 0 is the embeddings."""


class Encoder(nn.Module):
    """The stack of layers: a scan over blocks, each with the parameter sets that `config.sharing` assigns to it.

    The parameters of each part always have a leading axis of sets, [G, ...], with G = 1 if all layers share.  So the
    parameter tree has the same structure for all strategies.  A part with one set is a constant of the scan; otherwise the
    scan runs over a stack with the set of each block.  Per-pass parameters are in `per_pass`, [L * inner_group_num, ...].

    If `num_layers` is given, only that many layers run; the maximum is `max_layers` of `depth_sampling`.

    `gather_set(params of one set, *path)`, if given, is called on each set right before its use.  It all-gathers sharded
    parameters, so that a device never holds all sets at once.
    """

    config: AlbertConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array,
        keys: Array | None,
        collect: bool,
        gather_set: Callable[..., Any] | None = None,
        num_layers: Array | None = None,
    ) -> tuple[Array, Outputs]:
        config = self.config
        if num_layers is not None:
            if collect:
                raise ValueError("num_layers cannot be combined with output_hidden_states or output_attentions")
            # The scan has the largest number of layers, and skips those beyond `num_layers`.
            largest = max_layers(config.depth_sampling, config.num_hidden_layers)
            config = replace(config, num_hidden_layers=largest, depth_sampling="fixed")
        if config.maps_embeddings:
            x = dense(config, config.hidden_size, "embedding_hidden_mapping_in")(x)
        x = x.astype(config.dtype)
        # Attention and FeedForward are applied by hand: flax's scan silently un-shares a module that is passed to it.
        modules: dict[str, nn.Module] = {
            "attention": Attention(config, parent=None),
            "ffn": FeedForward(config, parent=None),
        }
        sets = config.layer_sets

        def init(key: Array, part: str) -> dict[str, Any]:
            example = jnp.zeros((1, 1, config.hidden_size), config.dtype)
            inputs = (example, jnp.ones((1, 1)), None, 0, True) if part == "attention" else (example, None, 0)
            keys = jax.random.split(key, max(sets[part]) + 1)
            stacked = jax.vmap(lambda key: modules[part].init(key, *inputs)["params"])(keys)
            return {name: leaves for name, leaves in stacked.items() if name not in config.per_pass.own_modules}

        initial = {part: functools.partial(init, part=part) for part in sets}
        if jax.eval_shape(functools.partial(init_passes, config), jax.random.key(0)):
            initial[PASSES] = functools.partial(init_passes, config)
        if gather_set is None:
            params = {name: self.param(name, init) for name, init in initial.items()}
        else:  # `self.param` would check shapes, and here a device holds only its shards
            params = {name: self.get_variable("params", name) for name in initial}
        constant, scanned = {}, {}
        for part, ids in sets.items():
            if max(ids) == 0:
                one_set = jax.tree.map(lambda leaf: leaf[0], params[part])
                constant[part] = one_set if gather_set is None else gather_set(one_set, "encoder", part)
            elif ids == tuple(range(len(ids))):
                scanned[part] = params[part]
            else:
                scanned[part] = jax.tree.map(lambda leaf, ids=ids: leaf[jnp.array(ids)], params[part])

        if PASSES in params:
            scanned[PASSES] = params[PASSES]
        embedded = x

        def block(x: Array, inputs: tuple[dict[str, Any], Array]) -> tuple[Array, Outputs]:
            scanned_params, index = inputs
            if gather_set is not None:
                scanned_params = {part: gather_set(params, "encoder", part) for part, params in scanned_params.items()}
            block_params, site = constant | scanned_params, 1 + SITES_PER_BLOCK * index
            pass_params = block_params.pop(PASSES, {})
            if config.inject:
                x = injected(x, embedded, pass_params["inject"])
            x = config.per_pass.enter(pass_params, x)
            block_params = config.per_pass.block(pass_params, block_params)
            # Initialization uses XLA's attention, because parameter shapes are also needed without a GPU.
            with_weights = collect or self.is_initializing()

            def run(x: Array) -> tuple[Array, Outputs]:
                attention_args = (x, mask, keys, site, with_weights)
                attended: Any = modules["attention"].apply({"params": block_params["attention"]}, *attention_args)
                hidden: Any = modules["ffn"].apply({"params": block_params["ffn"]}, attended[0], keys, site + 2)
                return hidden, {"hidden_states": hidden, "attentions": attended[1]} if collect else {}

            if num_layers is None:
                return run(x)
            return jax.lax.cond(index < num_layers * config.inner_group_num, run, lambda x: (x, {}), x)

        if config.remat != "none":
            # XLA merges recomputed values with those of the forward pass if both are in one loop iteration (23 instead of
            # 16 GB for base, 128 x 512 tokens).  Barriers prevent it; a loop with one block needs none.
            several = config.scan_unroll > 1 or config.layer_weights
            block = jax.checkpoint(block, prevent_cse=several, policy=POLICIES[config.remat])
        inputs = (scanned, jnp.arange(config.depth))
        if config.layer_weights:
            x, outputs = weighted_passes(block, x, inputs, params[PASSES]["layer_weights"])
        else:
            x, outputs = jax.lax.scan(block, x, inputs, unroll=min(config.scan_unroll, config.depth))
        if collect:  # as Hugging Face: hidden states of each layer, attention weights of each block
            layer_ends = outputs["hidden_states"][config.inner_group_num - 1 :: config.inner_group_num]
            outputs["hidden_states"] = jnp.concatenate([embedded[None], layer_ends])
        return x, outputs
