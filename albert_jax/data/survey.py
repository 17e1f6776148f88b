"""Counts of a source's documents, taken before anything is written, and the checks that it can be trained on."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable

from albert_jax.config import InputError
from albert_jax.data.sources import DataConfig, sentences
from albert_jax.data.tokenizer import letters_and_marks

SPLITS = ("train", "heldout")

SAMPLED_CHARACTERS = 1000
"""Characters of each document that are searched for accents."""


def split_of(text: str, config: DataConfig) -> str:
    """The split of a document.  It depends on the document's content only."""
    fraction = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return "heldout" if fraction < config.eval_fraction else "train"


def count_documents(texts: Iterable[str], config: DataConfig) -> Counter[str]:
    """Number of non-blank documents of each split, number of `characters`, and whether any makes a pair (`pairs`: 0 or 1).

    Also `letters` and `marks` of the beginnings of the documents (see `letters_and_marks`).
    """
    counts: Counter[str] = Counter()
    for text in texts:
        if text.strip():
            counts[split_of(text, config)] += 1
            counts["characters"] += len(text)
            letters, marks = letters_and_marks(text[:SAMPLED_CHARACTERS])
            counts.update({"letters": letters, "marks": marks})
            if not counts["pairs"]:
                counts["pairs"] = sum(1 for _ in itertools.islice(sentences(text, config.language), 2)) == 2
    return counts


def check_counts(counts: Counter[str], config: DataConfig, needs_pairs: bool) -> None:
    """Raise `InputError` if a source has no documents, no pairs of sentences, or no documents in one split."""
    source, total = f"data.source '{config.source}'", counts["train"] + counts["heldout"]
    if not total:
        raise InputError(f"{source} has 0 usable documents; check that its files hold text")
    if needs_pairs and not counts["pairs"]:
        raise InputError(
            f"{source}: 0 of {total} documents have two sentences, so no pair can be made; check the documents "
            "(--data.txt-documents) and the language (--data.language), or train with --objective.sentence-objective none"
        )
    for split in SPLITS:
        if not counts[split]:
            raise InputError(
                f"data.eval_fraction {config.eval_fraction} leaves 0 of {total} documents for '{split}'; "
                "change it, or end documents with blank lines (--data.txt-documents blank-line)"
            )
