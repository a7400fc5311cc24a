//! Shared fixtures of the machines' tests.

use dormouse_format::checksum::Crc64;
use dormouse_format::keys::{DeltaName, Folder, ManifestNumber, Nonce, SnapshotName};
use dormouse_format::manifest::{
    DeltaRef, Manifest, SnapshotRef, TermBase, TombstoneSession, TombstoneState,
};
use dormouse_protocol::{LogId, Position, RequestId, Rev, Seq, SessionId, Slot, Subject, Term, Timestamp};
use ulid::Ulid;

use super::BaseObject;
use super::claim::Restored;

pub(super) fn subject() -> Subject {
    Subject::new("app.orders").unwrap()
}

pub(super) fn log(server: &str, process: u128) -> LogId {
    LogId::new(server.parse().unwrap(), Ulid::from(process))
}

pub(super) fn mine() -> LogId {
    log("me", 2)
}

pub(super) fn other() -> LogId {
    log("other", 1)
}

pub(super) fn nonce(number: u64) -> Nonce {
    Nonce::new(Ulid::from(u128::from(number)))
}

pub(super) fn snapshot(made_for: u64, rev: u64) -> SnapshotRef {
    let name = SnapshotName {
        made_for: ManifestNumber::new(made_for),
        rev: Rev::new(rev),
        nonce: nonce(made_for * 1_000 + rev),
    };
    SnapshotRef { name, size_bytes: 4_096, crc64: Crc64::of(b"snapshot") }
}

pub(super) fn delta(made_for: u64, rev: u64) -> DeltaRef {
    let name = DeltaName {
        made_for: ManifestNumber::new(made_for),
        rev: Rev::new(rev),
        nonce: nonce(made_for * 1_000 + rev),
    };
    DeltaRef { name, size_bytes: 512, crc64: Crc64::of(b"delta") }
}

pub(super) fn a_delta(made_for: u64, rev: u64) -> BaseObject {
    BaseObject::Delta(delta(made_for, rev))
}

pub(super) fn term(term: u64, term_base: u64) -> TermBase {
    TermBase { term: Term::new(term), term_base: Rev::new(term_base) }
}

/// Manifest 5 of term 3: a snapshot at rev 30, made for manifest 3, and a delta up to rev 40, made for manifest 4.
pub(super) fn manifest(owner: LogId) -> Manifest {
    Manifest {
        subject: subject(),
        number: ManifestNumber::new(5),
        term: Term::new(3),
        term_base: Rev::new(38),
        owner,
        base_rev: Rev::new(40),
        next_seq: Seq::new(77),
        first_slot: Slot::new(7),
        snapshot: Some(snapshot(3, 30)),
        deltas: vec![delta(4, 40)],
        terms: vec![term(2, 33)],
        released: false,
        tombstone: false,
        tombstone_state: None,
        nonce: nonce(5),
    }
}

pub(super) fn released(owner: LogId) -> Manifest {
    Manifest { released: true, ..manifest(owner) }
}

pub(super) fn tombstone(owner: LogId) -> Manifest {
    Manifest {
        snapshot: None,
        deltas: Vec::new(),
        terms: Vec::new(),
        tombstone: true,
        tombstone_state: Some(past(3, 40)),
        ..released(owner)
    }
}

/// The tombstone state of a destroy in this term at this rev: the destroy was request 9 of session 1.
pub(super) fn past(term: u64, rev: u64) -> TombstoneState {
    let (session, counter) = (SessionId::new(Ulid::from(1_u128)), 9);
    let accept_time = Timestamp::from_micros(1);
    TombstoneState {
        position: Position { term: Term::new(term), rev: Rev::new(rev) },
        accept_time,
        request: Some(RequestId { session, counter }),
        sessions: vec![TombstoneSession { session, counter, accept_time }],
    }
}

pub(super) fn folder(manifests: &[u64]) -> Folder {
    Folder { manifests: manifests.iter().map(|&n| ManifestNumber::new(n)).collect(), ..Folder::default() }
}

/// A state at this rev, and whether it holds more than its base.
pub(super) fn restored(rev: u64, above_base: bool) -> Restored {
    Restored {
        rev: Rev::new(rev),
        next_seq: Seq::new(90),
        above_base,
        first_slot: Slot::new(12),
        nonce: nonce(6),
    }
}
