"""Callers and roles: the STS and IAM operations that SageMaker SDKs call before they start a job.

There are no permissions: a caller with a valid signature may do everything, a role of any name exists, and jobs run without a
role. The caller is an assumed role, because SDKs use the caller's role as the job's role by default.
"""

import hashlib
import json

from heldout.service.context import REGISTRY_CREATED_AT, Context
from heldout.service.wire.operations import OperationTable, Params, Reply

STS = OperationTable[Context]("sts")
IAM = OperationTable[Context]("iam")

_ROLE = "heldout"
_TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {
                "Service": ["sagemaker.amazonaws.com", "bedrock-agentcore.amazonaws.com", "lambda.amazonaws.com"]
            },
            "Action": "sts:AssumeRole",
        }
    ],
}


@STS.operation("GetCallerIdentity")
async def get_caller_identity(context: Context, params: Params) -> Reply:
    """Returns the account, and the caller as a session of the role `heldout`."""
    caller = context.access_key or "anonymous"
    return {
        "Account": context.account,
        "UserId": f"{_role_id(_ROLE)}:{caller}",
        "Arn": f"arn:aws:sts::{context.account}:assumed-role/{_ROLE}/{caller}",
    }


@IAM.operation("GetRole")
async def get_role(context: Context, params: Params) -> Reply:
    """Returns a role of this name, which the services may assume."""
    name = params["RoleName"]
    return {
        "Role": {
            "Path": "/",
            "RoleName": name,
            "RoleId": _role_id(name),
            "Arn": f"arn:aws:iam::{context.account}:role/{name}",
            "CreateDate": REGISTRY_CREATED_AT,
            "AssumeRolePolicyDocument": json.dumps(_TRUST),
        }
    }


@IAM.operation("SimulatePrincipalPolicy")
async def simulate_principal_policy(context: Context, params: Params) -> Reply:
    """Allows every action on every resource."""
    resources = params.get("ResourceArns") or ["*"]
    results = [
        {"EvalActionName": action, "EvalResourceName": resource, "EvalDecision": "allowed"}
        for action in params["ActionNames"]
        for resource in resources
    ]
    return {"EvaluationResults": results, "IsTruncated": False}


def _role_id(name: str) -> str:
    """A role id in IAM's form, derived from the name."""
    return f"AROA{hashlib.sha256(name.encode()).hexdigest()[:17].upper()}"
