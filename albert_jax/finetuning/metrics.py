"""Metrics as the official scripts report them: fractions for classes, correlations and entities, percentages for answers.

F1, Matthews and correlations are scikit-learn's and scipy's.  Answers and entities are scored here, because SQuAD's
evaluate-v2.0.py is a script and seqeval is unmaintained; tests compare the scores with theirs.
"""

import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Numbers = np.ndarray


def accuracy(predicted: Numbers, gold: Numbers) -> float:
    """The fraction of correct predictions."""
    return float(np.mean(predicted == gold))


def f1(predicted: Numbers, gold: Numbers) -> float:
    """F1 of class 1, for tasks with two classes (MRPC, QQP)."""
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, zero_division=0))


def macro_f1(predicted: Numbers, gold: Numbers) -> float:
    """The mean of the classes' F1."""
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, average="macro", zero_division=0))


def micro_f1(predicted: Numbers, gold: Numbers) -> float:
    """F1 of all decisions together, of indicators [examples, labels]."""
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, average="micro", zero_division=0))


def matthews(predicted: Numbers, gold: Numbers) -> float:
    """Matthews correlation (CoLA); 0 if all predictions are equal."""
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings(action="ignore"):  # a single class: scikit-learn warns and returns 0
        return float(matthews_corrcoef(gold, predicted))


def pearson(predicted: Numbers, gold: Numbers) -> float:
    """Pearson correlation (STS-B); 0 if either is constant."""
    return _correlation("pearsonr", predicted, gold)


def spearman(predicted: Numbers, gold: Numbers) -> float:
    """Spearman correlation; 0 if either is constant."""
    return _correlation("spearmanr", predicted, gold)


def _correlation(name: str, predicted: Numbers, gold: Numbers) -> float:
    from scipy import stats

    if len(gold) < 2 or np.ptp(predicted) == 0 or np.ptp(gold) == 0:
        return 0.0
    with warnings.catch_warnings(action="ignore"):  # nearly constant input
        return float(getattr(stats, name)(np.asarray(predicted, np.float64), np.asarray(gold, np.float64))[0])


METRICS: dict[str, Callable[[Numbers, Numbers], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "micro_f1": micro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
"""Name -> metric of predictions and labels: class numbers, or real numbers."""


class Span(NamedTuple):
    """An entity: its words [start, end) and its type."""

    start: int
    end: int
    type: str


PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "M": "I", "W": "S"}
"""Prefix of a tag -> that of IOBES with the same meaning.  L and U are those of BILOU, M and W those of BMEWO."""


SUFFIXED = re.compile(rf"(.+)[-_]([{''.join(PREFIXES)}])")
"""A tag such as PER-B."""
LOWER_CASE = re.compile(rf"o|[{''.join(PREFIXES).lower()}]([-_].+)?")
"""A tag such as b-PER, b or o."""
ENTITY = "entity"
"""The type of entities whose tags have none."""


def split_tag(tag: str) -> tuple[str, str]:
    """Prefix in IOBES and type of a tag such as B-PER or U_PER; "O" has no type, and a tag without prefix has no prefix."""
    if tag == "O":
        return "O", ""
    if len(tag) > 2 and tag[0] in PREFIXES and tag[1] in "-_":
        return PREFIXES[tag[0]], tag[2:]
    return "", tag


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities of a sentence's tags by conlleval's rules, for IO, IOB1, IOB2, IOBES, BILOU and BMEWO.

    An entity begins at B or S, and at I or E if the type changes or the previous entity has ended.  It ends before O, B, S or a
    different type, and after E or S.  A word whose tag has no prefix is one entity.
    """
    entities: list[Span] = []
    start, before = 0, "O"
    kind: str | None = None
    for at, tag in enumerate([*tags, "O"]):
        prefix, name = split_tag(tag)
        prefix = prefix or "S"
        if kind is not None and (prefix in ("O", "B", "S") or name != kind or before in ("E", "S")):
            entities.append(Span(start, at, kind))
            kind = None
        if prefix != "O" and kind is None:
            start, kind = at, name
        before = prefix
    return entities


def have_prefixes(tags: Iterable[str]) -> bool:
    """Whether tags mark entities of several words: all but O begin with a prefix such as B-."""
    return all(split_tag(tag)[0] for tag in tags)


def need_prefixes(tags: Iterable[str]) -> bool:
    """Whether tags mark entities in a form that `with_prefix` rewrites: all but O are a prefix alone (B), or end with one (PER-B)."""
    rest = set(tags) - {"O"}
    return not have_prefixes(rest) and (rest <= PREFIXES.keys() or all(map(SUFFIXED.fullmatch, rest)))


def with_prefix(tag: str) -> str:
    """B as B-entity, and PER-B as B-PER; any other tag as it is."""
    if tag in PREFIXES:
        return f"{tag}-{ENTITY}"
    match = SUFFIXED.fullmatch(tag)
    return f"{match[2]}-{match[1]}" if match else tag


def to_iob2(tags: Sequence[str]) -> list[str]:
    """The same entities in IOB2: B- at the first word of each, I- at the others.  Tags without prefixes stay as they are."""
    if not have_prefixes(tags):
        return list(tags)
    iob2 = ["O"] * len(tags)
    for start, end, kind in spans(tags):
        iob2[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return iob2


def span_f1(predicted: Iterable[Sequence[str]], gold: Iterable[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of entities over all sentences, and F1 of each type, as conlleval computes them.

    Of tags without prefixes, they are those of words whose tag is not O.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("correct", "predicted", "gold")}
    for predicted_tags, gold_tags in zip(predicted, gold, strict=True):
        a, b = set(spans(predicted_tags)), set(spans(gold_tags))
        for name, entities in (("correct", a & b), ("predicted", a), ("gold", b)):
            counts[name].update(span.type for span in entities)
    precision, recall, f1_score = _f1(*(counter.total() for counter in counts.values()))
    by_type = {f"f1_{kind}": _f1(*(counter[kind] for counter in counts.values()))[2] for kind in sorted(counts["gold"])}
    return {"f1": f1_score, "precision": precision, "recall": recall} | by_type


def _f1(correct: int, predicted: int, gold: int) -> tuple[float, float, float]:
    precision, recall = correct / max(predicted, 1), correct / max(gold, 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-300)


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """An answer without case, punctuation, articles and extra spaces (evaluate-v2.0.py)."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_and_f1(predicted: str, gold: Sequence[str]) -> tuple[float, float]:
    """Exact match and word F1 of one answer, each the maximum over the gold answers; without gold answers, '' is correct."""
    answers = [words for answer in gold if (words := normalized(answer).split())] or [[]]
    words = normalized(predicted).split()
    return float(words in answers), max(_words_f1(words, answer) for answer in answers)


def _words_f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    common = (Counter(predicted) & Counter(gold)).total()
    return 2 * common / (len(predicted) + len(gold))


def squad(predicted: Mapping[str, str], gold: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """`exact` and `f1` in percent, over all questions, and over those with and without an answer if there are both.

    Args:
      predicted: question -> answer, "" for none.
      gold: question -> gold answers, empty if it has no answer.
    """
    scores = {name: exact_and_f1(predicted[name], answers) for name, answers in gold.items()}
    groups = {"": list(gold)}
    if unanswerable := [name for name in gold if not gold[name]]:
        groups |= {"HasAns_": [name for name in gold if gold[name]], "NoAns_": unanswerable}
    metrics = {}
    for prefix, names in groups.items():
        for number, metric in enumerate(("exact", "f1")):
            values = [scores[name][number] for name in names]
            metrics[prefix + metric] = 100 * sum(values) / max(len(values), 1)
    return metrics


def best_threshold(
    predicted: Mapping[str, str], odds: Mapping[str, float], gold: Mapping[str, Sequence[str]], metric: str = "f1"
) -> tuple[float, float]:
    """The best score, in percent, of any threshold on the odds of no answer, and that threshold.

    A question counts as unanswerable if its odds are above the threshold (evaluate-v2.0.py, find_best_thresh).

    Args:
      predicted: question -> the best answer, whatever its odds; "" only if there is none.
    """
    names = sorted(gold, key=lambda name: odds[name])
    column = ("exact", "f1").index(metric)
    gains = [
        exact_and_f1(predicted[name], gold[name])[column] if gold[name] else -float(predicted[name] != "")
        for name in names
    ]
    total = sum(not gold[name] for name in names) + np.cumsum([0.0, *gains])
    best = int(np.argmax(total))
    threshold = odds[names[best - 1]] if best else odds[names[0]] - 1
    return 100 * float(total[best]) / len(names), float(threshold)
