"""The questions that `albert-jax predict` asks of a model: which texts, and how the answers are written.

What is asked, `predict.py` computes.
"""

import codecs
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from albert_jax.config import InputError, check_writable, require
from albert_jax.data.tokenizer import SPACE, Tokenizer
from albert_jax.inference import tasks as predict_task
from albert_jax.inference import text as predict
from albert_jax.model.heads import Albert


@dataclass(frozen=True)
class Options:
    """What the command line says beside texts; each task reads its own."""

    top_k: int = 5
    pair: bool = False
    null_threshold: float | None = None
    pooling: Literal["mean", "pooler"] = "mean"
    output: Path | None = None
    length: int = 0
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.output is not None:
            require(self.output.suffix == ".npy", f"--output {self.output}: its name must end in .npy")
            require(not self.output.is_dir(), f"--output {self.output} is a folder; name a file in it")
            folder = self.output.absolute().parent
            require(folder.is_dir(), f"--output {self.output}: no folder {folder}; make it first")
            check_writable(self.output, "--output")


Answers = Iterator[tuple[dict[str, Any], str]]
"""For each text, the same answer as a record for machines and as lines for people."""


def _answer_fill_mask(model: Albert, params: Any, tokenizer: Tokenizer, texts: list[str], options: Options) -> Answers:
    for text, masks in zip(texts, predict.fill_mask(model, params, tokenizer, texts, options.top_k), strict=True):
        lines = [text]
        for number, mask in enumerate(masks, 1):
            lines += [f"  [MASK] {number}"] if len(masks) > 1 else []
            lines += [f"  {found['probability']:.4f}  {found['token'].lstrip(SPACE) or SPACE}" for found in mask]
        yield {"text": text, "masks": masks}, "\n".join(lines)


def _answer_sentence_order(
    model: Albert, params: Any, tokenizer: Tokenizer, texts: list[str], options: Options
) -> Answers:
    pairs = _pairs("sentence-order", texts)
    for pair, found in zip(pairs, predict.sentence_order(model, params, tokenizer, pairs), strict=True):
        lines = f"in order {found['in_order']:.4f}, swapped {found['swapped']:.4f}: {pair[0]} | {pair[1]}"
        yield {"text": pair[0], "text_pair": pair[1]} | found, lines


def _answer_embed(model: Albert, params: Any, tokenizer: Tokenizer, texts: list[str], options: Options) -> Answers:
    vectors = predict.embed(model, params, tokenizer, texts, options.pooling)
    if options.output is not None:
        partial = options.output.with_name(f"{options.output.stem}.{os.getpid()}.npy")
        np.save(partial, vectors)
        partial.replace(options.output)
        yield {"output": str(options.output), "shape": vectors.shape}, f"{options.output}: float32 {vectors.shape}"
        return
    for text, vector in zip(texts, vectors, strict=True):
        yield {"text": text, "embedding": vector.tolist()}, " ".join(f"{x:.6g}" for x in vector)


def _answer_generate(model: Albert, params: Any, tokenizer: Tokenizer, texts: list[str], options: Options) -> Answers:
    for text in texts:
        found = predict.generate(
            model,
            params,
            tokenizer,
            text,
            length=options.length,
            temperature=options.temperature,
            seed=options.seed,
        )
        yield found, found["text"]


def _answer_classify(model: Albert, params: Any, tokenizer: Tokenizer, texts: list[str], options: Options) -> Answers:
    pairs = _pairs("--pair", texts) if options.pair or any("\t" in text for text in texts) else None
    first = texts if pairs is None else [one for one, _ in pairs]
    second = None if pairs is None else [two for _, two in pairs]
    for number, found in enumerate(predict_task.classify(model, params, tokenizer, first, second)):
        record: dict[str, Any] = {"text": first[number]} | ({"text_pair": second[number]} if second else {})
        told = " | ".join(record.values())
        if "score" in found:
            yield record | found, f"{found['score']:.4f}: {told}"
        else:
            ranked = sorted(found["probabilities"].items(), key=lambda item: -item[1])
            yield record | found, f"{', '.join(f'{name} {p:.4f}' for name, p in ranked)}: {told}"


def _answer_entities(model: Albert, params: Any, tokenizer: Tokenizer, texts: list[str], options: Options) -> Answers:
    for text, found in zip(texts, predict_task.entities(model, params, tokenizer, texts), strict=True):
        lines = [f"  {e['probability']:.4f}  {e['start']}-{e['end']}  {e['type']}  {e['text']}" for e in found]
        yield {"text": text, "entities": found}, "\n".join([text, *(lines or ["  no entity"])])


def _answer_answer(model: Albert, params: Any, tokenizer: Tokenizer, texts: list[str], options: Options) -> Answers:
    pairs = _pairs("answer", texts)
    questions, contexts = [question for question, _ in pairs], [context for _, context in pairs]
    found = predict_task.answer(model, params, tokenizer, questions, contexts, n_best=options.top_k)
    for question, one in zip(questions, found, strict=True):
        none = options.null_threshold is not None and one["null_odds"] > options.null_threshold
        best = [
            f"  {a['probability']:.4f}  {a['start']}-{a['end']}  {' '.join(a['text'].split())}" for a in one["answers"]
        ]
        lines = [
            question,
            *(["  no answer"] if none or not best else best),
            *([f"  odds of no answer: {one['null_odds']:.2f}"] if best else []),
        ]
        yield {"question": question} | one | {"no_answer": none or not best}, "\n".join(lines)


def _answer_choose(model: Albert, params: Any, tokenizer: Tokenizer, texts: list[str], options: Options) -> Answers:
    rows = [text.split("\t") for text in texts] if any("\t" in text for text in texts) else [texts]
    for number, row in enumerate(rows, 1):
        told = f"choose takes a passage, a question and two options or more, or lines of them with tabs; {number} has"
        require(len(row) >= 4, f"{told} {len(row)} texts")
    questions = [(passage, question, choices) for passage, question, *choices in rows]
    for (_, question, choices), found in zip(
        questions, predict_task.choose(model, params, tokenizer, questions), strict=True
    ):
        lines = [f"  {p:.4f}  {choice}" for choice, p in zip(choices, found, strict=True)]
        record = {"question": question, "options": choices, "probabilities": found}
        yield record, "\n".join([question, *lines])


def _pairs(task: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    """Texts two by two, or lines of two with a tab between."""
    if any("\t" in text for text in texts):
        for number, text in enumerate(texts, 1):
            tabs = text.count("\t")
            require(tabs == 1, f"text {number} has {tabs} tabs, where one parts the two texts of a pair: {text[:60]!r}")
        return [(first, second) for first, _, second in (text.partition("\t") for text in texts)]
    require(len(texts) % 2 == 0, f"{task} takes two texts, or lines of two with a tab between; got {len(texts)}")
    return list(zip(texts[::2], texts[1::2], strict=True))


def task_of(model: Albert) -> str:
    """The question that a model is asked if the command line names none: what it was fine-tuned for."""
    return next((task for head, task in OF_HEAD.items() if head in model.heads), "fill-mask")


OF_HEAD = {
    "classifier": "classify",
    "token_classifier": "entities",
    "qa_outputs": "answer",
    "answer_class": "answer",
    "choice_classifier": "choose",
}
"""Head -> the question that it answers."""

ANSWERS: dict[str, Callable[..., Answers]] = {
    "fill-mask": _answer_fill_mask,
    "sentence-order": _answer_sentence_order,
    "embed": _answer_embed,
    "generate": _answer_generate,
    "classify": _answer_classify,
    "entities": _answer_entities,
    "answer": _answer_answer,
    "choose": _answer_choose,
}
"""The tasks of the command line."""


def read_texts(texts: Sequence[str], file: Path | None) -> list[str]:
    """The texts themselves, or the lines of a file, or those of standard input where there is neither.

    Raises:
      InputError: both, no text at all, or a file that cannot be read as UTF-8.
    """
    require(not (texts and file), "texts and --file: give one of them")
    if texts:
        return list(texts)
    if file is None and sys.stdin.isatty():
        print("reading lines of standard input; end with Ctrl-D", file=sys.stderr)
    name = str(file) if file else "standard input"
    try:
        raw = file.read_bytes() if file else sys.stdin.buffer.read()
        text = raw.removeprefix(codecs.BOM_UTF8)
        # Not splitlines, which cuts at form feeds and U+2028 too: answers keep step with the lines of the file.
        found = [line.removesuffix("\r") for line in text.decode().removesuffix("\n").split("\n")]
    except UnicodeDecodeError as error:
        line, at = text.count(b"\n", 0, error.start) + 1, error.start + len(raw) - len(text)
        raise InputError(f"{name}:{line}: not UTF-8 at byte {at}; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from None
    require(bool(text.strip()), f"{name}: no text in it")
    return found
