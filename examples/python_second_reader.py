"""Read one answer twice: a second client joins while it runs, and goes on where the first one stopped.

The same works after a restart: keep `stream.id` and `stream.last_seq`, then `attach`.
Run it with: python examples/python_second_reader.py
"""

import asyncio
import os

from holdfast import StreamingAIClient, WebSocketConfig


async def main() -> None:
    config = WebSocketConfig(
        base_url=os.environ.get("HOLDFAST_URL", "http://127.0.0.1:8080/v1"),
        api_key=os.environ.get("HOLDFAST_API_KEY"),
    )
    async with StreamingAIClient(config) as first, StreamingAIClient(config) as second:
        messages = [{"role": "user", "content": "Tell me a story."}]
        stream = first.stream_chat(messages, model="demo", max_tokens=50)
        async for text in stream:  # `stream` keeps it running after the loop was left
            print(f"first client:  {text!r}")
            if stream.last_seq >= 4:
                break
        async for text in second.attach(stream.id or "", after=stream.last_seq):
            print(f"second client: {text!r}")


asyncio.run(main())
