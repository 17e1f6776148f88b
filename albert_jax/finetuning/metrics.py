"""Metrics as the official scripts give them: fractions of 1 for classes, correlations and entities, percent for answers.

F1, Matthews and correlations are scikit-learn's and scipy's; answers and entities are counted here, as
SQuAD's evaluate-v2.0.py and CoNLL's conlleval count them.
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
    """Share of the predictions that are right."""
    return float(np.mean(predicted == gold))


def f1(predicted: Numbers, gold: Numbers) -> float:
    """F1 of class 1, for tasks of two classes (MRPC, QQP)."""
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, zero_division=0))


def macro_f1(predicted: Numbers, gold: Numbers) -> float:
    """The mean of the classes' F1, over the classes that are there."""
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, average="macro", zero_division=0))


def matthews(predicted: Numbers, gold: Numbers) -> float:
    """Matthews correlation (CoLA); 0 where one class is all that is predicted."""
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings(action="ignore"):  # a single label in both: it says so, and gives 0
        return float(matthews_corrcoef(gold, predicted))


def pearson(predicted: Numbers, gold: Numbers) -> float:
    """Pearson correlation (STS-B); 0 where either is constant, which has none."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predicted, gold)


def spearman(predicted: Numbers, gold: Numbers) -> float:
    """Spearman correlation; 0 as `pearson`."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predicted, gold)


def _correlation(of: Callable[..., tuple[float, float]], predicted: Numbers, gold: Numbers) -> float:
    if len(gold) < 2 or np.ptp(predicted) == 0 or np.ptp(gold) == 0:
        return 0.0
    with warnings.catch_warnings(action="ignore"):  # nearly constant input
        return float(of(np.asarray(predicted, np.float64), np.asarray(gold, np.float64))[0])


METRICS: dict[str, Callable[[Numbers, Numbers], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
"""Of a list of predictions and one of labels: class numbers, or real numbers."""


class Span(NamedTuple):
    """An entity: words [start, end) and its type."""

    start: int
    end: int
    type: str


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities of a sentence's tags, by conlleval's rules, which read IOB1, IOB2 and IOBES alike.

    An entity begins at B, S, a change of type, or at I or E after what ended one; it ends before O, B, S or another type.
    """
    found: list[Span] = []
    start, before = 0, "O"
    kind: str | None = None
    for at, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind is not None and (prefix in ("O", "B", "S") or name != kind or before in ("E", "S")):
            found.append(Span(start, at, kind))
            kind = None
        if prefix != "O" and kind is None:
            start, kind = at, name
        before = prefix
    return found


def to_iob2(tags: Sequence[str]) -> list[str]:
    """The same entities, with B- at the first word of each and I- at its others."""
    made = ["O"] * len(tags)
    for start, end, kind in spans(tags):
        made[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return made


def span_f1(predicted: Iterable[Sequence[str]], gold: Iterable[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities over all sentences, and F1 of each type, as conlleval counts them."""
    right: Counter[str] = Counter()
    guessed: Counter[str] = Counter()
    there: Counter[str] = Counter()
    for mine, theirs in zip(predicted, gold, strict=True):
        a, b = set(spans(mine)), set(spans(theirs))
        right.update(span.type for span in a & b)
        guessed.update(span.type for span in a)
        there.update(span.type for span in b)
    precision, recall, whole = _f1(right.total(), guessed.total(), there.total())
    found = {"f1": whole, "precision": precision, "recall": recall}
    return found | {f"f1_{kind}": _f1(right[kind], guessed[kind], there[kind])[2] for kind in sorted(there)}


def _f1(right: int, guessed: int, there: int) -> tuple[float, float, float]:
    precision, recall = right / max(guessed, 1), right / max(there, 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-300)


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """An answer without case, punctuation, articles and extra spaces (SQuAD, evaluate-v2.0.py)."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_and_f1(predicted: str, gold: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 over words of one answer, each the best over the gold answers; none of these is the answer ''."""
    answers = [answer for answer in gold if normalized(answer)] or [""]
    mine = normalized(predicted)
    best = [
        (float(mine == normalized(answer)), _words_f1(mine.split(), normalized(answer).split())) for answer in answers
    ]
    return max(exact for exact, _ in best), max(shared for _, shared in best)


def _words_f1(mine: list[str], theirs: list[str]) -> float:
    if not mine or not theirs:
        return float(mine == theirs)
    same = (Counter(mine) & Counter(theirs)).total()
    return 2 * same / (len(mine) + len(theirs))


def squad(predicted: Mapping[str, str], gold: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """`exact` and `f1` in percent, over all questions, and over those with and without an answer where there are both.

    Args:
      predicted: question -> answer, "" for none.
      gold: question -> answers, none where it has no answer.
    """
    scores = {name: exact_and_f1(predicted[name], answers) for name, answers in gold.items()}
    groups = {"": list(gold), "HasAns_": [q for q in gold if gold[q]], "NoAns_": [q for q in gold if not gold[q]]}
    if not groups["NoAns_"]:
        groups = {"": groups[""]}
    found = {}
    for prefix, names in groups.items():
        for number, metric in enumerate(("exact", "f1")):
            values = [scores[name][number] for name in names]
            found[prefix + metric] = 100 * sum(values) / max(len(values), 1)
    return found


def best_threshold(
    predicted: Mapping[str, str], odds: Mapping[str, float], gold: Mapping[str, Sequence[str]], metric: str = "f1"
) -> tuple[float, float]:
    """The best score, in percent, that any threshold on the odds of no answer gives, and that threshold.

    A question counts as unanswerable where its odds are above the threshold (SQuAD, evaluate-v2.0.py, find_best_thresh).

    Args:
      predicted: question -> the answer if it has one; never "" unless there is none to give.
    """
    names = sorted(gold, key=lambda name: odds[name])
    which = ("exact", "f1").index(metric)
    gains = [
        exact_and_f1(predicted[name], gold[name])[which] if gold[name] else -float(predicted[name] != "")
        for name in names
    ]
    total = sum(not gold[name] for name in names) + np.cumsum([0.0, *gains])
    best = int(np.argmax(total))
    threshold = odds[names[best - 1]] if best else odds[names[0]] - 1
    return 100 * float(total[best]) / len(names), float(threshold)
