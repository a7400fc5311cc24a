//! What was told, and the state to which it leads.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{AskError, RequestError, ask};
use dormouse_protocol::data::*;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Op, Prefix, Rev, Seq, decode};

use crate::session::{Answer, Change, World};
use crate::support::subject;

/// What one rev did, as the answers say.
#[derive(Debug)]
pub enum Done {
    Set(Vec<(Seq, Option<String>, Option<Bytes>)>),
    Delete(Vec<Seq>),
    DeleteAll(Seq),
    Configure(SubjectConfig),
    Destroy,
}

/// Everything that was answered as carried out, by its rev. No rev is told twice.
pub fn by_rev<'a>(answers: impl Iterator<Item = &'a (Change, Answer)>) -> BTreeMap<Rev, Done> {
    let mut revs = BTreeMap::new();
    let mut tell = |rev: Rev, done: Done| {
        let before = revs.insert(rev, done);
        assert!(before.is_none(), "{rev} was told to two: {before:?}");
    };
    for (change, answer) in answers.filter(|(_, answer)| answer.changed()) {
        match answer {
            Answer::Set(outcomes) => {
                let request: SetRequest = decode(&change.payload).unwrap();
                let mut together = BTreeMap::<Rev, Vec<_>>::new();
                for (item, outcome) in request.sets.into_iter().zip(outcomes) {
                    if let SetOutcome::Ok(result) = outcome {
                        together.entry(result.rev).or_default().push((result.seq, item.key, item.value));
                    }
                }
                together.into_iter().for_each(|(rev, sets)| tell(rev, Done::Set(sets)));
            }
            Answer::Delete(position, seqs) => tell(position.rev, Done::Delete(seqs.clone())),
            Answer::DeleteAll(position, _) => {
                let request: DeleteAllRequest = decode(&change.payload).unwrap();
                tell(position.rev, Done::DeleteAll(request.end_seq.unwrap()));
            }
            Answer::Configure(position) => {
                let request: ConfigureRequest = decode(&change.payload).unwrap();
                tell(position.rev, Done::Configure(request.config));
            }
            Answer::Destroy(position) => tell(position.rev, Done::Destroy),
            Answer::Refused(_) | Answer::Forgotten => {}
        }
    }
    revs
}

/// Keys and values by seq.
pub type Messages = BTreeMap<Seq, (Option<String>, Option<Bytes>)>;

/// The state to which what was answered leads.
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

/// A question, asked until it is answered: answers are lost.
pub async fn find_out<Req, Rep>(world: &World, op: Op, name: &str, request: &Req) -> Rep
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
