//! Admission: decides for each request that arrives, before its body is decoded, whether it waits for its turn, gets an
//! error at once, or is dropped.
//!
//! | module | contents |
//! |---|---|
//! | `shares` | the pure machine: how much of the shared limits each tenant and each subject holds |
//! | `tenants` | the records of the tenants, at most 10,000 |
//! | `refusals` | how many refusals a tenant gets per second, and the rate of its requests |
//!
//! Reads and changes have half of each shared limit, and neither uses the other half. Of its half, a tenant may hold half
//! of what the others leave free, and a subject half of what the other subjects of its tenant leave of that. So a new
//! tenant always finds room, and a single tenant is not limited to a fixed part.

mod refusals;
mod shares;
mod tenants;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse_bus::Caller;
use dormouse_engine::TenantFigures;
use dormouse_engine::api::TenantId;
use dormouse_protocol::tenant::{BusyTenant, LimitedTenant, TenantLimits};
use dormouse_protocol::{ErrorReply, Op, OverloadCause, Subject, TenantName, TenantRule};
use dormouse_runtime::{Env, Lock};

#[cfg(test)]
pub(crate) use self::shares::Amount;
use self::shares::{Charge, Shares};
pub(crate) use self::shares::{REFUSALS_PER_SECOND, SharesSettings};

/// What becomes of a request that is not admitted.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Its caller gets this error.
    Reply(ErrorReply),
    /// Its tenant has got the maximum number of refusals in this second: the request gets no reply.
    Drop,
}

/// Counters of refused requests, since the start.
#[derive(Debug, Default)]
pub struct AdmissionMetrics {
    /// Refused because the tenant or the subject holds its share.
    pub over_share: AtomicU64,
    /// Refused because a limit of the whole server is used up.
    pub over_limit: AtomicU64,
    /// Refused because the request is larger than its operation allows.
    pub too_large: AtomicU64,
    /// Refused because the time of the request ran out before its turn.
    pub expired: AtomicU64,
    /// Dropped without a reply, because the tenant gets no more refusals in this second.
    pub dropped: AtomicU64,
    /// When the last request was dropped, in milliseconds of [`Env::boot`], plus one; 0 if none was.
    last_drop: AtomicU64,
}

impl AdmissionMetrics {
    fn count_drop(&self, now: Duration) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.last_drop.store(millis(now).saturating_add(1), Ordering::Relaxed);
    }

    /// Whether a request was dropped at `since` or later.
    #[must_use]
    pub fn dropped_since(&self, since: Duration) -> bool {
        self.last_drop.load(Ordering::Relaxed) > millis(since)
    }

    /// Number of requests that were refused as `overloaded` or dropped.
    #[must_use]
    pub fn refused(&self) -> u64 {
        [&self.over_share, &self.over_limit, &self.dropped]
            .into_iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The admission of one server: the machine, with a clock and counters. Shared by the intake, which admits, and by the
/// replies, which return what their requests held.
#[derive(Debug)]
pub struct Admission {
    /// For the data side only: a search for an idle record and the busiest tenants hold it.
    shares: Lock<Shares>,
    /// Copies for the control side.
    in_flight: AtomicU64,
    tenants: AtomicU64,
    /// Limits that the control side has read, and the data side has not taken yet.
    new_limits: Lock<Option<Vec<LimitedTenant>>>,
    rule: TenantRule,
    env: Env,
    metrics: AdmissionMetrics,
}

impl Admission {
    /// Admission with the default limits. `rule` names the tenant of a request.
    #[must_use]
    pub fn new(rule: TenantRule, env: Env) -> Arc<Self> {
        Self::with(SharesSettings::default(), rule, env)
    }

    pub(crate) fn with(settings: SharesSettings, rule: TenantRule, env: Env) -> Arc<Self> {
        let shares = Lock::new(Shares::new(settings));
        Arc::new(Self {
            shares,
            in_flight: AtomicU64::new(0),
            tenants: AtomicU64::new(0),
            new_limits: Lock::default(),
            rule,
            env,
            metrics: AdmissionMetrics::default(),
        })
    }

    /// Whether `deadline`, on the clock of [`Env::boot`], has passed.
    pub(crate) fn is_expired(&self, deadline: Duration) -> bool {
        deadline <= self.env.boot()
    }

    /// The counters.
    #[must_use]
    pub const fn metrics(&self) -> &AdmissionMetrics {
        &self.metrics
    }

    /// Replaces the limits that an operator has set for tenants. Tenants that are not named have none. The intake uses them
    /// from its next pass on.
    pub fn set_limits(&self, limits: Vec<LimitedTenant>) {
        *self.new_limits.lock() = Some(limits);
    }

    /// Uses the limits that were set last. For the data side, before it admits requests.
    pub(crate) fn apply_limits(&self) {
        if let Some(limits) = self.new_limits.lock().take() {
            self.shares.lock().set_limits(limits.into_iter().map(|one| (one.tenant, one.limits)));
        }
    }

    /// The tenants whose limits have changed since the last call, with their limits now.
    pub(crate) fn take_changed_limits(&self) -> Vec<(TenantId, TenantLimits)> {
        self.shares.lock().take_changed_limits()
    }

    /// Number of unanswered requests. Takes no lock.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Number of tenants with a record, without the shared one. Takes no lock.
    #[must_use]
    pub fn tenants(&self) -> u64 {
        self.tenants.load(Ordering::Relaxed)
    }

    /// The tenants with the most requests in the last full second, the busiest first, at most `most`. `figures` has what
    /// each tenant uses at the engine. Examines every record.
    #[must_use]
    pub fn busiest_tenants(
        &self,
        most: usize,
        figures: &BTreeMap<TenantId, TenantFigures>,
    ) -> Vec<BusyTenant> {
        let now = self.env.boot();
        self.shares.lock().busiest(most, figures, now)
    }

    /// Admits a request of `bytes` bytes, which has arrived from `caller` at `now`.
    ///
    /// # Errors
    /// [`Refusal`]; then the request holds nothing.
    pub(crate) fn admit(
        self: &Arc<Self>,
        caller: &Caller,
        subject: &Subject,
        op: Op,
        bytes: usize,
        now: Duration,
    ) -> Result<RequestPermit, Refusal> {
        let name = self.rule.tenant_text(caller.account(), subject);
        let mut shares = self.shares.lock();
        let tenant = shares.arrived(&name, now);
        self.tenants.store(shares.tenants(), Ordering::Relaxed);
        let refused = match op.max_request_bytes().filter(|most| bytes > *most) {
            Some(most) => {
                self.metrics.too_large.fetch_add(1, Ordering::Relaxed);
                ErrorReply::too_large("max_request_bytes", bytes, most)
            }
            None => match shares.charge(tenant, subject, op, bytes as u64, now) {
                Ok(charge) => {
                    self.in_flight.store(shares.in_flight(), Ordering::Relaxed);
                    return Ok(RequestPermit { admission: Arc::clone(self), charge });
                }
                Err(cause) => self.count_refused(cause).into(),
            },
        };
        Err(self.refuse_within(&mut shares, tenant, refused, now))
    }

    /// Refuses a request that has arrived from a caller for a subject, or for no valid subject, with an error that does not
    /// depend on shares. It counts like any other refusal of its tenant.
    pub(crate) fn refuse(&self, request: Option<(&Caller, &Subject)>, error: ErrorReply) -> Refusal {
        let now = self.env.boot();
        let mut shares = self.shares.lock();
        let tenant = match request {
            Some((caller, subject)) => shares.arrived(&self.rule.tenant_text(caller.account(), subject), now),
            None => shares.arrived(TenantName::SHARED, now),
        };
        self.refuse_within(&mut shares, tenant, error, now)
    }

    fn refuse_within(
        &self,
        shares: &mut Shares,
        tenant: TenantId,
        error: ErrorReply,
        now: Duration,
    ) -> Refusal {
        if shares.may_reply_refusal(tenant, now) {
            return Refusal::Reply(error);
        }
        self.metrics.count_drop(now);
        Refusal::Drop
    }

    fn count_refused(&self, cause: OverloadCause) -> OverloadCause {
        let count = match cause {
            OverloadCause::TenantShare => &self.metrics.over_share,
            _ => &self.metrics.over_limit,
        };
        count.fetch_add(1, Ordering::Relaxed);
        cause
    }
}

/// What one request holds of the shared limits. A drop returns it.
#[derive(Debug)]
pub(crate) struct RequestPermit {
    admission: Arc<Admission>,
    charge: Charge,
}

impl RequestPermit {
    /// The tenant that the request is charged to.
    pub(crate) const fn tenant(&self) -> TenantId {
        self.charge.tenant
    }

    /// Charges the items of the decoded request.
    ///
    /// # Errors
    /// `overloaded`; then the request is not to be executed.
    pub(crate) fn charge_items(&mut self, items: usize) -> Result<(), ErrorReply> {
        // One is charged already.
        let more = items.saturating_sub(1);
        if more == 0 {
            return Ok(());
        }
        let now = self.admission.env.boot();
        let charged = self.admission.shares.lock().charge_items(&mut self.charge, more as u64, now);
        charged.map_err(|cause| self.admission.count_refused(cause).into())
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        let mut shares = self.admission.shares.lock();
        shares.release(&self.charge);
        self.admission.in_flight.store(shares.in_flight(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
