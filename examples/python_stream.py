"""Stream an answer. Start a gateway first (`make serve`), then: python examples/python_stream.py"""

import asyncio
import os

from holdfast import StreamingAIClient, WebSocketConfig


async def main() -> None:
    config = WebSocketConfig(
        base_url=os.environ.get("HOLDFAST_URL", "http://127.0.0.1:8080/v1"),
        api_key=os.environ.get("HOLDFAST_API_KEY"),
    )
    async with StreamingAIClient(config) as client:
        messages = [{"role": "user", "content": "What is a holdfast?"}]
        async for text in client.stream_chat(messages, model="demo", temperature=0.7, max_tokens=2048):
            print(text, end="", flush=True)
        print()


asyncio.run(main())
