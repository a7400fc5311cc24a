//! The client library for applications: streams and key-value stores over core NATS, persisted in a bucket.
//!
//! ```no_run
//! use dormouse_client::{Client, Update};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("nats://localhost:4222").await?;
//! let settings = client.kv("app.settings")?;
//! let mut changes = settings.watch("colour").await?;
//!
//! let first = settings.put("colour", "green").await?;
//! assert_eq!(settings.get("colour").await?.as_deref(), Some(&b"green"[..]));
//! settings.update("colour", "blue", first.id()).await?;
//!
//! while let Some(change) = changes.next().await {
//!     if let Update::Set { message, .. } = change? {
//!         println!("{}: {:?}", message.seq, message.value);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Client::connect`] returns a [`Client`]; [`Client::kv`] and [`Client::stream`] return cheap handles on a
//! subject. Methods that do the same as in JetStream's key-value store or stream have the same names as in
//! async-nats; `docs/from-jetstream.md` lists the differences. The client finds the server that serves a
//! subject, caches it, follows the subject when it moves, and retries within the call's deadline. A change is
//! executed once, however often it is sent, so the client also resends a change whose reply was lost. After
//! the deadline, [`Error`] tells whether the call could have been executed.
//!
//! Concurrent gets share requests. A set is queued when it is called, in order, and sets that are queued
//! together are sent together: [`Kv::put`] and [`Stream::publish`] return an [`AckFuture`], which can be
//! awaited at once or later. [`Kv::batch`] and [`Stream::batch`] write atomically.
//!
//! A [`Feed`] delivers the messages of a subject and every later change, in order and without gaps.
//!
//! | module | content |
//! |---|---|
//! | `client`, `builder` | [`Client`]: connection, session, location cache |
//! | `call` | the retry loop of a call |
//! | `retry` | whether and how a call is retried after a failed attempt: a pure machine |
//! | `location` | which server serves which subject: a bounded cache, one shared look-up per subject |
//! | `subject`, `sizes`, `common_calls`, `kv`, `stream`, `batch`, `changes`, `purge` | the calls |
//! | `operator` | operators' calls to the coordinator |
//! | `sets` | sets in flight: queued in call order, sent together if queued together |
//! | `gets` | gets in flight: sent at once, or together if enough requests are in flight |
//! | `source`, `upload`, `download` | values of any size, in chunks |
//! | `entry`, `error`, `error_kind`, `json` | results of calls |
//! | `pages`, `reads` | long results, one or two pages ahead of the reader |
//! | `feed` | feeds: a pure machine that orders events, queries missed changes and emits updates; a thin task around it |

mod batch;
mod builder;
mod call;
mod changes;
mod client;
mod common_calls;
mod download;
mod entry;
mod error;
mod error_kind;
mod exchange;
mod feed;
mod gets;
#[cfg(feature = "json")]
pub mod json;
mod kv;
mod location;
mod new_message;
mod operator;
mod pages;
mod purge;
mod range;
mod reads;
mod request_ids;
mod retry;
mod sets;
mod sizes;
mod source;
mod stream;
mod subject;
mod upload;

pub use batch::{Committed, KvBatch, StreamBatch};
pub use builder::{
    ClientBuilder, ConnectError, DEFAULT_DEADLINE, DEFAULT_LOCATION_CAPACITY, DEFAULT_QUEUE_BYTES,
};
pub use changes::Changes;
pub use client::Client;
pub use download::{MAX_VALUE_IN_MEMORY_BYTES, ValueReader};
pub use entry::Entry;
pub use error::{Error, IndeterminateCause, MalformedCause};
pub use error_kind::ErrorKind;
pub use feed::{Feed, FeedFrom, FeedKeys, Update};
#[cfg(feature = "json")]
pub use json::{JsonError, JsonValue};
pub use kv::Kv;
pub use new_message::NewMessage;
pub use pages::Pages;
pub use purge::Purge;
pub use range::SeqRange;
pub use sets::AckFuture;
pub use source::ValueSource;
pub use stream::Stream;

pub use dormouse_bus::nats::NatsOptions;
#[doc(inline)]
pub use dormouse_protocol::admin::{
    Assigned, DrainReply, MoveReply, MovesReply, RebalanceReply, TenantEntry,
};
#[doc(inline)]
pub use dormouse_protocol::data::{InfoReply as Info, SetResult as Ack};
#[doc(inline)]
pub use dormouse_protocol::limits::MAX_ITEMS_PER_REQUEST;
#[doc(inline)]
pub use dormouse_protocol::message::{
    Change, ConfigureChange, DeleteAllChange, DeleteChange, Discard, Removed, SetChange, SubjectConfig,
};
#[doc(inline)]
pub use dormouse_protocol::tenant::{TenantLimits, TenantName, TenantUse};
#[doc(inline)]
pub use dormouse_protocol::{
    ErrorCode, ErrorReply, Executed, Headers, Level, Message, MessageId, Position, Prefix, RetryAdvice, Rev,
    Seq, ServerName, Subject, Term, Timestamp,
};

// The program in the README must compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

// The programs in the JetStream guide must compile.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/from-jetstream.md")]
struct FromJetStream;
