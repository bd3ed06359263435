"""Region, endpoint and credentials for S3, from the places where AWS tools look for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from heldout.errors import ReferenceProblem

if TYPE_CHECKING:
    import botocore.session
    from obstore.store import S3Credential

# botocore renews expiring credentials; a query this often is cheap and never too late.
_CREDENTIALS_KEPT = timedelta(minutes=5)
_DEFAULT_REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class AwsSettings:
    """Settings of an S3 client."""

    region: str
    endpoint: str | None
    """URL of an S3-compatible service; None for Amazon S3."""
    credentials: "Callable[[], S3Credential]"
    origin: str
    """Source of the credentials, for error messages."""


def aws_settings(location: str, environ: Mapping[str, str]) -> AwsSettings:
    """Finds the settings for `location`.

    Reads `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_DEFAULT_REGION`, and `AWS_ACCESS_KEY_ID` with
    `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`; then botocore's sources (`AWS_PROFILE`, the shared configuration and
    credentials files, single sign-on, container and instance roles). The default region is us-east-1.
    Raises ReferenceProblem if there are no credentials.
    """
    return _from_environment(environ) or _from_botocore(location, environ)


def _from_environment(environ: Mapping[str, str]) -> AwsSettings | None:
    """Settings from variables alone, which avoids the slow import of botocore; None if configuration files may add to them."""
    key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    region, endpoint = _region(environ), _endpoint(environ)
    configuration = Path(environ.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()
    if not key or not secret or (configuration.exists() and not (region and endpoint)):
        return None
    credential: S3Credential = {
        "access_key_id": key,
        "secret_access_key": secret,
        "token": environ.get("AWS_SESSION_TOKEN") or None,
        "expires_at": None,
    }
    return AwsSettings(region or _DEFAULT_REGION, endpoint, lambda: credential, "credentials from AWS_ACCESS_KEY_ID")


def _from_botocore(location: str, environ: Mapping[str, str]) -> AwsSettings:
    # Imported here: it takes most of a second, and only s3:// without credentials in the environment needs it.
    import botocore.exceptions
    import botocore.session

    session = botocore.session.get_session()
    try:
        credentials = session.get_credentials()
        region = _region(environ) or session.get_config_variable("region") or _DEFAULT_REGION
        endpoint = _endpoint(environ) or _configured_endpoint(session)
    except botocore.exceptions.BotoCoreError as error:
        raise ReferenceProblem(f"the AWS configuration cannot be used to reach {location}: {error}") from error
    if credentials is None:
        raise ReferenceProblem(
            f"no AWS credentials to reach {location} with; looked at AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY, AWS_PROFILE, "
            "AWS_SHARED_CREDENTIALS_FILE (~/.aws/credentials), AWS_CONFIG_FILE (~/.aws/config), container and instance roles"
        )

    def current() -> "S3Credential":
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key or "",
            "secret_access_key": frozen.secret_key or "",
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_KEPT,
        }

    return AwsSettings(region, endpoint, current, f"credentials from {credentials.method}")


def _region(environ: Mapping[str, str]) -> str | None:
    return environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or None


def _endpoint(environ: Mapping[str, str]) -> str | None:
    return environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or None


def _configured_endpoint(session: "botocore.session.Session") -> str | None:
    """`endpoint_url` of the profile, or of its `services` section for S3, in the shared configuration file."""
    from botocore.configprovider import ConfiguredEndpointProvider

    url: str | None = ConfiguredEndpointProvider(session.full_config, session.get_scoped_config(), "s3").provide()
    return url
