"""A script for Amazon SageMaker with the published `sagemaker-train`, independent of Heldout.

    python sdk_user.py SETTINGS

SETTINGS is JSON: `evaluator`, the evaluator's arguments; `hyperparameters` to set; `dry_run`, whether to start nothing. The
last line of its output is its observations as JSON.
"""

import json
import sys
from typing import Any

from sagemaker.core.resources import Job
from sagemaker.train.agent_rft_job import AgentRFTJob
from sagemaker.train.evaluate import MultiTurnRLEvaluator


class AgentRFTEvaluationJob(AgentRFTJob):  # type: ignore[misc]
    """The SDK's wrapper, for jobs that evaluate."""

    JOB_CATEGORY = "AgentRFTEvaluation"


def main() -> None:
    settings = json.loads(sys.argv[1])
    evaluator = MultiTurnRLEvaluator(**settings["evaluator"])
    for name, value in settings["hyperparameters"].items():
        setattr(evaluator.hyperparameters, name, value)
    around = {
        "models": MultiTurnRLEvaluator.list_supported_models(),
        "runtimes": [runtime["arn"] for runtime in MultiTurnRLEvaluator.list_bedrock_agentcore_runtimes()],
        "training_jobs": [job.job_name for job in AgentRFTJob.get_all()],
    }
    execution = evaluator.evaluate(dry_run=settings["dry_run"])
    print(json.dumps(around if execution is None else around | watched(execution)))


def watched(execution: Any) -> dict[str, Any]:
    """Waits for an execution and describes it."""
    execution.wait(poll=1, timeout=300)
    execution.refresh()
    jobs = [AgentRFTEvaluationJob.from_job(job) for job in Job.get_all(job_category="AgentRFTEvaluation")]
    return {
        "status": execution.status.overall_status,
        "steps": {step.name: step.status for step in execution.status.step_details},
        "arn": execution.arn,
        "mlflow_app": execution.mlflow_resource_arn,
        "mlflow_url": execution.get_mlflow_url(),
        "known": [known.arn for known in MultiTurnRLEvaluator.get_all()],
        "jobs": [described(AgentRFTEvaluationJob.get(job.job_name)) for job in jobs],
    }


def described(job: AgentRFTJob) -> dict[str, Any]:
    """A job by the SDK's wrapper."""
    job.refresh()
    return {
        "name": job.job_name,
        "status": job.job_status,
        "agent": job.agent_config,
        "output": job.s3_output_path,
        "mlflow": job.mlflow_details,
        "tokens": job.billable_token_usage,
        "progress": job.progress_info,
    }


if __name__ == "__main__":
    main()
