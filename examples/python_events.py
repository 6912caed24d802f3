"""Chunks, the place in the queue, usage, states of the connection and errors: python examples/python_events.py"""

import asyncio
import os

from holdfast import (
    Chunk,
    ConnectionState,
    HoldfastError,
    StreamEnd,
    StreamingAIClient,
    StreamQueued,
    WebSocketConfig,
)


def show_state(state: ConnectionState) -> None:
    print(f"[{state.value}]")


async def main() -> None:
    config = WebSocketConfig(
        base_url=os.environ.get("HOLDFAST_URL", "http://127.0.0.1:8080/v1"),
        api_key=os.environ.get("HOLDFAST_API_KEY"),
    )
    async with StreamingAIClient(config, on_state=show_state) as client:
        try:
            async for event in client.events([{"role": "user", "content": "Count."}], model="demo", max_tokens=5):
                match event:
                    case StreamQueued(position=position):
                        print(f"waiting at position {position}")
                    case Chunk(seq=seq, text=text):
                        print(f"entry {seq}: {text!r}")
                    case StreamEnd(finish_reason=reason, usage=usage):
                        print(f"ended: {reason}; {usage}")
        except HoldfastError as error:
            print(f"{error.code}: {error.message}; received so far: {error.partial!r}")
            raise


asyncio.run(main())
