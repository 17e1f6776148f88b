"""One training step: the same on one device and on eight, whole or in micro-batches, with one all-reduce of gradients."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.cli import main
from albert_jax.training import partition
from albert_jax.training.devices import peak_flops
from albert_jax.training.integrity import fingerprint
from albert_jax.training.run_folder import MetricsLog

from .conftest import FAST_COMPILE, ROOT, free_port
from .train_script import batches, make


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`trained(devices, accumulation, sharing, objective, cut, count)`: what tests/train_script.py wrote, each run once; of
    `devices` devices altogether, in `count` processes."""
    folder = tmp_path_factory.mktemp("trained")

    def run(
        devices: int,
        accumulation: int = 1,
        sharing: str = "all",
        objective: str = "sop",
        cut: str = "none",
        count: int = 1,
    ) -> Any:
        out = folder / f"{devices}-{accumulation}-{sharing}-{objective}-{cut}-{count}.npz"
        if not out.exists():
            flags = f"{FAST_COMPILE} --xla_force_host_platform_device_count={devices // count}"
            words = [sys.executable, "-m", "tests.train_script", str(out), str(accumulation), sharing, objective, cut]
            port = free_port()
            started = [
                subprocess.Popen(
                    words + ([f"127.0.0.1:{port}", str(count), str(i)] if count > 1 else []),
                    env=os.environ | {"XLA_FLAGS": flags},
                    cwd=ROOT,
                )
                for i in range(count)
            ]
            assert [process.wait(900) for process in started] == [0] * count
        return np.load(out)

    return run


def collectives(text: str) -> list[tuple[str, str]]:
    """(the computation it stands in, the instruction) of each collective in compiled HLO."""
    found, computation = [], ""
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            computation = line.split("(")[0].strip()
        if re.search(r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(", line):
            found.append((computation, line.strip()))
    return found


@pytest.mark.parametrize("sharing", ["all", pytest.param("attention", marks=pytest.mark.slow)])
def test_eight_devices_equal_one(trained: Any, sharing: str) -> None:
    """Dropout and masks too.  Fails if random numbers were drawn by device, or losses averaged over devices."""
    one, eight = trained(1, sharing=sharing), trained(8, sharing=sharing)
    assert (one["devices"], eight["devices"]) == (1, 8)
    np.testing.assert_allclose(eight["losses"], one["losses"], atol=1e-5)
    np.testing.assert_allclose(eight["params"], one["params"], atol=1e-5)
    assert np.ptp(one["losses"]) > 1e-3


@pytest.mark.parametrize("cut", ["optimizer", "parameters"])
@pytest.mark.parametrize(
    "sharing",
    [
        "none",
        pytest.param("groups", marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param("all", marks=pytest.mark.slow),
    ],
)
def test_state_cut_over_eight_devices_equals_one(trained: Any, sharing: str, cut: str) -> None:
    """Losses, parameters; and each device holds its part.  Fails if a part of a gradient were added up twice or never."""
    one, eight = trained(1, sharing=sharing), trained(8, sharing=sharing, cut=cut)
    np.testing.assert_allclose(eight["losses"], one["losses"], atol=1e-5)
    np.testing.assert_allclose(eight["params"], one["params"], atol=1e-5)
    # Of three parts, parameters and two moments; biases and LayerNorm, whole everywhere, are many in so small a network.
    assert eight["held"] / one["held"] == pytest.approx({"optimizer": 1 / 3, "parameters": 0}[cut], abs=0.17)
    assert eight["memory"] < trained(8, sharing=sharing)["memory"]
    if cut == "parameters":  # nor while it is made
        assert eight["memory_of_init"] < 0.5 * trained(8, sharing=sharing)["memory_of_init"]


@pytest.mark.slow
def test_cut_and_accumulated(trained: Any) -> None:
    """Parts of gradients add up over micro-batches as well."""
    whole = trained(1, sharing="none")["params"]
    np.testing.assert_allclose(trained(8, 2, "none", cut="parameters")["params"], whole, atol=1e-5)
    np.testing.assert_allclose(trained(8, 2, "none", cut="optimizer")["params"], whole, atol=1e-5)


def test_no_layer_is_whole_for_long(trained: Any) -> None:
    """Parameters that are cut and not shared are gathered in the loop over the layers; the optimiser's never are."""
    found = collectives(str(trained(8, sharing="none", cut="parameters")["text"]))
    whole = [(where, line) for where, line in found if "all-gather" in line and "f32[32,64]" in line]
    assert whole
    assert not any(where.startswith("ENTRY") for where, _ in whole)
    assert not any("f32[4,32,64]" in line for _, line in found)


@pytest.mark.parametrize(
    ("cut", "devices", "counts"),
    [
        ("none", 2, (1, 2)),
        pytest.param("none", 8, (2, 4), marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param("parameters", 8, (2, 4), marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_processes_equal_devices_bit_for_bit(trained: Any, cut: str, devices: int, counts: tuple[int, int]) -> None:
    """2 x 1 = 1 x 2 and 2 x 4 = 4 x 2, dropout on, and nearly 1: fails if rows landed on a process that does not own them."""
    a, b = (trained(devices, sharing="none", cut=cut, count=count) for count in counts)
    for what in ("params", "losses", "fingerprint"):
        np.testing.assert_array_equal(a[what], b[what])
    np.testing.assert_allclose(b["params"], trained(1, sharing="none")["params"], atol=1e-5)


@pytest.mark.slow
def test_nsp_reads_other_devices_rows(trained: Any) -> None:
    """Its negatives come from other rows of the global batch, wherever they are."""
    np.testing.assert_allclose(trained(8, objective="nsp")["params"], trained(1, objective="nsp")["params"], atol=1e-5)


@pytest.mark.slow
def test_accumulated_equals_whole(trained: Any) -> None:
    """Rows have unequal numbers of masked tokens: fails if micro-batches' mean losses were averaged."""
    np.testing.assert_allclose(trained(1, accumulation=4)["params"], trained(1)["params"], atol=1e-5)
    np.testing.assert_allclose(trained(8, accumulation=2)["params"], trained(1)["params"], atol=1e-5)


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_gradient_all_reduce_outside_every_loop(trained: Any, accumulation: int) -> None:
    """Fails without the `pcast` in `partition.summed_gradients`: jit then reduces the shared layer in each iteration."""
    run = trained(8, accumulation)
    found = collectives(str(run["text"]))
    assert all(computation.startswith("ENTRY") for computation, _ in found), found
    # The gradients' is the one that holds a kernel; the others are sums of weights, scalars.
    assert sum("f32[1,32,64]" in instruction or "f32[32,64]" in instruction for _, instruction in found) == 1
    assert {re.search(r"= .*?(all-\w+|collective-\w+|reduce-scatter)", line)[1] for _, line in found} == {"all-reduce"}  # type: ignore[index]


def test_fingerprint_is_the_same_on_any_devices_and_sees_one_bit() -> None:
    """Every bit of a small array counts, so does order; sharded over devices it is the same sum (integers)."""
    array = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    mark = np.asarray(fingerprint({"a": jnp.asarray(array)}))
    bits = array.view(np.uint32)
    for at in range(bits.size):
        for bit in range(32):
            flipped = bits.copy()
            flipped.flat[at] ^= np.uint32(1 << bit)
            assert not np.array_equal(
                np.asarray(fingerprint({"a": jax.lax.bitcast_convert_type(jnp.asarray(flipped), jnp.float32)})), mark
            )
    swapped = array.copy()
    swapped[0, 0], swapped[3, 2] = array[3, 2], array[0, 0]
    assert not np.array_equal(np.asarray(fingerprint({"a": jnp.asarray(swapped)})), mark)


def test_prefetch_keeps_order_and_loses_nothing() -> None:
    mesh, *_ = make(1)
    data = batches()
    ahead = list(partition.prefetch(mesh, iter(data)))
    assert len(ahead) == len(data)
    for put, given in zip(ahead, data, strict=True):
        np.testing.assert_array_equal(put["tokens"], given["tokens"])


def test_loss_falls_on_a_batch_seen_again_and_again() -> None:
    """The whole machine learns: dropout off, one batch, its loss well below the uniform distribution's 5.70 + 0.69."""
    mesh, step, init, rest = make(1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    state = init(rest[0])
    batch = partition.put_batch(mesh, batches()[0])
    losses = []
    for _ in range(60):
        state, metrics = step(state, batch, *rest)
        losses.append(float(metrics["loss"][0]))
    assert losses[0] == pytest.approx(np.log(300) + np.log(2), abs=0.1)
    assert losses[-1] < losses[0] - 0.5


def test_five_steps_losses(trained: Any) -> None:
    """The one golden: the losses of five steps.  If they changed, something of initialisation, masks, dropout, model, loss or
    optimiser changed; update them only if that was the intention, and say so in CHANGELOG.md: no old run can be resumed."""
    np.testing.assert_allclose(trained(1)["losses"], GOLDEN, atol=2e-4)


GOLDEN = [6.397042, 6.411024, 6.385527, 6.395838, 6.405540]


@pytest.mark.slow
def test_whole_run_on_two_devices(small: Any, tmp_path: Path) -> None:
    """Training, evaluation, checkpoint and resume through the command line; fails if an array of one device is handed to
    a computation on both."""
    environment = os.environ | {"XLA_FLAGS": f"{FAST_COMPILE} --xla_force_host_platform_device_count=2"}
    words = small(
        tmp_path / "run",
        train__num_train_steps=4,
        train__eval_every=2,
        train__checkpoint_every=2,
        mesh__data=2,
        optim__num_warmup_steps=1,
    )
    for launch in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "albert_jax", *words], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "on 2 cpu" in done.stderr
        assert ("resuming after step 4" in done.stderr) == (launch == 1)


@pytest.mark.slow
@pytest.mark.parametrize("buckets", [False, True])
def test_no_step_compiles_again(
    small: Any,
    short_corpus: Path,
    compiled_steps: list[Any],
    buckets: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the second step, the first evaluation and the first checkpoint nothing is compiled any more, but for one step of
    each width where there are length buckets.  Fails if an array comes to the step with another type or sharding than before.
    """
    compiled: list[str] = []
    counts: dict[int, int] = {}
    write = MetricsLog.write

    def counted(log: MetricsLog, step: int, values: dict[str, float]) -> None:
        counts[step] = len(compiled)  # of a step one later is under way already
        write(log, step, values)

    def heard(event: str, duration: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    monkeypatch.setattr(MetricsLog, "write", counted)
    jax.monitoring.register_event_duration_secs_listener(heard)
    rhythm = {"train__num_train_steps": 16, "train__eval_every": 4, "train__checkpoint_every": 4}
    assert main(small(tmp_path / "run", **rhythm, data__source=short_corpus, length_buckets=buckets)) == 0
    assert counts[1] > 0
    widths = 2 if buckets else 1  # 16 and the whole length, 32
    assert len(compiled_steps) == widths
    assert counts[3] - counts[2] <= widths - 1
    assert counts[15] - counts[5] <= widths - 1


def test_peak_flops_of_what_is_not_known() -> None:
    assert peak_flops(partition.make_mesh("any")) is None


def test_state_is_donated() -> None:
    """The state given to a step cannot be used again: its memory is the new one's."""
    mesh, step, init, rest = make(1)
    state = init(rest[0])
    old = state.params["pooler"]["kernel"]
    step(state, partition.put_batch(mesh, batches()[0]), *rest)
    assert old.is_deleted()
