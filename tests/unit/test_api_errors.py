"""Every exception as one status, through a real socket and the client; and the encoding of their parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agentd.api.client import (
    AlreadyThere,
    ApiError,
    BadRequest,
    DaemonAway,
    DaemonFailed,
    NoSuchObject,
    NotPermitted,
    Rejected,
    WrongMoment,
    connect,
)
from agentd.api.errors import Stopping, clip, decode_part, encode_part, metadata_of, status_of
from agentd.proto.corral.v1 import corral_pb2 as pb
from controller.model import (
    AlreadyExists,
    CannotEnforce,
    CgroupError,
    ControllerError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Refused,
    WrongState,
)
from tests.unit.api_fake import Served, serve


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path) as it:
        yield it


PARTS = {"field": "limits.pids", "value": "7", "remedy": "use 6"}
MAPPING: list[tuple[ControllerError, grpc.StatusCode, str, type[ApiError]]] = [
    (InvalidRequest("is odd", **PARTS), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request", BadRequest),
    (NotFound("is not there", **PARTS), grpc.StatusCode.NOT_FOUND, "not_found", NoSuchObject),
    (AlreadyExists("is there", **PARTS), grpc.StatusCode.ALREADY_EXISTS, "already_exists", AlreadyThere),
    (NotAllowed("is another's", **PARTS), grpc.StatusCode.PERMISSION_DENIED, "not_allowed", NotPermitted),
    (WrongState("is closed", **PARTS), grpc.StatusCode.FAILED_PRECONDITION, "wrong_state", WrongMoment),
    (
        Refused("does not fit", code="tenant_calls", **PARTS),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "tenant_calls",
        Rejected,
    ),
    (CannotEnforce("cannot be", **PARTS), grpc.StatusCode.FAILED_PRECONDITION, "cannot_enforce", WrongMoment),
    (Stopping(), grpc.StatusCode.UNAVAILABLE, "stopping", DaemonAway),
    (CgroupError("pids.max: EINVAL", **PARTS), grpc.StatusCode.INTERNAL, "cgroup_error", DaemonFailed),
    (ControllerError("something", **PARTS), grpc.StatusCode.INTERNAL, "controller_error", DaemonFailed),
]


@pytest.mark.parametrize(("err", "status", "code", "kind"), MAPPING, ids=lambda value: str(value)[:20])
async def test_mapping(
    served: Served, err: ControllerError, status: grpc.StatusCode, code: str, kind: type[ApiError]
) -> None:
    served.host.fail = err
    async with connect(served.operator) as api:
        with capture_logs() as logs, pytest.raises(ApiError) as raised:
            await api.call(api.operator.SetPriority, pb.SetPriorityRequest(target="acme"))
    got = raised.value
    assert type(got) is kind
    assert (got.status, got.code) == (status, code)
    assert (got.field, got.value, got.remedy) == (err.field, err.value, err.remedy)
    assert str(got) == str(err)
    assert bool(logs) == (status is grpc.StatusCode.INTERNAL)


def test_every_controller_error_has_a_status() -> None:
    mapped = {type(err) for err, *_ in MAPPING}
    # those of other packages (cgroup files, traces) never reach a caller as such, or by the status of their base
    own = {kind for kind in ControllerError.__subclasses__() if kind.__module__ == ControllerError.__module__}
    assert own - {NotAllowed} <= mapped | {NotAllowed}

    class Later(NotFound):
        pass

    assert status_of(Later("x")) == (grpc.StatusCode.NOT_FOUND, "not_found")


async def test_the_unexpected_gives_a_reference_and_nothing_of_the_inside(served: Served) -> None:
    served.host.fail = ZeroDivisionError("secret /root/path")
    async with connect(served.operator) as api:
        with capture_logs() as logs, pytest.raises(DaemonFailed) as raised:
            await api.call(api.operator.SetPriority, pb.SetPriorityRequest(target="acme"))
    assert "secret" not in str(raised.value)
    assert raised.value.code == "unexpected"
    (entry,) = logs
    assert entry["log_level"] == "error"
    assert entry["method"] == "SetPriority"
    assert entry["exc_info"]
    assert entry["reference"] in str(raised.value)
    assert raised.value.value == entry["reference"]


async def test_the_unexpected_in_a_stream(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(served.host, "snapshot", broken)
    async with connect(served.operator) as api:
        with capture_logs() as logs, pytest.raises(DaemonFailed) as raised:
            await anext(api.stream(api.operator.Watch, pb.WatchRequest()))
    assert raised.value.code == "unexpected"
    assert len(logs) == 1
    assert not served.host.hub.listened_to


async def test_errors_of_any_length_and_language_arrive(served: Served) -> None:
    async with connect(served.operator) as api:
        for text in ("\N{SNOWMAN}" * 10_000, "x" * 100_000, "%41%" * 5000, "line\nline\r\0"):
            served.host.fail = NotFound(text, field=text, value=text, remedy=text)
            with pytest.raises(NoSuchObject) as raised:
                await api.call(api.operator.SetPriority, pb.SetPriorityRequest(target="acme"))
            for part in (raised.value.field, raised.value.value, raised.value.remedy):
                assert part
                assert text.startswith(part.removesuffix("..."))
            # whatever follows still works on the same connection
            await api.call(api.operator.Doctor, pb.DoctorRequest())


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_parts_survive_the_encoding(text: str) -> None:
    encoded = encode_part(text, limit=1_000_000)
    assert encoded.isascii()
    assert all(c.isprintable() for c in encoded)
    assert decode_part(encoded) == text


@given(st.text(max_size=400), st.integers(min_value=10, max_value=300))
def test_parts_are_bounded(text: str, limit: int) -> None:
    assert len(encode_part(text, limit)) <= limit
    kept = clip(text, limit)
    assert text.startswith(kept)


def test_metadata_stays_below_grpcs_soft_limit() -> None:
    err = InvalidRequest(
        "\N{SNOWMAN}" * 9999, field="\N{SNOWMAN}" * 9999, value="\N{SNOWMAN}" * 9999, remedy="é" * 9999
    )
    assert sum(len(key) + len(value) + 32 for key, value in metadata_of(err)) < 4096
