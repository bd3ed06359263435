"""Logs of jobs that no process plays, written line by line into a server's state."""

import uuid
from datetime import UTC, datetime

from heldout.backends.local.run_log import LOG_FILE
from heldout.service.sagemaker.jobs import JobRecord
from tests.support.live_service import ROLE, Served
from tests.support.service_jobs import CATEGORY

NOON_MS = 1_790_000_000_000
"""When these logs begin."""
RUN = "base-model-eval"


def logged(service: Served, job: str, *lines: tuple[int, str], run: str = RUN) -> str:
    """Adds lines, at so many milliseconds after noon, to a job's log, and makes the job known; gives its stream's name."""
    record = JobRecord(
        name=job,
        arn=service.context.arn(f"job/{CATEGORY}/{job}"),
        role=ROLE,
        document="{}",
        output=str(service.context.state / "output"),
        group=job,
        run_name=RUN,
        created_at=NOON_MS / 1000,
        is_made=True,
    )
    service.context.store.put(record)
    record.folder.mkdir(parents=True, exist_ok=True)
    with (record.folder / LOG_FILE).open("a") as log:
        for after, text in lines:
            at = datetime.fromtimestamp((NOON_MS + after) / 1000, UTC).isoformat(timespec="milliseconds")
            log.write(f"{at.removesuffix('+00:00')}Z {run} {text}\n")
    return f"{job}/runner"


def named(prefix: str) -> str:
    """A job's name that no other test uses."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"
