"""What will go wrong, and when: everything follows from one seed, and can be written down and played again."""

from __future__ import annotations

import random
from typing import Any

from chaos.journal import Record

#: The kinds of client, one process each.
KINDS = ("sdk", "sync", "session", "sse", "poll", "bare", "openai")
LINKS = ("client_link", "provider_link")

#: Faults of one request at the provider, with how often they are drawn; all others have none.
_REQUEST_FAULTS: list[tuple[int, Record]] = [
    (2, {"kind": "stall"}),
    (2, {"kind": "end_early"}),
    (2, {"kind": "cut"}),
    (2, {"kind": "reset"}),
    (1, {"kind": "reset", "before_head": True, "times": 1}),
    (3, {"kind": "status", "status": 503, "times": 1}),
    (1, {"kind": "status", "status": 400}),
    (2, {"kind": "error_event"}),
    (1, {"kind": "no_answer"}),
    (1, {"kind": "slow_headers", "ms": 500}),
]
_FAULTY = 0.12
_SLOW = 0.12

_BLACK_HOLE = {"direction": ["up", "down", "both"], "seconds": (1.0, 7.0), "then": ["go_on", "reset"]}
#: (weight, target, kind, parameters as ranges)
_FAULTS: list[tuple[int, str, str, dict[str, Any]]] = [
    (10, "client_link", "cut", {}),
    (6, "client_link", "reset", {}),
    (8, "client_link", "reset_at", {"direction": ["down", "up"], "offset": (0, 30_000), "count": (1, 4)}),
    (4, "client_link", "black_hole", _BLACK_HOLE),
    (3, "client_link", "throttle", {"bytes_per_second": (4_000, 40_000), "seconds": (1.0, 5.0)}),
    (3, "client_link", "delay", {"ms": (20, 400), "seconds": (1.0, 5.0)}),
    (3, "provider_link", "cut", {}),
    (2, "provider_link", "reset", {}),
    (3, "provider_link", "reset_at", {"direction": ["down", "up"], "offset": (0, 30_000), "count": (1, 3)}),
    (2, "provider_link", "black_hole", _BLACK_HOLE),
    # Shorter than the gateway's deadlines: what only slows may end nothing.
    (2, "provider_link", "throttle", {"bytes_per_second": (8_000, 60_000), "seconds": (0.5, 2.5)}),
    (2, "provider_link", "delay", {"ms": (20, 400), "seconds": (0.5, 2.5)}),
    (2, "provider", "goaway", {}),
    (2, "gateway", "stop", {"seconds": (0.3, 7.0)}),
    (2, "gateway", "kill", {"seconds": (0.1, 2.0)}),
    (2, "gateway", "term", {"seconds": (0.1, 2.0), "rolling": [True, False]}),
    (6, "client", "kill", {"seconds": (0.1, 2.5)}),
]  # fmt: skip

#: Before the first fault, and after the last one, in which all is healed and every stream has to end.
WARM_UP = 2.0
#: Mean seconds between two faults.
PACE = 1.6


def make_schedule(seed: int, seconds: float, width: int) -> Record:
    """Return the whole run as JSON: `width` streams at a time in each client, and the faults with their times."""
    rng = random.Random(f"faults {seed}")
    faults = []
    at = WARM_UP
    weights = [entry[0] for entry in _FAULTS]
    while at < seconds:
        _, target, kind, ranges = rng.choices(_FAULTS, weights)[0]
        fault: Record = {"at": round(at, 3), "target": target, "kind": kind}
        if target == "client":
            fault["name"] = rng.choice(KINDS)
        for name, values in ranges.items():
            fault[name] = _draw(rng, values)
        faults.append(fault)
        at += rng.expovariate(1 / PACE)
    return {"seed": seed, "seconds": seconds, "width": width, "faults": faults}


def _draw(rng: random.Random, values: Any) -> Any:
    if isinstance(values, list):
        return rng.choice(values)
    low, high = values
    return rng.randint(low, high) if isinstance(low, int) else round(rng.uniform(low, high), 3)


def request_plan(seed: int, kind: str, index: int) -> Record:
    """Return what request `index` of a client asks for; the same for the same seed."""
    rng = random.Random(f"request {seed} {kind} {index}")
    tokens = rng.randint(20, 250)
    sim: Record = {
        "tokens": tokens,
        "interval_ms": rng.choice([10, 15, 20, 30]),
        "ttft_ms": rng.choice([20, 100, 300]),
        "seed": rng.randrange(1 << 32),
        "burst": rng.choice([1, 1, 1, 4]),
    }
    if rng.random() < _FAULTY:
        weights = [weight for weight, _ in _REQUEST_FAULTS]
        fault = dict(rng.choices([fault for _, fault in _REQUEST_FAULTS], weights)[0])
        if fault["kind"] in ("stall", "end_early", "cut", "reset", "error_event") and "before_head" not in fault:
            fault["after_tokens"] = rng.randint(0, tokens - 1)
        sim["fault"] = fault
    return {
        "id": f"{kind}-{seed}-{index}",
        "index": index,
        "model": rng.choice(["over-http2", "over-http1"]),
        "sim": sim,
        "slow": rng.random() < _SLOW,
        "pause": round(rng.uniform(0, 0.5), 3),
    }


def body_of(plan: Record) -> Record:
    """Return the chat completion request; the provider's log tells requests apart by `user`."""
    return {
        "model": plan["model"],
        "messages": [{"role": "user", "content": "Tell me how the weather is."}],
        "user": plan["id"],
        "sim": plan["sim"],
    }
