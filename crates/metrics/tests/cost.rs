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
    report("step timer that shares its clock readings", &mut || {
        black_box(steps.start_at(&env, StepKind::Get, black_box(took)).end());
    });
    let counters: [Counter; 5] = Default::default();
    report("all observations of a set that is alone in its burst", &mut || {
        // The intake begins with the reading of the arrival, and its end is the sign of life of the pass.
        black_box(steps.start_at(&env, StepKind::Intake, black_box(took)).end());
        // The subject's task has the time for its schedule.
        histograms.of(Level::Memory).observe(black_box(took));
        drop(steps.start(&env, StepKind::Plan));
        drop(steps.start(&env, StepKind::WalWrite));
        counters[0].inc_by(black_box(200));
        // The apply backlog needs the first reading, and the schedule the second one.
        steps.observe(StepKind::Acknowledge, black_box(took), took);
        histograms.of(Level::Disk).observe(black_box(took));
        // The endpoint: time of the answer, its sum, and bytes both ways.
        black_box(env.boot());
        for counter in &counters[1..] {
            counter.inc_by(black_box(20));
        }
    });
}
