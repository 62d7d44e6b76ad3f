"""The daemon: composes what the other modules are, in the order in which each needs the other, and takes it down."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import grp
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import structlog

from agentd import __version__
from agentd.api.errors import ApiServerError
from agentd.api.history import LedgerHistory
from agentd.api.identity import OPERATOR, parse_principal, tenant_principal
from agentd.api.listen import Listener, TcpListener, UnixListener
from agentd.api.server import ApiServer, ServerLimits
from agentd.attach import Attaching
from agentd.broker import Broker, BrokerError
from agentd.config import Config, ConfigError, diff, effective, host_config, load, split_address
from agentd.containers.engine import Engine
from agentd.containers.follow import FollowFile
from agentd.doctor import features, own_features
from agentd.gateway import GatewayError
from agentd.gateway.compose import gateway_settings, start_gateway
from agentd.gateway.service import GatewayService
from agentd.launchers import Launchers
from agentd.ledger import Health, Ledger, LedgerError, LedgerReader, LedgerSettings, RetentionPolicy
from agentd.log import set_level
from agentd.metrics import Health as DaemonHealth
from agentd.metrics import Metrics, MetricsError, MetricsServer
from agentd.notify import Notifier
from agentd.past import LedgerPast
from agentd.platform import CannotEnforceHere, choose_backend
from agentd.prepare import CannotStart, lock_state, make_directories, pressure_problems, raise_file_limit
from agentd.purge import PurgeError, pins_are_there, purge_pins, purge_tree, tree_is_there
from agentd.steady import steady
from agentd.tier.tier import Tier, past_switches
from bpf import BpfError, Feature
from controller.backend import Backend
from controller.cgroup import read_host, read_memory
from controller.host import Host
from controller.model import (
    CallId,
    CallState,
    CallView,
    ControllerError,
    Outcome,
    Reason,
    SavedBudgets,
    Snapshot,
    TenantId,
)
from controller.recognise.rules import Library
from controller.registry import now

_log: Final = structlog.get_logger("corral.daemon")

_LEARNED_AT_START: Final = 512  # calls of the ledger that forecasts begin with
_GRACE: Final = 5.0  # seconds for requests under way when the daemon stops


class HostFigures:
    """controller.snapshot.HostReader, from /proc."""

    def __init__(self) -> None:
        self.kernel = os.uname().release
        self.cpus = os.cpu_count() or 1

    def memory(self) -> tuple[int, int]:
        return read_memory()

    def pressure(self, resource_name: str, /) -> float | None:
        pressure = getattr(read_host(), f"{resource_name}_pressure")
        return pressure.some_avg10 if pressure is not None else None


class Daemon:
    """One running daemon. ``path`` is the configuration file, for reloads."""

    def __init__(self, config: Config, path: Path | None, overrides: dict[str, object]) -> None:
        self._config = config
        self._path = path
        self._overrides = overrides
        self._stopping = asyncio.Event()
        self._notifier = Notifier.from_environment()
        self._features: tuple[Feature, ...] = ()
        self._backend: Backend | None = None
        self._lasting: list[str] = []  # what this host lacks for as long as the daemon runs, beside the backend's
        self._undoes: list[Callable[[Config], Iterable[str]]] = []  # for a start that fails
        self._groups: dict[str, str] = {}  # groups that own sockets and do not exist: what is said about each
        self._tasks: set[asyncio.Task[None]] = set()
        self._broker: Broker | None = None
        self._tier: Tier | None = None
        self._gateway: GatewayService | None = None
        self._attaching: Attaching | None = None

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises the errors of its parts when it cannot start; whatever had started is
        stopped again then."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._undo_start)
            await self._start(stack)
            self._undoes.clear()
            steady()
            _log.info(
                "ready",
                version=__version__,
                mode=self._mode,
                broker=str(self._config.broker_socket),
                api=str(self._config.operator_socket),
            )
            self._notifier.ready(self._status())
            await self._stopping.wait()
            self._notifier.stopping("stopping; tool calls go on")
        _log.info("stopped; tool calls go on")

    def stop(self) -> None:
        self._stopping.set()

    # --- start -------------------------------------------------------------------------------------------------------

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        config = self._config
        self._lasting += (*raise_file_limit(), *pressure_problems())
        for problem in self._lasting:
            _log.warning("this host cannot do everything", missing=problem)
        make_directories(config)
        stack.callback(os.close, lock_state(config.daemon.state_dir))
        self._ledger = Ledger.open(
            config.ledger_path,
            settings=LedgerSettings(
                retention=RetentionPolicy(max_age_days=config.ledger.max_age_days, max_bytes=config.ledger.max_size)
            ),
            on_trouble=self._report_ledger,
            wait_for_disk=True,  # agents must be able to work on a host whose disk is full
        )
        stack.push_async_callback(self._ledger.close)
        known, begun, ended, saved = await asyncio.to_thread(self._read_ledger)
        # a start that fails leaves no group and no program behind, unless it found some: calls may run in those
        self._undoes = [] if tree_is_there(config) else [purge_tree]
        self._undoes += [] if pins_are_there(config) else [purge_pins]
        backend = self._backend = choose_backend(config)
        self._metrics = Metrics(
            self._snapshot,
            health=self._health,
            version=__version__,
            instance=config.daemon.instance,
            per_call=config.metrics.per_call,
        )
        with LedgerPast(config.ledger_path) as past:
            self._host = Host(
                host_config(config),
                backend,
                self._ledger,
                HostFigures(),
                known_tenants=known,
                meter=self._metrics,
                problems=self._problems,
                past=past,
                saved_budgets=saved,
            )
            stack.push_async_callback(self._host.stop)  # also of what has started when the start fails
        self._host.learn(ended)
        switches = await asyncio.to_thread(past_switches, config.ledger_path)
        tier = self._tier = Tier(self._host, self._ledger, past=switches)
        stack.push_async_callback(tier.stop)
        tier.learn(ended)
        self._metrics.more.append(tier.collector)
        self._host.start()
        self._close_lost(begun)
        await tier.configure(config)
        trying = asyncio.ensure_future(
            asyncio.to_thread(features, cgroup_root=config.cgroup.root, state_dir=config.daemon.state_dir)
        )
        stack.callback(trying.cancel)

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

        if config.metrics.listen:
            server = MetricsServer(self._metrics)
            await server.start(*split_address(config.metrics.listen))
            stack.push_async_callback(server.close)
        self._broker = Broker(
            config.broker_socket,
            Launchers(self._host),
            mode=config.broker.mode,
            max_connections=config.broker.max_connections,
            max_per_uid=config.broker.max_per_uid,
            begin_timeout=config.broker.begin_timeout,
        )
        self._attaching = Attaching(
            self._host,
            Library(config.attach.rules_dir),
            Engine(config.attach.docker),
            FollowFile(config.daemon.state_dir),
        )
        stack.push_async_callback(self._attaching.stop)
        await self._attaching.start()
        history = LedgerHistory(config.ledger_path, trouble=lambda: self._ledger.health.error)
        stack.callback(history.close)
        self._api = ApiServer(
            self._host,
            history,
            features=lambda: (*own_features((*backend.missing, *self._problems())), *self._features),
            tenant_uids=self._uids_of,
            version=__version__,
            limits=ServerLimits(max_message_bytes=config.api.max_message_bytes),
            tier=tier,
            attach=self._attaching,
        )
        await self._api.start(self._listeners(config))
        stack.push_async_callback(self._api.stop, grace=_GRACE)
        await self._broker.start()
        stack.push_async_callback(self._broker.close)
        self._gateway = start_gateway(config, self._host, tier)
        if self._gateway is not None:
            stack.push_async_callback(self._gateway.stop)
            self._metrics.more.append(self._gateway.totals.collector)
        self._features = await trying
        for coroutine in (self._notifier.watchdog(), self._metrics.watch_loop()):
            stack.callback(asyncio.create_task(coroutine).cancel)

    def _undo_start(self) -> None:
        for undo in self._undoes:
            try:
                for line in undo(self._config):
                    _log.debug("the start failed", undone=line)
            except PurgeError as err:
                _log.warning("what the failed start made could not be removed", error=str(err))

    def _read_ledger(self) -> tuple[dict[str, TenantId], list[CallId], list[CallView], SavedBudgets | None]:
        """Nothing where the disk keeps us from it: what it is has been said, and the ledger goes on trying."""
        try:
            with LedgerReader(self._config.ledger_path) as reader:
                known = {t.name: t.id for t in reader.tenants()}
                return known, [r.call.id for r in reader.open_calls()], _ended(reader), reader.budgets()
        except LedgerError as err:
            if self._ledger.health.ok:
                raise
            _log.warning("tenants, calls and balances of the ledger are not known to this run", error=str(err))
            return {}, [], [], None

    def _close_lost(self, begun: Sequence[CallId]) -> None:
        """Calls that the ledger has as running and the tree no longer has: the host was rebooted, or somebody removed
        their groups. How they ended is not known, and that is what is written."""
        lost = [c for c in begun if c not in self._host.registry.calls]
        if not lost:
            return
        with LedgerReader(self._config.ledger_path) as reader:
            for call_id in lost:
                record = reader.call(call_id)
                if record is not None:
                    self._ledger.call_ended(_lost(record.call), lambda: None)
        _log.warning("calls of an earlier daemon ended unseen", calls=len(lost))

    def _listeners(self, config: Config) -> list[Listener]:
        listeners: list[Listener] = [
            UnixListener(
                path=config.operator_socket,
                principal=OPERATOR,
                mode=config.api.operator_mode,
                gid=self._gid(config.api.operator_group, "api.operator_group"),
            )
        ]
        if config.api.tenant_sockets:
            listeners += [
                UnixListener(
                    path=config.tenant_socket(name),
                    principal=tenant_principal(name),
                    mode=0o660,
                    gid=self._gid(t.group, f"tenants.{name}.group"),
                )
                for name, t in config.all_tenants.items()
            ]
        tcp = config.api.tcp
        if tcp.listen and tcp.certificate and tcp.key and tcp.client_ca:
            listeners.append(
                TcpListener(
                    address=tcp.listen,
                    certificate=tcp.certificate,
                    key=tcp.key,
                    client_ca=tcp.client_ca,
                    clients={name: parse_principal(text) for name, text in tcp.clients.items()},
                )
            )
        return listeners

    def _gid(self, name: str, key: str) -> int | None:
        """None where no group is named, or it cannot be had: then nobody else may connect, which is said."""
        self._groups.pop(key, None)
        if not name:
            return None
        try:
            gid = grp.getgrnam(name).gr_gid
        except KeyError:
            cause, remedy = "there is no such group", f"groupadd {name}"
        else:
            if os.geteuid() == 0 or gid in {os.getegid(), *os.getgroups()}:
                return gid
            cause, remedy = (
                f"user {os.geteuid()} is not a member, and cannot give it a socket",
                "name one of its groups",
            )
        text = f"{key} {name!r}: {cause}, so only the daemon itself can use the socket; {remedy}, restart agentd"
        self._groups[key] = text
        _log.warning("a socket has no group", problem=text)
        return None

    def _uids_of(self, tenant: str) -> frozenset[int]:
        found = self._host.registry.by_name.get(tenant)
        return found.uids if found is not None else frozenset()

    # --- while it runs -----------------------------------------------------------------------------------------------

    def _snapshot(self) -> Snapshot:
        return self._host.snapshot()

    def _health(self) -> DaemonHealth:
        ledger = self._ledger.health
        return DaemonHealth(
            ledger_backlog=ledger.backlog,
            ledger_writable=ledger.ok,
            connections=self._broker.connections if self._broker is not None else 0,
            problems=tuple(self._problems()),
        )

    @property
    def _mode(self) -> str:
        return self._backend.mode if self._backend is not None else "starting"

    def _problems(self) -> list[str]:
        """What is wrong beside what the backend lacks; on every screen, in the metrics and in `corral doctor`."""
        found = [*self._lasting, *self._groups.values()]
        if self._tier is not None:
            found += self._tier.problems()
        if self._gateway is not None:
            found += self._gateway.problems()
        if self._attaching is not None:
            found += self._attaching.problems()
        ledger = self._ledger.health
        if not ledger.ok:
            found.append(f"the history is not written, {ledger.backlog} records wait in memory: {ledger.error}")
        return found

    def _report_ledger(self, health: Health) -> None:
        if health.ok:
            _log.info("the ledger can be written again")
        else:
            _log.error(
                "the ledger cannot be written; calls go on, their records wait in memory",
                error=health.error,
                waiting=health.backlog,
            )
        if self._backend is not None:
            self._notifier.status(self._status())

    def _status(self) -> str:
        backend = self._backend
        if backend is None:
            return "starting"
        calls = len(self._host.registry.calls)
        what = "enforcing" if backend.enforces else "only observing: no limits"
        return f"{what} ({backend.mode}); {calls} calls; {len(backend.missing) + len(self._problems())} things missing"

    def _reload(self) -> None:
        task = asyncio.ensure_future(self._reload_now())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload_now(self) -> None:
        """SIGHUP. A wrong file changes nothing; what needs a restart is named."""
        self._notifier.reloading("reloading the configuration")
        try:
            config = load(self._path, overrides=self._overrides)
        except ConfigError as err:
            _log.error("the configuration was not reloaded; the old one stays in force", error=str(err))
        else:
            changes = diff(self._config, config)
            for key in changes.restart:
                _log.warning("a change takes effect at the next restart only", key=key)
            await self._apply(effective(self._config, config))
            _log.info("configuration reloaded", changed=list(changes.live))
        self._notifier.ready(self._status())

    async def _apply(self, config: Config) -> None:
        set_level(config.daemon.log_level)
        self._metrics.per_call = config.metrics.per_call
        if self._broker is not None:
            self._broker.limit(
                max_connections=config.broker.max_connections,
                max_per_uid=config.broker.max_per_uid,
                begin_timeout=config.broker.begin_timeout,
            )
        self._host.reconfigure(host_config(config))
        if self._tier is not None:
            await self._tier.configure(config)
        if self._gateway is not None and (settings := gateway_settings(config)) is not None:
            await self._gateway.change(settings)
        served = {str(listener) for listener in self._api.listeners}
        wanted = {str(listener): listener for listener in self._listeners(config) if isinstance(listener, UnixListener)}
        for listener in self._api.listeners:
            if isinstance(listener, UnixListener) and str(listener) not in wanted:
                await self._api.remove(listener)
        for name, listener in wanted.items():
            if name not in served:
                await self._api.add(listener)
        self._config = config


def start_errors() -> tuple[type[Exception], ...]:
    """What a start may fail with, each with a text for the administrator."""
    return (
        ApiServerError,
        BpfError,
        BrokerError,
        CannotEnforceHere,
        CannotStart,
        ControllerError,
        GatewayError,
        LedgerError,
        MetricsError,
        OSError,
    )


def _ended(reader: LedgerReader) -> list[CallView]:
    """The last calls, the oldest first, for forecasts. A damaged record must not keep the daemon from starting."""
    try:
        return [record.call for record in reversed(reader.calls(limit=_LEARNED_AT_START))]
    except LedgerError as err:
        _log.warning("forecasts begin without the calls of the ledger", error=str(err))
        return []


def _lost(call: CallView) -> CallView:
    at = now()
    outcome = Outcome(
        call_id=call.id,
        reason=Reason.UNKNOWN,
        ended_at=at,
        wait_status=None,
        usage=call.usage,
        wall_seconds=at - call.begun_at,
        held_seconds=call.held_seconds,
        decisions=(),
        summary="The host was restarted, or the call's cgroup removed, while the call ran. How it ended is not known.",
    )
    return dataclasses.replace(call, state=CallState.ENDED, outcome=outcome)
