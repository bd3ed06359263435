"""Keeps what is to run running: starts processes, and starts them again when they die."""


class Supervisor:
    """Processes of one server."""
