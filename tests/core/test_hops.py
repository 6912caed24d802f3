from __future__ import annotations

import pytest

from holdfast.core.hops import MAX_HOPS, check_hops
from holdfast.errors import InvalidRequest, LoopDetected

OWN = "0123456789abcdef"
OTHERS = [f"{n:016x}" for n in range(1, 9)]


def test_request_of_a_client_carries_nothing_on() -> None:
    assert check_hops(None, OWN) == b""


def test_request_of_another_gateway_carries_on_what_it_has_passed() -> None:
    assert check_hops(OTHERS[0], OWN) == OTHERS[0].encode()
    assert check_hops(", ".join(OTHERS[:2]), OWN) == f"{OTHERS[0]},{OTHERS[1]}".encode()


def test_request_that_comes_back_is_refused_for_good() -> None:
    with pytest.raises(LoopDetected, match="has come back") as caught:
        check_hops(f"{OTHERS[0]},{OWN},{OTHERS[1]}", OWN)
    assert (caught.value.http_status, caught.value.retryable) == (508, False)


def test_request_through_too_many_gateways_is_refused() -> None:
    assert check_hops(",".join(OTHERS[: MAX_HOPS - 1]), OWN)
    with pytest.raises(LoopDetected, match="has passed 5 gateways"):
        check_hops(",".join(OTHERS[:MAX_HOPS]), OWN)
    with pytest.raises(LoopDetected):
        check_hops(",".join(OTHERS * 1000), OWN)


@pytest.mark.parametrize("value", ["", "x", OWN.upper(), f"{OTHERS[0]},", f"{OTHERS[0]}\r\nx: y", OTHERS[0] * 2])
def test_header_that_no_gateway_writes_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_hops(value, OWN)
    assert caught.value.param == "holdfast-hops"
