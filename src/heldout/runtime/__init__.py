"""The Job Runtime: the HTTP service that agents call for their model and to report how a rollout ended."""

from heldout.runtime.reports import Report, ReportKind, ReportRefused
from heldout.runtime.rules import CallRules, Limits
from heldout.runtime.service import JobRuntime
from heldout.runtime.signing import Credentials
from heldout.runtime.trajectories import Trajectory

__all__ = ["CallRules", "Credentials", "JobRuntime", "Limits", "Report", "ReportKind", "ReportRefused", "Trajectory"]
