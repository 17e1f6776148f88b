"""Show explanations: colored words on a terminal, as HTML, and as a figure.  Blue words support the prediction, orange words oppose it."""

import html
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from albert_jax.inference.explanation import Explanation, Part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOR, AGAINST = "#2563eb", "#ea580c"
"""Blue and orange, which also people who confuse red and green tell apart."""
TERMINAL_COLORS = {True: (153, 111, 69), False: (223, 216, 208)}
"""Background colors of words for and against the prediction, of 256, from weak to strong."""
WEAK = 0.05
"""Words with a smaller part of the largest contribution have no color."""
TOP = 8
"""Number of words that are listed."""
MAX_BARS = 40
"""Number of words in a figure."""


def use_color() -> bool:
    """Whether standard output is a terminal, and the variable NO_COLOR (no-color.org) is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def terminal_lines(explanation: Explanation, color: bool) -> list[str]:
    """What is explained, the text with colored words (if `color`), and the words with the largest contributions."""
    e = explanation
    lines = [f"  {_title(e)}"]
    if color:
        for runs in _runs(e):
            shown = "".join(text if value is None else _colored(text, value / _largest(e)) for text, value in runs)
            lines.append(f"  {' '.join(shown.split())}")
    words = strongest(e.words, len(e.words))
    lines += [f"  {word.contribution:+9.3f}  {word.text}" for word in words[:TOP]]
    if others := words[TOP:]:
        value = sum(word.contribution for word in others)
        lines.append(f"  {value:+9.3f}  {len(others)} other word{'s' * (len(others) > 1)}")
    return lines


def strongest(words: Sequence[Part], count: int) -> list[Part]:
    """The words with the largest contributions, for or against; [MASK] contributes nothing."""
    return sorted((word for word in words if word.contribution), key=lambda word: -abs(word.contribution))[:count]


def _title(e: Explanation) -> str:
    steps = f", {e.steps} steps" if e.steps > 1 else ""
    return f"{e.target}: logit {e.logit:.3f}, with all pieces masked {e.baseline_logit:.3f} ({e.method}{steps})"


def _runs(e: Explanation) -> Iterator[list[tuple[str, float | None]]]:
    """Each text as runs of characters, each with the contribution of its word; None between words."""
    for segment, text in enumerate(e.texts):
        place = 0
        runs: list[tuple[str, float | None]] = []
        for word in (word for word in e.words if word.segment == segment):
            runs += [(text[place : word.start], None), (text[max(place, word.start) : word.end], word.contribution)]
            place = max(place, word.end)
        yield [run for run in [*runs, (text[place:], None)] if run[0]]


def _largest(e: Explanation) -> float:
    return max((abs(word.contribution) for word in e.words), default=0.0) or 1.0


def _colored(text: str, share: float) -> str:
    """`text` with a color on a terminal, given its part of the largest contribution."""
    if abs(share) < WEAK:
        return text
    shades = TERMINAL_COLORS[share > 0]
    shade = shades[min(int(abs(share) * len(shades)), len(shades) - 1)]
    return f"\x1b[48;5;{shade}m\x1b[38;5;16m{text}\x1b[0m"


def html_fragment(explanation: Explanation) -> str:
    """HTML without a head, for a page or a notebook.  Half-transparent colors suit light and dark backgrounds."""
    e, largest = explanation, _largest(explanation)

    def color(value: float) -> str:
        return FOR if value > 0 else AGAINST

    parts = [f"<p><b>{html.escape(e.target)}</b>{html.escape(_title(e).removeprefix(e.target))}</p>"]
    for runs in _runs(e):
        spans = [
            html.escape(text)
            if value is None
            else f'<span style="background:{color(value)}{round(160 * abs(value) / largest):02x};border-radius:3px" '
            f'title="{value:+.3f}">{html.escape(text)}</span>'
            for text, value in runs
        ]
        parts.append(f'<p style="line-height:1.8">{"".join(spans)}</p>')
    rows = [
        f'<tr><td style="text-align:right">{word.contribution:+.3f}</td>'
        f'<td style="text-align:left">{html.escape(word.text)}</td><td style="text-align:left">'
        f'<span style="display:inline-block;height:.7em;background:{color(word.contribution)};'
        f'width:{8 * abs(word.contribution) / largest:.2f}em"></span></td></tr>'
        for word in strongest(e.words, TOP)
    ]
    return f"<div>{''.join(parts)}<table>{''.join(rows)}</table></div>"


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46em; margin: 2em auto; padding: 0 1em; }}
body > div {{ border-top: 1px solid #8888; padding: .5em 0 1em; overflow-wrap: anywhere; }}
td {{ padding: 0 .6em 0 0; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>Blue words support the prediction, orange words oppose it; the stronger the color, the larger the contribution to the logit.</p>
{body}
</body>
</html>
"""


def html_page(explanations: Sequence[Explanation], title: str) -> str:
    """A page that needs no other file."""
    return PAGE.format(title=html.escape(title), body="\n".join(map(html_fragment, explanations)))


def draw_explanation(explanation: Explanation) -> "Figure":
    """Plot the contributions of the words as bars, in the order of the text; of a long text, the `MAX_BARS` largest."""
    from matplotlib.figure import Figure

    shown = set(strongest(explanation.words, MAX_BARS))
    words = [word for word in explanation.words if word in shown]
    figure = Figure(figsize=(6, 0.9 + 0.22 * len(words)), layout="constrained")
    axes = figure.subplots()
    colors = [FOR if word.contribution > 0 else AGAINST for word in words]
    axes.barh(range(len(words)), [word.contribution for word in words], color=colors)
    axes.set_yticks(range(len(words)), [word.text.replace("$", r"\$") for word in words], fontsize=9)
    axes.invert_yaxis()
    axes.axvline(0, color="gray", lw=0.8)
    axes.set_xlabel("contribution to the logit")
    axes.set_title(explanation.target.replace("$", r"\$"), fontsize=10)
    return figure
