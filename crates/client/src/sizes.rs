//! How many items fit in one request.

use bytes::Bytes;
use dormouse_protocol::data::{DeleteRequest, SetItem};
use dormouse_protocol::limits::MAX_ITEMS_PER_REQUEST;

/// The size of one set's field names and numbers, and the framing of one header: upper bounds.
const SET_OVERHEAD_BYTES: usize = 192;
const HEADER_OVERHEAD_BYTES: usize = 12;
const KEY_OVERHEAD_BYTES: usize = 5;
/// The largest size of a seq in a list.
const SEQ_BYTES: usize = 9;

/// The space in one request.
#[derive(Debug)]
pub(crate) struct RequestSpace {
    max_items: usize,
    budget_bytes: usize,
    items: usize,
    used_bytes: usize,
}

impl RequestSpace {
    /// An empty request for at most `max_items` of at most `budget_bytes`.
    pub(crate) const fn new(max_items: usize, budget_bytes: usize) -> Self {
        Self { max_items, budget_bytes, items: 0, used_bytes: 0 }
    }

    /// Whether no item was added.
    pub(crate) const fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Adds an item if it fits, and returns whether it did. The first item is accepted at any size: otherwise it
    /// could never be sent.
    pub(crate) const fn add(&mut self, size_bytes: usize) -> bool {
        let fits = self.items < self.max_items && self.used_bytes + size_bytes <= self.budget_bytes;
        if !self.is_empty() && !fits {
            return false;
        }
        self.items += 1;
        self.used_bytes += size_bytes;
        true
    }
}

/// Takes as many items as fit in one request, and at least one.
pub(crate) fn fill<T>(
    items: &mut std::iter::Peekable<std::vec::IntoIter<T>>,
    budget_bytes: usize,
    size_bytes: impl Fn(&T) -> usize,
) -> Vec<T> {
    let mut space = RequestSpace::new(MAX_ITEMS_PER_REQUEST, budget_bytes);
    std::iter::from_fn(|| items.next_if(|next| space.add(size_bytes(next)))).collect()
}

/// The size of a key in a list, in bytes.
pub(crate) const fn key_size(key: &str) -> usize {
    key.len() + KEY_OVERHEAD_BYTES
}

/// The size of the keys and seqs to delete, in bytes: an upper bound.
pub(crate) fn delete_size(request: &DeleteRequest) -> usize {
    request.keys.iter().map(|key| key_size(key)).sum::<usize>() + request.seqs.len() * SEQ_BYTES
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
