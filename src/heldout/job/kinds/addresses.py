"""Check of the http(s) addresses that references hold."""

from urllib.parse import urlsplit, urlunsplit

from heldout.errors import ReferenceProblem, shown


def checked_url(url: str, what: str) -> str:
    """Return `url` unchanged.

    what: the reference in error messages. Raises ReferenceProblem unless `url` is an `http(s)://host:port` address without a user
    or password; the error does not repeat a password.
    """
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:  # brackets without an IPv6 address, or an invalid port
        raise ReferenceProblem(f"{what}: {shown(url)} is not an http(s)://host:port address") from error
    if not is_address:
        raise ReferenceProblem(f"{what}: {shown(url)} is not an http(s)://host:port address")
    if parts.username or parts.password:
        safe = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        raise ReferenceProblem(
            f"{what.replace(url, safe)}: a URL must not hold a user or password; name an environment variable with "
            "?key-variable=NAME"
        )
    return url
