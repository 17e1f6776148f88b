"""Script that wrote tests/golden/tf1, with tensorflow-cpu 2.21.0: `python make_tf1.py FOLDER`.

TensorFlow wrote the weights of two cases of golden/huggingface under the names of google-research/albert, so the outputs must
be those of golden/huggingface.  `inner` has the form of Google's archives, with the optimizer's slots; `hub` is an unpacked
TF-Hub module in two shards.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file

HERE = Path(__file__).parent


def released_name(name: str) -> str:
    """The name in google-research/albert of a tensor, given its Hugging Face name."""
    for old, new in (
        ("albert.encoder.albert_layer_groups.", "bert/encoder/transformer/group_"),
        (".albert_layers.", "/inner_group_"),
        ("attention.LayerNorm", "LayerNorm"),
        ("full_layer_layer_norm", "LayerNorm_1"),
        ("attention.dense", "attention_1.output.dense"),
        ("attention.query", "attention_1.self.query"),
        ("attention.key", "attention_1.self.key"),
        ("attention.value", "attention_1.self.value"),
        ("ffn_output", "ffn_1.intermediate.output.dense"),
        ("ffn.", "ffn_1.intermediate.dense."),
        ("predictions.bias", "cls.predictions.output_bias"),
        ("predictions.dense", "cls.predictions.transform.dense"),
        ("predictions.LayerNorm", "cls.predictions.transform.LayerNorm"),
        ("sop_classifier.classifier.weight", "cls.seq_relationship.output_weights"),
        ("sop_classifier.classifier.bias", "cls.seq_relationship.output_bias"),
        ("pooler.", "pooler.dense."),
        ("albert.", "bert."),
    ):
        name = name.replace(old, new)
    name = name.replace(".", "/")
    if "LayerNorm" in name:
        name = name.replace("/weight", "/gamma").replace("/bias", "/beta")
    return name.replace("_embeddings/weight", "_embeddings").replace("/weight", "/kernel")


def variables(case: str) -> dict[str, np.ndarray]:
    """The tensors of a case by their released names; dense kernels are [in, out]."""
    found = {}
    for name, value in load_file(HERE / "huggingface" / case / "model.safetensors").items():
        name = released_name(name)
        found[name] = value.T if name.endswith("/kernel") else value
    return found


def config(case: str, folder: Path) -> None:
    """Write albert_config.json in the released form, where "gelu" is the tanh form."""
    stored = json.loads((HERE / "huggingface" / case / "config.json").read_text())
    keys = "attention_probs_dropout_prob hidden_dropout_prob embedding_size hidden_size initializer_range intermediate_size "
    keys += "max_position_embeddings num_attention_heads num_hidden_layers num_hidden_groups inner_group_num type_vocab_size vocab_size"
    extra = {
        "hidden_act": "gelu",
        "net_structure_type": 0,
        "gap_size": 0,
        "num_memory_blocks": 0,
        "down_scale_factor": 1,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "albert_config.json").write_text(json.dumps({key: stored[key] for key in keys.split()} | extra, indent=2))


def inner(folder: Path) -> None:
    """Write a checkpoint with the optimizer's slots and the step, by the Saver."""
    config("inner", folder)
    with tf.Graph().as_default():
        stored = variables("inner")
        all_variables = [tf.compat.v1.get_variable(name, initializer=value) for name, value in stored.items()]
        all_variables += [
            tf.compat.v1.get_variable(f"{n}/adam_{s}", initializer=0 * stored[n])
            for n in sorted(stored)[:3]
            for s in "mv"
        ]
        all_variables.append(tf.compat.v1.get_variable("global_step", initializer=np.int64(7)))
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            saver = tf.compat.v1.train.Saver(all_variables)
            saver.save(session, str(folder / "model.ckpt-best"), write_meta_graph=False, write_state=False)


def hub(folder: Path) -> None:
    """Write a checkpoint with the prefix `module/`, without heads, in two shards."""
    config("shared", folder / "assets")
    stored = {f"module/{name}": value for name, value in variables("shared").items() if not name.startswith("cls/")}
    names, prefixes = sorted(stored), []
    (folder / "variables").mkdir()
    for number, some in enumerate((names[::2], names[1::2])):
        prefixes.append(str(folder / "variables" / f"part{number}"))
        tf.raw_ops.SaveV2(
            prefix=prefixes[-1], tensor_names=some, shape_and_slices=[""] * len(some), tensors=[stored[n] for n in some]
        )
    target = str(folder / "variables" / "variables")
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=target, delete_old_dirs=False)


if __name__ == "__main__":
    inner(Path(sys.argv[1]) / "inner")
    hub(Path(sys.argv[1]) / "hub")
