//! Progress during the run, and the results at the end.

use std::sync::LazyLock;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table};
use dormouse_runtime::Env;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::bucket::Files;
use crate::input::DemoInput;

/// Measures a duration.
pub struct Stopwatch {
    env: Env,
    started: Duration,
}

impl Stopwatch {
    /// Starts the stopwatch.
    pub fn start() -> Self {
        let env = Env::system();
        Self { started: env.boot(), env }
    }

    /// Returns the seconds since the start.
    pub fn seconds(&self) -> f64 {
        (self.env.boot() - self.started).as_secs_f64()
    }
}

/// The progress bars on the terminal.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Prints a line without disturbing the progress bars.
pub fn say(line: &str) {
    BARS.suspend(|| println!("{line}"));
}

/// One step with its bar.
pub struct DemoStep {
    what: String,
    bar: ProgressBar,
    clock: Stopwatch,
}

impl DemoStep {
    /// Starts a step of `total` parts.
    pub fn begin(what: &str, total: usize) -> Self {
        let bar = BARS.add(ProgressBar::new(total as u64).with_message(what.to_owned()));
        // The template is a constant and has been tested.
        if let Ok(style) = ProgressStyle::with_template("  {msg:32} {bar:30} {pos}/{len}") {
            bar.set_style(style);
        }
        Self { what: what.to_owned(), bar, clock: Stopwatch::start() }
    }

    /// Adds finished parts.
    pub fn advance(&self, parts: usize) {
        self.bar.inc(parts as u64);
    }

    /// Ends the step with its result.
    pub fn done(self, result: &str) {
        self.bar.finish_and_clear();
        say(&format!("  ✓ {:32} {result}  ({:.2} s)", self.what, self.clock.seconds()));
    }
}

/// The measurements of the demo.
#[derive(Debug, Default)]
pub struct Report {
    subjects: usize,
    messages: usize,
    bytes: usize,
    /// Duration of the writes, except the last lines of the log.
    pub write_seconds: f64,
    /// Duration of reading that back.
    pub read_seconds: f64,
    /// From the kill to the first acknowledged write.
    pub failover_seconds: f64,
    /// The number of changes that the live watcher received.
    pub watched: usize,
    /// The SQLite files in the bucket.
    pub files: Files,
}

impl Report {
    /// Creates a report for this input.
    pub fn new(input: &DemoInput) -> Self {
        Self {
            subjects: input.stores.len() + 1,
            messages: input.packages() + input.lines.len(),
            bytes: input.bytes(),
            ..Self::default()
        }
    }

    /// Formats the report as a table.
    pub fn table(&self) -> Table {
        let megabytes = |bytes: f64| format!("{:.2} MB", bytes / 1e6);
        let seconds = |seconds: f64| format!("{seconds:.2} s");
        let mut table = Table::new();
        table.load_style(comfy_table::presets::UTF8_BORDERS_ONLY);
        for (what, figure) in [
            ("subjects", self.subjects.to_string()),
            ("messages", self.messages.to_string()),
            ("bytes of values", megabytes(self.bytes as f64)),
            ("written in", seconds(self.write_seconds)),
            ("read back and compared in", seconds(self.read_seconds)),
            ("changes seen live", self.watched.to_string()),
            (
                "SQLite files in the bucket",
                format!("{} ({})", self.files.count, megabytes(self.files.bytes as f64)),
            ),
            ("kill -9 to the next write", seconds(self.failover_seconds)),
        ] {
            table.add_row([Cell::new(what), Cell::new(figure).set_alignment(CellAlignment::Right)]);
        }
        table
    }
}
