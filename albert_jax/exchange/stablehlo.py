"""Write a model with its heads as a StableHLO program (`jax.export`), which runs with jax alone: without flax and this package.

The program takes the parameters as its first argument, because constants inside it would be stored without names and checksums.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from albert_jax.config import InputError
from albert_jax.exchange.safetensors import open_weights, save
from albert_jax.exchange.weights import Mapped, Weights
from albert_jax.model.heads import ANSWER_BEAM, Albert, param_shapes
from albert_jax.model.tree import leaves, nested

PROGRAM = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""The arguments of the program after the parameters: int32 [batch, length]."""

README = """\
# {heads} as StableHLO

`{program}` runs on {platforms} with `pip install jax numpy safetensors flatbuffers`; albert_jax is not needed:

```python
import jax.export, numpy as np
from pathlib import Path
from safetensors.numpy import load_file

params = {{name: x for file in Path(".").glob("model*.safetensors") for name, x in load_file(file).items()}}
program = jax.export.deserialize(Path("{program}").read_bytes())
input_ids = np.array([[2, 5, 3]], np.int32)  # from the tokenizer in this folder
outputs = program.call(params, input_ids, np.ones_like(input_ids), np.zeros_like(input_ids))
```

The arguments after `params` are {inputs}: int32 [batch, length], with any batch and {shortest} <= length <= {longest}.
Ids are not checked.  The outputs, in float32:

{outputs}
"""


def check_available() -> None:
    """Raise an `InputError` if the library is missing with which `jax.export` writes and reads programs."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("--to stablehlo needs flatbuffers: pip install 'albert_jax[stablehlo]'")


def write(weights: Weights, folder: Path) -> list[Mapped]:
    """Write the program, model.safetensors and a README.md that shows how to call it; return the tensors."""
    config = weights.model.config
    # Other implementations of attention exist on one platform only; remat and unrolling only make the program longer.
    config = replace(
        config, dtype="float32", attention_implementation="xla", fused_kernels=False, remat="none", scan_unroll=1
    )
    model = weights.model.clone(config=config)
    shortest = ANSWER_BEAM if "answer_class" in model.heads else 1
    longest = config.max_position_embeddings
    sizes = export.symbolic_shape(
        "batch, length", constraints=[f"length >= {shortest}", f"length <= {longest}", "batch >= 1"]
    )
    ids = jax.ShapeDtypeStruct(sizes, jnp.int32)
    shapes = {"/".join(path): leaf for path, leaf in leaves(param_shapes(model)).items()}
    exported = export.export(jax.jit(_apply(model)), platforms=PLATFORMS)(shapes, ids, ids, ids)
    (folder / PROGRAM).write_bytes(exported.serialize())
    save([(name, value) for name, value in _flat(weights.params).items()], folder)
    results = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    rows = [f"- `{name}`: {list(result.shape)}{_classes(model, name)}" for name, result in results.items()]
    text = README.format(
        heads=", ".join(("ALBERT", *model.heads)),
        program=PROGRAM,
        platforms=", ".join(PLATFORMS),
        inputs=", ".join(f"`{name}`" for name in INPUTS),
        shortest=shortest,
        longest=longest,
        outputs="\n".join(rows),
    )
    (folder / "README.md").write_text(text)
    return [Mapped(name, leaf.shape, name) for name, leaf in shapes.items()]


def outputs(folder: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of the program in `folder` for `inputs`."""
    tensors = open_weights(folder, allow_pickle=False)
    params = {name: tensors.read(name) for name in tensors.shapes}
    program = export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
    return jax.device_get(program.call(params, *(inputs[name] for name in INPUTS)))


def _apply(model: Albert) -> Any:
    def apply(params: dict[str, Array], input_ids: Array, attention_mask: Array, token_type_ids: Array) -> Any:
        tree = nested({tuple(name.split("/")): value for name, value in params.items()})
        return model.apply({"params": tree}, input_ids, attention_mask, token_type_ids)

    return apply


def _flat(params: dict[str, Any]) -> dict[str, np.ndarray]:
    return {"/".join(path): np.asarray(leaf) for path, leaf in leaves(params).items()}


def _classes(model: Albert, output: str) -> str:
    """The names of the classes of an output, for the README."""
    classes = {"logits": model.labels, "sop_logits": model.sentence_classes}.get(output, ())
    return f", classes {', '.join(classes)}" if classes else ""
