"""Several processes as one run: how they find each other, agree, stop at the same step, and end together if one fails."""

import contextlib
import faulthandler
import hashlib
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from albert_jax.config import InputError, check_fields, first_line

HEARTBEAT_SECONDS = 10
"""A process that is silent for this long is dead, and the others end; JAX's default is 100."""

STUCK = 75
"""Exit code of a process that the watchdog ended (EX_TEMPFAIL: a scheduler may start it again)."""

LAST_WORDS_SECONDS = 10.0
"""Process 0 exits this much later than the others: when it dies, JAX kills them all, even before they print their stacks."""


@dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a run find each other.  Not needed on TPU pods, under Slurm and Open MPI, where JAX knows."""

    coordinator: str = ""
    """HOST:PORT of process 0, the same in all processes; the port must be free on that host."""
    num_processes: int = 0
    """Number of processes; 1: run alone, even in a cluster."""
    process_id: int = -1
    """Number of this process, from 0."""
    timeout: int = 300
    """Seconds that processes wait for each other at the start."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.timeout < 1:
            raise InputError(f"timeout must be at least 1, got {self.timeout}")
        if not self.coordinator:
            if self.num_processes not in (0, 1) or self.process_id not in (-1, 0):
                raise InputError("num_processes and process_id need coordinator, HOST:PORT of process 0")
            return
        host, colon, port = self.coordinator.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
            raise InputError(f"coordinator: expected HOST:PORT, got {self.coordinator!r}")
        if self.num_processes < 1:
            raise InputError("num_processes: give the number of processes that use the coordinator")
        if not 0 <= self.process_id < self.num_processes:
            raise InputError(f"process_id must be in [0, num_processes = {self.num_processes}), got {self.process_id}")


def start(config: DistributedConfig) -> None:
    """Connect to the other processes, if there are any.  Call it before anything else in JAX.

    Raises:
      InputError: a process is missing, processes have different settings, or the port is taken.
    """
    if config.num_processes == 1 or not (config.coordinator or _in_cluster()):
        return
    address: dict[str, Any] = {}  # JAX finds it in a cluster
    if config.coordinator:
        _roll_call(config)
        address = {
            "coordinator_address": config.coordinator,
            "num_processes": config.num_processes,
            "process_id": config.process_id,
        }
    # JAX's preemption service would handle SIGTERM itself; it costs 3 ms per step on a CPU, and ignores SIGINT.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **address,
            initialization_timeout=config.timeout,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=60,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"--distributed: JAX cannot connect the processes: {first_line(error)}; to run alone, pass "
            "--distributed.num-processes 1"
        ) from None
    if not is_main():
        logging.getLogger("albert_jax").setLevel(logging.ERROR)


def _in_cluster() -> bool:
    """Whether this is one of several processes of a cluster that JAX detects."""
    slurm = "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    mpi = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    tpu = importlib.util.find_spec("libtpu") is not None and any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))
    return slurm or mpi or (tpu and "cpu" not in os.environ.get("JAX_PLATFORMS", ""))


def _roll_call(config: DistributedConfig) -> None:
    """Wait until all processes are present.

    It uses the coordinator's port before JAX does: JAX's own wait ends in an abort that does not name the missing processes.
    """
    host, _, port = config.coordinator.rpartition(":")
    deadline = time.monotonic() + config.timeout
    if config.process_id == 0:
        error = _gather_peers(config, int(port), deadline)
    else:
        error = _report_to_main(config, host.strip("[]"), int(port), deadline)
    if error:
        raise InputError(error)


def _gather_peers(config: DistributedConfig, port: int, deadline: float) -> str:
    """In process 0: wait for the other processes, then send each the error, or an empty string."""
    try:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        server = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        return f"--distributed.coordinator {config.coordinator}: {os.strerror(error.errno or 0)}; use a different port"
    peers: dict[int, socket.socket] = {}
    message = ""
    with server, contextlib.ExitStack() as stack:
        while len(peers) < config.num_processes - 1 and not message:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                peer = stack.enter_context(server.accept()[0])
                peer.settimeout(5)
                number, count = json.loads(peer.recv(100))
            except TimeoutError:
                if time.monotonic() >= deadline:
                    missing = ", ".join(str(i) for i in range(1, config.num_processes) if i not in peers)
                    message = (
                        f"--distributed: waited {config.timeout} s: {len(peers) + 1} of {config.num_processes} processes "
                        f"joined (missing {missing}); look at their logs"
                    )
                continue
            except (OSError, ValueError, TypeError):  # a connection that is not from this run
                continue
            if count != config.num_processes:
                message = (
                    f"--distributed.num-processes is {count} in process {number}, {config.num_processes} in process 0"
                )
            elif number in peers:
                message = f"--distributed.process-id {number} was given to two processes"
            peers[number] = peer
        for peer in peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(json.dumps(message).encode())
    return message


def _report_to_main(config: DistributedConfig, host: str, port: int, deadline: float) -> str:
    """In the other processes: send this process' number and the number of processes; receive the error."""
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=5) as server:
                server.sendall(json.dumps([config.process_id, config.num_processes]).encode())
                server.settimeout(max(deadline - time.monotonic(), 0) + 5)
                if reply := server.recv(1000):
                    return json.loads(reply)
        except OSError:
            pass
        time.sleep(0.1)
    return (
        f"--distributed: waited {config.timeout} s: process 0 does not answer at {config.coordinator}; look at its log"
    )


def is_main() -> bool:
    """Whether this is process 0, the only one that logs and writes files (except checkpoints)."""
    return jax.process_index() == 0


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Run the block in process 0, and then in all others, which find the files that process 0 has written."""
    if not is_main():
        meet("main first")
    yield
    if is_main():
        meet("main first")


def meet(barrier: str) -> None:
    """Wait until all processes have arrived at this barrier."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(barrier)


def everywhere(condition: bool) -> bool:
    """Whether the condition holds in all processes."""
    return bool(gathered(np.array(condition)).all())


def gathered(value: np.ndarray) -> np.ndarray:
    """[processes, ...]: the value of each process."""
    if jax.process_count() == 1:
        return value[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value))


def agree(facts: dict[str, Any]) -> None:
    """Check that all processes have the same settings and the same data.

    Args:
      facts: name -> JSON value.

    Raises:
      InputError: the first name whose value differs, and the processes.
    """
    digests = [hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest() for value in facts.values()]
    values = gathered(np.frombuffer(b"".join(digests), np.uint8).reshape(len(facts), -1))
    for number, name in enumerate(facts):
        differing = [str(i) for i in range(len(values)) if (values[i, number] != values[0, number]).any()]
        if differing:
            raise InputError(
                f"{name} differs between process 0 and process {', '.join(differing)}; launch all processes with the same "
                "value"
            )


def check_shared(path: Path) -> None:
    """Check that all processes see a file that process 0 has written into the run folder.

    Raises:
      InputError: names the processes that do not.
    """
    meet("file written")
    visible = gathered(np.array(path.exists()))
    if missing := ", ".join(str(i) for i in np.flatnonzero(~visible.reshape(-1))):
        raise InputError(
            f"--run-dir {path.parent}: process {missing} does not see it; give a folder that all hosts share"
        )


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """If one of several processes fails, print the error and exit at once, so that the others end too.

    An orderly exit would wait 300 s for the others, which wait for this process in a collective.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        number = jax.process_index()
        code = 1
        if isinstance(error, InputError):
            print(f"albert-jax: error: process {number}: {error}", file=sys.stderr)
            code = 2
        elif isinstance(error, KeyboardInterrupt):  # before the train loop, which handles signals
            print(f"albert-jax: process {number} interrupted", file=sys.stderr)
            code = 128 + signal.SIGINT
        else:
            print(f"albert-jax: process {number} of {jax.process_count()} failed:", file=sys.stderr)
            traceback.print_exc()
        if is_main():  # its exit ends the others: let those that fail for the same reason print it first
            time.sleep(2)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


class Watchdog:
    """Ends this process with the stack of each thread if it has made no progress for `seconds`; only with several processes.

    JAX notices dead processes, not stuck ones: all others would wait forever.
    """

    def __init__(self, seconds: int) -> None:
        self._seconds, self._last, self._closed = seconds, time.monotonic(), threading.Event()
        if seconds and jax.process_count() > 1:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def feed(self) -> None:
        """Report progress."""
        self._last = time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._last > self._seconds:
                print(
                    f"albert-jax: error: process {jax.process_index()}: no step for {self._seconds} s "
                    "(train.watchdog_seconds): this process, or one that it waits for, is stuck; its stacks:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                if is_main():
                    time.sleep(LAST_WORDS_SECONDS)
                os._exit(STUCK)


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list that the train loop reads between steps.  The second signal exits at once.

    Only the main thread may handle signals: in another thread, as in some notebooks, the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(signum: int, frame: Any) -> None:
        if received:
            os._exit(128 + signum)
        received.append(signum)
        os.write(2, b"\nsaving after this step; send the signal again to exit at once\n")

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
