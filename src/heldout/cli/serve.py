"""The command that serves the AWS protocols: serve."""

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer

from heldout.backends.local.evaluation import run_to_end
from heldout.backends.local.preparation import default_region
from heldout.backends.registry_file import read_registry
from heldout.runs.remote_mirror import state_folder
from heldout.service.server import Settings, serving


def add_to(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command("serve")(serve_command)


def serve_command(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0: any port that is free.")],
    registry: Annotated[
        Path | None, typer.Option(help="TOML file that maps AWS names to local things. [env: HELDOUT_REGISTRY]")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the server's state; default: in the user's state folder."),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Verify no signatures; on loopback addresses only.")
    ] = False,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    region: Annotated[
        str | None, typer.Option(help="The AWS region of the server; default: the environment's.")
    ] = None,
) -> None:
    """Serve the SageMaker API and related AWS APIs on this machine, for unmodified AWS SDKs."""
    settings = Settings(
        host=host,
        port=port,
        region=region or default_region(),
        registry=read_registry(registry),
        state=(state or state_folder() / "service").absolute(),
        has_auth=not no_auth,
    )
    run_to_end(_serve(settings))


async def _serve(settings: Settings) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with serving(settings) as context:
        verified = "verified signatures" if settings.has_auth else "no authentication"
        print(
            f"serving on {context.endpoint} (region {context.region}, {verified}, state in {context.state})", flush=True
        )
        await stopped.wait()
        running = await asyncio.to_thread(lambda: context.supervisor.num_running)
    if running:
        print(
            f"still running: {running}, each in a process of its own; a server started with the same --state sees to them again"
        )
