//! The cost of one observation.

use std::hint::black_box;
use std::time::Duration;

use dormouse_metrics::{ByLabel, Counter, DurationHistogram, LongestSteps, StepKind};
use dormouse_protocol::Level;
use dormouse_runtime::Env;

const ROUNDS: u32 = 2_000_000;

/// Prints nanoseconds for each kind of observation. It measures only, so no limit can fail on a busy machine:
/// `cargo test --release -p dormouse-metrics --test cost -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn observation_costs_are_printed() {
    let env = Env::system();
    let report = |name: &str, work: &mut dyn FnMut()| {
        let began = env.boot();
        for _ in 0..ROUNDS {
            work();
        }
        println!("{name}: {:.1} ns", (env.boot() - began).as_secs_f64() * 1e9 / f64::from(ROUNDS));
    };
    let histograms: ByLabel<Level, DurationHistogram> = ByLabel::default();
    let counter = Counter::<u64>::default();
    let steps = LongestSteps::default();
    let took = Duration::from_micros(90);
    report("clock reading", &mut || {
        black_box(env.boot());
    });
    report("counter", &mut || {
        counter.inc();
    });
    report("histogram", &mut || histograms.of(black_box(Level::Disk)).observe(black_box(took)));
    report("longest step, without the clock", &mut || steps.observe(StepKind::Get, black_box(took), took));
    report("step timer", &mut || drop(steps.start(&env, StepKind::Get)));
}
