"""Metrics pages: names, label sets, and text that is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu.engines import prometheus
from gpu.engines.prometheus import NotMetrics, parse

PAGE = """\
# HELP a:running Requests.
# TYPE a:running gauge
a:running{engine="0"} 2
a:running{engine="1"} 3.0
# TYPE a:tokens_total counter
a:tokens_total 1.5e+03
# TYPE a:use gauge
a:use{engine="0"} 0.5
a:use{engine="1"} NaN
# TYPE a:info gauge
a:info{block_size="16",num_gpu_blocks="100"} 1
"""


def test_sums_means_and_labels() -> None:
    page = parse(PAGE)
    assert page.total("a:running") == 5
    assert page.mean("a:running") == 2.5
    assert page.whole("a:tokens_total") == 1500
    assert page.mean("a:use") == 0.5  # NaN is no reading
    assert page.total("b:missing", "a:running") == 5
    assert page.total("b:missing") is None
    assert page.label("a:info", "block_size") == "16"
    assert page.has_prefix("a:")
    assert not page.has_prefix("vllm:")


def test_an_empty_page_has_nothing() -> None:
    assert parse("").total("x") is None


@pytest.mark.parametrize("text", ["<html>", "a{b 1", 'a{b="c} 1', "a one", "# TYPE a nonsense"])
def test_text_that_is_none(text: str) -> None:
    with pytest.raises(NotMetrics):
        parse(text)


def test_too_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "MAX_SAMPLES", 3)
    with pytest.raises(NotMetrics, match="more than 3"):
        parse(PAGE)


@given(st.one_of(st.text(), st.text(alphabet='ab{}=",#TYPEHL \n\\_:0123456789.eNa+-')))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text)
    except NotMetrics:
        return
