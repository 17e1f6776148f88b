"""Several processes as one run: how they find each other, agree, stop at the same step, and end together when one fails."""

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

from albert_jax.config import InputError, check_fields, require

HEARTBEAT_SECONDS = 10
"""A process that is dead so long ends the others; JAX's default is 100."""

STUCK = 75
"""Exit code of a process that the watchdog ended (EX_TEMPFAIL: a scheduler may start it again)."""

LAST_WORDS_SECONDS = 10.0
"""Process 0 ends so much later: JAX ends the others at once when it does, the stuck one among them, before its stacks are told."""


@dataclass(frozen=True)
class DistributedConfig:
    """Where the processes of a run meet; not needed on TPU pods, under Slurm and Open MPI, which JAX knows by itself."""

    coordinator: str = ""
    """HOST:PORT of process 0, the same in all processes; the port is free there."""
    num_processes: int = 0
    """How many processes there are; 1: this one alone, whatever cluster it finds itself in."""
    process_id: int = -1
    """Which of them this one is, from 0."""
    timeout: int = 300
    """Seconds that processes wait for each other at the start."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.timeout >= 1, f"timeout must be at least 1, got {self.timeout}")
        if not self.coordinator:
            alone = self.num_processes in (0, 1) and self.process_id in (-1, 0)
            require(alone, "num_processes and process_id need coordinator, HOST:PORT of process 0")
            return
        host, colon, port = self.coordinator.rpartition(":")
        right = bool(host and colon) and port.isdecimal() and 0 < int(port) < 2**16
        require(right, f"coordinator: expected HOST:PORT, got {self.coordinator!r}")
        require(self.num_processes >= 1, "num_processes: with a coordinator, say how many processes there are")
        within = 0 <= self.process_id < self.num_processes
        require(within, f"process_id must be in [0, num_processes = {self.num_processes}), got {self.process_id}")


def start(config: DistributedConfig) -> None:
    """Joins the other processes, if there are any; to be called before anything else of JAX.

    Raises:
      InputError: a process is missing or told another count; the port is taken; `--distributed` says other things than this.
    """
    given: dict[str, Any] = {}
    if config.num_processes == 1:
        return
    if config.coordinator:
        _roll_call(config)
        given = {
            "coordinator_address": config.coordinator,
            "num_processes": config.num_processes,
            "process_id": config.process_id,
        }
    elif not _detected():
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=config.timeout,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=60,
        )
    except (RuntimeError, ValueError) as error:
        told = f"--distributed: JAX cannot start several processes: {str(error).splitlines()[0]}"
        raise InputError(f"{told}; --distributed.num-processes 1 runs alone") from None
    if not is_main():
        logging.getLogger("albert_jax").setLevel(logging.ERROR)


def _detected() -> bool:
    """Whether this is one of several processes of a cluster whose coordinator JAX finds by itself."""
    slurm = "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    mpi = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    tpu = importlib.util.find_spec("libtpu") is not None and any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))
    return slurm or mpi or (tpu and "cpu" not in os.environ.get("JAX_PLATFORMS", ""))


def _roll_call(config: DistributedConfig) -> None:
    """Returns when all processes are there.  JAX's own wait ends in an abort that does not say who is missing."""
    host, _, port = config.coordinator.rpartition(":")
    deadline = time.monotonic() + config.timeout
    if config.process_id == 0:
        _call(config, int(port), deadline)
    else:
        _answer(config, host.strip("[]"), int(port), deadline)


def _call(config: DistributedConfig, port: int, deadline: float) -> None:
    """Process 0: waits for the others, then tells all of them to go, or what is wrong."""
    there: dict[int, socket.socket] = {}
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise InputError(
            f"--distributed.coordinator {config.coordinator}: {os.strerror(error.errno or 0)}; take another port"
        ) from None
    wrong = ""
    with server, contextlib.ExitStack() as stack:
        while len(there) < config.num_processes - 1 and not wrong:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                peer = stack.enter_context(server.accept()[0])
                peer.settimeout(5)
                number, count = json.loads(peer.recv(100))
            except TimeoutError:
                if time.monotonic() < deadline:
                    continue
                missing = ", ".join(str(i) for i in range(1, config.num_processes) if i not in there)
                found = f"{len(there) + 1} of {config.num_processes} processes joined (missing {missing})"
                wrong = f"--distributed: waited {config.timeout} s: {found}; look at their logs"
                break
            except (OSError, ValueError, TypeError):  # not one of ours
                continue
            if count != config.num_processes:
                wrong = (
                    f"--distributed.num-processes is {count} in process {number}, {config.num_processes} in process 0"
                )
            elif number in there:
                wrong = f"--distributed.process-id {number} was given to two processes"
            there[number] = peer
        for peer in there.values():
            with contextlib.suppress(OSError):
                peer.sendall(json.dumps(wrong).encode())
    require(not wrong, wrong)


def _answer(config: DistributedConfig, host: str, port: int, deadline: float) -> None:
    """Another: says its number and how many there are, and waits for what process 0 tells."""
    told = (
        f"--distributed: waited {config.timeout} s: process 0 does not answer at {config.coordinator}; look at its log"
    )
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=5) as peer:
                peer.sendall(json.dumps([config.process_id, config.num_processes]).encode())
                peer.settimeout(max(deadline - time.monotonic(), 0) + 5)
                said = peer.recv(1000)
            if said:
                require(not (wrong := json.loads(said)), wrong)
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise InputError(told)


def is_main() -> bool:
    """Whether this process is the one that prints and writes logs."""
    return jax.process_index() == 0


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The block is run by process 0, and then by all others, who find what it has written."""
    several = jax.process_count() > 1
    if several and not is_main():
        meet("main first")
    yield
    if several and is_main():
        meet("main first")


def meet(place: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(place)


def everywhere(condition: bool) -> bool:
    """Whether it holds in all processes."""
    return bool(gathered(np.array(condition)).all())


def gathered(value: np.ndarray) -> np.ndarray:
    """[processes, ...]: the value of each process."""
    if jax.process_count() == 1:
        return value[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value))


def agree(facts: dict[str, Any]) -> None:
    """Refuses to go on where a process was told, or reads, something else than the others.

    Args:
      facts: name -> what must be the same in all processes, JSON.

    Raises:
      InputError: the first name that differs, and the processes.
    """
    digests = [hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest() for value in facts.values()]
    found = gathered(np.frombuffer(b"".join(digests), np.uint8).reshape(len(facts), -1))
    for number, name in enumerate(facts):
        other = [str(i) for i in range(len(found)) if (found[i, number] != found[0, number]).any()]
        told = f"{name} is another in process {', '.join(other)} than in process 0; give all processes the same"
        require(not other, told)


def check_shared(path: Path) -> None:
    """Refuses a run folder that not all processes see, by a file in it that process 0 has made.

    Raises:
      InputError: naming the processes that do not.
    """
    meet("made by process 0")
    seen = gathered(np.array(path.exists()))
    blind = ", ".join(str(i) for i in np.flatnonzero(~seen.reshape(-1)))
    require(not blind, f"--run-dir {path.parent}: process {blind} does not see it; give a folder that all hosts share")


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Of several processes, one that fails shows why and ends at once, so that the others end too.

    Left to itself, it would wait for the others at a barrier, and they for it in a collective: 300 s.
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
        elif isinstance(error, KeyboardInterrupt):  # before the loop, which catches signals
            print(f"albert-jax: process {number} interrupted", file=sys.stderr)
            code = 128 + signal.SIGINT
        else:
            print(f"albert-jax: process {number} of {jax.process_count()} failed:", file=sys.stderr)
            traceback.print_exc()
        if is_main():  # it holds what connects the others: those that fail of the same may say so first
            time.sleep(2)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


class Watchdog:
    """Ends this process, with the stack of each thread, when nothing has happened for so many seconds: a peer that is alive but
    stuck would hold all others for ever.  Only where there are peers.
    """

    def __init__(self, seconds: int) -> None:
        self._seconds, self._last, self._done = seconds, time.monotonic(), threading.Event()
        if seconds and jax.process_count() > 1:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def feed(self) -> None:
        """Something has happened."""
        self._last = time.monotonic()

    def close(self) -> None:
        """Watches no more."""
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._last > self._seconds:
                told = f"no step for {self._seconds} s (train.watchdog_seconds): this process or one that it waits for is stuck"
                print(
                    f"albert-jax: error: process {jax.process_index()}: {told}; its stacks:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                if jax.process_index() == 0:
                    time.sleep(LAST_WORDS_SECONDS)
                os._exit(STUCK)


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Signals received, for the loop to look at between steps; the second one ends the process at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main one may
        yield received
        return

    def handle(signum: int, frame: Any) -> None:
        if received:
            os._exit(128 + signum)
        received.append(signum)
        os.write(2, b"\nsaving after this step; once more to exit at once\n")

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
