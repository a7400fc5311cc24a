//! Judges recorded histories of subjects against the guarantees.
//!
//! The `README.md` of this crate describes how to record a history and what the checker judges. The crate is pure: it
//! uses no clock, network, file or random numbers.
//!
//! ```
//! use std::time::Duration;
//!
//! use dormouse_checker::{CallOutcome, History, Op, OpResult, check};
//! use dormouse_protocol::data::{GetReply, GetRequest};
//! use dormouse_protocol::{Position, Rev, Subject, Term};
//!
//! let subject: Subject = "app.orders".parse().unwrap();
//! let mut history = History::default();
//! let recorded = history.subjects.entry(subject).or_default();
//!
//! let call = recorded.invoked(1, None, Op::Get(GetRequest::key("k")), Duration::from_millis(10));
//! let position = Position { term: Term::new(1), rev: Rev::new(0) };
//! let reply = GetReply { position, messages: Vec::new(), answered: 1 };
//! recorded.returned(call, Duration::from_millis(12), CallOutcome::Answered(OpResult::Get(reply)));
//!
//! let verdict = check(&history);
//! assert!(verdict.is_clean(), "{verdict}");
//! ```

mod apply;
mod bursts;
mod expirable;
mod feeds;
mod history;
mod losses;
mod model;
mod operations;
mod order;
mod print;
mod reads;
mod replay;
mod slots;
mod terms;
mod verdict;

pub use history::{
    Assumptions, Burst, Call, CallOutcome, Feed, FeedBegins, FeedKeys, FeedOutput, FeedOutputKind, History,
    Op, OpResult, ReceivedEvent, Returned, Rules, ServerFault, ServerFaultKind, SubjectHistory, TermFacts,
};
pub use verdict::{Coverage, Property, Verdict, Violation};

use operations::Operations;
use replay::Replay;
use slots::Slots;
use terms::Terms;
use verdict::Findings;

/// Reports the violations in a history. The same history always has the same verdict.
#[must_use]
pub fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    for (subject, recorded) in &history.subjects {
        let mut findings = Findings::new(subject, recorded);
        let ops = Operations::new(&recorded.calls, &history.faults, &mut findings);
        let slots = Slots::gather(recorded, &ops, &mut findings);
        let terms = Terms::gather(recorded, &ops, &slots, &mut findings);
        let known = (recorded, history.rules, history.faults.as_slice());
        let mut replay = Replay::new(known, (&ops, &slots, &terms), &mut findings);
        replay.walk();
        replay.check_order();
        replay.check_once();
        bursts::check(recorded, history.rules, &mut findings);
        verdict.coverage.join(&findings.coverage);
        verdict.violations.append(&mut findings.violations);
    }
    verdict
}
