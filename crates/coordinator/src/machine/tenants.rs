//! Tenants: the limits that operators set, and the use that servers report.

use std::collections::BTreeMap;
use std::ops::Bound;

use dormouse_protocol::admin::{TenantEntry, TenantLimitReply, TenantLimitRequest, TenantsReply};
use dormouse_protocol::fleet::LimitsReply;
use dormouse_protocol::limits::{MAX_TENANT_RECORDS, MAX_TENANTS_PER_PAGE};
use dormouse_protocol::tenant::{LimitedTenant, LimitsRevision, TenantLimits, TenantUse};
use dormouse_protocol::{ErrorReply, TenantName};

use super::{CoordinatorMachine, CoordinatorReply, Effects, OperatorEvent};
use crate::store::StoreChange;

/// The limits of all tenants that have any.
#[derive(Debug, Default)]
pub(super) struct LimitTable {
    limits: BTreeMap<TenantName, TenantLimits>,
    revision: LimitsRevision,
}

impl LimitTable {
    pub(super) fn new(limits: BTreeMap<TenantName, TenantLimits>) -> Self {
        Self { revision: LimitsRevision::of(&limits), limits }
    }

    pub(super) const fn revision(&self) -> LimitsRevision {
        self.revision
    }

    fn of(&self, tenant: &TenantName) -> TenantLimits {
        self.limits.get(tenant).copied().unwrap_or_default()
    }

    fn set(&mut self, tenant: &TenantName, limits: TenantLimits) {
        let before = self.of(tenant);
        self.revision = self.revision.toggled(tenant, &before).toggled(tenant, &limits);
        if limits.is_empty() {
            self.limits.remove(tenant);
        } else {
            self.limits.insert(tenant.clone(), limits);
        }
    }
}

/// The part of a map that a page begins with.
fn after(cursor: Option<&TenantName>) -> (Bound<&TenantName>, Bound<&TenantName>) {
    (cursor.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

impl CoordinatorMachine {
    /// A page of the limits, for servers.
    pub(super) fn limits(&self, cursor: Option<&TenantName>) -> Effects {
        let mut rest = self.limits.limits.range::<TenantName, _>(after(cursor));
        let page: Vec<LimitedTenant> = rest
            .by_ref()
            .take(MAX_TENANTS_PER_PAGE)
            .map(|(tenant, limits)| LimitedTenant { tenant: tenant.clone(), limits: *limits })
            .collect();
        let cursor = rest.next().and_then(|_| page.last().map(|last| last.tenant.clone()));
        let revision = self.limits.revision;
        Effects::answer(CoordinatorReply::Limits(LimitsReply { revision, limits: page, cursor }))
    }

    /// A page of the tenants with limits and of the busiest tenants, for operators.
    pub(super) fn tenants(&self, cursor: Option<&TenantName>) -> Effects {
        let mut found: BTreeMap<&TenantName, (TenantUse, u64)> = BTreeMap::new();
        let members = self.members.values().filter(|member| member.lease.may_be_held());
        for busy in members.flat_map(|member| &member.tenants) {
            let (in_use, servers) = found.entry(&busy.tenant).or_default();
            *in_use = in_use.plus(busy.in_use);
            *servers += 1;
        }
        // One more than a page from each source shows whether there is a next page.
        for (tenant, _) in
            self.limits.limits.range::<TenantName, _>(after(cursor)).take(MAX_TENANTS_PER_PAGE + 1)
        {
            found.entry(tenant).or_default();
        }
        let mut rest = found.range::<TenantName, _>(after(cursor));
        let page: Vec<TenantEntry> = rest
            .by_ref()
            .take(MAX_TENANTS_PER_PAGE)
            .map(|(tenant, (in_use, servers))| TenantEntry {
                tenant: TenantName::clone(tenant),
                limits: self.limits.of(tenant),
                in_use: *in_use,
                servers: *servers,
            })
            .collect();
        let cursor = rest.next().and_then(|_| page.last().map(|last| last.tenant.clone()));
        Effects::answer(CoordinatorReply::Tenants(TenantsReply { tenants: page, cursor }))
    }

    /// Sets limits of a tenant. The servers learn of it with their next lease.
    pub(super) fn limit_tenant(&mut self, request: TenantLimitRequest) -> Effects {
        let TenantLimitRequest { v: _, tenant, clear, limits } = request;
        if tenant.is_shared() {
            let text =
                format!("{tenant} stands for all tenants without a record, and has no limits of its own");
            return Effects::refuse(ErrorReply::bad_request(text));
        }
        let before = self.limits.of(&tenant);
        let now = if clear { limits } else { before.updated(limits) };
        let is_new = before.is_empty() && !now.is_empty();
        if is_new && self.limits.limits.len() >= MAX_TENANT_RECORDS {
            let text =
                format!("{MAX_TENANT_RECORDS} tenants have limits; clear those of another tenant first");
            return Effects::refuse(ErrorReply::bad_request(text));
        }
        let mut effects = Effects::answer(CoordinatorReply::TenantLimit(TenantLimitReply { limits: now }));
        if now != before {
            self.limits.set(&tenant, now);
            effects.changes.push(StoreChange::TenantLimits { tenant: tenant.clone(), limits: now });
            effects.events.push(OperatorEvent::TenantLimited { tenant, limits: now });
        }
        effects
    }
}
