"""Stream an answer without asyncio: python examples/python_sync.py"""

import os

from holdfast import SyncStreamingAIClient, WebSocketConfig

config = WebSocketConfig(
    base_url=os.environ.get("HOLDFAST_URL", "http://127.0.0.1:8080/v1"),
    api_key=os.environ.get("HOLDFAST_API_KEY"),
)
with SyncStreamingAIClient(config) as client:
    messages = [{"role": "user", "content": "What is a holdfast?"}]
    for text in client.stream_chat(messages, model="demo", max_tokens=100):
        print(text, end="", flush=True)
    print()
