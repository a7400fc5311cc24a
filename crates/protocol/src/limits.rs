//! All limits of the protocol, checked against each other at compile time.

/// Longest subject, in bytes of UTF-8.
pub const MAX_SUBJECT_BYTES: usize = 512;

/// Longest folder name of a subject, in bytes. File systems allow 255; the rest is reserved for other parts of the path
/// element (none today).
pub const MAX_ESCAPED_SUBJECT_BYTES: usize = 200;

/// Longest route prefix, in bytes.
pub const MAX_PREFIX_BYTES: usize = 64;

/// Longest server name, in bytes.
pub const MAX_SERVER_NAME_BYTES: usize = 63;

/// Longest key of a message, in bytes of UTF-8. The empty key is valid.
pub const MAX_KEY_BYTES: usize = 1_024;

/// The maximum total size of the headers of one message, names and values, in bytes.
pub const MAX_HEADERS_BYTES: usize = 64 * 1_024;

/// Longest message id given by an application, in bytes.
pub const MAX_MSG_ID_BYTES: usize = 256;

/// Largest seq. Up to 2⁵³−1 every client language can hold a seq exactly, and it fits SQLite's signed integers.
pub const MAX_SEQ: u64 = (1 << 53) - 1;

/// Largest seq that a caller may give to a new message. The seqs above are reserved for assigned seqs: one request cannot
/// exhaust them, and a million messages per second would take a hundred years.
pub const MAX_CALLER_SEQ: u64 = MAX_SEQ / 2;

/// The maximum number of items in one request: sets, deleted seqs and keys together, or requested keys or seqs.
pub const MAX_ITEMS_PER_REQUEST: usize = 10_000;

/// Largest encoded request that names keys or seqs, in bytes: `get` and `delete`.
pub const MAX_QUERY_BYTES: usize = 256 * 1_024;

/// Largest encoded `configure`, in bytes.
pub const MAX_CONFIGURE_BYTES: usize = 64 * 1_024;

/// Largest encoded request of any other operation that carries no values, in bytes.
pub const MAX_SMALL_REQUEST_BYTES: usize = 8 * 1_024;

/// The maximum number of messages or keys on one page.
pub const MAX_PAGE_ITEMS: usize = 10_000;

/// The maximum number of busy subjects in a heartbeat.
pub const MAX_BUSY_SUBJECTS: usize = 32;

/// Longest name of a tenant, in bytes.
pub const MAX_TENANT_NAME_BYTES: usize = 128;

/// The maximum number of tokens of a subject that name its tenant.
pub const MAX_TENANT_TOKENS: usize = 16;

/// The maximum number of tenants with a record of their own, at a server and at the coordinator. Later tenants share one.
pub const MAX_TENANT_RECORDS: usize = 10_000;

/// The maximum number of tenants in a heartbeat.
pub const MAX_BUSY_TENANTS: usize = 32;

/// The maximum number of tenants on one page of limits or of tenants.
pub const MAX_TENANTS_PER_PAGE: usize = 256;

/// The maximum number of moves in one rebalancing plan.
pub const MAX_MOVES: u64 = 10_000;

/// A value above this size is stored as a blob, in its own object, in bytes.
pub const INLINE_LIMIT_BYTES: usize = 256 * 1_024;

/// A value above this size is omitted from events and fetched on demand, in bytes.
pub const EVENT_INLINE_LIMIT_BYTES: usize = 64 * 1_024;

/// Largest atomic batch, in bytes of its encoded sets.
pub const MAX_ATOMIC_BATCH_BYTES: usize = 16 * 1_024 * 1_024;

/// Dedup window: the number of results kept per session for repeated requests.
pub const SESSION_RESULTS: usize = 1_024;

/// Dedup window: how long an idle session is kept, in milliseconds of accept time.
pub const SESSION_IDLE_MS: u64 = 60 * 60 * 1_000;

/// The number of sessions that the tombstone of a destroyed subject keeps: the most recently used ones.
pub const TOMBSTONE_SESSIONS: usize = 256;

/// Default dedup window of an application's message id, in milliseconds of accept time.
pub const MSG_ID_WINDOW_MS: u64 = 2 * 60 * 1_000;

/// The number of past terms, with their bases, that a subject keeps.
pub const TERM_HISTORY: usize = 64;

/// Largest metadata of a subject (keys and values together), in bytes.
pub const MAX_METADATA_BYTES: usize = 16 * 1_024;

/// Space reserved in a reply or event for everything except messages: envelope, field names, headers of the transport. In
/// bytes.
pub const ENVELOPE_BYTES: usize = 4 * 1_024;

/// How far a chunk may end beyond the contiguously received bytes of an upload, in bytes: the server holds these chunks in
/// memory.
pub const UPLOAD_WINDOW_BYTES: u64 = 16 * 1_024 * 1_024;

/// After this time without a request from its client, an upload is abandoned, in milliseconds.
pub const UPLOAD_IDLE_TIMEOUT_MS: u64 = 30 * 1_000;

/// Deepest nesting that the codec accepts. The messages of this crate stay below ten.
pub const MAX_NESTING: usize = 32;

/// The default longest control line of a nats-server, which holds route and reply address. In bytes.
const NATS_CONTROL_LINE_BYTES: usize = 4_096;

/// The default largest payload of a nats-server, in bytes.
const NATS_MAX_PAYLOAD_BYTES: usize = 1_024 * 1_024;

// The longest route is `<prefix>.server.<name>.<op>.<subject>`; a reply address and the verb share its line.
const _: () = assert!(
    MAX_PREFIX_BYTES + MAX_SERVER_NAME_BYTES + MAX_SUBJECT_BYTES + 512 < NATS_CONTROL_LINE_BYTES,
    "the longest route must fit a nats-server's control line"
);
const _: () = assert!(MAX_ESCAPED_SUBJECT_BYTES >= 2 + 64, "a hashed folder name must fit the limit");
const _: () = assert!(
    EVENT_INLINE_LIMIT_BYTES + MAX_HEADERS_BYTES + MAX_KEY_BYTES + ENVELOPE_BYTES < NATS_MAX_PAYLOAD_BYTES,
    "an event with one largest inline change must fit a payload"
);
const _: () = assert!(
    INLINE_LIMIT_BYTES + MAX_HEADERS_BYTES + MAX_KEY_BYTES + ENVELOPE_BYTES < NATS_MAX_PAYLOAD_BYTES,
    "a page must hold the largest inline message"
);
const _: () =
    assert!(EVENT_INLINE_LIMIT_BYTES <= INLINE_LIMIT_BYTES, "a blob must never be inline in an event");
const _: () = assert!(
    MAX_BUSY_SUBJECTS * (MAX_SUBJECT_BYTES + 64)
        + MAX_BUSY_TENANTS * (MAX_TENANT_NAME_BYTES + 512)
        + ENVELOPE_BYTES
        < NATS_MAX_PAYLOAD_BYTES,
    "a heartbeat must fit a payload"
);
const _: () = assert!(
    MAX_TENANTS_PER_PAGE * (MAX_TENANT_NAME_BYTES + 1_024) + ENVELOPE_BYTES < NATS_MAX_PAYLOAD_BYTES,
    "a page of tenants must fit a payload"
);
const _: () = assert!(
    MAX_ITEMS_PER_REQUEST * 9 + ENVELOPE_BYTES < MAX_QUERY_BYTES,
    "a request must hold the maximum number of seqs"
);
const _: () =
    assert!(MAX_METADATA_BYTES + ENVELOPE_BYTES < MAX_CONFIGURE_BYTES, "metadata must fit a configure");
const _: () =
    assert!(MAX_KEY_BYTES + ENVELOPE_BYTES <= MAX_SMALL_REQUEST_BYTES, "a key must fit any request");
const _: () = assert!(MAX_SEQ < i64::MAX as u64, "a seq must fit SQLite's integers");
