"""vLLM's KV events: which blocks of KV exist, and whose they are. Decoding and bookkeeping; pure.

A message is msgpack: a batch of events, as maps, or (older versions) as arrays with the type's name first. Blocks are
named by a hash of their content. A block carries the session that computed it (0.32 tells it); a second session that
finds the same prefix in the cache causes no event: its tokens are those of the first. Two that compute the same content
(at the same time, or the last block of a prompt, which is always computed) store it twice: it exists until both copies
are removed, and counts for both sessions.

Seen on the real server, 0.32.0: a reset of the prefix cache is told only with the next request's events.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

# Bound what one message and the index may hold. A pool of 2 million tokens in blocks of 16 has 131,072 blocks.
MAX_MESSAGE: Final = 64 << 20
MAX_BLOCKS: Final = 2_000_000

BlockHash = int | bytes
_DEFAULT_MEDIUM: Final = "GPU"
_MAX_SHARERS: Final = 64  # sessions of one block that are kept: a prompt that all share is computed twice at most or so
_STORED_FIELDS: Final = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium")
_REMOVED_FIELDS: Final = ("block_hashes", "medium")


class BadEvent(ValueError):
    """The message is not one of vLLM's."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that now exist in ``medium``; each has ``block_size`` tokens. ``session`` "": not told.

    ``group``: of layers that are cached alike; a model with sliding windows has several, and blocks of the same tokens
    in each.
    """

    hashes: tuple[BlockHash, ...]
    block_size: int
    medium: str = _DEFAULT_MEDIUM
    session: str = ""
    parent: BlockHash | None = None
    group: int = 0


@dataclass(frozen=True, slots=True)
class Removed:
    hashes: tuple[BlockHash, ...]
    medium: str = _DEFAULT_MEDIUM
    group: int = 0


@dataclass(frozen=True, slots=True)
class Cleared:
    """All blocks are gone."""


KvEvent = Stored | Removed | Cleared


@dataclass(frozen=True, slots=True)
class Batch:
    """One message. ``at`` is the engine's wall clock (seconds); ``unknown`` counts events of types not known here."""

    seq: int
    at: float
    events: tuple[KvEvent, ...]
    rank: int = 0
    unknown: int = 0
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages ``first`` to ``last`` are lost for good: the index may name blocks that are gone, and miss some."""

    first: int
    last: int
    why: str


@dataclass(frozen=True, slots=True)
class Restarted:
    """The engine began to count anew: nothing of before exists any more."""


KvUpdate = Batch | Gap | Restarted

_decoder = msgspec.msgpack.Decoder()


def decode(seq: int, payload: bytes, *, replayed: bool = False) -> Batch:
    """
    :raises BadEvent: not msgpack, or not of this shape
    """
    if len(payload) > MAX_MESSAGE:
        raise BadEvent(f"a message of {len(payload)} bytes")
    try:
        raw = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadEvent(f"not msgpack: {error}") from error
    if isinstance(raw, dict):
        at, listed, rank = raw.get("ts"), raw.get("events"), raw.get("data_parallel_rank")
    elif isinstance(raw, list) and len(raw) >= 2:
        at, listed, rank = raw[0], raw[1], raw[2] if len(raw) > 2 else None
    else:
        raise BadEvent("a batch is a map, or an array of at least two")
    if not isinstance(at, int | float) or not math.isfinite(at) or not isinstance(listed, list):
        raise BadEvent("a batch has a time and a list of events")
    events: list[KvEvent] = []
    unknown = 0
    for entry in listed:
        event = _event(entry)
        if event is None:
            unknown += 1
        else:
            events.append(event)
    return Batch(seq, float(at), tuple(events), rank if isinstance(rank, int) else 0, unknown, replayed)


def _event(entry: object) -> KvEvent | None:
    """None: a type that is not known here, as a later version may have."""
    kind: object
    fields: Mapping[str, Any]
    if isinstance(entry, dict):
        kind, fields = entry.get("type"), entry
    elif isinstance(entry, list) and entry:
        kind = entry[0]
        names = _STORED_FIELDS if kind == "BlockStored" else _REMOVED_FIELDS
        fields = dict(zip(names, entry[1:], strict=False))
    else:
        raise BadEvent("an event is a map, or an array that begins with its type")
    match kind:
        case "BlockStored":
            size = fields.get("block_size")
            if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= 1 << 20:
                raise BadEvent(f"BlockStored with a block size of {size!r}")
            parent = fields.get("parent_block_hash")
            return Stored(
                _hashes(fields),
                size,
                _medium(fields),
                _session(fields),
                parent if isinstance(parent, int | bytes) else None,
                _group(fields),
            )
        case "BlockRemoved":
            return Removed(_hashes(fields), _medium(fields), _group(fields))
        case "AllBlocksCleared":
            return Cleared()
        case str():
            return None
        case _:
            raise BadEvent("an event without a type")


def _hashes(fields: Mapping[str, Any]) -> tuple[BlockHash, ...]:
    hashes = fields.get("block_hashes")
    if not isinstance(hashes, list) or not all(
        isinstance(one, int | bytes) and not isinstance(one, bool) for one in hashes
    ):
        raise BadEvent("an event's block hashes are integers or byte strings")
    return tuple(hashes)


def _medium(fields: Mapping[str, Any]) -> str:
    medium = fields.get("medium")
    if medium is None:
        return _DEFAULT_MEDIUM
    if not isinstance(medium, str) or not 0 < len(medium) <= 64:
        raise BadEvent("an event's medium is a short word")
    return medium


def _session(fields: Mapping[str, Any]) -> str:
    session = fields.get("session_id")
    return session if isinstance(session, str) and len(session) <= 128 else ""


def _group(fields: Mapping[str, Any]) -> int:
    group = fields.get("group_idx")
    return group if isinstance(group, int) and not isinstance(group, bool) and 0 <= group < 1 << 16 else 0


@dataclass(slots=True)
class _Block:
    tokens: int
    copies: int
    sessions: set[str]


_Key = tuple[str, int, BlockHash]  # medium, group, hash


class KvIndex:
    """Which blocks exist now, by medium and session.

    ``certain`` is False after a gap, until the engine clears its cache or restarts: what was missed cannot be known.
    """

    def __init__(self, *, max_blocks: int = MAX_BLOCKS) -> None:
        self._max = max_blocks
        self._blocks: dict[_Key, _Block] = {}
        # (session, medium) -> group -> tokens
        self._tokens: defaultdict[tuple[str, str], dict[int, int]] = defaultdict(dict)
        self.certain = True

    def __len__(self) -> int:
        """Different blocks."""
        return len(self._blocks)

    @property
    def copies(self) -> int:
        """Blocks of the pools that are taken."""
        return sum(block.copies for block in self._blocks.values())

    def feed(self, update: KvUpdate) -> None:
        match update:
            case Batch():
                for event in update.events:
                    self._apply(event)
            case Gap():
                self.certain = False
            case Restarted():
                self._clear()

    def tokens(self, session: str, medium: str = _DEFAULT_MEDIUM) -> int:
        """Tokens in blocks that this session computed and that still exist; "" : blocks of nobody known.

        Of a model with several groups of layers, those of the group that has most.
        """
        return max(self._tokens.get((session, medium), {}).values(), default=0)

    def by_medium(self) -> dict[str, int]:
        """Tokens that exist, each once; of the group that has most."""
        totals: defaultdict[str, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
        for (medium, group, _), block in self._blocks.items():
            totals[medium][group] += block.tokens
        return {medium: max(groups.values()) for medium, groups in totals.items()}

    def sessions(self) -> dict[str, dict[str, int]]:
        """Session to medium to tokens. What two sessions computed counts for both."""
        found: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for session, medium in self._tokens:
            found[session][medium] = self.tokens(session, medium)
        return dict(found)

    def _apply(self, event: KvEvent) -> None:
        match event:
            case Stored():
                for one in event.hashes:
                    if not self._store(event, (event.medium, event.group, one)):
                        self.certain = False  # more than any pool has: something does not report removals
                        return
            case Removed():
                for one in event.hashes:
                    self._remove((event.medium, event.group, one))
            case Cleared():
                self._clear()

    def _store(self, event: Stored, key: _Key) -> bool:
        block = self._blocks.get(key)
        if block is None:
            if len(self._blocks) >= self._max:
                return False
            block = self._blocks[key] = _Block(event.block_size, 0, set())
        block.copies += 1
        if event.session not in block.sessions:
            if len(block.sessions) >= _MAX_SHARERS:
                return True  # it exists, which others already say
            block.sessions.add(event.session)
            groups = self._tokens[event.session, event.medium]
            groups[event.group] = groups.get(event.group, 0) + block.tokens
        return True

    def _remove(self, key: _Key) -> None:
        block = self._blocks.get(key)
        if block is None:
            return
        block.copies -= 1
        if block.copies:
            return
        del self._blocks[key]
        medium, group, _ = key
        for session in block.sessions:
            groups = self._tokens[session, medium]
            groups[group] -= block.tokens
            if not groups[group]:
                del groups[group]
            if not groups:
                del self._tokens[session, medium]

    def _clear(self) -> None:
        self._blocks.clear()
        self._tokens.clear()
        self.certain = True
