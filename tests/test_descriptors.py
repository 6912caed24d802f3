"""How many connections the descriptors leave room for, and that it is said."""

from __future__ import annotations

import pytest

from holdfast.descriptors import Descriptors


def test_lack_of_descriptors_is_said_once_for_each_setting_and_not_at_each_reload(
    caplog: pytest.LogCaptureFixture,
) -> None:
    descriptors = Descriptors()
    descriptors.limit = 256
    assert [descriptors.connections(20_000) for _ in range(3)] == [128, 128, 128]
    assert caplog.text.count("only 256 descriptors may be open") == 1
    assert descriptors.connections(100) == 100
    assert descriptors.connections(10_000) == 128
    assert caplog.text.count("only 256 descriptors may be open") == 2
