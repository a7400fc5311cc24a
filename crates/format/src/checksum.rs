//! The checksums of stored data: CRC-64/NVME of whole objects, CRC-32C of their parts.

use std::fmt;
use std::str::FromStr;

use crc_fast::{CrcAlgorithm, Digest};
use dormouse_protocol::newtype::parse_hex;
use dormouse_protocol::stored_as_text;
use serde::{Deserialize, Serialize};

/// A CRC-64/NVME, printed as 16 lower-case hexadecimal digits (JSON numbers hold only 53 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Crc64(u64);

impl Crc64 {
    /// The checksum of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes))
    }

    /// Wraps a number that was read from a checksum field.
    #[must_use]
    pub const fn from_u64(checksum: u64) -> Self {
        Self(checksum)
    }

    /// The bare number.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Crc64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text that is not a [`Crc64`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a checksum is 16 lower-case hexadecimal digits")]
pub struct InvalidCrc64;

impl FromStr for Crc64 {
    type Err = InvalidCrc64;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex(text).map(Self).ok_or(InvalidCrc64)
    }
}

stored_as_text!(Crc64);

/// Computes a [`Crc64`] over bytes that arrive in pieces.
#[derive(Debug)]
pub struct Crc64Digest(Digest);

impl Crc64Digest {
    /// The digest of zero bytes.
    #[must_use]
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64Nvme))
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes so far.
    #[must_use]
    pub fn finish(&self) -> Crc64 {
        Crc64(self.0.finalize())
    }
}

impl Default for Crc64Digest {
    fn default() -> Self {
        Self::new()
    }
}

/// The checksum of frames, headers and other small data: CRC-32C.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    // The algorithm's checksum has 32 bits.
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checksum of the standard check input is the catalogue value of CRC-64/NVME, even when computed in pieces.
    #[test]
    fn checksum_matches_crc64_nvme_check_value() {
        assert_eq!(Crc64::of(b"123456789").to_string(), "ae8b14860a799888");
        let mut digest = Crc64Digest::new();
        digest.update(b"1234");
        digest.update(b"56789");
        assert_eq!(digest.finish(), Crc64::of(b"123456789"));
    }

    /// A checksum parses from sixteen lower-case hex digits only.
    #[test]
    fn checksum_has_one_text_form() {
        assert_eq!("00000000000000ff".parse::<Crc64>().unwrap().to_string(), "00000000000000ff");
        for wrong in ["", "ff", "00000000000000FF", "+0000000000000ff", "000000000000000ff"] {
            assert_eq!(wrong.parse::<Crc64>(), Err(InvalidCrc64), "{wrong}");
        }
    }
}
