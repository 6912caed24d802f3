"""An error that is handed on as a value knows none of the frames that it came through."""

from __future__ import annotations

from holdfast.core.frameless import without_frames


def fail() -> None:
    try:
        raise KeyError("inner")
    except KeyError as exc:
        raise ValueError("outer") from exc


def test_error_and_its_cause_have_no_frames() -> None:
    try:
        fail()
    except ValueError as exc:
        error = exc
    assert error.__traceback__ is not None
    assert without_frames(error) is error
    assert error.__traceback__ is None
    assert isinstance(error.__cause__, KeyError)
    assert error.__cause__.__traceback__ is None


def test_error_in_whose_handling_it_happened_has_no_frames() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904 - what is tried
    except ValueError as exc:
        error = without_frames(exc)
        assert isinstance(error.__context__, KeyError)
        assert error.__context__.__traceback__ is None
