//! The shares of tenants and subjects in the limits of the server. A pure machine: requests and times in, decisions out.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_engine::TenantFigures;
use dormouse_engine::api::TenantId;
use dormouse_protocol::tenant::{BusyTenant, TenantLimits, TenantName, TenantUse};
use dormouse_protocol::{Op, OverloadCause, Subject};

use super::tenants::{TenantRecord, Tenants};

/// Number of [`RequestKind`]s.
pub(super) const KINDS: usize = 2;

/// Maximum number of refusals that a tenant gets in a second. Requests above it get no reply.
pub(crate) const REFUSALS_PER_SECOND: u64 = 1_000;

/// Which half of each limit a request uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestKind {
    /// It changes nothing.
    Read,
    /// It can change a subject, or is a step of a change.
    Change,
}

impl RequestKind {
    /// The kind of an operation.
    pub(crate) const fn of(op: Op) -> Self {
        if op.changes() { Self::Change } else { Self::Read }
    }
}

/// What requests hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Amount {
    /// Number of requests.
    pub(crate) requests: u64,
    /// Bytes of their bodies.
    pub(crate) bytes: u64,
    /// Their items: sets, deletes, keys and seqs. A request that is not decoded counts as one.
    pub(crate) items: u64,
}

impl Amount {
    pub(super) const NOTHING: Self = Self { requests: 0, bytes: 0, items: 0 };

    const fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            bytes: self.bytes.saturating_add(other.bytes),
            items: self.items.saturating_add(other.items),
        }
    }

    const fn minus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(other.requests),
            bytes: self.bytes.saturating_sub(other.bytes),
            items: self.items.saturating_sub(other.items),
        }
    }

    const fn half(self) -> Self {
        Self { requests: self.requests / 2, bytes: self.bytes / 2, items: self.items / 2 }
    }

    const fn reserve(self) -> Self {
        Self { requests: self.requests / 16, bytes: self.bytes / 16, items: self.items / 16 }
    }

    const fn is_within(self, most: Self) -> bool {
        self.requests <= most.requests && self.bytes <= most.bytes && self.items <= most.items
    }
}

/// The limits of the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharesSettings {
    /// What all unanswered requests may hold together.
    pub(crate) whole: Amount,
    /// Maximum number of tenants with a record.
    pub(crate) max_tenants: usize,
}

impl Default for SharesSettings {
    fn default() -> Self {
        let whole = Amount { requests: 32_768, bytes: 256 * 1_024 * 1_024, items: 1_024 * 1_024 };
        Self { whole, max_tenants: 10_000 }
    }
}

/// What one request holds.
#[derive(Debug)]
pub(crate) struct Charge {
    pub(crate) tenant: TenantId,
    subject: Subject,
    kind: RequestKind,
    amount: Amount,
    /// Each item writes a message.
    writes: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Shares {
    /// What the requests of one kind may hold together.
    half: Amount,
    held: [Amount; KINDS],
    tenants: Tenants,
}

impl Shares {
    pub(crate) fn new(settings: SharesSettings) -> Self {
        Self {
            half: settings.whole.half(),
            held: [Amount::NOTHING; KINDS],
            tenants: Tenants::new(settings.max_tenants),
        }
    }

    /// A request of the tenant called `name` has arrived. Returns the tenant.
    pub(crate) fn arrived(&mut self, name: &str, now: Duration) -> TenantId {
        let tenant = self.tenants.find(name, now);
        self.tenants.get_mut(tenant).requests.add(1, now);
        tenant
    }

    /// Charges a request of `bytes` bytes with one item.
    ///
    /// # Errors
    /// The limit that leaves no room for it, or that the tenant has written its configured number of messages in this
    /// second. Then nothing is charged.
    pub(crate) fn charge(
        &mut self,
        tenant: TenantId,
        subject: &Subject,
        op: Op,
        bytes: u64,
        now: Duration,
    ) -> Result<Charge, OverloadCause> {
        let kind = RequestKind::of(op);
        let amount = Amount { requests: 1, bytes, items: 1 };
        let mut charge =
            Charge { tenant, subject: subject.clone(), kind, amount: Amount::NOTHING, writes: writes(op) };
        self.take(&charge, amount)?;
        charge.amount = amount;
        if let Err(cause) = self.count_messages(&charge, 0, 1, now) {
            self.release(&charge);
            return Err(cause);
        }
        Ok(charge)
    }

    /// Charges further items of a request that is charged already.
    ///
    /// # Errors
    /// As [`charge`](Self::charge). Then the messages of the request do not count.
    pub(crate) fn charge_items(
        &mut self,
        charge: &mut Charge,
        more: u64,
        now: Duration,
    ) -> Result<(), OverloadCause> {
        let amount = Amount { items: more, ..Amount::NOTHING };
        let taken = self.take(charge, amount);
        if taken.is_ok() {
            charge.amount = charge.amount.plus(amount);
        }
        let counted = charge.amount.requests;
        let charged = taken.and_then(|()| self.count_messages(charge, counted, more, now));
        if charged.is_err() && charge.writes {
            self.tenants.get_mut(charge.tenant).messages.take_back(counted, now);
        }
        charged
    }

    /// Counts the messages of a request, of which `counted` are counted already.
    fn count_messages(
        &mut self,
        charge: &Charge,
        counted: u64,
        more: u64,
        now: Duration,
    ) -> Result<(), OverloadCause> {
        let record = self.tenants.get_mut(charge.tenant);
        let most = record.limits.messages_per_second.unwrap_or(u64::MAX);
        if !charge.writes || record.messages.add_to(counted, more, most, now) {
            return Ok(());
        }
        record.refused += 1;
        Err(OverloadCause::TenantShare)
    }

    /// Lets a request hold `amount` more. What it holds already does not count against it.
    fn take(&mut self, charge: &Charge, amount: Amount) -> Result<(), OverloadCause> {
        let Charge { tenant, subject, kind, amount: own, writes: _ } = charge;
        let kind = *kind as usize;
        let held = &mut self.held[kind];
        let record = self.tenants.get_mut(*tenant);
        let of_tenant = record.held[kind];
        let of_subject = record.subjects.get(subject).map_or(Amount::NOTHING, |held| held[kind]);
        let (before, of_subject_before) = (of_tenant.minus(*own), of_subject.minus(*own));
        // The last part of the limit is for tenants without other unanswered requests, however many others there are.
        let whole = if before.requests == 0 { self.half } else { self.half.minus(self.half.reserve()) };
        let free = whole.minus(held.minus(of_tenant));
        let fits = fits_within(*held, amount, whole);
        let share = share_of(free, &record.limits);
        let left = share.minus(of_tenant.minus(of_subject));
        let may = fits
            && may_hold(before, *own, amount, share)
            && may_hold(of_subject_before, *own, amount, left.half());
        if !may {
            record.refused += 1;
            return Err(if fits { OverloadCause::TenantShare } else { OverloadCause::RequestsInFlight });
        }
        *held = held.plus(amount);
        record.held[kind] = of_tenant.plus(amount);
        record.subjects.entry(subject.clone()).or_default()[kind] = of_subject.plus(amount);
        Ok(())
    }

    /// Returns what a request held.
    pub(crate) fn release(&mut self, charge: &Charge) {
        let Charge { tenant, subject, kind, amount, writes: _ } = charge;
        let held = &mut self.held[*kind as usize];
        debug_assert!(amount.is_within(*held), "a request returns what it holds");
        *held = held.minus(*amount);
        let record = self.tenants.get_mut(*tenant);
        record.held[*kind as usize] = record.held[*kind as usize].minus(*amount);
        if let Some(of_subject) = record.subjects.get_mut(subject) {
            of_subject[*kind as usize] = of_subject[*kind as usize].minus(*amount);
            if *of_subject == [Amount::NOTHING; KINDS] {
                record.subjects.remove(subject);
            }
        }
    }

    /// Whether a refused request of `tenant` gets a reply.
    pub(crate) fn may_reply_refusal(&mut self, tenant: TenantId, now: Duration) -> bool {
        self.tenants.get_mut(tenant).refusals.add_up_to(1, REFUSALS_PER_SECOND, now)
    }

    /// Replaces the limits that an operator has set.
    pub(crate) fn set_limits(&mut self, limits: impl IntoIterator<Item = (TenantName, TenantLimits)>) {
        self.tenants.set_limits(limits);
    }

    /// The tenants whose limits have changed since the last call, with their limits now.
    pub(crate) fn take_changed_limits(&mut self) -> Vec<(TenantId, TenantLimits)> {
        self.tenants.take_changed()
    }

    /// Number of unanswered requests.
    pub(crate) fn in_flight(&self) -> u64 {
        self.held.iter().map(|held| held.requests).sum()
    }

    /// Number of tenants with a record.
    pub(crate) fn tenants(&self) -> u64 {
        self.tenants.len() as u64
    }

    /// Checks that the sums are those of the tenants and their subjects, and within the limits.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        for kind in 0..KINDS {
            assert!(self.held[kind].is_within(self.half), "{:?}", self.held);
            let sum = |amounts: &mut dyn Iterator<Item = Amount>| amounts.fold(Amount::NOTHING, Amount::plus);
            assert_eq!(self.held[kind], sum(&mut self.tenants.iter().map(|record| record.held[kind])));
            for record in self.tenants.iter() {
                assert_eq!(record.held[kind], sum(&mut record.subjects.values().map(|held| held[kind])));
            }
        }
    }

    /// The tenants with the most requests in the last second, at most `most`. `figures` has what the tenants use at the
    /// engine: those with figures keep their records.
    pub(crate) fn busiest(
        &mut self,
        most: usize,
        figures: &BTreeMap<TenantId, TenantFigures>,
        now: Duration,
    ) -> Vec<BusyTenant> {
        figures.keys().for_each(|tenant| self.tenants.keep(*tenant, now));
        let mut busiest: Vec<(TenantUse, &TenantRecord)> = self
            .tenants
            .iter()
            .zip(0..)
            .map(|(record, index)| {
                let figures = figures.get(&TenantId::new(index)).copied().unwrap_or_default();
                (use_of(record, figures, now), record)
            })
            .filter(|(used, _)| *used != TenantUse { refused: used.refused, ..TenantUse::default() })
            .collect();
        let load = |used: &TenantUse| (used.requests_per_second, used.requests, used.bytes);
        busiest.sort_by(|(one, a), (other, b)| load(other).cmp(&load(one)).then(a.name.cmp(&b.name)));
        busiest.truncate(most);
        busiest
            .into_iter()
            .map(|(in_use, record)| BusyTenant { tenant: record.name.clone(), in_use })
            .collect()
    }
}

const fn writes(op: Op) -> bool {
    matches!(op, Op::Set | Op::UploadCommit)
}

/// What a tenant may hold if all others leave `free`: half of it, or as much as an operator allows, half for each kind.
fn share_of(free: Amount, limits: &TenantLimits) -> Amount {
    let half = free.half();
    let limited =
        |limit: Option<u64>, free: u64, half: u64| limit.map_or(half, |limit| limit.div_ceil(2).min(free));
    Amount {
        requests: limited(limits.requests, free.requests, half.requests),
        bytes: limited(limits.bytes, free.bytes, half.bytes),
        items: half.items,
    }
}

/// Whether `more` fits beside what is held.
const fn fits_within(held: Amount, more: Amount, most: Amount) -> bool {
    const fn fits(held: u64, more: u64, most: u64) -> bool {
        more == 0 || held.saturating_add(more) <= most
    }
    fits(held.requests, more.requests, most.requests)
        && fits(held.bytes, more.bytes, most.bytes)
        && fits(held.items, more.items, most.items)
}

/// Whether a request that holds `own` may hold `more` in addition, if other requests of the holder hold `others` and its
/// share is `share`. A single request always may: a share that is too small for it would never let it pass.
const fn may_hold(others: Amount, own: Amount, more: Amount, share: Amount) -> bool {
    const fn may(others: u64, own: u64, more: u64, share: u64) -> bool {
        more == 0 || others == 0 || others.saturating_add(own).saturating_add(more) <= share
    }
    may(others.requests, own.requests, more.requests, share.requests)
        && may(others.bytes, own.bytes, more.bytes, share.bytes)
        && may(others.items, own.items, more.items, share.items)
}

fn use_of(record: &TenantRecord, figures: TenantFigures, now: Duration) -> TenantUse {
    let [one, other] = record.held;
    let held = one.plus(other);
    TenantUse {
        requests: held.requests,
        bytes: held.bytes,
        messages_per_second: record.messages.last_second(now),
        requests_per_second: record.requests.last_second(now),
        refused: record.refused,
        open_subjects: figures.open_subjects,
        creations_per_minute: figures.creations,
        stored_bytes: figures.stored_bytes,
        unshipped_bytes: figures.unshipped_bytes,
        uploads: figures.uploads,
    }
}
