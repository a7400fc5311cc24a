//! When messages go by themselves.

use dormouse_protocol::data::{ConfigureRequest, SetItem, SetRequest};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Seq, Timestamp};

use super::*;
use crate::api::Request;
use crate::plan::tests::{CONTEXT, InMemory, keyed};
use crate::plan::{Operation, Planned, plan};

const fn at(millis: u64) -> Context<'static> {
    Context { accept_time: Timestamp::from_micros(millis * 1_000), ..CONTEXT }
}

fn run(memory: &mut InMemory, request: &Request, millis: u64) {
    let Planned::Write { entry, .. } = plan(request, memory, at(millis)) else { panic!() };
    memory.apply(&entry);
}

fn set(memory: &mut InMemory, item: SetItem, millis: u64) {
    run(memory, &Request::Set(SetRequest { sets: vec![item], ..SetRequest::default() }), millis);
}

fn configure(memory: &mut InMemory, config: SubjectConfig, millis: u64) {
    run(memory, &Request::Configure(ConfigureRequest { config, ..ConfigureRequest::default() }), millis);
}

fn living(ttl_ms: u64) -> SetItem {
    SetItem { ttl_ms: Some(ttl_ms), ..SetItem::default() }
}

/// What goes at that time.
fn goes(memory: &InMemory, millis: u64) -> Vec<u64> {
    let Some(entry) = upkeep(memory, at(millis)).unwrap() else { return Vec::new() };
    memory.clone().apply(&entry);
    let seqs = entry.operations.iter().flat_map(|operation| match operation {
        Operation::Delete { removed, .. } => removed.iter().map(|removed| removed.seq.get()).collect(),
        _ => Vec::new(),
    });
    seqs.collect()
}

fn fresh() -> InMemory {
    let mut memory = InMemory::default();
    memory.state.next_seq = Seq::new(1);
    memory
}

#[test]
fn nothing_expires_a_moment_too_early() {
    let mut memory = fresh();
    set(&mut memory, living(100), 1_000);
    set(&mut memory, SetItem::default(), 1_000);
    set(&mut memory, living(50), 1_010);
    assert_eq!(goes(&memory, 1_059), [] as [u64; 0]);
    assert_eq!(goes(&memory, 1_060), [3]);
    assert_eq!(goes(&memory, 1_100), [1, 3]);
    assert_eq!(goes(&memory, 1_000_000), [1, 3]);
}

#[test]
fn a_maximal_age_holds_for_what_is_there_already_and_for_what_has_a_longer_time_to_live() {
    let mut memory = fresh();
    set(&mut memory, SetItem::default(), 1_000);
    set(&mut memory, living(5_000), 1_010);
    set(&mut memory, living(5), 1_020);
    configure(&mut memory, SubjectConfig { max_age_ms: Some(100), ..SubjectConfig::default() }, 1_020);
    assert_eq!(goes(&memory, 1_024), [] as [u64; 0]);
    assert_eq!(goes(&memory, 1_025), [3]);
    assert_eq!(goes(&memory, 1_100), [1, 3]);
    assert_eq!(goes(&memory, 1_110), [1, 2, 3]);
    // Raised again, it spares them.
    configure(&mut memory, SubjectConfig { max_age_ms: Some(1_000), ..SubjectConfig::default() }, 1_100);
    assert_eq!(goes(&memory, 1_999), [3]);
}

#[test]
fn a_clock_that_has_gone_back_brings_nothing_back_and_holds_up_what_is_to_come() {
    let mut memory = fresh();
    set(&mut memory, living(100), 3_600_000);
    // The next owner's clock is an hour behind: for it, the subject's time stands still.
    set(&mut memory, living(100), 10);
    assert_eq!(memory.state.accept_time, Timestamp::from_micros(3_600_000_000));
    assert_eq!(goes(&memory, 3_599_999), [] as [u64; 0]);
    let entry = upkeep(&memory, at(3_600_100)).unwrap().unwrap();
    assert_eq!(entry.accept_time, Timestamp::from_micros(3_600_100_000));
    memory.apply(&entry);
    // What is due by the subject's time is due, whatever the clock says.
    set(&mut memory, living(1), 3_600_100);
    set(&mut memory, SetItem::default(), 3_600_200);
    assert_eq!(goes(&memory, 20), [3]);
    let entry = upkeep(&memory, at(20)).unwrap().unwrap();
    assert_eq!(entry.accept_time, Timestamp::from_micros(3_600_200_000), "never back");
}

#[test]
fn writing_anew_begins_a_new_life() {
    let mut memory = fresh();
    set(&mut memory, SetItem { ttl_ms: Some(10), ..keyed("k") }, 0);
    set(&mut memory, keyed("k"), 5);
    assert_eq!(goes(&memory, 1_000), [] as [u64; 0]);
    set(&mut memory, SetItem { ttl_ms: Some(10), ..keyed("k") }, 1_000);
    assert_eq!(goes(&memory, 1_009), [] as [u64; 0]);
    assert_eq!(goes(&memory, 1_010), [3]);
}

#[test]
fn what_expires_makes_room_before_anything_is_evicted() {
    let mut memory = fresh();
    set(&mut memory, SetItem::default(), 0);
    set(&mut memory, SetItem::default(), 0);
    set(&mut memory, living(10), 0);
    memory.state.config = SubjectConfig { max_msgs: Some(2), ..SubjectConfig::default() };
    assert_eq!(goes(&memory, 9), [1]);
    assert_eq!(goes(&memory, 10), [3]);
}
