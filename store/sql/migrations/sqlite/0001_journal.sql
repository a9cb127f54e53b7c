-- The journal's first schema. PostgreSQL gets a folder of its own with the same tables; only the
-- type names differ (INTEGER is BIGINT there, BLOB is BYTEA, flags are BOOLEAN).
-- Times are milliseconds since 1970, set by the database.

CREATE TABLE sessions (
    id           TEXT    NOT NULL PRIMARY KEY,
    environment  TEXT    NOT NULL,
    owner        TEXT,
    generation   INTEGER NOT NULL,
    phase        TEXT    NOT NULL,
    phase_reason TEXT,
    phase_at     INTEGER NOT NULL,
    -- JSON documents: nothing selects by what is inside them.
    identity     TEXT,
    sandbox      TEXT,
    -- Whether nothing is left of the sandbox; only then may the row be forgotten.
    sandbox_gone INTEGER NOT NULL,
    -- The next position in the session's log, which its calls share.
    next_seq     INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL
) STRICT;

CREATE INDEX sessions_by_activity ON sessions (updated_at);

CREATE TABLE work (
    id           TEXT    NOT NULL PRIMARY KEY,
    environment  TEXT    NOT NULL,
    session      TEXT    NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    node         TEXT    NOT NULL,
    token        BLOB,
    phase        TEXT    NOT NULL,
    last_beat    TEXT,
    last_beat_at INTEGER,
    ttl_ms       INTEGER,
    beat_open    INTEGER NOT NULL,
    ended_at     INTEGER,
    ended_why    TEXT,
    claimed_at   INTEGER NOT NULL
) STRICT;

CREATE INDEX work_by_session ON work (session);
CREATE INDEX work_open ON work (node) WHERE phase <> 'ended';

CREATE TABLE calls (
    id          TEXT    NOT NULL PRIMARY KEY,
    session     TEXT    NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    seq         INTEGER NOT NULL,
    tool_use    TEXT    NOT NULL,
    -- The call as it was received, as JSON.
    call        TEXT    NOT NULL,
    state       TEXT    NOT NULL,
    received_at INTEGER NOT NULL,
    started_at  INTEGER,
    epoch       INTEGER,
    finished_at INTEGER,
    body        BLOB,
    shortened   INTEGER NOT NULL,
    is_error    INTEGER,
    summary     TEXT,
    exit_code   INTEGER,
    settled_at  INTEGER,
    refused     INTEGER,
    UNIQUE (session, tool_use),
    UNIQUE (session, seq)
) STRICT;

CREATE INDEX calls_open ON calls (session) WHERE state <> 'settled';

CREATE TABLE log (
    session TEXT    NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    seq     INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    event   TEXT    NOT NULL,
    PRIMARY KEY (session, seq)
) STRICT;

CREATE INDEX log_by_time ON log (at);
