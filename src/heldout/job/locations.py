"""Relative locations made absolute, so that a job means the same from every folder it is resumed in. Looks nothing up."""

from pathlib import PurePath


def located(location: str, folder: PurePath) -> str:
    """`location` below `folder` if it is a relative path; a URI or an ARN unchanged."""
    if "://" in location or location.startswith("arn:"):
        return location
    return str(folder / location)
