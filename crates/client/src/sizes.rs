//! How many items fit in one request.

use bytes::Bytes;
use dormouse_protocol::data::SetItem;
use dormouse_protocol::limits::MAX_ITEMS_PER_REQUEST;

/// The size of one set's field names and numbers, and the framing of one header: upper bounds.
const SET_OVERHEAD_BYTES: usize = 192;
const HEADER_OVERHEAD_BYTES: usize = 12;
const KEY_OVERHEAD_BYTES: usize = 5;

/// Takes as many items as fit in one request, and at least one.
pub(crate) fn fill<T>(
    items: &mut std::iter::Peekable<std::vec::IntoIter<T>>,
    budget: usize,
    size: impl Fn(&T) -> usize,
) -> Vec<T> {
    let mut taken: Vec<T> = items.next().into_iter().collect();
    let mut used: usize = taken.iter().map(&size).sum();
    while taken.len() < MAX_ITEMS_PER_REQUEST
        && let Some(next) = items.next_if(|next| used + size(next) <= budget)
    {
        used += size(&next);
        taken.push(next);
    }
    taken
}

/// The size of a key in a list, in bytes.
pub(crate) const fn key_size(key: &str) -> usize {
    key.len() + KEY_OVERHEAD_BYTES
}

/// The size of a set in a request, in bytes: an upper bound.
pub(crate) fn set_size(item: &SetItem) -> usize {
    item.key.as_ref().map_or(0, String::len)
        + item.value.as_ref().map_or(0, Bytes::len)
        + item.headers.size_bytes()
        + item.headers.0.len() * HEADER_OVERHEAD_BYTES
        + SET_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request takes items up to the size limit, and at least one.
    #[test]
    fn request_fill_respects_size_limit_and_is_never_empty() {
        let mut sizes = vec![50_usize, 40, 20, 500, 1].into_iter().peekable();
        let mut requests = Vec::new();
        while sizes.peek().is_some() {
            requests.push(fill(&mut sizes, 100, |size| *size));
        }
        assert_eq!(requests, [vec![50, 40], vec![20], vec![500], vec![1]]);
    }

    /// The estimated size of a set is at least its encoded size.
    #[test]
    fn set_size_estimate_covers_encoded_size() {
        let item = crate::NewMessage::new(vec![0; 300])
            .header("n", "v")
            .header("name", "x".repeat(300))
            .seq(dormouse_protocol::Seq::new(u64::MAX))
            .timestamp(dormouse_protocol::Timestamp::from_micros(u64::MAX))
            .expect_key(Some(dormouse_protocol::MessageId {
                term: dormouse_protocol::Term::new(u64::MAX),
                seq: dormouse_protocol::Seq::new(u64::MAX),
            }))
            .into_item(Some("k".repeat(300)));
        let estimated = set_size(&item);
        assert!(dormouse_protocol::encode(&item).unwrap().len() <= estimated);
    }
}
