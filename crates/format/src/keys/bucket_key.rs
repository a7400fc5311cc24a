//! The names that an object store accepts from Dormouse, and the entries of its listings.

use std::fmt;

/// Longest key, in bytes: the limit of S3 and compatible stores.
const MAX_KEY_BYTES: usize = 1_024;

/// The name of an object: segments joined by `/`, each of them 1 to 255 of `a-z A-Z 0-9 . _ - =` and not only dots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketKey(String);

impl BucketKey {
    /// Checks `text` and converts it to a key.
    ///
    /// # Errors
    /// [`InvalidKey`] if the text breaks a rule stated at [`BucketKey`].
    pub fn new(text: &str) -> Result<Self, InvalidKey> {
        if is_legal_key(text) { Ok(Self(text.to_owned())) } else { Err(InvalidKey::new(text)) }
    }

    /// Wraps a text that `keys` built to the rules.
    pub(super) fn of_legal(text: String) -> Self {
        debug_assert!(is_legal_key(&text), "{text}");
        Self(text)
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BucketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A folder of keys: the part of a key up to and with a `/`, or nothing for the whole bucket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketPrefix(String);

impl BucketPrefix {
    /// The whole bucket.
    pub const ALL: Self = Self(String::new());

    /// Checks `text` and converts it to a prefix: empty, or a key followed by `/`.
    ///
    /// # Errors
    /// [`InvalidKey`] if it is neither.
    pub fn new(text: &str) -> Result<Self, InvalidKey> {
        let legal = text.is_empty() || text.strip_suffix('/').is_some_and(is_legal_key);
        if legal { Ok(Self(text.to_owned())) } else { Err(InvalidKey::new(text)) }
    }

    /// Wraps a text that `keys` built to the rules.
    pub(super) fn of_legal(text: String) -> Self {
        debug_assert!(Self::new(&text).is_ok(), "{text}");
        Self(text)
    }

    /// The prefix as text, with its final `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BucketPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_legal_key(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'=');
    text.len() <= MAX_KEY_BYTES
        && text.split('/').all(|segment| {
            (1..=255).contains(&segment.len())
                && segment.bytes().all(legal)
                && segment.bytes().any(|b| b != b'.')
        })
}

/// A text that is neither a key nor a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a legal name of an object")]
pub struct InvalidKey(String);

impl InvalidKey {
    fn new(text: &str) -> Self {
        // A hostile text may be long, so the error message contains only its beginning.
        Self(text.chars().take(80).collect())
    }
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketEntry {
    /// Its key.
    pub key: BucketKey,
    /// Its size in bytes.
    pub size_bytes: u64,
}
