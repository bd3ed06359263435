"""What one client can hold of the Job Runtime: bytes and seconds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one Job Runtime. The defaults suit every job; tests use smaller ones."""

    body_bytes: int = 64 * 2**20
    """Most bytes of a request's body: a long conversation with images, far below AgentCore's own limit (100 MB)."""
    body_seconds: float = 60.0
    """How long a request's body may take to arrive after its head."""
    reply_bytes: int = 64 * 2**20
    """Most bytes of a streamed reply: room for log-probabilities with alternatives, but not for an endless stream."""
    idle_seconds: float = 300.0
    """How long a connection may be silent, or take to send a request's head. Agents think between their turns."""
    stop_seconds: float = 2.0
    """How long current requests may take to end when the service stops."""


DEFAULT_LIMITS = Limits()
