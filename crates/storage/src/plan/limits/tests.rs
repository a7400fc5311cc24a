//! What limits make of writes, over a state that is only in memory.

use dormouse_protocol::data::{ConfigureRequest, SetItem, SetOutcome, SetRequest};
use dormouse_protocol::message::Removed;
use dormouse_protocol::{ErrorCode, Timestamp};

use super::*;
use crate::api::{Reply, Request};
use crate::plan::tests::{CONTEXT, InMemory, answer, at, keyed, memory, sized};
use crate::plan::{Operation, Planned, RemovalCause, plan};

fn valued(item: SetItem, size: usize) -> SetItem {
    SetItem { value: Some(vec![b'v'; size].into()), ..item }
}

fn sets(items: Vec<SetItem>, atomic: bool) -> Request {
    Request::Set(SetRequest { sets: items, atomic, ..SetRequest::default() })
}

/// Which seqs are evicted, or the limit that is met, of a request that is carried out or refused as a whole.
fn evicted(request: &Request, memory: &InMemory) -> Result<Vec<u64>, String> {
    let planned = plan(request, memory, CONTEXT);
    let named = |error: ErrorReply| {
        let code = error.code.clone();
        assert!([ErrorCode::LimitExceeded, ErrorCode::TooLarge].contains(&code), "{error}");
        Err(error.limit.unwrap())
    };
    match &planned {
        Planned::Write { entry, .. } => {
            memory.clone().apply(entry);
            let seqs = entry.operations.iter().flat_map(|operation| match operation {
                Operation::Delete { removed, cause: RemovalCause::Evicted } => removed.clone(),
                _ => Vec::new(),
            });
            Ok(seqs.map(|removed| removed.seq.get()).collect())
        }
        _ => match answer(planned) {
            Ok(Reply::Set(reply)) => match reply.results.into_iter().next() {
                Some(SetOutcome::Error(error)) => named(error),
                other => panic!("{other:?}"),
            },
            Err(error) => named(error),
            other => panic!("{other:?}"),
        },
    }
}

fn one(item: SetItem, config: &SubjectConfig) -> Result<Vec<u64>, String> {
    evicted(&sets(vec![item], false), &sized(config.clone()))
}

fn refusing(config: SubjectConfig) -> SubjectConfig {
    SubjectConfig { discard: Some(Discard::New), ..config }
}

#[test]
fn the_oldest_go_until_the_new_one_fits() {
    let config = SubjectConfig { max_msgs: Some(3), ..SubjectConfig::default() };
    assert_eq!(one(SetItem::default(), &config), Ok(vec![3]));
    assert_eq!(one(keyed("a"), &config), Ok(vec![]), "replacing a key evicts no other");
    assert_eq!(one(at(5), &config), Ok(vec![]));
    let config = SubjectConfig { max_bytes: Some(60), ..SubjectConfig::default() };
    assert_eq!(one(valued(SetItem::default(), 0), &config), Ok(vec![]));
    assert_eq!(one(valued(SetItem::default(), 10), &config), Ok(vec![3]));
    assert_eq!(one(valued(SetItem::default(), 11), &config), Ok(vec![3, 5]));
    assert_eq!(one(valued(SetItem::default(), 60), &config), Ok(vec![3, 5, 7]));
    // What it replaces goes anyway, and it does not make room for itself by going.
    assert_eq!(one(valued(keyed("a"), 20), &config), Ok(vec![5]));
    assert_eq!(one(valued(SetItem { seq: Some(Seq::new(3)), ..keyed("a") }, 20), &config), Ok(vec![5]));
}

#[test]
fn what_is_refused_removes_nothing() {
    let bytes = SubjectConfig { max_bytes: Some(60), ..SubjectConfig::default() };
    assert_eq!(one(valued(SetItem::default(), 61), &bytes), Err("max_bytes".to_owned()));
    let size = SubjectConfig { max_msg_size: Some(9), ..SubjectConfig::default() };
    assert_eq!(one(valued(SetItem::default(), 10), &size), Err("max_msg_size".to_owned()));
    assert_eq!(one(valued(SetItem::default(), 9), &size), Ok(vec![]));
    let msgs = refusing(SubjectConfig { max_msgs: Some(3), ..SubjectConfig::default() });
    assert_eq!(one(SetItem::default(), &msgs), Err("max_msgs".to_owned()));
    assert_eq!(one(keyed("b"), &msgs), Ok(vec![]));
    let bytes = refusing(bytes);
    assert_eq!(one(valued(SetItem::default(), 1), &bytes), Err("max_bytes".to_owned()));
    assert_eq!(one(valued(keyed("b"), 30), &bytes), Ok(vec![]));
    assert_eq!(one(valued(keyed("b"), 31), &bytes), Err("max_bytes".to_owned()));
    // Others of the request are carried out all the same.
    let both = sets(vec![SetItem::default(), keyed("b")], false);
    let Planned::Write { entry, .. } = plan(&both, &sized(msgs), CONTEXT) else { panic!() };
    assert_eq!(entry.operations.len(), 1);
}

#[test]
fn a_batch_fits_as_a_whole_or_not_at_all() {
    let config = SubjectConfig { max_msgs: Some(3), max_bytes: Some(60), ..SubjectConfig::default() };
    let batch =
        |sizes: &[usize]| sets(sizes.iter().map(|&size| valued(SetItem::default(), size)).collect(), true);
    assert_eq!(evicted(&batch(&[10, 10]), &sized(config.clone())), Ok(vec![3, 5]));
    assert_eq!(evicted(&batch(&[20, 20, 20]), &sized(config.clone())), Ok(vec![3, 5, 7]));
    assert_eq!(evicted(&batch(&[1, 1, 1, 1]), &sized(config.clone())), Err("max_msgs".to_owned()));
    assert_eq!(evicted(&batch(&[30, 31]), &sized(config.clone())), Err("max_bytes".to_owned()));
    let refusing = refusing(SubjectConfig { max_msgs: Some(4), ..config });
    assert_eq!(evicted(&batch(&[0, 0]), &sized(refusing.clone())), Err("max_msgs".to_owned()));
    assert_eq!(evicted(&batch(&[0]), &sized(refusing)), Ok(vec![]));
}

#[test]
fn a_request_may_evict_its_own_first_sets() {
    let config = SubjectConfig { max_msgs: Some(2), ..SubjectConfig::default() };
    let many = sets(vec![SetItem::default(); 4], false);
    assert_eq!(evicted(&many, &sized(config)), Ok(vec![3, 5, 7, 9]), "one was above the limit before");
    let config = SubjectConfig { max_msgs: Some(3), ..SubjectConfig::default() };
    assert_eq!(evicted(&many, &sized(config)), Ok(vec![3, 5, 7, 9]));
}

#[test]
fn a_limit_that_is_lowered_is_met_at_once_unless_new_ones_are_refused() {
    let configure = |config: SubjectConfig| {
        let request = Request::Configure(ConfigureRequest { config, ..ConfigureRequest::default() });
        evicted(&request, &sized(SubjectConfig::default()))
    };
    let lowered = SubjectConfig { max_msgs: Some(1), ..SubjectConfig::default() };
    assert_eq!(configure(lowered.clone()), Ok(vec![3, 5]));
    assert_eq!(configure(refusing(lowered.clone())), Ok(vec![]));
    assert_eq!(configure(SubjectConfig { max_bytes: Some(30), ..SubjectConfig::default() }), Ok(vec![3, 5]));
    // Nothing grows beyond what is there, and what does not grow is let through.
    let config = refusing(lowered);
    assert_eq!(one(SetItem::default(), &config), Err("max_msgs".to_owned()));
    assert_eq!(one(keyed("a"), &config), Ok(vec![]));
}

#[test]
fn a_limit_of_nothing_is_no_limit_that_anybody_means() {
    for config in [
        SubjectConfig { max_msgs: Some(0), ..SubjectConfig::default() },
        SubjectConfig { max_bytes: Some(0), ..SubjectConfig::default() },
        SubjectConfig { max_age_ms: Some(0), ..SubjectConfig::default() },
        SubjectConfig { max_msg_size: Some(0), ..SubjectConfig::default() },
        SubjectConfig { default_ttl_ms: Some(0), ..SubjectConfig::default() },
    ] {
        let request = Request::Configure(ConfigureRequest { config, ..ConfigureRequest::default() });
        let error = answer(plan(&request, &memory(), CONTEXT)).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
    }
    let Ok(Reply::Set(reply)) =
        answer(plan(&sets(vec![SetItem { ttl_ms: Some(0), ..at(20) }], false), &memory(), CONTEXT))
    else {
        panic!()
    };
    assert!(matches!(&reply.results[0], SetOutcome::Error(error) if error.code == ErrorCode::BadRequest));
}

#[test]
fn a_message_expires_by_its_own_time_to_live_or_else_by_the_subject_s() {
    let expires_at = |ttl_ms, default_ttl_ms| {
        let config = SubjectConfig { default_ttl_ms, ..SubjectConfig::default() };
        let request = sets(vec![SetItem { ttl_ms, ..SetItem::default() }], false);
        let Planned::Write { entry, .. } = plan(&request, &sized(config), CONTEXT) else { panic!() };
        let Operation::Set(set) = &entry.operations[0] else { panic!() };
        set.expires_at.map(Timestamp::as_micros)
    };
    assert_eq!(expires_at(None, None), None);
    assert_eq!(expires_at(None, Some(2)), Some(2_500));
    assert_eq!(expires_at(Some(3), Some(2)), Some(3_500));
    assert_eq!(expires_at(Some(u64::MAX), None), Some(i64::MAX as u64));
}

#[test]
fn one_entry_names_only_so_much_and_the_rest_follows() {
    let mut memory = InMemory::default();
    let key = |n: u64| format!("{n:01000}");
    for n in 1..=3_000 {
        let id = dormouse_protocol::MessageId { term: memory.state.term, seq: Seq::new(n) };
        memory.messages.insert(id.seq, Held { id, key: Some(key(n)), size: 1 });
    }
    (memory.state.count, memory.state.next_seq) = (3_000, Seq::new(3_001));
    let config = SubjectConfig { max_msgs: Some(1), ..SubjectConfig::default() };
    let request = Request::Configure(ConfigureRequest { config, ..ConfigureRequest::default() });
    let Planned::Write { entry, .. } = plan(&request, &memory, CONTEXT) else { panic!() };
    memory.apply(&entry);
    let mut gone: Vec<Removed> = Vec::new();
    let mut entries = vec![entry];
    while crate::plan::is_above_limits(&memory) {
        let entry = crate::plan::upkeep(&memory, CONTEXT).unwrap().unwrap();
        memory.apply(&entry);
        entries.push(entry);
    }
    assert!(entries.len() > 2, "{}", entries.len());
    for entry in &entries {
        assert!(crate::format::frame::encode(entry).unwrap().len() < 2 * NAMED_BYTES);
        for operation in &entry.operations {
            if let Operation::Delete { removed, .. } = operation {
                gone.extend(removed.iter().cloned());
            }
        }
    }
    assert_eq!(
        gone.iter().map(|removed| removed.seq.get()).collect::<Vec<_>>(),
        (1..3_000).collect::<Vec<_>>()
    );
    assert_eq!(crate::plan::upkeep(&memory, CONTEXT).unwrap(), None);
}

#[test]
fn a_write_that_needs_more_room_than_one_entry_can_name_stays_and_the_rest_of_the_old_follows() {
    let mut memory = InMemory::default();
    for n in 1..=3_000 {
        let id = dormouse_protocol::MessageId { term: memory.state.term, seq: Seq::new(n) };
        memory.messages.insert(id.seq, Held { id, key: Some(format!("{n:01000}")), size: 1_000 });
    }
    (memory.state.count, memory.state.next_seq, memory.state.bytes) = (3_000, Seq::new(3_001), 3_000_000);
    memory.state.config = SubjectConfig { max_bytes: Some(3_000_000), ..SubjectConfig::default() };
    let value = 2_500_000;
    let request = sets(vec![valued(SetItem::default(), value)], false);
    let context = crate::plan::Context { max_message_bytes: 4 * value, ..CONTEXT };
    let Planned::Write { entry, .. } = plan(&request, &memory, context) else { panic!() };
    memory.apply(&entry);
    assert!(memory.messages.contains_key(&Seq::new(3_001)), "it was answered as written");
    assert!(memory.state.count < 3_000, "as much as one entry names made room");
    while crate::plan::is_above_limits(&memory) {
        memory.apply(&crate::plan::upkeep(&memory, context).unwrap().unwrap());
    }
    assert_eq!(memory.messages.keys().next_back(), Some(&Seq::new(3_001)));
    assert_eq!(memory.state.count, 501, "the newest of the old, as many as there is room for");
}
