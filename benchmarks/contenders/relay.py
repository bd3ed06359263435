"""A bare recording relay on aiohttp: passes each call on and appends request and reply to a file. It understands nothing and
syncs nothing: the floor for any recorder built on aiohttp."""

import argparse
import asyncio
import json
from pathlib import Path
from typing import BinaryIO

import aiohttp
import uvloop
from aiohttp import web


async def serve(upstream: str, file: BinaryIO) -> None:
    """Relays until it is killed; prints its port."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), headers={"Content-Type": "application/json"}
    )

    async def relay(request: web.BaseRequest) -> web.Response:
        sent = await request.read()
        async with session.post(f"{upstream}/chat/completions", data=sent) as response:
            received = await response.read()
        file.write(b"[%b,%b]\n" % (sent, received))
        file.flush()
        return web.Response(body=received, headers={"Content-Type": "application/json"})

    server = await asyncio.get_running_loop().create_server(
        web.Server(relay, access_log=None), "127.0.0.1", 0, backlog=1024
    )
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await asyncio.get_running_loop().create_future()


def main() -> None:
    """Relays to `--upstream`, recording in `--folder`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    with (options.folder / "calls.jsonl").open("wb") as file:
        uvloop.run(serve(options.upstream, file))


if __name__ == "__main__":
    main()
