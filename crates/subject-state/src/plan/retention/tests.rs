//! Tests of retention.

use dormouse_format::record::RecordOp;
use dormouse_protocol::data::{ConfigureRequest, SetItem, SetRequest};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Seq, Timestamp};

use super::*;
use crate::plan::tests::{CONTEXT, InMemory, keyed};
use crate::plan::{PlanResult, plan, plan_retention};
use crate::request::SubjectRequest;

const fn at(millis: u64) -> PlanContext<'static> {
    PlanContext { accept_time: Timestamp::from_micros(millis * 1_000), ..CONTEXT }
}

fn run(memory: &mut InMemory, request: &SubjectRequest, millis: u64) {
    let PlanResult::Write { entry, .. } = plan(request, memory, at(millis)) else { panic!() };
    memory.apply(&entry);
}

fn set(memory: &mut InMemory, item: SetItem, millis: u64) {
    run(memory, &SubjectRequest::Set(SetRequest { sets: vec![item], ..SetRequest::default() }), millis);
}

fn configure(memory: &mut InMemory, config: SubjectConfig, millis: u64) {
    run(
        memory,
        &SubjectRequest::Configure(ConfigureRequest { config, ..ConfigureRequest::default() }),
        millis,
    );
}

fn with_ttl(ttl_ms: u64) -> SetItem {
    SetItem { ttl_ms: Some(ttl_ms), ..SetItem::default() }
}

/// The seqs that retention removes at that time.
fn removed(memory: &InMemory, millis: u64) -> Vec<u64> {
    let Some(entry) = plan_retention(memory, at(millis)).unwrap() else { return Vec::new() };
    memory.clone().apply(&entry);
    let seqs = entry.operations.iter().flat_map(|operation| match operation {
        RecordOp::Delete { removed, .. } => removed.iter().map(|removed| removed.seq.get()).collect(),
        _ => Vec::new(),
    });
    seqs.collect()
}

fn fresh() -> InMemory {
    let mut memory = InMemory::default();
    memory.state.next_seq = Seq::new(1);
    memory
}

/// A message expires exactly when its time to live has passed, and one without it never expires.
#[test]
fn retention_never_expires_message_early() {
    let mut memory = fresh();
    set(&mut memory, with_ttl(100), 1_000);
    set(&mut memory, SetItem::default(), 1_000);
    set(&mut memory, with_ttl(50), 1_010);
    assert_eq!(removed(&memory, 1_059), [] as [u64; 0]);
    assert_eq!(removed(&memory, 1_060), [3]);
    assert_eq!(removed(&memory, 1_100), [1, 3]);
    assert_eq!(removed(&memory, 1_000_000), [1, 3]);
}

/// A maximum age applies to existing messages and to those with a longer time to live; raising it spares them.
#[test]
fn retention_max_age_covers_existing_and_long_ttl_messages() {
    let mut memory = fresh();
    set(&mut memory, SetItem::default(), 1_000);
    set(&mut memory, with_ttl(5_000), 1_010);
    set(&mut memory, with_ttl(5), 1_020);
    configure(&mut memory, SubjectConfig { max_age_ms: Some(100), ..SubjectConfig::default() }, 1_020);
    assert_eq!(removed(&memory, 1_024), [] as [u64; 0]);
    assert_eq!(removed(&memory, 1_025), [3]);
    assert_eq!(removed(&memory, 1_100), [1, 3]);
    assert_eq!(removed(&memory, 1_110), [1, 2, 3]);
    // A raised maximum age keeps them.
    configure(&mut memory, SubjectConfig { max_age_ms: Some(1_000), ..SubjectConfig::default() }, 1_100);
    assert_eq!(removed(&memory, 1_999), [3]);
}

/// If the clock goes back, subject time does not decrease: due messages stay due and later ones wait.
#[test]
fn retention_with_clock_set_back_follows_subject_time() {
    let mut memory = fresh();
    set(&mut memory, with_ttl(100), 3_600_000);
    // The next owner's clock is an hour behind, so the subject's time does not advance.
    set(&mut memory, with_ttl(100), 10);
    assert_eq!(memory.state.accept_time, Timestamp::from_micros(3_600_000_000));
    assert_eq!(removed(&memory, 3_599_999), [] as [u64; 0]);
    let entry = plan_retention(&memory, at(3_600_100)).unwrap().unwrap();
    assert_eq!(entry.accept_time, Timestamp::from_micros(3_600_100_000));
    memory.apply(&entry);
    // A message due by the subject's time is due, whatever the clock says.
    set(&mut memory, with_ttl(1), 3_600_100);
    set(&mut memory, SetItem::default(), 3_600_200);
    assert_eq!(removed(&memory, 20), [3]);
    let entry = plan_retention(&memory, at(20)).unwrap().unwrap();
    assert_eq!(entry.accept_time, Timestamp::from_micros(3_600_200_000), "accept time does not decrease");
}

/// A new set of a key replaces the old time to live with its own or with none.
#[test]
fn retention_restarts_when_key_is_set_again() {
    let mut memory = fresh();
    set(&mut memory, SetItem { ttl_ms: Some(10), ..keyed("k") }, 0);
    set(&mut memory, keyed("k"), 5);
    assert_eq!(removed(&memory, 1_000), [] as [u64; 0]);
    set(&mut memory, SetItem { ttl_ms: Some(10), ..keyed("k") }, 1_000);
    assert_eq!(removed(&memory, 1_009), [] as [u64; 0]);
    assert_eq!(removed(&memory, 1_010), [3]);
}

/// Retention removes expired messages first and evicts others only if limits are still exceeded.
#[test]
fn retention_expires_messages_before_eviction() {
    let mut memory = fresh();
    set(&mut memory, SetItem::default(), 0);
    set(&mut memory, SetItem::default(), 0);
    set(&mut memory, with_ttl(10), 0);
    memory.state.config = SubjectConfig { max_msgs: Some(2), ..SubjectConfig::default() };
    assert_eq!(removed(&memory, 9), [1]);
    assert_eq!(removed(&memory, 10), [3]);
}
