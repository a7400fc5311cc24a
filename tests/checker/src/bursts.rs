//! Sets that somebody asked for without waiting: whether they stand in the order of the calls.

use crate::history::{Assumptions, Rules, SubjectHistory};
use crate::verdict::{Findings, Property, Source};

/// Holds where each set was written against the order of the calls.
pub(crate) fn check(history: &SubjectHistory, rules: Rules, findings: &mut Findings<'_>) {
    if rules.assumptions == Assumptions::Broken {
        // Two servers at once may each take a part, below the level `bucket`.
        return;
    }
    for (place, burst) in history.bursts.iter().enumerate() {
        let written: Vec<_> = burst.written.iter().flatten().collect();
        findings.coverage.add("sets without waiting");
        let Some(pair) = written.windows(2).find(|pair| pair[0] >= pair[1]) else { continue };
        let sentence =
            format!("a set was written at {}, and one that was asked for after it at {}", pair[0], pair[1]);
        findings.wrong(Property::CallersOrder, sentence, [Source::Burst(place)]);
    }
}
