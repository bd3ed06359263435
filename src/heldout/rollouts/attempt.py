"""Plays one attempt, from its opened trajectory to its durable end.

An attempt ends once: by a reward reported to the Job Runtime, a reward in the invocation's answer, a reported failure, an
exception, a crash, or a timeout. The first of them decides. Later ones are refused or flagged.
"""

import asyncio
import hashlib
import itertools
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from heldout.agents.base import Agent, Invocation, InvocationResult, Outcome
from heldout.job.json_values import clean_text
from heldout.job.received import GivenMetrics, MetricNames, given_metrics, reward_values, stored_object
from heldout.job.records import Attempt, Boundary, Failure, Prompt, total_reward
from heldout.runs.journal import Journal
from heldout.runtime import JobRuntime, Report, ReportKind, ReportRefused, Trajectory
from heldout.runtime.trajectories import CLOSED, HUNG_UP

_NO_REWARD_SECONDS = 2.0
"""How long to wait for a reward after an answer without one, when the agent reports that it is idle."""
_POLL_SECONDS = 0.5
_RECORDED_APART = frozenset({"reward", "metrics"})
"""Fields of an answer that are recorded in a form of their own."""
_ACCEPTED = frozenset({"accepted", "processing", "started", "running", "in_progress", "pending", "queued"})

_NEVER_SCORED = frozenset({"given_up", "exhausted"})
"""Kinds of a policy's failure after which no reward counts: the agent may have scored a missing reply as the model's."""

_FAILURES: Mapping[Outcome, tuple[Boundary, str]] = {
    Outcome.RAISED: (Boundary.AGENT, "raised"),
    Outcome.CRASHED: (Boundary.AGENT, "crashed"),
    Outcome.UNREACHABLE: (Boundary.AGENT, "unreachable"),
    Outcome.TIMED_OUT: (Boundary.AGENT, "timeout"),
    Outcome.LOST: (Boundary.HARNESS, "lost"),
    Outcome.EXHAUSTED: (Boundary.HARNESS, "exhausted"),
    Outcome.DISCONNECTED: (Boundary.HARNESS, "disconnected"),
}

_OF_HARNESS = frozenset(outcome for outcome, (boundary, _) in _FAILURES.items() if boundary is Boundary.HARNESS)


@dataclass(frozen=True, slots=True)
class PlayRules:
    """The job's settings for every attempt."""

    job_arn: str
    region: str
    temperature: float
    top_p: float
    max_tokens: int
    timeout_seconds: float
    seed: int
    grace_seconds: float = 30.0
    """How long an agent may still run after the attempt was decided, so that its output and return value are kept."""
    retries_agent_failures: bool = True
    """Whether an attempt that failed because of the agent or the model's replies is played again."""
    passes_columns: bool = False
    """Whether the agent gets the other columns of its dataset row, as `metadata.columns`. The hosted service sends none."""


@dataclass(frozen=True, slots=True)
class Try:
    """Which attempt of which rollout."""

    prompt: Prompt
    rollout_index: int
    number: int
    is_last: bool
    """Whether the rollout fails for good when this attempt fails."""
    is_isolated: bool


class AttemptPlayer:
    """Plays the attempts of one job, many at once."""

    def __init__(self, *, rules: PlayRules, runtime: JobRuntime, agent: Agent, journal: Journal) -> None:
        self._rules = rules
        self._runtime = runtime
        self._agent = agent
        self._journal = journal
        self._start = secrets.token_hex(4)
        self._serial = itertools.count(1)
        self._metric_names = MetricNames()

    async def play(self, this: Try) -> Attempt:
        """Play one attempt. On return the attempt is in the journal.

        A cancelled attempt leaves nothing behind unless its end was already decided.
        """
        play = _Play(this, self._rules, self._agent, self._journal, self._metric_names)
        name = f"{this.prompt.index}-{this.rollout_index}-{this.number}-{self._start}{next(self._serial):x}"
        trajectory = self._runtime.open(name, seed=_seed(self._rules.seed, this), on_report=play.take_report)
        try:
            return await play.run(trajectory, self._payload(trajectory, this.prompt))
        finally:
            trajectory.close()

    def _payload(self, trajectory: Trajectory, prompt: Prompt) -> bytes:
        rules = self._rules
        sampling = {"temperature": rules.temperature, "topP": rules.top_p, "maxTokens": rules.max_tokens}
        columns = {"columns": orjson.Fragment(prompt.columns)} if rules.passes_columns else {}
        return orjson.dumps(
            {
                "prompt": prompt.text,
                "metadata": {
                    "jobArn": rules.job_arn,
                    "job_arn": rules.job_arn,
                    "rolloutId": trajectory.id,
                    "trajectoryId": trajectory.id,
                    "trajectory_id": trajectory.id,
                    "endpoint": trajectory.endpoint,
                    "baseUrl": trajectory.base_url,
                    "region": rules.region,
                    **columns,
                },
                "inferenceParams": sampling,
                "inference_params": sampling,
            }
        )


class _Play:
    """The state of one attempt: what decided it, and its record."""

    def __init__(self, this: Try, rules: PlayRules, agent: Agent, journal: Journal, metric_names: MetricNames) -> None:
        self._metric_names = metric_names
        self._this = this
        self._rules = rules
        self._agent = agent
        self._journal = journal
        self._started_at = time.time()
        self._started = time.monotonic()
        self._is_decided = asyncio.Event()
        self._is_answered = False
        self._is_completed = False
        self._rewards: tuple[float, ...] | None = None
        self._failure: Failure | None = None
        self._metrics: dict[str, float] = {}
        self._labels: dict[str, object] = {}
        self._returned: Mapping[str, object] = {}
        self._flags: set[str] = set()
        self._output = ""
        self._writing: asyncio.Future[None] | None = None

    async def run(self, trajectory: Trajectory, payload: bytes) -> Attempt:
        self._trajectory = trajectory
        invocation = Invocation(
            trajectory.id,
            payload,
            self._rules.timeout_seconds,
            self._this.is_isolated,
            on_begin=self._begin,
            until_over=self._take_answer,
        )
        result = await self._invoked(invocation)
        if result is not None:
            self._output = result.output
            if result.outcome is not Outcome.RETURNED:
                trajectory.close()  # a call in flight counts as a turn from here on
                self._take_failure(result)
            elif not self._is_answered:
                await self._take_answer(result)
        trajectory.close()
        if self._writing is None:
            return await self._written()
        await self._writing
        return await self._amended()

    async def take_report(self, report: Report) -> None:
        """Handle a report of the agent to the Job Runtime. Returns once a reward is durable. Raises ReportRefused after the
        attempt's end."""
        if self._is_decided.is_set():
            raise ReportRefused(f"trajectory {self._trajectory.id} is not in valid status: it has ended")
        if self._is_out_of_time():
            raise ReportRefused(f"trajectory {self._trajectory.id} is not in valid status: its time is over")
        self._keep_metrics(GivenMetrics(dict(report.metrics), dict(report.labels)))
        match report.kind:
            case ReportKind.COMPLETED:
                self._is_completed = True
            case ReportKind.FAILED:
                boundary = Boundary.REWARD if report.failure_kind == "bad_reward" else Boundary.AGENT
                self._fail(boundary, report.failure_kind, report.message)
            case ReportKind.REWARDED:
                self._score(report.rewards)
                if self._rewards is None:
                    return
                self._writing = asyncio.ensure_future(self._journal.append(self._record()))
                await asyncio.shield(self._writing)

    def _begin(self) -> None:
        self._started_at = time.time()
        self._started = time.monotonic()

    def _is_out_of_time(self) -> bool:
        return time.monotonic() - self._started > self._rules.timeout_seconds

    async def _invoked(self, invocation: Invocation) -> InvocationResult | None:
        task = asyncio.create_task(self._agent.invoke(invocation))
        decided = asyncio.create_task(self._is_decided.wait())
        try:
            await asyncio.wait({task, decided}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=self._rules.grace_seconds)
            if task.done():
                return task.result()
            self._flags.add("ran_on_after_end")
            return None
        finally:
            decided.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _take_failure(self, result: InvocationResult) -> None:
        if not self._is_decided.is_set():
            waited = self._said_of_waiting() if result.outcome is Outcome.TIMED_OUT else ""
            self._fail(*_FAILURES[result.outcome], f"{result.message}{waited}")
        elif result.outcome not in _OF_HARNESS:
            self._flag_if_scored("failed_after_reward")

    def _said_of_waiting(self) -> str:
        """Describe a model call that was in flight at the timeout: the model may hang, not the agent."""
        turns = self._trajectory.turns
        is_waiting = bool(turns) and turns[-1].status in (CLOSED, HUNG_UP)
        return "; its last model call was still waiting for the model" if is_waiting else ""

    async def _take_answer(self, result: InvocationResult) -> None:
        """Handle the agent's answer. Returns once the attempt is decided."""
        self._is_answered = True
        body = result.body
        if isinstance(body, Mapping):
            self._keep_metrics(given_metrics(body.get("metrics")))
            self._returned = {name: value for name, value in body.items() if name not in _RECORDED_APART}
        error = _reported_error(body)
        if self._is_decided.is_set():
            self._compare_reward(body, error)
        elif error is not None:
            self._fail(Boundary.AGENT, "reported_failed", error)
        elif isinstance(body, Mapping) and body.get("reward") is not None:
            self._take_returned(body["reward"])
        else:
            await self._wait_for_report(body)

    def _take_returned(self, reward: object) -> None:
        rewards = reward_values(reward)
        if rewards is None:
            self._fail(
                Boundary.REWARD,
                "bad_reward",
                f"the reward is {reward!r:.80}; it must be a finite number or a list of them",
            )
        else:
            self._score(rewards)

    def _compare_reward(self, body: object, error: str | None) -> None:
        if error is not None:
            self._flag_if_scored("failed_after_reward")
        elif isinstance(body, Mapping) and body.get("reward") is not None and self._rewards is not None:
            returned = reward_values(body["reward"])
            if returned is None or not math.isclose(
                total_reward(returned), total_reward(self._rewards), rel_tol=1e-6, abs_tol=1e-9
            ):
                self._flags.add("reward_mismatch")

    async def _wait_for_report(self, body: object) -> None:
        """Wait for the reward of an agent that answered without one: it may work in the background and report later."""
        idle_seconds = 0.0
        is_accepted = _is_accepted(body)
        while (left := self._rules.timeout_seconds - (time.monotonic() - self._started)) > 0:
            step = min(_POLL_SECONDS, left)
            try:
                await asyncio.wait_for(self._is_decided.wait(), step)
            except TimeoutError:
                pass
            else:
                return
            if is_accepted or self._is_completed or await self._agent.is_busy():
                idle_seconds = 0.0
                continue
            idle_seconds += step
            if idle_seconds >= _NO_REWARD_SECONDS:
                self._fail(
                    Boundary.AGENT,
                    "no_reward",
                    f"the agent answered {body!r:.80} and reported no reward; it must return {{'reward': NUMBER}}, or "
                    "{'status': 'accepted'} and report one later",
                )
                return
        self._fail(
            Boundary.AGENT,
            "timeout",
            f"no reward was reported within {self._rules.timeout_seconds:g} s of the invocation",
        )

    def _is_final(self, failure: Failure) -> bool:
        """Whether the rollout fails for good with this failure, and is not played again."""
        is_last = self._this.is_last or not (failure.is_infrastructure or self._rules.retries_agent_failures)
        return is_last and failure.is_scorable

    def _score(self, rewards: tuple[float, ...]) -> None:
        error = self._trajectory.policy_error
        if error is not None and error.kind in _NEVER_SCORED:
            self._fail(Boundary.AGENT, "raised", f"a reward of {sum(rewards):g}")
            return
        self._rewards = rewards
        calls = self._trajectory.turns
        if not calls:
            self._flags.add("no_model_call")
        if len(rewards) not in (1, sum(call.is_answered for call in calls)):
            self._flags.add("reward_count")
        self._is_decided.set()

    def _fail(self, boundary: Boundary, kind: str, message: str) -> None:
        error = self._trajectory.policy_error
        if error is not None and boundary is Boundary.AGENT:
            boundary = Boundary.HARNESS if error.kind == "exhausted" else Boundary.POLICY
            kind = error.kind
            message = f"{error.message}; the agent then: {message}" if message else error.message
        self._failure = Failure(boundary, kind, clean_text(" ".join(message.split())) or kind)
        self._is_decided.set()

    def _flag_if_scored(self, flag: str) -> None:
        if self._rewards is not None:
            self._flags.add(flag)

    def _keep_metrics(self, metrics: GivenMetrics) -> None:
        accepted = self._metric_names.accepted(metrics.numbers)
        self._metrics.update(accepted)
        self._labels.update(metrics.labels)
        if metrics.problems or len(accepted) < len(metrics.numbers):
            self._flags.add("metric_dropped")

    async def _written(self) -> Attempt:
        record = self._record()
        await self._journal.append(record)
        return record

    async def _amended(self) -> Attempt:
        record = self._record()
        if record.output or record.metrics or record.labels or record.returned or record.flags:
            await self._journal.amend(record)
        return record

    def _record(self) -> Attempt:
        if self._trajectory.sampling_differs:
            self._flags.add("sampling_differs")
        if self._trajectory.has_bad_reply:
            self._flags.add("bad_reply")
        labels, has_all_labels = stored_object(self._labels)
        returned, has_all_fields = stored_object(self._returned)
        if not (has_all_labels and has_all_fields):
            self._flags.add("answer_cut")
        failure = self._failure
        return Attempt(
            prompt_index=self._this.prompt.index,
            rollout_index=self._this.rollout_index,
            number=self._this.number,
            trajectory_id=self._trajectory.id,
            is_final=failure is None or self._is_final(failure),
            failure=failure,
            rewards=self._rewards,
            metrics=tuple(sorted(self._metrics.items())),
            flags=tuple(sorted(self._flags)),
            turns=tuple(self._trajectory.turns),
            output=clean_text(self._output),
            started_at=self._started_at,
            seconds=time.monotonic() - self._started,
            labels=labels,
            returned=returned,
        )


def _reported_error(body: object) -> str | None:
    """Find the error in an answer: the published handler's `status: error`, or a Lambda's `errorType`."""
    if not isinstance(body, Mapping):
        return None
    if body.get("status") == "error":
        return str(body.get("error") or "the agent answered status: error")
    if "errorType" in body:
        return f"{body['errorType']}: {body.get('errorMessage', '')}"
    return None


def _is_accepted(body: object) -> bool:
    """Whether an answer means that the reward follows later: `{}`, as a Lambda forwarder answers, but no answer is not that."""
    return isinstance(body, Mapping) and (not body or str(body.get("status", "")).lower() in _ACCEPTED)


def _seed(job_seed: int, this: Try) -> int:
    """Derive the sampling seed of an attempt: 31 bits, the same on every machine."""
    text = f"{job_seed}/{this.prompt.index}/{this.rollout_index}/{this.number}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") >> 1
