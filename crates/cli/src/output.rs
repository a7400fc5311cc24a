//! Output of results, as text or JSON.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::{Arc, MutexGuard};

use comfy_table::{ContentArrangement, Table, presets};
use dormouse_runtime::Lock;
use serde::Serialize;
use serde_json::json;

use crate::error::{Failure, FailureKind};

/// Standard output, or its replacement in a test. Clones share it. Writes are buffered; see [`flush`](Self::flush).
#[derive(Clone)]
pub struct Output {
    json: bool,
    terminal: bool,
    out: Arc<Lock<dyn Write + Send>>,
}

impl Output {
    /// The process's standard output.
    #[must_use]
    pub fn standard(json: bool) -> Self {
        let out = io::stdout();
        Self { json, terminal: out.is_terminal(), out: Arc::new(Lock::new(BufWriter::new(out))) }
    }

    /// An output that writes to `out`.
    #[cfg(test)]
    pub fn to(json: bool, out: Arc<Lock<Vec<u8>>>) -> Self {
        Self { json, terminal: false, out }
    }

    /// Whether results are printed as JSON.
    #[must_use]
    pub const fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a result as one line of JSON.
    ///
    /// # Errors
    /// [`Failure`] if the output cannot be written.
    pub fn json(&self, result: &impl Serialize) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(result).map_err(|error| Failure::new(error.to_string()))?;
        line.push(b'\n');
        self.bytes(&line)
    }

    /// Prints the bytes of a result unchanged.
    ///
    /// # Errors
    /// [`Failure`] if the output cannot be written.
    pub fn text(&self, text: &str) -> Result<(), Failure> {
        self.bytes(text.as_bytes())?;
        self.flush()
    }

    /// Prints a line.
    ///
    /// # Errors
    /// [`Failure`] if the output cannot be written.
    pub fn line(&self, line: impl Display) -> Result<(), Failure> {
        self.bytes(format!("{line}\n").as_bytes())
    }

    /// Prints a text from outside as a line. The text is unchanged for a program, and without control sequences on a
    /// terminal.
    ///
    /// # Errors
    /// [`Failure`] if the output cannot be written.
    pub fn text_line(&self, text: &str) -> Result<(), Failure> {
        if self.terminal { self.line(printable(text, usize::MAX)) } else { self.line(text) }
    }

    /// Prints a table, without titles if `header` is empty.
    ///
    /// # Errors
    /// [`Failure`] if the output cannot be written.
    pub fn table(&self, header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<(), Failure> {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
        if !header.is_empty() {
            table.set_header(header.iter().copied());
        }
        for row in rows {
            table.add_row(row);
        }
        self.line(table)
    }

    /// Prints the bytes of a value. On a terminal a line break follows if the value has none, so the prompt is on its
    /// own line.
    ///
    /// # Errors
    /// [`Failure`] if the output cannot be written.
    pub fn value(&self, value: &[u8]) -> Result<(), Failure> {
        self.bytes(value)?;
        if self.terminal && !value.ends_with(b"\n") { self.bytes(b"\n") } else { Ok(()) }
    }

    /// Writes the buffered output.
    ///
    /// # Errors
    /// [`Failure`] if the output cannot be written.
    pub fn flush(&self) -> Result<(), Failure> {
        self.lock().flush().map_err(unwritable)
    }

    /// Prints a note, which is no result, on standard error.
    pub fn info_line(&self, text: &str) {
        // A closed standard error is no reason to stop.
        let _ = writeln!(io::stderr(), "{}", self.note_line(text));
    }

    fn note_line(&self, text: &str) -> String {
        if self.json { json!({ "note": text }).to_string() } else { format!("dormouse: {text}") }
    }

    fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        self.lock().write_all(bytes).map_err(unwritable)
    }

    fn lock(&self) -> MutexGuard<'_, dyn Write + Send + 'static> {
        // A partial line after a panic is still valid output.
        self.out.lock()
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("json", &self.json).finish_non_exhaustive()
    }
}

#[expect(clippy::needless_pass_by_value)] // The signature that `map_err` needs.
fn unwritable(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Failure::of(FailureKind::BrokenPipe, "the output pipe is closed")
    } else {
        Failure::new(format!("cannot write the output: {error}"))
    }
}

/// Prints the failure of a command on standard error: one line, or a JSON document.
pub fn report(failure: &Failure, json: bool) {
    if failure.kind() == FailureKind::BrokenPipe {
        return;
    }
    let line = if json { failure.json().to_string() } else { format!("dormouse: {failure}") };
    let _ = writeln!(io::stderr(), "{line}");
}

/// A text from outside, safe for a terminal: control characters are escaped, and the text is cut after `limit`
/// characters.
#[must_use]
pub fn printable(text: &str, limit: usize) -> String {
    let mut shown = String::new();
    for (position, character) in text.chars().enumerate() {
        if position == limit {
            shown.push('…');
            break;
        }
        if character.is_control() || is_bidirectional(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Characters that change the display order of other characters in a terminal.
fn is_bidirectional(character: char) -> bool {
    matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Bytes as standard base64 with padding (RFC 4648).
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for position in 0..4 {
            if position <= chunk.len() {
                let index = (bits >> (18 - 6 * position)) & 0x3f;
                text.push(char::from(ALPHABET[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The base64 encoding matches the test vectors of RFC 4648.
    #[test]
    fn base64_matches_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xef, 0xbe]), "/+++");
    }

    /// Control and bidirectional characters are escaped for a terminal, and long text is cut.
    #[test]
    fn terminal_text_escapes_control_characters() {
        assert_eq!(printable("a\u{1b}[2Jb\n", 60), "a\\u{1b}[2Jb\\n");
        assert_eq!(printable("käse\u{202e}x", 60), "käse\\u{202e}x");
        assert_eq!(printable("abcdef", 3), "abc…");
        assert_eq!(printable("abc", 3), "abc");
    }

    /// A key is printed unchanged to a program and escaped on a terminal.
    #[test]
    fn key_output_is_escaped_only_on_terminal() {
        let printed = |terminal| {
            let out = Arc::new(Lock::new(Vec::new()));
            let output = Output { json: false, terminal, out: out.clone() };
            output.text_line("a\u{1b}[2J").unwrap();
            String::from_utf8(out.lock().clone()).unwrap()
        };
        assert_eq!(printed(false), "a\u{1b}[2J\n");
        assert_eq!(printed(true), "a\\u{1b}[2J\n");
    }

    /// Notes are JSON if the output is JSON, and plain text otherwise.
    #[test]
    fn notes_are_json_in_json_mode() {
        let note = |json| Output::to(json, Arc::default()).note_line("watching app.s");
        assert_eq!(note(true), r#"{"note":"watching app.s"}"#);
        assert_eq!(note(false), "dormouse: watching app.s");
    }

    /// A broken output pipe has its own failure kind and exit code 0.
    #[test]
    fn output_broken_pipe_exits_0() {
        struct ClosedPipe;
        impl Write for ClosedPipe {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let output = Output { json: false, terminal: false, out: Arc::new(Lock::new(ClosedPipe)) };
        let failure = output.line("x").unwrap_err();
        assert_eq!((failure.kind(), failure.kind().exit_code()), (FailureKind::BrokenPipe, 0));
    }
}
