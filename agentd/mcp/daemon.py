"""The daemon's API as the session sees it. grpc is imported with the first question: most agents start this server and
never ask one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from agentd.mcp.protocol import ToolError
from agentd.sockets import BROKER, default_socket

if TYPE_CHECKING:
    from agentd.api.client import SyncClient
    from agentd.proto.corral.v1 import corral_pb2

ANSWER_WITHIN: Final = 10.0  # seconds
# The session's stream begins with what there is and says nothing of where that ends: it is read for so long.
PRESENT_WITHIN: Final = 0.5

_T = TypeVar("_T")


class Daemon:
    """Raises ToolError, in words that a model or its user can act on."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment

    @property
    def session(self) -> str:
        return self._environment.get("CORRAL_SESSION", "")

    def budgets(self) -> list[dict[str, Any]]:
        from agentd.proto.corral.v1 import corral_pb2 as pb

        reply = self._ask(lambda api: api.call(api.agent.GetBudget, pb.GetBudgetRequest(), timeout=ANSWER_WITHIN))
        budgets = [plain(budget) for budget in reply.budgets]
        for budget in budgets:
            if budget["band"] == "unspecified":  # a ceiling
                del budget["band"]
        return budgets

    def outcome(self, call_id: str) -> corral_pb2.Outcome:
        from agentd.proto.corral.v1 import corral_pb2 as pb

        request = pb.GetOutcomeRequest(call_id=call_id)
        return self._ask(lambda api: api.call(api.agent.GetOutcome, request, timeout=ANSWER_WITHIN)).outcome

    def update_intent(self, call_id: str, intent: Any) -> None:
        """What ``intent`` (a controller.model.Intent) declares, and else what the running call declared before."""
        from agentd.api.convert import intent_to_proto
        from agentd.proto.corral.v1 import corral_pb2 as pb

        def update(api: SyncClient) -> pb.UpdateIntentResponse:
            running = next((call for call in _present(api) if call.id == call_id), None)
            if running is None or running.HasField("outcome"):
                raise ToolError(f"{call_id} is no call of this session that runs.")
            merged = pb.Intent()
            merged.CopyFrom(running.intent)
            merged.MergeFrom(intent_to_proto(intent))
            request = pb.UpdateIntentRequest(call_id=call_id, intent=merged)
            return api.call(api.agent.UpdateIntent, request, timeout=ANSWER_WITHIN)

        self._ask(update)

    def last_call(self) -> str:
        """The id of the session's call that ended last, of those that the daemon still has; "" where there is none."""
        return self._ask(_last_of)

    def _ask(self, question: Callable[[SyncClient], _T]) -> _T:
        token = self._environment.get("CORRAL_TOKEN", "")
        if not token:
            raise ToolError(
                "This agent runs in no session of Corral (CORRAL_TOKEN is not set), so that there is nothing to ask. "
                'It has to be started in one: eval "$(corral session open --tenant NAME)".'
            )
        from agentd.api.client import ApiError, DaemonAway, NotPermitted, SyncClient

        refused: ApiError | None = None
        for target in self._targets():
            try:
                with SyncClient(target, token) as api:
                    return question(api)
            except (DaemonAway, NotPermitted) as err:
                refused = err  # another tenant's socket, or an old one: the next may be ours
            except ApiError as err:
                raise ToolError(f"The daemon of Corral said no: {err}") from None
        raise ToolError(
            f"The daemon of Corral cannot be asked: {refused or 'no socket of its API is open to this user'}. "
            "Name the tenant's socket in CORRAL_API (ask the operator which)."
        )

    def _targets(self) -> list[str]:
        """CORRAL_API, or the sockets beside the broker's that this user may open. A token opens its own session and
        nothing else on every one of them."""
        named = self._environment.get("CORRAL_API", "")
        if named:
            return [named]
        runtime = Path(self._environment.get("CORRAL_SOCKET") or default_socket(BROKER, self._environment)).parent
        found = [*sorted(runtime.glob("tenants/*.sock")), runtime / "operator.sock"]
        return [str(path) for path in found if os.access(path, os.R_OK | os.W_OK)]


def _last_of(api: SyncClient) -> str:
    ended = [call for call in _present(api) if call.HasField("outcome")]
    return max(ended, key=lambda call: call.outcome.ended_at).id if ended else ""


def _present(api: SyncClient) -> Iterator[corral_pb2.Call]:
    """The session's calls, those that ended lately among them."""
    import grpc

    from agentd.proto.corral.v1 import corral_pb2 as pb

    stream = api.agent.WatchSession(pb.WatchSessionRequest(), timeout=PRESENT_WITHIN, metadata=api.metadata)
    try:
        for update in stream:
            if update.WhichOneof("update") == "call":
                yield update.call
    except grpc.RpcError as err:
        if err.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise api._error(err) from None  # the client's own translation of a stream's errors
    finally:
        stream.cancel()


def plain(message: Any) -> dict[str, Any]:
    """Every scalar field of a message, so that what newer daemons say is passed on. Enums as words."""
    from agentd.cli.plain import enum_word

    return {
        field.name: getattr(message, field.name)
        if field.enum_type is None
        else enum_word(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if field.message_type is None
        and not field.is_repeated
        and not (field.has_presence and not message.HasField(field.name))
    }
