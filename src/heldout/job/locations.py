"""Makes relative locations absolute, so that a job can be resumed from any folder. Reads no files."""

from pathlib import PurePath


def located(location: str, folder: PurePath) -> str:
    """Returns a relative path below `folder`; a URI or an ARN unchanged."""
    if "://" in location or location.startswith("arn:"):
        return location
    return str(folder / location)
