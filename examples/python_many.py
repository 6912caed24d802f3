"""Many answers at once over one connection; the slow reader holds up nobody: python examples/python_many.py"""

import asyncio
import os

from holdfast import StreamingAIClient, WebSocketConfig


async def main() -> None:
    config = WebSocketConfig(
        base_url=os.environ.get("HOLDFAST_URL", "http://127.0.0.1:8080/v1"),
        api_key=os.environ.get("HOLDFAST_API_KEY"),
    )

    async def ask(client: StreamingAIClient, number: int) -> str:
        messages = [{"role": "user", "content": f"Question {number}"}]
        pieces = [text async for text in client.stream_chat(messages, model="demo", max_tokens=20)]
        return "".join(pieces)

    async with StreamingAIClient(config) as client:
        answers = await asyncio.gather(*(ask(client, number) for number in range(20)))
    for number, answer in enumerate(answers):
        print(f"{number}: {answer}")


asyncio.run(main())
