-- The journal's first schema: the tables of migrations/sqlite, in PostgreSQL's types, and `batches`.
-- Times are milliseconds since 1970, set by the database. What lists are ordered by is ordered by
-- its bytes, whatever the database's collation.

CREATE TABLE sessions (
    id           TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    environment  TEXT    NOT NULL,
    owner        TEXT,
    generation   BIGINT  NOT NULL,
    phase        TEXT    NOT NULL,
    phase_reason TEXT,
    phase_at     BIGINT  NOT NULL,
    -- JSON documents: nothing selects by what is inside them.
    identity     TEXT,
    sandbox      TEXT,
    -- Whether nothing is left of the sandbox; only then may the row be forgotten.
    sandbox_gone BOOLEAN NOT NULL,
    -- The next position in the session's log, which its calls share.
    next_seq     BIGINT  NOT NULL,
    created_at   BIGINT  NOT NULL,
    updated_at   BIGINT  NOT NULL
);

CREATE INDEX sessions_by_activity ON sessions (updated_at);

CREATE TABLE work (
    id           TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    environment  TEXT    NOT NULL,
    session      TEXT COLLATE "C" NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    node         TEXT    NOT NULL,
    token        BYTEA,
    phase        TEXT    NOT NULL,
    last_beat    TEXT,
    last_beat_at BIGINT,
    ttl_ms       BIGINT,
    beat_open    BOOLEAN NOT NULL,
    ended_at     BIGINT,
    ended_why    TEXT,
    claimed_at   BIGINT  NOT NULL
);

CREATE INDEX work_by_session ON work (session);
CREATE INDEX work_open ON work (node) WHERE phase <> 'ended';

CREATE TABLE calls (
    id          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    session     TEXT COLLATE "C" NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    seq         BIGINT  NOT NULL,
    tool_use    TEXT    NOT NULL,
    -- The call as it was received, as JSON.
    call        TEXT    NOT NULL,
    state       TEXT    NOT NULL,
    received_at BIGINT  NOT NULL,
    started_at  BIGINT,
    epoch       BIGINT,
    finished_at BIGINT,
    body        BYTEA,
    shortened   BOOLEAN NOT NULL,
    is_error    BOOLEAN,
    summary     TEXT,
    exit_code   BIGINT,
    settled_at  BIGINT,
    refused     BIGINT,
    UNIQUE (session, tool_use),
    UNIQUE (session, seq)
);

CREATE INDEX calls_open ON calls (session) WHERE state <> 'settled';

CREATE TABLE log (
    session TEXT COLLATE "C" NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    seq     BIGINT  NOT NULL,
    at      BIGINT  NOT NULL,
    event   TEXT    NOT NULL,
    PRIMARY KEY (session, seq)
);

CREATE INDEX log_by_time ON log (at);

-- The batches of the last minutes by their keys, so that one whose answer was lost is not applied
-- twice when it is repeated.
CREATE TABLE batches (
    id BYTEA  NOT NULL PRIMARY KEY,
    at BIGINT NOT NULL
);
