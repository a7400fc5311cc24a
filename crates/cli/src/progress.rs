//! Progress of long operations: a bar on standard error if it is a terminal, nothing for programs.

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::Output;

/// A progress bar. A drop removes it, so it does not mix with later output.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar at 0 of `total`. It is hidden if results are JSON or standard error is no terminal.
    #[must_use]
    pub fn new(output: &Output, total: u64) -> Self {
        if output.is_json() {
            return Self { bar: ProgressBar::hidden() };
        }
        // The template has only known keys, so it parses.
        let style = ProgressStyle::with_template("{bar:30} {pos} of {len} {wide_msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Self { bar: ProgressBar::new(total).with_style(style) }
    }

    /// A bar at 0 bytes of `total`; `None`: the total is unknown.
    #[must_use]
    pub fn of_bytes(output: &Output, total: Option<u64>) -> Self {
        if output.is_json() {
            return Self { bar: ProgressBar::hidden() };
        }
        let template = match total {
            Some(_) => "{bar:30} {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left",
            None => "{spinner} {binary_bytes}  {binary_bytes_per_sec}",
        };
        // The templates have only known keys, so they parse.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
        Self { bar: bar.with_style(style) }
    }

    /// Sets the completed amount.
    pub fn reach(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Sets the completed amount and the total, which may grow.
    pub fn show(&self, done: u64, total: u64, what: String) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(what);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
