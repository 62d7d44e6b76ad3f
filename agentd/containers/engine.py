"""Docker Engine, through its SDK. The SDK blocks: every call runs in a thread, and none is on the path of a call."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from agentd.api.attached import Selector
from agentd.containers.errors import BadContainer, EngineAway, NoSdk
from controller.model import Limits, NotFound

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container as SdkContainer

log = structlog.get_logger("corral.containers")

COMPOSE_PROJECT: Final = "com.docker.compose.project"
_TIMEOUT: Final = 10  # seconds for one answer of the engine
_EVENTS: Final = ("start", "die", "destroy", "pause", "unpause", "update", "rename")
_WAITING: Final = 4096  # events that wait to be handled; beyond it the oldest are dropped and all is looked at again

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container that runs. ``pid``: its first process, as the host numbers it. ``limits``: its own ceilings."""

    id: str
    name: str
    pid: int
    image: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    networks: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    paused: bool = False

    @property
    def short(self) -> str:
        return self.id[:12]


@dataclass(frozen=True, slots=True)
class Happened:
    """What the engine said of a container; ``what`` "lost": events were dropped or the engine was away."""

    what: str
    container: str = ""


class Engine:
    """``url``: where it listens, e.g. unix:///run/docker.sock. Nothing is connected before the first question."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client: DockerClient | None = None

    async def find(self, selector: Selector) -> list[Container]:
        """Those that run and match everything that is set. Raises EngineAway, NoSdk."""
        filters: dict[str, Any] = {"status": ["running", "paused"]}
        labels = [*selector.labels, *([f"{COMPOSE_PROJECT}={selector.project}"] if selector.project else [])]
        if labels:
            filters["label"] = labels
        if selector.network:
            filters["network"] = selector.network

        def ask(client: DockerClient) -> list[Container]:
            found = [one for one in client.containers.list(filters=filters) if _is_named(one, selector.name)]
            return [_container(one) for one in found if _runs(one)]

        return await self._ask(ask)

    async def inspect(self, container: str) -> Container:
        """Raises NotFound where it does not run (any more)."""

        def ask(client: DockerClient) -> Container:
            one = client.containers.get(container)
            if not _runs(one):
                raise NotFound(f"container {container[:80]!r} does not run", field="containers.name", remedy="start it")
            return _container(one)

        return await self._ask(ask)

    async def events(self) -> AsyncGenerator[Happened, None]:
        """From now on, until the engine goes away (EngineAway)."""
        client = await self._connect()
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Happened | None] = asyncio.Queue()
        filters = {"type": "container", "event": list(_EVENTS)}
        stream = await asyncio.to_thread(lambda: client.events(decode=True, filters=filters))

        def put(happened: Happened | None) -> None:
            if queue.qsize() >= _WAITING:
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(Happened("lost"))
            queue.put_nowait(happened)

        def read() -> None:
            with contextlib.suppress(Exception):  # whatever ends the stream: the engine is away, which is said below
                for event in stream:
                    what = str(event.get("Action", event.get("status", "")))
                    loop.call_soon_threadsafe(put, Happened(what, str(event.get("Actor", {}).get("ID", ""))))
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(put, None)

        # a daemon thread: it stands in a read that only the engine, or the closed socket, ends
        threading.Thread(target=read, name="docker-events", daemon=True).start()
        try:
            while (happened := await queue.get()) is not None:
                yield happened
        finally:
            with contextlib.suppress(Exception):  # closing a broken connection
                stream.close()
        raise EngineAway(f"Docker Engine at {self.url} went away", remedy="start it; it is tried again")

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await asyncio.to_thread(client.close)

    async def _ask(self, ask: Callable[[DockerClient], T]) -> T:
        client = await self._connect()
        return await asyncio.to_thread(self._answer, ask, client)

    def _answer(self, ask: Callable[[DockerClient], T], client: DockerClient) -> T:
        import docker.errors

        try:
            return ask(client)
        except docker.errors.NotFound as err:
            raise NotFound(
                f"no such container: {err.explanation}", field="containers.name", remedy="docker ps"
            ) from err
        except (docker.errors.DockerException, OSError) as err:  # what requests raises is an OSError
            raise self._away(err) from err

    async def _connect(self) -> DockerClient:
        if self._client is None:
            self._client = await asyncio.to_thread(self._open)
        return self._client

    def _open(self) -> DockerClient:
        try:
            import docker
            import docker.errors
        except ImportError as err:
            raise NoSdk(
                'the Python package "docker" is not installed', remedy="install it for the daemon, or Corral anew"
            ) from err
        try:
            _knock(self.url)
            # the version is asked for: engines refuse clients that claim a newer one
            return docker.DockerClient(base_url=self.url, version="auto", timeout=_TIMEOUT)
        except (docker.errors.DockerException, OSError) as err:
            raise self._away(err) from err

    def _away(self, err: Exception) -> EngineAway:
        return EngineAway(
            f"Docker Engine at {self.url} does not answer: {err}",
            remedy="start it, or say where it listens (attach.docker in the configuration)",
        )


def _knock(url: str) -> None:
    """Raises OSError where nobody listens. The SDK would say so, too, and leave its socket open."""
    if url.startswith("unix://"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_TIMEOUT)
            probe.connect(url.removeprefix("unix://"))


def _is_named(one: SdkContainer, name: str) -> bool:
    if not name:
        return True
    container = str(one.id)
    return name in {one.name, container} or (len(name) >= 12 and container.startswith(name))


def _runs(one: SdkContainer) -> bool:
    state = one.attrs.get("State") or {}
    return bool(state.get("Running")) and int(state.get("Pid") or 0) > 0


def _container(one: SdkContainer) -> Container:
    attributes = one.attrs
    config, networks = attributes.get("Config") or {}, (attributes.get("NetworkSettings") or {}).get("Networks") or {}
    return Container(
        id=str(one.id),
        name=str(one.name),
        pid=int(attributes["State"]["Pid"]),
        image=str(config.get("Image") or ""),
        labels={str(key): str(value) for key, value in (config.get("Labels") or {}).items()},
        networks=frozenset(networks),
        limits=limits_of(attributes.get("HostConfig") or {}),
        paused=bool(attributes["State"].get("Paused")),
    )


def limits_of(host: Mapping[str, Any]) -> Limits:
    """Of HostConfig (docker inspect): bytes, cores, processes. 0 and -1 there mean no limit."""
    memory, pids = int(host.get("Memory") or 0), int(host.get("PidsLimit") or 0)
    quota, period = int(host.get("CpuQuota") or 0), int(host.get("CpuPeriod") or 0) or 100_000
    nano = int(host.get("NanoCpus") or 0)
    cpu = nano / 1e9 if nano > 0 else quota / period if quota > 0 else None
    return Limits(
        memory_max=memory if memory > 0 else None,
        cpu_max=cpu,
        pids_max=pids if pids > 0 else None,
    )


def matches(container: Container, selector: Selector) -> bool:
    """As ``find`` does, of one that has just started."""
    for label in selector.labels:
        key, equals, value = label.partition("=")
        if key not in container.labels or (equals and container.labels[key] != value):
            return False
    return (
        (not selector.name or selector.name in (container.name, container.id))
        and (not selector.network or selector.network in container.networks)
        and (not selector.project or container.labels.get(COMPOSE_PROJECT) == selector.project)
    )


def names(selector: Selector, word: str) -> bool:
    """Whether ``word`` is one of those by which containers are selected."""
    return bool(word) and word in {selector.name, selector.network, selector.project, *selector.labels}


def check(container: Container) -> None:
    """Raises BadContainer for one that cannot be a session."""
    if container.pid <= 1:
        raise BadContainer(
            f"container {container.short} has no process of its own on this host", remedy="start it here"
        )
