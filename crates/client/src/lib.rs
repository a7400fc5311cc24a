//! The client that applications use: streams and key-value stores over core NATS, kept in a bucket.
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
//! [`Client::connect`] makes a [`Client`]; [`Client::kv`] and [`Client::stream`] make cheap handles on a subject, whose
//! methods are named as in JetStream's key-value store and stream where they do the same. The client finds the server
//! that serves a subject, remembers it, follows the subject when it moves, and tries again within the call's deadline.
//! A change is carried out once however often it is sent, so one whose answer was lost is sent again, too. [`Error`] tells
//! what may have happened when the deadline is over.
//!
//! Concurrent gets share requests. Sets are queued when they are called, in order, and what queues together is sent together: [`Kv::put`] and
//! [`Stream::publish`] return an [`AckFuture`], to be awaited at once or later. [`Kv::batch`] and [`Stream::batch`] write
//! all or nothing. Who comes from JetStream finds the names of async-nats, and in `docs/from-jetstream.md` what is different.
//!
//! A [`Feed`] tells what is in a subject and what becomes of it, in order and without gaps.
//!
//! | module | holds |
//! |---|---|
//! | `client`, `builder` | [`Client`]: connection, session, cache of locations |
//! | `call` | the loop in which a call is tried |
//! | `retry` | whether and how a call goes on after a try has failed: a pure machine |
//! | `location` | which server serves which subject: a bounded cache, one look-up for all who miss |
//! | `subject`, `kv`, `stream`, `batch`, `changes`, `purge` | the calls |
//! | `operator` | what operators ask of the coordinator |
//! | `sets` | sets on their way: queued in the order of the calls, sent together where they queued together |
//! | `gets` | gets on their way: sent at once, or together where enough of them are in flight already |
//! | `source`, `upload`, `download` | values of any size, piece by piece |
//! | `entry`, `error`, `error_kind`, `json` | what calls return |
//! | `pages` | long results, a page or two ahead of the reader |
//! | `feed` | feeds: a pure machine that listens, asks for what it missed and tells; a thin task around it |

mod batch;
mod builder;
mod call;
mod changes;
mod client;
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
#[doc(hidden)]
pub mod mutations;
mod new_message;
mod operator;
mod pages;
mod purge;
mod range;
mod retry;
mod sets;
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
pub use dormouse_protocol::admin::{Assigned, DrainReply, MoveReply, MovesReply, RebalanceReply};
#[doc(inline)]
pub use dormouse_protocol::data::{InfoReply as Info, SetResult as Ack};
#[doc(inline)]
pub use dormouse_protocol::limits::MAX_ITEMS_PER_REQUEST;
#[doc(inline)]
pub use dormouse_protocol::message::{
    Change, ConfigureChange, DeleteAllChange, DeleteChange, Discard, Removed, SetChange, SubjectConfig,
};
#[doc(inline)]
pub use dormouse_protocol::{
    ErrorCode, ErrorReply, Happened, Headers, Level, Message, MessageId, Position, Prefix, Retry, Rev, Seq,
    ServerName, Subject, Term, Timestamp,
};

// The program that the README shows must compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

// So must what is shown to those who come from JetStream.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/from-jetstream.md")]
struct FromJetStream;
