//! Groups records into as few events as possible.

use dormouse_format::record::Record;
use dormouse_protocol::limits::{ENVELOPE_BYTES, EVENT_INLINE_LIMIT_BYTES};
use dormouse_protocol::message::DeleteAllChange;
use dormouse_protocol::{Change, Event, ProtocolVersion, Rev, Seq};

use dormouse_subject_state::plan::{SubjectState, size};

/// Changes are gathered into one event up to this size: enough to save messages, small enough to pass any bus.
const GATHER_BYTES: usize = 256 * 1_024;

/// The event with the subject's position and no changes.
pub(super) const fn beacon(state: &SubjectState) -> Event {
    Event {
        v: ProtocolVersion::CURRENT,
        term: state.term,
        term_base: state.term_base,
        rev: state.rev,
        changes: Vec::new(),
    }
}

/// The event of a destroy: the last of its term.
pub(super) fn destroyed(state: &SubjectState) -> Event {
    let rev = state.rev.next();
    let end_seq = Seq::new(state.next_seq.get().saturating_sub(1));
    let change = Change::DeleteAll(DeleteAllChange { rev, end_seq, count: state.count });
    Event { rev, changes: vec![change], ..beacon(state) }
}

/// The events that announce `records`, all of one term, in order of rev. An event stays below `max_bytes`, as
/// far as omitting values can achieve this.
pub(super) fn events(records: &[Record], term_base: Rev, max_bytes: usize) -> Vec<Event> {
    let most = GATHER_BYTES.min(max_bytes.saturating_sub(ENVELOPE_BYTES));
    let mut events: Vec<Event> = Vec::new();
    let mut bytes = 0;
    for record in records {
        let changes = announced(record, most);
        let change_bytes: usize = changes.iter().map(size::of_change).sum();
        match events.last_mut() {
            Some(event) if bytes + change_bytes <= most => {
                bytes += change_bytes;
                event.rev = record.rev;
                event.changes.extend(changes);
            }
            _ => {
                bytes = change_bytes;
                events.push(Event {
                    v: ProtocolVersion::CURRENT,
                    term: record.term,
                    term_base,
                    rev: record.rev,
                    changes,
                });
            }
        }
    }
    events
}

/// The changes of one record, which stay in one event: those of a batch are announced together or not at all.
fn announced(record: &Record, most: usize) -> Vec<Change> {
    let mut changes = record.changes();
    let too_large = changes.iter().map(size::of_change).sum::<usize>() > most;
    for change in &mut changes {
        if let Change::Set(set) = change {
            let message = &mut set.message;
            if message.value.is_some() && (too_large || message.size > EVENT_INLINE_LIMIT_BYTES as u64) {
                message.value = None;
                message.value_omitted = true;
            }
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use dormouse_format::record::{RecordOp, SetOperation};
    use dormouse_protocol::{Headers, Term, Timestamp};

    use super::*;

    fn record(rev: u64, value_bytes: usize) -> Record {
        Record {
            term: Term::new(3),
            rev: Rev::new(rev),
            accept_time: Timestamp::from_micros(1),
            operation: RecordOp::Set(SetOperation {
                seq: Seq::new(rev),
                key: None,
                value: Some(Bytes::from(vec![b'x'; value_bytes])),
                headers: Headers::default(),
                timestamp: Timestamp::from_micros(1),
                replaces: None,
                expires_at: None,
                blob: None,
                msg_id: None,
            }),
        }
    }

    /// Small changes share an event, each event fits the size limit, and the events hold every change in order.
    #[test]
    fn event_groups_small_changes_within_size_limit() {
        let records: Vec<_> = (1..=1_000).map(|rev| record(rev, 1_000)).collect();
        let events = events(&records, Rev::new(0), 1024 * 1024);
        assert!(events.len() < 10, "{}", events.len());
        let mut rev = 0;
        for event in &events {
            assert!(dormouse_protocol::encode(event).unwrap().len() <= GATHER_BYTES);
            for change in &event.changes {
                rev += 1;
                assert_eq!(change.rev(), Rev::new(rev));
            }
            assert_eq!(event.rev, Rev::new(rev));
        }
        assert_eq!(rev, 1_000);
    }

    /// An event omits a value over the inline limit or the message limit and gives its size.
    #[test]
    fn event_omits_large_value_and_gives_size() {
        for (bytes, max_bytes, inline) in [
            (EVENT_INLINE_LIMIT_BYTES, 1024 * 1024, true),
            (EVENT_INLINE_LIMIT_BYTES + 1, 1024 * 1024, false),
            (20_000, 16_384, false),
        ] {
            let events = events(&[record(1, bytes)], Rev::new(0), max_bytes);
            let Change::Set(set) = &events[0].changes[0] else { panic!() };
            assert_eq!(set.message.value.is_some(), inline, "{bytes}");
            assert_eq!(set.message.value_omitted, !inline);
            assert_eq!(set.message.size, bytes as u64);
            assert!(dormouse_protocol::encode(&events[0]).unwrap().len() <= max_bytes);
        }
    }
}
