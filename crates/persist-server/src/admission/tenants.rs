//! The records of the tenants. Pure.

use std::collections::HashMap;
use std::time::Duration;

use dormouse_engine::api::TenantId;
use dormouse_protocol::Subject;
use dormouse_protocol::tenant::{TenantLimits, TenantName};

use super::refusals::PerSecond;
use super::shares::{Amount, KINDS};

/// A record can be given to another tenant if for this long its tenant has had no requests and has used nothing at the
/// engine.
const IDLE: Duration = Duration::from_secs(10 * 60);

/// The interval between two searches for an idle record: a search examines every record.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

/// One tenant.
#[derive(Debug)]
pub(super) struct TenantRecord {
    pub(super) name: TenantName,
    /// What its unanswered requests hold, by kind.
    pub(super) held: [Amount; KINDS],
    /// The same for each subject that has unanswered requests.
    pub(super) subjects: HashMap<Subject, [Amount; KINDS]>,
    pub(super) limits: TenantLimits,
    pub(super) requests: PerSecond,
    pub(super) messages: PerSecond,
    pub(super) refusals: PerSecond,
    /// Requests that were refused or dropped so far.
    pub(super) refused: u64,
    used_at: Duration,
}

impl TenantRecord {
    fn new(name: TenantName, limits: TenantLimits, used_at: Duration) -> Self {
        Self {
            name,
            held: [Amount::NOTHING; KINDS],
            subjects: HashMap::new(),
            limits,
            requests: PerSecond::default(),
            messages: PerSecond::default(),
            refusals: PerSecond::default(),
            refused: 0,
            used_at,
        }
    }

    fn is_idle(&self, now: Duration) -> bool {
        self.held == [Amount::NOTHING; KINDS] && now.saturating_sub(self.used_at) >= IDLE
    }
}

/// The records. The first one is shared by the tenants that have none of their own.
#[derive(Debug)]
pub(super) struct Tenants {
    max: usize,
    records: Vec<TenantRecord>,
    /// Only for look-ups, so its order has no effect.
    by_name: HashMap<TenantName, TenantId>,
    /// The limits that an operator has set, also for tenants without a record.
    limits: HashMap<TenantName, TenantLimits>,
    searched_at: Option<Duration>,
    /// Tenants whose limits have changed, or whose record was given to another tenant that has limits or had some.
    changed: Vec<TenantId>,
}

impl Tenants {
    /// At most `max` records in addition to the shared one.
    pub(super) fn new(max: usize) -> Self {
        let shared = TenantRecord::new(TenantName::shared(), TenantLimits::NONE, Duration::ZERO);
        let (by_name, limits) = Default::default();
        Self { max, records: vec![shared], by_name, limits, searched_at: None, changed: Vec::new() }
    }

    /// The tenant called `name`, which has sent a request at `now`. Gets a record if there is room.
    pub(super) fn find(&mut self, name: &str, now: Duration) -> TenantId {
        if let Some(id) = self.by_name.get(name).copied() {
            self.get_mut(id).used_at = now;
            return id;
        }
        let Ok(name) = TenantName::new(name) else { return TenantId::SHARED };
        if name.is_shared() {
            return TenantId::SHARED;
        }
        let Some(id) = self.free_record(now) else { return TenantId::SHARED };
        let record = TenantRecord::new(name.clone(), self.limits_of(&name), now);
        let mut has_changed = !record.limits.is_empty();
        match self.records.get_mut(id.get() as usize) {
            Some(idle) => {
                let gone = std::mem::replace(idle, record);
                has_changed |= !gone.limits.is_empty();
                self.by_name.remove(&gone.name);
            }
            None => self.records.push(record),
        }
        if has_changed {
            self.changed.push(id);
        }
        self.by_name.insert(name, id);
        id
    }

    /// A tenant uses something at the engine.
    pub(super) fn keep(&mut self, tenant: TenantId, now: Duration) {
        self.get_mut(tenant).used_at = now;
    }

    /// A new record, or one that is idle.
    fn free_record(&mut self, now: Duration) -> Option<TenantId> {
        if self.records.len() <= self.max {
            return u32::try_from(self.records.len()).ok().map(TenantId::new);
        }
        if self.searched_at.is_some_and(|at| now.saturating_sub(at) < SEARCH_INTERVAL) {
            return None;
        }
        let idle = self.records.iter().skip(1).position(|record| record.is_idle(now));
        if idle.is_none() {
            self.searched_at = Some(now);
        }
        idle.and_then(|position| u32::try_from(position + 1).ok()).map(TenantId::new)
    }

    fn limits_of(&self, name: &TenantName) -> TenantLimits {
        self.limits.get(name).copied().unwrap_or_default()
    }

    /// Replaces the limits that an operator has set. Tenants that are not named have none.
    pub(super) fn set_limits(&mut self, limits: impl IntoIterator<Item = (TenantName, TenantLimits)>) {
        self.limits = limits.into_iter().collect();
        for (position, index) in (0..self.records.len()).zip(0..) {
            let limits = self.limits_of(&self.records[position].name);
            if std::mem::replace(&mut self.records[position].limits, limits) != limits {
                self.changed.push(TenantId::new(index));
            }
        }
    }

    /// The tenants whose limits have changed since the last call, with their limits now.
    pub(super) fn take_changed(&mut self) -> Vec<(TenantId, TenantLimits)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|id| (id, self.get_mut(id).limits)).collect()
    }

    /// The record of `id`; the shared one if there is none.
    pub(super) fn get_mut(&mut self, id: TenantId) -> &mut TenantRecord {
        let position = id.get() as usize;
        let position = if position < self.records.len() { position } else { 0 };
        &mut self.records[position]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &TenantRecord> {
        self.records.iter()
    }

    /// Number of records, without the shared one.
    pub(super) fn len(&self) -> usize {
        self.records.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Tenants above the maximum share one record, until a record is idle.
    #[test]
    fn tenant_without_record_shares_one_until_another_is_idle() {
        let mut tenants = Tenants::new(2);
        let [a, b] = ["a", "b"].map(|name| tenants.find(name, MINUTE));
        assert_ne!(a, b);
        assert!([a, b].iter().all(|id| *id != TenantId::SHARED));
        assert_eq!(tenants.find("c", MINUTE), TenantId::SHARED);
        assert_eq!(tenants.find("a", MINUTE), a);
        tenants.get_mut(a).held[0].requests = 1;
        tenants.find("b", 15 * MINUTE);
        assert_eq!(tenants.find("c", 16 * MINUTE), TenantId::SHARED, "a is not idle, and b was used");
        tenants.get_mut(a).held[0].requests = 0;
        assert_eq!(tenants.find("c", 17 * MINUTE), a);
        assert_eq!(tenants.get_mut(a).name.as_str(), "c");
        assert_eq!(tenants.find("a", 17 * MINUTE), TenantId::SHARED);
        assert_eq!(tenants.len(), 2);
    }

    /// The record of a tenant without requests stays while its subjects are open at the engine.
    #[test]
    fn tenant_record_stays_while_engine_refers_to_it() {
        let mut tenants = Tenants::new(1);
        let a = tenants.find("a", MINUTE);
        (2..60).for_each(|minutes| tenants.keep(a, minutes * MINUTE));
        assert_eq!(tenants.find("b", 60 * MINUTE), TenantId::SHARED);
        assert_eq!(tenants.find("b", 70 * MINUTE), a);
    }

    /// A full table is searched for an idle record at most once a second.
    #[test]
    fn tenant_table_is_searched_once_a_second() {
        let mut tenants = Tenants::new(1);
        tenants.find("a", Duration::ZERO);
        let late = IDLE - Duration::from_millis(500);
        assert_eq!(tenants.find("b", late), TenantId::SHARED);
        assert_eq!(tenants.find("b", IDLE), TenantId::SHARED, "searched half a second ago");
        assert_ne!(tenants.find("b", IDLE + SEARCH_INTERVAL), TenantId::SHARED);
    }

    /// Limits apply to records that exist, to later ones, and no longer once they are not named.
    #[test]
    fn tenant_limits_follow_latest_list() {
        let mut tenants = Tenants::new(5);
        let a = tenants.find("a", MINUTE);
        let limits = TenantLimits { requests: Some(7), ..TenantLimits::NONE };
        tenants.set_limits(["a", "b"].map(|name| (TenantName::new(name).unwrap(), limits)));
        let b = tenants.find("b", MINUTE);
        assert_eq!([a, b].map(|id| tenants.get_mut(id).limits.requests), [Some(7), Some(7)]);
        assert_eq!(tenants.take_changed(), [(a, limits), (b, limits)]);
        tenants.set_limits([]);
        assert_eq!(tenants.take_changed(), [(a, TenantLimits::NONE), (b, TenantLimits::NONE)]);
        assert_eq!(tenants.take_changed(), []);
        assert_eq!([a, b].map(|id| tenants.get_mut(id).limits), [TenantLimits::NONE; 2]);
    }
}
