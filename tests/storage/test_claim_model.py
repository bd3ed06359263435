"""Claims, fences and journals of several machines under partitions, pauses, lost replies and wrong clocks.

The rules drive the real claim over objects in memory. The service's clock is the test's own. A pause is a point between two
requests of a machine at which another one takes over.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from heldout.errors import HeldoutError, JobFailed, StorageError
from heldout.runs.remote_sync import end_writer
from heldout.storage import Storage
from heldout.storage.claim import Claim, RemoteTimes
from heldout.storage.fence import FencedStorage
from tests.support.memory_files import Bucket, MemoryFiles

_MACHINES = st.integers(0, 2)
_FILES = st.sampled_from(["job.json", "rollouts.parquet"])


@dataclass
class Tenure:
    """One start of a machine, from its claim to its end. It writes as a mirror does."""

    claim: Claim
    epoch: int
    fence: FencedStorage
    next_number: int

    def write(self, name: str) -> None:
        self.fence.write(name, str(self.epoch).encode())

    def add_segment(self, folder: Path) -> None:
        path = folder / f"{self.next_number:06d}-{self.claim.token}.jsonl"
        path.write_bytes(str(self.epoch).encode())
        self.fence.add(f"journal/{path.name}", path)
        self.next_number += 1


class Machines(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.seconds = 0.0
        self.bucket = Bucket(lambda: self.seconds)
        self.files: list[MemoryFiles] = []
        self.partitioned: set[int] = set()
        self.tenures: dict[int, Tenure] = {}
        self.epochs = 0
        self.seen: dict[str, int] = {}
        self.ended: dict[str, set[str]] = {}

    @initialize(errors=st.tuples(*[st.sampled_from([0.0, 3600.0, -3600.0])] * 3))
    def give_machines_their_clocks(self, errors: tuple[float, ...]) -> None:
        for number, error in enumerate(errors):
            files = MemoryFiles(self.bucket, clock_error=error)
            files.on_request = self._passing(number)
            self.files.append(files)

    def _passing(self, machine: int) -> Callable[[str, str], None]:
        def passing(_method: str, name: str) -> None:
            if machine in self.partitioned:
                raise StorageError(f"no network for {name}")

        return passing

    def _sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def _storage(self, machine: int) -> Storage:
        return Storage("s3://bucket/run", self.files[machine])

    def _start(self, machine: int) -> None:
        storage = self._storage(machine)
        times = RemoteTimes(clock=lambda: self.seconds, sleep=self._sleep, refusal_waits_seconds=(0.1, 0.1))
        own = self.tenures.pop(machine, None)
        claim = Claim.take(
            storage,
            before=None if own is None else own.claim.token,
            note=lambda _: None,
            times=times,
            renews_itself=False,
        )
        self.epochs += 1
        epoch = self.epochs
        for token in reversed(claim.unfenced):
            end_writer(storage, token)
        ended = claim.unfenced
        claim.note_fenced()
        numbers = [int(file.name[8:14]) for file in storage.list("journal")]
        fence = FencedStorage(storage, claim, times=times)
        self.tenures[machine] = Tenure(claim, epoch, fence, max(numbers, default=0) + 1)
        for token in ended:
            self.ended[token] = self._segments_of(token)

    def _segments_of(self, token: str) -> set[str]:
        return {name for name, found in self.bucket.objects.items() if f"-{token}." in name and found.data}

    def _try(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(
            HeldoutError
        ):  # a machine may be refused at any time; what counts is what is in the bucket
            work()

    @rule(machine=_MACHINES)
    def start(self, machine: int) -> None:
        self._try(lambda: self._start(machine))

    @rule(machine=_MACHINES, name=_FILES)
    def write(self, machine: int, name: str) -> None:
        if machine in self.tenures:
            self._try(lambda: self.tenures[machine].write(name))

    @rule(machine=_MACHINES)
    def add_segment(self, machine: int) -> None:
        if machine in self.tenures:
            self._try(lambda: self.tenures[machine].add_segment(Path(self.folder.name)))

    @rule(machine=_MACHINES)
    def renew(self, machine: int) -> None:
        if machine in self.tenures:
            self._try(self.tenures[machine].claim.check)

    @rule(machine=_MACHINES)
    def release(self, machine: int) -> None:
        if machine in self.tenures:
            self.tenures[machine].claim.release()

    @rule(machine=_MACHINES)
    def cut_off(self, machine: int) -> None:
        self.partitioned.add(machine)

    @rule(machine=_MACHINES)
    def reconnect(self, machine: int) -> None:
        self.partitioned.discard(machine)

    @rule(machine=_MACHINES, is_losing=st.booleans())
    def lose_replies(self, machine: int, is_losing: bool) -> None:
        self.files[machine].loses_replies = is_losing

    @rule(seconds=st.sampled_from([1.0, 60.0, 3600.0]))
    def wait(self, seconds: float) -> None:
        self.seconds += seconds

    @rule(
        machine=_MACHINES,
        other=_MACHINES,
        after=st.integers(0, 6),
        what=st.sampled_from(["start", "job.json", "rollouts.parquet", "segment", "renew"]),
        leaves=st.booleans(),
    )
    def pause(self, machine: int, other: int, after: int, what: str, leaves: bool) -> None:
        """Stops `machine` before a request of its work, while `other` takes over, writes everything and may leave."""
        if other == machine or (what != "start" and machine not in self.tenures):
            return
        requests = 0

        def take_over() -> None:
            self.partitioned.discard(other)
            self._start(other)
            tenure = self.tenures[other]
            for name in ("rollouts.parquet", "job.json"):
                tenure.write(name)
            tenure.add_segment(Path(self.folder.name))
            if leaves:
                tenure.claim.release()

        def paused(method: str, name: str) -> None:
            nonlocal requests
            requests += 1
            if requests == after + 1:
                self._try(take_over)
            self._passing(machine)(method, name)

        self.files[machine].on_request = paused
        match what:
            case "start":
                self.start(machine)
            case "segment":
                self.add_segment(machine)
            case "renew":
                self.renew(machine)
            case _:
                self.write(machine, what)
        self.files[machine].on_request = self._passing(machine)

    @invariant()
    def a_file_never_goes_back_to_an_earlier_holder(self) -> None:
        for name in ("job.json", "rollouts.parquet"):
            if (found := self.bucket.objects.get(name)) is not None:
                assert int(found.data) >= self.seen.get(name, 0)
                self.seen[name] = int(found.data)

    @invariant()
    def a_journal_that_was_ended_grows_no_more(self) -> None:
        for token, names in self.ended.items():
            assert self._segments_of(token) == names

    def teardown(self) -> None:
        self.folder.cleanup()


TestMachines = Machines.TestCase
TestMachines.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_a_machine_that_is_stopped_between_its_claim_and_its_first_look_at_the_files_writes_none() -> None:
    bucket = Bucket(lambda: 0.0)
    times = RemoteTimes(sleep=lambda _: None)
    first, second = MemoryFiles(bucket), MemoryFiles(bucket)

    def claimed(files: MemoryFiles, before: str | None) -> tuple[Storage, Claim]:
        storage = Storage("s3://bucket/run", files)
        return storage, Claim.take(storage, before=before, note=lambda _: None, times=times, renews_itself=False)

    storage, claim = claimed(first, None)

    def take_over(method: str, _name: str) -> None:
        if method == "list":
            other, taken = claimed(second, claim.token)
            FencedStorage(other, taken, times=times).write("job.json", b"of the successor")
            taken.release()

    first.on_request = take_over
    with pytest.raises(JobFailed, match="was taken over by machine"):
        FencedStorage(storage, claim, times=times)


@pytest.mark.parametrize("size", [10, 1000])
def test_a_file_of_any_size_is_not_written_after_a_takeover(tmp_path: Path, size: int) -> None:
    bucket = Bucket(lambda: 0.0)
    storage = Storage("s3://bucket/run", MemoryFiles(bucket))
    times = RemoteTimes(sleep=lambda _: None)
    claim = Claim.take(storage, before=None, note=lambda _: None, times=times, renews_itself=False)
    fence = FencedStorage(storage, claim, times=times, conditional_bytes=100)
    path = tmp_path / "rollouts.parquet"
    path.write_bytes(bytes(size))
    fence.write("rollouts.parquet", path)
    taken = Claim.take(storage, before=claim.token, note=lambda _: None, times=times, renews_itself=False)
    FencedStorage(storage, taken, times=times).write("rollouts.parquet", b"of the successor")
    with pytest.raises(JobFailed, match="was taken over by machine"):
        fence.write("rollouts.parquet", path)
    assert bucket.objects["rollouts.parquet"].data == b"of the successor"
