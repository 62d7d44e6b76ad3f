"""Sizes and durations: what is read, what is refused, and that what is written reads back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.units import (
    UnitError,
    exact_duration,
    exact_size,
    format_bytes,
    format_duration,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (512, 512),
        ("512", 512),
        ("512B", 512),
        ("1K", 1024),
        ("1k", 1024),
        ("64 KiB", 65_536),
        ("300M", 300 * 1024**2),
        ("300MB", 300 * 1024**2),
        ("1.5G", 3 * 1024**3 // 2),
        ("2T", 2 * 1024**4),
        (" 2G ", 2 * 1024**3),
        ("9007199254740993", 2**53 + 1),  # a float would lose the last byte
    ],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1", -1, "1X", "1e3", "1,5G", "300 MM", "١M", "inf", 2**63, "9P9", "8192P", "1" * 100, True, 1.5]
)
def test_wrong_sizes_are_refused(text: str | int) -> None:
    with pytest.raises(UnitError) as err:
        parse_size(text)
    assert len(str(err.value)) < 250


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (0, 0.0),
        (2.5, 2.5),
        ("30s", 30.0),
        ("5m", 300.0),
        ("5min", 300.0),
        ("1h", 3600.0),
        ("2d", 172_800.0),
        ("250ms", 0.25),
        ("100us", 100e-6),
        ("1h30m", 5400.0),
        ("1h 30m 5s", 5405.0),
        ("0s", 0.0),
    ],
)
def test_durations_are_read(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "30", "s", "-5s", -1, "5q", "30m1h", "5s5s", "1h,5m", math.nan, math.inf, "1s" * 100, False]
)
def test_wrong_durations_are_refused(text: str | float) -> None:
    with pytest.raises(UnitError, match="duration"):
        parse_duration(text)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_size, parse_duration):
        try:
            value, remedy = parse(text), ""
        except UnitError as err:
            value, remedy = 0, str(err)
        assert value >= 0
        assert not remedy or "write" in remedy or "give" in remedy


@given(st.integers(0, 2**63 - 1))
def test_an_exact_size_reads_back(size: int) -> None:
    assert parse_size(exact_size(size)) == size


@given(st.one_of(st.integers(0, 10**7).map(float), st.integers(1, 10**6).map(lambda n: n / 1000)))
def test_an_exact_duration_reads_back(seconds: float) -> None:
    assert parse_duration(exact_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (300 * 1024**2, "300 MiB"),
        (1024**2 - 1, "1 MiB"),
        (1024**3 - 1, "1 GiB"),
        (12_345_678_901, "11.5 GiB"),
        (-2048, "-2 KiB"),
        (2**70, "1048576 PiB"),
    ],
)
def test_bytes_for_people(size: float | None, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (math.inf, "never"),
        (0, "0 s"),
        (1.2e-4, "120 us"),
        (0.0034, "3.4 ms"),
        (0.9999, "1 s"),
        (12.5, "12.5 s"),
        (59.99, "1m"),
        (312, "5m 12s"),
        (3599.9, "1h"),
        (5400, "1h 30m"),
        (86_400 * 3 + 4 * 3600, "3d 4h"),
        (86_400 * 400, "400d"),
        (-2, "-2 s"),
    ],
)
def test_durations_for_people(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text
