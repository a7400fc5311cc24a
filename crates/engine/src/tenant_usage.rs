//! What tenants use at this engine beyond their requests, and the limits that an operator has set for them.
//!
//! The shared room of the log has a reserve: the last eighth is for tenants that have less than their share, which is half
//! of what the others leave. So a single tenant can use almost all of it, and another one always finds room.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::tenant::TenantLimits;
use dormouse_protocol::{ErrorReply, OverloadCause};
use dormouse_runtime::Lock;

use crate::api::TenantId;

/// What a tenant uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TenantFigures {
    /// Open subjects.
    pub open_subjects: u64,
    /// Bytes of changes that are not in the bucket yet.
    pub unshipped_bytes: u64,
    /// Bytes of the messages in open subjects.
    pub stored_bytes: u64,
    /// Subjects created in the current minute.
    pub creations: u64,
    /// Uploads in progress.
    pub uploads: u64,
}

#[derive(Debug, Default)]
struct TenantState {
    figures: TenantFigures,
    /// The minute of `creations`.
    minute: u64,
    limits: TenantLimits,
}

impl TenantState {
    /// Creations count in the minute of `now`.
    const fn begin_minute(&mut self, now: Duration) {
        let minute = now.as_secs() / 60;
        if minute > self.minute {
            (self.minute, self.figures.creations) = (minute, 0);
        }
    }

    fn check_creation(&mut self, now: Duration) -> Result<(), ErrorReply> {
        self.begin_minute(now);
        if self.limits.creations_per_minute.is_some_and(|most| self.figures.creations >= most) {
            return Err(OverloadCause::TenantShare.into());
        }
        Ok(())
    }

    fn is_unused(&self) -> bool {
        self.figures == TenantFigures::default() && self.limits.is_empty()
    }
}

#[derive(Debug, Default)]
struct Inner {
    of: BTreeMap<TenantId, TenantState>,
    unshipped_bytes: u64,
}

/// See the [module](self). Cloning shares it.
#[derive(Debug, Clone, Default)]
pub(crate) struct TenantUsage(Arc<Lock<Inner>>);

impl TenantUsage {
    /// Replaces the limits of a tenant.
    pub(crate) fn set_limits(&self, tenant: TenantId, limits: TenantLimits) {
        let mut inner = self.0.lock();
        inner.of.entry(tenant).or_default().limits = limits;
        inner.forget_if_unused(tenant);
    }

    /// The maximum number of open subjects that an operator has set.
    pub(crate) fn max_open_subjects(&self, tenant: TenantId) -> Option<u64> {
        self.0.lock().of.get(&tenant)?.limits.open_subjects
    }

    /// The maximum number of uploads that an operator has set.
    pub(crate) fn max_uploads(&self, tenant: TenantId) -> Option<u64> {
        self.0.lock().of.get(&tenant)?.limits.uploads
    }

    /// The figures at `now` of each tenant that uses something. The numbers of open subjects and uploads are 0.
    pub(crate) fn figures(&self, now: Duration) -> BTreeMap<TenantId, TenantFigures> {
        let mut inner = self.0.lock();
        inner.of.values_mut().for_each(|state| state.begin_minute(now));
        inner.of.retain(|_, state| !state.is_unused());
        let used = inner.of.iter().filter(|(_, state)| state.figures != TenantFigures::default());
        used.map(|(tenant, state)| (*tenant, state.figures)).collect()
    }

    /// Checks whether a tenant may create a subject.
    ///
    /// # Errors
    /// As [`count_creation`](Self::count_creation).
    pub(crate) fn check_creation(&self, tenant: TenantId, now: Duration) -> Result<(), ErrorReply> {
        self.0.lock().of.get_mut(&tenant).map_or(Ok(()), |state| state.check_creation(now))
    }

    /// Counts the creation of a subject.
    ///
    /// # Errors
    /// `overloaded` if the tenant has created as many in this minute as an operator allows.
    pub(crate) fn count_creation(&self, tenant: TenantId, now: Duration) -> Result<(), ErrorReply> {
        let mut inner = self.0.lock();
        let state = inner.of.entry(tenant).or_default();
        state.check_creation(now)?;
        state.figures.creations += 1;
        Ok(())
    }

    /// Checks whether a tenant may append to the log, whose unshipped changes may have `whole` bytes.
    ///
    /// # Errors
    /// `overloaded`.
    pub(crate) fn check_append(
        &self,
        tenant: TenantId,
        whole: u64,
        ship_interval: Duration,
    ) -> Result<(), ErrorReply> {
        let inner = self.0.lock();
        let Some(state) = inner.of.get(&tenant) else { return Ok(()) };
        let own = state.figures.unshipped_bytes;
        let share = whole.saturating_sub(inner.unshipped_bytes - own) / 2;
        let is_over_share = inner.unshipped_bytes + whole / 8 >= whole && own > 0 && own >= share;
        let is_over_limit = state.limits.unshipped_bytes.is_some_and(|most| own > 0 && own >= most);
        if is_over_share || is_over_limit {
            return Err(OverloadCause::UnshippedBytes { ship_interval }.into());
        }
        Ok(())
    }

    /// Checks whether a tenant may store further messages.
    ///
    /// # Errors
    /// `overloaded`: another copy of the request may be executed when there is room again.
    pub(crate) fn check_store(&self, tenant: TenantId) -> Result<(), ErrorReply> {
        let inner = self.0.lock();
        let Some(state) = inner.of.get(&tenant) else { return Ok(()) };
        if state.limits.stored_bytes.is_some_and(|most| state.figures.stored_bytes >= most) {
            return Err(OverloadCause::TenantStoredBytes.into());
        }
        Ok(())
    }

    /// The share of one open subject of `tenant`.
    pub(crate) fn of_subject(&self, tenant: TenantId) -> SubjectUsage {
        SubjectUsage { usage: self.clone(), tenant, unshipped_bytes: 0, stored_bytes: 0 }
    }
}

impl Inner {
    fn forget_if_unused(&mut self, tenant: TenantId) {
        if self.of.get(&tenant).is_some_and(TenantState::is_unused) {
            self.of.remove(&tenant);
        }
    }
}

/// What one open subject uses. A drop returns it.
#[derive(Debug)]
pub(crate) struct SubjectUsage {
    usage: TenantUsage,
    tenant: TenantId,
    unshipped_bytes: u64,
    stored_bytes: u64,
}

impl SubjectUsage {
    pub(crate) const fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Replaces the figures of the subject.
    pub(crate) fn set(&mut self, unshipped_bytes: u64, stored_bytes: u64) {
        if (unshipped_bytes, stored_bytes) == (self.unshipped_bytes, self.stored_bytes) {
            return;
        }
        let mut inner = self.usage.0.lock();
        // Wrapping arithmetic: the sums are right in any order of updates.
        let unshipped = unshipped_bytes.wrapping_sub(self.unshipped_bytes);
        let stored = stored_bytes.wrapping_sub(self.stored_bytes);
        inner.unshipped_bytes = inner.unshipped_bytes.wrapping_add(unshipped);
        let figures = &mut inner.of.entry(self.tenant).or_default().figures;
        figures.unshipped_bytes = figures.unshipped_bytes.wrapping_add(unshipped);
        figures.stored_bytes = figures.stored_bytes.wrapping_add(stored);
        inner.forget_if_unused(self.tenant);
        drop(inner);
        (self.unshipped_bytes, self.stored_bytes) = (unshipped_bytes, stored_bytes);
    }
}

impl Drop for SubjectUsage {
    fn drop(&mut self) {
        self.set(0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEDY: TenantId = TenantId::new(1);
    const POLITE: TenantId = TenantId::new(2);

    /// A tenant can use all but the reserve of the log's room; another tenant finds room there.
    #[test]
    fn unshipped_bytes_keep_reserve_for_other_tenants() {
        let usage = TenantUsage::default();
        let may = |tenant| usage.check_append(tenant, 800, Duration::from_millis(50)).is_ok();
        let (mut greedy, mut polite) = (usage.of_subject(GREEDY), usage.of_subject(POLITE));
        greedy.set(690, 0);
        assert!(may(GREEDY));
        greedy.set(700, 0);
        assert!(!may(GREEDY) && may(POLITE));
        polite.set(40, 0);
        assert!(may(POLITE), "its share is half of 100");
        polite.set(50, 0);
        assert!(!may(POLITE) && !may(GREEDY));
        greedy.set(300, 0);
        assert!(may(POLITE) && may(GREEDY));
        drop((greedy, polite));
        assert!(usage.figures(Duration::ZERO).is_empty());
        assert_eq!(usage.0.lock().unshipped_bytes, 0);
    }

    /// An operator's limits apply to what a tenant creates, stores and has not shipped, and end with their removal.
    #[test]
    fn tenant_limits_apply_at_the_engine() {
        let usage = TenantUsage::default();
        let one = Some(1);
        let limits = TenantLimits {
            creations_per_minute: one,
            stored_bytes: one,
            unshipped_bytes: one,
            open_subjects: one,
            ..TenantLimits::NONE
        };
        usage.set_limits(GREEDY, limits);
        let mut subject = usage.of_subject(GREEDY);
        let refusals = |now| {
            [
                usage.check_append(GREEDY, 800, Duration::ZERO).is_err(),
                usage.check_store(GREEDY).is_err(),
                usage.count_creation(GREEDY, Duration::from_secs(now)).is_err(),
            ]
        };
        assert_eq!(refusals(0), [false; 3]);
        subject.set(10, 10);
        assert_eq!(refusals(59), [true; 3]);
        assert_eq!(refusals(60), [true, true, false]);
        assert_eq!(usage.max_open_subjects(GREEDY), one);
        usage.set_limits(GREEDY, TenantLimits::NONE);
        assert_eq!(refusals(60), [false; 3]);
        assert_eq!(usage.figures(Duration::ZERO)[&GREEDY].stored_bytes, 10);
    }

    /// Creations are a figure of the current minute: a tenant that only created something before uses nothing.
    #[test]
    fn creations_are_no_figure_after_their_minute() {
        let usage = TenantUsage::default();
        let at = Duration::from_secs;
        usage.count_creation(GREEDY, at(59)).unwrap();
        assert_eq!(usage.figures(at(59))[&GREEDY].creations, 1);
        assert!(usage.figures(at(60)).is_empty());
        assert!(usage.0.lock().of.is_empty());
    }
}
