"""How many threads an agent may take."""

MAX_THREADS = 4096
"""Threads are made only when all are taken, so this costs nothing: it is there so that no attempt ever waits for another's
thread, as it would in asyncio's default of a few per core."""
