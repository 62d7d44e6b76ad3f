from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OnPressure(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_PRESSURE_UNSPECIFIED: _ClassVar[OnPressure]
    ON_PRESSURE_WAIT: _ClassVar[OnPressure]
    ON_PRESSURE_DEGRADE: _ClassVar[OnPressure]
    ON_PRESSURE_FAIL_FAST: _ClassVar[OnPressure]

class NetworkMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NETWORK_MODE_UNSPECIFIED: _ClassVar[NetworkMode]
    NETWORK_MODE_ANY: _ClassVar[NetworkMode]
    NETWORK_MODE_NONE: _ClassVar[NetworkMode]
    NETWORK_MODE_EGRESS_LIST: _ClassVar[NetworkMode]

class CallState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CALL_STATE_UNSPECIFIED: _ClassVar[CallState]
    CALL_STATE_QUEUED: _ClassVar[CallState]
    CALL_STATE_RUNNING: _ClassVar[CallState]
    CALL_STATE_BRAKED: _ClassVar[CallState]
    CALL_STATE_FROZEN: _ClassVar[CallState]
    CALL_STATE_ENDED: _ClassVar[CallState]
    CALL_STATE_THROTTLED: _ClassVar[CallState]

class BudgetBand(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUDGET_BAND_UNSPECIFIED: _ClassVar[BudgetBand]
    BUDGET_BAND_PLENTY: _ClassVar[BudgetBand]
    BUDGET_BAND_MEDIUM: _ClassVar[BudgetBand]
    BUDGET_BAND_LOW: _ClassVar[BudgetBand]
    BUDGET_BAND_CRITICAL: _ClassVar[BudgetBand]
ON_PRESSURE_UNSPECIFIED: OnPressure
ON_PRESSURE_WAIT: OnPressure
ON_PRESSURE_DEGRADE: OnPressure
ON_PRESSURE_FAIL_FAST: OnPressure
NETWORK_MODE_UNSPECIFIED: NetworkMode
NETWORK_MODE_ANY: NetworkMode
NETWORK_MODE_NONE: NetworkMode
NETWORK_MODE_EGRESS_LIST: NetworkMode
CALL_STATE_UNSPECIFIED: CallState
CALL_STATE_QUEUED: CallState
CALL_STATE_RUNNING: CallState
CALL_STATE_BRAKED: CallState
CALL_STATE_FROZEN: CallState
CALL_STATE_ENDED: CallState
CALL_STATE_THROTTLED: CallState
BUDGET_BAND_UNSPECIFIED: BudgetBand
BUDGET_BAND_PLENTY: BudgetBand
BUDGET_BAND_MEDIUM: BudgetBand
BUDGET_BAND_LOW: BudgetBand
BUDGET_BAND_CRITICAL: BudgetBand

class EgressRule(_message.Message):
    __slots__ = ("network", "port")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    network: str
    port: int
    def __init__(self, network: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class Intent(_message.Message):
    __slots__ = ("tool", "call_class", "memory_typical_bytes", "memory_peak_bytes", "cpu_cores", "pids", "duration_seconds", "deadline_seconds", "priority", "network", "egress", "gpu", "on_pressure", "inference")
    TOOL_FIELD_NUMBER: _ClassVar[int]
    CALL_CLASS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TYPICAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_CORES_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    EGRESS_FIELD_NUMBER: _ClassVar[int]
    GPU_FIELD_NUMBER: _ClassVar[int]
    ON_PRESSURE_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    tool: str
    call_class: str
    memory_typical_bytes: int
    memory_peak_bytes: int
    cpu_cores: float
    pids: int
    duration_seconds: float
    deadline_seconds: float
    priority: int
    network: NetworkMode
    egress: _containers.RepeatedCompositeFieldContainer[EgressRule]
    gpu: bool
    on_pressure: OnPressure
    inference: InferenceBinding
    def __init__(self, tool: _Optional[str] = ..., call_class: _Optional[str] = ..., memory_typical_bytes: _Optional[int] = ..., memory_peak_bytes: _Optional[int] = ..., cpu_cores: _Optional[float] = ..., pids: _Optional[int] = ..., duration_seconds: _Optional[float] = ..., deadline_seconds: _Optional[float] = ..., priority: _Optional[int] = ..., network: _Optional[_Union[NetworkMode, str]] = ..., egress: _Optional[_Iterable[_Union[EgressRule, _Mapping]]] = ..., gpu: _Optional[bool] = ..., on_pressure: _Optional[_Union[OnPressure, str]] = ..., inference: _Optional[_Union[InferenceBinding, _Mapping]] = ...) -> None: ...

class InferenceBinding(_message.Message):
    __slots__ = ("engine", "conversation")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    engine: str
    conversation: str
    def __init__(self, engine: _Optional[str] = ..., conversation: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("memory_max_bytes", "memory_high_bytes", "memory_low_bytes", "cpu_cores", "cpu_weight", "pids", "io_weight", "egress_bytes_per_second", "io_bytes_per_second")
    MEMORY_MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_HIGH_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_CORES_FIELD_NUMBER: _ClassVar[int]
    CPU_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    IO_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    EGRESS_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    IO_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    memory_max_bytes: int
    memory_high_bytes: int
    memory_low_bytes: int
    cpu_cores: float
    cpu_weight: int
    pids: int
    io_weight: int
    egress_bytes_per_second: int
    io_bytes_per_second: int
    def __init__(self, memory_max_bytes: _Optional[int] = ..., memory_high_bytes: _Optional[int] = ..., memory_low_bytes: _Optional[int] = ..., cpu_cores: _Optional[float] = ..., cpu_weight: _Optional[int] = ..., pids: _Optional[int] = ..., io_weight: _Optional[int] = ..., egress_bytes_per_second: _Optional[int] = ..., io_bytes_per_second: _Optional[int] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("limits", "notify_bytes", "brake_bytes", "priority", "enforced", "notes", "budgets")
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    NOTIFY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BRAKE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ENFORCED_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    limits: Limits
    notify_bytes: int
    brake_bytes: int
    priority: int
    enforced: bool
    notes: _containers.RepeatedScalarFieldContainer[str]
    budgets: _containers.RepeatedCompositeFieldContainer[Budget]
    def __init__(self, limits: _Optional[_Union[Limits, _Mapping]] = ..., notify_bytes: _Optional[int] = ..., brake_bytes: _Optional[int] = ..., priority: _Optional[int] = ..., enforced: _Optional[bool] = ..., notes: _Optional[_Iterable[str]] = ..., budgets: _Optional[_Iterable[_Union[Budget, _Mapping]]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("cpu_usec", "cpu_user_usec", "cpu_system_usec", "memory_now_bytes", "memory_peak_bytes", "pids_now", "faults", "major_faults", "read_bytes", "written_bytes", "disk_read_bytes", "disk_written_bytes", "net_rx_bytes", "net_tx_bytes", "forks", "execs", "run_wait_usec", "switches", "memory_stall_usec", "cpu_stall_usec", "io_stall_usec", "oom_kills", "gpu_memory_bytes", "gpu_seconds", "gpu_joules")
    CPU_USEC_FIELD_NUMBER: _ClassVar[int]
    CPU_USER_USEC_FIELD_NUMBER: _ClassVar[int]
    CPU_SYSTEM_USEC_FIELD_NUMBER: _ClassVar[int]
    MEMORY_NOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIDS_NOW_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    MAJOR_FAULTS_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_WRITTEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    NET_RX_BYTES_FIELD_NUMBER: _ClassVar[int]
    NET_TX_BYTES_FIELD_NUMBER: _ClassVar[int]
    FORKS_FIELD_NUMBER: _ClassVar[int]
    EXECS_FIELD_NUMBER: _ClassVar[int]
    RUN_WAIT_USEC_FIELD_NUMBER: _ClassVar[int]
    SWITCHES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_STALL_USEC_FIELD_NUMBER: _ClassVar[int]
    CPU_STALL_USEC_FIELD_NUMBER: _ClassVar[int]
    IO_STALL_USEC_FIELD_NUMBER: _ClassVar[int]
    OOM_KILLS_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    GPU_JOULES_FIELD_NUMBER: _ClassVar[int]
    cpu_usec: int
    cpu_user_usec: int
    cpu_system_usec: int
    memory_now_bytes: int
    memory_peak_bytes: int
    pids_now: int
    faults: int
    major_faults: int
    read_bytes: int
    written_bytes: int
    disk_read_bytes: int
    disk_written_bytes: int
    net_rx_bytes: int
    net_tx_bytes: int
    forks: int
    execs: int
    run_wait_usec: int
    switches: int
    memory_stall_usec: int
    cpu_stall_usec: int
    io_stall_usec: int
    oom_kills: int
    gpu_memory_bytes: int
    gpu_seconds: float
    gpu_joules: float
    def __init__(self, cpu_usec: _Optional[int] = ..., cpu_user_usec: _Optional[int] = ..., cpu_system_usec: _Optional[int] = ..., memory_now_bytes: _Optional[int] = ..., memory_peak_bytes: _Optional[int] = ..., pids_now: _Optional[int] = ..., faults: _Optional[int] = ..., major_faults: _Optional[int] = ..., read_bytes: _Optional[int] = ..., written_bytes: _Optional[int] = ..., disk_read_bytes: _Optional[int] = ..., disk_written_bytes: _Optional[int] = ..., net_rx_bytes: _Optional[int] = ..., net_tx_bytes: _Optional[int] = ..., forks: _Optional[int] = ..., execs: _Optional[int] = ..., run_wait_usec: _Optional[int] = ..., switches: _Optional[int] = ..., memory_stall_usec: _Optional[int] = ..., cpu_stall_usec: _Optional[int] = ..., io_stall_usec: _Optional[int] = ..., oom_kills: _Optional[int] = ..., gpu_memory_bytes: _Optional[int] = ..., gpu_seconds: _Optional[float] = ..., gpu_joules: _Optional[float] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("at", "action", "policy", "reason", "tenant_id", "session_id", "call_id", "evidence")
    class EvidenceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    AT_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    at: float
    action: str
    policy: str
    reason: str
    tenant_id: str
    session_id: str
    call_id: str
    evidence: _containers.ScalarMap[str, float]
    def __init__(self, at: _Optional[float] = ..., action: _Optional[str] = ..., policy: _Optional[str] = ..., reason: _Optional[str] = ..., tenant_id: _Optional[str] = ..., session_id: _Optional[str] = ..., call_id: _Optional[str] = ..., evidence: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("call_id", "reason", "ended_at", "wait_status", "usage", "wall_seconds", "held_seconds", "decisions", "summary", "suggestions", "leftovers", "budgets")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    WAIT_STATUS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    WALL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HELD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    SUGGESTIONS_FIELD_NUMBER: _ClassVar[int]
    LEFTOVERS_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    reason: str
    ended_at: float
    wait_status: int
    usage: Usage
    wall_seconds: float
    held_seconds: float
    decisions: _containers.RepeatedCompositeFieldContainer[Decision]
    summary: str
    suggestions: _containers.RepeatedScalarFieldContainer[str]
    leftovers: int
    budgets: _containers.RepeatedCompositeFieldContainer[Budget]
    def __init__(self, call_id: _Optional[str] = ..., reason: _Optional[str] = ..., ended_at: _Optional[float] = ..., wait_status: _Optional[int] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., wall_seconds: _Optional[float] = ..., held_seconds: _Optional[float] = ..., decisions: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ..., summary: _Optional[str] = ..., suggestions: _Optional[_Iterable[str]] = ..., leftovers: _Optional[int] = ..., budgets: _Optional[_Iterable[_Union[Budget, _Mapping]]] = ...) -> None: ...

class Tenant(_message.Message):
    __slots__ = ("id", "name", "limits", "priority", "memory_now_bytes", "cpu_usec", "budgets")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_NOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_USEC_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    limits: Limits
    priority: int
    memory_now_bytes: int
    cpu_usec: int
    budgets: _containers.RepeatedCompositeFieldContainer[Budget]
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., priority: _Optional[int] = ..., memory_now_bytes: _Optional[int] = ..., cpu_usec: _Optional[int] = ..., budgets: _Optional[_Iterable[_Union[Budget, _Mapping]]] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("id", "tenant_id", "name", "uid", "opened_at", "closed_at", "labels", "budgets", "turns", "container", "rules")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    OPENED_AT_FIELD_NUMBER: _ClassVar[int]
    CLOSED_AT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    id: str
    tenant_id: str
    name: str
    uid: int
    opened_at: float
    closed_at: float
    labels: _containers.ScalarMap[str, str]
    budgets: _containers.RepeatedCompositeFieldContainer[Budget]
    turns: Turns
    container: str
    rules: str
    def __init__(self, id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., name: _Optional[str] = ..., uid: _Optional[int] = ..., opened_at: _Optional[float] = ..., closed_at: _Optional[float] = ..., labels: _Optional[_Mapping[str, str]] = ..., budgets: _Optional[_Iterable[_Union[Budget, _Mapping]]] = ..., turns: _Optional[_Union[Turns, _Mapping]] = ..., container: _Optional[str] = ..., rules: _Optional[str] = ...) -> None: ...

class Turns(_message.Message):
    __slots__ = ("turns", "prompt_tokens", "cached_tokens", "generated_tokens", "model_seconds", "prefill_equivalents", "gpu_seconds", "joules")
    TURNS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MODEL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_EQUIVALENTS_FIELD_NUMBER: _ClassVar[int]
    GPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    JOULES_FIELD_NUMBER: _ClassVar[int]
    turns: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    model_seconds: float
    prefill_equivalents: float
    gpu_seconds: float
    joules: float
    def __init__(self, turns: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., model_seconds: _Optional[float] = ..., prefill_equivalents: _Optional[float] = ..., gpu_seconds: _Optional[float] = ..., joules: _Optional[float] = ...) -> None: ...

class Forecast(_message.Message):
    __slots__ = ("memory_median_bytes", "memory_high_bytes", "remaining_seconds", "lives", "kind")
    MEMORY_MEDIAN_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_HIGH_BYTES_FIELD_NUMBER: _ClassVar[int]
    REMAINING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LIVES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    memory_median_bytes: int
    memory_high_bytes: int
    remaining_seconds: float
    lives: int
    kind: str
    def __init__(self, memory_median_bytes: _Optional[int] = ..., memory_high_bytes: _Optional[int] = ..., remaining_seconds: _Optional[float] = ..., lives: _Optional[int] = ..., kind: _Optional[str] = ...) -> None: ...

class Squeeze(_message.Message):
    __slots__ = ("since", "memory_high_bytes", "cpu_weight", "io_weight", "egress_bytes_per_second", "reason", "cpu_cores")
    SINCE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_HIGH_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    IO_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    EGRESS_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CPU_CORES_FIELD_NUMBER: _ClassVar[int]
    since: float
    memory_high_bytes: int
    cpu_weight: int
    io_weight: int
    egress_bytes_per_second: int
    reason: str
    cpu_cores: float
    def __init__(self, since: _Optional[float] = ..., memory_high_bytes: _Optional[int] = ..., cpu_weight: _Optional[int] = ..., io_weight: _Optional[int] = ..., egress_bytes_per_second: _Optional[int] = ..., reason: _Optional[str] = ..., cpu_cores: _Optional[float] = ...) -> None: ...

class Recognition(_message.Message):
    __slots__ = ("rule", "seconds_before", "cpu_usec_before", "memory_bytes_before")
    RULE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    CPU_USEC_BEFORE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_BEFORE_FIELD_NUMBER: _ClassVar[int]
    rule: str
    seconds_before: float
    cpu_usec_before: int
    memory_bytes_before: int
    def __init__(self, rule: _Optional[str] = ..., seconds_before: _Optional[float] = ..., cpu_usec_before: _Optional[int] = ..., memory_bytes_before: _Optional[int] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("id", "session_id", "tenant_id", "parent_id", "command", "intent", "grant", "state", "begun_at", "held_since", "held_seconds", "brakes", "usage", "cgroup", "outcome", "forecast", "eta_seconds", "waits_for", "squeeze", "recognition")
    ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    INTENT_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BEGUN_AT_FIELD_NUMBER: _ClassVar[int]
    HELD_SINCE_FIELD_NUMBER: _ClassVar[int]
    HELD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BRAKES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    CGROUP_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    FORECAST_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    SQUEEZE_FIELD_NUMBER: _ClassVar[int]
    RECOGNITION_FIELD_NUMBER: _ClassVar[int]
    id: str
    session_id: str
    tenant_id: str
    parent_id: str
    command: str
    intent: Intent
    grant: Grant
    state: CallState
    begun_at: float
    held_since: float
    held_seconds: float
    brakes: int
    usage: Usage
    cgroup: str
    outcome: Outcome
    forecast: Forecast
    eta_seconds: float
    waits_for: str
    squeeze: Squeeze
    recognition: Recognition
    def __init__(self, id: _Optional[str] = ..., session_id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., parent_id: _Optional[str] = ..., command: _Optional[str] = ..., intent: _Optional[_Union[Intent, _Mapping]] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., state: _Optional[_Union[CallState, str]] = ..., begun_at: _Optional[float] = ..., held_since: _Optional[float] = ..., held_seconds: _Optional[float] = ..., brakes: _Optional[int] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., cgroup: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., forecast: _Optional[_Union[Forecast, _Mapping]] = ..., eta_seconds: _Optional[float] = ..., waits_for: _Optional[str] = ..., squeeze: _Optional[_Union[Squeeze, _Mapping]] = ..., recognition: _Optional[_Union[Recognition, _Mapping]] = ...) -> None: ...

class HostStatus(_message.Message):
    __slots__ = ("kernel", "mode", "cpus", "memory_total_bytes", "memory_available_bytes", "cpu_pressure", "memory_pressure", "io_pressure", "missing", "version")
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_PRESSURE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PRESSURE_FIELD_NUMBER: _ClassVar[int]
    IO_PRESSURE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    kernel: str
    mode: str
    cpus: int
    memory_total_bytes: int
    memory_available_bytes: int
    cpu_pressure: float
    memory_pressure: float
    io_pressure: float
    missing: _containers.RepeatedScalarFieldContainer[str]
    version: str
    def __init__(self, kernel: _Optional[str] = ..., mode: _Optional[str] = ..., cpus: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., memory_available_bytes: _Optional[int] = ..., cpu_pressure: _Optional[float] = ..., memory_pressure: _Optional[float] = ..., io_pressure: _Optional[float] = ..., missing: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("tenant", "name", "labels", "uid")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    name: str
    labels: _containers.ScalarMap[str, str]
    uid: int
    def __init__(self, tenant: _Optional[str] = ..., name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., uid: _Optional[int] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("session", "token")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    session: Session
    token: str
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., token: _Optional[str] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id", "kill")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    KILL_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    kill: bool
    def __init__(self, session_id: _Optional[str] = ..., kill: _Optional[bool] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BeginCallRequest(_message.Message):
    __slots__ = ("session_id", "intent", "argv", "parent_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INTENT_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    PARENT_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    intent: Intent
    argv: _containers.RepeatedScalarFieldContainer[str]
    parent_id: str
    def __init__(self, session_id: _Optional[str] = ..., intent: _Optional[_Union[Intent, _Mapping]] = ..., argv: _Optional[_Iterable[str]] = ..., parent_id: _Optional[str] = ...) -> None: ...

class BeginCallResponse(_message.Message):
    __slots__ = ("call",)
    CALL_FIELD_NUMBER: _ClassVar[int]
    call: Call
    def __init__(self, call: _Optional[_Union[Call, _Mapping]] = ...) -> None: ...

class AttachProcessRequest(_message.Message):
    __slots__ = ("call_id", "pid")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    pid: int
    def __init__(self, call_id: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

class AttachProcessResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UpdateIntentRequest(_message.Message):
    __slots__ = ("call_id", "intent")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    INTENT_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    intent: Intent
    def __init__(self, call_id: _Optional[str] = ..., intent: _Optional[_Union[Intent, _Mapping]] = ...) -> None: ...

class UpdateIntentResponse(_message.Message):
    __slots__ = ("call",)
    CALL_FIELD_NUMBER: _ClassVar[int]
    call: Call
    def __init__(self, call: _Optional[_Union[Call, _Mapping]] = ...) -> None: ...

class EndCallRequest(_message.Message):
    __slots__ = ("call_id", "wait_status")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_STATUS_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    wait_status: int
    def __init__(self, call_id: _Optional[str] = ..., wait_status: _Optional[int] = ...) -> None: ...

class EndCallResponse(_message.Message):
    __slots__ = ("outcome",)
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    def __init__(self, outcome: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...

class GetOutcomeRequest(_message.Message):
    __slots__ = ("call_id",)
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    def __init__(self, call_id: _Optional[str] = ...) -> None: ...

class GetOutcomeResponse(_message.Message):
    __slots__ = ("outcome",)
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    def __init__(self, outcome: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...

class WatchSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class WatchSessionResponse(_message.Message):
    __slots__ = ("call", "decision", "lost", "session")
    CALL_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    call: Call
    decision: Decision
    lost: Lost
    session: Session
    def __init__(self, call: _Optional[_Union[Call, _Mapping]] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ..., lost: _Optional[_Union[Lost, _Mapping]] = ..., session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class Lost(_message.Message):
    __slots__ = ("updates",)
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    updates: int
    def __init__(self, updates: _Optional[int] = ...) -> None: ...

class GetBudgetRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("resource", "scope", "limit", "used", "remaining", "hard", "period_seconds", "refills_at", "band", "ends_calls")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    HARD_FIELD_NUMBER: _ClassVar[int]
    PERIOD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REFILLS_AT_FIELD_NUMBER: _ClassVar[int]
    BAND_FIELD_NUMBER: _ClassVar[int]
    ENDS_CALLS_FIELD_NUMBER: _ClassVar[int]
    resource: str
    scope: str
    limit: float
    used: float
    remaining: float
    hard: bool
    period_seconds: float
    refills_at: float
    band: BudgetBand
    ends_calls: bool
    def __init__(self, resource: _Optional[str] = ..., scope: _Optional[str] = ..., limit: _Optional[float] = ..., used: _Optional[float] = ..., remaining: _Optional[float] = ..., hard: _Optional[bool] = ..., period_seconds: _Optional[float] = ..., refills_at: _Optional[float] = ..., band: _Optional[_Union[BudgetBand, str]] = ..., ends_calls: _Optional[bool] = ...) -> None: ...

class GetBudgetResponse(_message.Message):
    __slots__ = ("budgets",)
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    budgets: _containers.RepeatedCompositeFieldContainer[Budget]
    def __init__(self, budgets: _Optional[_Iterable[_Union[Budget, _Mapping]]] = ...) -> None: ...

class ReportTurnRequest(_message.Message):
    __slots__ = ("session_id", "engine", "conversation", "prompt_tokens", "cached_tokens", "generated_tokens", "seconds", "first_token_seconds", "money")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MONEY_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    engine: str
    conversation: str
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    seconds: float
    first_token_seconds: float
    money: float
    def __init__(self, session_id: _Optional[str] = ..., engine: _Optional[str] = ..., conversation: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., seconds: _Optional[float] = ..., first_token_seconds: _Optional[float] = ..., money: _Optional[float] = ...) -> None: ...

class ReportTurnResponse(_message.Message):
    __slots__ = ("turns", "budgets")
    TURNS_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    turns: Turns
    budgets: _containers.RepeatedCompositeFieldContainer[Budget]
    def __init__(self, turns: _Optional[_Union[Turns, _Mapping]] = ..., budgets: _Optional[_Iterable[_Union[Budget, _Mapping]]] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("with_ended",)
    WITH_ENDED_FIELD_NUMBER: _ClassVar[int]
    with_ended: bool
    def __init__(self, with_ended: _Optional[bool] = ...) -> None: ...

class SnapshotResponse(_message.Message):
    __slots__ = ("at", "host", "tenants", "sessions", "calls", "tier")
    AT_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    at: float
    host: HostStatus
    tenants: _containers.RepeatedCompositeFieldContainer[Tenant]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    calls: _containers.RepeatedCompositeFieldContainer[Call]
    tier: TierStatus
    def __init__(self, at: _Optional[float] = ..., host: _Optional[_Union[HostStatus, _Mapping]] = ..., tenants: _Optional[_Iterable[_Union[Tenant, _Mapping]]] = ..., sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., calls: _Optional[_Iterable[_Union[Call, _Mapping]]] = ..., tier: _Optional[_Union[TierStatus, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("interval_seconds",)
    INTERVAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    interval_seconds: float
    def __init__(self, interval_seconds: _Optional[float] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("snapshot", "call", "decision", "session", "lost")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    snapshot: SnapshotResponse
    call: Call
    decision: Decision
    session: Session
    lost: Lost
    def __init__(self, snapshot: _Optional[_Union[SnapshotResponse, _Mapping]] = ..., call: _Optional[_Union[Call, _Mapping]] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ..., session: _Optional[_Union[Session, _Mapping]] = ..., lost: _Optional[_Union[Lost, _Mapping]] = ...) -> None: ...

class HistoryRequest(_message.Message):
    __slots__ = ("since", "until", "tenant", "session_id", "call_id", "limit", "with_samples", "with_decisions", "sample_points")
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    WITH_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    WITH_DECISIONS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_POINTS_FIELD_NUMBER: _ClassVar[int]
    since: float
    until: float
    tenant: str
    session_id: str
    call_id: str
    limit: int
    with_samples: bool
    with_decisions: bool
    sample_points: int
    def __init__(self, since: _Optional[float] = ..., until: _Optional[float] = ..., tenant: _Optional[str] = ..., session_id: _Optional[str] = ..., call_id: _Optional[str] = ..., limit: _Optional[int] = ..., with_samples: _Optional[bool] = ..., with_decisions: _Optional[bool] = ..., sample_points: _Optional[int] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("at", "call_id", "state", "usage")
    AT_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    at: float
    call_id: str
    state: CallState
    usage: Usage
    def __init__(self, at: _Optional[float] = ..., call_id: _Optional[str] = ..., state: _Optional[_Union[CallState, str]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class HistoryResponse(_message.Message):
    __slots__ = ("calls", "decisions", "samples", "names")
    class NamesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CALLS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[Call]
    decisions: _containers.RepeatedCompositeFieldContainer[Decision]
    samples: _containers.RepeatedCompositeFieldContainer[Sample]
    names: _containers.ScalarMap[str, str]
    def __init__(self, calls: _Optional[_Iterable[_Union[Call, _Mapping]]] = ..., decisions: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ..., samples: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ..., names: _Optional[_Mapping[str, str]] = ...) -> None: ...

class MomentRequest(_message.Message):
    __slots__ = ("at",)
    AT_FIELD_NUMBER: _ClassVar[int]
    at: float
    def __init__(self, at: _Optional[float] = ...) -> None: ...

class MomentResponse(_message.Message):
    __slots__ = ("snapshot", "decisions", "previous_decision_at", "next_decision_at", "first_at")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_DECISION_AT_FIELD_NUMBER: _ClassVar[int]
    NEXT_DECISION_AT_FIELD_NUMBER: _ClassVar[int]
    FIRST_AT_FIELD_NUMBER: _ClassVar[int]
    snapshot: SnapshotResponse
    decisions: _containers.RepeatedCompositeFieldContainer[Decision]
    previous_decision_at: float
    next_decision_at: float
    first_at: float
    def __init__(self, snapshot: _Optional[_Union[SnapshotResponse, _Mapping]] = ..., decisions: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ..., previous_decision_at: _Optional[float] = ..., next_decision_at: _Optional[float] = ..., first_at: _Optional[float] = ...) -> None: ...

class ProcessesRequest(_message.Message):
    __slots__ = ("call_id",)
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    def __init__(self, call_id: _Optional[str] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ("pid", "parent_pid", "state", "memory_bytes", "cpu_seconds", "command")
    PID_FIELD_NUMBER: _ClassVar[int]
    PARENT_PID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    pid: int
    parent_pid: int
    state: str
    memory_bytes: int
    cpu_seconds: float
    command: str
    def __init__(self, pid: _Optional[int] = ..., parent_pid: _Optional[int] = ..., state: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., cpu_seconds: _Optional[float] = ..., command: _Optional[str] = ...) -> None: ...

class ProcessesResponse(_message.Message):
    __slots__ = ("processes",)
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    processes: _containers.RepeatedCompositeFieldContainer[Process]
    def __init__(self, processes: _Optional[_Iterable[_Union[Process, _Mapping]]] = ...) -> None: ...

class SetTenantRequest(_message.Message):
    __slots__ = ("name", "limits", "priority")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    limits: Limits
    priority: int
    def __init__(self, name: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., priority: _Optional[int] = ...) -> None: ...

class SetTenantResponse(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: Tenant
    def __init__(self, tenant: _Optional[_Union[Tenant, _Mapping]] = ...) -> None: ...

class SetLimitsRequest(_message.Message):
    __slots__ = ("target", "limits", "notify_bytes", "brake_bytes")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    NOTIFY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BRAKE_BYTES_FIELD_NUMBER: _ClassVar[int]
    target: str
    limits: Limits
    notify_bytes: int
    brake_bytes: int
    def __init__(self, target: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., notify_bytes: _Optional[int] = ..., brake_bytes: _Optional[int] = ...) -> None: ...

class SetLimitsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetPriorityRequest(_message.Message):
    __slots__ = ("target", "priority")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    target: str
    priority: int
    def __init__(self, target: _Optional[str] = ..., priority: _Optional[int] = ...) -> None: ...

class SetPriorityResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FreezeRequest(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: str
    def __init__(self, target: _Optional[str] = ...) -> None: ...

class FreezeResponse(_message.Message):
    __slots__ = ("call_ids",)
    CALL_IDS_FIELD_NUMBER: _ClassVar[int]
    call_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, call_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ThawRequest(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: str
    def __init__(self, target: _Optional[str] = ...) -> None: ...

class ThawResponse(_message.Message):
    __slots__ = ("call_ids",)
    CALL_IDS_FIELD_NUMBER: _ClassVar[int]
    call_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, call_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class KillRequest(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: str
    def __init__(self, target: _Optional[str] = ...) -> None: ...

class KillResponse(_message.Message):
    __slots__ = ("call_ids",)
    CALL_IDS_FIELD_NUMBER: _ClassVar[int]
    call_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, call_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class SetBudgetRequest(_message.Message):
    __slots__ = ("target", "resource", "limit", "hard", "period_seconds", "ends_calls")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    HARD_FIELD_NUMBER: _ClassVar[int]
    PERIOD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENDS_CALLS_FIELD_NUMBER: _ClassVar[int]
    target: str
    resource: str
    limit: float
    hard: bool
    period_seconds: float
    ends_calls: bool
    def __init__(self, target: _Optional[str] = ..., resource: _Optional[str] = ..., limit: _Optional[float] = ..., hard: _Optional[bool] = ..., period_seconds: _Optional[float] = ..., ends_calls: _Optional[bool] = ...) -> None: ...

class SetBudgetResponse(_message.Message):
    __slots__ = ("budgets",)
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    budgets: _containers.RepeatedCompositeFieldContainer[Budget]
    def __init__(self, budgets: _Optional[_Iterable[_Union[Budget, _Mapping]]] = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("tenant", "name", "labels", "pid", "containers", "rules")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    name: str
    labels: _containers.ScalarMap[str, str]
    pid: int
    containers: ContainerSelector
    rules: str
    def __init__(self, tenant: _Optional[str] = ..., name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., pid: _Optional[int] = ..., containers: _Optional[_Union[ContainerSelector, _Mapping]] = ..., rules: _Optional[str] = ...) -> None: ...

class ContainerSelector(_message.Message):
    __slots__ = ("name", "labels", "network", "compose_project", "follow")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    COMPOSE_PROJECT_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    name: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    network: str
    compose_project: str
    follow: bool
    def __init__(self, name: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., network: _Optional[str] = ..., compose_project: _Optional[str] = ..., follow: _Optional[bool] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ...) -> None: ...

class DetachRequest(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: str
    def __init__(self, target: _Optional[str] = ...) -> None: ...

class DetachResponse(_message.Message):
    __slots__ = ("session_ids",)
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class TraceRequest(_message.Message):
    __slots__ = ("call_id", "tools", "seconds")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    tools: _containers.RepeatedScalarFieldContainer[str]
    seconds: float
    def __init__(self, call_id: _Optional[str] = ..., tools: _Optional[_Iterable[str]] = ..., seconds: _Optional[float] = ...) -> None: ...

class TraceResponse(_message.Message):
    __slots__ = ("event", "table", "notice")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    event: TraceEvent
    table: TraceTable
    notice: str
    def __init__(self, event: _Optional[_Union[TraceEvent, _Mapping]] = ..., table: _Optional[_Union[TraceTable, _Mapping]] = ..., notice: _Optional[str] = ...) -> None: ...

class TraceEvent(_message.Message):
    __slots__ = ("at", "tool", "pid", "command", "text", "value")
    AT_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    at: float
    tool: str
    pid: int
    command: str
    text: str
    value: float
    def __init__(self, at: _Optional[float] = ..., tool: _Optional[str] = ..., pid: _Optional[int] = ..., command: _Optional[str] = ..., text: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class TraceTable(_message.Message):
    __slots__ = ("tool", "columns", "rows")
    TOOL_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    tool: str
    columns: _containers.RepeatedScalarFieldContainer[str]
    rows: _containers.RepeatedCompositeFieldContainer[TraceRow]
    def __init__(self, tool: _Optional[str] = ..., columns: _Optional[_Iterable[str]] = ..., rows: _Optional[_Iterable[_Union[TraceRow, _Mapping]]] = ...) -> None: ...

class TraceRow(_message.Message):
    __slots__ = ("cells",)
    CELLS_FIELD_NUMBER: _ClassVar[int]
    cells: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, cells: _Optional[_Iterable[str]] = ...) -> None: ...

class TierRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TierResponse(_message.Message):
    __slots__ = ("tier",)
    TIER_FIELD_NUMBER: _ClassVar[int]
    tier: TierStatus
    def __init__(self, tier: _Optional[_Union[TierStatus, _Mapping]] = ...) -> None: ...

class TierStatus(_message.Message):
    __slots__ = ("at", "nvml", "nvml_detail", "devices", "engines", "sessions", "switches", "policy", "hints", "tenants", "sampling_share")
    AT_FIELD_NUMBER: _ClassVar[int]
    NVML_FIELD_NUMBER: _ClassVar[int]
    NVML_DETAIL_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    SWITCHES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    HINTS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_SHARE_FIELD_NUMBER: _ClassVar[int]
    at: float
    nvml: str
    nvml_detail: str
    devices: _containers.RepeatedCompositeFieldContainer[GpuDevice]
    engines: _containers.RepeatedCompositeFieldContainer[InferenceEngine]
    sessions: _containers.RepeatedCompositeFieldContainer[KvSession]
    switches: _containers.RepeatedCompositeFieldContainer[ContextSwitch]
    policy: str
    hints: _containers.RepeatedScalarFieldContainer[str]
    tenants: _containers.RepeatedCompositeFieldContainer[GpuTotals]
    sampling_share: float
    def __init__(self, at: _Optional[float] = ..., nvml: _Optional[str] = ..., nvml_detail: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[GpuDevice, _Mapping]]] = ..., engines: _Optional[_Iterable[_Union[InferenceEngine, _Mapping]]] = ..., sessions: _Optional[_Iterable[_Union[KvSession, _Mapping]]] = ..., switches: _Optional[_Iterable[_Union[ContextSwitch, _Mapping]]] = ..., policy: _Optional[str] = ..., hints: _Optional[_Iterable[str]] = ..., tenants: _Optional[_Iterable[_Union[GpuTotals, _Mapping]]] = ..., sampling_share: _Optional[float] = ...) -> None: ...

class GpuTotals(_message.Message):
    __slots__ = ("tenant_id", "memory_bytes", "gpu_seconds", "joules")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    JOULES_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    memory_bytes: int
    gpu_seconds: float
    joules: float
    def __init__(self, tenant_id: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., gpu_seconds: _Optional[float] = ..., joules: _Optional[float] = ...) -> None: ...

class GpuDevice(_message.Message):
    __slots__ = ("index", "uuid", "name", "state", "detail", "memory_total_bytes", "memory_used_bytes", "sm_utilization", "memory_utilization", "power_watts", "energy_joules", "temperature_celsius", "context_switches_per_second", "processes", "parent_uuid", "faults")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SM_UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    MEMORY_UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    POWER_WATTS_FIELD_NUMBER: _ClassVar[int]
    ENERGY_JOULES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_SWITCHES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    PARENT_UUID_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    index: int
    uuid: str
    name: str
    state: str
    detail: str
    memory_total_bytes: int
    memory_used_bytes: int
    sm_utilization: float
    memory_utilization: float
    power_watts: float
    energy_joules: float
    temperature_celsius: float
    context_switches_per_second: float
    processes: _containers.RepeatedCompositeFieldContainer[GpuProcess]
    parent_uuid: str
    faults: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, index: _Optional[int] = ..., uuid: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[str] = ..., detail: _Optional[str] = ..., memory_total_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., sm_utilization: _Optional[float] = ..., memory_utilization: _Optional[float] = ..., power_watts: _Optional[float] = ..., energy_joules: _Optional[float] = ..., temperature_celsius: _Optional[float] = ..., context_switches_per_second: _Optional[float] = ..., processes: _Optional[_Iterable[_Union[GpuProcess, _Mapping]]] = ..., parent_uuid: _Optional[str] = ..., faults: _Optional[_Iterable[str]] = ...) -> None: ...

class GpuProcess(_message.Message):
    __slots__ = ("pid", "memory_bytes", "sm_share", "tenant_id", "session_id", "call_id", "command")
    PID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SM_SHARE_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    pid: int
    memory_bytes: int
    sm_share: float
    tenant_id: str
    session_id: str
    call_id: str
    command: str
    def __init__(self, pid: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., sm_share: _Optional[float] = ..., tenant_id: _Optional[str] = ..., session_id: _Optional[str] = ..., call_id: _Optional[str] = ..., command: _Optional[str] = ...) -> None: ...

class InferenceEngine(_message.Message):
    __slots__ = ("name", "kind", "version", "url", "state", "detail", "running", "waiting", "kv_used_share", "kv_capacity_tokens", "prefix_hit_share", "preemptions", "prompt_tokens", "generated_tokens", "capabilities", "control", "policy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    KV_USED_SHARE_FIELD_NUMBER: _ClassVar[int]
    KV_CAPACITY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HIT_SHARE_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    version: str
    url: str
    state: str
    detail: str
    running: int
    waiting: int
    kv_used_share: float
    kv_capacity_tokens: int
    prefix_hit_share: float
    preemptions: int
    prompt_tokens: int
    generated_tokens: int
    capabilities: _containers.RepeatedCompositeFieldContainer[EngineCapability]
    control: bool
    policy: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., version: _Optional[str] = ..., url: _Optional[str] = ..., state: _Optional[str] = ..., detail: _Optional[str] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., kv_used_share: _Optional[float] = ..., kv_capacity_tokens: _Optional[int] = ..., prefix_hit_share: _Optional[float] = ..., preemptions: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., capabilities: _Optional[_Iterable[_Union[EngineCapability, _Mapping]]] = ..., control: _Optional[bool] = ..., policy: _Optional[str] = ...) -> None: ...

class EngineCapability(_message.Message):
    __slots__ = ("name", "answer", "note")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    name: str
    answer: str
    note: str
    def __init__(self, name: _Optional[str] = ..., answer: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class KvSession(_message.Message):
    __slots__ = ("session_id", "tenant_id", "engine", "conversation", "residency", "since", "why", "tokens", "bytes", "recomputed_tokens", "switches", "prefill_equivalents", "resident_byte_seconds", "offloaded_byte_seconds", "call_id", "keep_until")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SWITCHES_FIELD_NUMBER: _ClassVar[int]
    PREFILL_EQUIVALENTS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    OFFLOADED_BYTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    KEEP_UNTIL_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    tenant_id: str
    engine: str
    conversation: str
    residency: str
    since: float
    why: str
    tokens: int
    bytes: int
    recomputed_tokens: int
    switches: int
    prefill_equivalents: float
    resident_byte_seconds: float
    offloaded_byte_seconds: float
    call_id: str
    keep_until: float
    def __init__(self, session_id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., engine: _Optional[str] = ..., conversation: _Optional[str] = ..., residency: _Optional[str] = ..., since: _Optional[float] = ..., why: _Optional[str] = ..., tokens: _Optional[int] = ..., bytes: _Optional[int] = ..., recomputed_tokens: _Optional[int] = ..., switches: _Optional[int] = ..., prefill_equivalents: _Optional[float] = ..., resident_byte_seconds: _Optional[float] = ..., offloaded_byte_seconds: _Optional[float] = ..., call_id: _Optional[str] = ..., keep_until: _Optional[float] = ...) -> None: ...

class ContextSwitch(_message.Message):
    __slots__ = ("at", "session_id", "engine", "kind", "why", "tokens", "bytes", "seconds")
    AT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    at: float
    session_id: str
    engine: str
    kind: str
    why: str
    tokens: int
    bytes: int
    seconds: float
    def __init__(self, at: _Optional[float] = ..., session_id: _Optional[str] = ..., engine: _Optional[str] = ..., kind: _Optional[str] = ..., why: _Optional[str] = ..., tokens: _Optional[int] = ..., bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class DoctorRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Feature(_message.Message):
    __slots__ = ("name", "found", "detail", "cost", "remedy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    name: str
    found: bool
    detail: str
    cost: str
    remedy: str
    def __init__(self, name: _Optional[str] = ..., found: _Optional[bool] = ..., detail: _Optional[str] = ..., cost: _Optional[str] = ..., remedy: _Optional[str] = ...) -> None: ...

class DoctorResponse(_message.Message):
    __slots__ = ("features",)
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    features: _containers.RepeatedCompositeFieldContainer[Feature]
    def __init__(self, features: _Optional[_Iterable[_Union[Feature, _Mapping]]] = ...) -> None: ...
