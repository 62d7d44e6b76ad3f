"""The vocabulary of docs/architecture.md as frozen values. Nothing here does I/O, and nothing here imports the rest."""

from controller.model.errors import (
    AlreadyExists,
    CannotEnforce,
    CgroupError,
    ControllerError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Refused,
    WrongState,
)
from controller.model.ids import (
    CallId,
    SessionId,
    TenantId,
    is_id,
    is_name,
    new_call_id,
    new_session_id,
    new_tenant_id,
)
from controller.model.intent import EgressRule, Intent, Network, OnPressure, check_text, command_text
from controller.model.limits import UNLIMITED, Limits, Tripwire
from controller.model.outcome import Action, Decision, Outcome, Reason
from controller.model.squeeze import Squeeze, squeezed
from controller.model.state import Budget, CallState, CallView, Grant, HostView, SessionView, Snapshot, TenantView
from controller.model.usage import Usage

__all__ = [
    "UNLIMITED",
    "Action",
    "AlreadyExists",
    "Budget",
    "CallId",
    "CallState",
    "CallView",
    "CannotEnforce",
    "CgroupError",
    "ControllerError",
    "Decision",
    "EgressRule",
    "Grant",
    "HostView",
    "Intent",
    "InvalidRequest",
    "Limits",
    "Network",
    "NotAllowed",
    "NotFound",
    "OnPressure",
    "Outcome",
    "Reason",
    "Refused",
    "SessionId",
    "SessionView",
    "Snapshot",
    "Squeeze",
    "TenantId",
    "TenantView",
    "Tripwire",
    "Usage",
    "WrongState",
    "check_text",
    "command_text",
    "is_id",
    "is_name",
    "new_call_id",
    "new_session_id",
    "new_tenant_id",
    "squeezed",
]
