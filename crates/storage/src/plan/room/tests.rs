use dormouse_protocol::data::{SetItem, SetOutcome, SetRequest};
use dormouse_protocol::message::Discard;
use dormouse_protocol::{ErrorCode, Seq};
use proptest::prelude::*;

use super::*;
use crate::api::{Reply, Request};
use crate::plan::tests::{CONTEXT, InMemory, answer, sized};
use crate::plan::{Planned, plan};

/// Why a set of such a value is refused at this moment.
fn refusal(memory: &InMemory, place: &UploadPlace, size: u64) -> Option<ErrorReply> {
    let value = Some(vec![b'v'; size as usize].into());
    let item = SetItem { key: place.key.clone(), seq: place.seq, value, ..SetItem::default() };
    let request = Request::Set(SetRequest { sets: vec![item], ..SetRequest::default() });
    match plan(&request, memory, CONTEXT) {
        Planned::Write { .. } => None,
        planned => match answer(planned) {
            Ok(Reply::Set(reply)) => match reply.results.into_iter().next() {
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
    /// What is refused before it is here, a set of this moment would be refused for, in the same words; and where it is known
    /// which message it will be, what such a set would be refused for by a limit is refused.
    #[test]
    fn what_is_refused_beforehand_is_what_a_set_of_this_moment_is_refused_for(
        config in config(), place in place(), size in 0..130_u64, is_known in any::<bool>()
    ) {
        let memory = sized(config);
        let by_set = refusal(&memory, &place, size);
        let beforehand = UploadRoom::of(&memory, is_known.then_some(&place)).unwrap().check(size).err();
        match (by_set, beforehand) {
            // Another message is there: no limit is looked at.
            (Some(by_set), _) if by_set.code == ErrorCode::BadRequest => {}
            (by_set, Some(beforehand)) => prop_assert_eq!(by_set, Some(beforehand)),
            (by_set, None) => prop_assert!(by_set.is_none() || !is_known, "{:?}", by_set),
        }
    }
}

#[test]
fn a_key_that_no_set_may_have_is_refused() {
    let place = UploadPlace { key: Some("k".repeat(1_025)), seq: None };
    let error = UploadRoom::of(&sized(SubjectConfig::default()), Some(&place)).unwrap_err();
    assert_eq!((error.code, error.limit.as_deref()), (ErrorCode::TooLarge, Some("max_key_bytes")));
}
