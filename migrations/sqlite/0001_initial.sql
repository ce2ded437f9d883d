-- Times are microseconds since 1970, UTC: datetime(at / 1000000, 'unixepoch').

-- One search of one tenant. A row outlives its place in the configuration, so that a search that
-- comes back does not log its alerts again.
CREATE TABLE search (
    id         INTEGER PRIMARY KEY,
    account    TEXT    NOT NULL,
    tenant_id  TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    first_seen INTEGER NOT NULL,
    primed     INTEGER NOT NULL DEFAULT 0 CHECK (primed IN (0, 1)),
    UNIQUE (account, tenant_id, name)
) STRICT;

-- The alerts that are open.
CREATE TABLE alert (
    id         INTEGER PRIMARY KEY,
    search_id  INTEGER NOT NULL REFERENCES search (id) ON DELETE CASCADE,
    alert_id   TEXT    NOT NULL,
    ordinal    INTEGER NOT NULL,
    digest     INTEGER NOT NULL,
    created_at INTEGER,
    state      TEXT    NOT NULL COLLATE NOCASE,
    body       BLOB    NOT NULL,
    UNIQUE (search_id, alert_id)
) STRICT;

-- The page of open alerts reads nothing but this index until it knows which rows it shows.
CREATE INDEX alert_by_age ON alert (created_at DESC, state, search_id);

-- The ordinals that alerts had reached when they left.
CREATE TABLE departed (
    search_id INTEGER NOT NULL REFERENCES search (id) ON DELETE CASCADE,
    alert_id  TEXT    NOT NULL,
    ordinal   INTEGER NOT NULL,
    left_at   INTEGER NOT NULL,
    PRIMARY KEY (search_id, alert_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX departed_by_age ON departed (left_at);

-- Events that wait for a sink, neighbours together. Positions have no gaps and are never given twice.
CREATE TABLE journal (
    -- The position of the row's last event.
    last   INTEGER PRIMARY KEY AUTOINCREMENT,
    at     INTEGER NOT NULL,
    -- Of each event its id, 16 bytes, and the length of its body, 4 bytes, the highest first.
    heads  BLOB    NOT NULL,
    bodies BLOB    NOT NULL
) STRICT;

-- How far each sink has come.
CREATE TABLE sink (
    name     TEXT    NOT NULL PRIMARY KEY,
    position INTEGER NOT NULL,
    mark     BLOB
) STRICT, WITHOUT ROWID;
