//! Planning on pending changes gives the same result as planning on the applied state.

use std::collections::VecDeque;

use dormouse_protocol::data::{
    ConfigureRequest, DeleteAllRequest, DeleteRequest, Expect, SetItem, SetRequest,
};
use dormouse_protocol::limits::MSG_ID_WINDOW_MS;
use dormouse_protocol::message::{Discard, SubjectConfig};
use dormouse_protocol::{ErrorCode, SessionId};
use proptest::prelude::*;

use super::*;
use crate::plan::overlay::KEPT_PLACES;
use crate::plan::tests::{CONTEXT, InMemory, answer, at, id, keyed, memory, set};
use crate::plan::{PlanContext, PlanProgress, PlanResult, plan, plan_retention};
use crate::request::{SubjectReply, SubjectRequest};

/// Adds an entry in the smallest slices.
fn push(pending: &mut PendingChanges, entry: &LogEntry, applied: &InMemory) {
    let mut progress = pending.begin_push(entry, applied);
    while !pending.push_slice(&mut progress, entry, applied, &mut Slice::of_one_row()) {}
}

/// Two copies of a subject: one with everything applied, one with some entries pending.
struct World {
    whole: InMemory,
    applied: InMemory,
    pending: PendingChanges,
    waiting: VecDeque<LogEntry>,
    now: u64,
    /// Whether earlier entries are applied between the slices of a request.
    applies_between_slices: bool,
}

impl World {
    fn new() -> Self {
        Self {
            whole: memory(),
            applied: memory(),
            pending: PendingChanges::new(),
            waiting: VecDeque::new(),
            now: 500,
            applies_between_slices: false,
        }
    }

    fn apply_oldest(&mut self) {
        if let Some(entry) = self.waiting.pop_front() {
            self.applied.apply(&entry);
            self.pending.applied(&entry);
        }
    }

    /// Plans against both copies, and adds the entry to the pending ones.
    fn run(&mut self, request: &SubjectRequest) -> PlanResult {
        let context = PlanContext { accept_time: Timestamp::from_micros(self.now), ..CONTEXT };
        let expected = plan(request, &self.whole, context);
        let mut planned = plan(request, &self.pending.view(&self.applied), context);
        if self.applies_between_slices && planned != PlanResult::Later {
            let in_slices = self.plan_between_applied_entries(request, context);
            // Only the time at which the reply may be sent depends on pending changes.
            match (&in_slices, &planned) {
                (PlanResult::DeferredAnswer(one), PlanResult::DeferredAnswer(other)) => {
                    assert_eq!(one, other);
                }
                (in_slices, planned) => assert_eq!(in_slices, planned),
            }
            planned = in_slices;
        }
        if planned == PlanResult::Later {
            assert!(!self.waiting.is_empty());
            while !self.waiting.is_empty() {
                self.apply_oldest();
            }
            planned = plan(request, &self.pending.view(&self.applied), context);
        }
        match (&planned, expected) {
            // The first request is applied in one copy and pending in the other.
            (PlanResult::DeferredAnswer(deferred), PlanResult::Answer(answered)) => {
                assert_eq!(*deferred, answered);
                assert!(!self.waiting.is_empty());
            }
            (planned, expected) => assert_eq!(*planned, expected),
        }
        if let PlanResult::Write { entry, .. } = &planned {
            self.whole.apply(entry);
            if self.applies_between_slices {
                self.push_between_applied_entries(entry);
            } else {
                push(&mut self.pending, entry, &self.applied);
            }
            self.waiting.push_back(entry.clone());
        }
        planned
    }

    fn push_between_applied_entries(&mut self, entry: &LogEntry) {
        let mut progress = self.pending.begin_push(entry, &self.applied);
        while !self.pending.push_slice(&mut progress, entry, &self.applied, &mut Slice::of_one_row()) {
            self.apply_oldest();
        }
    }

    /// Plans in the smallest slices, and applies an earlier entry after each.
    fn plan_between_applied_entries(
        &mut self,
        request: &SubjectRequest,
        context: PlanContext<'_>,
    ) -> PlanResult {
        let mut progress = PlanProgress::new();
        loop {
            let view = self.pending.view(&self.applied);
            if let Some(planned) = progress.step(request, &view, context, &mut Slice::of_one_row()) {
                return planned;
            }
            self.apply_oldest();
        }
    }

    /// Runs retention on both copies; expired messages are removed once they are applied.
    fn keep_up(&mut self) {
        let context = PlanContext { accept_time: Timestamp::from_micros(self.now), ..CONTEXT };
        let planned = plan_retention(&self.pending.view(&self.applied), context).unwrap();
        if self.waiting.is_empty() {
            assert_eq!(planned, plan_retention(&self.whole, context).unwrap());
        }
        let Some(entry) = planned else { return };
        let before = self.whole.clone();
        self.whole.apply(&entry);
        for removed in entry.operations.iter().flat_map(|operation| match operation {
            RecordOp::Delete { removed, cause: RemovalCause::Expired } => removed.clone(),
            _ => Vec::new(),
        }) {
            let (max_age_ms, cursor) = (before.state().config.max_age_ms, &mut ExpiryCursor::default());
            let expired = before.expired(entry.accept_time, max_age_ms, cursor, usize::MAX).unwrap();
            assert!(
                expired.iter().any(|held| held.id.seq == removed.seq),
                "{removed:?} is removed too early"
            );
        }
        push(&mut self.pending, &entry, &self.applied);
        self.waiting.push_back(entry);
    }

    /// Whether the subject is within its limits.
    fn is_within_limits(&self) -> bool {
        let (state, config) = (self.whole.state(), &self.whole.state().config);
        config.max_msgs.is_none_or(|most| state.count <= most)
            && config.max_bytes.is_none_or(|most| state.bytes <= most)
    }

    fn fail_all(&mut self) {
        self.whole = self.applied.clone();
        self.waiting.clear();
        self.pending.reset();
    }

    fn compare(&self) {
        let view = self.pending.view(&self.applied);
        let bytes = self.whole.state().bytes;
        assert_eq!(SubjectState { bytes, ..view.state().clone() }, *self.whole.state());
        assert!(view.bytes().is_none_or(|known| known == bytes), "{:?}, not {bytes}", view.bytes());
        for (from, limit) in [(0, 1), (0, 3), (9, 2), (0, 100)] {
            assert_eq!(view.oldest(Seq::new(from), limit), self.whole.oldest(Seq::new(from), limit));
        }
        assert_eq!(self.pending.len(), self.waiting.len() as u64);
        for seq in (0..60).map(Seq::new) {
            assert_eq!(view.at(seq), self.whole.at(seq), "{seq}");
        }
        for key in (0..6).map(key_name) {
            assert_eq!(view.by_key(&key), self.whole.by_key(&key), "{key}");
        }
        if view.counts_are_exact() {
            assert_eq!(view.count_up_to(Seq::new(20)), self.whole.count_up_to(Seq::new(20)));
            assert_eq!(view.newest_beyond(2), self.whole.newest_beyond(2));
        }
        // The overlay keeps no applied item.
        let oldest = self.pending.oldest;
        let mut by = Vec::new();
        by.extend(self.pending.by_seq.0.values().map(|&(by, _)| by));
        by.extend(self.pending.by_key.0.values().map(|&(by, _)| by));
        by.extend(self.pending.msg_ids.0.values().map(|&(by, _)| by));
        by.extend(self.pending.cleared.map(|(by, _)| by));
        assert!(by.iter().all(|&by| by >= oldest), "{by:?} after {oldest}");
        assert!(self.pending.requests.len() <= self.waiting.len());
        if self.pending.is_empty() {
            assert_eq!((self.pending.by_seq.0.len(), self.pending.by_key.0.len()), (0, 0));
            assert_eq!((self.pending.requests.len(), self.pending.msg_ids.0.len()), (0, 0));
        }
    }
}

fn key_name(key: u8) -> String {
    // Two of them are keys of the initial subject.
    ["a", "b", "", "c", "d", "e"][usize::from(key)].to_owned()
}

#[derive(Debug, Clone)]
enum Step {
    Request(SubjectRequest),
    Apply(usize),
    FailAll,
    Clock(u64),
    KeepUp,
}

fn item() -> impl Strategy<Value = SetItem> {
    let expect = prop_oneof![
        Just(Expect::Key(None)),
        (3..12_u64).prop_map(|seq| Expect::Key(Some(id(4, seq)))),
        (8..20_u64).prop_map(|seq| Expect::Last(Some(id(4, seq)))),
    ];
    (
        proptest::option::weighted(0.3, 0..40_u64),
        proptest::option::weighted(0.6, 0..6_u8),
        proptest::option::weighted(0.2, 0..4_u8),
        proptest::option::weighted(0.2, expect),
        proptest::option::of(0..12_usize),
        proptest::option::weighted(0.3, 1..100_000_u64),
    )
        .prop_map(|(seq, key, msg_id, expect, size, ttl_ms)| SetItem {
            value: size.map(|size| vec![b'v'; size].into()),
            ttl_ms,
            seq: seq.map(Seq::new),
            key: key.map(key_name),
            msg_id: msg_id.map(|n| n.to_string()),
            expect,
            ..SetItem::default()
        })
}

fn request_id() -> impl Strategy<Value = Option<RequestId>> {
    proptest::option::weighted(0.3, 0..12_u64).prop_map(|counter| {
        counter.map(|counter| RequestId { session: SessionId::new(ulid::Ulid(7)), counter })
    })
}

fn request() -> impl Strategy<Value = SubjectRequest> {
    prop_oneof![
        8 => (proptest::collection::vec(item(), 1..4), proptest::bool::weighted(0.3), request_id()).prop_map(
            |(sets, atomic, request)| SubjectRequest::Set(SetRequest { sets, atomic, request, ..SetRequest::default() })
        ),
        3 => (proptest::collection::vec(0..40_u64, 0..3), proptest::collection::vec(0..6_u8, 1..3), request_id())
            .prop_map(|(seqs, keys, request)| SubjectRequest::Delete(DeleteRequest {
                seqs: seqs.into_iter().map(Seq::new).collect(),
                keys: keys.into_iter().map(key_name).collect(),
                request,
                ..DeleteRequest::default()
            })),
        1 => (proptest::option::of(0..60_u64), request_id()).prop_map(|(end_seq, request)| {
            SubjectRequest::DeleteAll(DeleteAllRequest { end_seq: end_seq.map(Seq::new), request, ..Default::default() })
        }),
        1 => (0..5_u64, request_id()).prop_map(|(keep, request)| {
            SubjectRequest::DeleteAll(DeleteAllRequest { keep_last: Some(keep), request, ..Default::default() })
        }),
        2 => (config(), request_id()).prop_map(|(config, request)| {
            SubjectRequest::Configure(ConfigureRequest { config, request, ..Default::default() })
        }),
    ]
}

fn config() -> impl Strategy<Value = SubjectConfig> {
    (
        proptest::option::of(1..8_u64),
        proptest::option::of(1..40_u64),
        proptest::option::weighted(0.2, 1..12_u64),
        proptest::option::weighted(0.3, 1..100_000_u64),
        proptest::option::weighted(0.3, 1..100_000_u64),
        any::<bool>(),
    )
        .prop_map(|(max_msgs, max_bytes, max_msg_size, max_age_ms, default_ttl_ms, refuses)| {
            SubjectConfig {
                max_msgs,
                max_bytes,
                max_msg_size,
                max_age_ms,
                default_ttl_ms,
                discard: refuses.then_some(Discard::New),
                ..SubjectConfig::default()
            }
        })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => request().prop_map(Step::Request),
        4 => (1..4_usize).prop_map(Step::Apply),
        1 => Just(Step::FailAll),
        3 => Just(Step::KeepUp),
        // Also backwards, and beyond the window of message ids.
        2 => (0..2 * MSG_ID_WINDOW_MS * 1_000).prop_map(Step::Clock),
    ]
}

proptest! {
    #![proptest_config(dormouse_testkit::cases(400))]

    /// Under random steps, planning on pending changes gives the same result as planning on the applied state.
    #[test]
    fn plan_on_pending_changes_equals_plan_on_applied_state(
        steps in proptest::collection::vec(step(), 1..60),
        applies_between_slices in any::<bool>(),
    ) {
        let mut world = World { applies_between_slices, ..World::new() };
        for step in steps {
            let was_within = world.is_within_limits();
            let configures = matches!(step, Step::Request(SubjectRequest::Configure(_)) | Step::FailAll);
            match step {
                Step::Request(request) => drop(world.run(&request)),
                Step::Apply(entries) => (0..entries).for_each(|_| world.apply_oldest()),
                Step::FailAll => world.fail_all(),
                Step::Clock(micros) => world.now = micros,
                Step::KeepUp => world.keep_up(),
            }
            prop_assert!(configures || !was_within || world.is_within_limits());
            world.compare();
        }
    }
}

/// A repeated request gets the first reply, marked as a duplicate, whether the change is pending or applied.
#[test]
fn request_repeat_gets_first_reply_pending_or_applied() {
    let mut world = World::new();
    let mut request = SetRequest { sets: vec![keyed("x")], ..SetRequest::default() };
    request.request = Some(RequestId { session: SessionId::new(ulid::Ulid(1)), counter: 1 });
    let request = SubjectRequest::Set(request);
    let Ok(SubjectReply::Set(mut first)) = answer(world.run(&request)) else { panic!() };
    let Some(dormouse_protocol::data::SetOutcome::Ok(result)) = first.results.first_mut() else { panic!() };
    result.duplicate = true;
    let repeated = || Ok(SubjectReply::Set(first.clone()));
    let plan_it = |world: &World| plan(&request, &world.pending.view(&world.applied), CONTEXT);
    assert_eq!(plan_it(&world), PlanResult::DeferredAnswer(repeated()));
    world.run(&set(vec![keyed("y")]));
    world.apply_oldest();
    // It is applied, and like a read needs proof that there was no takeover.
    assert!(!world.pending.is_empty());
    assert_eq!(plan_it(&world), PlanResult::DeferredAnswer(repeated()));
}

/// After pending changes fail, planning gives the same results as before them.
#[test]
fn pending_changes_that_fail_leave_no_trace() {
    let mut world = World::new();
    let before = answer(plan(&set(vec![keyed("x")]), &world.applied, CONTEXT));
    assert_eq!(answer(world.run(&set(vec![keyed("x")]))), before);
    assert_ne!(answer(world.run(&set(vec![keyed("x")]))), before);
    world.fail_all();
    assert_eq!(answer(world.run(&set(vec![keyed("x")]))), before);
}

/// A reply that depends on pending changes waits for them; a rejection by the request alone does not.
#[test]
fn reply_depending_on_pending_changes_is_delayed() {
    let mut world = World::new();
    world.run(&set(vec![keyed("x")]));
    let taken = SetItem { expect: Some(Expect::Key(None)), ..keyed("x") };
    let planned = world.run(&set(vec![taken]));
    assert!(matches!(planned, PlanResult::DeferredAnswer(Ok(_))), "{planned:?}");
    // A rejection by the request alone does not wait.
    let planned = world.run(&set(vec![SetItem { ttl_ms: Some(0), ..at(50) }]));
    assert!(matches!(planned, PlanResult::Answer(Ok(_))), "{planned:?}");
    let planned = world.run(&set(Vec::new()));
    assert!(matches!(&planned, PlanResult::Answer(Err(error)) if error.code == ErrorCode::BadRequest));
}

/// A delete-all waits for pending changes only if it must count a part of the messages.
#[test]
fn delete_all_waits_for_pending_changes_only_to_count() {
    let mut world = World::new();
    world.run(&set(vec![keyed("x")]));
    let planned = |end_seq: Option<u64>, keep_last| {
        let request = DeleteAllRequest { end_seq: end_seq.map(Seq::new), keep_last, ..Default::default() };
        plan(&SubjectRequest::DeleteAll(request), &world.pending.view(&world.applied), CONTEXT)
    };
    assert_eq!(planned(Some(5), None), PlanResult::Later);
    assert_eq!(planned(None, Some(1)), PlanResult::Later);
    for all in [planned(None, None), planned(Some(9), None), planned(Some(70), None), planned(None, Some(0))]
    {
        let Ok(SubjectReply::DeleteAll(reply)) = answer(all) else { panic!() };
        assert_eq!(reply.count, 4);
    }
    let PlanResult::DeferredAnswer(Ok(SubjectReply::DeleteAll(reply))) = planned(None, Some(4)) else {
        panic!()
    };
    assert_eq!(reply.count, 0);
}

/// After a burst of pending changes is applied, the overlay releases its memory.
#[test]
fn pending_changes_release_memory_after_burst() {
    let mut world = World::new();
    for n in 0..3 * KEPT_PLACES {
        let PlanResult::Write { entry, .. } =
            plan(&set(vec![keyed(&n.to_string())]), &world.pending.view(&world.applied), CONTEXT)
        else {
            panic!()
        };
        push(&mut world.pending, &entry, &world.applied);
        world.waiting.push_back(entry);
    }
    assert!(world.pending.by_key.0.capacity() > KEPT_PLACES);
    while !world.waiting.is_empty() {
        world.apply_oldest();
    }
    assert_eq!(world.pending.by_key.0.capacity(), 0);
}
