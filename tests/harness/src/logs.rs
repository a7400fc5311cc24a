//! Reads the logs of processes.

use std::path::Path;

/// Returns the last `lines` lines of a file, or the reason why it cannot be read.
#[must_use]
pub fn tail(file: &Path, lines: usize) -> String {
    match std::fs::read(file) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({} cannot be read: {error})", file.display()),
    }
}

/// Returns the warnings, errors and panics in a log of our binaries' text format.
#[must_use]
pub fn log_problems(log: &str) -> Vec<&str> {
    log.lines()
        .filter(|line| {
            // `<time> <LEVEL> <target>: <message>`
            let level = line.split_whitespace().nth(1);
            matches!(level, Some("WARN" | "ERROR")) || line.contains("panicked at ")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The problems of a log are its warnings, errors and panics, and no other line.
    #[test]
    fn log_problems_are_warnings_errors_and_panics() {
        let log = "2026-01-01T00:00:00Z  INFO a: WARN is only a word here\n\
                   2026-01-01T00:00:00Z  WARN a: look\n\
                   2026-01-01T00:00:00Z ERROR a: worse\n\
                   thread 'main' panicked at src/main.rs:1:\n";
        assert_eq!(log_problems(log).len(), 3);
    }
}
