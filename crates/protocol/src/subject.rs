//! Subjects: the names of streams and key-value stores, and how they become bucket keys.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::limits::{MAX_ESCAPED_SUBJECT_BYTES, MAX_SUBJECT_BYTES};

/// A subject: one stream or one key-value store, with a NATS-style dotted name such as `app.orders.eu`.
///
/// A subject is one or more non-empty tokens joined by dots, at most [`MAX_SUBJECT_BYTES`] bytes of UTF-8, without
/// white space, control characters or the NATS wildcards `*` and `>`. Such a name is valid without escaping at the end of
/// any [route](crate::route), so NATS permissions can authorize access to subjects.
///
/// Cloning is cheap: the name is shared.
///
/// ```
/// use dormouse_protocol::Subject;
///
/// let subject: Subject = "app.orders.eu".parse()?;
/// assert_eq!(subject.as_str(), "app.orders.eu");
/// assert!("app.*".parse::<Subject>().is_err());
/// # Ok::<(), dormouse_protocol::subject::InvalidSubject>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subject(Arc<str>);

/// The text is not a valid subject.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSubject {
    /// The text is empty.
    #[error("a subject must not be empty")]
    Empty,
    /// The text is longer than [`MAX_SUBJECT_BYTES`].
    #[error("a subject has at most {MAX_SUBJECT_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// Two dots in a row, or a dot at an end.
    #[error("a subject must not have an empty token (two dots in a row, or a dot at an end)")]
    EmptyToken,
    /// A wildcard, white space or a control character.
    #[error("a subject must not contain {0:?}")]
    IllegalCharacter(char),
}

impl Subject {
    /// Validates `name` and creates a subject.
    ///
    /// # Errors
    /// [`InvalidSubject`] if the name violates a rule of [`Subject`].
    pub fn new(name: &str) -> Result<Self, InvalidSubject> {
        if name.is_empty() {
            return Err(InvalidSubject::Empty);
        }
        if name.len() > MAX_SUBJECT_BYTES {
            return Err(InvalidSubject::TooLong(name.len()));
        }
        if let Some(illegal) = name.chars().find(|&c| is_illegal(c)) {
            return Err(InvalidSubject::IllegalCharacter(illegal));
        }
        if name.split('.').any(str::is_empty) {
            return Err(InvalidSubject::EmptyToken);
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The subject's folder name in the bucket and on local disks.
    ///
    /// At most [`MAX_ESCAPED_SUBJECT_BYTES`] bytes from `a-z 0-9 . _ - =`, and distinct for distinct subjects even if file
    /// names ignore case. Lower-case letters, digits, `.`, `_` and `-` are kept; every other byte becomes `=` and two
    /// lower-case hexadecimal digits. A name that would be longer than the limit becomes `=x` and the 64 hexadecimal digits
    /// of its SHA-256; then only the manifest contains the full name.
    ///
    /// ```
    /// use dormouse_protocol::Subject;
    ///
    /// assert_eq!(Subject::new("app.Orders")?.escaped(), "app.=4frders");
    /// # Ok::<(), dormouse_protocol::subject::InvalidSubject>(())
    /// ```
    #[must_use]
    pub fn escaped(&self) -> String {
        let mut escaped = String::with_capacity(self.0.len());
        for &byte in self.0.as_bytes() {
            if is_unescaped(byte) {
                escaped.push(char::from(byte));
            } else {
                escaped.push('=');
                escaped.push_str(&hex::encode([byte]));
            }
        }
        if escaped.len() > MAX_ESCAPED_SUBJECT_BYTES {
            escaped = format!("=x{}", hex::encode(Sha256::digest(self.0.as_bytes())));
        }
        escaped
    }

    /// Decodes a folder name from [`Subject::escaped`].
    ///
    /// # Errors
    /// [`InvalidEscape`] if `escaped()` produces this name for no subject, so that two different folders never belong to one
    /// subject.
    pub fn unescape(escaped: &str) -> Result<Unescaped, InvalidEscape> {
        if let Some(digest) = escaped.strip_prefix("=x") {
            let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            return if digest.len() == 64 && digest.bytes().all(lower_hex) {
                Ok(Unescaped::Hashed)
            } else {
                Err(InvalidEscape)
            };
        }
        let mut bytes = Vec::with_capacity(escaped.len());
        let mut rest = escaped.as_bytes();
        while let Some((&first, tail)) = rest.split_first() {
            if first == b'=' {
                let digits = tail.get(..2).ok_or(InvalidEscape)?;
                bytes.extend(hex::decode(digits).map_err(|_| InvalidEscape)?);
                rest = &tail[2..];
            } else {
                bytes.push(first);
                rest = tail;
            }
        }
        let name = String::from_utf8(bytes).map_err(|_| InvalidEscape)?;
        let subject = Self::new(&name).map_err(|_| InvalidEscape)?;
        // One subject, one folder: only the canonical spelling is accepted.
        if subject.escaped() == escaped { Ok(Unescaped::Subject(subject)) } else { Err(InvalidEscape) }
    }
}

/// The subject of a folder name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unescaped {
    /// The folder of this subject.
    Subject(Subject),
    /// The folder of a subject with a hashed name: the manifest contains the full name.
    Hashed,
}

/// The folder name belongs to no subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the folder name of a subject")]
pub struct InvalidEscape;

fn is_illegal(c: char) -> bool {
    matches!(c, '*' | '>') || c.is_whitespace() || c.is_control()
}

fn is_unescaped(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-')
}

impl FromStr for Subject {
    type Err = InvalidSubject;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

crate::stored_as_text!(Subject);

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subject({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// A subject rejects empty, too long and unsafe names with the reason.
    #[test]
    fn subject_with_hostile_name_is_rejected() {
        use InvalidSubject::{Empty, EmptyToken, IllegalCharacter, TooLong};
        let long = "a".repeat(MAX_SUBJECT_BYTES + 1);
        for (name, why) in [
            ("", Empty),
            (".", EmptyToken),
            ("a..b", EmptyToken),
            (".a", EmptyToken),
            ("a.", EmptyToken),
            ("a.*", IllegalCharacter('*')),
            ("a.b*c", IllegalCharacter('*')),
            (">", IllegalCharacter('>')),
            ("a b", IllegalCharacter(' ')),
            ("a\tb", IllegalCharacter('\t')),
            ("a\r\nPUB x 1", IllegalCharacter('\r')),
            ("a\0b", IllegalCharacter('\0')),
            ("a\u{2028}b", IllegalCharacter('\u{2028}')),
            ("a\u{85}b", IllegalCharacter('\u{85}')),
            (&long, TooLong(MAX_SUBJECT_BYTES + 1)),
        ] {
            assert_eq!(Subject::new(name), Err(why), "{name:?}");
        }
    }

    /// The escaped name distinguishes upper from lower case and has a bounded length.
    #[test]
    fn subject_escape_keeps_case_and_bounds_length() {
        let lower = Subject::new("app.orders").unwrap();
        let upper = Subject::new("app.Orders").unwrap();
        assert_eq!(lower.escaped(), "app.orders");
        assert_eq!(upper.escaped(), "app.=4frders");
        let long = Subject::new(&"Z".repeat(MAX_SUBJECT_BYTES)).unwrap();
        assert!(long.escaped().len() <= MAX_ESCAPED_SUBJECT_BYTES);
        assert_eq!(Subject::unescape(&long.escaped()), Ok(Unescaped::Hashed));
    }

    /// A folder name is unescaped only if it is canonical.
    #[test]
    fn subject_unescape_rejects_noncanonical_folder_names() {
        for name in ["", "A", "=4F", "=4", "=", "=61", "a..b", "=x12", "=2a", "caf\u{e9}", "../etc"] {
            assert_eq!(Subject::unescape(name), Err(InvalidEscape), "{name:?}");
        }
    }

    proptest! {
        /// Any text is either an invalid subject or round-trips through its folder name, if that is not hashed.
        #[test]
        fn subject_is_rejected_or_round_trips_as_folder_name(name in "\\PC{0,40}(\\.\\PC{1,20}){0,3}") {
            if let Ok(subject) = Subject::new(&name) {
                let escaped = subject.escaped();
                prop_assert!(escaped.len() <= MAX_ESCAPED_SUBJECT_BYTES);
                prop_assert!(escaped.bytes().all(|b| is_unescaped(b) || b == b'='));
                match Subject::unescape(&escaped) {
                    Ok(Unescaped::Subject(back)) => prop_assert_eq!(back, subject),
                    Ok(Unescaped::Hashed) => prop_assert!(name.len() > 60),
                    Err(error) => prop_assert!(false, "{error}"),
                }
            }
        }

        /// Distinct subjects have distinct folder names, even if the file system ignores case.
        #[test]
        fn subjects_distinct_have_distinct_folders(names in proptest::collection::vec("[aA=xX4f.é-]{1,9}", 2..40)) {
            let mut folders: HashMap<String, Subject> = HashMap::new();
            for subject in names.iter().filter_map(|name| Subject::new(name).ok()) {
                // The folder name holds no upper-case letter, so folding case changes nothing.
                let folder = subject.escaped().to_lowercase();
                let holder = folders.entry(folder).or_insert_with(|| subject.clone());
                prop_assert_eq!(&*holder, &subject);
            }
        }

        /// Unescaping never panics on arbitrary text.
        #[test]
        fn subject_unescape_never_panics(name in any::<String>()) {
            let _ = Subject::unescape(&name);
        }
    }
}
