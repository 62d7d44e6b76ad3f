"""A request's JSON body: what a client may not say is taken out, what the engine needs is put in.

Only the outermost object is taken apart; values stay the bytes that the client sent (a prompt of megabytes is copied,
never parsed). Keys come out decoded and once each, so that no second reader can see another body than we did.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from agentd.gateway.errors import Refusal

#: How engines are told whose KV a request uses, or who goes first: the gateway's to say, never a client's.
RESERVED: Final = frozenset(
    {
        "id_slot",  # llama.cpp
        "slot_id",
        "priority",  # vLLM, SGLang
        "cache_salt",  # vLLM, LMCache
        "kv_transfer_params",
        "session_params",  # SGLang
        "session_id",
        "rid",
        "background",  # of /v1/responses: what runs on after its answer would be counted by nobody
        "request_id",  # vLLM: a client that names another's would meet its request in the engine
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "data_parallel_rank",
        "routed_dp_rank",
    }
)
MAX_KEYS: Final = 256
_MAX_MODEL: Final = 256

_raw: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_options: Final = msgspec.json.Decoder(dict[str, Any])
_string: Final = msgspec.json.Decoder(str)


class Body:
    """The outermost object of a request. Raises Refusal where it is none."""

    def __init__(self, raw: bytes) -> None:
        try:
            self._fields = _raw.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(400, "invalid_json", f"the body is not a JSON object: {error}"[:300]) from None
        if len(self._fields) > MAX_KEYS:
            raise Refusal(400, "invalid_json", f"the body has {len(self._fields)} fields, {MAX_KEYS} are allowed")
        self.taken_out: Final = sorted(RESERVED & self._fields.keys())
        for name in self.taken_out:
            del self._fields[name]

    @property
    def stream(self) -> bool:
        return bytes(self._fields.get("stream", b"")).strip() == b"true"

    @property
    def model(self) -> str:
        """As the client names it; "" where it does not."""
        try:
            return _string.decode(self._fields.get("model", b'""'))[:_MAX_MODEL]
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ""  # not a text: the engine refuses it in its own words

    def ask_for_usage(self) -> bool:
        """Ask a stream for its token counts. Whether that was put in by us, and is to be taken out of the answer."""
        raw = self._fields.get("stream_options")
        options: dict[str, Any] = {}
        if raw is not None and bytes(raw).strip() != b"null":
            try:
                options = _options.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return False  # not an object: the engine refuses it in its own words
        if options.get("include_usage") is True:
            return False
        self._fields["stream_options"] = msgspec.Raw(msgspec.json.encode({**options, "include_usage": True}))
        return True

    def encode(self, fields: Mapping[str, Any]) -> bytes:
        """With ``fields`` in the place of what the client said of the same name."""
        return msgspec.json.encode({**self._fields, **fields})
