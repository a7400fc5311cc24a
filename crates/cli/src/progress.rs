//! How far something long has come: a bar on standard error where a person looks at it, nothing where a program reads.

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::Output;

/// A bar that goes when it is dropped, so that nothing of it stands before what is printed next.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Begins at nothing of `total`. Nothing is shown where results are JSON or standard error is no terminal.
    #[must_use]
    pub fn new(output: &Output, total: u64) -> Self {
        if output.is_json() {
            return Self { bar: ProgressBar::hidden() };
        }
        // A template without unknown words, so it parses.
        let style = ProgressStyle::with_template("{bar:30} {pos} of {len} {wide_msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Self { bar: ProgressBar::new(total).with_style(style) }
    }

    /// Begins at no bytes of `total`; `None`: nobody knows of how many.
    #[must_use]
    pub fn of_bytes(output: &Output, total: Option<u64>) -> Self {
        if output.is_json() {
            return Self { bar: ProgressBar::hidden() };
        }
        let template = match total {
            Some(_) => "{bar:30} {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left",
            None => "{spinner} {binary_bytes}  {binary_bytes_per_sec}",
        };
        // Templates without unknown words, so they parse.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
        Self { bar: bar.with_style(style) }
    }

    /// So many are done.
    pub fn reach(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// What is done, of how much: the total may turn out to be larger than it looked.
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
