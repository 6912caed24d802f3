"""The OpenAI SDK as it is, with a request id in a header; after a break the rest is read by long polling."""

from __future__ import annotations

import asyncio

import openai

from chaos.clients.entries import code_of
from chaos.clients.over_http import READ_TIMEOUT, make_http, poll
from chaos.journal import Record, StreamJournal
from chaos.schedule import body_of

_AGAIN = {"draining", "overloaded"}


class OpenAIClient:
    """As `docs/how-to/use-the-openai-sdk.md` tells users to do it."""

    def __init__(self, url: str) -> None:
        self._http = make_http(url)
        self._openai = openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="unused", timeout=READ_TIMEOUT, max_retries=2
        )

    async def run(self, plan: Record, journal: StreamJournal) -> None:
        while journal.stream_id is None and not journal.is_over:
            try:
                await self._stream(plan, journal)
            except (openai.APITimeoutError, openai.APIConnectionError) as exc:
                journal.lost(repr(exc))
            except openai.APIStatusError as exc:
                code = code_of({"error": exc.body})
                if code in _AGAIN:
                    journal.lost(code)
                else:
                    journal.end("failed", code or f"http_{exc.status_code}", message=str(exc))
            except openai.APIError as exc:  # an error event within the stream
                journal.end("failed", code_of({"error": exc.body}), message=str(exc))
            except (
                Exception
            ) as exc:  # in the middle of a stream: of httpx, or of what a later SDK uses in its place
                if "TransportError" not in {cls.__name__ for cls in type(exc).__mro__}:
                    raise
                journal.lost(repr(exc))
            if journal.stream_id is None and not journal.is_over:
                await asyncio.sleep(0.3)
        await poll(self._http, journal)

    async def _stream(self, plan: Record, journal: StreamJournal) -> None:
        body = body_of(plan)
        once = {"holdfast-request-id": plan["id"], "holdfast-on-disconnect": "continue"}
        stream = await self._openai.chat.completions.create(
            model=body["model"],
            messages=body["messages"],
            user=body["user"],
            stream=True,
            extra_body={"sim": body["sim"]},
            extra_headers=once,
        )
        async with stream:
            journal.identify(stream.response.headers["holdfast-stream-id"])
            journal.read_from(-1)
            seq = 0
            finish_reason = None
            async for chunk in stream:
                choice = chunk.choices[0] if chunk.choices else None
                journal.got(seq, [(choice.delta.content or "") if choice is not None else ""])
                finish_reason = choice.finish_reason if choice is not None else finish_reason
                seq += 1
            # The SDK takes a clean end of the body for the end of the answer. One without finish reason is none.
            if finish_reason is not None:
                journal.end("completed", seq=seq)
            else:
                journal.lost("the answer has no finish reason")

    async def aclose(self) -> None:
        await self._http.aclose()
        await self._openai.close()
