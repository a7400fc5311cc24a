//! The words of Dormouse on the wire: subjects, routes, messages, errors, limits and the codec.
//!
//! This crate is pure. It performs no I/O, reads no clock, draws no random number and knows no async: it says
//! what the parties of a fleet may say to each other and checks what they said. `PROTOCOL.md` at the top of the
//! repository specifies the same in prose, and the files under `vectors/` hold the exact bytes.
//!
//! | module | holds |
//! |---|---|
//! | [`subject`] | [`Subject`], the unit of data, and its escaping for bucket keys |
//! | [`ids`] | a newtype for every number and name: [`Seq`], [`Rev`], [`Term`], [`LogId`], … |
//! | [`route`] | the NATS addresses our messages travel on, built and parsed in one place |
//! | [`message`] | stored messages, changes and events |
//! | [`data`] | requests and replies of the data operations |
//! | [`fleet`] | what servers and the coordinator tell each other, and the operator's questions |
//! | [`admin`] | what operators say about where subjects are served |
//! | [`health`] | health documents (JSON) |
//! | [`error`] | [`ErrorReply`]: a code that answers "may I retry?" and "could it have happened?" |
//! | [`limits`] | every limit, checked against the others at compile time |
//! | [`codec`] | MessagePack in and out, refusing what is not exactly one value |

pub mod admin;
pub mod codec;
pub mod data;
pub mod error;
pub mod fleet;
pub mod health;
pub mod ids;
pub mod limits;
pub mod message;
pub mod route;
pub mod subject;
pub mod transfer;

pub use codec::{ProtocolVersion, decode, decode_request, encode};
pub use error::{ErrorCode, ErrorReply, Happened, Retry};
pub use ids::{
    Incarnation, Level, LogId, MessageId, Position, RequestId, Rev, Seq, ServerName, SessionId, Slot, Term,
    Timestamp, UploadId, ValueDigest,
};
pub use message::{Change, Event, Headers, Message};
pub use route::{Op, Prefix, Route, RoutePattern};
pub use subject::Subject;
