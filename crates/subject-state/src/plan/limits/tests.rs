//! Tests of limits, on an in-memory state.

use dormouse_format::record::{RecordOp, RemovalCause};
use dormouse_protocol::data::{ConfigureRequest, SetItem, SetOutcome, SetRequest};
use dormouse_protocol::message::Removed;
use dormouse_protocol::{ErrorCode, Timestamp};

use super::*;
use crate::plan::tests::{CONTEXT, InMemory, answer, at, keyed, memory, sized};
use crate::plan::{PlanResult, plan};
use crate::request::{SubjectReply, SubjectRequest};

fn valued(item: SetItem, size: usize) -> SetItem {
    SetItem { value: Some(vec![b'v'; size].into()), ..item }
}

fn sets(items: Vec<SetItem>, atomic: bool) -> SubjectRequest {
    SubjectRequest::Set(SetRequest { sets: items, atomic, ..SetRequest::default() })
}

/// The evicted seqs, or the exceeded limit, of a request that is executed or rejected as a whole.
fn evicted(request: &SubjectRequest, memory: &InMemory) -> Result<Vec<u64>, String> {
    let planned = plan(request, memory, CONTEXT);
    let named = |error: ErrorReply| {
        let code = error.code.clone();
        assert!([ErrorCode::LimitExceeded, ErrorCode::TooLarge].contains(&code), "{error}");
        Err(error.limit.unwrap())
    };
    match &planned {
        PlanResult::Write { entry, .. } => {
            memory.clone().apply(entry);
            let seqs = entry.operations.iter().flat_map(|operation| match operation {
                RecordOp::Delete { removed, cause: RemovalCause::Evicted } => removed.clone(),
                _ => Vec::new(),
            });
            Ok(seqs.map(|removed| removed.seq.get()).collect())
        }
        _ => match answer(planned) {
            Ok(SubjectReply::Set(reply)) => match reply.results.into_iter().next() {
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

/// A set evicts the oldest messages until it fits, and the message that it replaces does not count.
#[test]
fn retention_evicts_oldest_until_new_message_fits() {
    let config = SubjectConfig { max_msgs: Some(3), ..SubjectConfig::default() };
    assert_eq!(one(SetItem::default(), &config), Ok(vec![3]));
    assert_eq!(one(keyed("a"), &config), Ok(vec![]), "replacing a key evicts no other");
    assert_eq!(one(at(5), &config), Ok(vec![]));
    let config = SubjectConfig { max_bytes: Some(60), ..SubjectConfig::default() };
    assert_eq!(one(valued(SetItem::default(), 0), &config), Ok(vec![]));
    assert_eq!(one(valued(SetItem::default(), 10), &config), Ok(vec![3]));
    assert_eq!(one(valued(SetItem::default(), 11), &config), Ok(vec![3, 5]));
    assert_eq!(one(valued(SetItem::default(), 60), &config), Ok(vec![3, 5, 7]));
    // The replaced message is removed anyway, and does not count as an eviction.
    assert_eq!(one(valued(keyed("a"), 20), &config), Ok(vec![5]));
    assert_eq!(one(valued(SetItem { seq: Some(Seq::new(3)), ..keyed("a") }, 20), &config), Ok(vec![5]));
}

/// A set over a limit is rejected with the limit's name and evicts nothing; other sets of the request still apply.
#[test]
fn set_over_limit_is_rejected_and_evicts_nothing() {
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
    // Other sets of the request still apply.
    let both = sets(vec![SetItem::default(), keyed("b")], false);
    let PlanResult::Write { entry, .. } = plan(&both, &sized(msgs), CONTEXT) else { panic!() };
    assert_eq!(entry.operations.len(), 1);
}

/// A batch either fits the limits as a whole or is rejected as a whole.
#[test]
fn batch_fits_limits_as_a_whole_or_is_rejected() {
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

/// A request with more sets than the message limit evicts its own first messages.
#[test]
fn set_request_may_evict_own_first_messages() {
    let config = SubjectConfig { max_msgs: Some(2), ..SubjectConfig::default() };
    let many = sets(vec![SetItem::default(); 4], false);
    assert_eq!(
        evicted(&many, &sized(config)),
        Ok(vec![3, 5, 7, 9]),
        "one message was above the limit before"
    );
    let config = SubjectConfig { max_msgs: Some(3), ..SubjectConfig::default() };
    assert_eq!(evicted(&many, &sized(config)), Ok(vec![3, 5, 7, 9]));
}

/// A lowered limit evicts at once; with discard `new`, messages stay and only sets that grow the subject are rejected.
#[test]
fn limit_lowering_evicts_at_once_unless_discard_is_new() {
    let configure = |config: SubjectConfig| {
        let request = SubjectRequest::Configure(ConfigureRequest { config, ..ConfigureRequest::default() });
        evicted(&request, &sized(SubjectConfig::default()))
    };
    let lowered = SubjectConfig { max_msgs: Some(1), ..SubjectConfig::default() };
    assert_eq!(configure(lowered.clone()), Ok(vec![3, 5]));
    assert_eq!(configure(refusing(lowered.clone())), Ok(vec![]));
    assert_eq!(configure(SubjectConfig { max_bytes: Some(30), ..SubjectConfig::default() }), Ok(vec![3, 5]));
    // The subject does not grow, and a set that does not grow it is accepted.
    let config = refusing(lowered);
    assert_eq!(one(SetItem::default(), &config), Err("max_msgs".to_owned()));
    assert_eq!(one(keyed("a"), &config), Ok(vec![]));
}

/// A limit or time to live of zero is a bad request.
#[test]
fn limit_of_zero_is_rejected() {
    for config in [
        SubjectConfig { max_msgs: Some(0), ..SubjectConfig::default() },
        SubjectConfig { max_bytes: Some(0), ..SubjectConfig::default() },
        SubjectConfig { max_age_ms: Some(0), ..SubjectConfig::default() },
        SubjectConfig { max_msg_size: Some(0), ..SubjectConfig::default() },
        SubjectConfig { default_ttl_ms: Some(0), ..SubjectConfig::default() },
    ] {
        let request = SubjectRequest::Configure(ConfigureRequest { config, ..ConfigureRequest::default() });
        let error = answer(plan(&request, &memory(), CONTEXT)).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
    }
    let Ok(SubjectReply::Set(reply)) =
        answer(plan(&sets(vec![SetItem { ttl_ms: Some(0), ..at(20) }], false), &memory(), CONTEXT))
    else {
        panic!()
    };
    assert!(matches!(&reply.results[0], SetOutcome::Error(error) if error.code == ErrorCode::BadRequest));
}

/// A message expires by its own time to live or, without one, by the subject's default.
#[test]
fn message_ttl_overrides_subject_default() {
    let expires_at = |ttl_ms, default_ttl_ms| {
        let config = SubjectConfig { default_ttl_ms, ..SubjectConfig::default() };
        let request = sets(vec![SetItem { ttl_ms, ..SetItem::default() }], false);
        let PlanResult::Write { entry, .. } = plan(&request, &sized(config), CONTEXT) else { panic!() };
        let RecordOp::Set(set) = &entry.operations[0] else { panic!() };
        set.expires_at.map(Timestamp::as_micros)
    };
    assert_eq!(expires_at(None, None), None);
    assert_eq!(expires_at(None, Some(2)), Some(2_500));
    assert_eq!(expires_at(Some(3), Some(2)), Some(3_500));
    assert_eq!(expires_at(Some(u64::MAX), None), Some(i64::MAX as u64));
}

/// If many messages must go, each entry names a bounded amount and later entries name the rest.
#[test]
fn retention_entry_size_is_bounded_and_rest_follows() {
    let mut memory = InMemory::default();
    let key = |n: u64| format!("{n:01000}");
    for n in 1..=3_000 {
        let id = dormouse_protocol::MessageId { term: memory.state.term, seq: Seq::new(n) };
        memory.messages.insert(id.seq, StoredMessage { id, key: Some(key(n)), size: 1 });
    }
    (memory.state.count, memory.state.next_seq) = (3_000, Seq::new(3_001));
    let config = SubjectConfig { max_msgs: Some(1), ..SubjectConfig::default() };
    let request = SubjectRequest::Configure(ConfigureRequest { config, ..ConfigureRequest::default() });
    let PlanResult::Write { entry, .. } = plan(&request, &memory, CONTEXT) else { panic!() };
    memory.apply(&entry);
    let mut gone: Vec<Removed> = Vec::new();
    let mut entries = vec![entry];
    while crate::plan::is_above_limits(&memory) {
        let entry = crate::plan::plan_retention(&memory, CONTEXT).unwrap().unwrap();
        memory.apply(&entry);
        entries.push(entry);
    }
    assert!(entries.len() > 2, "{}", entries.len());
    for entry in &entries {
        assert!(dormouse_format::frame::encode(entry).unwrap().len() < 2 * NAMED_BYTES);
        for operation in &entry.operations {
            if let RecordOp::Delete { removed, .. } = operation {
                gone.extend(removed.iter().cloned());
            }
        }
    }
    assert_eq!(
        gone.iter().map(|removed| removed.seq.get()).collect::<Vec<_>>(),
        (1..3_000).collect::<Vec<_>>()
    );
    assert_eq!(crate::plan::plan_retention(&memory, CONTEXT).unwrap(), None);
}

/// If a set needs more evictions than one entry can name, the set stays and later entries evict the rest.
#[test]
fn set_over_entry_eviction_bound_stays_and_rest_follows() {
    let mut memory = InMemory::default();
    for n in 1..=3_000 {
        let id = dormouse_protocol::MessageId { term: memory.state.term, seq: Seq::new(n) };
        memory.messages.insert(id.seq, StoredMessage { id, key: Some(format!("{n:01000}")), size: 1_000 });
    }
    (memory.state.count, memory.state.next_seq, memory.state.bytes) = (3_000, Seq::new(3_001), 3_000_000);
    memory.state.config = SubjectConfig { max_bytes: Some(3_000_000), ..SubjectConfig::default() };
    let value = 2_500_000;
    let request = sets(vec![valued(SetItem::default(), value)], false);
    let context = crate::plan::PlanContext { max_message_bytes: 4 * value, ..CONTEXT };
    let PlanResult::Write { entry, .. } = plan(&request, &memory, context) else { panic!() };
    memory.apply(&entry);
    assert!(memory.messages.contains_key(&Seq::new(3_001)), "the reply confirmed it");
    assert!(memory.state.count < 3_000, "one entry evicts as many as it can name");
    while crate::plan::is_above_limits(&memory) {
        memory.apply(&crate::plan::plan_retention(&memory, context).unwrap().unwrap());
    }
    assert_eq!(memory.messages.keys().next_back(), Some(&Seq::new(3_001)));
    assert_eq!(memory.state.count, 501, "the newest old messages stay, up to the limit");
}
