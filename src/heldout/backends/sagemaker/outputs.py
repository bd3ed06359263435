"""The run folder that a managed job leaves in its output, copied to this machine.

A run folder has a job.json with the job's ARN. Heldout always writes one; another service may leave none, and then there are no
tables to read.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from heldout.backends.sagemaker.account import Account, translated_errors
from heldout.job.registry import Registry
from heldout.runs.remote_mirror import state_folder
from heldout.runs.run import JobStatus, Run, runs_below

_STATE_FILE = "job.json"


def run_of(account: Account, *, job_arn: str, output: str, likely: str, registry: Registry) -> Run | None:
    """The run of a job below `output`; None if the job left none.

    likely: a part of the path that is searched first. A bucket that the registry maps to a folder is read there.
    Raises CloudError when the output cannot be read.
    """
    here = registry.location(output)
    if not here.startswith("s3://"):
        return next((run for path in runs_below(Path(here)) if (run := Run.open(path)).state.arn == job_arn), None)
    kept = _kept_folder(job_arn)
    if (kept / _STATE_FILE).exists() and (run := Run.open(kept)).state.status is JobStatus.COMPLETED:
        return run
    bucket, _, prefix = here.removeprefix("s3://").partition("/")
    with translated_errors(f"output {output!r}"):
        folder = _find(account, bucket, prefix, job_arn, likely)
        if folder is None:
            return None
        _fetch(account, bucket, folder, kept)
    return Run.open(kept)


def _find(account: Account, bucket: str, prefix: str, job_arn: str, likely: str) -> str | None:
    """The key prefix of the job's run folder, with a slash at its end."""
    found = [key for key in _keys(account, bucket, prefix) if key.rpartition("/")[2] == _STATE_FILE]
    for key in sorted(found, key=lambda key: likely not in key):
        if _arn_in(account.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()) == job_arn:
            return key.removesuffix(_STATE_FILE)
    return None


def _arn_in(text: bytes) -> str | None:
    """The ARN in a job.json; None for a file of the same name with other content."""
    try:
        arn = json.loads(text)["arn"]
    except (ValueError, KeyError, TypeError):
        return None
    return arn if isinstance(arn, str) else None


def _fetch(account: Account, bucket: str, folder: str, kept: Path) -> None:
    """Copies the folder to this machine, whole or not at all."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".fetching-") as temporary:
        place = Path(temporary) / "run"
        for key in _keys(account, bucket, folder):
            name = key.removeprefix(folder)
            if any(part in ("", ".", "..") for part in name.split("/")):
                continue  # such a path would lead out of the folder
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            account.client("s3").download_file(bucket, key, str(path))
        shutil.rmtree(kept, ignore_errors=True)
        place.replace(kept)


def _keys(account: Account, bucket: str, prefix: str) -> Iterator[str]:
    s3 = account.client("s3")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):
                yield item["Key"]


def _kept_folder(job_arn: str) -> Path:
    return state_folder() / "fetched" / hashlib.sha256(job_arn.encode()).hexdigest()[:24]
