"""The RPCs that the commands use, one method each, over ``agentd.cli.remote``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from agentd.cli.remote import Remote
from agentd.proto.corral.v1 import corral_pb2 as pb


class Api:
    """Use as a context manager. Every method raises CliError's tree."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def __enter__(self) -> Api:
        self._remote.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._remote.__exit__(*error)

    def snapshot(self, *, with_ended: bool = False) -> pb.SnapshotResponse:
        return self._remote.call(self._remote.operator.Snapshot, pb.SnapshotRequest(with_ended=with_ended))

    def watch(self, interval: float = 0.0) -> Iterator[pb.WatchResponse]:
        return self._remote.stream(self._remote.operator.Watch, pb.WatchRequest(interval_seconds=interval))

    def trace(self, request: pb.TraceRequest) -> Iterator[pb.TraceResponse]:
        return self._remote.stream(self._remote.operator.Trace, request)

    def history(self, request: pb.HistoryRequest) -> pb.HistoryResponse:
        return self._remote.call(self._remote.operator.History, request)

    def set_tenant(self, name: str, limits: pb.Limits | None, priority: int | None) -> pb.Tenant:
        request = pb.SetTenantRequest(name=name, limits=limits, priority=priority)
        return self._remote.call(self._remote.operator.SetTenant, request).tenant

    def set_limits(self, request: pb.SetLimitsRequest) -> None:
        self._remote.call(self._remote.operator.SetLimits, request)

    def set_priority(self, target: str, priority: int) -> None:
        request = pb.SetPriorityRequest(target=target, priority=priority)
        self._remote.call(self._remote.operator.SetPriority, request)

    def budgets(self) -> list[pb.Budget]:
        """Of the session whose token was given."""
        return list(self._remote.call(self._remote.agent.GetBudget, pb.GetBudgetRequest()).budgets)

    def set_budget(self, request: pb.SetBudgetRequest) -> list[pb.Budget]:
        return list(self._remote.call(self._remote.operator.SetBudget, request).budgets)

    def freeze(self, target: str) -> list[str]:
        reply = self._remote.call(self._remote.operator.Freeze, pb.FreezeRequest(target=target))
        return list(reply.call_ids)

    def thaw(self, target: str) -> list[str]:
        return list(self._remote.call(self._remote.operator.Thaw, pb.ThawRequest(target=target)).call_ids)

    def kill(self, target: str) -> list[str]:
        return list(self._remote.call(self._remote.operator.Kill, pb.KillRequest(target=target)).call_ids)

    def tier(self) -> pb.TierStatus:
        return self._remote.call(self._remote.operator.Tier, pb.TierRequest()).tier

    def doctor(self) -> list[pb.Feature]:
        return list(self._remote.call(self._remote.operator.Doctor, pb.DoctorRequest()).features)

    def open_session(self, tenant: str, name: str, labels: Mapping[str, str]) -> pb.OpenSessionResponse:
        request = pb.OpenSessionRequest(tenant=tenant, name=name, labels=labels, uid=os.getuid())
        return self._remote.call(self._remote.agent.OpenSession, request)

    def close_session(self, session_id: str, *, kill: bool) -> None:
        request = pb.CloseSessionRequest(session_id=session_id, kill=kill)
        self._remote.call(self._remote.agent.CloseSession, request)

    def attach(self, request: pb.AttachRequest) -> list[pb.Session]:
        return list(self._remote.call(self._remote.operator.Attach, request).sessions)

    def detach(self, target: str) -> list[str]:
        return list(self._remote.call(self._remote.operator.Detach, pb.DetachRequest(target=target)).session_ids)

    def outcome(self, call_id: str) -> pb.Outcome:
        request = pb.GetOutcomeRequest(call_id=call_id)
        return self._remote.call(self._remote.agent.GetOutcome, request).outcome
