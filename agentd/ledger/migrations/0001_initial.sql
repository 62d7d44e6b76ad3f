-- The first shape of the ledger.
--
-- Times are unix seconds (REAL), sizes bytes, CPU and stalls microseconds. NULL in a usage column means that nothing on
-- that host could say. There are no foreign keys: after a crash records may come again, late, or without the one they
-- refer to, and a record with an unknown parent is worth more than a refusal.

CREATE TABLE tenants (
    id       TEXT PRIMARY KEY,
    name     TEXT NOT NULL,
    priority INTEGER NOT NULL,
    limits   TEXT NOT NULL              -- JSON: controller.model.Limits
) STRICT, WITHOUT ROWID;

CREATE INDEX tenants_by_name ON tenants (name);

CREATE TABLE sessions (
    id        TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    name      TEXT NOT NULL,
    uid       INTEGER NOT NULL,
    opened_at REAL NOT NULL,
    closed_at REAL,
    labels    TEXT NOT NULL             -- JSON: object of texts
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_by_time ON sessions (opened_at);
CREATE INDEX sessions_by_tenant ON sessions (tenant_id, opened_at);

CREATE TABLE calls (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,   -- what samples refer to: shorter than the id, never used again
    id         TEXT NOT NULL UNIQUE,
    tenant_id  TEXT NOT NULL,
    session_id TEXT NOT NULL,
    parent_id  TEXT,
    command    TEXT NOT NULL,
    tool       TEXT NOT NULL,           -- of the intent, repeated to filter and to group by
    call_class TEXT NOT NULL,           -- likewise
    intent     TEXT NOT NULL,           -- JSON: controller.model.Intent
    grant      TEXT NOT NULL,           -- JSON: controller.model.Grant
    priority   INTEGER NOT NULL,        -- of the grant
    enforced   INTEGER NOT NULL,        -- of the grant: 0 or 1
    state      TEXT NOT NULL,
    begun_at   REAL NOT NULL,
    held_since REAL,
    held_seconds REAL NOT NULL,
    brakes     INTEGER NOT NULL,
    cgroup     TEXT NOT NULL,

    -- the outcome: NULL while the call is open
    ended_at   REAL,
    reason     TEXT,
    wait_status INTEGER,
    wall_seconds REAL,
    leftovers  INTEGER,
    summary    TEXT,
    suggestions TEXT,                   -- JSON: array of texts

    -- controller.model.Usage: at the begin while the call is open, final once it has ended
    cpu_usec            INTEGER NOT NULL,
    cpu_user_usec       INTEGER NOT NULL,
    cpu_system_usec     INTEGER NOT NULL,
    memory_now          INTEGER,
    memory_peak         INTEGER,
    pids_now            INTEGER,
    faults              INTEGER,
    major_faults        INTEGER,
    read_bytes          INTEGER,
    written_bytes       INTEGER,
    disk_read_bytes     INTEGER,
    disk_written_bytes  INTEGER,
    net_rx_bytes        INTEGER,
    net_tx_bytes        INTEGER,
    forks               INTEGER,
    execs               INTEGER,
    run_wait_usec       INTEGER,
    switches            INTEGER,
    memory_stall_usec   INTEGER,
    cpu_stall_usec      INTEGER,
    io_stall_usec       INTEGER,
    oom_kills           INTEGER
) STRICT;

CREATE INDEX calls_by_time ON calls (begun_at);
CREATE INDEX calls_by_tenant ON calls (tenant_id, begun_at);
CREATE INDEX calls_by_session ON calls (session_id, begun_at);
CREATE INDEX calls_open ON calls (begun_at) WHERE ended_at IS NULL;
CREATE INDEX calls_by_end ON calls (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE decisions (
    seq        INTEGER PRIMARY KEY,
    at         REAL NOT NULL,
    action     TEXT NOT NULL,
    policy     TEXT NOT NULL,
    reason     TEXT NOT NULL,
    tenant_id  TEXT NOT NULL,
    session_id TEXT,
    call_id    TEXT,
    evidence   TEXT NOT NULL            -- JSON: name of a number to its value
) STRICT;

-- A decision reaches the ledger when it is taken and again inside its call's outcome: this keeps one of the two. It is the
-- index by time, too.
CREATE UNIQUE INDEX decisions_once ON decisions
    (at, action, policy, tenant_id, coalesce(session_id, ''), coalesce(call_id, ''), reason);
CREATE INDEX decisions_by_call ON decisions (call_id, at) WHERE call_id IS NOT NULL;
CREATE INDEX decisions_by_session ON decisions (session_id, at) WHERE session_id IS NOT NULL;
CREATE INDEX decisions_by_tenant ON decisions (tenant_id, at);

-- What plots need of a call over time. Clustered by slots of 10 s, then by call: what is written in one second lands on a few
-- neighbouring pages however many calls are alive (clustered by call it would be a page for each), what is forgotten is one
-- stretch at the front, and the samples of one call are one step per slot apart. A sample may outlive its call by a little.
CREATE TABLE samples (
    slot                INTEGER NOT NULL,   -- at / 10, rounded down
    call                INTEGER NOT NULL,   -- calls.seq
    at                  REAL NOT NULL,
    state               INTEGER NOT NULL,   -- 0 queued, 1 ended, 2 running, 3 frozen, 4 braked: the larger, the more worth seeing
    cpu_usec            INTEGER NOT NULL,
    memory_now          INTEGER,
    pids_now            INTEGER,
    faults              INTEGER,
    major_faults        INTEGER,
    read_bytes          INTEGER,
    written_bytes       INTEGER,
    disk_read_bytes     INTEGER,
    disk_written_bytes  INTEGER,
    net_rx_bytes        INTEGER,
    net_tx_bytes        INTEGER,
    run_wait_usec       INTEGER,
    memory_stall_usec   INTEGER,
    cpu_stall_usec      INTEGER,
    io_stall_usec       INTEGER,
    PRIMARY KEY (slot, call, at)
) STRICT, WITHOUT ROWID;
