//! Judges recorded histories of subjects: whether what was promised was kept.
//!
//! See `README.md` beside this crate for how a history is recorded and what is looked at. The crate is pure: no clock, no
//! network, no file, no chance.
//!
//! ```
//! use std::time::Duration;
//!
//! use dormouse_checker::{Answer, History, Op, Outcome, check};
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
//! recorded.returned(call, Duration::from_millis(12), Outcome::Answered(Answer::Get(reply)));
//!
//! let verdict = check(&history);
//! assert!(verdict.is_clean(), "{verdict}");
//! ```

mod apply;
mod bursts;
mod feeds;
mod history;
mod losses;
mod model;
mod mortal;
mod operations;
mod order;
mod print;
mod reads;
mod replay;
mod slots;
mod terms;
mod verdict;

pub use history::{
    Answer, Assumptions, Burst, Call, Feed, FeedBegins, FeedKeys, FeedTells, FeedTold, Harm, HarmKind, Heard,
    History, Op, Outcome, Returned, Rules, SubjectHistory, TermFacts,
};
pub use verdict::{Coverage, Property, Verdict, Violation};

use operations::Operations;
use replay::Replay;
use slots::Slots;
use terms::Terms;
use verdict::Findings;

/// Says what should not be so in a history. The same history always has the same verdict.
#[must_use]
pub fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    for (subject, recorded) in &history.subjects {
        let mut findings = Findings::new(subject, recorded);
        let ops = Operations::new(&recorded.calls, &history.harms, &mut findings);
        let slots = Slots::gather(recorded, &ops, &mut findings);
        let terms = Terms::gather(recorded, &ops, &slots, &mut findings);
        let known = (recorded, history.rules, history.harms.as_slice());
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
