"""What the command line does: a function a job.  Heavy imports wait until a job needs them."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any

from albert_jax.config import InputError, load, read_words, require

DISTRIBUTED = {
    "--distributed.coordinator": ("HOST:PORT", "of process 0; not needed on TPU pods, under Slurm and Open MPI"),
    "--distributed.num-processes": ("N", "how many processes the run has; 1: this one alone, also in a cluster"),
    "--distributed.process-id": ("I", "which of them this one is, from 0"),
    "--distributed.timeout": ("SECONDS", "that processes wait for each other at the start (300)"),
}
"""Option -> what stands behind it, and what it says."""


def show_fields(job: str, experiment: str) -> int:
    """Prints the fields of an experiment with their meaning and its values, or the rows of a table; returns the exit code."""
    if job == "ablate":
        return _ablate_help(experiment)
    import tyro

    from albert_jax.finetuning.run import FinetuneConfig
    from albert_jax.pretraining.run import PretrainConfig

    kind: Any = FinetuneConfig if job == "finetune" else PretrainConfig
    try:
        config = load(kind, experiment)
    except InputError as error:
        print(f"albert-jax: error: {error}", file=sys.stderr)
        return 2
    kept = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)
    tyro.cli(kind, default=config, args=["--help"], prog=f"albert-jax {job} {experiment}", config=kept)
    return 0


def pretrain(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Pretrains."""
    from albert_jax.pretraining.run import PretrainConfig, pretrain

    config = load(PretrainConfig, arguments.experiment, overrides)
    return _trained(lambda: pretrain(config, arguments.allow_data_change), arguments)


def finetune(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Fine-tunes, with one seed or several."""
    from albert_jax.finetuning.run import RUN_FIELDS, FinetuneConfig, finetune, scaled
    from albert_jax.finetuning.seeds import finetune_seeds

    given = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in overrides if word.startswith("--")}
    network = sorted(n for n in given if n.startswith("model.") and n.removeprefix("model.") not in RUN_FIELDS)
    told = f"with --init-from the network is that one's; of the model {', '.join(RUN_FIELDS)} can be given"
    require("init_from" not in given or not network, f"--{' '.join(network)}: {told}")
    config = load(FinetuneConfig, arguments.experiment, [*scaled(arguments.scale), *overrides])
    require(not config.init_from or not network, f"--{' '.join(network)}: {told}")
    require(arguments.seeds >= 1, f"--seeds must be at least 1, got {arguments.seeds}")
    changed = arguments.allow_data_change
    if arguments.seeds == 1:
        return _trained(lambda: finetune(config, changed), arguments)
    return _trained(lambda: finetune_seeds(config, arguments.seeds, changed), arguments)


def _trained(run: Callable[[], Any], arguments: argparse.Namespace | None = None) -> int:
    """Runs what trains; with `arguments`, together with the other processes of the run if there are any."""
    from albert_jax.config import from_dict
    from albert_jax.training import processes
    from albert_jax.training.loop import Interrupted

    if arguments is not None:
        given = {name: vars(arguments)[name.removeprefix("--").replace("-", "_")] for name in DISTRIBUTED}
        told = {name.split(".")[1].replace("-", "_"): value for name, value in given.items() if value is not None}
        processes.start(from_dict(processes.DistributedConfig, told, "distributed"))
    with processes.ending_together():
        try:
            run()
        except Interrupted as stop:
            if processes.is_main():
                print(f"albert-jax: {stop}", file=sys.stderr)
            return stop.code
    return 0


def prepare(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Prepares text, here or on many machines; prints the folder."""
    from albert_jax.data.prepare import prepare
    from albert_jax.pretraining.run import PretrainConfig

    fields, options = _beam_options(overrides)
    require(not options or arguments.engine == "beam", "--beam options are for --engine beam")
    config = load(PretrainConfig, arguments.experiment, fields)
    print(prepare(config.data, config.model.vocab_size, options if arguments.engine == "beam" else None).folder)
    return 0


def _beam_options(overrides: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The words that override fields, and Beam's options, in which a name may come again."""
    fields: list[str] = []
    options: list[tuple[str, str]] = []
    rest = list(overrides)
    while rest:
        words = [rest.pop(0)]
        if "=" not in words[0] and rest:
            words.append(rest.pop(0))
        if words[0].startswith("--beam."):
            options += [(name.removeprefix("beam."), value) for name, value in read_words(words).items()]
        else:
            fields += words
    return fields, options


def plan(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Print the plan of an experiment."""
    import json

    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: no accelerator is touched
    from albert_jax.plan.estimate import Assumptions, plan
    from albert_jax.plan.printing import plan_json, plan_table
    from albert_jax.pretraining.run import PretrainConfig

    config = load(PretrainConfig, arguments.experiment, overrides)
    assumptions = Assumptions(**{name: getattr(arguments, name) for name in Assumptions.__dataclass_fields__})
    planned = plan(config, assumptions, arguments.compile)
    print(json.dumps(plan_json(planned)) if arguments.json else plan_table(planned, arguments.experiment))
    return 0


BENCH_FIELDS = {
    "length": "objective.max_seq_length",
    "predictions": "objective.max_predictions_per_seq",
    "dtype": "model.dtype",
    "remat": "model.remat",
    "unroll": "model.scan_unroll",
    "attention": "model.attention_implementation",
}
"""Short names of what `bench` is most often asked with."""


def bench(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Times a network on made-up tokens; prints tables."""
    import json

    from albert_jax.bench import breakdown, measuring, table
    from albert_jax.config import check_writable

    config = _bench_config(arguments, overrides)
    if arguments.profile is not None:
        check_writable(arguments.profile, "--profile")
    if arguments.json_file is not None:
        require(not arguments.json_file.is_dir(), f"--json {arguments.json_file}: a folder; name a file in it")
        check_writable(arguments.json_file.parent, "--json")
        arguments.json_file.parent.mkdir(parents=True, exist_ok=True)
    if arguments.peer is not None:
        from albert_jax.bench import peer

        peer.check(config, arguments.peer, arguments.peer_rounds)
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # before JAX starts: torch wants memory beside
    found, timed = measuring.measure_compiled(config)

    def keep() -> None:
        if arguments.json_file is not None:
            arguments.json_file.write_text(json.dumps(found, indent=1) + "\n")

    keep()  # whatever becomes of the profile and the peer
    found["floors"] = breakdown.floors(config, found["matmul_flops"], found["copy_bytes"])
    if parts := breakdown.breakdown(timed, arguments.profile):
        found["breakdown"] = parts
    else:
        print("the profiler tells nothing of this device: where the time goes is left out", file=sys.stderr)
    if arguments.peer is not None:
        dtype = arguments.peer_dtype or config.model.dtype
        found["peer"] = peer.compare(config, timed, arguments.peer, dtype, arguments.peer_rounds)
        found["ratio"] = found["peer"]["ratio"]
    print(table.describe(found, f"albert-jax bench {arguments.size}"))
    keep()
    return 0


def _bench_config(arguments: argparse.Namespace, overrides: list[str]) -> Any:
    """The size's network; unless told otherwise 512 tokens, of which as many are predicted as the paper would."""
    from albert_jax.bench.measuring import BenchConfig
    from albert_jax.config import from_dict, put, to_dict
    from albert_jax.model.albert import PRESETS
    from albert_jax.pretraining.objective import ObjectiveConfig

    require(
        arguments.size in PRESETS,
        f"bench: one of {', '.join(PRESETS)}, got {arguments.size!r}; no experiment: a field is an option",
    )
    values = to_dict(BenchConfig(PRESETS[arguments.size], ObjectiveConfig(short_seq_prob=0.0)))  # no row is cut
    given = {BENCH_FIELDS.get(name, name): text for name, text in read_words(overrides).items()}
    for name, text in given.items():
        put(values, name, text)
    if "objective.max_predictions_per_seq" not in given:
        length = str(values["objective"]["max_seq_length"])
        known = length.isdecimal()  # else `from_dict` says what is wrong
        values["objective"]["max_predictions_per_seq"] = max(1, round(0.15 * int(length))) if known else 1
    return from_dict(BenchConfig, values)


def vocab(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Trains a vocabulary."""
    from albert_jax.config import check_writable
    from albert_jax.data.prepare import train_source_vocabulary
    from albert_jax.pretraining.run import PretrainConfig

    config = load(PretrainConfig, arguments.experiment, overrides)
    require(not arguments.target.exists(), f"{arguments.target} exists; name another file, or remove it first")
    check_writable(arguments.target, "target")
    train_source_vocabulary(dataclasses.replace(config.data, vocab=""), arguments.target, config.model.vocab_size)
    return 0


def report(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Shows runs again."""
    from albert_jax.config import read_json
    from albert_jax.reports import comparison, figures
    from albert_jax.reports import run as report

    first = arguments.folders[0]
    path = first / "summary.json"
    summary = read_json(path) if path.exists() else {}
    if len(arguments.folders) == 1 and "seeds" in summary:
        print(report.seeds_table(summary))
    elif len(arguments.folders) == 1 and (first / "config.json").exists():
        print(report.plot_curves(first))
        if summary:
            print(report.table(summary))
    else:
        table = figures.write(comparison.read(arguments.folders, arguments.output))
        print(comparison.markdown(table))
        print(f"\ntable.md, table.csv, runs.csv, curves and scores (.png, .svg): {table.folder}", file=sys.stderr)
    return 0


def ablate(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Runs the rows of a table, here or as jobs of a cluster."""
    from albert_jax.ablation import planning
    from albert_jax.reports import comparison

    names = ("scale", "seeds", "budget", "rows", "finetune", "run_dir")
    plan = planning.resolve(arguments.table, overrides=overrides, **{name: getattr(arguments, name) for name in names})
    if arguments.dry_run:
        print(planning.describe(plan))
        return 0
    from albert_jax.ablation import run as ablate

    if arguments.launcher == "slurm":
        options = dict(_slurm_option(text) for text in arguments.slurm)
        jobs = ablate.submit(plan, options)
        print(f"{len(jobs)} jobs: {' '.join(jobs)}\nalbert-jax report {plan.run_dir}   shows how far they are")
        return 0
    require(not arguments.slurm, "--slurm is for --launcher slurm")
    found: list[Any] = []
    code = _trained(lambda: found.append(ablate.ablate(plan)))
    for table in found:
        print(comparison.markdown(table))
        print(f"\ntable.md, table.csv, runs.csv, curves and scores (.png, .svg): {table.folder}", file=sys.stderr)
        asked = [row.label for row in plan.rows]
        code = int(any(line.failures for line in table.lines if line.label in asked))
    return code


def _slurm_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    require(bool(equals), f"--slurm {text}: expected NAME=VALUE, such as timeout_min=120")
    return name, int(value) if value.isdecimal() else value


def _ablate_help(path: str) -> int:
    from albert_jax.ablation import table

    try:
        print(table.explain(path))
    except InputError as error:
        print(f"albert-jax: error: {error}", file=sys.stderr)
        return 2
    return 0


def probe(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Prints how well sentence order is told without reading."""
    from albert_jax.pretraining import probes
    from albert_jax.pretraining.run import PretrainConfig

    print(probes.table(probes.probe(load(PretrainConfig, arguments.experiment, overrides))))
    return 0


def convert(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Converts a model; prints what became of each tensor."""
    import json

    from albert_jax.exchange.convert import convert, report_text

    given = {
        name: getattr(arguments, name) for name in ("sharing", "num_hidden_groups", "num_hidden_layers", "hidden_act")
    }
    changes = {name: value for name, value in given.items() if value is not None}
    report = convert(arguments.source, arguments.target, to=arguments.to, **_reading(arguments), **changes)
    print(json.dumps(report) if arguments.json else report_text(report))
    return 0


def _reading(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("vocab", "init_missing", "allow_pickle")}


def predict(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Prints what a model says of texts."""
    import json

    from albert_jax.exchange import load as exchange
    from albert_jax.inference import answers

    options = answers.Options(**{name: getattr(arguments, name) for name in answers.Options.__dataclass_fields__})
    require(options.output is None or arguments.task == "embed", "--output is for --task embed; others print")
    given = answers.read_texts(arguments.text, arguments.file) if arguments.text or arguments.file else None
    loaded = exchange.load(arguments.source, **_reading(arguments))
    texts = answers.read_texts((), None) if given is None else given
    task = arguments.task or answers.task_of(loaded[0])
    for record, lines in answers.ANSWERS[task](*loaded, texts, options):
        print(json.dumps(record, ensure_ascii=False) if arguments.json else lines)
    return 0
