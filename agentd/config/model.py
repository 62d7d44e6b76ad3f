"""The daemon's configuration as frozen values, with every default and every bound.

The types carry all that the rest of the package needs: the bounds are checked while loading, the descriptions go into
the JSON schema and docs/configuration.md, ``live`` says what a reload applies without a restart. Sizes are bytes, times
are seconds, CPU is in cores, shares are 0 to 1; files may write "300M", "30s" and "5%" instead (agentd/units.py).
``None`` is written "none" in a file, where a default has to be switched off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from agentd.config.sched import SchedSection
from controller.model import Limits
from controller.model.intent import MAX_CORES, MAX_DURATION, MAX_MEMORY, MAX_PIDS, MIN_MEMORY
from controller.model.limits import MAX_RATE, MIN_EGRESS, MIN_IO

MAX_UID: Final = 2**32 - 2  # 2^32 - 1 is the kernel's "no uid"
MAX_WEIGHT: Final = 10_000  # of cgroup v2's cpu.weight and io.weight
DEFAULT_TENANT: Final = "default"
REFUSE: Final = "refuse"


def doc(description: str, *, live: bool = False) -> Meta:
    """What a key means; ``live``: a reload (SIGHUP) applies a new value without a restart."""
    return Meta(description=description, extra={"live": live})


def _number(unit: str, ge: float, le: float) -> Meta:
    """Bounds, and the unit by which agentd/config/convert.py reads texts such as "30s"."""
    return Meta(ge=ge, le=le, extra={"unit": unit}, extra_json_schema={"x-unit": unit})


_Text = Annotated[str, Meta(max_length=4096)]
_Size = Annotated[int, _number("bytes", ge=0, le=MAX_MEMORY)]
_Memory = Annotated[int, _number("bytes", ge=MIN_MEMORY, le=MAX_MEMORY)]
_DiskRate = Annotated[int, _number("bytes", ge=MIN_IO, le=MAX_RATE)]
_EgressRate = Annotated[int, _number("bytes", ge=MIN_EGRESS, le=MAX_RATE)]
_Time = Annotated[
    float, Meta(gt=0, le=MAX_DURATION, extra={"unit": "seconds"}, extra_json_schema={"x-unit": "seconds"})
]
_Share = Annotated[float, _number("share", ge=0, le=1)]
_Cores = Annotated[float, Meta(gt=0, le=MAX_CORES)]
_Weight = Annotated[int, Meta(ge=1, le=MAX_WEIGHT)]
_Pids = Annotated[int, Meta(ge=1, le=MAX_PIDS)]
_Count = Annotated[int, Meta(ge=1, le=10_000_000)]
_Mode = Annotated[int, _number("mode", ge=0, le=0o777)]
_Price = Annotated[float, Meta(ge=0, le=1e9)]
_Uid = Annotated[int, Meta(ge=0, le=MAX_UID)]


class DaemonSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The daemon itself: where it keeps things, how it speaks, what it may do to the host."""

    state_dir: Annotated[Path, doc("Directory of what must survive a reboot (the ledger).")] = field(
        default_factory=lambda: Path("/var/lib/corral")
    )
    runtime_dir: Annotated[Path, doc("Directory of the sockets; gone after a reboot.")] = field(
        default_factory=lambda: Path("/run/corral")
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], doc("The least severe messages that are logged.", live=True)
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "text"],
        doc("json: one object a line. text: for people. auto: json under systemd, text elsewhere."),
    ] = "auto"
    mode: Annotated[
        Literal["auto", "enforce", "observe"],
        doc(
            "enforce: refuse to start where limits cannot be enforced. observe: never touch a cgroup. "
            "auto: enforce where this host can, else observe and say so."
        ),
    ] = "auto"
    instance: Annotated[_Text, doc("Name of this daemon in logs and metrics; tells several on one host apart.")] = (
        "corral"
    )
    restart_grace: Annotated[
        _Time, doc("How long a launcher may take to come back after a restart of the daemon.", live=True)
    ] = 15.0
    leftovers: Annotated[
        Literal["adopt", "kill"],
        doc("Processes that outlive their call: adopt them into the session (and charge it), or kill them.", live=True),
    ] = "adopt"
    leftover_grace: Annotated[
        _Time, doc("How long such processes may take to end by themselves before that happens.", live=True)
    ] = 0.25
    keep_ended: Annotated[
        _Count, doc("Ended calls kept in memory for GetOutcome and `corral ps`; older ones are in the ledger.")
    ] = 512


class CgroupSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cgroup tree."""

    root: Annotated[_Text, doc("Path of Corral's own group below the mount of each hierarchy.")] = "corral"


class BpfSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The eBPF programs."""

    enabled: Annotated[bool, doc("Whether to load them. Without them there is no brake in the kernel.")] = True
    pin_dir: Annotated[Path, doc("Directory on a bpffs where programs and maps stay while the daemon restarts.")] = (
        field(default_factory=lambda: Path("/sys/fs/bpf/corral"))
    )


class TcpSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The API over TCP, with mutual TLS only. Off while ``listen`` is empty."""

    listen: Annotated[_Text, doc('Address and port, e.g. "10.0.0.5:7443" or "[::]:7443". Empty: off.')] = ""
    certificate: Annotated[Path | None, doc("The server's certificate chain, PEM.")] = None
    key: Annotated[
        Path | None, doc("Its private key, PEM; no one but the daemon's user should be able to read it.")
    ] = None
    client_ca: Annotated[Path | None, doc("Authorities, PEM, that sign the certificates of clients.")] = None
    clients: Annotated[
        dict[str, str],
        doc(
            'Name in a client\'s certificate (subject alternative name, else CN) → "operator" or "tenant:NAME". '
            "A client that is not listed is refused."
        ),
    ] = field(default_factory=dict)


class ApiSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The gRPC API."""

    operator_socket: Annotated[
        Path | None, doc("Socket of the operators. Default: operator.sock in daemon.runtime_dir.")
    ] = None
    operator_mode: Annotated[_Mode, doc("Its permissions. It may not be open to all.")] = 0o660
    operator_group: Annotated[_Text, doc("Its group: the operators.")] = "corral"
    tenant_sockets: Annotated[
        bool, doc("Whether each tenant gets a socket, tenants/NAME.sock in daemon.runtime_dir.")
    ] = True
    max_message_bytes: Annotated[
        Annotated[int, _number("bytes", ge=64 * 1024, le=1 << 30)], doc("Largest message accepted.")
    ] = 4 * 1024 * 1024
    tcp: TcpSection = field(default_factory=TcpSection)


class BrokerSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The socket that launchers (corral-exec) speak to."""

    socket: Annotated[Path | None, doc("Its path. Default: broker.sock in daemon.runtime_dir.")] = None
    mode: Annotated[
        _Mode, doc("Its permissions. Open to all by default: who connects is told apart by kernel credentials.")
    ] = 0o666
    max_connections: Annotated[_Count, doc("Connections at once; each running call holds one.", live=True)] = 8192
    max_per_uid: Annotated[_Count, doc("Connections at once of one uid.", live=True)] = 2048
    begin_timeout: Annotated[
        _Time, doc("How long a connection may take to send a complete BEGIN before it is closed.", live=True)
    ] = 10.0
    token_ttl: Annotated[_Time, doc("How long a session's token is valid.", live=True)] = 86_400.0


class TenantSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tenant: who belongs to it, and its ceilings. What is not given is not limited."""

    uids: Annotated[tuple[_Uid, ...], doc("Numeric user ids that may open its sessions.", live=True)] = ()
    users: Annotated[tuple[_Text, ...], doc("User names that may open its sessions.", live=True)] = ()
    group: Annotated[_Text, doc("Group that owns its API socket. Empty: root alone.")] = ""
    priority: Annotated[
        Annotated[int, Meta(ge=0, le=100)], doc("0 (its calls are acted on first) to 100 (last).", live=True)
    ] = 50
    memory_max: Annotated[_Memory | None, doc("Memory of all its calls and agents: hard ceiling.", live=True)] = None
    memory_high: Annotated[_Memory | None, doc("Beyond it allocations are slowed (cgroup v2 hosts).", live=True)] = None
    memory_low: Annotated[_Size | None, doc("Memory protected from reclaim (cgroup v2 hosts).", live=True)] = None
    cpu_max: Annotated[_Cores | None, doc("CPU ceiling, in cores.", live=True)] = None
    cpu_weight: Annotated[
        _Weight | None, doc("Share of CPU under contention; 100 is the kernel's default.", live=True)
    ] = None
    pids_max: Annotated[_Pids | None, doc("Processes and threads at once.", live=True)] = None
    io_weight: Annotated[_Weight | None, doc("Share of block I/O under contention; 100 is the default.", live=True)] = (
        None
    )
    io_max: Annotated[
        _DiskRate | None, doc("Bytes a second that are read, and that are written, of each disk.", live=True)
    ] = None
    egress_max: Annotated[
        _EgressRate | None, doc("Bytes a second that leave over the network, loopback included (eBPF).", live=True)
    ] = None
    max_calls: Annotated[_Count | None, doc("Calls at once; more wait in the tenant's queue.", live=True)] = None
    max_sessions: Annotated[_Count | None, doc("Open sessions at once.", live=True)] = None
    budgets: Annotated[
        dict[str, _Text],
        doc(
            "What it may use up as a whole: resource = LIMIT [per PERIOD] [soft, hard or end], "
            'e.g. cpu_seconds = "10h per 1d hard" (docs/control.md).',
            live=True,
        ),
    ] = field(default_factory=dict)
    session_budgets: Annotated[dict[str, _Text], doc("What each of its sessions may use up, likewise.", live=True)] = (
        field(default_factory=dict)
    )
    weight: Annotated[
        Annotated[float, Meta(ge=1, le=10_000)],
        doc("Its share of the memory against other tenants while calls wait for their turn.", live=True),
    ] = 100.0

    def limits(self) -> Limits:
        """The tenant's ceilings in the controller's terms."""
        return Limits(
            memory_max=self.memory_max,
            memory_high=self.memory_high,
            memory_low=self.memory_low,
            cpu_max=self.cpu_max,
            cpu_weight=self.cpu_weight,
            pids_max=self.pids_max,
            io_weight=self.io_weight,
            io_max=self.io_max,
            egress_max=self.egress_max,
        )


class DefaultTenantSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Users that no tenant names."""

    policy: Annotated[
        _Text,
        doc('"refuse" them, or the name of the tenant that takes them ("default" need not be declared).', live=True),
    ] = DEFAULT_TENANT


class CallSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a call gets that declares nothing, and how a braked call is treated."""

    memory_max: Annotated[_Memory | None, doc("Hard memory limit of a call that declares none.", live=True)] = None
    pids_max: Annotated[_Pids | None, doc("Processes and threads of a call that declares none.", live=True)] = 4096
    io_max: Annotated[
        _DiskRate | None, doc("Bytes a second that a call reads, and that it writes, of each disk.", live=True)
    ] = None
    egress_max: Annotated[
        _EgressRate | None, doc("Bytes a second that a call sends, loopback included (eBPF).", live=True)
    ] = None
    brake_factor: Annotated[
        Annotated[float, Meta(ge=0.5, le=16)], doc("The brake is armed at the declared peak times this.", live=True)
    ] = 1.0
    hard_limit_factor: Annotated[
        Annotated[float, Meta(ge=1, le=64)] | None,
        doc('memory_max of a call is its declared peak times this. "none": no hard limit.', live=True),
    ] = 2.0
    hold_max: Annotated[
        _Time, doc("How long a braked call may be held before it must be resumed or ended.", live=True)
    ] = 30.0
    raise_step: Annotated[_Memory, doc("A brake is raised by at least this much when there is room.", live=True)] = (
        64 * 1024 * 1024
    )


class HostSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The host as a whole."""

    memory: Annotated[
        _Memory | None,
        doc("Memory that calls and agents may use in all. Not given: what the host has available.", live=True),
    ] = None
    memory_reserve: Annotated[
        _Share, doc("Share of it (or of the host's memory) that no brake is raised into.", live=True)
    ] = 0.05
    sample_interval: Annotated[
        Annotated[float, _number("seconds", ge=0.05, le=60)],
        doc("How often usage is read; stretched where it would cost more than sample_budget.", live=True),
    ] = 1.0
    sample_budget: Annotated[_Share, doc("Share of one core that sampling may take.", live=True)] = 0.01


class TokenPricesSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prices of one engine's tokens, in place of the general ones; for a million."""

    prompt_tokens: Annotated[_Price, doc("Tokens of prompts that are computed.", live=True)] = 0.0
    cached_tokens: Annotated[_Price, doc("Tokens of prompts that are found in the KV cache.", live=True)] = 0.0
    generated_tokens: Annotated[_Price, doc("Tokens that are generated.", live=True)] = 0.0


class PricesSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What use costs, for budgets of money. In one currency of your choice; what has no price is free."""

    cpu_hour: Annotated[_Price, doc("An hour of one CPU.", live=True)] = 0.0
    gib_hour: Annotated[_Price, doc("A GiB of memory for an hour.", live=True)] = 0.0
    network_gb: Annotated[_Price, doc("10^9 bytes of network traffic, in and out.", live=True)] = 0.0
    gpu_hour: Annotated[_Price, doc("An hour of one GPU.", live=True)] = 0.0
    kwh: Annotated[_Price, doc("A kWh of the GPUs' energy.", live=True)] = 0.0
    call: Annotated[_Price, doc("Each tool call that begins.", live=True)] = 0.0
    prompt_tokens: Annotated[_Price, doc("A million tokens of prompts that are computed.", live=True)] = 0.0
    cached_tokens: Annotated[_Price, doc("A million tokens of prompts found in the KV cache.", live=True)] = 0.0
    generated_tokens: Annotated[_Price, doc("A million tokens that are generated.", live=True)] = 0.0
    engines: Annotated[
        dict[str, TokenPricesSection], doc("Token prices of single engines, by their name.", live=True)
    ] = field(default_factory=dict)


class LedgerSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The durable history."""

    path: Annotated[Path | None, doc("The database. Default: ledger.db in daemon.state_dir.")] = None
    max_age_days: Annotated[
        Annotated[int, Meta(ge=1, le=3650)], doc("Records older than this are removed.", live=True)
    ] = 30
    max_size: Annotated[
        Annotated[int, _number("bytes", ge=16 * 1024 * 1024, le=MAX_MEMORY)],
        doc("Beyond it the oldest records are removed, whatever their age.", live=True),
    ] = 2 * 1024**3
    sample_interval: Annotated[_Time, doc("How often the usage of each running call is recorded.", live=True)] = 10.0


class MetricsSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prometheus metrics over HTTP."""

    listen: Annotated[_Text, doc('Address and port, e.g. "127.0.0.1:9464". Empty: off.')] = ""
    allow_remote: Annotated[
        bool, doc("Allow an address that other hosts can reach. The endpoint has no authentication.")
    ] = False
    per_call: Annotated[bool, doc("Export series for every running call. Their number is not bounded.", live=True)] = (
        False
    )


class AttachSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sessions of what runs already (corral session attach)."""

    docker: Annotated[_Text, doc("Where Docker Engine listens.")] = "unix:///run/docker.sock"
    rules_dir: Annotated[
        Path, doc("Directory of your own sets of rules, NAME.toml; they come before those of the same name that ship.")
    ] = field(default_factory=lambda: Path("/etc/corral/rules"))


class GpuSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GPUs, through NVIDIA's NVML."""

    enabled: Annotated[
        Literal["auto", "on", "off"],
        doc(
            "auto: use GPUs where there are any. on: likewise, and report it as a problem where they cannot be used. "
            "off: they are not read.",
            live=True,
        ),
    ] = "auto"
    interval: Annotated[
        Annotated[float, _number("seconds", ge=0.1, le=60)],
        doc("How often GPUs are read; stretched where it would cost more than budget.", live=True),
    ] = 1.0
    budget: Annotated[
        _Share, doc("Share of one core that reading GPUs and asking engines may take, together.", live=True)
    ] = 0.01


class EngineSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One inference engine that agents think on."""

    url: Annotated[_Text, doc("Where it serves, e.g. http://127.0.0.1:8080.", live=True)] = ""
    kind: Annotated[
        Literal["auto", "llamacpp", "vllm", "sglang", "lmcache"], doc("auto: found out from its metrics.", live=True)
    ] = "auto"
    api_key_file: Annotated[
        Path | None, doc("File whose first line is the engine's API key, readable by the daemon alone.", live=True)
    ] = None
    timeout: Annotated[_Time, doc("How long one answer may take.", live=True)] = 10.0
    interval: Annotated[
        Annotated[float, _number("seconds", ge=0.1, le=60)],
        doc("How often its metrics are read; stretched where it would cost more than gpu.budget.", live=True),
    ] = 1.0
    control: Annotated[
        bool,
        doc(
            "Whether Corral may move and drop KV caches in it. Off: it is only observed. An engine may serve others "
            "than Corral's sessions, so acting on it is for its operator to allow.",
            live=True,
        ),
    ] = False
    policy: Annotated[
        Literal["corral", "infercept", "continuum", "always-keep", "always-drop", "always-offload", "lru", "off"],
        doc("What decides over KV caches while tools run, where control is on (docs/gpu.md). off: nothing.", live=True),
    ] = "corral"
    bytes_per_token: Annotated[
        _Count | None, doc("Of the KV cache. Not set: from the facts below, else learned from the engine.", live=True)
    ] = None
    layers: Annotated[_Count | None, doc("Of the model, to compute bytes_per_token.", live=True)] = None
    kv_heads: Annotated[_Count | None, doc("Likewise: its key-value heads.", live=True)] = None
    head_dim: Annotated[_Count | None, doc("Likewise: the size of a head.", live=True)] = None
    bytes_per_element: Annotated[
        Annotated[float, Meta(gt=0, le=8)], doc("Likewise: 2 for fp16 and bf16, 1 for fp8.", live=True)
    ] = 2.0
    gamma: Annotated[
        Annotated[float, Meta(ge=0, le=1)],
        doc("Weight of a generated token per token of its context, in prefill equivalents (docs/gpu.md).", live=True),
    ] = 0.0
    offload_budget: Annotated[_Size, doc("How much KV may lie outside of its pool at one time.", live=True)] = (
        4 * 1024**3
    )
    offload_dir: Annotated[
        Path | None,
        doc(
            "llama.cpp: the directory of its --slot-save-path, as this host sees it. Files of sessions that ended are "
            "removed there; the server never does. Not set: they stay.",
            live=True,
        ),
    ] = None
    declared_slots: Annotated[
        bool,
        doc(
            'llama.cpp: whether sessions may name their slot themselves, as conversation "slot:N" of an intent or a '
            "reported turn. For agents that do not use the gateway; a session can then claim a free slot of another's.",
            live=True,
        ),
    ] = False
    priorities: Annotated[bool, doc("vLLM, SGLang: it was started with priority scheduling.", live=True)] = False
    events: Annotated[_Text, doc("vLLM: ZeroMQ endpoint of its KV events, ipc:// or tcp://.", live=True)] = ""
    replay: Annotated[_Text, doc("vLLM: the replay endpoint beside it.", live=True)] = ""
    topic: Annotated[_Text, doc("vLLM: the topic of its KV events.", live=True)] = ""
    pressure: Annotated[
        _Share, doc("Share of its KV pool in use beyond which paused sessions are put out.", live=True)
    ] = 0.9
    prefill_rate: Annotated[
        Annotated[float, Meta(gt=0, le=1e9)], doc("Tokens a second that it computes, until turns tell.", live=True)
    ] = 2000.0
    move_rate: Annotated[
        Annotated[float, Meta(gt=0, le=1e15)], doc("Bytes a second that KV moves at, until moves tell.", live=True)
    ] = 1e9


class GatewaySection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A gateway for model turns, OpenAI-compatible (docs/gateway.md). Off while neither listen nor socket is set."""

    listen: Annotated[_Text, doc('Address and port, e.g. "127.0.0.1:8090". Empty: not over TCP.')] = ""
    allow_remote: Annotated[
        bool, doc("Allow an address that other hosts can reach. There is no TLS: tokens and prompts can be read.")
    ] = False
    socket: Annotated[Path | None, doc("Path of a unix socket, where the kernel says whose a request is.")] = None
    socket_mode: Annotated[_Mode, doc("Its permissions. Open to all by default: a token is needed.")] = 0o666
    engine: Annotated[_Text, doc("Name of the engine that turns go to. Empty: the only one that there is.")] = ""
    user: Annotated[_Text, doc("User that its process becomes; it needs nothing of the host. Empty: the daemon's.")] = (
        "nobody"
    )
    max_connections: Annotated[_Count, doc("Connections at once, of clients and to the engine.")] = 1024
    max_streams: Annotated[_Count, doc("Turns at once of one session.")] = 64
    max_body: Annotated[
        Annotated[int, _number("bytes", ge=4096, le=1 << 30)], doc("Largest request that is accepted.")
    ] = 16 * 1024**2
    max_buffered: Annotated[
        Annotated[int, _number("bytes", ge=4096, le=MAX_MEMORY)], doc("Of all requests under way together.")
    ] = 256 * 1024**2
    first_byte: Annotated[_Time, doc("How long an engine may take until its answer begins.")] = 600.0
    between: Annotated[_Time, doc("How long it may be silent within an answer.")] = 120.0

    @property
    def on(self) -> bool:
        return bool(self.listen or self.socket)


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration of agentd. Without a file the defaults hold."""

    daemon: DaemonSection = field(default_factory=DaemonSection)
    cgroup: CgroupSection = field(default_factory=CgroupSection)
    bpf: BpfSection = field(default_factory=BpfSection)
    api: ApiSection = field(default_factory=ApiSection)
    broker: BrokerSection = field(default_factory=BrokerSection)
    tenants: Annotated[dict[str, TenantSection], doc("Tenants by name.", live=True)] = field(default_factory=dict)
    default_tenant: DefaultTenantSection = field(default_factory=DefaultTenantSection)
    call: CallSection = field(default_factory=CallSection)
    host: HostSection = field(default_factory=HostSection)
    ledger: LedgerSection = field(default_factory=LedgerSection)
    metrics: MetricsSection = field(default_factory=MetricsSection)
    attach: AttachSection = field(default_factory=AttachSection)
    sched: SchedSection = field(default_factory=SchedSection)
    prices: PricesSection = field(default_factory=PricesSection)
    gpu: GpuSection = field(default_factory=GpuSection)
    engines: Annotated[dict[str, EngineSection], doc("Inference engines by name.", live=True)] = field(
        default_factory=dict
    )
    gateway: GatewaySection = field(default_factory=GatewaySection)

    @property
    def operator_socket(self) -> Path:
        return self.api.operator_socket or self.daemon.runtime_dir / "operator.sock"

    @property
    def broker_socket(self) -> Path:
        return self.broker.socket or self.daemon.runtime_dir / "broker.sock"

    @property
    def ledger_path(self) -> Path:
        return self.ledger.path or self.daemon.state_dir / "ledger.db"

    def tenant_socket(self, name: str) -> Path:
        """Path of the API socket of the tenant ``name`` (a name that passed is_name: no slash, no dot first)."""
        return self.daemon.runtime_dir / "tenants" / f"{name}.sock"

    @property
    def all_tenants(self) -> dict[str, TenantSection]:
        """The declared tenants, and "default" where the policy for unnamed users needs it."""
        if self.default_tenant.policy == DEFAULT_TENANT and DEFAULT_TENANT not in self.tenants:
            return {**self.tenants, DEFAULT_TENANT: TenantSection()}
        return dict(self.tenants)
