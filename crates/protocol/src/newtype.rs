//! The common parts of the newtypes of numbers and texts, here and in the stored formats.

use ulid::Ulid;

/// Defines a newtype of `u64` that counts something, such as a seq or a slot. It prints with its word: `seq 7`.
///
/// The calling crate needs `serde`.
#[macro_export]
macro_rules! number_newtype {
    ($(#[$attribute:meta])* $name:ident, $word:literal) => {
        $(#[$attribute])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ::serde::Serialize, ::serde::Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps the number.
            #[must_use]
            pub const fn new(number: u64) -> Self {
                Self(number)
            }

            /// The bare number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The next number (saturating: the end of the range is never reached in practice).
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                ::std::write!(f, ::std::concat!($word, " {}"), self.0)
            }
        }
    };
}

/// The conversions for `#[serde(try_from = "String", into = "String")]` of types whose stored form is their text: from
/// it with `FromStr`, into it with `Display`.
#[macro_export]
macro_rules! stored_as_text {
    ($($name:ty),+ $(,)?) => {
        $(
            impl ::std::convert::TryFrom<::std::string::String> for $name {
                type Error = <$name as ::std::str::FromStr>::Err;

                fn try_from(text: ::std::string::String) -> ::std::result::Result<Self, Self::Error> {
                    text.parse()
                }
            }

            impl ::std::convert::From<$name> for ::std::string::String {
                fn from(value: $name) -> Self {
                    ::std::string::ToString::to_string(&value)
                }
            }
        )+
    };
}

/// Reads a ULID in its canonical text, in upper case. ULIDs ignore case, names of objects and folders do not: each id has
/// one text.
#[must_use]
pub fn parse_ulid(text: &str) -> Option<Ulid> {
    Ulid::from_string(text).ok().filter(|ulid| ulid.to_string() == text)
}

/// Reads exactly 16 lower-case hexadecimal digits.
#[must_use]
pub fn parse_hex(text: &str) -> Option<u64> {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let exact = text.len() == 16 && text.bytes().all(lower_hex);
    exact.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}
