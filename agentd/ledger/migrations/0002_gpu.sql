-- The inference tier: what a call used of GPUs, and the context switches of the sessions' KV caches.

ALTER TABLE calls ADD COLUMN gpu_memory_bytes INTEGER;     -- held at the last sample
ALTER TABLE calls ADD COLUMN gpu_seconds REAL;             -- share of the SMs x time
ALTER TABLE calls ADD COLUMN gpu_joules REAL;

CREATE TABLE switches (
    seq          INTEGER PRIMARY KEY,
    at           REAL NOT NULL,
    tenant_id    TEXT NOT NULL,
    session_id   TEXT NOT NULL,
    engine       TEXT NOT NULL,         -- its name in the configuration
    conversation TEXT NOT NULL,         -- as the agent calls it
    kind         TEXT NOT NULL,         -- preempted, offloaded, restored, dropped, recomputed
    why          TEXT NOT NULL,
    tokens       INTEGER NOT NULL,
    bytes        INTEGER NOT NULL,      -- 0: not known
    seconds      REAL NOT NULL          -- what the move took; of a recomputation, its part of the prefill
) STRICT;

-- A batch may be written twice: this keeps one of the two. It is the index by time, too.
CREATE UNIQUE INDEX switches_once ON switches (at, session_id, engine, conversation, kind);
CREATE INDEX switches_by_session ON switches (session_id, at);
