//! Acknowledged changes, and the state that they result in.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{AskError, RequestError, ask};
use dormouse_protocol::data::*;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Op, Prefix, Rev, Seq, decode};

use crate::session::{Change, SessionReply, World};
use crate::support::subject;

/// The effect of one rev, from the replies.
#[derive(Debug)]
pub enum Done {
    Set(Vec<(Seq, Option<String>, Option<Bytes>)>),
    Delete(Vec<Seq>),
    DeleteAll(Seq),
    Configure(SubjectConfig),
    Destroy,
}

/// All acknowledged changes by rev. Panics if two changes have the same rev.
pub fn by_rev<'a>(answers: impl Iterator<Item = &'a (Change, SessionReply)>) -> BTreeMap<Rev, Done> {
    let mut revs = BTreeMap::new();
    let mut add = |rev: Rev, done: Done| {
        let before = revs.insert(rev, done);
        assert!(before.is_none(), "{rev} belongs to two changes: {before:?}");
    };
    for (change, answer) in answers.filter(|(_, answer)| answer.changed()) {
        match answer {
            SessionReply::Set(outcomes) => {
                let request: SetRequest = decode(&change.payload).unwrap();
                let mut together = BTreeMap::<Rev, Vec<_>>::new();
                for (item, outcome) in request.sets.into_iter().zip(outcomes) {
                    if let SetOutcome::Ok(result) = outcome {
                        together.entry(result.rev).or_default().push((result.seq, item.key, item.value));
                    }
                }
                together.into_iter().for_each(|(rev, sets)| add(rev, Done::Set(sets)));
            }
            SessionReply::Delete(position, seqs) => add(position.rev, Done::Delete(seqs.clone())),
            SessionReply::DeleteAll(position, _) => {
                let request: DeleteAllRequest = decode(&change.payload).unwrap();
                add(position.rev, Done::DeleteAll(request.end_seq.unwrap()));
            }
            SessionReply::Configure(position) => {
                let request: ConfigureRequest = decode(&change.payload).unwrap();
                add(position.rev, Done::Configure(request.config));
            }
            SessionReply::Destroy(position) => add(position.rev, Done::Destroy),
            SessionReply::Refused(_) | SessionReply::Indeterminate => {}
        }
    }
    revs
}

/// Keys and values by seq.
pub type Messages = BTreeMap<Seq, (Option<String>, Option<Bytes>)>;

/// The state after the acknowledged changes.
pub fn fold(revs: BTreeMap<Rev, Done>) -> (Messages, SubjectConfig) {
    let (mut messages, mut config) = (Messages::new(), SubjectConfig::default());
    for done in revs.into_values() {
        match done {
            Done::Set(sets) => {
                for (seq, key, value) in sets {
                    messages.retain(|_, (held, _)| key.is_none() || *held != key);
                    messages.insert(seq, (key, value));
                }
            }
            Done::Delete(seqs) => seqs.iter().for_each(|seq| drop(messages.remove(seq))),
            Done::DeleteAll(end) => messages.retain(|seq, _| *seq > end),
            Done::Configure(new) => config = new,
            Done::Destroy => (messages, config) = (Messages::new(), SubjectConfig::default()),
        }
    }
    (messages, config)
}

/// Sends a read until a reply arrives, because replies can be lost.
pub async fn ask_until_answered<Req, Rep>(world: &World, op: Op, name: &str, request: &Req) -> Rep
where
    Req: serde::Serialize + Sync,
    Rep: serde::de::DeserializeOwned,
{
    loop {
        let route = Prefix::default().server(&world.server(), op, &subject(name));
        match ask(&**world.fleet.bus(), route, request, Duration::from_secs(3)).await {
            Ok(reply) => return reply,
            Err(AskError::Request(RequestError::Deadline { .. })) => {}
            Err(error) => panic!("{op}: {error}"),
        }
    }
}
