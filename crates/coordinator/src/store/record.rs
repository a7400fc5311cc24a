//! The stored keys and values. Frozen: a change needs a new [`SCHEMA`].
//!
//! Version 2 added the limits of tenants. This software reads version 1, which has none, and turns it into version 2:
//! older software would ignore the limits.
//!
//! | key | value |
//! |---|---|
//! | `schema` | schema version, u32 big endian |
//! | `waits` | [`StartupGrace`]: for members, then for unknown processes, each in milliseconds, u64 big endian |
//! | `m/<server>` | [`MemberRecord`] as a MessagePack map with named fields |
//! | `a/<subject>` | the name of the server that the subject is assigned to |
//! | `l/<tenant>` | [`TenantLimits`] as a MessagePack map with named fields, not empty |
//! | `c/<server>` | number of subjects assigned to the server, u64 big endian |

use std::time::Duration;

use dormouse_protocol::tenant::TenantLimits;
use dormouse_protocol::{ServerName, Subject, TenantName, decode, encode};

use super::{MemberRecord, StartupGrace, StoreError};

/// The schema version that is written, and the newest one that can be read.
pub(super) const SCHEMA: u32 = 2;

pub(super) const SCHEMA_KEY: &[u8] = b"schema";
pub(super) const WAITS_KEY: &[u8] = b"waits";
pub(super) const MEMBERS: &[u8] = b"m/";
pub(super) const COUNTS: &[u8] = b"c/";
pub(super) const ASSIGNMENTS: &[u8] = b"a/";
pub(super) const LIMITS: &[u8] = b"l/";

pub(super) fn member_key(server: &ServerName) -> Vec<u8> {
    [MEMBERS, server.as_str().as_bytes()].concat()
}

pub(super) fn assignment_key(subject: &Subject) -> Vec<u8> {
    [ASSIGNMENTS, subject.as_str().as_bytes()].concat()
}

pub(super) fn count_key(server: &ServerName) -> Vec<u8> {
    [COUNTS, server.as_str().as_bytes()].concat()
}

pub(super) fn limits_key(tenant: &TenantName) -> Vec<u8> {
    [LIMITS, tenant.as_str().as_bytes()].concat()
}

pub(super) fn encode_limits(limits: &TenantLimits) -> Result<Vec<u8>, StoreError> {
    let failed = |source| StoreError::Failed { what: "encode limits", source: Box::new(source) };
    Ok(encode(limits).map_err(failed)?.to_vec())
}

/// The tenant and its limits.
pub(super) fn decode_limits(key: &[u8], value: &[u8]) -> Result<(TenantName, TenantLimits), StoreError> {
    let name = std::str::from_utf8(&key[LIMITS.len()..]).map_err(|error| damaged(key, error))?;
    let tenant = TenantName::new(name).map_err(|error| damaged(key, error))?;
    Ok((tenant, decode(value).map_err(|error| damaged(key, error))?))
}

pub(super) fn encode_member(record: &MemberRecord) -> Result<Vec<u8>, StoreError> {
    let failed = |source| StoreError::Failed { what: "encode a member", source: Box::new(source) };
    Ok(encode(record).map_err(failed)?.to_vec())
}

pub(super) fn decode_member(key: &[u8], value: &[u8]) -> Result<MemberRecord, StoreError> {
    decode(value).map_err(|error| damaged(key, error))
}

pub(super) fn encode_grace(waits: StartupGrace) -> Vec<u8> {
    // Rounded up: a longer wait is safe, a shorter one is not.
    let millis = |wait: Duration| u64::try_from(wait.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX);
    [millis(waits.member), millis(waits.unknown)].map(u64::to_be_bytes).concat()
}

pub(super) fn decode_grace(key: &[u8], value: &[u8]) -> Result<StartupGrace, StoreError> {
    let (member, unknown) = value.split_at(value.len() / 2);
    let wait = |half| decode_u64(key, half).map(Duration::from_millis);
    Ok(StartupGrace { member: wait(member)?, unknown: wait(unknown)? })
}

/// The subject named by the key of an assignment.
pub(super) fn decode_subject(key: &[u8]) -> Result<Subject, StoreError> {
    let name = std::str::from_utf8(&key[ASSIGNMENTS.len()..]).map_err(|error| damaged(key, error))?;
    Subject::new(name).map_err(|error| damaged(key, error))
}

/// The server named by a value, or by the rest of a key.
pub(super) fn decode_server(key: &[u8], name: &[u8]) -> Result<ServerName, StoreError> {
    let name = std::str::from_utf8(name).map_err(|error| damaged(key, error))?;
    ServerName::new(name).map_err(|error| damaged(key, error))
}

pub(super) fn decode_u64(key: &[u8], value: &[u8]) -> Result<u64, StoreError> {
    value.try_into().map(u64::from_be_bytes).map_err(|error| damaged(key, error))
}

pub(super) fn decode_u32(key: &[u8], value: &[u8]) -> Result<u32, StoreError> {
    value.try_into().map(u32::from_be_bytes).map_err(|error| damaged(key, error))
}

fn damaged(key: &[u8], what: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged { key: String::from_utf8_lossy(key).into_owned(), what: what.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stored keys and values keep their exact byte encoding, and damaged values fail to decode.
    #[test]
    fn stored_record_encoding_is_frozen() {
        let record = MemberRecord {
            log: "persist-1-01J9Z3ABCDEFGHJKMNPQRSTVWX".parse().unwrap(),
            predecessor: None,
            capacity: 100,
            version: "0.1.0".into(),
            dead: true,
            drain: None,
        };
        let value = encode_member(&record).unwrap();
        assert_eq!(
            value,
            b"\x84\xa3log\xd9\x24persist-1-01J9Z3ABCDEFGHJKMNPQRSTVWX\xa8capacity\x64\xa7version\xa50.1.0\xa4dead\xc3"
        );
        assert_eq!(decode_member(b"m/persist-1", &value).unwrap(), record);
        let drained = MemberRecord { drain: Some(record.log.clone()), ..record.clone() };
        let longer = encode_member(&drained).unwrap();
        assert!(longer.ends_with(b"\xa4dead\xc3\xa5drain\xd9\x24persist-1-01J9Z3ABCDEFGHJKMNPQRSTVWX"));
        assert_eq!(decode_member(b"m/persist-1", &longer).unwrap(), drained);
        let waits =
            StartupGrace { member: Duration::from_micros(3_899_001), unknown: Duration::from_secs(30) };
        let value = encode_grace(waits);
        assert_eq!(value, b"\0\0\0\0\0\0\x0f\x3c\0\0\0\0\0\0\x75\x30");
        let rounded = StartupGrace { member: Duration::from_millis(3_900), ..waits };
        assert_eq!(decode_grace(WAITS_KEY, &value).unwrap(), rounded);
        assert!(decode_grace(WAITS_KEY, &value[1..]).is_err());
        assert_eq!(member_key(record.log.server()), b"m/persist-1");
        assert_eq!(count_key(record.log.server()), b"c/persist-1");
        let subject = Subject::new("app.Ä").unwrap();
        assert_eq!(assignment_key(&subject), "a/app.Ä".as_bytes());
        assert_eq!(decode_subject("a/app.Ä".as_bytes()).unwrap(), subject);
        assert!(decode_subject(b"a/").is_err() && decode_subject(b"a/\xff").is_err());
        let tenant = TenantName::new("user.alice").unwrap();
        assert_eq!(limits_key(&tenant), b"l/user.alice");
        let limits = TenantLimits { requests: Some(7), uploads: Some(0), ..TenantLimits::NONE };
        let value = encode_limits(&limits).unwrap();
        assert_eq!(value, b"\x82\xa8requests\x07\xa7uploads\x00");
        assert_eq!(decode_limits(b"l/user.alice", &value).unwrap(), (tenant, limits));
        assert!(decode_limits(b"l/", &value).is_err() && decode_limits(b"l/a", b"\xc1").is_err());
    }
}
