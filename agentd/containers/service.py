"""Attached containers: found and made sessions, followed as they start, pause, change and end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Final

import structlog

from agentd.api.attached import Selector
from agentd.containers.engine import Container, Engine, Happened, check, matches, names
from agentd.containers.errors import ContainerError, EngineAway
from agentd.containers.follow import Follow, FollowFile
from controller.host import Host
from controller.model import (
    AlreadyExists,
    ControllerError,
    Limits,
    NotFound,
    SessionId,
    SessionView,
    WrongState,
)
from controller.recognise.recogniser import Recogniser

log = structlog.get_logger("corral.containers")

_RETRY: Final = (1.0, 2.0, 5.0, 10.0, 30.0)  # seconds between tries to reach an engine that went away


class Containers:
    """``file``: where it is kept what is to be attached when it starts."""

    def __init__(self, host: Host, recogniser: Recogniser, engine: Engine, file: FollowFile) -> None:
        self._host = host
        self._recogniser = recogniser
        self._engine = engine
        self._file = file
        self._follow: list[Follow] = []
        self._detached: set[str] = set()  # while it runs, whatever follows it
        self._task: asyncio.Task[None] | None = None
        self._unread: Exception | None = None  # why the file could not be read: it is not written over then

    async def start(self) -> None:
        try:
            self._follow = self._file.load()
        except (ControllerError, OSError) as err:
            self._unread = err
            log.error("containers that start are not attached", error=str(err))
        self._watch()

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._engine.close()

    async def attach(
        self, *, tenant: str, name: str, labels: Mapping[str, str], selector: Selector, rules: str
    ) -> Sequence[SessionView]:
        """Those that run and match. With ``follow`` also those that start later, and none need match now."""
        follow = Follow(tenant=tenant, name=name, labels=dict(labels), rules=rules, selector=selector)
        self._host.registry.tenant(tenant)  # raises NotFound: now, not when the first container starts
        self._recogniser.check_rules(rules)
        if selector.follow and self._unread is not None:
            raise WrongState(
                f"what is followed cannot be kept: {self._unread}", remedy="remove that file and restart agentd"
            )
        found = await self._engine.find(selector)
        if not found and not selector.follow:
            raise NotFound("no running container matches", field="containers", remedy="docker ps; or --follow")
        sessions, errors = [], []
        for container in found:
            try:
                sessions.append(self._attach(container, follow))
            except ControllerError as err:
                errors.append(err)
        if errors and not sessions and not selector.follow:
            raise errors[0]
        for problem in errors:
            log.warning("a container was not attached", error=str(problem))
        if selector.follow and follow not in self._follow:
            self._follow.append(follow)
            await asyncio.to_thread(self._file.save, list(self._follow))
        self._watch()
        return sessions

    async def detach(self, target: str) -> Sequence[SessionId]:
        """By a container's name or id. By a name, label, network or project that is followed: it is not any more, and
        sessions that there are go on. Raises NotFound."""
        container = await self._known(target)
        session = self._recogniser.of_container(container) if container else None
        kept = [one for one in self._follow if not names(one.selector, target)]
        if session is None and len(kept) == len(self._follow):
            raise NotFound(
                f"no attached session or container {target[:80]!r}", field="target", remedy="corral session list"
            )
        if len(kept) < len(self._follow):
            self._follow = kept
            await asyncio.to_thread(self._file.save, list(kept))
        if session is None:
            return []
        if container:
            self._detached.add(container)
        self._recogniser.detach(session)
        return [session]

    async def _known(self, target: str) -> str:
        """The id of an attached container, by its name, its id or the beginning of that."""
        for session_id, attachment in self._recogniser.containers().items():
            name = self._host.session(session_id).name
            if target in {attachment.container, name} or (
                len(target) >= 12 and attachment.container.startswith(target)
            ):
                return attachment.container
        try:
            return (await self._engine.inspect(target)).id
        except ControllerError:
            return ""

    def _attach(self, container: Container, follow: Follow) -> SessionView:
        check(container)
        view = self._recogniser.attach_group(
            tenant=follow.tenant,
            name=follow.name or container.name,
            labels=follow.labels,
            pid=container.pid,
            container=container.id,
            rules=follow.rules,
        )
        self._limit(view.id, container.limits)
        return view

    def _limit(self, session_id: SessionId, limits: Limits) -> None:
        """The calls get the container's ceilings, as a whole: they have left its cgroup."""
        if limits == Limits():
            return
        try:
            self._host.set_limits(session_id, limits=limits, tripwire=None)
        except ControllerError as err:
            log.warning("a container's ceilings do not hold for its calls", session=session_id, error=str(err))

    # --- events ------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """The engine is listened to while something depends on it."""
        if self._task is None and (self._follow or self._recogniser.containers()):
            self._task = asyncio.create_task(self._listen(), name="containers")

    async def _listen(self) -> None:
        tries = 0
        while True:
            try:
                async for happened in self._events():
                    tries = 0
                    await self._handle(happened)
            except ContainerError as err:
                pause = _RETRY[min(tries, len(_RETRY) - 1)]
                if tries == 0:
                    log.warning("containers are not followed for now", error=str(err), retry_seconds=pause)
            except Exception:  # an answer that nobody foresaw: it must not end the following for good
                pause = _RETRY[-1]
                log.exception("an engine's answer was not understood", retry_seconds=pause, remedy="report this")
            tries += 1
            await asyncio.sleep(pause)

    async def _events(self) -> AsyncIterator[Happened]:
        """Events; first, and after each gap, a look at everything."""
        events = self._engine.events()
        async with aclosing(events):
            yield Happened("lost")
            async for happened in events:
                yield happened

    async def _handle(self, happened: Happened) -> None:
        session = self._recogniser.of_container(happened.container) if happened.container else None
        try:
            match happened.what:
                case "lost":
                    await self._look_again()
                case "start":
                    await self._started(happened.container)
                case "destroy" if session is None:
                    self._detached.discard(happened.container)
                case "die" | "destroy" if session is not None:
                    self._recogniser.ended(session)
                case "pause" if session is not None:
                    await self._host.freeze(session, by="docker pause")
                case "unpause" if session is not None:
                    await self._host.thaw(session, by="docker unpause")
                case "update" if session is not None:
                    self._limit(session, (await self._engine.inspect(happened.container)).limits)
                case _:
                    pass
        except EngineAway:
            raise
        except ControllerError as err:
            log.warning(
                "an event of a container was not followed",
                event=happened.what,
                container=happened.container[:12],
                error=str(err),
            )

    async def _started(self, container_id: str) -> None:
        if not self._follow:
            return
        self._detached.discard(container_id)  # it was started anew
        container = await self._engine.inspect(container_id)
        for follow in self._follow:
            if matches(container, follow.selector):
                with suppress(AlreadyExists):
                    self._attach(container, follow)
                return

    async def _look_again(self) -> None:
        """What started or ended while nobody listened."""
        for session_id, attachment in self._recogniser.containers().items():
            try:
                await self._engine.inspect(attachment.container)
            except NotFound:
                self._recogniser.ended(session_id)
        for follow in list(self._follow):
            for container in await self._engine.find(follow.selector):
                if self._recogniser.of_container(container.id) is None and container.id not in self._detached:
                    try:
                        self._attach(container, follow)
                    except (
                        ControllerError
                    ) as err:  # one that ended meanwhile, say: the others are attached all the same
                        log.warning("a container was not attached", container=container.short, error=str(err))
