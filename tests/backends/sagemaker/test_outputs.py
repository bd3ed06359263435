"""The output of managed jobs in S3, copied to this machine: only the right job's folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heldout.backends.sagemaker.account import Account
from heldout.backends.sagemaker.outputs import run_of
from heldout.job.registry import Registry
from heldout.runs.run import Run
from tests.support.jobs import new_run
from tests.support.s3_service import BUCKET, s3_client, s3_service, use_service


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with s3_service() as url:
        use_service(monkeypatch, url)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        yield s3_client(url)


def found(job_arn: str) -> Run | None:
    return run_of(Account(), job_arn=job_arn, output=f"s3://{BUCKET}/out", likely="mine", registry=Registry())


def test_a_jobs_run_is_found_among_others_and_files_that_are_no_runs(s3: Any, tmp_path: Path) -> None:
    made = new_run(tmp_path, "http://127.0.0.1:9/v1", ["1"])
    s3.upload_file(str(made.folder / "job.json"), BUCKET, "out/later/run/job.json")
    s3.put_object(Bucket=BUCKET, Key="out/a/job.json", Body=b"not JSON at all")
    s3.put_object(Bucket=BUCKET, Key="out/b/job.json", Body=b"[1, 2]")
    run = found(made.state.arn)
    assert run is not None
    assert run.state == made.state
    assert found(f"{made.state.arn}-of-nobody") is None


def test_no_key_of_a_bucket_is_written_outside_the_runs_folder(s3: Any, tmp_path: Path) -> None:
    made = new_run(tmp_path, "http://127.0.0.1:9/v1", ["1"])
    s3.upload_file(str(made.folder / "job.json"), BUCKET, "out/run/job.json")
    s3.put_object(Bucket=BUCKET, Key=f"out/run/{tmp_path}/planted", Body=b"")
    assert found(made.state.arn) is not None
    assert not (tmp_path / "planted").exists()
