"""Plays the bad network: a TCP relay in front of the gateway that cuts the connections which go through it.

    python examples/cutting_relay.py                each press of Enter cuts every connection
    python examples/cutting_relay.py --after 1      besides, each connection is cut a second after it was made

It needs nothing but Python. Point a client at http://127.0.0.1:8081/v1.
"""

import argparse
import asyncio
import socket
import struct
import sys
import threading


class Relay:
    """Carries bytes both ways between clients and the gateway until it is told to cut."""

    def __init__(self, host: str, port: int, after: float | None) -> None:
        self._target = (host, port)
        self._after = after
        self._open: set[asyncio.StreamWriter] = set()

    async def serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            gateway_reader, gateway = await asyncio.open_connection(*self._target)
        except OSError as exc:
            print(f"the gateway cannot be reached: {exc}", flush=True)
            client.close()
            return
        self._open.add(client)
        both_ways = asyncio.gather(carry(client_reader, gateway), carry(gateway_reader, client))
        try:
            await asyncio.wait_for(both_ways, self._after)
        except TimeoutError:
            self.cut(client)
        except OSError:
            pass
        finally:
            self._open.discard(client)
            for writer in (client, gateway):
                writer.close()

    def cut(self, *clients: asyncio.StreamWriter) -> None:
        """Reset these connections, all without arguments. What was on its way is lost, as on a real network."""
        targets = clients or tuple(self._open)
        for client in targets:
            reset = struct.pack("ii", 1, 0)  # SO_LINGER of 0 seconds makes the close a reset
            client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            client.transport.abort()
        print(f"cut {len(targets)} connection{'' if len(targets) == 1 else 's'}", flush=True)


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    # Whoever ends, ends both directions.
    raise ConnectionResetError


async def main() -> None:
    parser = argparse.ArgumentParser(description="A TCP relay that cuts its connections.")
    parser.add_argument("--port", type=int, default=8081, help="port to listen on (default: 8081)")
    parser.add_argument("--gateway", default="127.0.0.1:8080", help="where to relay to (default: 127.0.0.1:8080)")
    parser.add_argument("--after", type=float, metavar="SECONDS", help="cut each connection at this age")
    args = parser.parse_args()
    host, _, port = args.gateway.rpartition(":")
    relay = Relay(host, int(port), args.after)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", args.port)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    print(f"{address} leads to http://{args.gateway}; Enter cuts, Ctrl-C stops", flush=True)

    loop = asyncio.get_running_loop()

    def wait_for_enter() -> None:
        for _ in sys.stdin:
            loop.call_soon_threadsafe(relay.cut)

    threading.Thread(target=wait_for_enter, daemon=True).start()
    await server.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
