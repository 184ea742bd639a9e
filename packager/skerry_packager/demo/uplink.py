"""The uplink of one device: a TCP relay in a process of its own. Killing the process pulls the cable.

``python -m skerry_packager.demo.uplink LISTEN_PORT TARGET_PORT``, both on loopback.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target_port: int) -> None:
    """Connect one client to the target until either side closes."""

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        sink.close()

    try:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target_port)
    except OSError:
        writer.close()
        return
    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))


async def serve(listen_port: int, target_port: int) -> None:
    """Relay until the process is ended."""
    server = await asyncio.start_server(lambda r, w: relay(r, w, target_port), "127.0.0.1", listen_port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
