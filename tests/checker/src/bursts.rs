//! Sets that one caller sends without waiting: checks that their positions follow the order of the calls.

use crate::history::{Assumptions, Rules, SubjectHistory};
use crate::verdict::{Findings, Property, Source};

/// Compares the positions of the sets with the order of the calls.
pub(crate) fn check(history: &SubjectHistory, rules: Rules, findings: &mut Findings<'_>) {
    if rules.assumptions == Assumptions::Broken {
        // Two active servers may each execute a part of the sets, below the level `bucket`.
        return;
    }
    for (index, burst) in history.bursts.iter().enumerate() {
        let written: Vec<_> = burst.written.iter().flatten().collect();
        findings.coverage.add("bursts of sets");
        let Some(pair) = written.windows(2).find(|pair| pair[0] >= pair[1]) else { continue };
        let sentence =
            format!("a set was written at {}, and a set that was sent after it at {}", pair[0], pair[1]);
        findings.report(Property::CallersOrder, sentence, [Source::Burst(index)]);
    }
}
