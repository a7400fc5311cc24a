//! Properties of the decoders for arbitrary bytes. The fuzz targets check them on generated input, the tests on the corpus
//! and on mutated vectors.
//!
//! Each decoded value can be encoded, and then decodes to an equal value. A rejected request has a matching error code.

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

/// A check of arbitrary bytes. It panics if a property does not hold.
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

/// Checks that a decoded value survives encoding and decoding.
fn read<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = decode::<T>(bytes) {
        let again = encode(&value).expect("a decoded value encodes");
        assert_eq!(decode::<T>(&again).expect("an encoded value decodes"), value);
    }
}

/// Checks that the bytes are a request that round-trips, or are rejected with a matching code.
fn check_request<T: Serialize + DeserializeOwned + PartialEq + Debug + Versioned>(bytes: &[u8]) {
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

/// Requests of every operation. Add requests of new operations here.
pub fn requests(bytes: &[u8]) {
    each!(check_request(bytes): SetRequest, GetRequest, GetAllRequest, KeysRequest, DeleteRequest, DeleteAllRequest, ChangesRequest,
        InfoRequest, ConfigureRequest, FlushRequest, DestroyRequest, UploadBeginRequest, UploadChunkRequest,
        UploadFinishRequest, UploadCancelRequest, GetChunkRequest);
}

/// Replies of every operation.
pub fn replies(bytes: &[u8]) {
    each!(read(bytes): SetReply, GetReply, GetAllReply, KeysReply, DeleteReply, DeleteAllReply, ChangesReply, InfoReply,
        ConfigureReply, FlushReply, DestroyReply, UploadReply, GetChunkReply);
}

/// Events and announcements.
pub fn events(bytes: &[u8]) {
    each!(read(bytes): Event, GoneAnnouncement, ActiveAnnouncement);
}

/// Messages between servers and the coordinator, and locate requests.
pub fn fleet(bytes: &[u8]) {
    each!(check_request(bytes): LocateRequest, JoinRequest, HeartbeatRequest, ClaimRequest, ReleaseRequest, LeaveRequest,
        LimitsRequest);
    each!(read(bytes): LocateReply, LeaseReply, ClaimReply, Acknowledged, LimitsReply, HandOverOrder, PresenceReply);
    each!(check_request(bytes): PresenceRequest);
}

/// Requests of operators, and their replies.
pub fn admin(bytes: &[u8]) {
    each!(check_request(bytes): ServersRequest, SubjectsRequest, DrainRequest, MoveRequest, RebalanceRequest, MovesRequest,
        TenantsRequest, TenantLimitRequest);
    each!(read(bytes): ServersReply, SubjectsReply, DrainReply, MoveReply, RebalanceReply, MovesReply, TenantsReply,
        TenantLimitReply);
}

/// Errors, also with unknown codes.
pub fn errors(bytes: &[u8]) {
    read::<ErrorReply>(bytes);
    if let Ok(error) = decode::<ErrorReply>(bytes) {
        assert!((400..600).contains(&error.code.status()));
        let _ = (error.retry(), error.executed(), error.to_string());
    }
}

/// Health documents.
pub fn health(bytes: &[u8]) {
    if let Ok(health) = serde_json::from_slice::<Health>(bytes) {
        let again = serde_json::to_vec(&health).expect("a decoded document encodes");
        assert_eq!(serde_json::from_slice::<Health>(&again).expect("an encoded document decodes"), health);
    }
}

/// Routes, subjects and names: each valid value has exactly one spelling.
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
            FleetRoute::Limits => prefix.limits(),
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
            AdminRoute::Tenants => prefix.admin_tenants(),
            AdminRoute::TenantLimit => prefix.admin_tenant_limit(),
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
