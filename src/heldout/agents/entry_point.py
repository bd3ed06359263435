"""Hosts an entry point (`file.py:function`, `package.module:function`) in supervised worker processes."""

import asyncio
import math
import os
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

from heldout.agents.base import Agent, AgentSettings, Invocation, InvocationResult, LoadedCode, Outcome
from heldout.agents.entry_point_lookup import check_entry_point, parse_entry_point
from heldout.agents.launcher import WorkerProblem, WorkerSettings, WorkerStarter
from heldout.agents.prestart import FORKS
from heldout.agents.worker_process import CANCEL_ANSWER_SECONDS, WorkerGone, WorkerProcess
from heldout.background import backoff_seconds
from heldout.errors import JobFailed, ReferenceProblem
from heldout.http.connections import Connections
from heldout.job.kinds.base import SourceFile
from heldout.job.kinds.entry_point import EntryPoint

_GIVE_UP_AFTER = 3
"""After so many failed starts in a row, with no worker left, the agent counts as unreachable until a start succeeds."""
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0
_KEEP_SECONDS = 60.0
_CONNECT_SECONDS = 30.0
"""A worker whose loop is busy accepts a connection late; one that has ended refuses at once."""
_SPREAD_SECONDS = 5.0
"""How long the first attempts wait for workers that are still starting, so that the first worker does not get them all."""
_ATTEMPTS_PER_WORKER = 12
"""With more attempts per worker, httpx (and so the openai client) gets slow: for each call it searches all connections of its
pool once per idle one, and a rollout has one connection."""
_MOST_PER_CORE = 4
_FURTHER_AFTER_SECONDS = 0.5
"""How long the first workers, one per core, have the processors to themselves, so that the first attempts begin soon."""


def make(agent: EntryPoint, settings: AgentSettings) -> "EntryPointAgent":
    """Builds the host of an entry point. Raises ReferenceProblem when it is not one."""
    return EntryPointAgent(agent.entry_point, environment=settings.environment, concurrency=settings.concurrency)


def check(agent: EntryPoint, folder: Path) -> None:
    """Checks that the file or module is there and defines the function, without running it. Raises ReferenceProblem."""
    check_entry_point(agent.entry_point, working_directory=folder)


def sources(agent: EntryPoint) -> Iterator[SourceFile]:
    """Yields the agent with its file; an installed module has none."""
    yield SourceFile(agent.text, agent.text, agent.entry_point.rpartition(":")[0])


class EntryPointAgent(Agent):
    """Plays attempts in worker processes, each attempt on the worker that plays the fewest.

    Replaces a worker that dies. Replaces one with an attempt that cannot be cancelled, once its other attempts are done.
    """

    def __init__(
        self,
        entry_point: str,
        *,
        environment: Mapping[str, str],
        concurrency: int = 1,
        workers: int | None = None,
        working_directory: Path | None = None,
        forks: bool = FORKS,
        cores: int | None = None,
        further_after_seconds: float = _FURTHER_AFTER_SECONDS,
        cancel_answer_seconds: float = CANCEL_ANSWER_SECONDS,
    ) -> None:
        """Prepares the agent; starts nothing. Raises ReferenceProblem when `entry_point` is not an entry point.

        environment: variables of the workers, on top of this process's own.
        concurrency: the most attempts that play at once.
        workers: how many processes. By default one per core; where workers share the import of httpx, one per 12 attempts that
        play at once, if that is more.
        forks: whether workers are forks of one process that has imported known packages, or new interpreters.
        cores: by default those of this machine.
        further_after_seconds: when workers beyond one per core start, after the first one serves.
        cancel_answer_seconds: a worker that does not answer a cancellation within this time counts as blocked.
        """
        parse_entry_point(entry_point)
        folder = (working_directory or Path.cwd()).resolve()
        self._settings = WorkerSettings(entry_point, {**os.environ, **environment}, folder, forks)
        self._starter = WorkerStarter(self._settings)
        self._further_after_seconds = further_after_seconds
        self._cancel_answer_seconds = cancel_answer_seconds
        self._num_workers = workers or cores or os.cpu_count() or 1
        wanted = min(math.ceil(concurrency / _ATTEMPTS_PER_WORKER), _MOST_PER_CORE * self._num_workers)
        self._num_further = 0 if workers else max(0, wanted - self._num_workers)
        self._connections: Connections | None = None
        self._ready: list[WorkerProcess] = []
        self._processes: set[WorkerProcess] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(2 * (self._num_workers + self._num_further))
        """Bounds the retired workers that still play while their replacements run."""
        self._isolated_room = asyncio.Semaphore(self._num_workers)
        self._changed = asyncio.Event()
        self._num_waiting = 0
        self._num_starting = 0
        self._num_failures = 0
        self._problem = ""
        self._may_pass = False
        """Whether the latest problem lies outside the agent."""
        self._files: dict[str, set[str]] = {}
        self._packages: set[str] = set()

    @property
    def loaded_code(self) -> LoadedCode:
        """The code that the workers have loaded: at their start and, once they were stopped, during attempts."""
        entry_point = parse_entry_point(self._settings.entry_point)
        folder = self._settings.working_directory
        return LoadedCode(
            folder=(folder / entry_point.source).parent if entry_point.is_file else folder,
            files={name: frozenset(digests) for name, digests in self._files.items()},
            packages=frozenset(self._packages),
        )

    async def start(self) -> None:
        """Starts all workers; returns when the first serves.

        Raises ReferenceProblem when the agent cannot be loaded. A worker that is killed, or refused by the system, is started
        again; raises JobFailed when no worker starts in several tries.
        """
        check_entry_point(self._settings.entry_point, working_directory=self._settings.working_directory)
        self._connections = Connections(keep_alive_seconds=_KEEP_SECONDS, connect_seconds=_CONNECT_SECONDS)
        self._num_starting = self._num_workers
        for _ in range(self._num_workers):
            self._in_background(self._keep_worker())
        self._in_background(self._keep_further())
        while not self._ready and not self._cannot_start():
            await self._changed.wait()
        if not self._ready:
            await self.stop()
            if self._may_pass:
                raise JobFailed(f"{self._problem}; {self._num_failures} starts failed")
            raise ReferenceProblem(self._problem)
        asyncio.get_running_loop().call_later(_SPREAD_SECONDS, self._stop_spreading)

    async def stop(self) -> None:
        """Ends every worker, after at most two seconds for the agent's own clean-up."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(worker.close() for worker in list(self._processes)))
        await self._starter.close()
        self._ready.clear()
        if self._connections is not None:
            self._connections.close()

    async def invoke(self, invocation: Invocation) -> InvocationResult:
        """Plays one attempt on the least loaded worker; an isolated one in a process of its own."""
        if invocation.is_isolated:
            return await self._play_isolated(invocation)
        while (worker := await self._next_worker()) is not None:
            try:
                return await worker.play(invocation)
            except WorkerGone:
                self._retire(worker)
        return InvocationResult(_outcome(may_pass=self._may_pass), message=self._problem)

    async def is_busy(self) -> bool:
        """Whether the agent in any worker reports work in the background."""
        return any(await asyncio.gather(*(worker.is_busy() for worker in self._processes)))

    def _cannot_start(self) -> bool:
        """Whether the agent is the problem, or starting it again has not helped."""
        return self._num_failures >= (_GIVE_UP_AFTER * self._num_workers if self._may_pass else 1)

    async def _play_isolated(self, invocation: Invocation) -> InvocationResult:
        async with self._isolated_room:
            worker = self._new_worker()
            try:
                await worker.start()
                return await worker.play(invocation)
            except (WorkerProblem, WorkerGone) as problem:
                may_pass = isinstance(problem, WorkerProblem) and problem.may_pass
                return InvocationResult(_outcome(may_pass=may_pass), message=str(problem))
            finally:
                self._in_background(worker.close())

    async def _next_worker(self) -> WorkerProcess | None:
        """Waits for a worker to play on; None when workers can no longer start."""
        self._num_waiting += 1
        try:
            while (worker := self._least_loaded()) is None:
                if self._num_failures >= _GIVE_UP_AFTER and not self._ready:
                    return None
                await self._changed.wait()
            return worker
        finally:
            self._num_waiting -= 1

    def _least_loaded(self) -> WorkerProcess | None:
        usable = [worker for worker in self._ready if not worker.retired.is_set()]
        worker = min(usable, key=lambda usable: usable.num_playing, default=None)
        if worker is None or not self._num_starting:
            return worker
        total = sum(ready.num_playing for ready in self._ready) + self._num_waiting
        return worker if worker.num_playing < math.ceil(total / self._num_workers) else None

    async def _keep_worker(self) -> None:
        """Keeps one worker running: starts it, and another when it retires, with pauses when starts fail."""
        is_first = True
        while True:
            await self._room.acquire()
            worker = self._new_worker()
            worker.exited.add_done_callback(lambda _: self._room.release())
            try:
                await worker.start()
            except WorkerProblem as problem:
                self._note_failure(str(problem), may_pass=problem.may_pass)
            else:
                self._num_failures = 0
                self._ready.append(worker)
            if is_first and self._num_starting:  # `_stop_spreading` may have set it to zero
                self._num_starting -= 1
            is_first = False
            self._notify()
            if worker in self._ready:
                await worker.retired.wait()
                self._retire(worker)
                if worker.num_taken:
                    continue
                self._note_failure("the agent's process ended before it was given anything to play")
            await asyncio.sleep(backoff_seconds(_FIRST_PAUSE_SECONDS, self._num_failures, _LONGEST_PAUSE_SECONDS))

    async def _keep_further(self) -> None:
        """Keeps more workers than cores where they share the import of httpx: only there they gain more than they cost."""
        if not self._num_further:
            return
        while not self._ready:
            await self._changed.wait()
        if not self._starter.preloads_httpx:
            return
        self._num_workers += self._num_further
        self._num_starting += self._num_further
        await asyncio.sleep(self._further_after_seconds)
        for _ in range(self._num_further):
            self._in_background(self._keep_worker())

    def _new_worker(self) -> WorkerProcess:
        assert self._connections is not None  # `start` comes before `invoke`
        worker = WorkerProcess(
            self._settings,
            self._starter,
            self._connections,
            cancel_answer_seconds=self._cancel_answer_seconds,
            on_loaded=self._note_loaded,
        )
        self._processes.add(worker)
        worker.exited.add_done_callback(lambda _: self._processes.discard(worker))
        return worker

    def _retire(self, worker: WorkerProcess) -> None:
        if worker in self._ready:
            self._ready.remove(worker)

    def _note_loaded(self, loaded: Mapping[str, Any]) -> None:
        for name, digest in loaded["files"].items():
            self._files.setdefault(name, set()).add(digest)
        self._packages.update(loaded["packages"])

    def _note_failure(self, problem: str, *, may_pass: bool = False) -> None:
        self._num_failures += 1
        self._problem = problem
        self._may_pass = may_pass

    def _stop_spreading(self) -> None:
        self._num_starting = 0
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _outcome(*, may_pass: bool) -> Outcome:
    """The outcome of an attempt without a worker. may_pass: whether the reason lies outside the agent."""
    return Outcome.EXHAUSTED if may_pass else Outcome.UNREACHABLE
