"""Checkpoints of a synthetic state: corruption, full disks, quarantine."""

import errno
import gc
import logging
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.config import InputError
from albert_jax.training import checkpoint
from albert_jax.training.checkpoint import Best, Checkpoints, has_checkpoint, restore_params
from albert_jax.training.integrity import fingerprint
from albert_jax.training.partition import Layout, make_mesh

from .conftest import largest_file


def state(step: int) -> dict[str, Any]:
    """A state of 140 KB.  The states of two steps have no value in common."""
    rng = np.random.default_rng(step)
    kernels = {f"kernel_{i}": jnp.asarray(rng.normal(size=(2, 60 + i, 70)), jnp.float32) for i in range(4)}
    return {
        "params": kernels,
        "opt_state": {"mu": jnp.asarray(rng.normal(size=(300, 7)), jnp.float32)},
        "step": jnp.int32(step),
    }


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


TARGET = abstract(state(0))


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("intact") / "checkpoints"
    writer = Checkpoints(folder, keep=2, data={"corpus": "a"})
    for step in (1, 2):
        writer.save(step, state(step), {"tokens": float(step)})
    writer.close()
    return folder


@pytest.fixture
def folder(intact: Path, tmp_path: Path) -> Path:
    """A copy of `intact`."""
    return Path(shutil.copytree(intact, tmp_path / "checkpoints"))


def restored_step(folder: Path) -> int:
    """Restore a folder, and check that every value is that of the step that was restored."""
    reader = Checkpoints(folder, keep=2)
    restored = reader.restore(TARGET)
    reader.close()
    assert restored is not None
    step = int(restored[0]["step"])
    jax.tree.map(np.testing.assert_array_equal, restored[0], state(step))
    assert restored[1] == {"tokens": float(step)}
    return step


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def truncate(step: Path) -> None:
    """Cut off all files of arrays: Orbax does not write the parameters into the same one every time."""
    for path in step.glob("state/ocdbt.process_0/d/*"):
        path.write_bytes(path.read_bytes()[:100])


def flip(path: Path, where: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[where.randrange(len(data))] ^= 1 << where.randrange(8)
    path.write_bytes(data)


def test_newest_checkpoint_is_restored(folder: Path) -> None:
    assert restored_step(folder) == 2
    assert names(folder) == {"1", "2"}


@pytest.mark.parametrize("flips", [15, pytest.param(200, marks=pytest.mark.long)])
def test_flipped_bits(flips: int, intact: Path, tmp_path: Path) -> None:
    """A flipped bit in any file never gives a wrong value: either it is harmless, or the step before is restored."""
    files = sorted(
        path.relative_to(intact) for path in (intact / "2").rglob("*") if path.is_file() and path.stat().st_size
    )
    largest, where = largest_file(intact / "2").relative_to(intact), random.Random(flips)
    harmless_in_arrays = 0
    for number in range(flips):
        folder = Path(shutil.copytree(intact, tmp_path / str(number)))
        path = where.choice(files) if number % 4 == 3 else largest
        flip(folder / path, where)
        step = restored_step(folder)
        assert (folder / "2.quarantined").exists() == (step == 1)
        harmless_in_arrays += step == 2 and path == largest
    assert harmless_in_arrays <= max(1, flips // 20)


def test_flipped_bit_is_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Orbax loads such a file silently.  Fails if the fingerprints are not compared."""
    data = bytearray(largest_file(folder / "2").read_bytes())
    data[len(data) // 2] ^= 1
    largest_file(folder / "2").write_bytes(data)
    assert restored_step(folder) == 1
    assert "2 is corrupted (fingerprint mismatch in" in caplog.text
    assert "renamed to 2.quarantined" in caplog.text


def test_metadata_with_another_number(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is JSON still; its checksum tells."""
    path = folder / "2/meta/metadata"
    path.write_text(path.read_text().replace('"tokens": 2.0', '"tokens": 3.0'))
    assert restored_step(folder) == 1
    assert "checksum mismatch in meta" in caplog.text


def test_truncated_checkpoint(folder: Path) -> None:
    truncate(folder / "2")
    assert restored_step(folder) == 1
    assert names(folder) == {"1", "2.quarantined"}


def test_quarantined_names_are_not_reused(folder: Path) -> None:
    (folder / "2.quarantined").mkdir()
    truncate(folder / "2")
    assert restored_step(folder) == 1
    assert names(folder) == {"1", "2.quarantined", "2.quarantined-2"}


def test_bare_folder_is_no_checkpoint(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Orbax alone takes a folder with a number for the latest step."""
    (folder / "3").mkdir()
    assert restored_step(folder) == 2
    assert "3 is corrupted (no commit marker)" in caplog.text
    assert names(folder) == {"1", "2", "3.quarantined"}


def test_all_checkpoints_corrupted(folder: Path) -> None:
    """The run does not start again silently, and nothing is renamed."""
    truncate(folder / "1")
    truncate(folder / "2")
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"all checkpoints are corrupted \(2: .*; 1: .*\); use a different run folder"
        ):
            restored_step(folder)
    assert names(folder) == {"1", "2"}


def test_failing_disk_is_not_corruption(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if any error quarantines good checkpoints."""

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "_read_meta", fail)
    with pytest.raises(OSError, match="Input/output"):
        restored_step(folder)
    assert names(folder) == {"1", "2"}


def test_load_passes_over_a_corrupted_checkpoint(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged in one line, and left where it is: the run may belong to somebody else."""
    truncate(folder / "2")
    params = restore_params(folder, TARGET["params"])
    jax.tree.map(np.testing.assert_array_equal, params, state(1)["params"])
    assert [record.getMessage().count("checkpoint 2 is corrupted") for record in caplog.records] == [1]
    assert "using checkpoint 1 instead" in caplog.text
    assert names(folder) == {"1", "2"}


def test_load_of_nothing(tmp_path: Path, folder: Path) -> None:
    assert not has_checkpoint(tmp_path / "none")
    assert has_checkpoint(folder)
    shutil.rmtree(folder / "2/state")
    shutil.rmtree(folder / "1/state")
    assert not has_checkpoint(folder)
    with pytest.raises(InputError, match="no checkpoint in this folder"):
        restore_params(tmp_path / "none", TARGET["params"])
    with pytest.raises(InputError, match=r"no checkpoint at step 3; there are 1, 2"):
        restore_params(folder, TARGET["params"], step=3)


def test_load_of_a_different_shape(folder: Path) -> None:
    target = TARGET["params"] | {"kernel_1": jax.ShapeDtypeStruct((2, 61, 71), jnp.float32)}
    with pytest.raises(
        InputError, match=r"params/kernel_1 has shape \[2, 61, 70\], but the model expects \[2, 61, 71\]"
    ):
        restore_params(folder, target)
    del target["kernel_1"]
    with pytest.raises(InputError, match=r"params/kernel_1 has shape \[2, 61, 70\], but the model expects None"):
        restore_params(folder, target)


@pytest.mark.parametrize(("saved", "restored"), [(1, 4), (4, 1), (8, 2)])
def test_restore_on_a_different_number_of_devices(saved: int, restored: int, tmp_path: Path) -> None:
    def placed(devices: int) -> Any:
        layout = Layout(make_mesh("any", devices), "parameters")
        return {
            name: layout.placed(part, state(7)[name])
            for name, part in (("params", "params"), ("opt_state", "opt_state"))
        }

    writer = Checkpoints(tmp_path, keep=1)
    tree = {name: state(7)[name] for name in ("params", "opt_state")}
    writer.save(7, jax.tree.map(lambda x, at: jax.device_put(x, at.sharding), tree, placed(saved)), {})
    writer.close()
    reader = Checkpoints(tmp_path, keep=1)
    found = reader.restore(placed(restored))
    reader.close()
    assert found is not None
    jax.tree.map(np.testing.assert_array_equal, found[0], tree)
    kernel = found[0]["params"]["kernel_0"]
    assert len(kernel.sharding.device_set) == restored
    assert kernel.is_fully_replicated == (restored == 1)


def test_different_data(folder: Path) -> None:
    reader = Checkpoints(folder, keep=2, data={"corpus": "b"})
    with pytest.raises(InputError, match=r"checkpoint 2 was trained on different data \(corpus: 'a' -> 'b'\)"):
        reader.restore(TARGET)
    assert reader.restore(TARGET, allow_data_change=True) is not None
    reader.close()


def test_which_checkpoints_are_kept(tmp_path: Path) -> None:
    writer = Checkpoints(tmp_path, keep=2, keep_every=4)
    for step in range(1, 11):
        writer.save(step, {"x": jnp.float32(step)}, {})
    writer.close()
    assert names(tmp_path) == {"4", "8", "9", "10"}


LIMIT = 20_000
"""Bytes of the largest file on the full disk: less than the arrays of a step, more than the metadata."""


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond `LIMIT`: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk(folder: Path, full_disk: None, caplog: pytest.LogCaptureFixture) -> None:
    """Any number of checkpoints is lost without an error, and leaves nothing; only the last step must be written."""
    writer = Checkpoints(folder, keep=2)
    for step in range(3, 9):
        writer.save(step, state(step), {"tokens": float(step)})
    with pytest.raises(
        InputError, match=r"checkpoint 8 could not be written \(.*\); make room and rerun .* from step 2"
    ):
        writer.finish(8)
    assert caplog.text.count("training continues") == 6
    assert names(folder) == {"1", "2"}
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.save(9, state(9), {"tokens": 9.0})
    writer.finish(9)
    assert writer.lost == {}
    writer.close()
    assert names(folder) == {"2", "9"}
    assert restored_step(folder) == 9


def test_other_errors_end_the_run_at_the_third(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Checkpoints(folder, keep=2)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as broken:
        broken.setattr(writer._manager, "save", fail)
        writer.save(3, state(3), {})
        writer.save(4, state(4), {})
        with pytest.raises(OSError, match="Permission denied"):
            writer.save(5, state(5), {})
    writer.close()


def test_no_room_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = shutil.disk_usage(tmp_path)._replace(free=500_000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: room)
    writer = Checkpoints(tmp_path, keep=3)
    with pytest.raises(
        InputError, match=r"4 checkpoints of 0.00015 GB need 0.00058 GB, but 0.0005 GB are free; make room"
    ):
        writer.check_space(TARGET)
    writer.close()


def test_best_that_could_not_be_written_is_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if it counted as stored: the next, slightly worse one would not be stored."""
    best, params = Best(tmp_path / "best"), {"kernel": jnp.ones((2, 2))}
    best.offer(1, "f1", params, {"f1": 0.5})
    with monkeypatch.context() as full:
        full.setattr(Checkpoints, "_free_bytes", lambda self: 0.0)
        best.offer(2, "f1", params, {"f1": 0.9})
    assert (best.step, best.metrics) == (1, {"f1": 0.5})
    best.offer(3, "f1", params, {"f1": 0.8})
    best.offer(4, "f1", params, {"f1": 0.7})
    best.close()
    again = Best(tmp_path / "best")
    assert (again.step, again.metrics) == (3, {"f1": 0.8})
    again.close()


def test_corrupted_best_is_quarantined(tmp_path: Path) -> None:
    best = Best(tmp_path)
    best.offer(1, "f1", {"kernel": jnp.ones((2, 2))}, {"f1": 0.5})
    best.close()
    (tmp_path / "1/meta/metadata").write_text("{")
    again = Best(tmp_path)
    assert again.step is None
    again.close()
    assert names(tmp_path) == {"1.quarantined"}


def test_fingerprint_sees_each_bit_and_the_order() -> None:
    array = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    bits = array.view(np.uint32)
    changed = [bits]
    for position in range(bits.size):
        for bit in range(32):
            flipped = bits.copy()
            flipped.flat[position] ^= np.uint32(1 << bit)
            changed.append(flipped)
    swapped = bits.copy()
    swapped[0, 0], swapped[3, 2] = bits[3, 2], bits[0, 0]
    changed.append(swapped)
    marks = jax.jit(jax.vmap(fingerprint))(jnp.asarray(np.stack(changed)))
    assert not (np.asarray(marks[1:]) == np.asarray(marks[0])).all((1, 2)).any()


def test_fingerprint_is_the_same_on_any_number_of_devices() -> None:
    tree = state(3)["params"]
    layout = Layout(make_mesh("any", 8), "parameters")
    sharded = jax.tree.map(lambda x, at: jax.device_put(x, at.sharding), tree, layout.placed("params", tree))
    np.testing.assert_array_equal(jax.jit(fingerprint)(sharded), jax.jit(fingerprint)(tree))


class Recorder(logging.Handler):
    """Collects records."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def test_orbax_prints_nothing_of_its_own(
    folder: Path, full_disk: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If arrays cannot be read or written, all that the user sees comes from our own logger."""
    monkeypatch.setattr(logging.root, "handlers", [])  # those of an earlier test write to its closed stderr
    recorder = Recorder()
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addHandler(recorder)
    truncate(folder / "2")
    assert restored_step(folder) == 1
    writer = Checkpoints(folder, keep=2)
    writer.save(3, state(3), {})
    writer.close()
    gc.collect()
    for name in ("absl", "asyncio"):
        logging.getLogger(name).removeHandler(recorder)
    assert recorder.records == []
    assert "Traceback" not in capfd.readouterr().err
