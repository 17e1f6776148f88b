"""Load any ALBERT: `load` for notebooks and scripts, `read` for jobs that start from a model.

A model has the heads for which its source has tensors; missing heads are never initialized silently.
"""

import importlib.util
import logging
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from albert_jax.config import InputError, from_dict, read_json
from albert_jax.data import tokenizer_files
from albert_jax.data.json_tokenizer import JsonTokenizer
from albert_jax.data.tokenizer import TEXT_OPTIONS, Tokenizer, UnsuitableVocabulary
from albert_jax.data.tokenizer_files import open_tokenizer
from albert_jax.exchange import archives, huggingface, tf1
from albert_jax.exchange.safetensors import has_weights
from albert_jax.exchange.weights import Weights
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import PRETRAINING, SENTENCE_CLASSES, Albert, init_params, param_shapes

log = logging.getLogger(__name__)

HUB_FILES = ("*.json", "model*.safetensors", "spiece.model", "vocab.txt")
"""The files that are fetched from the hub."""
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w./-]+)?")
MAY_CHANGE_ON_LOAD = (
    "dtype",
    "remat",
    "scan_unroll",
    "attention_implementation",
    "fused_kernels",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout_prob",
)
"""The fields of `AlbertConfig` that `load` may change: how a model is run and trained, and the activation, which config
files often state wrongly."""
RUN_FOLDERS = ("best", "checkpoints")
"""The folders of a run that hold parameters; `load` takes the first that exists, unless the source names one of them."""


@dataclass
class Source:
    """A model that was read."""

    kind: str
    """What it was read as: huggingface, tf1 or run."""
    weights: Weights
    tokenizer: Tokenizer | None
    name: str = ""
    """The source as it was given to `read`."""


def load(
    source: str | Path,
    *,
    vocab: str | Path = "",
    init_missing: bool = False,
    allow_pickle: bool = False,
    **changes: Any,
) -> tuple[Albert, dict[str, Any], Any]:
    """Load any ALBERT; then call `model.apply({"params": params}, **tokenizer("Hello, world!"))`.

    Args:
      source: a Hugging Face folder; a hub id such as `albert/albert-base-v2`, or `...@revision` (needs the extra `hub`);
        the folder, tar archive or path of one of Google's checkpoints; a run folder of albert_jax; or one checkpoint of a
        run, such as `runs/tiny/checkpoints/1000`.
      vocab: a vocabulary (SentencePiece model, vocab.txt or tokenizer.json) to use instead of the source's.
      init_missing: initialize the pretraining heads that the source lacks; otherwise the model does not have them.
      allow_pickle: read `pytorch_model.bin` if there are no other weights.  torch reads it, and accepts only tensors.
      changes: fields in `MAY_CHANGE_ON_LOAD`, such as dtype="bfloat16".

    Returns:
      The model (with its `config`, `heads` and `labels`), its parameters on the default device, and the tokenizer; None instead of the
      tokenizer if the source has none.

    Raises:
      InputError: the source cannot be read.
    """
    for name in changes:
        if name not in MAY_CHANGE_ON_LOAD:
            raise InputError(
                f"{name} cannot be changed when a model is loaded; only {', '.join(MAY_CHANGE_ON_LOAD)} can"
            )
    loaded = read(source, vocab=vocab, init_missing=init_missing, allow_pickle=allow_pickle)
    for note in loaded.weights.notes:
        log.warning("%s: %s", source, note)
    if loaded.tokenizer is None:
        log.warning("%s: no vocabulary, so there is no tokenizer; name one with vocab", source)
    model = loaded.weights.model
    model = model.clone(config=replace(model.config, **changes))
    return model, jax.device_put(loaded.weights.params), loaded.tokenizer


def read(
    source: str | Path, *, vocab: str | Path = "", init_missing: bool = False, allow_pickle: bool = False
) -> Source:
    """Like `load`, but keep the parameters in host memory, also return notes, and allow a missing vocabulary."""
    try:
        path = Path(source).expanduser()
        exists = path.exists() or tf1.is_checkpoint(path)
    except (OSError, RuntimeError):  # a name that is too long, or an unknown user
        raise InputError(f"{str(source)[:80]}: no such file or folder") from None
    if not exists:
        loaded = _from_hub(str(source), vocab, allow_pickle)
    elif path.is_file() and path.suffix in (".tar", ".gz", ".tgz"):
        with tempfile.TemporaryDirectory() as folder:
            archives.unpack(path, Path(folder))
            try:
                loaded = _from_folder(Path(folder), vocab, allow_pickle)
            except InputError as error:  # name the archive: the temporary folder is about to be removed
                raise InputError(str(error).replace(folder, str(path))) from None
    elif path.is_dir():
        loaded = _from_folder(path, vocab, allow_pickle)
    else:
        prefix = path.with_suffix("") if path.suffix == ".index" else path
        if not tf1.is_checkpoint(prefix):
            raise InputError(f"{path}: name its folder, or a checkpoint without .index")
        loaded = _from_tf1(prefix, vocab)
    vocab_size = loaded.weights.model.config.vocab_size
    if isinstance(loaded.tokenizer, JsonTokenizer) and not vocab and loaded.tokenizer.vocab_size > vocab_size:
        note = f"{loaded.tokenizer.path} has {loaded.tokenizer.vocab_size} pieces, vocab_size is {vocab_size}; so it is not used"
        loaded.weights.notes.append(note)
        loaded.tokenizer = None
    if loaded.tokenizer is not None and loaded.tokenizer.vocab_size > vocab_size:
        raise InputError(f"{source}: tokenizer has {loaded.tokenizer.vocab_size} pieces, vocab_size is {vocab_size}")
    if loaded.tokenizer is not None and loaded.tokenizer.vocab_size < vocab_size:
        unused = vocab_size - loaded.tokenizer.vocab_size
        loaded.weights.notes.append(f"{unused} rows of the embedding table belong to no piece of the vocabulary")
    weights = _with_missing_heads(loaded.weights) if init_missing else loaded.weights
    return replace(loaded, weights=weights, name=str(source))


def read_checkpoint(run_dir: Path, step: int) -> Source:
    """Read the checkpoint of a run at `step`, wherever the run stores its checkpoints."""
    return _from_run(Run(run_dir, read_json(run_dir / "config.json"), ("checkpoints",), step), "")


class Run(NamedTuple):
    """A run, or one of its checkpoints."""

    folder: Path
    stored: dict[str, Any]
    """The content of `config.json`."""
    subfolders: Sequence[str] = RUN_FOLDERS
    """Where its parameters are; the first that holds some counts."""
    step: int | None = None
    """None: the newest."""


def find_run(folder: Path) -> Run | None:
    """The run whose folder this is, or that of its checkpoints, or one of its checkpoints; None if it is none of these."""
    config = folder / "config.json"
    if config.is_file():
        stored = read_json(config)
        return Run(folder, stored) if "job" in stored else None
    step = int(folder.name) if folder.name.isdigit() else None
    subfolder = folder if step is None else folder.parent
    config = subfolder.parent / "config.json"
    if subfolder.name in RUN_FOLDERS and config.is_file() and "job" in (stored := read_json(config)):
        return Run(subfolder.parent, stored, (subfolder.name,), step)
    return None


def _from_folder(folder: Path, vocab: str | Path, allow_pickle: bool) -> Source:
    if run := find_run(folder):
        return _from_run(run, vocab)
    if (folder / "config.json").is_file():
        if not has_weights(folder):
            if prefix := tf1.find_prefix(folder):
                return _from_tf1(prefix, vocab)
            _refuse_other_formats(folder)
        weights = huggingface.read(folder, allow_pickle)
        try:
            return Source("huggingface", weights, tokenizer_files.read(folder, vocab))
        except UnsuitableVocabulary as error:
            if vocab:
                raise
            weights.notes.append(f"{error}; so it is not used")
            return Source("huggingface", weights, None)
    if prefix := tf1.find_prefix(folder):
        return _from_tf1(prefix, vocab)
    _refuse_other_formats(folder)
    raise InputError(
        f"{folder}: no Hugging Face folder or run folder (config.json), and no checkpoint of Google's (.index)"
    )


OTHER_FORMATS = {
    "adapter_config.json": "an adapter of PEFT; merge it into its model (merge_and_unload) and save that",
    "model.weights.h5": "a model of KerasHub; name the checkpoint from which it was made",
    "pytorch_model.bin.index.json": "a pickle in several files; load it in transformers and save it with save_pretrained",
    "saved_model.pb": "a SavedModel of TensorFlow; name the checkpoint from which it was made",
    "checkpoint-*": "the output of a Trainer; name one of its checkpoints, such as {match}",
    "tf_model.h5": "TensorFlow weights of transformers; save them from PyTorch as model.safetensors",
    "flax_model.msgpack": "Flax weights of transformers; save them from PyTorch as model.safetensors",
    "model.stablehlo": "a StableHLO program, which does not say what its parameters mean; name the model from which it was made",
    "*.onnx": "an ONNX model, which has no names of parameters; name the model from which it was made",
}
"""A file in a folder of a format that is not read -> what it is, and the way out."""


def _refuse_other_formats(folder: Path) -> None:
    for glob, advice in OTHER_FORMATS.items():
        if matches := sorted(folder.glob(glob), key=lambda path: (len(path.name), path.name)):
            raise InputError(f"{folder}: {advice.format(match=matches[-1])}")


def _from_tf1(prefix: Path, vocab: str | Path) -> Source:
    weights, vocabulary = tf1.read(prefix)
    vocabulary = Path(vocab) if vocab else vocabulary
    return Source("tf1", weights, open_tokenizer(vocabulary) if vocabulary else None)


def _from_run(run: Run, vocab: str | Path) -> Source:
    from albert_jax.training import checkpoint  # Orbax takes seconds to import

    folder, stored, subfolders, step = run
    path, table = folder / "config.json", stored.get("config")
    if not isinstance(table, dict) or "model" not in table:
        raise InputError(f"{path}: no table 'config.model'")
    folders = {name: str(folder / name) for name in subfolders}
    if "checkpoints" in folders:
        folders["checkpoints"] = table.get("train", {}).get("checkpoint_dir") or folders["checkpoints"]
    checkpoints = next((one for one in folders.values() if checkpoint.has_checkpoint(one)), folders[subfolders[-1]])
    defaults = {"heads": list(PRETRAINING), "labels": [], "sentence_classes": list(SENTENCE_CLASSES)}
    names = {key: stored.get(key, default) for key, default in defaults.items()}
    for key, value in names.items():
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise InputError(f"{path}: {key}: expected a list of names, got {value!r}")
    try:
        config = from_dict(AlbertConfig, table["model"], "config.model")
        heads, labels, classes = (tuple(names[key]) for key in defaults)
        model = Albert(config, heads, labels, classes, stored.get("multi_label") is True)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), param_shapes(model))
    params = jax.tree.map(np.asarray, checkpoint.restore_params(checkpoints, target, step))
    return Source("run", Weights(model, params), tokenizer_files.read(folder, vocab))


def _from_hub(source: str, vocab: str | Path, allow_pickle: bool) -> Source:
    if not HUB_ID.fullmatch(source):
        raise InputError(f"{source}: no such file or folder")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(f"{source}: no such folder; to fetch it from the hub, pip install huggingface_hub")
    from albert_jax.exchange.hub import fetch

    name, _, revision = source.partition("@")
    folder, commit = fetch(name, revision, HUB_FILES + (("pytorch_model.bin",) if allow_pickle else ()))
    loaded = _from_folder(folder, vocab, allow_pickle)
    loaded.weights.notes.append(f"revision {commit}; '{name}@{commit}' always means this one")
    return loaded


def _with_missing_heads(weights: Weights) -> Weights:
    """Add the missing pretraining heads, initialized with key 0."""
    model = weights.model
    missing = [head for head in PRETRAINING if head not in model.heads]
    if not missing:
        return weights
    heads = (*PRETRAINING, *(head for head in model.heads if head not in PRETRAINING))
    full_model = model.clone(heads=heads)
    fresh = jax.jit(lambda: init_params(full_model, jax.random.key(0)))()
    params = weights.params | {head: jax.tree.map(np.asarray, fresh[head]) for head in missing}
    notes = [*weights.notes, f"{', '.join(missing)}: initialized with random numbers, because of --init-missing"]
    return replace(weights, model=full_model, params=params, notes=notes)


def check_vocabulary(field: str, source: Source, tokenizer: Tokenizer) -> None:
    """Check that a source has the pieces of `tokenizer`; warn if it normalizes text differently.

    Raises:
      InputError: a piece differs; the message begins with `field`.
    """
    if source.tokenizer is None:
        return
    sizes = source.tokenizer.vocab_size, tokenizer.vocab_size
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{field}: its vocabulary has {sizes[0]} pieces, the data's {sizes[1]}; use its vocabulary (--data.vocab)"
        )
    source_pieces, data_pieces = (t.pieces(range(t.vocab_size)) for t in (source.tokenizer, tokenizer))
    for number, (source_piece, data_piece) in enumerate(zip(source_pieces, data_pieces, strict=True)):
        if source_piece != data_piece:
            raise InputError(
                f"{field}: piece {number} is {source_piece!r} in its vocabulary, but {data_piece!r} in the data's; "
                "use its vocabulary (--data.vocab)"
            )
    for name in TEXT_OPTIONS:
        source_value, data_value = getattr(source.tokenizer, name), getattr(tokenizer, name)
        if source_value != data_value:
            log.warning("%s: %s is %s in its tokenizer, but %s in the data's", field, name, source_value, data_value)
