//! The tables of a subject's file. Frozen: a change needs a new `SCHEMA_VERSION` and an upgrade from the
//! previous version.

/// Identifies files of this application in SQLite's header: `drms`.
pub(super) const APPLICATION_ID: i32 = 0x6472_6d73;

/// The version of the tables below. A file of a newer version is rejected.
pub(super) const SCHEMA_VERSION: i32 = 5;

/// Maximum number of removal records: the oldest are deleted first. A request for changes since before the
/// oldest record requires a full read.
pub(super) const MAX_REMOVAL_RECORDS: u64 = 10_000;

/// How many removal records are deleted at once, so that not every delete prunes.
pub(super) const REMOVAL_RECORD_SLACK: u64 = 1_000;

/// All tables. Unsigned 64-bit numbers are stored as the signed number with the same bits.
pub(super) const CREATE: &str = "
CREATE TABLE messages(
    seq INTEGER PRIMARY KEY,
    key TEXT,
    term INTEGER NOT NULL,
    rev INTEGER NOT NULL,
    timestamp INTEGER NOT NULL, -- microseconds since 1970
    expires_at INTEGER,         -- microseconds since 1970
    size INTEGER NOT NULL,      -- of the value, in bytes
    blob TEXT,                  -- the object that holds the value, where it is not here
    blob_crc64 TEXT,            -- the checksum of that object
    headers BLOB,               -- MessagePack list of pairs; NULL: none
    value BLOB,                 -- NULL: the null value, or elsewhere; so far behind that the rest is read without it
    accepted_at INTEGER         -- the accept time of its rev; read from the index
) STRICT;
CREATE UNIQUE INDEX messages_by_key ON messages(key) WHERE key IS NOT NULL;
CREATE INDEX messages_by_rev ON messages(rev, accepted_at);
CREATE INDEX messages_by_expiry ON messages(expires_at) WHERE expires_at IS NOT NULL;
CREATE UNIQUE INDEX messages_by_blob ON messages(blob) WHERE blob IS NOT NULL;

CREATE TABLE dead_blobs(
    name TEXT PRIMARY KEY, -- an object that no message refers to any more
    rev INTEGER NOT NULL   -- since when
) STRICT, WITHOUT ROWID;
CREATE INDEX dead_blobs_by_rev ON dead_blobs(rev);

CREATE TABLE tombstones(
    rev INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    key TEXT,
    count INTEGER, -- NULL: this message went; else: all up to and including seq, so many
    PRIMARY KEY(rev, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions(
    session TEXT PRIMARY KEY,
    accept_time INTEGER NOT NULL, -- of its last request, to within a minute
    floor INTEGER,                -- results up to this counter are forgotten; NULL: none is
    kept INTEGER NOT NULL         -- how many results there are
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_by_accept_time ON sessions(accept_time);

CREATE TABLE results(
    session TEXT NOT NULL,
    counter INTEGER NOT NULL,
    rev INTEGER NOT NULL,         -- the subject's after the request
    outcome BLOB NOT NULL,        -- MessagePack: how it was answered
    PRIMARY KEY(session, counter)
) STRICT, WITHOUT ROWID;

CREATE TABLE msg_ids(
    msg_id TEXT PRIMARY KEY,
    accept_time INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    term INTEGER NOT NULL,
    rev INTEGER NOT NULL,
    timestamp INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX msg_ids_by_accept_time ON msg_ids(accept_time);

CREATE TABLE terms(
    term INTEGER PRIMARY KEY,
    term_base INTEGER NOT NULL -- the last rev that the term inherited
) STRICT;

CREATE TABLE meta(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    subject TEXT NOT NULL,
    term INTEGER NOT NULL,
    log TEXT NOT NULL,           -- the process that served this term
    applied_rev INTEGER NOT NULL,
    next_seq INTEGER NOT NULL,
    last_seq INTEGER,            -- the highest seq ever written, and the term under which it was
    last_term INTEGER,
    accept_time INTEGER NOT NULL,
    count INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    tombstone_floor INTEGER NOT NULL, -- the highest rev whose tombstones are forgotten
    config BLOB NOT NULL,        -- MessagePack
    config_rev INTEGER NOT NULL, -- the rev that wrote it
    manifest INTEGER NOT NULL,   -- the newest manifest known to be this process's own
    bucket_rev INTEGER NOT NULL, -- the last rev known to be in the bucket
    expiring INTEGER NOT NULL DEFAULT 0,          -- messages with expires_at
    large_values INTEGER NOT NULL DEFAULT 0,      -- messages with blob, and the bytes of those values
    large_value_bytes INTEGER NOT NULL DEFAULT 0,
    sessions INTEGER NOT NULL DEFAULT 0,          -- rows of sessions
    row_floor INTEGER NOT NULL DEFAULT 0,         -- messages up to this seq are removed; their rows may still exist. 0: no such row
    row_floor_rev INTEGER NOT NULL DEFAULT 0,     -- the rev that set it
    cleared_rev INTEGER NOT NULL DEFAULT 0        -- the rev that last removed all messages while the floor was set; 0: none
) STRICT;
CREATE TRIGGER session_comes AFTER INSERT ON sessions BEGIN UPDATE meta SET sessions = sessions + 1; END;
CREATE TRIGGER session_goes AFTER DELETE ON sessions BEGIN UPDATE meta SET sessions = sessions - 1; END;
";

/// The upgrade from version 1, in a transaction. The accept times of its messages are unknown. The subject's
/// accept time is an upper bound, so no message expires too early.
pub(super) const FROM_1: &str = "
ALTER TABLE messages ADD COLUMN accepted_at INTEGER;
UPDATE messages SET accepted_at = (SELECT accept_time FROM meta);
DROP INDEX messages_by_rev;
CREATE INDEX messages_by_rev ON messages(rev, accepted_at);
CREATE INDEX messages_by_expiry ON messages(expires_at) WHERE expires_at IS NOT NULL;
";

/// The upgrade from version 2, in a transaction: it computes the new counters once.
pub(super) const FROM_2: &str = "
ALTER TABLE meta ADD COLUMN expiring INTEGER NOT NULL DEFAULT 0;
ALTER TABLE meta ADD COLUMN large_values INTEGER NOT NULL DEFAULT 0;
ALTER TABLE meta ADD COLUMN large_value_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE meta ADD COLUMN sessions INTEGER NOT NULL DEFAULT 0;
UPDATE meta SET
    expiring = (SELECT COUNT(*) FROM messages WHERE expires_at IS NOT NULL),
    large_values = (SELECT COUNT(*) FROM messages WHERE blob IS NOT NULL),
    large_value_bytes = (SELECT coalesce(SUM(size), 0) FROM messages WHERE blob IS NOT NULL),
    sessions = (SELECT COUNT(*) FROM sessions);
CREATE TRIGGER session_comes AFTER INSERT ON sessions BEGIN UPDATE meta SET sessions = sessions + 1; END;
CREATE TRIGGER session_goes AFTER DELETE ON sessions BEGIN UPDATE meta SET sessions = sessions - 1; END;
";

/// The upgrade from version 3 or 4, in a transaction. A file of version 3 or less has a `UNIQUE` key column and no
/// other index of keys. Lookups give the same result, but each message costs an index entry, even without a key: to
/// change this, the whole table would have to be copied.
pub(super) const FROM_4: &str = "
ALTER TABLE meta ADD COLUMN row_floor INTEGER NOT NULL DEFAULT 0;
ALTER TABLE meta ADD COLUMN row_floor_rev INTEGER NOT NULL DEFAULT 0;
ALTER TABLE meta ADD COLUMN cleared_rev INTEGER NOT NULL DEFAULT 0;
";
