"""The CPU scheduler's user side: what each call gets of it, when it is in force, and what becomes of it.

Policy is in the functions at the top, which are pure. ``Scheduling`` keeps the shares of all live calls, brings a
scheduler up in a thread (the verifier takes a third of a second), notices when the kernel has ended it, and tries again
a few times. All of it is optional: where there is no scheduler calls have cgroup weights, as ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Protocol

import structlog

from bpf import BpfError
from bpf.errors import AttachFailed, Unavailable
from bpf.sched import MAX_WEIGHT, Share
from controller.model import UNLIMITED, CallView, Limits, TenantId, TenantView, squeezed

log = structlog.get_logger("corral.scheduling")

PROMPT_WITHIN: Final = 2.0  # seconds: a call that declares to be over by then is latency-sensitive
PROMPT_PRIORITY: Final = 80  # and so is one of this priority or above
ATTEMPTS: Final = 3  # after the first; each waits four times as long as the one before
FIRST_PAUSE: Final = 10.0  # seconds
FORGIVEN_AFTER: Final = 3600.0  # seconds in force, after which earlier ends count no more
_MIDDLE: Final = 50  # the priority that weighs 100
ASIDE: Final = 60.0  # seconds that it stays away after the last CPU quota: loading it for a moment is worth nothing


class CpuScheduler(Protocol):
    """``bpf.sched.Scheduler``, or one that records. Everything raises BpfError."""

    def put(self, cgroup_id: int, share: Share, /) -> None: ...
    def forget(self, cgroup_id: int, /) -> None: ...
    def sweep(self) -> None: ...
    def ended(self) -> str: ...
    def close(self) -> None: ...


Opener = Callable[[dict[int, Share]], CpuScheduler]
"""Puts one in force, with these shares of calls. Called in a thread. Raises BpfError."""


def weight_of(limits: Limits, priority: int) -> int:
    """Among the calls of its tenant. Its own CPU weight where it has one; else its priority says it: 100 at the default
    of 50, twice as much for each 25 points above."""
    if limits.cpu_weight is not None and limits.cpu_weight != UNLIMITED:
        return max(1, min(limits.cpu_weight, MAX_WEIGHT))
    return round(100 * 2 ** ((priority - _MIDDLE) / 25))


def is_prompt(call: CallView) -> bool:
    """Whether it is served before others while it keeps to its share: somebody waits for it, and it will be short. Not
    while it is slowed."""
    if call.squeeze is not None and call.squeeze.cpu_weight is not None:
        return False
    duration = call.intent.duration
    return call.grant.priority >= PROMPT_PRIORITY or (duration is not None and 0 < duration <= PROMPT_WITHIN)


def share_of(call: CallView, group: int, group_weight: int) -> Share:
    return Share(
        group=group,
        weight=weight_of(squeezed(call.grant.limits, call.squeeze), call.grant.priority),
        group_weight=group_weight,
        latency=is_prompt(call),
    )


def has_quota(limits: Limits) -> bool:
    return limits.cpu_max is not None and limits.cpu_max > 0


class Scheduling:
    """``opener`` None: switched off, and nothing is done at all. Told of tenants, calls and sessions by the backend;
    ``tick`` comes once a sample, on the event loop."""

    def __init__(self, opener: Opener | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._opener = opener
        self._clock = clock
        self._scheduler: CpuScheduler | None = None
        self._shares: dict[int, Share] = {}
        self._tenants: dict[TenantId, tuple[int, int]] = {}  # the v2 group, and the weight
        self._quotas: dict[
            int | str, str
        ] = {}  # who has a CPU quota: a call's group, a tenant's or session's id; in words
        self._work: asyncio.Task[None] | None = None
        self._stopped = False
        self._since = 0.0  # when it came into force
        self._ends = 0
        self._not_before = 0.0
        self._hopeless = False
        self._problem = ""

    @property
    def wanted(self) -> bool:
        return self._opener is not None

    @property
    def in_force(self) -> bool:
        return self._scheduler is not None

    @property
    def problems(self) -> tuple[str, ...]:
        return (self._problem,) if self._problem else ()

    # --- what the backend tells --------------------------------------------------------------------------------------

    def tenant(self, view: TenantView, group: int) -> None:
        """A tenant that is new, or changed. ``group``: the id of its v2 group."""
        if self._opener is None:
            return
        weight = weight_of(view.limits, _MIDDLE)
        self._tenants[view.id] = (group, weight)
        self.quota(view.id, f"tenant {view.name!r}", view.limits)
        for cgroup_id, share in self._shares.items():
            if share.group == group and share.group_weight != weight:
                self._put(cgroup_id, replace(share, group_weight=weight))

    def quota(self, key: int | str, whose: str, limits: Limits | None) -> None:
        """A CPU quota that only the kernel's own scheduler holds. Limits of None: it is gone, or never was."""
        if self._opener is None:
            return
        if limits is not None and has_quota(limits):
            self._quotas[key] = whose
        else:
            self._quotas.pop(key, None)

    def call(self, cgroup_id: int, view: CallView) -> None:
        """A call that has begun, or changed."""
        of_tenant = self._tenants.get(view.tenant_id)
        if self._opener is None or of_tenant is None:
            return
        self.quota(cgroup_id, f"call {view.id}", squeezed(view.grant.limits, view.squeeze))
        share = share_of(view, *of_tenant)
        if self._shares.get(cgroup_id) != share:
            self._put(cgroup_id, share)

    def _put(self, cgroup_id: int, share: Share) -> None:
        self._shares[cgroup_id] = share
        self._tell(lambda scheduler: scheduler.put(cgroup_id, share))

    def forget(self, cgroup_id: int) -> None:
        if self._shares.pop(cgroup_id, None) is not None:
            self._quotas.pop(cgroup_id, None)
            self._tell(lambda scheduler: scheduler.forget(cgroup_id))

    def _tell(self, what: Callable[[CpuScheduler], None]) -> None:
        """No call fails because its share cannot be had: it is scheduled as what is in no call."""
        if self._scheduler is None:
            return
        try:
            what(self._scheduler)
        except BpfError as err:
            log.warning("the CPU scheduler does not know a call's share", error=str(err))

    # --- its life ----------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Looks after it. Cheap: two files of sysfs and one map."""
        if self._opener is None or self._stopped or self._hopeless or self._work is not None:
            return
        at = self._clock()
        if self._scheduler is not None:
            why = self._scheduler.ended()
            if why:
                self._ejected(at, why)
            elif self._quotas:
                self._step_aside(at)
            else:
                self._tell(lambda scheduler: scheduler.sweep())
                if at - self._since > FORGIVEN_AFTER:
                    self._ends = 0
        elif self._quotas:
            self._not_before = max(self._not_before, at + ASIDE)
            self._problem = self._aside()
        elif at >= self._not_before:
            self._work = asyncio.get_running_loop().create_task(self._open(self._opener), name="cpu scheduler")

    def stop(self) -> None:
        """The kernel's own takes over at once. What is being loaded in a thread ends with the process."""
        self._stopped = True
        if self._scheduler is not None:
            scheduler, self._scheduler = self._scheduler, None
            _close(scheduler)

    async def _open(self, opener: Opener) -> None:
        before = dict(self._shares)
        try:
            scheduler = await asyncio.to_thread(opener, dict(before))
        except BpfError as err:
            self._failed(err)
            return
        except Exception as err:  # nobody waits for this task: what nobody foresaw would be lost
            log.exception("the CPU scheduler cannot be loaded")
            self._failed(BpfError(f"{type(err).__name__}: {err}", remedy="report it with the daemon's log"))
            return
        finally:
            self._work = None
        if self._stopped:
            _close(scheduler)
            return
        self._scheduler, self._since, self._problem = scheduler, self._clock(), ""
        self._catch_up(before)
        log.info("the CPU scheduler is in force: calls have weights and latency classes", calls=len(self._shares))

    def _catch_up(self, before: Mapping[int, Share]) -> None:
        """With what happened while it was loaded."""
        for cgroup_id in before.keys() - self._shares.keys():
            self._tell(lambda scheduler, gone=cgroup_id: scheduler.forget(gone))  # type: ignore[misc] # mypy cannot infer a lambda's defaults
        for cgroup_id, share in self._shares.items():
            if before.get(cgroup_id) != share:
                self._tell(lambda scheduler, at=cgroup_id, now=share: scheduler.put(at, now))  # type: ignore[misc] # likewise

    def _failed(self, err: BpfError) -> None:
        log.warning("the CPU scheduler cannot be loaded; the kernel's own goes on", error=str(err))
        if isinstance(err, AttachFailed):  # somebody else's is in force, say: that may pass
            self._again(self._clock(), err.brief)
            return
        self._hopeless = True
        kind = "" if isinstance(err, Unavailable) else "it cannot be loaded: "
        self._problem = (
            f"no CPU scheduler of our own (sched.mode): {kind}{err.brief} (calls have cgroup weights instead)"
        )

    def _ejected(self, at: float, why: str) -> None:
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            _close(scheduler)
        log.error("the kernel has ended the CPU scheduler; its own has taken all tasks back", why=why)
        self._again(at, f"the kernel has ended it: {why}")

    def _again(self, at: float, why: str) -> None:
        self._ends += 1
        told = f"no CPU scheduler of our own: {why}; the kernel's own schedules, by cgroup weights;"
        if self._ends > ATTEMPTS:
            self._hopeless = True
            self._problem = (
                f'{told} it is not tried again ({self._ends} times were enough): restart agentd, or sched.mode = "off"'
            )
            log.error("the CPU scheduler is given up", ends=self._ends)
            return
        pause = FIRST_PAUSE * 4 ** (self._ends - 1)
        self._not_before = at + pause
        self._problem = f"{told} it is tried again {pause:g} s after that ({self._ends} of {ATTEMPTS})"

    def _aside(self) -> str:
        whose = next(iter(self._quotas.values()))
        more = f" and {len(self._quotas) - 1} others" if len(self._quotas) > 1 else ""
        return (
            f"the CPU scheduler stands aside: {whose}{more} has a CPU quota (cpu_max, --cpu), which only the kernel's "
            "own scheduler holds; calls have cgroup weights meanwhile"
        )

    def _step_aside(self, at: float) -> None:
        scheduler, self._scheduler = self._scheduler, None
        self._not_before, self._problem = at + ASIDE, self._aside()
        log.info("the CPU scheduler stands aside", because=self._problem)
        if scheduler is not None:
            self._work = asyncio.get_running_loop().create_task(self._close_apart(scheduler), name="cpu scheduler")

    async def _close_apart(self, scheduler: CpuScheduler) -> None:
        try:
            await asyncio.to_thread(_close, scheduler)
        finally:
            self._work = None


def _close(scheduler: CpuScheduler) -> None:
    try:
        scheduler.close()
    except BpfError as err:
        log.warning("the CPU scheduler was not closed in order", error=str(err))
