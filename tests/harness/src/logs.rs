//! Reading the logs of processes.

use std::path::Path;

/// The last `lines` lines of a file, or why it cannot be read.
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

/// The lines of a log in our binaries' text format that are warnings or errors, and panics.
#[must_use]
pub fn complaints(log: &str) -> Vec<&str> {
    log.lines()
        .filter(|line| {
            // `<time> <LEVEL> <where>: <what>`
            let level = line.split_whitespace().nth(1);
            matches!(level, Some("WARN" | "ERROR")) || line.contains("panicked at ")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_errors_and_panics_are_complaints_and_nothing_else_is() {
        let log = "2026-01-01T00:00:00Z  INFO a: WARN is only a word here\n\
                   2026-01-01T00:00:00Z  WARN a: look\n\
                   2026-01-01T00:00:00Z ERROR a: worse\n\
                   thread 'main' panicked at src/main.rs:1:\n";
        assert_eq!(complaints(log).len(), 3);
    }
}
