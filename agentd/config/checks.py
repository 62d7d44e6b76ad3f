"""Checks that need more than one key, or the host's users and groups: what types and bounds cannot say."""

from __future__ import annotations

import grp
import ipaddress
import itertools
import pwd
import re
from typing import Final

from agentd.amounts import form, parse_budget
from agentd.config.addresses import split_address
from agentd.config.convert import Report, suggest
from agentd.config.engines import check_engines
from agentd.config.gateway import check_gateway
from agentd.config.model import REFUSE, Config, TenantSection
from agentd.units import UnitError
from controller.model import Resource, is_name

_ROOT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]*(?:/[A-Za-z0-9][A-Za-z0-9._@-]*)*")
_MAX_SOCKET: Final = 107  # bytes of a path in sockaddr_un, without its NUL


def check(config: Config, report: Report, *, accounts: bool) -> None:
    """Report everything that is wrong. ``accounts``: also look up the users and groups that are named."""
    _check_names(config, report)
    _check_sockets(config, report)
    _check_tcp(config, report)
    _check_metrics(config, report)
    _check_call(config, report)
    for name, tenant in config.tenants.items():
        _check_tenant(name, tenant, report)
        _check_budgets(name, tenant, report)
    _check_default_tenant(config, report)
    check_engines(config, report)
    check_gateway(config, report)
    if accounts:
        _check_accounts(config, report)


def _check_names(config: Config, report: Report) -> None:
    if not is_name(config.daemon.instance):
        report(
            ("daemon", "instance"),
            "not a name",
            "use 1 to 63 of a-z 0-9 . _ -, alphanumeric at both ends",
            config.daemon.instance,
        )
    if not _ROOT.fullmatch(config.cgroup.root):
        report(
            ("cgroup", "root"),
            "not a path below the hierarchy's mount",
            'use names of A-Z a-z 0-9 . _ @ - parted by "/", none of them starting with a dot, e.g. "corral"',
            config.cgroup.root,
        )


def _check_sockets(config: Config, report: Report) -> None:
    if config.api.operator_mode & 0o007:
        report(
            ("api", "operator_mode"),
            "opens the operators' socket to every user of the host",
            "leave the last octal digit 0, e.g. 0o660, and put operators into api.operator_group",
            f"0o{config.api.operator_mode:03o}",
        )
    sockets = [(("api", "operator_socket"), config.operator_socket), (("broker", "socket"), config.broker_socket)]
    if config.api.tenant_sockets:
        sockets += [(("tenants", name), config.tenant_socket(name)) for name in config.all_tenants if is_name(name)]
    taken: dict[str, str] = {}
    for key, path in sockets:
        if len(bytes(path)) > _MAX_SOCKET:
            report(
                key,
                f"its socket's path has {len(bytes(path))} bytes, a unix socket's has at most {_MAX_SOCKET}",
                "give a shorter path or a shorter daemon.runtime_dir",
                str(path),
            )
        other = taken.setdefault(str(path), ".".join(key))
        if other != ".".join(key):
            report(key, f"the same socket as {other}", "give each a path of its own", str(path))


def _check_tcp(config: Config, report: Report) -> None:
    tcp = config.api.tcp
    for name, role in tcp.clients.items():
        kind, _, tenant = role.partition(":")
        key = ("api", "tcp", "clients", name)
        if not name or len(name) > 253 or not name.isprintable():
            report(key, "not a name that a certificate could carry", "give its subject alternative name or CN", None)
        if role == "operator":
            continue
        if kind != "tenant":
            report(key, "not a role", 'give "operator" or "tenant:NAME"', role)
        elif tenant not in config.all_tenants:
            report(key, f"no tenant {tenant!r}", suggest(tenant, config.all_tenants), role)
    if not tcp.listen:
        return
    _check_address(("api", "tcp", "listen"), tcp.listen, report)
    for part in ("certificate", "key", "client_ca"):
        if getattr(tcp, part) is None:
            report(
                ("api", "tcp", part),
                "missing, and the API is offered over TCP with mutual TLS only",
                "give the path of a PEM file, or leave api.tcp.listen empty",
                None,
            )
    if not tcp.clients:
        report(
            ("api", "tcp", "clients"),
            "empty, so every client would be refused",
            'map names of client certificates, e.g. "ops.example.org" = "operator"',
            None,
        )


def _check_metrics(config: Config, report: Report) -> None:
    listen = config.metrics.listen
    if not listen or not _check_address(("metrics", "listen"), listen, report):
        return
    host, _ = split_address(listen)
    if not ipaddress.ip_address(host).is_loopback and not config.metrics.allow_remote:
        report(
            ("metrics", "listen"),
            "other hosts could read the metrics there, without authentication",
            "listen on 127.0.0.1 or [::1], or set metrics.allow_remote = true",
            listen,
        )


def _check_address(key: tuple[str, ...], text: str, report: Report) -> bool:
    try:
        split_address(text)
    except ValueError as err:
        report(key, str(err), 'give an IP address and a port, e.g. "127.0.0.1:9464" or "[::1]:9464"', text)
        return False
    return True


def _check_call(config: Config, report: Report) -> None:
    call = config.call
    if call.hard_limit_factor is not None and call.hard_limit_factor < call.brake_factor:
        report(
            ("call", "hard_limit_factor"),
            f"below brake_factor ({call.brake_factor:g}): the kernel would kill a call before it is braked",
            "give at least brake_factor",
            call.hard_limit_factor,
        )


def _check_tenant(name: str, tenant: TenantSection, report: Report) -> None:
    path = ("tenants", name)
    if not is_name(name) or name == REFUSE:
        report(path, "not a name for a tenant", f"use 1 to 63 of a-z 0-9 . _ -, and not {REFUSE!r}", None)
    sizes = [(k, v) for k in ("memory_low", "memory_high", "memory_max") if (v := getattr(tenant, k)) is not None]
    for (low_key, low), (high_key, high) in itertools.pairwise(sizes):
        if low > high:
            report((*path, low_key), f"above {high_key} ({high})", f"give at most {high_key}", low)


def _check_budgets(name: str, tenant: TenantSection, report: Report) -> None:
    for table in ("budgets", "session_budgets"):
        for resource, text in getattr(tenant, table).items():
            path = ("tenants", name, table, resource)
            if resource not in list(Resource):
                report(path, "nothing that can be used up", suggest(resource, [r.value for r in Resource]), None)
                continue
            try:
                parse_budget(Resource(resource), text)
            except UnitError as err:
                cause = str(err).partition("; ")[0]
                limit = form(Resource(resource))
                report(path, cause, f"write LIMIT [per PERIOD] [soft|hard|end], LIMIT being {limit}", text)


def _check_default_tenant(config: Config, report: Report) -> None:
    policy = config.default_tenant.policy
    if policy != REFUSE and policy not in config.all_tenants:
        report(("default_tenant", "policy"), "no such tenant", suggest(policy, [*config.all_tenants, REFUSE]), policy)


def _check_accounts(config: Config, report: Report) -> None:
    owner: dict[int, str] = {}
    for name, tenant in config.tenants.items():
        uids = [(("tenants", name, "uids", i), uid) for i, uid in enumerate(tenant.uids)]
        for i, user in enumerate(tenant.users):
            try:
                uids.append((("tenants", name, "users", i), pwd.getpwnam(user).pw_uid))
            except KeyError:
                report(
                    ("tenants", name, "users", i), "no such user on this host", "create it, or correct its name", user
                )
        for key, uid in uids:
            other = owner.setdefault(uid, name)
            if other != name:
                report(key, f"uid {uid} belongs to tenant {other!r} already", "name each user in one tenant", uid)
        if tenant.group:
            _check_group(("tenants", name, "group"), tenant.group, report)
    # the default group is made at installation; a host without it still starts, with root as the only operator
    if config.api.operator_group not in ("", Config().api.operator_group):
        _check_group(("api", "operator_group"), config.api.operator_group, report)


def _check_group(key: tuple[str, ...], name: str, report: Report) -> None:
    try:
        grp.getgrnam(name)
    except KeyError:
        report(key, "no such group on this host", "create it (groupadd --system), or correct its name", name)


def uids_of_tenants(config: Config) -> dict[int, str]:
    """Which tenant each uid belongs to by name; ``users`` are looked up on this host.

    A user that vanished since the configuration was loaded is left out: nobody can connect as that user.
    """
    owner: dict[int, str] = {}
    for name, tenant in config.tenants.items():
        for uid in tenant.uids:
            owner.setdefault(uid, name)
        for user in tenant.users:
            try:
                owner.setdefault(pwd.getpwnam(user).pw_uid, name)
            except KeyError:
                continue
    return owner
