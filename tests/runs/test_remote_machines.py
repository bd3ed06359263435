"""One run in S3 and several machines: each start has all that was finished, each rollout once, and one plays at a time."""

import asyncio
import contextlib
import dataclasses
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from heldout.backends.local.backend import handle_on
from heldout.errors import JobFailed, RunError, StorageError
from heldout.job.document import OutputDataConfig
from heldout.job.records import Attempt
from heldout.pipeline.definition import EvaluationJobs, render
from heldout.pipeline.evaluation import Evaluation
from heldout.pipeline.listing import Listed, listed
from heldout.pipeline.state import ExecutionStatus
from heldout.runs.journal import Journal, read, segments
from heldout.runs.remote_mirror import Mirror, folder_for, new_folder, open_run, remove_if_never_begun
from heldout.runs.run import JobStatus, Run
from heldout.storage import Storage
from heldout.storage.claim import CLAIM_FILE, Claim, RemoteTimes
from tests.support.evaluations import AROUND
from tests.support.faulty_s3 import FaultyService, faulty_service
from tests.support.jobs import document
from tests.support.s3_service import BUCKET, s3_client, s3_service, use_service

OUTPUT = f"s3://{BUCKET}/evaluations"
LOCATION = f"{OUTPUT}/test/base-model-eval"
KEY = "evaluations/test/base-model-eval"
Machine = Callable[[str], None]
TIMES = RemoteTimes(
    watch_seconds=0.1, look_every_seconds=0.01, refusal_waits_seconds=(0.01, 0.01), seal_every_seconds=0.0
)
PATIENT = dataclasses.replace(TIMES, watch_seconds=30.0)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with s3_service() as url:
        yield url


@pytest.fixture
def service(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the S3 service that the environment names; its bucket is empty."""
    use_service(monkeypatch, url)
    client = s3_client(url)
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    return client


@pytest.fixture
def faulty(url: str, service: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyService]:
    """A proxy that machines which are set up from now on reach the service through."""
    with faulty_service(url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy


@pytest.fixture
def machine(service: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """Makes what follows happen on the machine of this name."""
    return lambda name: monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / name))


@pytest.fixture
def run(machine: Machine, tmp_path: Path) -> Run:
    """A run of eight rollouts, not yet begun, on machine `a`."""
    machine("a")
    given = document(tmp_path, "http://127.0.0.1:9/v1", "abcdefgh")
    return Run.create(
        new_folder(LOCATION),
        name="test",
        run_name="base-model-eval",
        region="us-west-2",
        document=given.model_copy(update={"output_data_config": OutputDataConfig.at(OUTPUT)}),
    )


def _final(rollout: int, by: str) -> Attempt:
    return Attempt(
        prompt_index=rollout,
        rollout_index=0,
        number=1,
        trajectory_id=f"{rollout}-{by}",
        is_final=True,
        failure=None,
        rewards=(1.0,),
        metrics=(),
        flags=(),
        turns=(),
        output="",
        started_at=0.0,
        seconds=1.0,
    )


class Playing:
    """A machine that plays the run, from its claim to its end."""

    def __init__(self, run: Run, name: str) -> None:
        self.run = run
        self.name = name
        run.prompts_path.touch()
        self.mirror = Mirror(run, times=TIMES)
        self.mirror.claim()
        self.journal = Journal(run.journal_folder, writer=self.mirror.writer)

    async def begin(self) -> "Playing":
        await self.mirror.begin()
        self.journal.open()
        return self

    async def finish_rollouts(self, *rollouts: int) -> None:
        for rollout in rollouts:
            await self.journal.append(_final(rollout, self.name))

    async def copy(self) -> None:
        self.journal.seal()
        await asyncio.to_thread(self.mirror.copy_sealed)

    async def stop(self) -> None:
        await self.journal.close()
        self.run.update(status=JobStatus.STOPPED)
        await self.mirror.finish()
        self.mirror.release()

    async def die(self) -> None:
        """Ends as kill -9 ends it, in the middle of a line."""
        await self.journal.close()
        with segments(self.run.journal_folder)[-1].open("ab") as file:
            file.write(b'{"prompt":7,"roll')
        self.mirror.abandon()


async def _playing(name: str, run: Run | None = None) -> Playing:
    return await Playing(run or open_run(LOCATION), name).begin()


def _finished(run: Run) -> dict[int, str]:
    """Who has finished which rollout; each once."""
    finals = [line.attempt for line in read(run.journal_folder) if line.attempt.is_final]
    assert max(Counter(one.prompt_index for one in finals).values(), default=1) == 1
    return {
        one.prompt_index: one.trajectory_id.rpartition("-")[2] for one in sorted(finals, key=lambda a: a.prompt_index)
    }


async def test_a_machine_that_goes_on_again_has_what_another_finished_in_between(run: Run, machine: Machine) -> None:
    a = await _playing("a", run)
    await a.finish_rollouts(0, 1)
    await a.stop()
    machine("b")
    b = await _playing("b")
    assert _finished(b.run) == {0: "a", 1: "a"}
    await b.finish_rollouts(2, 3)
    await b.copy()
    await b.finish_rollouts(4)
    await b.stop()
    machine("a")
    a = await _playing("a")
    await a.finish_rollouts(5)
    await a.stop()
    machine("c")
    assert _finished(open_run(LOCATION)) == {0: "a", 1: "a", 2: "b", 3: "b", 4: "b", 5: "a"}


async def test_what_only_a_dead_machine_has_counts_when_it_comes_back_and_what_both_played_counts_once(
    run: Run, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    a = await _playing("a", run)
    await a.finish_rollouts(0)
    await a.copy()
    await a.finish_rollouts(1, 2)
    await a.die()
    machine("b")
    b = await _playing("b")
    assert _finished(b.run) == {0: "a"}
    await b.finish_rollouts(1, 3)
    await b.die()  # neither of which was copied
    machine("a")
    a = await _playing("a")
    assert _finished(a.run) == {0: "a", 1: "a", 2: "a"}
    await a.finish_rollouts(4)
    await a.stop()
    machine("b")
    assert _finished(open_run(LOCATION)) == {0: "a", 1: "a", 2: "a", 3: "b", 4: "a"}  # as it can be shown
    b = await _playing("b")
    assert "1 rollouts were played on two machines" in caplog.text
    await b.stop()
    machine("c")
    assert _finished(open_run(LOCATION)) == {0: "a", 1: "a", 2: "a", 3: "b", 4: "a"}


async def test_a_fetch_that_was_cut_short_before_the_journals_were_joined_is_made_again(
    faulty: FaultyService, run: Run, machine: Machine
) -> None:
    a = await _playing("a", run)
    await a.finish_rollouts(1, 2)
    await a.die()
    machine("b")
    b = await _playing("b")
    await b.finish_rollouts(2, 3)
    await b.stop()
    machine("a")

    faulty.refuse("GET", f"-{b.mirror.writer}.jsonl", times=1)
    with pytest.raises(StorageError):
        open_run(LOCATION)
    assert _finished(open_run(LOCATION)).keys() == {1, 2, 3}


async def test_another_machine_shows_what_was_finished_since_it_last_looked(run: Run, machine: Machine) -> None:
    a = await _playing("a", run)
    seen = []
    for rollout in range(3):
        await a.finish_rollouts(rollout)
        await a.copy()
        machine("c")
        seen.append(list(_finished(open_run(LOCATION))))
        machine("a")
    assert seen == [[0], [0, 1], [0, 1, 2]]
    await a.stop()
    machine("c")
    assert open_run(LOCATION).state.status is JobStatus.STOPPED


async def test_a_run_that_is_played_elsewhere_is_not_gone_on_with(run: Run, machine: Machine) -> None:
    a = await _playing("a", run)
    machine("b")
    fetched = open_run(LOCATION)
    said: list[str] = []

    def watching(note: str) -> None:
        said.append(note)
        a.mirror.check()  # as it does every few seconds

    with pytest.raises(RunError, match=r"is being worked on by machine '.*'; stop that one first"):
        Mirror(fetched, note=watching, times=TIMES).claim()
    assert "was being worked on by machine" in said[0]
    remove_if_never_begun(fetched)  # as an evaluation that could not begin
    await a.finish_rollouts(0)
    await a.stop()
    assert _finished(open_run(LOCATION)) == {0: "a"}


async def test_a_machine_that_was_cut_off_writes_no_more_once_another_has_taken_over(
    run: Run, machine: Machine
) -> None:
    a = await _playing("a", run)
    await a.finish_rollouts(0, 1)
    machine("b")
    b = await _playing("b")  # nothing is heard of a meanwhile
    await b.finish_rollouts(1)
    with pytest.raises(
        JobFailed, match=r"was taken over by machine '.*' \(claim .*\) after this machine's renewals failed"
    ):
        await a.mirror.keep_up(a.journal)
    with pytest.raises(JobFailed):
        await a.mirror.finish()
    a.mirror.release()
    await b.stop()
    assert _finished(open_run(LOCATION)) == {1: "b"}
    machine("a")
    again = await _playing("a")
    assert _finished(again.run) == {0: "a", 1: "b"}  # what was in the bucket first
    await again.stop()


def test_of_two_machines_that_claim_a_run_at_the_same_time_one_gets_it(faulty: FaultyService) -> None:
    storage = Storage.at(LOCATION)
    first: list[Claim] = []
    faulty.add("PUT", CLAIM_FILE, times=1, before=lambda: first.append(_claimed()))  # after the second one has looked
    with pytest.raises(RunError, match=r"was claimed by machine '.*' \(claim .*\) at the same time"):
        _claimed()
    first[0].check()
    first[0].release()
    assert orjson.loads(storage.read(CLAIM_FILE))["released"]


def _claimed(before: str | None = None) -> Claim:
    return Claim.take(Storage.at(LOCATION), before=before, note=pytest.fail, times=TIMES, renews_itself=False)


@pytest.mark.parametrize("lost", [{"is_reply_lost": True}, {"reply_status": 403}, {"reply_status": 412}])
def test_a_claim_whose_renewal_got_no_answer_is_still_held(faulty: FaultyService, lost: dict[str, Any]) -> None:
    claim = _claimed()
    faulty.add("PUT", CLAIM_FILE, times=1, **lost)
    with contextlib.suppress(StorageError):
        claim.check()
    faulty.heal()
    faulty.cut_off()
    with pytest.raises(StorageError):
        claim.check()
    faulty.heal()
    claim.check()
    claim.release()


@pytest.mark.parametrize(("status", "code"), [(409, "ConditionalRequestConflict"), (412, "PreconditionFailed")])
def test_a_refusal_that_passes_takes_no_claim_away(faulty: FaultyService, status: int, code: str) -> None:
    faulty.refuse("PUT", CLAIM_FILE, times=2, status=status, code=code)
    claim = _claimed()
    faulty.refuse("PUT", CLAIM_FILE, times=2, status=status, code=code)
    claim.check()
    faulty.refuse("PUT", CLAIM_FILE, status=status, code=code)
    with pytest.raises(StorageError, match=r"refuses conditional writes, although no other machine has changed it"):
        claim.check()
    faulty.heal()
    claim.check()
    claim.release()


def test_a_claim_that_was_lost_names_the_claim_that_stands_in_its_place(faulty: FaultyService) -> None:
    first = _claimed()
    second = _claimed(before=first.token)
    with pytest.raises(JobFailed, match=rf"was taken over by machine '.*' \(claim {second.token}\) after"):
        first.check()
    second.release()
    with pytest.raises(JobFailed, match=rf"\(claim {second.token}\) after"):
        first.check()
    with pytest.raises(JobFailed, match="this one has released it"):
        second.check()


def test_a_claim_that_was_lost_stays_lost_when_its_successor_has_released_it(faulty: FaultyService) -> None:
    first = _claimed()
    _claimed(before=first.token).release()
    with pytest.raises(JobFailed, match=r"was taken over by machine '.*' \(claim .*, released since\)"):
        first.check()
    first.release()
    _claimed().release()  # without a wait: it is released


def test_a_claim_whose_file_is_gone_is_lost(service: Any) -> None:
    storage = Storage.at(LOCATION)
    claim = _claimed()
    storage.delete(CLAIM_FILE)
    with pytest.raises(JobFailed, match="taken over by another machine, whose claim is gone"):
        claim.check()
    assert not storage.exists(CLAIM_FILE)


async def test_a_run_that_was_begun_anew_elsewhere_takes_nothing_of_the_one_before(
    run: Run, machine: Machine, service: Any, tmp_path: Path
) -> None:
    a = await _playing("a", run)
    await a.finish_rollouts(0, 1)
    await a.stop()
    for item in service.list_objects_v2(Bucket=BUCKET)["Contents"]:
        service.delete_object(Bucket=BUCKET, Key=item["Key"])
    machine("b")
    b = await _playing(
        "b",
        Run.create(
            new_folder(LOCATION), name="test", run_name="base-model-eval", region="us-west-2", document=run.document
        ),
    )
    await b.finish_rollouts(3)
    await b.stop()
    machine("a")
    assert _finished(open_run(LOCATION)) == {3: "b"}


async def test_a_run_that_is_completed_while_it_is_fetched_is_fetched_whole(
    faulty: FaultyService, run: Run, machine: Machine
) -> None:
    a = await _playing("a", run)
    await a.finish_rollouts(*range(8))
    await a.copy()

    def complete() -> None:
        a.run.rollouts_path.write_bytes(b"the table")
        a.run.complete(incomplete=False)
        asyncio.run(a.mirror.finish())

    machine("c")
    faulty.add("GET", ".jsonl", times=1, before=complete)
    fetched = open_run(LOCATION)
    assert fetched.state.status is JobStatus.COMPLETED
    assert fetched.rollouts_path.read_bytes() == b"the table"
    assert not fetched.has_journal
    a.mirror.release()
    shutil.rmtree(folder_for(LOCATION))


@pytest.fixture
def evaluation(machine: Machine, tmp_path: Path) -> Evaluation:
    """An evaluation in the bucket, begun on machine `a`."""
    machine("a")
    return _new_evaluation(tmp_path)


def _new_evaluation(folder: Path) -> Evaluation:
    jobs = EvaluationJobs(base=document(folder, "http://127.0.0.1:9/v1", "ab"), fine_tuned=None)
    return Evaluation.create(
        f"{OUTPUT}/test", name="test", region="us-west-2", definition=render(jobs, AROUND), times=PATIENT
    )


def test_an_evaluation_is_gone_on_with_from_where_another_machine_left_it(
    evaluation: Evaluation, machine: Machine
) -> None:
    machine("b")
    elsewhere = Evaluation.open(evaluation.location, times=TIMES)
    claim = elsewhere.claim(pytest.fail)
    assert claim is not None
    elsewhere.note("of b")
    elsewhere.update(status=ExecutionStatus.SUCCEEDED)
    claim.release()
    machine("a")
    assert Evaluation.open(evaluation.location).status is ExecutionStatus.SUCCEEDED
    assert Evaluation.open(evaluation.location).state.notes == ("of b",)


def test_an_evaluation_that_another_machine_works_on_is_left_as_it_is(evaluation: Evaluation, machine: Machine) -> None:
    claim = evaluation.claim(pytest.fail)
    assert claim is not None
    machine("b")
    elsewhere = Evaluation.open(evaluation.location, times=TIMES)
    elsewhere.begin()
    with pytest.raises(RunError, match="is being worked on by machine"):
        elsewhere.claim(lambda _: claim.check())
    assert "is being worked on" in str(elsewhere.state.failure_reason)  # for who waits for it there
    elsewhere.remove_if_never_begun()
    evaluation.note("of a")
    claim.release()
    assert Evaluation.open(evaluation.location).state.notes == ("of a",)


def test_an_evaluation_that_another_machine_works_on_is_shown_as_going_on(
    evaluation: Evaluation, machine: Machine
) -> None:
    evaluation.begin()
    evaluation.publish()
    claim = evaluation.claim(pytest.fail)
    assert claim is not None
    machine("b")
    assert [one.status for one in listed(OUTPUT) if isinstance(one, Listed)] == ["Executing"]
    started = handle_on(Evaluation.open(evaluation.location))
    assert started.status.overall_status == "Executing"
    assert [one.status for one in listed(OUTPUT) if isinstance(one, Listed)] == ["Executing"]
    with pytest.raises(RunError, match=r"is being worked on by machine .*; stop it there"):
        started.stop()
    machine("a")
    evaluation.update(status=ExecutionStatus.SUCCEEDED)
    claim.release()
    machine("b")
    started.refresh()
    assert started.status.overall_status == "Succeeded"


def test_an_evaluation_whose_machine_is_dead_is_shown_as_stopped(evaluation: Evaluation, machine: Machine) -> None:
    evaluation.begin()
    evaluation.publish()
    claim = evaluation.claim(pytest.fail)
    assert claim is not None
    claim.abandon()
    assert evaluation.status is ExecutionStatus.STOPPED  # on the machine itself, where its process is known to be gone
    assert [one.status for one in listed(OUTPUT) if isinstance(one, Listed)] == ["Stopped"]
    machine("b")
    time.sleep(1.2)  # S3 tells whole seconds
    assert [one.status for one in listed(OUTPUT, times=TIMES) if isinstance(one, Listed)] == ["Stopped"]
    assert Evaluation.open(evaluation.location, times=TIMES).status is ExecutionStatus.STOPPED


async def test_a_run_is_listed_as_what_the_machine_that_plays_it_makes_of_it(run: Run, machine: Machine) -> None:
    run.update(status=JobStatus.IN_PROGRESS)
    playing = await Playing(run, "a").begin()
    await playing.copy()
    machine("b")
    assert [one.status for one in listed(OUTPUT) if isinstance(one, Listed)] == ["InProgress"]
    await playing.die()
    time.sleep(1.2)
    assert [one.status for one in listed(OUTPUT, times=TIMES) if isinstance(one, Listed)] == ["Interrupted"]


def test_a_place_that_refuses_for_a_while_does_not_end_an_evaluation(
    faulty: FaultyService, evaluation: Evaluation, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    faulty.refuse("PUT")
    evaluation.note("1")
    evaluation.update(status=ExecutionStatus.SUCCEEDED)
    with pytest.raises(StorageError):
        evaluation.publish()
    assert "execution.json is not copied yet: " in caplog.text
    faulty.heal()
    faulty.refuse("GET")
    assert Evaluation.open(evaluation.location).state.notes == ("1",)
    faulty.heal()
    evaluation.publish()
    machine("c")
    assert Evaluation.open(evaluation.location).state.notes == ("1",)


def test_of_two_machines_that_make_an_evaluation_at_the_same_moment_one_has_it(
    faulty: FaultyService, evaluation: Evaluation, machine: Machine, tmp_path: Path
) -> None:
    machine("b")
    faulty.refuse("HEAD", "execution.json", times=1, status=404, code="NoSuchKey")  # it is not there yet
    with pytest.raises(RunError, match=r"there is an evaluation in s3://.* already"):
        _new_evaluation(tmp_path)
    machine("a")
    assert Evaluation.open(evaluation.location).state.arn == evaluation.state.arn


async def test_a_machine_that_returns_after_another_has_finished_and_left_changes_nothing(
    url: str,
    faulty: FaultyService,
    run: Run,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a = await _playing("a", run)
    await a.finish_rollouts(0, 1, 2)
    faulty.cut_off()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)  # the others have a network
    await asyncio.to_thread(_complete_on, "b", machine)
    faulty.heal()
    await a.finish_rollouts(*range(3, 8))
    a.run.rollouts_path.write_bytes(b"the table of a")
    with pytest.raises(JobFailed, match=r"was taken over by machine .* released since"):
        await a.copy()
    a.run.complete(incomplete=False)
    with pytest.raises(JobFailed, match="was taken over by machine"):
        await a.mirror.finish()
    a.mirror.release()
    _check_that_it_is_of_b(machine)


@pytest.mark.parametrize("held", ["claim.json", "rollouts.parquet", "job.json"])
async def test_a_machine_that_is_stopped_in_the_middle_of_a_write_cannot_end_it_after_a_takeover(
    url: str, faulty: FaultyService, run: Run, machine: Machine, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """The request was sent before the takeover and arrives after it, as from a process that was stopped (SIGSTOP) or slept."""
    a = await _playing("a", run)
    await a.finish_rollouts(*range(8))
    a.run.rollouts_path.write_bytes(b"the table of a")
    a.run.complete(incomplete=False)

    def take_over() -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        _complete_on("b", machine)

    a.mirror.abandon()  # a stopped process renews nothing
    faulty.add("PUT", held, times=1, before=take_over)
    with pytest.raises(JobFailed, match="was taken over by machine"):
        await a.mirror.finish()
    _check_that_it_is_of_b(machine)


async def test_a_segment_that_arrives_after_a_takeover_is_no_part_of_the_run(
    url: str, faulty: FaultyService, run: Run, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await _playing("a", run)
    await a.finish_rollouts(0)
    await a.copy()
    await a.finish_rollouts(1)
    a.mirror.abandon()
    taken: list[Playing] = []

    def take_over() -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        machine("b")
        taken.append(asyncio.run(_playing("b")))

    faulty.add("PUT", ".jsonl", times=1, before=take_over)
    with pytest.raises(JobFailed, match="was taken over by machine"):
        await a.copy()
    b = taken[0]
    b.journal.open()  # in this loop
    await b.finish_rollouts(1, 2)
    await b.stop()
    machine("c")
    assert _finished(open_run(LOCATION)) == {0: "a", 1: "b", 2: "b"}
    machine("a")
    again = await _playing("a")
    assert _finished(again.run) == {0: "a", 1: "b", 2: "b"}
    await again.stop()


def _complete_on(name: str, machine: Machine) -> None:
    """Plays the whole run on another machine, which then has no part in it any more."""

    async def complete() -> None:
        playing = await _playing(name)
        await playing.finish_rollouts(*({*range(8)} - _finished(playing.run).keys()))
        playing.run.rollouts_path.write_bytes(f"the table of {name}".encode())
        playing.run.complete(incomplete=False)
        await playing.mirror.finish()
        playing.mirror.release()

    machine(name)
    asyncio.run(complete())


def _check_that_it_is_of_b(machine: Machine) -> None:
    for name in ("c", "a"):
        machine(name)
        found = open_run(LOCATION)
        assert found.state.status is JobStatus.COMPLETED
        assert found.rollouts_path.read_bytes() == b"the table of b"


def test_an_evaluation_that_another_machine_has_finished_is_not_changed_by_the_one_that_lost_it(
    url: str,
    faulty: FaultyService,
    evaluation: Evaluation,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine("a")
    ours = Evaluation.open(evaluation.location, times=TIMES)
    claim = ours.claim(pytest.fail)
    assert claim is not None
    claim.abandon()
    ours.note("of a")

    def take_over() -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        machine("b")
        theirs = Evaluation.open(evaluation.location, times=TIMES)
        taken = theirs.claim(lambda _: None)
        assert taken is not None
        theirs.update(status=ExecutionStatus.SUCCEEDED)
        taken.release()
        machine("a")

    faulty.add("PUT", "execution.json", times=1, before=take_over)
    ours.note("too late")
    assert "was taken over by machine" in caplog.text
    with pytest.raises(JobFailed, match="was taken over by machine"):
        ours.publish()
    machine("c")
    assert Evaluation.open(evaluation.location).state.notes == ("of a",)
    assert Evaluation.open(evaluation.location).status is ExecutionStatus.SUCCEEDED


def test_an_evaluation_without_a_claim_is_not_written_over_what_another_machine_has_written(
    evaluation: Evaluation, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine("b")
    Evaluation.open(evaluation.location).note("of b")
    machine("a")
    evaluation.note("of a")
    assert "was changed by another machine" in caplog.text
    machine("c")
    assert Evaluation.open(evaluation.location).state.notes == ("of b",)
