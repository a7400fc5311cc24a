//! The sets of a subject's handle.

use std::time::Duration;

use dormouse_protocol::data::{SetItem, SetResult};

use super::ack::{AckFuture, sender_gone};
use super::queue::{Batching, QueuedSet};
use super::scheduler::SetsOutcome;
use crate::error::Error;
use crate::sizes::{fill, set_size};
use crate::subject::Handle;

impl Handle {
    /// Queues one set of any size before it returns.
    pub(crate) fn set(&self, item: SetItem) -> AckFuture {
        let batching =
            if item.value.is_none() || self.fits(&item) { Batching::Shared } else { Batching::Large };
        match self.inner.queue(&self.subject, self.entry(vec![item], batching)) {
            Ok(outcome) => AckFuture::new(outcome),
            Err(error) => AckFuture::rejected(error),
        }
    }

    /// Queues a batch of sets before it returns.
    pub(crate) fn set_together(
        &self,
        sets: Vec<SetItem>,
        batching: Batching,
    ) -> impl Future<Output = SetsOutcome> + Send + use<> {
        let queued = self.inner.queue(&self.subject, self.entry(sets, batching));
        async { queued?.await.unwrap_or_else(|_| Err(sender_gone())) }
    }

    fn entry(&self, sets: Vec<SetItem>, batching: Batching) -> QueuedSet<()> {
        let size_bytes = sets.iter().map(set_size).sum();
        let expires_at = Duration::MAX; // Set when it is queued.
        QueuedSet {
            sets,
            batching,
            level: self.level,
            deadline: self.deadline,
            expires_at,
            size_bytes,
            ticket: (),
        }
    }

    /// Writes many messages in as few requests as possible, one request after the other, in order.
    pub(crate) async fn set_all(&self, items: Vec<SetItem>) -> Vec<Result<SetResult, Error>> {
        let mut results = Vec::with_capacity(items.len());
        let mut items = items.into_iter().peekable();
        // The parts of a request that was too large, to be sent before the rest of `items`.
        let mut cut_off: Vec<Vec<SetItem>> = Vec::new();
        loop {
            let mut sets =
                cut_off.pop().unwrap_or_else(|| fill(&mut items, self.inner.budget_bytes(), set_size));
            let asked = sets.len();
            if asked == 0 {
                return results;
            }
            match self.set_together(sets.clone(), Batching::Alone).await {
                Ok(outcomes) => results.extend(outcomes),
                // The server's size limit is smaller than the announced one.
                Err(Error::TooLarge { .. }) if asked > 1 => {
                    let second_half = sets.split_off(asked / 2);
                    cut_off.extend([second_half, sets]);
                }
                // A value that is too large for a message is uploaded in chunks; a rejected set fails alone.
                Err(Error::TooLarge { .. }) if sets.iter().any(|item| !self.fits(item)) => {
                    results.push(self.set(sets.pop().unwrap_or_default()).await);
                }
                Err(error @ Error::TooLarge { .. }) => results.push(Err(error)),
                // Any other error would fail the rest, too, or would let later sets overtake an indeterminate
                // one.
                Err(error) => {
                    results.extend(std::iter::repeat_n(Err(error), asked));
                    let rest = cut_off.iter().map(Vec::len).sum::<usize>() + items.len();
                    results.extend((0..rest).map(|_| Err(Error::NotSent)));
                    return results;
                }
            }
        }
    }
}
