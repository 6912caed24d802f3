"""What the simulated provider answers at which path."""

from __future__ import annotations

import email.utils
import itertools
import time
from collections.abc import Callable
from functools import partial

import msgspec

from holdfast_tools.simulate.answer import Answer
from holdfast_tools.simulate.control import FaultPlan
from holdfast_tools.simulate.exchange import Exchange, Request
from holdfast_tools.simulate.faults import Status
from holdfast_tools.simulate.generation import Generation, WholeGeneration
from holdfast_tools.simulate.pacer import Pacer
from holdfast_tools.simulate.request import ChatRequest, RequestError, decode_request, error_body, error_type
from holdfast_tools.simulate.request_log import RequestLog
from holdfast_tools.simulate.statistics import Counters, Outcome


class Service:
    """Routes requests; everything that it needs comes from its provider."""

    def __init__(
        self,
        pacer: Pacer,
        counters: Counters,
        plan: FaultPlan,
        models: tuple[str, ...],
        log: RequestLog | None = None,
    ) -> None:
        self._log = log
        self._pacer = pacer
        self._counters = counters
        self._plan = plan
        self._models = models
        self._ids = itertools.count(1)
        self._created = int(time.time())
        self._routes: dict[str, dict[str, Callable[[Request, Exchange], None]]] = {
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/models": {"GET": self._list_models},
            "/stats": {"GET": self._show_statistics},
            "/stats/reset": {"POST": self._reset_statistics},
            "/healthz": {"GET": lambda _, exchange: exchange.reply(200, b'{"status":"ok"}')},
        }

    def add_route(self, method: str, path: str, answer: Callable[[Request, Exchange], None]) -> None:
        self._routes.setdefault(path, {})[method] = answer

    def handle(self, request: Request, exchange: Exchange) -> None:
        """Answer a request, now or over time."""
        path = request.path.partition("?")[0]
        methods = self._routes.get(path)
        try:
            if methods is None:
                raise RequestError(f"There is nothing at {path}.", status=404)
            answer = methods.get(request.method)
            if answer is None:
                raise RequestError(f"{path} takes {' or '.join(methods)}.", status=405)
            answer(request, exchange)
        except RequestError as exc:
            exchange.reply(exc.status, _error(exc))

    # -- chat ------------------------------------------------------------------------------------------

    def _chat(self, request: Request, exchange: Exchange) -> None:
        self._counters.request_began(request.protocol)
        number = next(self._ids)
        request_id = request.headers.get("x-request-id")
        headers = (("x-request-id", request_id or f"req-simulated-{number}"),)
        try:
            chat = decode_request(request.body)
            fault = self._plan.for_request() or (chat.sim.fault if chat.sim is not None else None)
            key = chat.user or request_id
            count = self._counters.request_has_key(key) if key else 0
            if fault is not None and fault.times is not None:
                if not key:
                    raise RequestError(
                        "`times` needs a key: the field `user` or the header x-request-id.", param="user"
                    )
                if count > fault.times:
                    fault = None
        except RequestError as exc:
            exchange.reply(exc.status, _error(exc), headers)
            self._counters.request_ended("failed")
            return
        kind = None if fault is None else str(fault.__struct_config__.tag)
        if kind is not None:
            self._counters.request_faults[kind] += 1
        if self._log is not None:
            write = self._log.refused if isinstance(fault, Status) else self._log.began
            write(number, key, request_id, kind)
        if isinstance(fault, Status):
            exchange.reply(fault.status, *_refusal(fault, headers))
            self._counters.request_ended("failed")
            return
        answer = Answer(chat, answer_id=f"chatcmpl-simulated-{number}", created=int(time.time()))
        generation = _kind(chat)(self._pacer, exchange, answer, fault, headers, partial(self._ended, number, key))
        self._counters.changed()
        generation.start()

    def _ended(self, number: int, key: str | None, generation: Generation, outcome: Outcome) -> None:
        if self._log is not None:
            self._log.ended(number, key, outcome, generation.sent_tokens)
        self._counters.request_ended(outcome, generation.sent_tokens)

    # -- the rest --------------------------------------------------------------------------------------

    def _list_models(self, request: Request, exchange: Exchange) -> None:
        models = [
            {"id": name, "object": "model", "created": self._created, "owned_by": "holdfast"}
            for name in self._models
        ]
        exchange.reply(200, msgspec.json.encode({"object": "list", "data": models}))

    def _show_statistics(self, request: Request, exchange: Exchange) -> None:
        exchange.reply(200, msgspec.json.encode(self._counters.snapshot()))

    def _reset_statistics(self, request: Request, exchange: Exchange) -> None:
        self._counters.reset()
        exchange.reply(200, b"{}")


def _kind(chat: ChatRequest) -> type[Generation]:
    return Generation if chat.stream else WholeGeneration


def _error(exc: RequestError) -> bytes:
    return error_body(exc.message, type_=error_type(exc.status), param=exc.param, code=exc.code)


def _refusal(fault: Status, headers: tuple[tuple[str, str], ...]) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    body = error_body(fault.message, type_=error_type(fault.status), code=f"simulated_{fault.status}")
    if fault.retry_after is None:
        return body, headers
    value = str(fault.retry_after)
    if isinstance(fault.retry_after, int) and fault.retry_after_form == "date":
        value = email.utils.formatdate(time.time() + fault.retry_after, usegmt=True)
    return body, (*headers, ("retry-after", value))
