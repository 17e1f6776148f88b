"""The tasks of `albert-jax predict`: how they read texts, and how they print what `pretrained.py` and `finetuned.py` compute."""

import codecs
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax.config import InputError, check_file
from albert_jax.data.tokenizer import SPACE
from albert_jax.inference import finetuned, pretrained
from albert_jax.inference.early_exit import read_exit
from albert_jax.inference.pretrained import Loaded
from albert_jax.model.heads import Albert

Answers = Iterator[tuple[dict[str, Any], str]]
"""For each text, the answer as a record for --json and as lines to print."""


def _fill_mask(loaded: Loaded, texts: list[str], options: Namespace) -> Answers:
    for text, masks in zip(texts, pretrained.fill_mask(*loaded, texts, options.top_k), strict=True):
        lines = [text]
        for name, pieces in zip(pretrained.mask_names(len(masks)), masks, strict=True):
            if len(masks) > 1:
                lines.append(f"  {name}")
            lines += [f"  {piece['probability']:.4f}  {piece['token'].lstrip(SPACE) or SPACE}" for piece in pieces]
        yield {"text": text, "masks": masks}, "\n".join(lines)


def _sentence_order(loaded: Loaded, texts: list[str], options: Namespace) -> Answers:
    pairs = text_pairs("sentence-order", texts)
    for (first, second), classes in zip(pairs, pretrained.sentence_order(*loaded, pairs), strict=True):
        shown = ", ".join(f"{name.replace('_', ' ')} {p:.4f}" for name, p in classes.items())
        yield {"text": first, "text_pair": second} | classes, f"{shown}: {first} | {second}"


def _embed(loaded: Loaded, texts: list[str], options: Namespace) -> Answers:
    vectors = pretrained.embed(*loaded, texts, options.pooling)
    if options.output is not None:
        partial = options.output.with_name(f"{options.output.stem}.{os.getpid()}.npy")
        np.save(partial, vectors)
        partial.replace(options.output)
        yield {"output": str(options.output), "shape": vectors.shape}, f"{options.output}: float32 {vectors.shape}"
        return
    for text, vector in zip(texts, vectors, strict=True):
        yield {"text": text, "embedding": vector.tolist()}, " ".join(f"{x:.6g}" for x in vector)


def _generate(loaded: Loaded, texts: list[str], options: Namespace) -> Answers:
    sampling: dict[str, Any] = {name: getattr(options, name) for name in ("length", "temperature", "seed")}
    for text in texts:
        generated = pretrained.generate(*loaded, text, **sampling)
        yield generated, generated["text"]


def _classify(loaded: Loaded, texts: list[str], options: Namespace) -> Answers:
    is_pairs = options.pair or any("\t" in text for text in texts)
    inputs: Sequence[tuple[str, ...]] = text_pairs("--pair", texts) if is_pairs else [(text,) for text in texts]
    first, second = [columns[0] for columns in inputs], [columns[-1] for columns in inputs] if is_pairs else None
    rule = read_exit(options.early_exit) if options.early_exit else None
    results = finetuned.classify(*loaded, first, second, rule)
    for columns, result in zip(inputs, results, strict=True):
        if "score" in result:
            shown = f"{result['score']:.4f}"
        else:
            ranked = sorted(result["probabilities"].items(), key=lambda item: -item[1])
            shown = ", ".join(f"{name} {p:.4f}" for name, p in ranked)
        if "labels" in result:
            shown = f"{', '.join(result['labels']) or 'no label'} ({shown})"
        if "layers" in result:
            shown += f" ({result['layers']} of {loaded[0].config.num_hidden_layers} layers)"
        record = dict(zip(("text", "text_pair"), columns, strict=False))
        yield record | result, f"{shown}: {' | '.join(columns)}"


def _entities(loaded: Loaded, texts: list[str], options: Namespace) -> Answers:
    for text, entities in zip(texts, finetuned.entities(*loaded, texts), strict=True):
        lines = [f"  {e['probability']:.4f}  {e['start']}-{e['end']}  {e['type']}  {e['text']}" for e in entities]
        yield {"text": text, "entities": entities}, "\n".join([text, *(lines or ["  no entity"])])


def _answer(loaded: Loaded, texts: list[str], options: Namespace) -> Answers:
    pairs = text_pairs("answer", texts)
    questions, contexts = [question for question, _ in pairs], [context for _, context in pairs]
    results = finetuned.answer(*loaded, questions, contexts, n_best=options.top_k)
    for question, result in zip(questions, results, strict=True):
        answers, odds = result["answers"], result["null_odds"]
        no_answer = not answers or (options.null_threshold is not None and odds > options.null_threshold)
        lines = [question]
        if no_answer:
            lines.append("  no answer")
        else:
            lines += [
                f"  {a['probability']:.4f}  {a['start']}-{a['end']}  {' '.join(a['text'].split())}" for a in answers
            ]
        if answers:
            lines.append(f"  odds of no answer: {odds:.2f}")
        yield {"question": question} | result | {"no_answer": no_answer}, "\n".join(lines)


def _choose(loaded: Loaded, texts: list[str], options: Namespace) -> Answers:
    rows = [text.split("\t") for text in texts] if any("\t" in text for text in texts) else [texts]
    for number, row in enumerate(rows, 1):
        if len(row) < 4:
            raise InputError(
                "choose takes a passage, a question and two or more options, or lines of them separated by tabs; "
                f"{number} has {len(row)} texts"
            )
    questions = [(passage, question, choices) for passage, question, *choices in rows]
    for (_, question, choices), probabilities in zip(questions, finetuned.choose(*loaded, questions), strict=True):
        lines = [f"  {p:.4f}  {choice}" for choice, p in zip(choices, probabilities, strict=True)]
        record = {"question": question, "options": choices, "probabilities": probabilities}
        yield record, "\n".join([question, *lines])


def text_pairs(task: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    """Read consecutive texts as pairs, or each text as a pair separated by a tab."""
    if any("\t" in text for text in texts):
        for number, text in enumerate(texts, 1):
            if (tabs := text.count("\t")) != 1:
                raise InputError(f"text {number} has {tabs} tabs; separate a pair of texts by one tab: {text[:60]!r}")
        return [(first, second) for first, _, second in (text.partition("\t") for text in texts)]
    if len(texts) % 2:
        raise InputError(f"{task} takes two texts, or lines of two texts separated by a tab; got {len(texts)}")
    return list(zip(texts[::2], texts[1::2], strict=True))


ANSWERS: dict[str, Callable[[Loaded, list[str], Namespace], Answers]] = {
    "fill-mask": _fill_mask,
    "sentence-order": _sentence_order,
    "embed": _embed,
    "generate": _generate,
    "classify": _classify,
    "entities": _entities,
    "answer": _answer,
    "choose": _choose,
}
"""Task of the command line -> function (loaded, texts, options of the command) -> answers."""

TASK_OF_HEAD = {
    "classifier": "classify",
    "token_classifier": "entities",
    "qa_outputs": "answer",
    "answer_class": "answer",
    "choice_classifier": "choose",
}


def default_task(model: Albert) -> str:
    """The task that a model was fine-tuned for; fill-mask for a pretrained model."""
    return next((task for head, task in TASK_OF_HEAD.items() if head in model.heads), "fill-mask")


def check_output(output: Path) -> None:
    """Raise InputError unless --output names an .npy file that can be written."""
    if output.suffix != ".npy":
        raise InputError(f"--output {output}: its name must end in .npy")
    check_file("--output", output)


def read_texts(texts: Sequence[str], file: Path | None) -> list[str]:
    """The texts of the command line, or the lines of a file, or the lines of standard input if neither is given.

    Raises:
      InputError: both are given, there is no text, or the file cannot be read as UTF-8.
    """
    if texts and file:
        raise InputError("texts and --file: give one of them")
    if texts:
        return list(texts)
    if file is None and sys.stdin.isatty():
        print("reading lines from standard input; end with Ctrl-D", file=sys.stderr)
    name = str(file) if file else "standard input"
    try:
        raw = file.read_bytes() if file else sys.stdin.buffer.read()
        text = raw.removeprefix(codecs.BOM_UTF8)
        # splitlines would also split at form feeds and U+2028, and answers would no longer match the lines of the file.
        lines = [line.removesuffix("\r") for line in text.decode().removesuffix("\n").split("\n")]
    except UnicodeDecodeError as error:
        line, at = text.count(b"\n", 0, error.start) + 1, error.start + len(raw) - len(text)
        raise InputError(f"{name}:{line}: not UTF-8 at byte {at}; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from None
    if not text.strip():
        raise InputError(f"{name}: it holds no text")
    return lines
