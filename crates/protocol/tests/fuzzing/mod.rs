//! What must hold of any bytes that arrive: the fuzz targets run it on what they invent, the tests on the corpus and on vectors
//! that were changed.
//!
//! Whatever is read can be written, and is then read as the same; a request that is refused is refused with a code that says so.

use std::fmt::Debug;

use dormouse_protocol::admin::*;
use dormouse_protocol::codec::Versioned;
use dormouse_protocol::data::*;
use dormouse_protocol::fleet::*;
use dormouse_protocol::health::Health;
use dormouse_protocol::route::{AdminRoute, FleetRoute, ServerRoute};
use dormouse_protocol::subject::Unescaped;
use dormouse_protocol::transfer::*;
use dormouse_protocol::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A check of bytes that may be anything. It panics when something does not hold.
pub type Check = fn(&[u8]);

/// One check for each kind of message, by the name of its fuzz target.
pub const CHECKS: &[(&str, Check)] = &[
    ("requests", requests),
    ("replies", replies),
    ("events", events),
    ("fleet", fleet),
    ("admin", admin),
    ("errors", errors),
    ("health", health),
    ("routes", routes),
];

/// What was read is written and read again as it was.
fn read<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = decode::<T>(bytes) {
        let again = encode(&value).expect("it was read");
        assert_eq!(decode::<T>(&again).expect("it was written by us"), value);
    }
}

fn asked<T: Serialize + DeserializeOwned + PartialEq + Debug + Versioned>(bytes: &[u8]) {
    read::<T>(bytes);
    if let Err(error) = decode_request::<T>(bytes) {
        assert!(matches!(error.code, ErrorCode::BadRequest | ErrorCode::UnsupportedVersion), "{error}");
        read::<ErrorReply>(&encode(&error).expect("an error"));
    }
}

macro_rules! each {
    ($check:ident($bytes:expr): $($type:ty),* $(,)?) => {
        $($check::<$type>($bytes);)*
    };
}

/// Requests of every operation. One for something new goes here.
pub fn requests(bytes: &[u8]) {
    each!(asked(bytes): SetRequest, GetRequest, GetAllRequest, KeysRequest, DeleteRequest, DeleteAllRequest, ChangesRequest,
        InfoRequest, ConfigureRequest, FlushRequest, DestroyRequest, UploadBeginRequest, UploadChunkRequest,
        UploadFinishRequest, UploadCancelRequest, GetChunkRequest);
}

/// The answers to them.
pub fn replies(bytes: &[u8]) {
    each!(read(bytes): SetReply, GetReply, GetAllReply, KeysReply, DeleteReply, DeleteAllReply, ChangesReply, InfoReply,
        ConfigureReply, FlushReply, DestroyReply, UploadReply, GetChunkReply);
}

/// Events and announcements.
pub fn events(bytes: &[u8]) {
    each!(read(bytes): Event, GoneAnnouncement, ActiveAnnouncement);
}

/// What servers and the coordinator tell each other.
pub fn fleet(bytes: &[u8]) {
    each!(asked(bytes): LocateRequest, JoinRequest, HeartbeatRequest, ClaimRequest, ReleaseRequest, LeaveRequest);
    each!(read(bytes): LocateReply, LeaseReply, ClaimReply, Acknowledged, HandOverOrder, PresenceReply);
    each!(asked(bytes): PresenceRequest);
}

/// What operators say, and what they are answered.
pub fn admin(bytes: &[u8]) {
    each!(asked(bytes): ServersRequest, SubjectsRequest, DrainRequest, MoveRequest, RebalanceRequest, MovesRequest);
    each!(read(bytes): ServersReply, SubjectsReply, DrainReply, MoveReply, RebalanceReply, MovesReply);
}

/// Errors, also those of codes that do not exist yet.
pub fn errors(bytes: &[u8]) {
    read::<ErrorReply>(bytes);
    if let Ok(error) = decode::<ErrorReply>(bytes) {
        assert!((400..600).contains(&error.code.status()));
        let _ = (error.retry(), error.happened(), error.to_string());
    }
}

/// Health documents.
pub fn health(bytes: &[u8]) {
    if let Ok(health) = serde_json::from_slice::<Health>(bytes) {
        let again = serde_json::to_vec(&health).expect("it was read");
        assert_eq!(serde_json::from_slice::<Health>(&again).expect("it was written by us"), health);
    }
}

/// Routes, subjects and names: what is understood is spelled in one way only.
pub fn routes(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    names(text);
    let (prefix, server) = (Prefix::default(), ServerName::new("persist-1").expect("a name"));
    if let Ok(subject) = Subject::new(text) {
        assert_eq!(prefix.parse_locate(prefix.locate(&subject).as_str()), Ok(subject.clone()));
        assert_eq!(prefix.parse_events(prefix.events(&subject).as_str()), Ok(subject.clone()));
        for &op in Op::ALL {
            let read = prefix.parse_server(&server, prefix.server(&server, op, &subject).as_str());
            assert_eq!(read, Ok(ServerRoute { op, subject: subject.clone() }));
        }
        if let Ok(Unescaped::Subject(again)) = Subject::unescape(&subject.escaped()) {
            assert_eq!(again, subject);
        }
    }
    if let Ok(subject) = prefix.parse_locate(text) {
        assert_eq!(prefix.locate(&subject).as_str(), text);
    }
    if let Ok(subject) = prefix.parse_events(text) {
        assert_eq!(prefix.events(&subject).as_str(), text);
    }
    if let Ok(ServerRoute { op, subject }) = prefix.parse_server(&server, text) {
        assert_eq!(prefix.server(&server, op, &subject).as_str(), text);
    }
    if let Ok(route) = prefix.parse_fleet(text) {
        let again = match route {
            FleetRoute::Join => prefix.join(),
            FleetRoute::Heartbeat => prefix.heartbeat(),
            FleetRoute::Claim(subject) => prefix.claim(&subject),
            FleetRoute::Release(subject) => prefix.release(&subject),
            FleetRoute::Leave => prefix.leave(),
        };
        assert_eq!(again.as_str(), text);
    }
    if let Ok(route) = prefix.parse_admin(text) {
        let again = match route {
            AdminRoute::Servers => prefix.admin_servers(),
            AdminRoute::Subjects => prefix.admin_subjects(),
            AdminRoute::Drain(server) => prefix.admin_drain(&server),
            AdminRoute::Undrain(server) => prefix.admin_undrain(&server),
            AdminRoute::Move(subject) => prefix.admin_move(&subject),
            AdminRoute::Rebalance => prefix.admin_rebalance(),
            AdminRoute::Moves => prefix.admin_moves(),
        };
        assert_eq!(again.as_str(), text);
    }
    let _ = RoutePattern::new(text).matches("persist.coord.gone");
}

fn names(text: &str) {
    if let Ok(Unescaped::Subject(subject)) = Subject::unescape(text) {
        assert_eq!(subject.escaped(), text);
    }
    if let Ok(name) = ServerName::new(text) {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(log) = text.parse::<LogId>() {
        assert_eq!(log.to_string(), text);
    }
    if let Ok(id) = text.parse::<Incarnation>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(prefix) = Prefix::new(text) {
        assert_eq!(prefix.as_str(), text);
    }
    if let Ok(level) = text.parse::<Level>() {
        assert_eq!(level.as_str(), text);
    }
}
