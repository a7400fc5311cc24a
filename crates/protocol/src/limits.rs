//! Every limit of the protocol, in one place and checked against each other when the crate is compiled.

/// Longest subject, in bytes of UTF-8.
pub const MAX_SUBJECT_BYTES: usize = 512;

/// Longest folder name of a subject, in bytes. File systems allow 255; what stands beside it in a path element
/// (nothing today) has the rest.
pub const MAX_ESCAPED_SUBJECT_BYTES: usize = 200;

/// Longest route prefix, in bytes.
pub const MAX_PREFIX_BYTES: usize = 64;

/// Longest server name, in bytes.
pub const MAX_SERVER_NAME_BYTES: usize = 63;

/// Longest key of a message, in bytes of UTF-8. The empty key is legal.
pub const MAX_KEY_BYTES: usize = 1_024;

/// Most bytes that the headers of one message may have together, names and values counted.
pub const MAX_HEADERS_BYTES: usize = 64 * 1_024;

/// Longest message id given by an application, in bytes.
pub const MAX_MSG_ID_BYTES: usize = 256;

/// Largest seq. Up to 2⁵³−1 every client language can hold a seq exactly, and it fits SQLite's signed integers.
pub const MAX_SEQ: u64 = (1 << 53) - 1;

/// Largest seq that a caller may give to a new message. What is above is for the seqs that are handed out: nobody can use
/// them all up with one request, and a million messages a second would take a hundred years.
pub const MAX_GIVEN_SEQ: u64 = MAX_SEQ / 2;

/// Most sets, or most deleted seqs and keys together, or most keys or seqs asked for, in one request.
pub const MAX_ITEMS_PER_REQUEST: usize = 10_000;

/// Most messages or keys on one page.
pub const MAX_PAGE_ITEMS: usize = 10_000;

/// Most subjects that a heartbeat names as busy.
pub const MAX_BUSY_SUBJECTS: usize = 32;

/// Most moves that one rebalancing may plan.
pub const MAX_MOVES: u64 = 10_000;

/// A value above this size is stored as an object of its own, in bytes.
pub const INLINE_LIMIT_BYTES: usize = 256 * 1_024;

/// A value above this size is announced by size in an event and fetched on demand, in bytes.
pub const EVENT_INLINE_LIMIT_BYTES: usize = 64 * 1_024;

/// Largest atomic batch, in bytes of its encoded sets.
pub const MAX_ATOMIC_BATCH_BYTES: usize = 16 * 1_024 * 1_024;

/// How many results of a session are remembered for repeats.
pub const SESSION_RESULTS: usize = 1_024;

/// How long an idle session is remembered, in milliseconds of accept time.
pub const SESSION_IDLE_MS: u64 = 60 * 60 * 1_000;

/// How many sessions a destroyed subject remembers: those it has heard of last.
pub const REMEMBERED_SESSIONS: usize = 256;

/// Default window within which an application's message id is remembered, in milliseconds of accept time.
pub const MSG_ID_WINDOW_MS: u64 = 2 * 60 * 1_000;

/// How many past terms and their bases a subject remembers.
pub const REMEMBERED_TERMS: usize = 64;

/// Longest metadata of a subject (keys and values together), in bytes.
pub const MAX_METADATA_BYTES: usize = 16 * 1_024;

/// Room kept free in a reply or event for everything that is not a message: envelope, field names, headers of the
/// transport. In bytes.
pub const ENVELOPE_BYTES: usize = 4 * 1_024;

/// How far ahead of what a server has of an upload a chunk may end, in bytes: more would have to be held in memory.
pub const UPLOAD_WINDOW_BYTES: u64 = 16 * 1_024 * 1_024;

/// After this time without a word from its client an upload is abandoned, in milliseconds.
pub const UPLOAD_SILENCE_MS: u64 = 30 * 1_000;

/// Deepest nesting that the codec reads. Our own messages stay below ten.
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
const _: () =
    assert!(MAX_ESCAPED_SUBJECT_BYTES >= 2 + 64, "a hashed folder name must fit the limit it exists for");
const _: () = assert!(
    EVENT_INLINE_LIMIT_BYTES + MAX_HEADERS_BYTES + MAX_KEY_BYTES + ENVELOPE_BYTES < NATS_MAX_PAYLOAD_BYTES,
    "an event with one largest inline change must fit a payload"
);
const _: () = assert!(
    INLINE_LIMIT_BYTES + MAX_HEADERS_BYTES + MAX_KEY_BYTES + ENVELOPE_BYTES < NATS_MAX_PAYLOAD_BYTES,
    "a page must hold the largest inline message"
);
const _: () = assert!(
    EVENT_INLINE_LIMIT_BYTES <= INLINE_LIMIT_BYTES,
    "a value that has an object of its own is never inline in an event"
);
const _: () = assert!(
    MAX_BUSY_SUBJECTS * (MAX_SUBJECT_BYTES + 64) + ENVELOPE_BYTES < NATS_MAX_PAYLOAD_BYTES,
    "a heartbeat must fit a payload"
);
const _: () = assert!(MAX_SEQ < i64::MAX as u64, "a seq must fit SQLite's integers");
