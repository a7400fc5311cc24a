use dormouse_protocol::data::{SetItem, SetOutcome, SetRequest};
use dormouse_protocol::message::Discard;
use dormouse_protocol::{ErrorCode, Seq};
use proptest::prelude::*;

use super::*;
use crate::plan::tests::{CONTEXT, InMemory, answer, sized};
use crate::plan::{PlanResult, plan};
use crate::request::{SubjectReply, SubjectRequest};

/// The rejection of a set of such a value at this moment.
fn refusal(memory: &InMemory, place: &UploadPlace, size: u64) -> Option<ErrorReply> {
    let value = Some(vec![b'v'; size as usize].into());
    let item = SetItem { key: place.key.clone(), seq: place.seq, value, ..SetItem::default() };
    let request = SubjectRequest::Set(SetRequest { sets: vec![item], ..SetRequest::default() });
    match plan(&request, memory, CONTEXT) {
        PlanResult::Write { .. } => None,
        planned => match answer(planned) {
            Ok(SubjectReply::Set(reply)) => match reply.results.into_iter().next() {
                Some(SetOutcome::Error(error)) => Some(error),
                other => panic!("{other:?}"),
            },
            other => Some(other.unwrap_err()),
        },
    }
}

fn config() -> impl Strategy<Value = SubjectConfig> {
    let limits = (
        proptest::option::of(1..6_u64),
        proptest::option::of(1..120_u64),
        proptest::option::of(1..60_u64),
        any::<bool>(),
    );
    limits.prop_map(|(max_msgs, max_bytes, max_msg_size, new)| SubjectConfig {
        max_msgs,
        max_bytes,
        max_msg_size,
        discard: Some(if new { Discard::New } else { Discard::Old }),
        ..SubjectConfig::default()
    })
}

fn place() -> impl Strategy<Value = UploadPlace> {
    let key = proptest::option::of(prop_oneof![Just("a"), Just("b"), Just("new")]);
    let seq = proptest::option::of(prop_oneof![Just(3), Just(5), Just(7), Just(9), Just(12)]);
    (key, seq).prop_map(|(key, seq)| UploadPlace { key: key.map(str::to_owned), seq: seq.map(Seq::new) })
}

proptest! {
    /// An early rejection equals the rejection of a set at this moment. If the place of the message is known,
    /// every rejection of such a set by a limit is also an early rejection.
    #[test]
    fn upload_early_rejection_matches_set_rejection(
        config in config(), place in place(), size in 0..130_u64, is_known in any::<bool>()
    ) {
        let memory = sized(config);
        let by_set = refusal(&memory, &place, size);
        let beforehand = UploadQuota::of(&memory, is_known.then_some(&place)).unwrap().check(size).err();
        match (by_set, beforehand) {
            // Another message has this seq: no limit is checked.
            (Some(by_set), _) if by_set.code == ErrorCode::BadRequest => {}
            (by_set, Some(beforehand)) => prop_assert_eq!(by_set, Some(beforehand)),
            (by_set, None) => prop_assert!(by_set.is_none() || !is_known, "{:?}", by_set),
        }
    }
}

/// An upload for a key over the size limit is rejected with the limit's name.
#[test]
fn upload_with_key_over_size_limit_is_rejected() {
    let place = UploadPlace { key: Some("k".repeat(1_025)), seq: None };
    let error = UploadQuota::of(&sized(SubjectConfig::default()), Some(&place)).unwrap_err();
    assert_eq!((error.code, error.limit.as_deref()), (ErrorCode::TooLarge, Some("max_key_bytes")));
}
