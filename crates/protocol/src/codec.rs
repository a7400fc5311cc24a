//! MessagePack encoding and decoding.
//!
//! Each message on the wire is one MessagePack map with named fields. Unknown fields are ignored and missing fields have
//! their defaults, so that old and new versions are compatible. Input that is not exactly one value of the expected type is
//! rejected.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::ErrorReply;
use crate::limits::{MAX_ITEMS_PER_REQUEST, MAX_NESTING};
use crate::version::ProtocolVersion;

/// A value cannot be encoded as MessagePack.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode as MessagePack")]
pub struct EncodeError(#[from] rmp_serde::encode::Error);

/// The bytes are not exactly one MessagePack value of the expected type.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not MessagePack, truncated, or of another structure.
    #[error("not a valid message: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// A valid value, followed by more bytes.
    #[error("{0} bytes follow the message")]
    TrailingBytes(usize),
}

/// Encodes `value` as one MessagePack map with named fields.
///
/// # Errors
/// [`EncodeError`] if the value cannot be represented. This never happens for the types of this crate, but may happen for a
/// caller's own type.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, EncodeError> {
    Ok(Bytes::from(rmp_serde::to_vec_named(value)?))
}

/// Decodes exactly one value of type `T`.
///
/// # Errors
/// [`DecodeError`] if the bytes are anything else. Memory use is in proportion to the input, regardless of the declared
/// lengths.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let mut rest = bytes;
    let mut deserializer = rmp_serde::Deserializer::new(&mut rest);
    deserializer.set_max_depth(MAX_NESTING);
    let value = T::deserialize(&mut deserializer)?;
    if rest.is_empty() { Ok(value) } else { Err(DecodeError::TrailingBytes(rest.len())) }
}

/// A message with a protocol version.
pub trait Versioned {
    /// The version in its field `v`.
    fn version(&self) -> ProtocolVersion;
}

/// Implements [`Versioned`] for request types with a field `v`.
macro_rules! versioned {
    ($($request:ty),* $(,)?) => {
        $(impl $crate::codec::Versioned for $request {
            fn version(&self) -> $crate::version::ProtocolVersion {
                self.v
            }
        })*
    };
}
pub(crate) use versioned;

/// Decodes a request and checks its protocol version. The error is the reply to the sender.
///
/// # Errors
/// `unsupported_version` if the request has a newer version, even if its other fields cannot be decoded; `bad_request` if
/// it is not a valid request.
pub fn decode_request<T: DeserializeOwned + Versioned>(bytes: &[u8]) -> Result<T, ErrorReply> {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(default)]
        v: ProtocolVersion,
    }
    let newer = |version| version > ProtocolVersion::CURRENT;
    match decode::<T>(bytes) {
        Ok(request) if newer(request.version()) => Err(ErrorReply::unsupported_version(request.version())),
        Ok(request) => Ok(request),
        // Only a request that does not decode is decoded a second time: it may have a newer version.
        Err(error) => Err(match decode::<Envelope>(bytes) {
            Ok(envelope) if newer(envelope.v) => ErrorReply::unsupported_version(envelope.v),
            _ => ErrorReply::bad_request(error.to_string()),
        }),
    }
}

/// A list of at most [`MAX_ITEMS_PER_REQUEST`] items; `nil` is the empty list. The limit applies during decoding, because an
/// item may take one byte on the wire and hundreds in memory.
struct Items<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Items<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemsVisitor(PhantomData)).map(Self)
    }
}

struct ItemsVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ItemsVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX_ITEMS_PER_REQUEST} items")
    }

    fn visit_unit<E>(self) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::with_capacity(list.size_hint().unwrap_or(0).min(64));
        while let Some(item) = list.next_element()? {
            if items.len() == MAX_ITEMS_PER_REQUEST {
                return Err(serde::de::Error::invalid_length(items.len() + 1, &self));
            }
            items.push(item);
        }
        Ok(items)
    }
}

/// Deserializes a field that is a list of items: see [`Items`].
pub(crate) fn items<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Items::deserialize(deserializer)?.0)
}

/// As [`items`], for a list that may be absent.
pub(crate) fn optional_items<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    Ok(Option::<Items<T>>::deserialize(deserializer)?.map(|items| items.0))
}

/// Deserializes a field whose `nil` means the same as its absence.
pub(crate) fn nil_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::{ConfigureRequest, DeleteRequest, GetRequest, SetItem, SetRequest};
    use crate::error::ErrorCode;
    use crate::ids::Seq;

    /// The codec rejects truncated messages and trailing bytes.
    #[test]
    fn codec_rejects_truncated_and_trailing_bytes() {
        let good = encode(&GetRequest::key("k")).unwrap();
        assert!(decode::<GetRequest>(&good).is_ok());
        for cut in 0..good.len() {
            assert!(decode::<GetRequest>(&good[..cut]).is_err(), "cut at {cut}");
        }
        let mut long = good.to_vec();
        long.push(0xc0);
        assert!(matches!(decode::<GetRequest>(&long), Err(DecodeError::TrailingBytes(1))));
    }

    /// The codec rejects huge declared lengths and deep nesting as `bad_request`.
    #[test]
    fn codec_rejects_huge_lengths_and_deep_nesting() {
        // A map of 2³²−1 entries, a string of 4 GiB, and 100,000 nested arrays.
        for hostile in
            [vec![0xdf, 0xff, 0xff, 0xff, 0xff], vec![0xdb, 0xff, 0xff, 0xff, 0xff], vec![0x91; 100_000]]
        {
            assert_eq!(decode_request::<SetRequest>(&hostile).unwrap_err().code, ErrorCode::BadRequest);
        }
    }

    /// The codec reports `unsupported_version` for a newer version even if the other fields have another format.
    #[test]
    fn codec_reports_newer_version_despite_unknown_format() {
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

    /// The codec rejects a list with more items than the limit.
    #[test]
    fn codec_bounds_list_length_while_decoding() {
        // An array of `count` empty maps: a byte each.
        let request = |count: usize| {
            let mut bytes = vec![0x81, 0xa4, b's', b'e', b't', b's', 0xdd];
            bytes.extend(u32::try_from(count).unwrap().to_be_bytes());
            bytes.resize(bytes.len() + count, 0x80);
            bytes
        };
        let most = decode_request::<SetRequest>(&request(MAX_ITEMS_PER_REQUEST)).unwrap();
        assert_eq!(most.sets.len(), MAX_ITEMS_PER_REQUEST);
        let error = decode_request::<SetRequest>(&request(MAX_ITEMS_PER_REQUEST + 1)).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert!(error.message.contains("at most 10000 items"), "{error}");
        let seqs = |count| GetRequest { seqs: Some(vec![Seq::new(1); count]), ..GetRequest::default() };
        let get = |count| decode_request::<GetRequest>(&encode(&seqs(count)).unwrap());
        assert_eq!(get(MAX_ITEMS_PER_REQUEST).unwrap(), seqs(MAX_ITEMS_PER_REQUEST));
        assert_eq!(get(MAX_ITEMS_PER_REQUEST + 1).unwrap_err().code, ErrorCode::BadRequest);
    }

    /// The codec treats nil as an absent field.
    #[test]
    fn codec_treats_nil_as_absent() {
        let nil = serde_json::Value::Null;
        let set = serde_json::json!({"sets": [{"key": nil, "value": nil, "headers": nil, "expect": nil}]});
        let request: SetRequest = decode(&encode(&set).unwrap()).unwrap();
        assert_eq!(request.sets, [SetItem::default()]);
        let configure = serde_json::json!({"request": nil, "config": {"level": nil, "metadata": nil}});
        assert_eq!(
            decode::<ConfigureRequest>(&encode(&configure).unwrap()).unwrap(),
            ConfigureRequest::default()
        );
        let delete = serde_json::json!({"seqs": nil, "keys": nil});
        assert_eq!(decode::<DeleteRequest>(&encode(&delete).unwrap()).unwrap(), DeleteRequest::default());
        let get = serde_json::json!({"keys": nil, "seqs": nil});
        assert_eq!(decode::<GetRequest>(&encode(&get).unwrap()).unwrap(), GetRequest::default());
    }

    proptest! {
        /// The request decoder never panics on arbitrary bytes.
        #[test]
        fn codec_never_panics_on_garbage(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_request::<SetRequest>(&bytes);
        }
    }
}
