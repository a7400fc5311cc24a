//! The names of a subject's objects within its folder.

use std::fmt;
use std::str::FromStr;

use dormouse_protocol::newtype::parse_ulid;
use dormouse_protocol::{Rev, Term, number_newtype, stored_as_text};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// Digits of a manifest's number in object names, so that names sort as numbers do.
const NUMBER_DIGITS: usize = 12;

number_newtype! {
    /// Number of a subject's manifest. The first is 1.
    ManifestNumber, "manifest"
}

impl ManifestNumber {
    /// The number of a subject's first manifest.
    pub const FIRST: Self = Self(1);

    /// The highest number that an object name can hold. No manifest has it, because none could follow.
    pub const LAST: Self = Self(10_u64.pow(NUMBER_DIGITS as u32) - 1);

    pub(super) fn parse(digits: &str) -> Option<Self> {
        let exact = digits.len() == NUMBER_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
        let number = exact.then(|| digits.parse().ok()).flatten()?;
        (number >= Self::FIRST.0).then_some(Self(number))
    }
}

/// Distinguishes an object from every other one that was meant for the same name. Each new object gets a fresh nonce;
/// a retry of the same object keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nonce(Ulid);

impl Nonce {
    /// Wraps a ULID that the caller generated.
    #[must_use]
    pub const fn new(ulid: Ulid) -> Self {
        Self(ulid)
    }

    /// Wraps the 16 bytes from [`Nonce::to_bytes`].
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Ulid::from_bytes(bytes))
    }

    /// Its 16 bytes, as in binary formats.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_bytes()
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that is not a valid object name of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a {0}")]
pub struct InvalidObjectName(&'static str);

impl FromStr for Nonce {
    type Err = InvalidObjectName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_ulid(text).map(Self).ok_or(InvalidObjectName("nonce"))
    }
}

/// Defines the name of an object that leads a subject from its base, or from nothing, to a rev.
macro_rules! base_name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $ending:literal, $(#[$rev_doc:meta])*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name {
            /// The manifest that the object was made for: the first that may refer to it.
            pub made_for: ManifestNumber,
            $(#[$rev_doc])*
            pub rev: Rev,
            /// Makes the name unique: no two uploads share one.
            pub nonce: Nonce,
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{:012}-{}-{}", $ending), self.made_for.0, self.rev.get(), self.nonce)
            }
        }

        impl FromStr for $name {
            type Err = InvalidObjectName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let parse = || {
                    let mut parts = text.strip_suffix($ending)?.splitn(3, '-');
                    let made_for = ManifestNumber::parse(parts.next()?)?;
                    let rev = Rev::new(parts.next()?.parse().ok()?);
                    let nonce = parts.next()?.parse().ok()?;
                    let name = Self { made_for, rev, nonce };
                    // Each name has one text form (no `+7`, no `007`).
                    (name.to_string() == text).then_some(name)
                };
                parse().ok_or(InvalidObjectName($kind))
            }
        }
    };
}

base_name! {
    /// The name of a snapshot within its subject's folder: `<n:012>-<rev>-<nonce>.sqlite3`.
    SnapshotName, "snapshot", ".sqlite3",
    /// The snapshot holds the subject's state at this rev.
}
base_name! {
    /// The name of a delta within its subject's folder: `<n:012>-<rev>-<nonce>.delta`. It holds every entry after the
    /// base before it, up to `rev`.
    DeltaName, "delta", ".delta",
    /// The rev of its last entry.
}

/// The name of a blob within `blobs/` of its subject's folder: `<term>-<ulid>`. Unique for every value, so messages
/// never share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlobName {
    /// The term under which it was written.
    pub term: Term,
    /// Makes the name unique.
    pub nonce: Nonce,
}

impl fmt::Display for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.term.get(), self.nonce)
    }
}

impl FromStr for BlobName {
    type Err = InvalidObjectName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (term, nonce) = text.split_once('-')?;
            let name = Self { term: Term::new(term.parse().ok()?), nonce: nonce.parse().ok()? };
            (name.to_string() == text).then_some(name)
        };
        parse().ok_or(InvalidObjectName("blob"))
    }
}

stored_as_text!(Nonce, SnapshotName, DeltaName, BlobName);
