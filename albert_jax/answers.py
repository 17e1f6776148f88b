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

from albert_jax import predict
from albert_jax.config import InputError, check_writable, require
from albert_jax.data.tokenizer import SPACE, Tokenizer
from albert_jax.model.heads import Albert


@dataclass(frozen=True)
class Options:
    """What the command line says beside texts; each task reads its own."""

    top_k: int = 5
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
    if any("\t" in text for text in texts):
        for number, text in enumerate(texts, 1):
            tabs = text.count("\t")
            require(tabs == 1, f"text {number} has {tabs} tabs, where one parts the two texts of a pair: {text[:60]!r}")
        pairs = [(first, second) for first, _, second in (text.partition("\t") for text in texts)]
    else:
        require(
            len(texts) % 2 == 0, f"sentence-order takes two texts, or lines of two with a tab between; got {len(texts)}"
        )
        pairs = list(zip(texts[::2], texts[1::2], strict=True))
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


ANSWERS: dict[str, Callable[..., Answers]] = {
    "fill-mask": _answer_fill_mask,
    "sentence-order": _answer_sentence_order,
    "embed": _answer_embed,
    "generate": _answer_generate,
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
