"""A fixed list of updates, then silence: for tests and pictures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.source.protocol import Action, CallPast, Moment, SourceError, Update


class FixtureSource:
    """``acted`` records what was asked for; ``refuse`` refuses it, in these words. ``moments`` by time: a question for
    the past is answered with the last one at or before it; without any there is no past."""

    def __init__(
        self,
        updates: Iterable[Update],
        *,
        name: str = "fixture",
        refuse: str = "",
        live: bool = True,
        moments: Sequence[Moment] = (),
        calls: Iterable[CallPast] = (),
        budgets: Sequence[pb.Budget] = (),
        processes: Sequence[pb.Process] = (),
        features: Sequence[pb.Feature] = (),
    ) -> None:
        self._updates = list(updates)
        self._name = name
        self._refuse = refuse
        self.live = live
        self._moments = list(moments)
        self._calls = {past.call.id: past for past in calls if past.call is not None}
        self._budgets = budgets
        self._processes = processes
        self._features = features
        self.acted: list[Action] = []

    @property
    def name(self) -> str:
        return self._name

    async def updates(self) -> AsyncIterator[Update]:
        for update in self._updates:
            yield update

    async def moment(self, at: float | None) -> Moment:
        if not self._moments:
            raise SourceError("fixture: there is no past")
        earlier = [moment for moment in self._moments if at is not None and moment.at <= at]
        return earlier[-1] if earlier else self._moments[0]

    async def call(self, call_id: str, *, until: float | None = None) -> CallPast:
        past = self._calls.get(call_id, CallPast())
        return CallPast(
            call=past.call,
            decisions=[d for d in past.decisions if until is None or d.at <= until],
            samples=[s for s in past.samples if until is None or s.at <= until],
            names=past.names,
        )

    async def session_calls(self, session_id: str, *, until: float | None = None) -> Sequence[pb.Call]:
        calls = [past.call for past in self._calls.values() if past.call and past.call.session_id == session_id]
        return sorted(calls, key=lambda call: -call.begun_at)

    async def budgets(self, session_id: str) -> Sequence[pb.Budget]:
        return self._budgets

    async def processes(self, call_id: str) -> Sequence[pb.Process]:
        return self._processes

    async def features(self) -> Sequence[pb.Feature]:
        return self._features

    async def act(self, action: Action) -> Sequence[str]:
        self.acted.append(action)
        if self._refuse:
            raise SourceError(self._refuse)
        return [action.target]

    async def close(self) -> None:
        pass
