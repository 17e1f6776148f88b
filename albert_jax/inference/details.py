"""What `albert-jax predict` prints below a prediction: its explanation, and the prediction after each pass."""

from argparse import Namespace
from collections.abc import Sequence

from albert_jax.config import InputError, check_choice, check_file
from albert_jax.inference import logit_lens
from albert_jax.inference.answers import Answers, text_pairs
from albert_jax.inference.attribution import METHODS
from albert_jax.inference.explanation import PREDICTIONS, Explanation, explain
from albert_jax.inference.highlight import html_page, terminal_lines, use_color
from albert_jax.inference.pretrained import Loaded


def check_details(options: Namespace) -> None:
    """Check the options before the model is loaded."""
    if options.explain_by:
        check_choice("--explain-by", options.explain_by, METHODS)
    for name, value in (("--target", options.target), ("--html", options.html)):
        if value is not None and not (options.explain or options.explain_by):
            raise InputError(f"{name} is for explanations; add --explain")
    if options.html is not None:
        check_file("--html", options.html)
    if options.early_exit and (options.explain or options.explain_by):
        raise InputError("--explain is for predictions of all layers; leave out --early-exit")


def with_details(answers: Answers, loaded: Loaded, task: str, texts: Sequence[str], options: Namespace) -> Answers:
    """Add what the options ask for to the answers, as `explanations` and `passes` of the records; write --html at the end."""
    method = options.explain_by or ("integrated-gradients" if options.explain else "")
    for option, is_set, tasks in (("--explain", method, PREDICTIONS), ("--passes", options.passes, logit_lens.HEADS)):
        if is_set and task not in tasks:
            raise InputError(f"{option} is for the tasks {', '.join(tasks)}, not {task}")
    if options.target is not None and task in ("entities", "answer"):
        raise InputError(f"--target is for classes and masked words, not for the task {task}")
    pairs = text_pairs(task, texts) if task == "answer" else []
    explanations: list[Explanation] = []
    for number, (record, lines) in enumerate(answers):
        inputs = pairs[number] if pairs else (record.get("text", ""), record.get("text_pair"))
        blocks = [lines]
        if options.passes:
            passes = logit_lens.after_each_pass(*loaded, *inputs, task=task, top_k=options.top_k)
            record |= {"passes": [one.record() for one in passes]}
            for one in passes:
                table = one.table().reset_index(allow_duplicates=True)  # a class can be named pass
                shown = table.to_string(index=False, float_format="{:.4f}".format)
                blocks += [f"  {one.place}, after each pass:", *(f"  {line}" for line in shown.splitlines())]
        if method:
            new_explanations = (
                []
                if record.get("no_answer")
                else explain(*loaded, *inputs, task=task, target=options.target, method=method)
            )
            record |= {"explanations": [one.record() for one in new_explanations]}
            blocks += [line for one in new_explanations for line in terminal_lines(one, use_color())]
            explanations += new_explanations
        yield record, "\n".join(blocks)
    if options.html is not None:
        options.html.write_text(html_page(explanations, "Explanations"), encoding="utf-8")
