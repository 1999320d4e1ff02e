"""Who computes the cells: this process, spawned ones, or a Dask cluster. Each yields what is done as it is done."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import SpawnProcess
from typing import Any

from ..errors import InputError, ReconError
from .cells import Outcome, compute, failed
from .grid import Task

Done = Iterator[tuple[Task, Outcome]]
Runner = Callable[[Iterable[Task]], Done]

ATTEMPTS = 2
"""How often a cell may end its worker before that counts as its failure."""

PATIENCE = "20s"
"""How long to wait for a scheduler."""

_THREADS = tuple(f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA"))


class WorkerDied(Exception):
    """The process of a worker ended while at a cell: killed, for want of memory most often, or crashed."""


def here(tasks: Iterable[Task]) -> Done:
    """One cell after the other in this process."""
    for task in tasks:
        yield task, compute(task)


@dataclass
class _Worker:
    """A process, the pipe to it, and its cell; `ready` once it has loaded what it needs."""

    process: SpawnProcess
    pipe: connection.Connection
    task: Task | None = None
    ready: bool = False


def spawned(tasks: Iterable[Task], *, workers: int) -> Done:
    """In so many processes, which share the threads of this one. Spawned: a fork of a process with OpenMP may hang.

    A worker that dies is replaced, and its cell tried again.

    Raises
    ------
    ReconError
        If workers cannot start.
    """
    waiting, deaths = list(tasks)[::-1], Counter[Task]()
    crew = [_start(workers) for _ in range(min(workers, len(waiting)))]
    try:
        while waiting or any(worker.task for worker in crew):
            ready = connection.wait([worker.pipe for worker in crew])
            for worker in [worker for worker in crew if worker.pipe in ready]:
                task, worker.task = worker.task, None
                try:
                    answer = worker.pipe.recv()
                except (EOFError, OSError):  # its end is closed: it is dead
                    crew[crew.index(worker)] = _replace(worker, workers)
                    if task is not None:
                        deaths[task] += 1
                        if deaths[task] < ATTEMPTS:
                            waiting.append(task)
                        else:
                            how = f"its worker ended, {ATTEMPTS} times, with {worker.process.exitcode}"
                            yield task, failed(task, WorkerDied(how))
                    continue
                if isinstance(answer, Exception):
                    raise answer
                worker.ready = True
                if waiting:
                    worker.task = waiting.pop()
                    with suppress(OSError):  # dead meanwhile: it will be found so
                        worker.pipe.send(worker.task)
                if task is not None:
                    yield task, answer
    finally:
        for worker in crew:
            worker.pipe.close()
            worker.process.terminate()
        for worker in crew:
            worker.process.join()


def _replace(worker: _Worker, workers: int) -> _Worker:
    worker.process.join()
    if not worker.ready:
        raise ReconError(f"a worker could not start (exit {worker.process.exitcode}); see what it printed")
    return _start(workers)


def _start(workers: int) -> _Worker:
    """A process that is sent tasks. Libraries read their number of threads from the environment when they load."""
    import torch

    threads = max(1, torch.get_num_threads() // workers)
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    try:
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
    theirs.close()  # so that its end is seen here
    return _Worker(process, ours)


def _serve(pipe: Any, threads: int) -> None:
    """Compute what comes until nothing does."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the first one ends the others
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with suppress(EOFError, OSError):
        pipe.send(None)  # ready
        while True:
            try:
                answer: Any = compute(pipe.recv())
            except ReconError as error:
                answer = error
            pipe.send(answer)


def _follow_parent() -> None:
    """End with the parent, however it ends: what it will not keep need not be computed."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def on_cluster(tasks: Iterable[Task], *, address: str) -> Done:
    """On the workers of a Dask scheduler, to which a lost worker's cells return.

    Workers need this package, and the scans under the same paths.

    Raises
    ------
    InputError
        If Dask is not installed, or no scheduler answers.
    ReconError
        If the workers cannot compute at all, for want of the package say.
    """
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise InputError("cluster: expected Dask, found none; pip install 'tweedie-recon[cluster]'") from error
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"cluster: expected a Dask scheduler at {address}, got none ({error})") from error
    with client:
        futures = {client.submit(compute, task, pure=False): task for task in tasks}
        for future in as_completed(list(futures), loop=client.loop):
            task = futures.pop(future)
            if future.status in ("cancelled", "lost"):
                raise ReconError(
                    f"cluster: the scheduler at {address} is gone; the same command continues with another"
                )
            problem = future.exception()
            if isinstance(problem, KilledWorker):
                yield task, failed(task, WorkerDied(str(problem)))
            elif problem is not None:
                raise ReconError(f"cluster: the workers cannot compute ({problem})") from problem
            else:
                yield task, future.result()
