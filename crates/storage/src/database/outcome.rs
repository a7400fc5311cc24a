//! How a remembered answer is stored. An answer to a set of ten thousand messages is ten thousand results, and a
//! session has a thousand answers: results that follow each other are stored as one run.

use dormouse_protocol::data::{
    ConfigureReply, DeleteAllReply, DeleteReply, DestroyReply, SetOutcome, SetReply, SetResult,
};
use dormouse_protocol::limits::MAX_ITEMS_PER_REQUEST;
use dormouse_protocol::{ErrorReply, Rev, Seq, Timestamp};
use serde::{Deserialize, Serialize};

use crate::entry::Outcome;

/// An [`Outcome`] in its stored form.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stored {
    Set(Vec<Run>),
    Delete(DeleteReply),
    DeleteAll(DeleteAllReply),
    Configure(ConfigureReply),
    Destroy(DestroyReply),
    Refused(ErrorReply),
}

/// Results that follow each other.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Run {
    /// Sets that were carried out, each at the seq after the one before.
    Ok {
        first: SetResult,
        count: u64,
        /// How much later in rev each is than the one before: 0 in an atomic batch.
        rev_step: u64,
        /// Their timestamps in microseconds, but the first's; empty when all are equal to it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        timestamps: Vec<u64>,
    },
    /// Sets that were refused for the same reason.
    Error { error: ErrorReply, count: u64 },
}

/// An answer as bytes.
pub(super) fn encode(outcome: &Outcome) -> Result<Vec<u8>, String> {
    let stored = match outcome {
        Outcome::Set(reply) => Stored::Set(runs(&reply.results)),
        Outcome::Delete(reply) => Stored::Delete(reply.clone()),
        Outcome::DeleteAll(reply) => Stored::DeleteAll(*reply),
        Outcome::Configure(reply) => Stored::Configure(*reply),
        Outcome::Destroy(reply) => Stored::Destroy(*reply),
        Outcome::Refused(error) => Stored::Refused(error.clone()),
    };
    dormouse_protocol::encode(&stored).map(Vec::from).map_err(|error| error.to_string())
}

/// The answer that [`encode`] made these bytes of.
pub(super) fn decode(bytes: &[u8]) -> Result<Outcome, String> {
    Ok(match dormouse_protocol::decode(bytes).map_err(|error| error.to_string())? {
        Stored::Set(runs) => {
            let mut results = Vec::new();
            for run in runs {
                run.unfold(&mut results)?;
            }
            Outcome::Set(SetReply { results })
        }
        Stored::Delete(reply) => Outcome::Delete(reply),
        Stored::DeleteAll(reply) => Outcome::DeleteAll(reply),
        Stored::Configure(reply) => Outcome::Configure(reply),
        Stored::Destroy(reply) => Outcome::Destroy(reply),
        Stored::Refused(error) => Outcome::Refused(error),
    })
}

fn runs(results: &[SetOutcome]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for result in results {
        if runs.last_mut().is_some_and(|run| run.take(result)) {
            continue;
        }
        runs.push(match result {
            SetOutcome::Ok(first) => Run::Ok { first: *first, count: 1, rev_step: 0, timestamps: Vec::new() },
            SetOutcome::Error(error) => Run::Error { error: error.clone(), count: 1 },
        });
    }
    runs
}

impl Run {
    /// Whether `result` follows, and is counted now.
    fn take(&mut self, result: &SetOutcome) -> bool {
        match (self, result) {
            (Self::Error { error, count }, SetOutcome::Error(next)) if error == next => {
                *count += 1;
                true
            }
            (Self::Ok { first, count, rev_step, timestamps }, SetOutcome::Ok(next)) => {
                let step = if *count == 1 { next.rev.get().wrapping_sub(first.rev.get()) } else { *rev_step };
                let timestamp = next.timestamp;
                let expected = nth(first, *count, step, timestamp);
                if step > 1 || expected != Some(*next) {
                    return false;
                }
                if timestamp != first.timestamp || !timestamps.is_empty() {
                    timestamps.resize(*count as usize - 1, first.timestamp.as_micros());
                    timestamps.push(timestamp.as_micros());
                }
                (*count, *rev_step) = (*count + 1, step);
                true
            }
            _ => false,
        }
    }

    fn unfold(self, results: &mut Vec<SetOutcome>) -> Result<(), String> {
        match self {
            Self::Error { error, count } => {
                results.extend(std::iter::repeat_n(SetOutcome::Error(error), checked(count)?));
            }
            Self::Ok { first, count, rev_step, timestamps } => {
                for place in 0..checked(count)? {
                    let timestamp = match place.checked_sub(1).and_then(|place| timestamps.get(place)) {
                        Some(&micros) => Timestamp::from_micros(micros),
                        None => first.timestamp,
                    };
                    let result = nth(&first, place as u64, rev_step, timestamp);
                    results.push(SetOutcome::Ok(result.ok_or("a run beyond the last number")?));
                }
            }
        }
        Ok(())
    }
}

/// The result so many places after `first`.
fn nth(first: &SetResult, place: u64, rev_step: u64, timestamp: Timestamp) -> Option<SetResult> {
    let seq = Seq::new(first.seq.get().checked_add(place)?);
    let rev = Rev::new(first.rev.get().checked_add(rev_step.checked_mul(place)?)?);
    Some(SetResult { seq, rev, timestamp, ..*first })
}

/// No request has more items: a damaged file must not fill the memory.
fn checked(count: u64) -> Result<usize, String> {
    usize::try_from(count)
        .ok()
        .filter(|&count| count <= MAX_ITEMS_PER_REQUEST)
        .ok_or_else(|| format!("a run of {count} results"))
}

#[cfg(test)]
mod tests {
    use dormouse_protocol::Term;
    use proptest::prelude::*;

    use super::*;

    fn result() -> impl Strategy<Value = SetOutcome> {
        let ok = (1..4_u64, 1..4_u64, 0..3_u64, proptest::bool::weighted(0.1)).prop_map(
            |(seq, rev, at, duplicate)| {
                let timestamp = Timestamp::from_micros(at);
                SetOutcome::Ok(SetResult {
                    seq: Seq::new(seq),
                    term: Term::new(1),
                    rev: Rev::new(rev),
                    timestamp,
                    duplicate,
                })
            },
        );
        prop_oneof![4 => ok, 1 => "[ab]".prop_map(|why| SetOutcome::Error(ErrorReply::bad_request(why)))]
    }

    /// Stretches of results that follow each other, beside some that do not.
    fn results() -> impl Strategy<Value = Vec<SetOutcome>> {
        let times = proptest::collection::vec(proptest::bool::weighted(0.2), 1..6);
        let stretch = (result(), 0..3_u64, times).prop_map(|(first, rev_step, times)| {
            (0_u64..)
                .zip(times)
                .map(|(place, later)| match &first {
                    SetOutcome::Ok(first) => {
                        let at = Timestamp::from_micros(first.timestamp.as_micros() + u64::from(later));
                        SetOutcome::Ok(nth(first, place, rev_step, at).unwrap())
                    }
                    SetOutcome::Error(error) => SetOutcome::Error(error.clone()),
                })
                .collect::<Vec<_>>()
        });
        proptest::collection::vec(stretch, 0..6).prop_map(|stretches| stretches.concat())
    }

    proptest! {
        #[test]
        fn every_answer_comes_back(results in results()) {
            let outcome = Outcome::Set(SetReply { results });
            prop_assert_eq!(decode(&encode(&outcome).unwrap()).unwrap(), outcome);
        }
    }

    #[test]
    fn a_large_answer_is_stored_small() {
        let first = SetResult {
            seq: Seq::new(1 << 40),
            term: Term::new(7),
            rev: Rev::new(1 << 40),
            timestamp: Timestamp::from_micros(1 << 50),
            duplicate: false,
        };
        let results = |rev_step| -> Vec<_> {
            (0..10_000).map(|n| SetOutcome::Ok(nth(&first, n, rev_step, first.timestamp).unwrap())).collect()
        };
        for rev_step in [0, 1] {
            let outcome = Outcome::Set(SetReply { results: results(rev_step) });
            assert!(encode(&outcome).unwrap().len() < 200);
        }
        let endless = Stored::Set(vec![Run::Error { error: ErrorReply::bad_request(""), count: u64::MAX }]);
        decode(&dormouse_protocol::encode(&endless).unwrap()).unwrap_err();
    }
}
