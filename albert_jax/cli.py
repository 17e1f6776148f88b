"""The command line: one subcommand a job.  Heavy imports wait until a job needs them."""

import argparse
import dataclasses
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from albert_jax.config import InputError, load, read_words, require

EXPERIMENTS = ("pretrain", "prepare", "vocab", "finetune", "probe", "ablate", "plan")
"""Jobs that take an experiment, and any field of it as an option."""

ABLATE_OPTIONS = ("--scale", "--seeds", "--budget", "--rows", "--finetune", "--run-dir", "--launcher", "--slurm")
PLAN_OPTIONS = ("--device", "--peak-tflops", "--memory-gb", "--mfu", "--tokens", "--distributed.num-processes")
DISTRIBUTED = {
    "--distributed.coordinator": ("HOST:PORT", "of process 0; not needed on TPU pods, under Slurm and Open MPI"),
    "--distributed.num-processes": ("N", "how many processes the run has"),
    "--distributed.process-id": ("I", "which of them this one is, from 0"),
    "--distributed.timeout": ("SECONDS", "that processes wait for each other at the start (300)"),
}
"""Option -> what stands behind it, and what it says."""
OWN_OPTIONS = {
    "pretrain": tuple(DISTRIBUTED),
    "finetune": ("--seeds", "--scale", *DISTRIBUTED),
    "ablate": ABLATE_OPTIONS,
    "prepare": ("--engine",),
    "plan": PLAN_OPTIONS,
}
"""Options of such jobs that are no fields."""

FLAGS = ("--dry-run", "--allow-data-change", "--compile", "--json")
"""Options of such jobs that take no value."""

EPILOG = """\
Any field of an experiment can be overridden: --train.global-batch-size 256, --data.source 'text/*.jsonl.gz', --model.sharing none.
  albert-jax pretrain experiments/pretrain/tiny.py --help   lists the fields, their meaning and this experiment's values.
A run folder's config.json is an experiment too: albert-jax pretrain runs/tiny/config.json --run-dir runs/again
On several hosts: the same command on each, with --distributed.* where it is neither a TPU pod nor Slurm nor Open MPI.
"""
PREPARE_EPILOG = f"""\
{EPILOG}
A corpus too big for one machine (pip install 'albert_jax[beam]'): the same records, in the same order, out of Apache Beam.
  albert-jax prepare FILE --engine beam --data.source '/corpus/*.jsonl.gz' --data.vocab spiece.model --data.cache-dir /shared
Every --beam.OPTION is one of Beam's pipeline options; true and false are switches, an option given again is a list:
  ... --beam.direct-running-mode multi_processing --beam.direct-num-workers 16          the cores of this machine
  ... --beam.runner DataflowRunner --beam.project P --beam.region europe-west4 --beam.temp-location gs://BUCKET/tmp
      --beam.sdk-container-image IMAGE
  ... --beam.runner FlinkRunner --beam.flink-master HOST:8081 --beam.environment-type DOCKER --beam.environment-config IMAGE
  ... --beam.runner SparkRunner --beam.spark-master-url spark://HOST:7077 --beam.environment-type DOCKER
      --beam.environment-config IMAGE
Workers must have albert_jax (an IMAGE with it), and see source and cache under the same paths as this machine (a file system
that all mount; not gs://).  Files are what they share out: give many.
"""
FINETUNE_EPILOG = """\
Any field of the experiment can be overridden, as of a pretraining one; --help after the file lists them.
  albert-jax finetune experiments/finetune/sst2.py --init albert/albert-base-v2 --data.dir glue/SST-2
  albert-jax finetune experiments/finetune/rte.py --init runs/mnli --data.dir glue/RTE --seeds 5
  albert-jax finetune experiments/finetune/text.py --init runs/small --data.train-file mine.csv --data.dev-file dev.csv
"""
ABLATE_EPILOG = """\
  albert-jax ablate experiments/ablations/sharing.py --scale tiny --seeds 3 --dry-run     rows, counts and cost first
  albert-jax ablate experiments/ablations/sharing.py --scale tiny --seeds 3               the same again goes on
  albert-jax ablate experiments/ablations/sharing.py --scale small --data.source 'corpus/*.jsonl.gz' --data.vocab spiece.model
  albert-jax ablate experiments/ablations/depth.py --rows '6 layers from' --budget flops  that row and what they start from
  albert-jax ablate experiments/ablations/sharing.py --finetune 'experiments/finetune/sst2.py --data.dir glue/SST-2'
Any field of the scale's experiment can be overridden, for all rows: --train.num-train-steps 500.
Budgets, what is held equal: tokens (as many for every row), flops, time (steps are measured first), params (widths are changed).
"""
PLAN_EPILOG = """\
  albert-jax plan experiments/pretrain/xxlarge.py --mesh.data 64                      64 H100 at 40 % of their peak
  albert-jax plan experiments/pretrain/base.py --mesh.data 8 --device 'TPU v3' --mfu 0.5 --tokens 3.3e9
  albert-jax plan experiments/pretrain/base.py --mesh.data 8 --compile                what XLA makes of the step, on this CPU
Any field of the experiment can be overridden; neither its data nor an accelerator is needed.
"""
REPORT_EPILOG = """\
  albert-jax report runs/tiny                        its curves.png and last numbers
  albert-jax report runs/sharing-tiny                a table's table.md, table.csv, runs.csv, curves and scores (.png, .svg)
  albert-jax report runs/a runs/b --output compared  any runs side by side; those that differ in the seed alone are one row
"""


class _Parser(argparse.ArgumentParser):
    """Its mistakes are told like all others: in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, also for a run that SIGTERM stopped and that is saved; 2 for input that
    cannot be used; 128 + n for another signal n.
    """
    words = sys.argv[1:] if words is None else list(words)
    parser = _parser()
    if words[1:2] and words[0] in EXPERIMENTS and {"-h", "--help"} & set(words[2:]):
        return _help(words[0], words[1])
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("albert_jax").setLevel(logging.INFO)
    for name in ("absl", "apache_beam"):  # Orbax, TFDS and Beam tell their every step
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        plain, overrides = (
            _split(words, OWN_OPTIONS.get(words[0], ())) if words[:1] and words[0] in EXPERIMENTS else (words, [])
        )
        # argparse takes no more texts once an option stood between, not even behind `--`.
        end = plain.index("--") if "--" in plain[2:] and plain[0] == "predict" and plain[1] != "--" else len(plain)
        arguments, rest = parser.parse_known_args(plain[:end])
        if "text" in arguments and not any(word.startswith("-") for word in rest):
            arguments.text += rest + plain[end + 1 :]
            rest = []
        require(not rest, f"unrecognized arguments: {' '.join(rest)}; see albert-jax {words[0]} --help")
        code = arguments.job(arguments, overrides)
        sys.stdout.flush()  # here, where a broken pipe is seen, not as the process ends
        return code
    except InputError as error:
        print(f"albert-jax: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(
            f"albert-jax: error: {error.filename or 'a file'}: {os.strerror(error.errno)}; make room", file=sys.stderr
        )
        return 2
    except BrokenPipeError:  # `| head`: whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush fails as well
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("albert-jax: interrupted; the same command starts where this one was", file=sys.stderr)
        return 128 + signal.SIGINT


def _split(words: Sequence[str], own: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that argparse reads, `own` options among them, and the overrides with their values, wherever they stand."""
    plain: list[str] = []
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word in ("--help", *FLAGS):
            plain.append(word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")  # as in fields, either will do
        chosen = plain if name in own else overrides
        chosen.append(name + equals + value if name in own else word)
        if "=" not in word and rest:
            chosen.append(rest.pop(0))
    return plain, overrides


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="albert-jax",
        description="Pretrain, exchange and study ALBERT in JAX.",
        formatter_class=raw,
        allow_abbrev=False,
    )
    jobs = parser.add_subparsers(required=True, metavar="JOB")

    def job(name: str, run: object, summary: str, epilog: str = EPILOG) -> argparse.ArgumentParser:
        sub = jobs.add_parser(
            name, help=summary, description=summary, epilog=epilog, formatter_class=raw, allow_abbrev=False
        )
        sub.set_defaults(job=run)
        return sub

    experiment = "experiment file (.py) or a run's config.json; --help after it lists its fields"
    pretrain = job("pretrain", _pretrain, "Prepare the data, train, evaluate; the same command again resumes.")
    pretrain.add_argument("experiment", help=experiment)
    prepare = job("prepare", _prepare, "Only prepare the data of an experiment, and print the folder.", PREPARE_EPILOG)
    prepare.add_argument("experiment", help=experiment)
    engine = "local: this process; beam: workers of the pipeline that --beam.runner NAME names (local)"
    prepare.add_argument("--engine", default="local", choices=("local", "beam"), help=engine)
    vocab = job("vocab", _vocab, "Train a SentencePiece vocabulary on an experiment's source, with the released flags.")
    vocab.add_argument("experiment", help=experiment)
    vocab.add_argument("target", type=Path, help="file to write, such as spiece.model")
    finetune = job(
        "finetune",
        _finetune,
        "Fine-tune on a task, write its predictions; the same command again resumes.",
        FINETUNE_EPILOG,
    )
    finetune.add_argument("experiment", help=experiment)
    finetune.add_argument("--seeds", type=int, default=1, help="so many runs, with median, mean and spread (1)")
    scales = "large: rates that v2 checkpoints from large up learn with; tiny: minutes on two CPU cores (paper)"
    finetune.add_argument("--scale", default="paper", choices=("paper", "large", "tiny"), help=scales)
    for sub in (pretrain, finetune):
        for name, (value, told) in DISTRIBUTED.items():
            sub.add_argument(name, metavar=value, help=told)
        changed = "resume although the data is not what the run began with"
        sub.add_argument("--allow-data-change", action="store_true", help=changed)
    _plan_job(job)
    _exchange_jobs(job)
    _ablation_jobs(job)
    return parser


def _plan_job(job: Callable[..., argparse.ArgumentParser]) -> None:
    plan = job("plan", _plan, "Say what an experiment will take, on paper, and what looks wrong with it.", PLAN_EPILOG)
    plan.add_argument("experiment", help="experiment file (.py) or a run's config.json; --mesh.data N says the devices")
    plan.add_argument("--device", default="H100", help="whose peak and memory: H100, H200, A100, 'TPU v3', ... (H100)")
    plan.add_argument("--peak-tflops", type=float, help="peak of a device, for those that are not known")
    plan.add_argument("--memory-gb", type=float, help="what a run may use of a device's memory")
    plan.add_argument("--mfu", type=float, default=0.4, help="share of the peak that is reached (0.4)")
    plan.add_argument("--tokens", type=float, help="tokens of the corpus: says how often it is repeated")
    hosts = "hosts (one for each 8 devices)"
    plan.add_argument("--distributed.num-processes", dest="processes", type=int, help=hosts)
    plan.add_argument("--compile", action="store_true", help="compile the real step for as many virtual CPU devices")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")


def _ablation_jobs(job: Callable[..., argparse.ArgumentParser]) -> None:
    ablate = job(
        "ablate", _ablate, "Run every row of a table; the same command again goes on where it was.", ABLATE_EPILOG
    )
    ablate.add_argument("table", help="a file such as experiments/ablations/sharing.py; --help after it shows its rows")
    ablate.add_argument("--scale", default="tiny", help="a file in the folder 'scales' beside the table (tiny)")
    ablate.add_argument("--seeds", type=int, default=1, help="so many runs a row (1)")
    ablate.add_argument("--budget", default="tokens", help="what is held equal: tokens, flops, time, params (tokens)")
    ablate.add_argument(
        "--rows", action="append", default=[], help="rows of this label, or with this in it; repeatable"
    )
    finetune = "what stands behind 'albert-jax finetune', in quotes; every row is fine-tuned so; repeatable"
    ablate.add_argument("--finetune", action="append", default=[], help=finetune)
    ablate.add_argument("--run-dir", default="", help="folder (runs/TABLE-SCALE)")
    ablate.add_argument("--dry-run", action="store_true", help="only show rows, counts and cost")
    ablate.add_argument(
        "--launcher", default="here", choices=("here", "slurm"), help="one after another, or jobs (here)"
    )
    slurm = "NAME=VALUE, of every job, in submitit's names: timeout_min (5), gpus_per_node, slurm_partition; repeatable"
    ablate.add_argument("--slurm", action="append", default=[], help=slurm)
    probe = "Ask how well sentence order can be told without reading, in an experiment's data."
    job("probe", _probe, probe).add_argument("experiment", help="experiment file (.py) or a run's config.json")
    report = job("report", _report, "Show a run, a table of runs, or any runs side by side, again.", REPORT_EPILOG)
    report.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a run, a table, or a folder of runs")
    report.add_argument(
        "--output", type=Path, help="folder for files of several DIRs (report), or of a table (its own)"
    )


SOURCE = """a Hugging Face folder or hub id (albert/albert-base-v2, @revision pins it), the folder, tar or prefix of one of
Google's checkpoints, or a run folder"""
CONVERT_EPILOG = """\
  albert-jax convert albert_base_v2.tar.gz albert-base-v2       Google's checkpoint -> Hugging Face folder
  albert-jax convert runs/tiny exported                         our run -> Hugging Face folder
  albert-jax convert exported runs/unshared --to albert_jax --sharing none --num-hidden-layers 24
"""
PREDICT_EPILOG = """\
  albert-jax predict albert/albert-base-v2 'Paris is the [MASK] of France.'
  albert-jax predict runs/tiny --task sentence-order 'It rained.' 'So we stayed in.'      or lines of two texts and a tab
  albert-jax predict runs/tiny --task embed --file texts.txt --output vectors.npy
  albert-jax predict runs/tiny --task generate 'the function returns' --length 12 --temperature 0.7
  albert-jax predict runs/sst2 'A film to remember.'            of a fine-tuned run, or folder of anybody's: its labels
  albert-jax predict runs/rte --pair 'It rained all day.' 'The sun shone.'      two texts, or lines of two and a tab
  albert-jax predict runs/squad1 'Who wrote it?' 'The book was written by Jane Austen in 1811.'
  albert-jax predict runs/race 'Tom has a dog.' 'What has Tom?' 'a cat' 'a dog'
"""


PREDICT_TASKS = ("fill-mask", "sentence-order", "embed", "generate", "classify", "entities", "answer", "choose")


def _exchange_jobs(job: Callable[..., argparse.ArgumentParser]) -> None:
    convert = job(
        "convert", _convert, "Write any ALBERT as a Hugging Face folder, or as a model folder of ours.", CONVERT_EPILOG
    )
    convert.add_argument("source", help=SOURCE)
    convert.add_argument("target", help="folder to make")
    to = "albert_jax: what --init-from, predict and load read like a run (huggingface)"
    convert.add_argument("--to", default="huggingface", choices=("huggingface", "albert_jax"), help=to)
    convert.add_argument("--sharing", help="share the layers another way: all, attention, ffn, none, groups")
    convert.add_argument("--num-hidden-groups", type=int, help="parameter sets of --sharing groups")
    convert.add_argument("--num-hidden-layers", type=int, help="grow (each layer repeated) or cut (layers left out)")
    convert.add_argument(
        "--hidden-act", help="gelu_new (tanh form) or gelu (erf form), where the source says the wrong one"
    )
    convert.add_argument("--json", action="store_true", help="print the report as JSON")
    predict = job("predict", _predict, "Ask a model about text.", PREDICT_EPILOG)
    predict.add_argument("source", help=SOURCE)
    predict.add_argument("text", nargs="*", help="texts; without any, and without --file, lines of standard input")
    predict.add_argument("--file", type=Path, help="a text a line")
    task = "what is asked; without it, what the model was fine-tuned for, else fill-mask"
    predict.add_argument("--task", choices=PREDICT_TASKS, help=task)
    predict.add_argument("--json", action="store_true", help="print a line of JSON a text")
    predict.add_argument("--top-k", type=int, default=5, help="fill-mask, answer: the best so many (5)")
    predict.add_argument("--pair", action="store_true", help="classify: texts are taken two by two")
    threshold = "answer: none where the odds of no answer are above this (summary.json of a SQuAD 2.0 run says which)"
    predict.add_argument("--null-threshold", type=float, help=threshold)
    predict.add_argument("--pooling", default="mean", choices=("mean", "pooler"), help="embed: of hidden states (mean)")
    predict.add_argument("--output", type=Path, help="embed: .npy file to write, float32 [texts, H]")
    predict.add_argument("--length", type=int, default=0, help="generate: pieces to continue the text by (0)")
    predict.add_argument(
        "--temperature", type=float, default=1.0, help="generate: of sampling; 0 is the likeliest (1.0)"
    )
    predict.add_argument("--seed", type=int, default=0, help="generate: the same seed gives the same text (0)")
    for sub in (convert, predict):
        sub.add_argument("--vocab", default="", help="SentencePiece model, where the source has none")
        missing = "start pretraining heads that the source lacks from random numbers"
        sub.add_argument("--init-missing", action="store_true", help=missing)
        pickle = "read pytorch_model.bin, through torch, where there is nothing else"
        sub.add_argument("--allow-pickle", action="store_true", help=pickle)


def _help(job: str, experiment: str) -> int:
    if job == "ablate":
        return _ablate_help(experiment)
    import tyro

    from albert_jax.finetune import FinetuneConfig
    from albert_jax.pretrain import PretrainConfig

    kind: Any = FinetuneConfig if job == "finetune" else PretrainConfig
    try:
        config = load(kind, experiment)
    except InputError as error:
        print(f"albert-jax: error: {error}", file=sys.stderr)
        return 2
    kept = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)
    tyro.cli(kind, default=config, args=["--help"], prog=f"albert-jax {job} {experiment}", config=kept)
    return 0


def _pretrain(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from albert_jax.pretrain import PretrainConfig, pretrain

    config = load(PretrainConfig, arguments.experiment, overrides)
    return _trained(lambda: pretrain(config, arguments.allow_data_change), arguments)


def _finetune(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from albert_jax.finetune import RUN_FIELDS, FinetuneConfig, finetune, scaled
    from albert_jax.seeds import finetune_seeds

    given = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in overrides if word.startswith("--")}
    network = sorted(n for n in given if n.startswith("model.") and n.removeprefix("model.") not in RUN_FIELDS)
    told = f"with --init the network is that one's; of the model {', '.join(RUN_FIELDS)} can be given"
    require("init" not in given or not network, f"--{' '.join(network)}: {told}")
    config = load(FinetuneConfig, arguments.experiment, [*scaled(arguments.scale), *overrides])
    require(not config.init or not network, f"--{' '.join(network)}: {told}")
    require(arguments.seeds >= 1, f"--seeds must be at least 1, got {arguments.seeds}")
    changed = arguments.allow_data_change
    if arguments.seeds == 1:
        return _trained(lambda: finetune(config, changed), arguments)
    return _trained(lambda: finetune_seeds(config, arguments.seeds, changed), arguments)


def _trained(run: Callable[[], Any], arguments: argparse.Namespace | None = None) -> int:
    """Runs what trains; with `arguments`, together with the other processes of the run if there are any."""
    from albert_jax import processes
    from albert_jax.config import from_dict
    from albert_jax.train import Interrupted

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


def _prepare(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from albert_jax.data.prepare import prepare
    from albert_jax.pretrain import PretrainConfig

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


def _plan(arguments: argparse.Namespace, overrides: list[str]) -> int:
    import json

    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: no accelerator is touched
    from albert_jax.plan import planning, table
    from albert_jax.pretrain import PretrainConfig

    config = load(PretrainConfig, arguments.experiment, overrides)
    assumed = planning.Assumed(**{name: getattr(arguments, name) for name in planning.Assumed.__dataclass_fields__})
    made = planning.plan(config, assumed)
    if arguments.compile:
        made = planning.with_compiled(made, config)
    print(json.dumps(table.to_json(made)) if arguments.json else table.describe(made, config, arguments.experiment))
    return 0


def _vocab(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from albert_jax.config import check_writable
    from albert_jax.data.prepare import vocabulary
    from albert_jax.pretrain import PretrainConfig

    config = load(PretrainConfig, arguments.experiment, overrides)
    require(not arguments.target.exists(), f"{arguments.target} exists; name another file, or remove it first")
    check_writable(arguments.target, "target")
    vocabulary(dataclasses.replace(config.data, vocab=""), arguments.target, config.model.vocab_size)
    return 0


def _report(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from albert_jax import comparison, figures, report
    from albert_jax.config import read_json

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


def _ablate(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from albert_jax import comparison
    from albert_jax.ablation import planning

    names = ("scale", "seeds", "budget", "rows", "finetune", "run_dir")
    plan = planning.resolve(arguments.table, overrides=overrides, **{name: getattr(arguments, name) for name in names})
    if arguments.dry_run:
        print(planning.describe(plan))
        return 0
    from albert_jax import ablate

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


def _probe(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from albert_jax import probes
    from albert_jax.pretrain import PretrainConfig

    print(probes.table(probes.probe(load(PretrainConfig, arguments.experiment, overrides))))
    return 0


def _convert(arguments: argparse.Namespace, overrides: list[str]) -> int:
    import json

    from albert_jax import exchange

    given = {
        name: getattr(arguments, name) for name in ("sharing", "num_hidden_groups", "num_hidden_layers", "hidden_act")
    }
    changes = {name: value for name, value in given.items() if value is not None}
    report = exchange.convert(arguments.source, arguments.target, to=arguments.to, **_reading(arguments), **changes)
    print(json.dumps(report) if arguments.json else exchange.describe(report))
    return 0


def _reading(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("vocab", "init_missing", "allow_pickle")}


def _predict(arguments: argparse.Namespace, overrides: list[str]) -> int:
    import json

    from albert_jax import answers, exchange

    options = answers.Options(**{name: getattr(arguments, name) for name in answers.Options.__dataclass_fields__})
    require(options.output is None or arguments.task == "embed", "--output is for --task embed; others print")
    given = answers.read_texts(arguments.text, arguments.file) if arguments.text or arguments.file else None
    loaded = exchange.load(arguments.source, **_reading(arguments))
    texts = answers.read_texts((), None) if given is None else given
    task = arguments.task or answers.task_of(loaded[0])
    for record, lines in answers.ANSWERS[task](*loaded, texts, options):
        print(json.dumps(record, ensure_ascii=False) if arguments.json else lines)
    return 0
