//! The wire protocol of Dormouse: subjects, routes, messages, errors, limits and the codec.
//!
//! This crate is pure. It performs no I/O, reads no clock, uses no random numbers and has no async code: it defines and
//! validates the messages of a fleet. `PROTOCOL.md` at the top of the repository specifies the same in prose, and the files
//! under `vectors/` hold the exact bytes.
//!
//! | module | holds |
//! |---|---|
//! | [`subject`] | [`Subject`], the name of a stream or key-value store, and its escaping for bucket keys |
//! | [`ids`] | a newtype for every number and name: [`Seq`], [`Rev`], [`Term`], [`LogId`], … |
//! | [`newtype`] | the macros behind these newtypes, for other crates too |
//! | [`route`] | the NATS addresses of the messages, built and parsed in one place |
//! | [`message`] | stored messages, changes and events |
//! | [`deadline`] | the time left of a request: a header of the transport |
//! | [`data`] | requests and replies of the data operations |
//! | [`fleet`] | messages between clients, servers and the coordinator, and the operator's server list |
//! | [`admin`] | operators' requests about the assignment of subjects, and messages between coordinators |
//! | [`health`] | health documents (JSON) |
//! | [`error`] | [`ErrorReply`]: a code with retry advice and execution state |
//! | [`overload`] | [`OverloadCause`]: why a request is rejected as `overloaded`, and the retry delay |
//! | [`limits`] | every limit, checked against the others at compile time |
//! | [`codec`] | MessagePack encoding and decoding; input that is not exactly one value is rejected |
//! | [`version`] | the version of the wire protocol |
//! | [`tenant`] | [`TenantName`] and [`TenantRule`]: whose share a request uses; limits and use of a tenant |
//! | [`transfer`] | requests and replies for the upload and download of large values |

pub mod admin;
pub mod codec;
pub mod data;
pub mod deadline;
pub mod error;
pub mod fleet;
pub mod health;
pub mod ids;
pub mod limits;
pub mod message;
pub mod newtype;
pub mod overload;
pub mod route;
pub mod subject;
pub mod tenant;
pub mod transfer;
pub mod version;

pub use codec::{decode, decode_request, encode};
pub use error::{ErrorCode, ErrorReply, Executed, RetryAdvice};
pub use ids::{
    Incarnation, Level, LogId, MessageId, Position, RequestId, Rev, Seq, ServerName, SessionId, Slot, Term,
    Timestamp, UploadId, ValueDigest,
};
pub use message::{Change, Event, Headers, Message};
pub use overload::OverloadCause;
pub use route::{Op, Prefix, Route, RoutePattern};
pub use subject::Subject;
pub use tenant::{TenantName, TenantRule};
pub use version::ProtocolVersion;
