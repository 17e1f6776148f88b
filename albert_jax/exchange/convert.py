"""Convert any ALBERT to a Hugging Face folder, a StableHLO program or a model folder of albert_jax; check it by its outputs."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

import albert_jax
from albert_jax.config import InputError, check_choice, check_writable, first_line, to_dict
from albert_jax.data import tokenizer_files
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.exchange import FORMATS, huggingface, stablehlo
from albert_jax.exchange.load import Source, read
from albert_jax.exchange.reshare import MAY_CHANGE_IN_CONVERSION, reshare
from albert_jax.exchange.weights import Mapped, Weights
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import num_params
from albert_jax.training.run_folder import write_json


def convert(
    source: str | Path | Source,
    target: str | Path,
    *,
    to: str = "huggingface",
    vocab: str | Path = "",
    init_missing: bool = False,
    allow_pickle: bool = False,
    initialization: str = "average",
    **changes: Any,
) -> dict[str, Any]:
    """Write any ALBERT in one of `FORMATS`, and check what was written.

    Args:
      source, vocab, init_missing, allow_pickle: as for `load`; or a model that was read.
      target: the folder to write; it must not exist.
      to: one of `FORMATS`.
      initialization: as for `reshare`.
      changes: fields of the new model, from `reshare.MAY_CHANGE_IN_CONVERSION`.

    Returns:
      The report, which is also written to `conversion.json` in the target.  Its `parity` is the largest absolute
      difference of each output between the source and the target: computed by transformers if it and torch
      are installed, otherwise by albert_jax; for stablehlo by the program that was written.

    Raises:
      InputError: the source cannot be read, or the target exists or cannot be written.
    """
    check_choice("to", to, FORMATS)
    if to == "stablehlo":
        stablehlo.check_available()
    path = Path(target).expanduser()
    if os.path.lexists(path):
        raise InputError(f"{path} exists; name another folder, or remove it first")
    check_writable(path, "target")
    for name in changes:
        if name not in MAY_CHANGE_IN_CONVERSION:
            known = ", ".join(MAY_CHANGE_IN_CONVERSION)
            raise InputError(f"{name} cannot be changed in a conversion; only {known} can")
    original = source
    if not isinstance(original, Source):
        original = read(original, vocab=vocab, init_missing=init_missing, allow_pickle=allow_pickle)
    inputs = sample_inputs(original.weights.model.config)
    expected = outputs(original.weights, inputs)
    act = original.weights.model.config.hidden_act
    weights, tokenizer, kind = reshare(original.weights, initialization, **changes), original.tokenizer, original.kind
    name = original.name or kind
    del original  # an unshared xxlarge has 10 GB: keep only one copy in memory
    if weights.model.config.hidden_act != act:
        note = f"hidden_act changed from '{act}' to '{weights.model.config.hidden_act}'"
        weights = replace(weights, notes=[*weights.notes, note])
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    needed, free = 4 * num_params(weights.model), shutil.disk_usage(folder).free
    if needed >= free:
        raise InputError(f"{path}: needs {needed:,} bytes, {free:,} are free")
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        written, notes = _write(weights, tokenizer, partial, to)
        weights = replace(weights, params={})  # a copy, because the caller may have a `Source` with these weights
        report = {
            "source": name,
            "read as": kind,
            "target": str(path),
            "written as": to,
            "version": albert_jax.__version__,
            "config": to_dict(weights.model.config),
            "initialization": initialization,
            "heads": list(weights.model.heads),
            "parameters": num_params(weights.model),
            "read": [mapped._asdict() for mapped in weights.mapped],
            "skipped": weights.skipped,
            "written": [mapped._asdict() for mapped in written],
            "notes": [*weights.notes, *notes],
            "parity": parity(expected, partial, to, inputs),
        }
        write_json(partial / "conversion.json", report)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def report_text(report: dict[str, Any]) -> str:
    """The report of `convert` as text: every tensor, what was skipped, notes, and parity."""
    lines = []
    for direction in ("read", "written"):
        rows = report[direction]
        lines += [f"{direction}:"] if rows else []
        names, shapes = (max((len(str(row[key])) for row in rows), default=0) for key in ("tensor", "shape"))
        lines += [f"  {row['tensor']:{names}}  {row['shape']!s:>{shapes}}  {row['parameter']}" for row in rows]
    lines += [f"skipped: {text}" for text in report["skipped"]]
    lines += [f"note: {text}" for text in report["notes"]]
    lines.append(f"{report['parameters']:,} parameters, heads: {', '.join(report['heads']) or 'none'}")
    parity = dict(report["parity"])
    lines.append(f"largest absolute difference from the outputs of the source (computed by {parity.pop('by')}):")
    lines += [f"  {name}: {value:.1e}" for name, value in parity.items()]
    lines.append(f"{report['source']} -> {report['target']}")
    return "\n".join(lines)


def sample_inputs(config: AlbertConfig) -> dict[str, np.ndarray]:
    """Three rows of random ids with two segments each, the second and third padded; the same in every call."""
    length = min(48, config.max_position_embeddings)
    positions, ends = np.arange(length)[None], np.array([[length], [length * 2 // 3], [max(2, length // 4)]])
    ids = np.random.default_rng(0).integers(min(5, config.vocab_size - 1), config.vocab_size, (3, length))
    mask = positions < ends
    segments = mask & (positions >= ends // 2) & (config.type_vocab_size > 1)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    return {name: value.astype(np.int32) for name, value in inputs.items()}


def outputs(weights: Weights, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of our model for `inputs`, in float32."""
    model = weights.with_config(replace(weights.model.config, dtype="float32")).model
    return jax.device_get(jax.jit(model.apply)({"params": weights.params}, **inputs))


def _write(weights: Weights, tokenizer: Tokenizer | None, folder: Path, to: str) -> tuple[list[Mapped], list[str]]:
    """Write the model and its tokenizer; return the tensors and notes."""
    model = weights.model
    notes = []
    if tokenizer is None:
        notes.append("neither the source nor the target has a vocabulary; give one with --vocab")
    else:
        tokenizer_files.write(tokenizer, model.config.max_position_embeddings, folder)
    if to == "huggingface":
        written, more_notes = huggingface.write(weights, folder, tokenizer.special_ids if tokenizer else None)
        return written, notes + more_notes
    if to == "stablehlo":
        return stablehlo.write(weights, folder), notes
    from albert_jax.training import checkpoint  # Orbax takes seconds to import

    table = {"job": "convert", "config": {"model": to_dict(model.config)}}
    table |= {name: getattr(model, name) for name in ("heads", "labels", "sentence_classes", "multi_label")}
    write_json(folder / "config.json", table)
    saved = checkpoint.Checkpoints(folder / "checkpoints", keep=1)
    saved.save(0, {"params": jax.device_put(weights.params)}, {})
    saved.finish(0)
    saved.close()
    return [], notes


def parity(expected: dict[str, np.ndarray], folder: Path, to: str, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """The largest difference between `expected` and the outputs of the model in `folder`, and the software that ran it."""
    by, actual = "transformers", None
    fallback = "albert_jax, which read the target"
    if to == "huggingface":
        try:
            actual = huggingface.transformers_outputs(folder, inputs)
        except Exception as error:  # A failure of transformers must not lose the conversion.
            fallback += f"; transformers failed: {first_line(error)[:160]}"
    if to == "stablehlo":
        by, actual = "jax.export, which read the target", stablehlo.outputs(folder, inputs)
    if actual is None:
        by, actual = fallback, outputs(read(folder).weights, inputs)
    names = [name for name in expected if name in actual and name != "hidden_states"]
    return {"by": by} | {name: float(np.abs(expected[name] - actual[name]).max()) for name in names}
