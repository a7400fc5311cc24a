//! The look-ups that wait for a decision, in a queue per tenant: who may queue, who is refused, and whose turn it is.
//!
//! Anything that a client sends costs something. So each cost of a tenant is bounded: its queued look-ups, and the replies
//! that refuse the others. What is above both is dropped and counted. Tenants are served in turn, so the wait of a tenant
//! depends on the number of tenants that ask, not on how much each asks.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_protocol::TenantName;
use dormouse_protocol::limits::MAX_TENANT_RECORDS;
use dormouse_runtime::fair_queue::FairQueue;

/// The maximum number of queued look-ups of a tenant. A client queues one for each subject that it begins to use; the
/// coordinator decides this number in about a tenth of a second.
pub const MAX_QUEUED_PER_TENANT: usize = 4_096;

/// The maximum number of queued look-ups. A tenant may hold half of what the others leave, and one in any case: so the queue
/// never has more than this number and one for each record.
pub const MAX_QUEUED: usize = 65_536;

/// The maximum number of refusals that a tenant gets in a second. Further look-ups above its share get no reply.
pub const MAX_REFUSALS_PER_SECOND: u32 = 1_000;

/// The record of a tenant: its position among the turns. It is valid until the next [`LocateQueue::pop`] or
/// [`LocateQueue::forget_idle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TenantRecord(u32);

/// The record that tenants share if all records are in use.
const SHARED: TenantRecord = TenantRecord(0);

/// What the queue has refused and dropped since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LocateCounts {
    /// Look-ups in the queue now.
    pub queued: u64,
    /// Look-ups that got a refusal.
    pub refused: u64,
    /// Look-ups that got no reply.
    pub dropped: u64,
    /// The time of the last drop.
    pub last_drop: Option<Duration>,
}

/// The look-ups of all tenants that wait for a decision.
#[derive(Debug)]
pub struct LocateQueue<T> {
    records: BTreeMap<TenantName, TenantRecord>,
    names: BTreeMap<TenantRecord, TenantName>,
    refusals: BTreeMap<TenantRecord, Refusals>,
    queue: FairQueue<TenantRecord, T>,
    counts: LocateCounts,
}

/// The refusals that a tenant got in one second.
#[derive(Debug, Clone, Copy)]
struct Refusals {
    second: u64,
    number: u32,
}

impl<T> Default for LocateQueue<T> {
    fn default() -> Self {
        Self {
            records: BTreeMap::new(),
            names: BTreeMap::new(),
            refusals: BTreeMap::new(),
            // Each look-up costs the same: one for each tenant in a turn.
            queue: FairQueue::new(1),
            counts: LocateCounts::default(),
        }
    }
}

impl<T> LocateQueue<T> {
    /// The record of a tenant. A new tenant gets a record of its own, unless [`MAX_TENANT_RECORDS`] are in use.
    pub fn record(&mut self, tenant: &str) -> TenantRecord {
        if let Some(record) = self.records.get(tenant) {
            return *record;
        }
        if self.records.len() >= MAX_TENANT_RECORDS {
            return SHARED;
        }
        let Ok(name) = TenantName::new(tenant) else { return SHARED };
        if name.is_shared() {
            return SHARED;
        }
        let record = self.unused();
        self.records.insert(name.clone(), record);
        self.names.insert(record, name);
        record
    }

    /// The record after the newest one, or the first gap.
    fn unused(&self) -> TenantRecord {
        let next = self.names.keys().next_back().map_or(1, |TenantRecord(number)| number.saturating_add(1));
        let is_free = |number: &u32| !self.names.contains_key(&TenantRecord(*number));
        let most = u32::try_from(MAX_TENANT_RECORDS).unwrap_or(u32::MAX);
        if next <= most { TenantRecord(next) } else { TenantRecord((1..=most).find(is_free).unwrap_or(0)) }
    }

    /// Whether the tenant may queue one more look-up.
    #[must_use]
    pub fn has_room(&self, record: TenantRecord) -> bool {
        let own = self.queue.len_of(record);
        let left_by_others = MAX_QUEUED.saturating_sub(self.queue.len() - own);
        own < MAX_QUEUED_PER_TENANT.min(left_by_others / 2).max(1)
    }

    /// Queues a look-up, for which the tenant [has room](Self::has_room).
    pub fn push(&mut self, record: TenantRecord, lookup: T) {
        self.queue.push(record, 1, lookup);
    }

    /// Whether a look-up that is not queued gets an error reply at `now`. Counts the refusal, or the drop.
    pub fn may_refuse(&mut self, record: TenantRecord, now: Duration) -> bool {
        let second = now.as_secs();
        let refusals = self.refusals.entry(record).or_insert(Refusals { second, number: 0 });
        if refusals.second != second {
            *refusals = Refusals { second, number: 0 };
        }
        if refusals.number >= MAX_REFUSALS_PER_SECOND {
            self.counts.dropped += 1;
            self.counts.last_drop = Some(now);
            return false;
        }
        refusals.number += 1;
        self.counts.refused += 1;
        true
    }

    /// Counts `number` look-ups that were dropped elsewhere, at `now`.
    pub fn count_dropped(&mut self, number: u64, now: Duration) {
        if number > 0 {
            self.counts.dropped = self.counts.dropped.saturating_add(number);
            self.counts.last_drop = Some(now);
        }
    }

    /// The next look-up: the tenants have one each, in turn.
    pub fn pop(&mut self) -> Option<T> {
        let (record, lookup) = self.queue.pop()?;
        if self.queue.len_of(record) == 0 && !self.refusals.contains_key(&record) {
            self.forget(record);
        }
        Some(lookup)
    }

    /// Forgets the tenants without queued look-ups and without refusals in the current second.
    pub fn forget_idle(&mut self, now: Duration) {
        let second = now.as_secs();
        self.refusals.retain(|_, refusals| refusals.second == second);
        let (queue, refusals) = (&self.queue, &self.refusals);
        let is_idle = |record: &&TenantRecord| queue.len_of(**record) == 0 && !refusals.contains_key(record);
        let idle: Vec<TenantRecord> = self.names.keys().filter(is_idle).copied().collect();
        for record in idle {
            self.forget(record);
        }
    }

    fn forget(&mut self, record: TenantRecord) {
        if let Some(name) = self.names.remove(&record) {
            self.records.remove(&name);
        }
    }

    /// Whether no look-up is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What is queued now, and what was refused and dropped since the start.
    #[must_use]
    pub fn counts(&self) -> LocateCounts {
        LocateCounts { queued: self.queue.len() as u64, ..self.counts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    /// Fills the share of a tenant, and returns the number of its look-ups.
    fn fill(queue: &mut LocateQueue<String>, tenant: &str) -> usize {
        let record = queue.record(tenant);
        let mut number = 0;
        while queue.has_room(record) {
            queue.push(record, tenant.to_owned());
            number += 1;
        }
        number
    }

    /// A tenant has a bounded number of queued look-ups, and another tenant's look-up waits for one turn.
    #[test]
    fn locate_of_tenant_is_bounded_and_waits_one_turn() {
        let mut queue = LocateQueue::default();
        assert_eq!(fill(&mut queue, "greedy"), MAX_QUEUED_PER_TENANT);
        let polite = queue.record("polite");
        assert!(queue.has_room(polite));
        queue.push(polite, "polite".to_owned());
        let first: Vec<_> = std::iter::from_fn(|| queue.pop()).take(2).collect();
        assert!(first.contains(&"polite".to_owned()), "{first:?}");
    }

    /// If tenants fill the queue, each further tenant still has room for one, and the total is bounded.
    #[test]
    fn locate_room_is_left_for_further_tenants() {
        let mut queue = LocateQueue::default();
        let shares: Vec<usize> = (0..40).map(|n| fill(&mut queue, &format!("t{n}"))).collect();
        assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
        assert!(queue.counts().queued <= MAX_QUEUED as u64 + 40);
    }

    /// A tenant gets a bounded number of refusals in a second; the rest is dropped and counted. Other tenants have their own.
    #[test]
    fn locate_refusals_are_bounded_and_drops_are_counted() {
        let mut queue = LocateQueue::<()>::default();
        let (greedy, polite) = (queue.record("greedy"), queue.record("polite"));
        let refused = (0..5_000).filter(|_| queue.may_refuse(greedy, NOW)).count();
        assert_eq!(refused, 1_000);
        assert!(queue.may_refuse(polite, NOW));
        let later = NOW + Duration::from_secs(1);
        assert!(queue.may_refuse(greedy, later), "each second has its own");
        queue.count_dropped(7, later);
        queue.count_dropped(0, later + NOW);
        let expected = LocateCounts { queued: 0, refused: 1_002, dropped: 4_007, last_drop: Some(later) };
        assert_eq!(queue.counts(), expected);
    }

    /// The number of records is bounded: later tenants share one, and idle tenants give theirs back.
    #[test]
    fn tenant_records_are_bounded_and_reused() {
        let mut queue = LocateQueue::default();
        for n in 0..MAX_TENANT_RECORDS {
            let record = queue.record(&format!("t{n}"));
            assert_ne!(record, SHARED);
            if n == 500 {
                queue.push(record, n);
            }
        }
        assert_eq!(queue.record("later"), SHARED);
        assert_eq!(queue.record("t7"), TenantRecord(8), "a tenant keeps its record");
        assert!(queue.may_refuse(TenantRecord(8), NOW));
        queue.forget_idle(NOW);
        assert_eq!(queue.names.keys().copied().collect::<Vec<_>>(), [TenantRecord(8), TenantRecord(501)]);
        assert_eq!(queue.record("later"), TenantRecord(502));
        assert_eq!(queue.pop(), Some(500));
        queue.forget_idle(NOW + Duration::from_secs(1));
        assert!(queue.names.is_empty() && queue.records.is_empty() && queue.refusals.is_empty());
        assert_eq!(queue.record("*"), SHARED, "the name of the shared record");
    }

    /// If the newest record has the highest number, a new tenant gets the first gap.
    #[test]
    fn tenant_record_fills_gap_behind_highest() {
        let mut queue = LocateQueue::default();
        for n in 0..MAX_TENANT_RECORDS {
            let record = queue.record(&format!("t{n}"));
            if n == 0 || n == MAX_TENANT_RECORDS - 1 {
                queue.push(record, n);
            }
        }
        queue.forget_idle(NOW);
        assert_eq!(queue.record("new"), TenantRecord(2));
    }
}
