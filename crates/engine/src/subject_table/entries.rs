//! The entries of the subject table, and which of them are asked to close.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dormouse_protocol::Subject;
use tokio::sync::{Notify, mpsc};

use super::FileGuard;
use super::idle::IdleOrder;
use crate::api::{Submission, TenantId};
use crate::request_rate::RequestRate;

/// Maximum number of subjects that one open examines to find those idle longest. An open that needs more of them leaves
/// the rest to the next open.
pub(super) const EXAMINED: usize = 256;

#[derive(Default)]
pub(super) struct TableInner {
    pub(super) entries: HashMap<Subject, TableEntry>,
    /// The tenants that have entries.
    pub(super) tenants: BTreeMap<TenantId, OpenOfTenant>,
    /// All entries.
    all: OpenOfTenant,
    pub(super) shut: bool,
    pub(super) unreleased: Vec<(Subject, String)>,
    pub(super) released: u64,
}

/// The entries of one tenant, or of all.
#[derive(Default)]
pub(super) struct OpenOfTenant {
    pub(super) open: usize,
    /// Asked to close, and not used since.
    asked: usize,
    /// The others that can close.
    idle: IdleOrder,
}

pub(super) struct TableEntry {
    pub(super) queue: mpsc::Sender<Submission>,
    pub(super) close: Arc<Notify>,
    pub(super) file_guard: Weak<FileGuard>,
    /// The tenant whose request opened it.
    pub(super) tenant: TenantId,
    pub(super) used_at: Duration,
    pub(super) rate: RequestRate,
    /// Asked to close, and not used since.
    pub(super) asked_to_close: bool,
    /// Its position in the order of idle subjects; `None` if it is not in it.
    pub(super) idle_since: Option<Duration>,
}

impl TableInner {
    pub(super) fn open_of(&self, tenant: TenantId) -> usize {
        self.tenants.get(&tenant).map_or(0, |of_tenant| of_tenant.open)
    }

    /// The entries of the tenant, and all.
    fn counts(&mut self, tenant: TenantId) -> [&mut OpenOfTenant; 2] {
        [self.tenants.entry(tenant).or_default(), &mut self.all]
    }

    pub(super) fn insert(&mut self, subject: &Subject, entry: TableEntry) {
        for of in self.counts(entry.tenant) {
            of.open += 1;
        }
        self.entries.insert(subject.clone(), entry);
        self.list_as_idle(subject);
    }

    pub(super) fn remove(&mut self, subject: &Subject) {
        let Some(entry) = self.entries.remove(subject) else { return };
        for of in self.counts(entry.tenant) {
            of.open -= 1;
            of.asked -= usize::from(entry.asked_to_close);
            of.idle.remove(entry.idle_since, subject);
        }
        if self.open_of(entry.tenant) == 0 {
            self.tenants.remove(&entry.tenant);
        }
    }

    /// Records a request. The order of idle subjects learns of it once it examines the subject.
    pub(super) fn used(&mut self, subject: &Subject, now: Duration) {
        let Some(entry) = self.entries.get_mut(subject) else { return };
        entry.used_at = now;
        entry.rate.count(now);
        self.clear_close_request(subject);
    }

    pub(super) fn clear_close_request(&mut self, subject: &Subject) {
        let Some(entry) = self.entries.get_mut(subject) else { return };
        if !std::mem::take(&mut entry.asked_to_close) {
            return;
        }
        let tenant = entry.tenant;
        for of in self.counts(tenant) {
            of.asked -= 1;
        }
        self.list_as_idle(subject);
    }

    /// Puts an entry into the order of idle subjects, by its last use.
    fn list_as_idle(&mut self, subject: &Subject) {
        let Some(entry) = self.entries.get_mut(subject) else { return };
        let (before, now, tenant) = (entry.idle_since, entry.used_at, entry.tenant);
        entry.idle_since = Some(now);
        for of in self.counts(tenant) {
            of.idle.remove(before, subject);
            of.idle.insert(now, subject);
        }
    }

    /// Asks the `number` subjects idle longest to close. The caller adds a reserve each time, so that this search is
    /// rare. If `more`, a request is refused: then at least one further subject is asked, because those asked earlier
    /// may have long work to finish. A panicked task cannot close, so it is not asked. With `of`, only subjects of that
    /// tenant are asked. Examines at most [`EXAMINED`] subjects, however many are open.
    pub(super) fn ask_idle_to_close(&mut self, number: usize, more: bool, of: Option<TenantId>) {
        let asked = match of {
            Some(tenant) => self.tenants.get(&tenant).map_or(0, |of_tenant| of_tenant.asked),
            None => self.all.asked,
        };
        let mut left = number.saturating_sub(asked).max(usize::from(more));
        for _ in 0..EXAMINED {
            let longest = match of {
                _ if left == 0 => return,
                Some(tenant) => self.tenants.get(&tenant).and_then(|of_tenant| of_tenant.idle.longest()),
                None => self.all.idle.longest(),
            };
            let Some(subject) = longest.cloned() else { return };
            left -= usize::from(self.ask_unless_used(&subject));
        }
    }

    /// Asks the first subject of the order to close. `false`: it cannot, or it was used since it has this position.
    fn ask_unless_used(&mut self, subject: &Subject) -> bool {
        let Some(entry) = self.entries.get_mut(subject) else { return false };
        if entry.idle_since != Some(entry.used_at) {
            self.list_as_idle(subject);
            return false;
        }
        let (tenant, idle_since) = (entry.tenant, entry.idle_since.take());
        // A panicked task cannot close. Its entry returns to the order with the next task.
        let can_close = !entry.queue.is_closed();
        entry.asked_to_close = can_close;
        if can_close {
            entry.close.notify_one();
        }
        for of in self.counts(tenant) {
            of.idle.remove(idle_since, subject);
            of.asked += usize::from(can_close);
        }
        can_close
    }
}
