"""Who calls, and what roles may: as much of STS and IAM as SDKs look at before they start anything.

There are no permissions here: a caller whose signature holds may do everything, a role of any name is there, and jobs take on
nobody's role. The caller is an assumed role, so that SDKs which take the caller's role for the job's find one.
"""

import hashlib
import json

from heldout.service.context import Context
from heldout.service.operations import Params, Reply, Room
from heldout.service.sagemaker.hub import SINCE

STS = Room("sts")
IAM = Room("iam")

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
    """The account, and the caller as a session of the role `heldout`."""
    caller = context.access_key or "anonymous"
    return {
        "Account": context.account,
        "UserId": f"{_role_id(_ROLE)}:{caller}",
        "Arn": f"arn:aws:sts::{context.account}:assumed-role/{_ROLE}/{caller}",
    }


@IAM.operation("GetRole")
async def get_role(context: Context, params: Params) -> Reply:
    """A role of this name, which the services may assume."""
    name = params["RoleName"]
    return {
        "Role": {
            "Path": "/",
            "RoleName": name,
            "RoleId": _role_id(name),
            "Arn": f"arn:aws:iam::{context.account}:role/{name}",
            "CreateDate": SINCE,
            "AssumeRolePolicyDocument": json.dumps(_TRUST),
        }
    }


@IAM.operation("SimulatePrincipalPolicy")
async def simulate_principal_policy(context: Context, params: Params) -> Reply:
    """Every action is allowed on every resource."""
    resources = params.get("ResourceArns") or ["*"]
    results = [
        {"EvalActionName": action, "EvalResourceName": resource, "EvalDecision": "allowed"}
        for action in params["ActionNames"]
        for resource in resources
    ]
    return {"EvaluationResults": results, "IsTruncated": False}


def _role_id(name: str) -> str:
    """An id like IAM's, the same each time."""
    return f"AROA{hashlib.sha256(name.encode()).hexdigest()[:17].upper()}"
