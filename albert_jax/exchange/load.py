"""Any ALBERT in, any ALBERT out: `load` for notebooks, `convert` for the command line, and what every job starts from."""

import dataclasses
import importlib.metadata
import importlib.util
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from albert_jax.config import InputError, check_writable, from_dict, read_json, require, to_dict
from albert_jax.data import tokenizer_json
from albert_jax.data.tokenizer import VOCABULARY, Tokenizer
from albert_jax.exchange import archives as files
from albert_jax.exchange import huggingface, tf1
from albert_jax.exchange.reshare import CHANGES, reshare
from albert_jax.exchange.weights import Mapped, Weights
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import PRETRAINING, Albert, init_params, num_params, param_shapes
from albert_jax.training.run_folder import write_json

log = logging.getLogger(__name__)

FORMATS = ("huggingface", "albert_jax")
"""What `convert` writes."""
HUB_FILES = ("*.json", "model*.safetensors", "spiece.model")
FREE = (
    "dtype",
    "remat",
    "scan_unroll",
    "attention_implementation",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout_prob",
)
"""Fields of `AlbertConfig` that `load` may change: how the network is run and trained, and the activation, which configs get wrong."""
RUN_PARTS = ("best", "checkpoints")
"""The folders of a run that hold parameters, in the order in which they are taken; each can also be named itself."""
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w./-]+)?")


@dataclass
class Source:
    """A model from anywhere."""

    origin: str
    """What it was read from: huggingface, tf1 or run."""
    weights: Weights
    tokenizer: Tokenizer | None


def load(
    source: str | Path,
    *,
    vocab: str | Path = "",
    init_missing: bool = False,
    allow_pickle: bool = False,
    **changes: Any,
) -> tuple[Albert, dict[str, Any], Tokenizer]:
    """`model, params, tokenizer` of any ALBERT; then `model.apply({"params": params}, **tokenizer("Hello, world!"))`.

    Args:
      source: a Hugging Face folder, a hub id such as `albert/albert-base-v2` (`...@revision` pins it; needs the extra
        `hub`), the folder, tar or prefix of one of Google's checkpoints, or a run folder of ours.
      vocab: the SentencePiece model, where the source has none.
      init_missing: start pretraining heads that the source lacks from random numbers; else the model is without them.
      allow_pickle: read `pytorch_model.bin` where there is nothing else; torch reads it, and only tensors.
      changes: fields of `AlbertConfig` that leave the network as it is (`FREE`), such as dtype="bfloat16".

    Returns:
      The model (its `config`, `heads` and `labels` say what it is), parameters on the default device, the tokenizer.

    Raises:
      InputError: the source cannot be read, or has no vocabulary.
    """
    for name in changes:
        require(name in FREE, f"{name} cannot be changed as a model is loaded; {', '.join(FREE)} can")
    found = read(source, vocab=vocab, init_missing=init_missing, allow_pickle=allow_pickle)
    for note in found.weights.notes:
        log.warning("%s: %s", source, note)
    if found.tokenizer is None:
        raise InputError(f"{source}: no {VOCABULARY} in it; give vocab='PATH' (ALBERT's is a SentencePiece model)")
    model = found.weights.model
    changed = Albert(dataclasses.replace(model.config, **changes), model.heads, model.labels)
    return changed, jax.device_put(found.weights.params), found.tokenizer


def read(
    source: str | Path, *, vocab: str | Path = "", init_missing: bool = False, allow_pickle: bool = False
) -> Source:
    """`load` with parameters in host memory, and how they were come by; a source without vocabulary is no error here."""
    try:
        path = Path(source).expanduser()
        exists = path.exists() or tf1.is_checkpoint(path)
    except (OSError, RuntimeError):  # a name that no file can have, or no user
        raise InputError(f"{str(source)[:80]}: no such file or folder") from None
    if not exists:
        found = _from_hub(str(source), vocab, allow_pickle)
    elif path.is_file() and path.suffix in (".tar", ".gz", ".tgz"):
        with tempfile.TemporaryDirectory() as folder:
            files.unpack(path, Path(folder))
            try:
                found = _from_folder(Path(folder), vocab, allow_pickle)
            except InputError as error:  # the folder is gone before anybody reads of it
                raise InputError(str(error).replace(folder, str(path))) from None
    elif path.is_dir():
        found = _from_folder(path, vocab, allow_pickle)
    else:
        prefix = path.with_suffix("") if path.suffix == ".index" else path
        require(tf1.is_checkpoint(prefix), f"{path}: name the folder that it is in, or a checkpoint without .index")
        found = _from_tf1(prefix, vocab)
    if found.tokenizer is not None:
        pieces, rows = found.tokenizer.vocab_size, found.weights.model.config.vocab_size
        require(pieces == rows, f"{source}: tokenizer has {pieces} pieces, vocab_size is {rows}")
    return dataclasses.replace(found, weights=_complete(found.weights)) if init_missing else found


def _from_folder(folder: Path, vocab: str | Path, allow_pickle: bool) -> Source:
    config, above = folder / "config.json", folder.parent / "config.json"
    if config.is_file() and "job" in (stored := read_json(config)):
        return _from_run(folder, stored, vocab, RUN_PARTS)
    if folder.name in RUN_PARTS and not config.is_file() and above.is_file() and "job" in (stored := read_json(above)):
        return _from_run(folder.parent, stored, vocab, (folder.name,))
    if not config.is_file() and (prefix := tf1.find_prefix(folder)) is not None:
        return _from_tf1(prefix, vocab)
    require(
        config.is_file(),
        f"{folder}: neither a Hugging Face folder (config.json), nor a checkpoint of Google's (.index), nor a run",
    )
    return Source("huggingface", huggingface.read(folder, allow_pickle), tokenizer_json.read(folder, vocab))


def _from_tf1(prefix: Path, vocab: str | Path) -> Source:
    weights, vocabulary = tf1.read(prefix)
    vocabulary = Path(vocab) if vocab else vocabulary
    return Source("tf1", weights, Tokenizer(vocabulary) if vocabulary else None)


def _from_run(folder: Path, stored: dict[str, Any], vocab: str | Path, parts: Sequence[str]) -> Source:
    """The first of the `parts` that holds a checkpoint: a fine-tuned run means its best parameters."""
    from albert_jax.training import checkpoint  # Orbax takes seconds to load

    path, table = folder / "config.json", stored.get("config")
    require(isinstance(table, dict) and "model" in table, f"{path}: no table 'config.model' in it")
    assert table is not None  # for the type checker
    elsewhere = {"checkpoints": table["train"]["checkpoint_dir"]} if "checkpoint_dir" in table.get("train", {}) else {}
    folders = [elsewhere.get(name) or str(folder / name) for name in parts]
    part = next((one for one in folders if checkpoint.holds_any(one)), folders[-1])
    names = {"heads": list(PRETRAINING), "labels": []} | stored
    for key in ("heads", "labels"):
        is_list = isinstance(names[key], list) and all(isinstance(name, str) for name in names[key])
        require(is_list, f"{path}: {key}: expected a list of names, got {names[key]!r}")
    try:
        config = from_dict(AlbertConfig, table["model"], "config.model")
        model = Albert(config, tuple(names["heads"]), tuple(names["labels"]))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), param_shapes(model))
    params = jax.tree.map(np.asarray, checkpoint.restore_params(part, target))
    return Source("run", Weights(model, params), tokenizer_json.read(folder, vocab))


def _from_hub(source: str, vocab: str | Path, allow_pickle: bool) -> Source:
    require(HUB_ID.fullmatch(source) is not None, f"{source}: no such file or folder")
    installed = importlib.util.find_spec("huggingface_hub") is not None
    require(installed, f"{source}: no such folder; to fetch it from the hub, pip install huggingface_hub")
    from albert_jax.exchange.hub import fetch

    name, _, revision = source.partition("@")
    folder, commit = fetch(name, revision, HUB_FILES + (("pytorch_model.bin",) if allow_pickle else ()))
    found = _from_folder(folder, vocab, allow_pickle)
    found.weights.notes.append(f"revision {commit}; '{name}@{commit}' names it for good")
    return found


def _complete(weights: Weights) -> Weights:
    """With the pretraining heads that are missing, fresh from key 0."""
    model = weights.model
    missing = [head for head in PRETRAINING if head not in model.heads]
    if not missing:
        return weights
    whole = Albert(
        model.config, (*PRETRAINING, *(head for head in model.heads if head not in PRETRAINING)), model.labels
    )
    fresh = jax.jit(lambda: init_params(whole, jax.random.key(0)))()
    params = weights.params | {head: jax.tree.map(np.asarray, fresh[head]) for head in missing}
    notes = [*weights.notes, f"{', '.join(missing)}: started from random numbers, as asked"]
    return dataclasses.replace(weights, model=whole, params=params, notes=notes)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str = "huggingface",
    vocab: str | Path = "",
    init_missing: bool = False,
    allow_pickle: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """Writes any ALBERT as a Hugging Face folder or as a model folder of ours, and checks what was written.

    Args:
      source, vocab, init_missing, allow_pickle: as `load`.
      target: the folder to make.
      to: one of `FORMATS`.
      changes: fields of the new model, of `CHANGES` (see `convert.reshare`).

    Returns:
      The report, which also stands in the folder's `conversion.json`.  Its `parity` is the largest absolute difference of
      each output between the source and what was read back from the target: by Hugging Face's own model where torch and
      transformers are installed, else by ours.

    Raises:
      InputError: as `load`; or the target exists.
    """
    require(to in FORMATS, f"to: one of {', '.join(FORMATS)}, got {to!r}")
    path = Path(target).expanduser()
    require(not os.path.lexists(path), f"{path} exists; name another folder, or remove it first")
    check_writable(path, "target")
    for name in changes:
        require(name in CHANGES, f"{name} cannot be changed in a conversion; {', '.join(CHANGES)} can")
    found = read(source, vocab=vocab, init_missing=init_missing, allow_pickle=allow_pickle)
    inputs = sample_inputs(found.weights.model.config)
    wanted = outputs(found.weights, inputs)
    act = found.weights.model.config.hidden_act
    weights, tokenizer, origin = reshare(found.weights, **changes), found.tokenizer, found.origin
    del found  # an unshared xxlarge takes 10 GB: one tree at a time
    if changes.get("hidden_act", act) != act:
        weights.notes.append(f"hidden_act changed to '{changes['hidden_act']}', as asked")
    need, free = 4 * num_params(weights.model), shutil.disk_usage(_existing(path)).free
    require(need < free, f"{path}: needs {need:,} bytes, {free:,} are free")
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        written, notes = _write(weights, tokenizer, partial, to)
        weights.params = {}
        report = {
            "source": str(source),
            "read as": origin,
            "target": str(path),
            "written as": to,
            "version": importlib.metadata.version("albert_jax"),
            "config": to_dict(weights.model.config),
            "heads": list(weights.model.heads),
            "parameters": num_params(weights.model),
            "read": [mapped._asdict() for mapped in weights.mapped],
            "left": weights.left,
            "written": [mapped._asdict() for mapped in written],
            "notes": [*weights.notes, *notes],
            "parity": _parity(wanted, partial, to, inputs),
        }
        write_json(partial / "conversion.json", report)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def _write(weights: Weights, tokenizer: Tokenizer | None, folder: Path, to: str) -> tuple[list[Mapped], list[str]]:
    notes = []
    if tokenizer is None:
        notes.append("the source has no vocabulary, and so has the target; --vocab names one")
    else:
        notes += tokenizer_json.write(tokenizer, weights.model.config.max_position_embeddings, folder)
    if to == "huggingface":
        written, more = huggingface.write(weights, folder)
        return written, notes + more
    from albert_jax.training import checkpoint

    model = weights.model
    table = {"job": "convert", "config": {"model": to_dict(model.config)}, "heads": model.heads, "labels": model.labels}
    write_json(folder / "config.json", table)
    saved = checkpoint.Checkpoints(folder / "checkpoints", keep=1)
    saved.save(0, {"params": jax.device_put(weights.params)}, {})
    saved.finish(0)
    saved.close()
    return [], notes


def sample_inputs(config: AlbertConfig) -> dict[str, np.ndarray]:
    """Three rows of random ids, two segments each, the second and third padded; the same every time."""
    length = min(48, config.max_position_embeddings)
    place, ends = np.arange(length)[None], np.array([[length], [length * 2 // 3], [max(2, length // 4)]])
    ids = np.random.default_rng(0).integers(min(5, config.vocab_size - 1), config.vocab_size, (3, length))
    inputs = {"input_ids": ids, "attention_mask": place < ends, "token_type_ids": (place >= ends // 2) & (place < ends)}
    if config.type_vocab_size == 1:
        inputs["token_type_ids"] = np.zeros_like(ids)
    return {name: value.astype(np.int32) for name, value in inputs.items()}


def outputs(weights: Weights, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What our model gives for `inputs`, in float32."""
    model = dataclasses.replace(weights.model, config=dataclasses.replace(weights.model.config, dtype="float32"))
    return jax.device_get(jax.jit(model.apply)({"params": weights.params}, **inputs))


def _parity(wanted: dict[str, np.ndarray], folder: Path, to: str, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    by, seen = "transformers", None
    own = "albert_jax, reading it back"
    if to == "huggingface":
        try:
            seen = huggingface.transformers_outputs(folder, inputs)
        except Exception as error:  # whatever a version of theirs stumbles over is no reason to lose the conversion
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            own += f"; transformers failed: {reason[:160]}"
    if seen is None:
        by, seen = own, outputs(read(folder).weights, inputs)
    names = [name for name in wanted if name in seen and name != "hidden_states"]
    return {"by": by} | {name: float(np.abs(wanted[name] - seen[name]).max()) for name in names}


def _existing(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())


def describe(report: dict[str, Any]) -> str:
    """The report of `convert` for people: every tensor, what was left, what to know, parity."""
    lines = []
    for way in ("read", "written"):
        rows = report[way]
        lines += [f"{way}:"] if rows else []
        names, shapes = (max((len(str(row[key])) for row in rows), default=0) for key in ("theirs", "shape"))
        lines += [f"  {row['theirs']:{names}}  {row['shape']!s:>{shapes}}  {row['ours']}" for row in rows]
    lines += [f"left: {text}" for text in report["left"]]
    lines += [f"note: {text}" for text in report["notes"]]
    lines.append(f"{report['parameters']:,} parameters, heads: {', '.join(report['heads']) or 'none'}")
    parity = dict(report["parity"])
    lines.append(f"largest absolute difference of outputs to the source's (by {parity.pop('by')}):")
    lines += [f"  {name}: {value:.1e}" for name, value in parity.items()]
    lines.append(f"{report['source']} -> {report['target']}")
    return "\n".join(lines)
