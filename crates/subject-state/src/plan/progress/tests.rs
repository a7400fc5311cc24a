//! Tests of planning in slices.

use dormouse_protocol::data::{DeleteRequest, Expect, SetItem, SetRequest};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{ErrorCode, MessageId, RequestId, Seq, SessionId, Term};

use super::*;
use crate::database::{SLICE_BYTES, SLICE_ROWS};
use crate::plan::tests::{CONTEXT, InMemory, keyed, memory, plan, plan_retention, set};
use crate::plan::{PendingChanges, StoredMessage, SubjectState};

/// Plans a request, and returns the result and the slices that it took.
fn in_slices(request: &SubjectRequest, view: &impl SubjectView) -> (PlanResult, Vec<Slice>) {
    let (mut progress, mut slices) = (PlanProgress::new(), Vec::new());
    loop {
        let mut slice = Slice::new();
        let planned = progress.step(request, view, CONTEXT, &mut slice);
        slices.push(slice);
        if let Some(planned) = planned {
            return (planned, slices);
        }
    }
}

fn batch(sets: u64, atomic: bool) -> SetRequest {
    let item = |n| SetItem { key: Some(format!("key {n}")), ..SetItem::default() };
    SetRequest { sets: (0..sets).map(item).collect(), atomic, ..SetRequest::default() }
}

/// A subject of so many messages with long keys.
fn of_long_keys(msgs: u64) -> InMemory {
    let mut memory = InMemory::default();
    for n in 1..=msgs {
        let id = MessageId { term: memory.state.term, seq: Seq::new(n) };
        let held = StoredMessage { id, key: Some(format!("{n:01000}")), size: 1 };
        memory.messages.insert(id.seq, held);
    }
    (memory.state.count, memory.state.bytes, memory.state.next_seq) = (msgs, msgs, Seq::new(msgs + 1));
    memory
}

fn assert_bounded(slices: &[Slice], most_row_bytes: usize) {
    for slice in slices {
        assert!(slice.rows() <= SLICE_ROWS && slice.bytes() < SLICE_BYTES + most_row_bytes, "{slice:?}");
    }
}

/// A request of 10,000 sets is planned in at least 40 slices, and each has at most 256 sets.
#[test]
fn plan_of_10000_sets_takes_bounded_slices() {
    // `InMemory` searches for keys in all messages, so it has few.
    for atomic in [true, false] {
        let (planned, slices) = in_slices(&SubjectRequest::Set(batch(10_000, atomic)), &memory());
        let PlanResult::Write { entry, .. } = planned else { panic!("{planned:?}") };
        assert_eq!(entry.operations.len(), if atomic { 1 } else { 10_000 });
        assert!(slices.len() >= 40, "{} slices", slices.len());
        assert_bounded(&slices, 1);
        assert!(!crate::plan::fits_slice(&entry));
    }
}

/// Large values end a slice by their bytes.
#[test]
fn plan_of_large_values_is_bounded_by_bytes() {
    let item = SetItem { value: Some(vec![b'v'; 20_000].into()), ..SetItem::default() };
    let request = SetRequest { sets: vec![item; 40], atomic: true, ..SetRequest::default() };
    let (planned, slices) = in_slices(&SubjectRequest::Set(request), &memory());
    assert!(matches!(planned, PlanResult::Write { .. }));
    assert_bounded(&slices, 20_001);
    assert!(slices.len() >= 10, "{} slices", slices.len());
}

/// Deletes, a configure with stricter limits and retention read long keys in slices bounded by their bytes.
#[test]
fn plan_of_removals_takes_bounded_slices() {
    let mut memory = of_long_keys(1_500);
    let seqs = (1..=1_000).map(Seq::new).collect();
    let delete = SubjectRequest::Delete(DeleteRequest { seqs, ..DeleteRequest::default() });
    let config = SubjectConfig { max_msgs: Some(900), ..SubjectConfig::default() };
    let configure = ConfigureRequest { config: config.clone(), ..ConfigureRequest::default() };
    for request in [delete, SubjectRequest::Configure(configure)] {
        let (planned, slices) = in_slices(&request, &memory);
        let PlanResult::Write { entry, .. } = planned else { panic!("{planned:?}") };
        assert!(!crate::plan::fits_slice(&entry));
        assert!(slices.len() >= 9, "{} slices", slices.len());
        assert_bounded(&slices, 1_024);
    }
    memory.state.config = config;
    let (mut progress, mut slices) = (crate::plan::RetentionProgress::new(), Vec::new());
    let entry = loop {
        let mut slice = Slice::new();
        let planned = progress.step(&memory, CONTEXT, &mut slice).unwrap();
        slices.push(slice);
        if let Some(planned) = planned {
            break planned.unwrap();
        }
    };
    assert!(slices.len() >= 9, "{} slices", slices.len());
    assert_bounded(&slices, 1_024);
    assert_eq!(Some(entry), plan_retention(&memory, CONTEXT).unwrap());
}

/// Between two slices, the subject is as before the request; a request that is dropped or refused leaves no trace.
#[test]
fn half_planned_batch_leaves_no_trace() {
    let applied = memory();
    let mut pending = PendingChanges::new();
    let first = SubjectRequest::Set(batch(1, true));
    let PlanResult::Write { entry, .. } = plan(&first, &pending.view(&applied), CONTEXT) else { panic!() };
    pending.push(&entry, &applied);
    let state = |pending: &PendingChanges| -> SubjectState { pending.view(&applied).state().clone() };
    let before = state(&pending);
    let mut refused = batch(600, true);
    refused.request = Some(RequestId { session: SessionId::new(ulid::Ulid(3)), counter: 1 });
    refused.sets[599].expect = Some(Expect::Key(Some(MessageId { term: Term::new(1), seq: Seq::new(77) })));
    let refused = SubjectRequest::Set(refused);
    for steps in 0..6 {
        let mut progress = PlanProgress::new();
        for _ in 0..steps {
            // Six slices: three compare the sets, and three plan them.
            let planned = progress.step(&refused, &pending.view(&applied), CONTEXT, &mut Slice::new());
            if let Some(planned) = planned {
                let PlanResult::Write { entry, .. } = planned else { panic!("{planned:?}") };
                assert!(entry.operations.is_empty(), "the refusal is recorded, and nothing else");
            }
            assert_eq!(state(&pending), before);
            assert_eq!(pending.view(&applied).by_key("key 5").unwrap(), None);
        }
    }
}

/// If an earlier change fails between two slices, planning begins again without it.
#[test]
fn plan_begins_again_after_failure_of_earlier_change() {
    let applied = memory();
    let mut pending = PendingChanges::new();
    let first = set(vec![keyed("key 599")]);
    let PlanResult::Write { entry, .. } = plan(&first, &pending.view(&applied), CONTEXT) else { panic!() };
    pending.push(&entry, &applied);
    let mut request = batch(600, true);
    request.sets[599].expect = Some(Expect::Key(None));
    let request = SubjectRequest::Set(request);
    let mut progress = PlanProgress::new();
    for _ in 0..3 {
        assert_eq!(progress.step(&request, &pending.view(&applied), CONTEXT, &mut Slice::new()), None);
    }
    pending.reset();
    let planned = loop {
        if let Some(planned) = progress.step(&request, &pending.view(&applied), CONTEXT, &mut Slice::new()) {
            break planned;
        }
    };
    // With the earlier change, the last key would exist.
    assert_eq!(planned, plan(&request, &applied, CONTEXT));
    assert!(matches!(planned, PlanResult::Write { .. }));
}

/// A request is planned with the clock of its first slice.
#[test]
fn plan_has_accept_time_of_first_slice() {
    let (applied, request) = (memory(), SubjectRequest::Set(batch(300, true)));
    let mut progress = PlanProgress::new();
    let entry = (0..).find_map(|n| {
        let accept_time = Timestamp::from_micros(CONTEXT.accept_time.as_micros() + n * 1_000_000);
        let context = PlanContext { accept_time, ..CONTEXT };
        match progress.step(&request, &applied, context, &mut Slice::new())? {
            PlanResult::Write { entry, .. } => Some((n, entry)),
            planned => panic!("{planned:?}"),
        }
    });
    let (last, entry) = entry.unwrap();
    assert!(last > 0);
    assert_eq!(entry.accept_time, CONTEXT.accept_time);
    let too_large = SubjectRequest::Set(SetRequest { sets: Vec::new(), ..SetRequest::default() });
    let refused = PlanProgress::new().step(&too_large, &applied, CONTEXT, &mut Slice::new());
    let Some(PlanResult::Answer(Err(error))) = refused else { panic!() };
    assert_eq!(error.code, ErrorCode::BadRequest);
}
