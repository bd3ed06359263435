"""Each report counts once: a repeated one gets the same answer, a contradiction gets a Conflict."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator

import aiohttp
import orjson
import pytest

from heldout.runtime import Limits, Report, ReportKind, Trajectory
from tests.support.runtime_support import JOB_ARN, Bench, Json, running_bench

COMPLETED = Report(ReportKind.COMPLETED)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with running_bench() as running:
        yield running


async def send(bench: Bench, trajectory: Trajectory, path: str, fields: Json | bytes) -> tuple[int, str]:
    """Sends a report as the published client does, all in the body; returns the answer's status and message."""
    body = (
        fields
        if isinstance(fields, bytes)
        else orjson.dumps({"JobArn": JOB_ARN, "TrajectoryId": trajectory.id, **fields})
    )
    headers = {"Authorization": f"Bearer {bench.runtime.secret}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(bench.runtime.endpoint + path, data=body, headers=headers) as answer,
    ):
        said = orjson.loads(await answer.read())
        return answer.status, said.get("Message", "")


async def complete(bench: Bench, trajectory: Trajectory, **fields: object) -> tuple[int, str]:
    return await send(bench, trajectory, "/complete-rollout", fields)


async def reward(bench: Bench, trajectory: Trajectory, rewards: object, **fields: object) -> tuple[int, str]:
    return await send(bench, trajectory, "/update-reward", {"Rewards": rewards, **fields})


def kinds(bench: Bench) -> list[ReportKind]:
    return [report.kind for _, report in bench.reports]


async def test_a_reward_needs_no_completion_before_it(bench: Bench) -> None:
    assert (await reward(bench, bench.open(), [1, 0.5]))[0] == 200
    assert [report for _, report in bench.reports] == [Report(ReportKind.REWARDED, (1.0, 0.5))]


async def test_named_metrics_are_reported_with_the_reward(bench: Bench) -> None:
    assert (await reward(bench, bench.open(), [1.0], Metrics={"completed": 1, "moves": 2.5}))[0] == 200
    assert bench.reports[0][1].metrics == (("completed", 1.0), ("moves", 2.5))


async def test_texts_and_lists_among_the_metrics_are_labels(bench: Bench) -> None:
    metrics = {"moves": 2, "won": True, "opening": "e4", "path": [1, "b"], "unknown": None}
    assert (await reward(bench, bench.open(), [1.0], Metrics=metrics))[0] == 200
    assert bench.reports[0][1].metrics == (("moves", 2.0), ("won", 1.0))
    assert bench.reports[0][1].labels == (("opening", "e4"), ("path", [1, "b"]))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (b'{"a": 1e400}', "Metrics['a'] is inf; a number must be finite"),
        (b'{"a": NaN}', "Metrics['a'] is nan; a number must be finite"),
        (
            b'{"bad \\ud800": 1}',
            "Metrics['bad \\ud800'] has half of a surrogate pair in its name, which UTF-8 cannot carry",
        ),
    ],
)
async def test_a_metric_that_cannot_be_kept_is_refused(bench: Bench, metrics: bytes, message: str) -> None:
    trajectory = bench.open()
    body = b'{"TrajectoryId": "%b", "Rewards": [1], "Metrics": %b}' % (trajectory.id.encode(), metrics)
    assert await send(bench, trajectory, "/update-reward", body) == (400, message)
    assert (await reward(bench, trajectory, [1.0], Metrics={"a": 1}))[0] == 200


async def test_the_same_report_again_is_answered_and_not_taken_twice(bench: Bench) -> None:
    trajectory = bench.open()
    for _ in range(2):
        assert (await complete(bench, trajectory))[0] == 200
    for _ in range(2):
        assert (await reward(bench, trajectory, [0.5]))[0] == 200
    assert kinds(bench) == [ReportKind.COMPLETED, ReportKind.REWARDED]


async def test_the_same_client_token_again_is_the_same_report(bench: Bench) -> None:
    trajectory = bench.open()
    assert (await reward(bench, trajectory, [0.5], ClientToken="t1"))[0] == 200
    assert (await reward(bench, trajectory, [0.7], ClientToken="t1"))[0] == 200
    assert (await reward(bench, trajectory, [0.7], ClientToken="t2"))[0] == 409
    assert len(bench.reports) == 1


async def test_reports_sent_at_the_same_time_are_taken_once(bench: Bench) -> None:
    trajectory = bench.open()
    answers = await asyncio.gather(*(reward(bench, trajectory, [0.5]) for _ in range(5)))
    assert [status for status, _ in answers] == [200] * 5
    assert len(bench.reports) == 1


async def test_a_repeated_report_gets_the_same_answer_after_the_trajectory_is_closed(bench: Bench) -> None:
    trajectory = bench.open()
    await complete(bench, trajectory)
    await reward(bench, trajectory, [0.5])
    trajectory.close()
    assert (await complete(bench, trajectory))[0] == 200
    assert (await reward(bench, trajectory, [0.5]))[0] == 200
    status, message = await reward(bench, trajectory, [0.6])
    assert status == 409
    assert message == f"Trajectory {trajectory.id} is not in valid status for the reward (0.6,): it has (0.5,)"
    assert len(bench.reports) == 2


async def test_a_repeated_report_that_closed_its_trajectory_gets_the_same_answer(bench: Bench) -> None:
    def close(_: Report) -> None:
        trajectory.close()

    trajectory = bench.open(on_report=close)
    assert (await reward(bench, trajectory, [0.5]))[0] == 200
    assert (await reward(bench, trajectory, [0.5]))[0] == 200
    assert len(bench.reports) == 1


async def test_a_second_reward_that_differs_is_a_conflict(bench: Bench) -> None:
    trajectory = bench.open()
    await reward(bench, trajectory, [0.5])
    assert (await reward(bench, trajectory, [0.5, 0.5]))[0] == 409
    assert len(bench.reports) == 1


async def test_a_reward_after_a_failure_is_accepted_and_ignored(bench: Bench) -> None:
    trajectory = bench.open()
    assert (await complete(bench, trajectory, Status="failed"))[0] == 200
    assert (await reward(bench, trajectory, [0.0]))[0] == 200
    trajectory.close()
    assert (await reward(bench, trajectory, [0.0]))[0] == 200
    assert kinds(bench) == [ReportKind.FAILED]


async def test_a_failed_rollout_cannot_become_ready(bench: Bench) -> None:
    trajectory = bench.open()
    await complete(bench, trajectory, Status="failed")
    status, message = await complete(bench, trajectory, Status="ready")
    assert (status, message) == (409, f"Cannot transition trajectory {trajectory.id} from failed to ready")


async def test_a_failure_after_completion_is_handed_on(bench: Bench) -> None:
    trajectory = bench.open()
    await complete(bench, trajectory)
    await complete(bench, trajectory, Status="failed")
    assert kinds(bench) == [ReportKind.COMPLETED, ReportKind.FAILED]


async def test_completing_a_rewarded_rollout_changes_nothing(bench: Bench) -> None:
    trajectory = bench.open()
    await reward(bench, trajectory, [0.5])
    assert (await complete(bench, trajectory))[0] == 200
    assert kinds(bench) == [ReportKind.REWARDED]


NO_REWARDS = [
    "NaN",
    "[NaN]",
    "[Infinity]",
    "[1, -Infinity]",
    "[]",
    "0.5",
    "null",
    '["1"]',
    "[true]",
    "[null]",
    "[1e999]",
]


@pytest.mark.parametrize("rewards", [*NO_REWARDS, f"[{10**400}]", "[1e308, 1e308]"])
async def test_a_reward_that_is_not_finite_is_refused_and_fails_the_attempt(bench: Bench, rewards: str) -> None:
    trajectory = bench.open()
    body = f'{{"TrajectoryId": "{trajectory.id}", "Rewards": {rewards}}}'.encode()
    for _ in range(2):
        status, message = await send(bench, trajectory, "/update-reward", body)
        assert status == 400
        assert "must be a list of finite numbers, at least one" in message
    ((_, report),) = bench.reports
    assert (report.kind, report.failure_kind, report.message) == (ReportKind.FAILED, "bad_reward", message)
    assert (await reward(bench, trajectory, [1.0]))[0] == 409


async def test_an_invalid_reward_does_not_replace_a_valid_one(bench: Bench) -> None:
    trajectory = bench.open()
    await reward(bench, trajectory, [0.5])
    assert (await reward(bench, trajectory, []))[0] == 409
    assert kinds(bench) == [ReportKind.REWARDED]


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("/update-reward", b"no json", "the body is not JSON: b'no json'; expected an object"),
        ("/update-reward", b"[1]", "the body is [1]; expected a JSON object"),
        ("/update-reward", {}, "Rewards is missing; it must be a list of finite numbers: one, or one for each turn"),
        (
            "/update-reward",
            {"Rewards": [1], "Metrics": [1]},
            "Metrics is [1]; it must be an object of values by name",
        ),
        ("/update-reward", {"Rewards": [1], "Metrics": {"": 1}}, "Metrics[''] has no name; every metric needs one"),
        ("/update-reward", {"Rewards": [1], "ClientToken": 5}, "ClientToken is 5; it must be a string"),
        ("/complete-rollout", {"Status": "Ready"}, "Status is 'Ready'; it must be 'ready' or 'failed'"),
        ("/complete-rollout", b"{}", "TrajectoryId is missing; it must name the trajectory that the report is about"),
        ("/complete-rollout", {"TrajectoryId": 7}, "TrajectoryId is 7; it must be a string"),
    ],
)
async def test_an_invalid_report_is_refused_with_the_reason(
    bench: Bench, path: str, fields: Json | bytes, message: str
) -> None:
    assert await send(bench, bench.open(), path, fields) == (400, message)
    assert bench.reports == []


async def test_a_report_that_could_not_be_made_to_last_can_be_sent_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    troubles = [OSError("disk full")]

    def store(_: Report) -> None:
        if troubles:
            raise troubles.pop()

    trajectory = bench.open(on_report=store)
    assert await reward(bench, trajectory, [0.5]) == (500, "OSError: disk full")
    assert (await reward(bench, trajectory, [0.5]))[0] == 200
    assert "disk full" in caplog.text


async def test_an_agent_is_answered_only_when_its_report_has_been_made_to_last(bench: Bench) -> None:
    stored, taken = asyncio.Event(), asyncio.Event()

    async def store(_: Report) -> None:
        taken.set()
        await stored.wait()

    trajectory = bench.runtime.open("p1", seed=None, on_report=store)
    reporting = asyncio.create_task(reward(bench, trajectory, [0.5]))
    await taken.wait()
    done, _ = await asyncio.wait([reporting], timeout=0.02)
    assert not done
    stored.set()
    assert (await reporting)[0] == 200


async def test_an_agent_that_hangs_up_does_not_undo_its_report(bench: Bench) -> None:
    stored, taken, kept = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def store(_: Report) -> None:
        taken.set()
        await stored.wait()
        kept.set()

    trajectory = bench.runtime.open("p1", seed=None, on_report=store)
    reporting = asyncio.create_task(reward(bench, trajectory, [0.5]))
    await taken.wait()
    reporting.cancel()
    await asyncio.wait([reporting])
    stored.set()
    await asyncio.wait_for(kept.wait(), 5)
    assert (await reward(bench, trajectory, [0.5]))[0] == 200


async def test_a_stop_accepts_no_more_and_waits_for_reports_that_have_arrived() -> None:
    stored, taken = asyncio.Event(), asyncio.Event()

    async def store(_: Report) -> None:
        taken.set()
        await stored.wait()

    async with running_bench(limits=Limits(stop_seconds=0.0)) as bench:
        trajectory = bench.runtime.open("p1", seed=None, on_report=store)
        reporting = asyncio.create_task(reward(bench, trajectory, [0.5]))
        await taken.wait()
        stopping = asyncio.create_task(bench.runtime.stop())
        await asyncio.sleep(0)
        with pytest.raises(aiohttp.ClientConnectorError):
            await complete(bench, bench.open())
        done, _ = await asyncio.wait([stopping], timeout=0.05)
        assert not done
        stored.set()
        await stopping
        await asyncio.wait([reporting])


@pytest.mark.parametrize("report", ["complete", "fail", "reward"])
async def test_after_its_end_a_rollout_takes_no_model_calls(bench: Bench, report: str) -> None:
    trajectory = bench.open()
    if report == "reward":
        await reward(bench, trajectory, [1.0])
    else:
        await complete(bench, trajectory, Status="failed" if report == "fail" else "ready")
    path = trajectory.base_url.removeprefix(bench.runtime.endpoint)
    status, message = await send(bench, trajectory, f"{path}/chat/completions", b'{"messages": []}')
    assert status == 409
    assert "not in valid status" in message
    assert bench.model.requests == []


async def test_only_the_latest_reports_of_closed_trajectories_are_kept(bench: Bench) -> None:
    early = bench.open("early")
    await reward(bench, early, [0.5])
    early.close()
    for number in range(4000):
        bench.open(f"p{number}").close()
    assert (await reward(bench, early, [0.5]))[0] == 200
    for number in range(4000, 4100):
        bench.open(f"p{number}").close()
    assert (await reward(bench, early, [0.5]))[0] == 409


async def test_the_memory_of_an_ended_rollout_is_freed_at_once(bench: Bench) -> None:
    class Attempt:
        trajectory: Trajectory

        async def take(self, report: Report) -> None:
            """Holds the trajectory that holds this object, as the engine's attempt does."""

    attempt = Attempt()
    attempt.trajectory = bench.runtime.open("p0-r0-a1", seed=None, on_report=attempt.take)
    ended = weakref.ref(attempt.trajectory)
    gc.disable()
    try:
        attempt.trajectory.close()
        del attempt
        assert ended() is None
    finally:
        gc.enable()
