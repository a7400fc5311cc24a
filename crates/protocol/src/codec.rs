//! MessagePack in and out.
//!
//! Everything on the wire is one MessagePack map with named fields. Unknown fields are ignored and missing ones
//! take their default, so that old and new parties understand each other. Anything that is not exactly one value
//! of the expected type is refused.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::ErrorReply;
use crate::limits::MAX_NESTING;

/// The version of the protocol that a request is written in.
///
/// Every request carries it in the field `v`; a request without one is of version 1. Within a version fields are
/// only ever added. A request of a newer version is refused with `unsupported_version`, never guessed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProtocolVersion(u32);

impl ProtocolVersion {
    /// The version this crate speaks.
    pub const CURRENT: Self = Self(1);

    /// Wraps a version number.
    #[must_use]
    pub const fn new(version: u32) -> Self {
        Self(version)
    }

    /// The bare number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A request that states no version is of the first one.
impl Default for ProtocolVersion {
    fn default() -> Self {
        Self(1)
    }
}

/// A value could not be written as MessagePack.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode as MessagePack")]
pub struct EncodeError(#[from] rmp_serde::encode::Error);

/// Bytes that are not exactly one MessagePack value of the expected type.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not MessagePack, cut short, or of another shape.
    #[error("not a valid message: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// A valid value, followed by more bytes.
    #[error("{0} bytes follow the message")]
    TrailingBytes(usize),
}

/// Writes `value` as one MessagePack map with named fields.
///
/// # Errors
/// [`EncodeError`] when the value cannot be represented. No type of this crate is such a value; a caller's own
/// type may be.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, EncodeError> {
    Ok(Bytes::from(rmp_serde::to_vec_named(value)?))
}

/// Reads exactly one value of type `T`.
///
/// # Errors
/// [`DecodeError`] when the bytes are anything else. Memory stays in proportion to the input, whatever lengths it
/// declares.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let mut rest = bytes;
    let mut deserializer = rmp_serde::Deserializer::new(&mut rest);
    deserializer.set_max_depth(MAX_NESTING);
    let value = T::deserialize(&mut deserializer)?;
    if rest.is_empty() { Ok(value) } else { Err(DecodeError::TrailingBytes(rest.len())) }
}

/// Reads a request and checks its protocol version, with the error a server answers.
///
/// # Errors
/// `unsupported_version` when the request is of a newer version, even if the rest of it makes no sense to us;
/// `bad_request` when it is no valid request of ours.
pub fn decode_request<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ErrorReply> {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(default)]
        v: ProtocolVersion,
    }
    let envelope: Envelope = decode(bytes).map_err(|error| ErrorReply::bad_request(error.to_string()))?;
    if envelope.v > ProtocolVersion::CURRENT {
        return Err(ErrorReply::unsupported_version(envelope.v));
    }
    decode(bytes).map_err(|error| ErrorReply::bad_request(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::{GetRequest, SetRequest};
    use crate::error::ErrorCode;

    #[test]
    fn whatever_is_not_exactly_one_message_is_refused() {
        let good = encode(&GetRequest::key("k")).unwrap();
        assert!(decode::<GetRequest>(&good).is_ok());
        for cut in 0..good.len() {
            assert!(decode::<GetRequest>(&good[..cut]).is_err(), "cut at {cut}");
        }
        let mut long = good.to_vec();
        long.push(0xc0);
        assert!(matches!(decode::<GetRequest>(&long), Err(DecodeError::TrailingBytes(1))));
    }

    #[test]
    fn declared_lengths_and_nesting_cost_nothing() {
        // A map of 2³²−1 entries, a string of 4 GiB, and 100,000 nested arrays.
        for hostile in
            [vec![0xdf, 0xff, 0xff, 0xff, 0xff], vec![0xdb, 0xff, 0xff, 0xff, 0xff], vec![0x91; 100_000]]
        {
            assert_eq!(decode_request::<SetRequest>(&hostile).unwrap_err().code, ErrorCode::BadRequest);
        }
    }

    #[test]
    fn a_newer_version_is_named_even_when_the_rest_is_strange() {
        #[derive(Serialize)]
        struct Future {
            v: u32,
            sets: &'static str,
        }
        let bytes = encode(&Future { v: 2, sets: "no longer a list" }).unwrap();
        let error = decode_request::<SetRequest>(&bytes).unwrap_err();
        assert_eq!(error.code, ErrorCode::UnsupportedVersion);
        assert_eq!(error.supported_version, Some(ProtocolVersion::CURRENT));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_request::<SetRequest>(&bytes);
        }
    }
}
