"""Hosts whose kernel lacks something, or keeps it from us: what is said, and what works all the same."""

from __future__ import annotations

import socket
from pathlib import Path

import grpc
import pytest

from agentd.api.client import ApiError
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.badhosts_support import NOBODY, BadHost, agentd, bad_host, hidden, one_line
from tests.host.bpf_support import HYBRID, V2
from tests.support.daemons import REPOSITORY, missing_for_daemon
from tests.support.reach import skip_unless_others_can_reach_us, skip_unless_user_namespaces

pytestmark = [pytest.mark.host, pytest.mark.skipif(bool(missing_for_daemon()), reason=missing_for_daemon() or "-")]

MIB = 1 << 20
hybrid_only = pytest.mark.skipif(not HYBRID, reason="on cgroup v2 no controller is a mount that could be taken away")


async def test_no_btf(short_tmp: Path) -> None:
    """Programs that look into the kernel do not load; those at the edge of the network do. Netlink has the rest."""
    async with bad_host(short_tmp, hidden("/sys/kernel/btf")) as daemon:
        await daemon.says_everywhere("no types (BTF)", "CONFIG_DEBUG_INFO_BTF", "tripwire, accounting, lifecycle")
        assert "stand in for accounting, lifecycle" in await daemon.missing()
        good, _ = await daemon.proves_to_work(options=("--memory", "16M:64M", "--network", "none"))
        assert good.grant.enforced
        assert good.grant.limits.memory_max_bytes > 0
        assert any("brake" in note for note in good.grant.notes)
        usage = good.outcome.usage
        assert usage.memory_peak_bytes > 0
        assert usage.faults > 0
        assert usage.execs >= 2  # the shell, and what it became
        assert usage.HasField("net_rx_bytes")

        # the gates are at work: a call without network cannot reach a listener of ours, another one can
        with socket.create_server(("127.0.0.1", 0)) as listener:
            reach = ("/bin/bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{listener.getsockname()[1]}")
            session = await daemon.open_session("acme")
            assert (await daemon.call(session, *reach))[0] == 0
            assert (await daemon.call(session, *reach, options=("--network", "none")))[0] == 1


async def test_no_bpf_file_system(short_tmp: Path) -> None:
    """Nor the right to mount one: the process connector and taskstats stand in."""
    rights = ("--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")
    async with bad_host(short_tmp, "umount /sys/fs/bpf", rights=rights) as daemon:
        await daemon.says_everywhere("the bpf file system cannot be mounted", "mount -t bpf", "taskstats stand in")
        await stands_in(daemon)


async def test_no_objects(short_tmp: Path) -> None:
    async with bad_host(short_tmp, hidden(str(REPOSITORY / "bpf/objects"))) as daemon:
        await daemon.says_everywhere("no compiled object of tripwire", "scripts/build-bpf", "taskstats stand in")
        await stands_in(daemon)


async def test_damaged_library(short_tmp: Path) -> None:
    find = """lib=$(ldconfig -p | sed -n 's/.*libbpf\\.so\\.1 .*=> //p' | head -n 1)"""
    async with bad_host(short_tmp, f'{find}\nmount --bind /dev/null "$(readlink -f "$lib")"') as daemon:
        await daemon.says_everywhere("libbpf.so.1 cannot be used", "install libbpf 1.0", "taskstats stand in")
        await stands_in(daemon)


async def test_neither_ebpf_nor_netlink(short_tmp: Path) -> None:
    """The process connector answers in the host's own network namespace alone. Limits hold, and files count."""
    prelude = hidden(str(REPOSITORY / "bpf/objects"))
    async with bad_host(short_tmp, prelude, namespaces=("--net",)) as daemon:
        await daemon.says_everywhere("nothing that stands in for it", "scripts/build-bpf")
        good, _ = await daemon.proves_to_work(options=("--memory", "16M:64M"))
        assert good.grant.enforced
        usage = good.outcome.usage
        assert usage.cpu_usec > 0
        assert usage.memory_peak_bytes > 0
        assert usage.faults > 0  # from memory.stat
        assert not any(usage.HasField(name) for name in ("read_bytes", "forks", "net_rx_bytes"))
        await daemon.refuses("--network", "none", field="network")


async def test_root_of_a_user_namespace(short_tmp: Path) -> None:
    """As in a rootless container with a cgroup tree of its own: no eBPF, but limits."""
    skip_unless_user_namespaces()
    async with bad_host(short_tmp, namespaces=("--user", "--map-root-user")) as daemon:
        await daemon.says_everywhere("no eBPF program can be loaded", "Operation not permitted")
        good, _ = await daemon.proves_to_work(options=("--memory", "16M:64M"))
        assert good.grant.enforced


async def test_callers_of_another_pid_namespace(short_tmp: Path) -> None:
    """A daemon that cannot see its callers' processes refuses them: it could move none into a group."""
    namespaces = ("--pid", "--fork", "--kill-child", "--mount-proc")
    async with bad_host(short_tmp, namespaces=namespaces) as daemon:
        session = await daemon.open_session("acme")
        code, out, err = await daemon.call(session, "/bin/echo", "ran")
        assert (code, out) == (125, "")
        assert "pid namespace that the daemon cannot see; run the daemon on the host" in err
        assert not (await daemon.snapshot(with_ended=True)).calls
        await daemon.kill()  # unshare takes no SIGTERM while it waits: to stop it would end with this, 20 s later


async def test_ebpf_switched_off(short_tmp: Path) -> None:
    async with bad_host(short_tmp, settings={"bpf": {"enabled": False}}) as daemon:
        await daemon.says_everywhere("eBPF is switched off", "bpf.enabled = true")
        await stands_in(daemon)


async def stands_in(daemon: BadHost) -> None:
    """Limits as ever, counters from netlink, and a refusal of what only eBPF could enforce."""
    good, _ = await daemon.proves_to_work(options=("--memory", "16M:64M"))
    assert good.grant.enforced
    assert good.grant.limits.memory_max_bytes > 0
    assert good.outcome.usage.faults > 0
    assert good.outcome.usage.execs > 0
    assert not good.outcome.usage.HasField("net_rx_bytes")  # not known, which is not nought
    said = await daemon.refuses("--network", "none", field="network")
    assert "not loaded" in said


async def test_no_pressure_readings(short_tmp: Path) -> None:
    async with bad_host(short_tmp, hidden("/proc/pressure")) as daemon:
        await daemon.says_everywhere("no pressure readings (PSI)", "psi=1")
        good, _ = await daemon.proves_to_work(options=("--memory", "16M:64M"))
        assert good.grant.enforced
        host = (await daemon.snapshot()).host
        assert not host.HasField("memory_pressure")


@hybrid_only
async def test_no_pids_controller(short_tmp: Path) -> None:
    """The default of processes per call falls away; a call that asks for a limit of its own is refused."""
    tenants = {"acme": {}, "beta": {"pids_max": 100}}
    async with bad_host(short_tmp, hidden("/sys/fs/cgroup/pids"), tenants=tenants) as daemon:
        await daemon.says_everywhere("no pids controller", "mount -t cgroup -o pids", "pids_max is not set")
        assert "limits of tenant 'beta'" in await daemon.missing()
        good, _ = await daemon.proves_to_work(options=("--memory", "16M:64M"))
        assert good.grant.enforced
        assert not good.grant.limits.HasField("pids")
        assert "no pids controller" in await daemon.refuses("--pids", "20", field="pids")
        request = pb.SetTenantRequest(name="acme", limits=pb.Limits(pids=10))
        with pytest.raises(ApiError) as caught:
            await daemon.client.call(daemon.client.operator.SetTenant, request)
        assert caught.value.status is grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.field == "limits.pids"
        assert caught.value.remedy
        acme = next(t for t in (await daemon.snapshot()).tenants if t.name == "acme")
        assert not acme.limits.HasField("pids")


@hybrid_only
async def test_no_memory_controller(short_tmp: Path) -> None:
    tenants = {"acme": {"memory_max": "512M"}}
    async with bad_host(short_tmp, "umount /sys/fs/cgroup/memory", tenants=tenants) as daemon:
        await daemon.says_everywhere("no memory controller", "memory_max is not set")
        assert "limits of tenant 'acme'" in await daemon.missing()
        good, _ = await daemon.proves_to_work(options=("--pids", "20"))
        assert good.grant.limits.pids == 20
        assert not good.outcome.usage.HasField("memory_peak_bytes")
        assert good.outcome.usage.cpu_usec > 0
        await daemon.refuses("--memory", "16M:64M", field="memory_peak")


@hybrid_only
async def test_mode_enforce_wants_all_controllers(short_tmp: Path) -> None:
    daemon = BadHost(short_tmp, tenants={"acme": {}}, settings={"daemon": {"mode": "enforce"}})
    try:
        text = one_line(await agentd(daemon.config_file, prelude=hidden("/sys/fs/cgroup/memory")))
        assert 'daemon.mode is "enforce"' in text
        assert "no memory controller" in text
        assert not daemon.leftovers()
    finally:
        await daemon.close()


@pytest.mark.parametrize(
    ("prelude", "rights", "uid", "cause"),
    [
        (f"mount -o remount,bind,ro {V2}", (), 0, "mounted read-only"),
        (f"umount -l {V2}", (), 0, "no cgroup v2 hierarchy is mounted"),
        ("", ("--bounding-set", "-all", "--inh-caps", "-all"), 0, "root without its capabilities"),
        (
            "",
            ("--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"),
            NOBODY,
            f"not writable for uid {NOBODY}",
        ),
    ],
    ids=["read-only", "no-v2", "no-capabilities", "nobody"],
)
async def test_only_observing(short_tmp: Path, prelude: str, rights: tuple[str, ...], uid: int, cause: str) -> None:
    """Calls run and are recorded; whoever asks for a limit is refused; every screen says why."""
    if uid == NOBODY:
        skip_unless_others_can_reach_us()
    async with bad_host(short_tmp, prelude, rights=rights, uid=uid) as daemon:
        await daemon.says_everywhere("only observing, no limits", cause)
        assert (await daemon.snapshot()).host.mode == "observe"
        told = await daemon.doctor()
        assert told["essential_missing"] == ["cgroup"]
        good, _ = await daemon.proves_to_work()
        assert not good.grant.enforced
        for options, field in (
            (("--memory", "16M:64M"), "memory_peak"),
            (("--cpu", "1"), "cpu"),
            (("--pids", "10"), "pids"),
            (("--network", "none"), "network"),
        ):
            assert "only observes" in await daemon.refuses(*options, field=field)
        request = pb.SetLimitsRequest(target="acme", limits=pb.Limits(memory_max_bytes=64 * MIB))
        with pytest.raises(ApiError) as caught:
            await daemon.client.call(daemon.client.operator.SetLimits, request)
        assert caught.value.status is grpc.StatusCode.FAILED_PRECONDITION
