"""Hundreds of connections that talk, for benchmarks of what happens beside them.

python -m bench.tracetalk serve PORT               sends back what comes in
python -m bench.tracetalk talk HOST PORT COUNT     opens so many and has each say something once a second
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

PAUSE_S = 1.0


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(4096):
            writer.write(data)
    writer.close()


async def serve(port: int) -> None:
    server = await asyncio.start_server(answer, "0.0.0.0", port, backlog=1024)
    await server.serve_forever()


async def talk(host: str, port: int, count: int) -> None:
    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        await asyncio.sleep(PAUSE_S * number / count)  # not all at once
        while True:
            writer.write(b"x" * 100)
            await reader.readexactly(100)
            await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(one(number) for number in range(count)))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve(int(sys.argv[2])))
    else:
        asyncio.run(talk(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
