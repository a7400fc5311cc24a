//! Explores the given bounds and prints the result, with the trace of a counterexample:
//!
//! ```text
//! cargo run -p dormouse-model --example explore -- processes=2 writes=2,0 compactions=1 reads=1 lazy=1 rule=ProbeDuringCreate
//! ```

use std::error::Error;

use dormouse_model::explore::{deep_first, nearest_first};
use dormouse_model::settings::{Bases, BrokenRule, Settings};

fn main() -> Result<(), Box<dyn Error>> {
    let mut settings = Settings::default();
    let (mut most, mut deep) = (3_000_000, false);
    for argument in std::env::args().skip(1) {
        let (name, value) = argument.split_once('=').ok_or("expected name=value")?;
        if name == "rule" {
            let rule = BrokenRule::ALL.into_iter().find(|rule| format!("{rule:?}") == value);
            settings.broken_rule = Some(rule.ok_or("unknown rule")?);
            continue;
        }
        let numbers: Vec<u32> = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let first = numbers[0];
        let small = u8::try_from(first)?;
        let pair = [small, numbers.get(1).map_or(Ok(0), |second| u8::try_from(*second))?];
        match name {
            "processes" => settings.processes = small,
            "subjects" => settings.subjects = small,
            "opens" => settings.opens = pair,
            "writes" => settings.writes = pair,
            "compactions" => settings.compactions = small,
            "releases" => settings.releases = small,
            "crashes" => settings.crashes = small,
            "reads" => settings.reads = small,
            "evictions" => settings.evictions = small,
            "unknowns" => settings.unknowns = small,
            "duplicates" => settings.duplicates = small,
            "drains" => settings.drains = small,
            "lapses" => settings.lapses = Some(small),
            "state_losses" => settings.state_losses = small,
            "restarts" => settings.restarts = first,
            "bases" => settings.bases = [Bases::Deltas, Bases::Snapshots, Bases::Mixed][usize::from(small)],
            "lazy" => settings.lazy = first > 0,
            "collector" => settings.collector = first > 0,
            "split" => settings.split = first > 0,
            "empty" => settings.empty = first > 0,
            "millions" => most = first as usize * 1_000_000,
            "deep" => deep = first > 0,
            _ => return Err(format!("{name} is not a bound").into()),
        }
    }
    println!("{}", if deep { deep_first(&settings, most) } else { nearest_first(&settings, most) });
    Ok(())
}
