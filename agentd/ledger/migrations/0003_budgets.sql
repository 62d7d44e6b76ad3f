-- Budgets: what operators set, what was used, and how much of each open call is in that already.
--
-- A scope is the id of a tenant or a session. Balances of tenants stay for good, those of sessions as long as the session.
-- A balance and the marks of the calls that are in it are written in one transaction, and a mark goes in the transaction
-- that ends its call: so nothing is charged twice, whenever the daemon dies.

CREATE TABLE budgets (              -- those of the configuration are read from it
    scope    TEXT NOT NULL,
    resource TEXT NOT NULL,
    amount   REAL NOT NULL,
    hard     INTEGER NOT NULL,      -- 0: soft, 1: hard, 2: hard, and ends calls
    period   REAL,                  -- seconds; NULL: never full again
    PRIMARY KEY (scope, resource)
) STRICT, WITHOUT ROWID;

CREATE TABLE balances (
    scope    TEXT NOT NULL,
    resource TEXT NOT NULL,
    start    REAL NOT NULL,         -- of the period, unix seconds
    used     REAL NOT NULL,         -- in that period
    PRIMARY KEY (scope, resource)
) STRICT, WITHOUT ROWID;

CREATE TABLE charged (              -- controller.model.CallMark, of calls that have not ended
    call_id       TEXT PRIMARY KEY,
    cpu_usec      INTEGER NOT NULL,
    network_bytes INTEGER NOT NULL,
    gpu_seconds   REAL NOT NULL,
    joules        REAL NOT NULL,
    at            REAL NOT NULL,
    memory        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE turns (                -- controller.model.Turns: sums
    session_id          TEXT PRIMARY KEY,
    turns               INTEGER NOT NULL,
    prompt_tokens       INTEGER NOT NULL,
    cached_tokens       INTEGER NOT NULL,
    generated_tokens    INTEGER NOT NULL,
    model_seconds       REAL NOT NULL,
    prefill_equivalents REAL NOT NULL,
    gpu_seconds         REAL NOT NULL,
    joules              REAL NOT NULL
) STRICT, WITHOUT ROWID;
