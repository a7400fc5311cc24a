//! Progress while it runs, and the figures at the end.

use std::sync::LazyLock;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table};
use dormouse_runtime::Env;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::bucket::Files;
use crate::input::Input;

/// Measures how long something takes.
pub struct Stopwatch {
    env: Env,
    started: Duration,
}

impl Stopwatch {
    /// Starts.
    pub fn start() -> Self {
        let env = Env::system();
        Self { started: env.boot(), env }
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        (self.env.boot() - self.started).as_secs_f64()
    }
}

/// The bars on the terminal, between which lines can be said.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Says a line, whatever bars are being drawn.
pub fn say(line: &str) {
    BARS.suspend(|| println!("{line}"));
}

/// One step with its bar.
pub struct Step {
    what: String,
    bar: ProgressBar,
    clock: Stopwatch,
}

impl Step {
    /// Begins a step of `total` parts.
    pub fn begin(what: &str, total: usize) -> Self {
        let bar = BARS.add(ProgressBar::new(total as u64).with_message(what.to_owned()));
        // The template is a constant that was tried.
        if let Ok(style) = ProgressStyle::with_template("  {msg:32} {bar:30} {pos}/{len}") {
            bar.set_style(style);
        }
        Self { what: what.to_owned(), bar, clock: Stopwatch::start() }
    }

    /// So many parts more are done.
    pub fn advance(&self, parts: usize) {
        self.bar.inc(parts as u64);
    }

    /// Ends the step, with what it showed.
    pub fn done(self, result: &str) {
        self.bar.finish_and_clear();
        say(&format!("  ✓ {:32} {result}  ({:.2} s)", self.what, self.clock.seconds()));
    }
}

/// What the demo measured.
#[derive(Debug, Default)]
pub struct Report {
    subjects: usize,
    messages: usize,
    bytes: usize,
    /// Writing everything but the last lines of the log.
    pub write_seconds: f64,
    /// Reading that back.
    pub read_seconds: f64,
    /// From the kill to the first acknowledged write.
    pub failover_seconds: f64,
    /// How many changes the live watcher saw.
    pub watched: usize,
    /// The SQLite files in the bucket.
    pub files: Files,
}

impl Report {
    /// A report on this input.
    pub fn new(input: &Input) -> Self {
        Self {
            subjects: input.stores.len() + 1,
            messages: input.packages() + input.lines.len(),
            bytes: input.bytes(),
            ..Self::default()
        }
    }

    /// For people.
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
