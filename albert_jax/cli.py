"""The command line: its options and their help, one subcommand a job (`jobs.py`)."""

import argparse
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from albert_jax import jobs
from albert_jax.config import InputError, require

EXPERIMENTS = ("pretrain", "prepare", "vocab", "finetune", "probe", "ablate", "plan")
"""Jobs that take an experiment, and any field of it as an option."""

FIELDS = (*EXPERIMENTS, "bench")
"""Jobs that take any field as an option."""

ABLATE_OPTIONS = ("--scale", "--seeds", "--budget", "--rows", "--finetune", "--run-dir", "--launcher", "--slurm")
PLAN_OPTIONS = ("--device", "--peak-tflops", "--memory-gb", "--mfu", "--tokens", "--distributed.num-processes")
OWN_OPTIONS = {
    "pretrain": tuple(jobs.DISTRIBUTED),
    "finetune": ("--seeds", "--scale", *jobs.DISTRIBUTED),
    "ablate": ABLATE_OPTIONS,
    "prepare": ("--engine",),
    "plan": PLAN_OPTIONS,
    "bench": ("--json", "--profile", "--peer", "--peer-dtype", "--peer-rounds"),
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
  albert-jax finetune experiments/finetune/sst2.py --init-from albert/albert-base-v2 --data.dir glue/SST-2
  albert-jax finetune experiments/finetune/rte.py --init-from runs/mnli --data.dir glue/RTE --seeds 5
  albert-jax finetune experiments/finetune/text.py --init-from runs/small --data.train-file mine.csv --data.dev-file dev.csv
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
BENCH_EPILOG = """\
  albert-jax bench base --batch-size 8 --length 128                           on whatever device JAX finds
  albert-jax bench base --batch-size 128 --dtype bfloat16 --attention cudnn --unroll 12 --remat none          an NVIDIA GPU
  albert-jax bench base --batch-size 8 --length 128 --work inference --dtype bfloat16 --peer huggingface
  albert-jax bench base --batch-size 4 --length 128 --work gradients --unroll 12 --json bench.json --profile trace
Work: step (masks, loss, gradients, update), gradients (loss and gradients of given masks), inference (the encoder).
Further options: --predictions, --remat, --unroll, --rounds, --gradient-accumulation, --mesh.data, and any field of model,
objective and optim, such as --model.num-hidden-layers 48, --model.sharing none, --optim.optimizer adamw.
MFU counts the model's matmul FLOPs, and compares with what a large product reaches on the same device.
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
        return jobs.show_fields(words[0], words[1])
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("albert_jax").setLevel(logging.INFO)
    for name in ("absl", "apache_beam"):  # Orbax, TFDS and Beam tell their every step
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        plain, overrides = (
            _split(words, OWN_OPTIONS.get(words[0], ())) if words[:1] and words[0] in FIELDS else (words, [])
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
    except BrokenPipeError:  # `| head`: whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush fails as well
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(
            f"albert-jax: error: {error.filename or 'a file'}: {os.strerror(error.errno)}; make room", file=sys.stderr
        )
        return 2
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
        if not word.startswith("--") or word == "--help" or (word in FLAGS and word not in own):
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
    parsers = parser.add_subparsers(required=True, metavar="JOB")

    def job(name: str, run: object, summary: str, epilog: str = EPILOG) -> argparse.ArgumentParser:
        sub = parsers.add_parser(
            name, help=summary, description=summary, epilog=epilog, formatter_class=raw, allow_abbrev=False
        )
        sub.set_defaults(job=run)
        return sub

    experiment = "experiment file (.py) or a run's config.json; --help after it lists its fields"
    pretrain = job("pretrain", jobs.pretrain, "Prepare the data, train, evaluate; the same command again resumes.")
    pretrain.add_argument("experiment", help=experiment)
    prepare = job(
        "prepare", jobs.prepare, "Only prepare the data of an experiment, and print the folder.", PREPARE_EPILOG
    )
    prepare.add_argument("experiment", help=experiment)
    engine = "local: this process; beam: workers of the pipeline that --beam.runner NAME names (local)"
    prepare.add_argument("--engine", default="local", choices=("local", "beam"), help=engine)
    vocab = job(
        "vocab", jobs.vocab, "Train a SentencePiece vocabulary on an experiment's source, with the released flags."
    )
    vocab.add_argument("experiment", help=experiment)
    vocab.add_argument("target", type=Path, help="file to write, such as spiece.model")
    finetune = job(
        "finetune",
        jobs.finetune,
        "Fine-tune on a task, write its predictions; the same command again resumes.",
        FINETUNE_EPILOG,
    )
    finetune.add_argument("experiment", help=experiment)
    finetune.add_argument("--seeds", type=int, default=1, help="so many runs, with median, mean and spread (1)")
    scales = "large: rates that v2 checkpoints from large up learn with; tiny: minutes on two CPU cores (paper)"
    finetune.add_argument("--scale", default="paper", choices=("paper", "large", "tiny"), help=scales)
    for sub in (pretrain, finetune):
        for name, (value, told) in jobs.DISTRIBUTED.items():
            sub.add_argument(name, metavar=value, help=told)
        changed = "resume although the data is not what the run began with"
        sub.add_argument("--allow-data-change", action="store_true", help=changed)
    _plan_job(job)
    _bench_job(job)
    _exchange_jobs(job)
    _ablation_jobs(job)
    return parser


def _bench_job(job: Callable[..., argparse.ArgumentParser]) -> None:
    bench = job(
        "bench", jobs.bench, "Time a network's step on made-up tokens, and say where the time goes.", BENCH_EPILOG
    )
    bench.add_argument(
        "size", help="base, large, xlarge, xxlarge (v2), or one of them with -v1: with dropout, but for xxlarge"
    )
    written = "write all that was measured"
    bench.add_argument("--json", dest="json_file", metavar="FILE", type=Path, help=written)
    bench.add_argument("--profile", metavar="DIR", type=Path, help="keep the profile, for TensorBoard or Perfetto")
    peers = "time the same work in torch, in turn with ours"
    bench.add_argument("--peer", choices=("huggingface", "huggingface-compiled"), help=peers)
    casts = "what it computes in: float32, or bfloat16 by autocast (as ours)"
    bench.add_argument("--peer-dtype", choices=("float32", "bfloat16"), help=casts)
    bench.add_argument("--peer-rounds", type=int, default=9, help="timed rounds, of about a second each (9)")


def _plan_job(job: Callable[..., argparse.ArgumentParser]) -> None:
    plan = job(
        "plan", jobs.plan, "Say what an experiment will take, on paper, and what looks wrong with it.", PLAN_EPILOG
    )
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
        "ablate", jobs.ablate, "Run every row of a table; the same command again goes on where it was.", ABLATE_EPILOG
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
    job("probe", jobs.probe, probe).add_argument("experiment", help="experiment file (.py) or a run's config.json")
    report = job("report", jobs.report, "Show a run, a table of runs, or any runs side by side, again.", REPORT_EPILOG)
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
        "convert",
        jobs.convert,
        "Write any ALBERT as a Hugging Face folder, or as a model folder of ours.",
        CONVERT_EPILOG,
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
    predict = job("predict", jobs.predict, "Ask a model about text.", PREDICT_EPILOG)
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
