use dormouse_protocol::TenantName;
use dormouse_protocol::admin::{TenantEntry, TenantLimitRequest, TenantsReply, TenantsRequest};
use dormouse_protocol::fleet::{LimitsReply, LimitsRequest};
use dormouse_protocol::limits::{MAX_BUSY_TENANTS, MAX_TENANT_RECORDS};
use dormouse_protocol::tenant::{BusyTenant, LimitsRevision, TenantLimits, TenantUse};

use super::super::OperatorEvent;
use super::*;

fn tenant(name: &str) -> TenantName {
    TenantName::new(name).unwrap()
}

fn requests(requests: u64) -> TenantLimits {
    TenantLimits { requests: Some(requests), ..TenantLimits::NONE }
}

fn limit(name: &str, clear: bool, limits: TenantLimits) -> CoordinatorInput {
    let v = ProtocolVersion::CURRENT;
    CoordinatorInput::LimitTenant(TenantLimitRequest { v, tenant: tenant(name), clear, limits })
}

impl World {
    fn limit(&mut self, name: &str, clear: bool, limits: TenantLimits) -> Result<TenantLimits, ErrorCode> {
        match self.ask(limit(name, clear, limits)) {
            Ok(CoordinatorReply::TenantLimit(reply)) => Ok(reply.limits),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.code),
        }
    }

    fn limits_page(&mut self, after: Option<TenantName>) -> LimitsReply {
        let request = LimitsRequest { after, ..LimitsRequest::default() };
        match self.ask(CoordinatorInput::Limits(request)) {
            Ok(CoordinatorReply::Limits(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn tenants_page(&mut self, after: Option<TenantName>) -> TenantsReply {
        let request = TenantsRequest { after, ..TenantsRequest::default() };
        match self.ask(CoordinatorInput::Tenants(request)) {
            Ok(CoordinatorReply::Tenants(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn beat_with_tenants(&mut self, log: &LogId, tenants: Vec<BusyTenant>) -> LeaseReply {
        let CoordinatorInput::Heartbeat(request) = heartbeat(log) else { unreachable!() };
        match self.ask(CoordinatorInput::Heartbeat(HeartbeatRequest { tenants, ..request })) {
            Ok(CoordinatorReply::Lease(lease)) => lease,
            other => panic!("{other:?}"),
        }
    }
}

fn busy(name: &str, requests: u64) -> BusyTenant {
    BusyTenant { tenant: tenant(name), in_use: TenantUse { requests, ..TenantUse::default() } }
}

/// New limits replace those that they name, `clear` removes the others, and the lease has the revision of the result.
#[test]
fn tenant_limits_are_stored_and_told_with_lease() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    assert_eq!(world.beat_with_tenants(&one, Vec::new()).limits, LimitsRevision::NONE);
    let uploads = TenantLimits { uploads: Some(2), ..TenantLimits::NONE };
    let both = TenantLimits { requests: Some(5), ..uploads };
    assert_eq!(world.limit("a", false, requests(5)), Ok(requests(5)));
    assert_eq!(world.limit("a", false, uploads), Ok(both));
    assert_eq!(world.limit("b", false, requests(1)), Ok(requests(1)));
    let revision = LimitsRevision::of([(&tenant("a"), &both), (&tenant("b"), &requests(1))]);
    assert_eq!(world.beat_with_tenants(&one, Vec::new()).limits, revision);
    let page = world.limits_page(None);
    assert_eq!((page.revision, page.limits.len(), page.cursor), (revision, 2, None));
    // The limits survive a restart of the coordinator, with their revision.
    world.restart(TTL);
    assert_eq!(world.beat_with_tenants(&one, Vec::new()).limits, revision);
    assert_eq!(world.limit("a", true, uploads), Ok(uploads));
    assert_eq!(world.limit("a", true, TenantLimits::NONE), Ok(TenantLimits::NONE));
    assert_eq!(world.limit("b", true, TenantLimits::NONE), Ok(TenantLimits::NONE));
    assert_eq!(world.beat_with_tenants(&one, Vec::new()).limits, LimitsRevision::NONE);
    assert_eq!(world.store.load_state().unwrap().limits.len(), 0);
}

/// A repeated order changes nothing, and each change is stored and reported once.
#[test]
fn tenant_limit_repeated_changes_nothing() {
    let mut world = World::new();
    let effects = world.apply(limit("a", false, requests(5)));
    let limits = requests(5);
    assert_eq!(effects.changes, [StoreChange::TenantLimits { tenant: tenant("a"), limits }]);
    assert_eq!(effects.events, [OperatorEvent::TenantLimited { tenant: tenant("a"), limits }]);
    let effects = world.apply(limit("a", false, requests(5)));
    assert_eq!((effects.changes.len(), effects.events.len()), (0, 0));
    assert_eq!(world.limit("unknown", true, TenantLimits::NONE), Ok(TenantLimits::NONE));
}

/// The number of tenants with limits is bounded, pages are bounded, and the shared record has no limits.
#[test]
fn tenant_limits_are_bounded_and_paged() {
    let mut world = World::new();
    for n in 0..MAX_TENANT_RECORDS {
        let effects =
            world.machine.apply(limit(&format!("t{n:05}"), false, requests(1)), world.now, &world.store);
        assert!(matches!(effects.answer, Some(Ok(_))));
    }
    assert_eq!(world.limit("one-more", false, requests(1)), Err(ErrorCode::BadRequest));
    assert_eq!(world.limit("t00007", false, requests(2)), Ok(requests(2)), "it has limits already");
    assert_eq!(world.limit("*", false, requests(1)), Err(ErrorCode::BadRequest));
    let (mut read, mut listed, mut cursor) = (Vec::new(), Vec::new(), None);
    loop {
        let (limits, tenants) = (world.limits_page(cursor.clone()), world.tenants_page(cursor));
        assert!(limits.limits.len() <= 256 && tenants.tenants.len() <= 256);
        read.extend(limits.limits.into_iter().map(|limited| limited.tenant));
        listed.extend(tenants.tenants.into_iter().map(|entry| entry.tenant));
        assert_eq!(limits.cursor, tenants.cursor);
        cursor = limits.cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert!(read.len() == MAX_TENANT_RECORDS && read.is_sorted() && read == listed);
}

/// The list has the sum of the use at the live servers, and the tenants with limits.
#[test]
fn tenant_list_sums_use_of_live_servers() {
    let mut world = World::new();
    let (one, two) = (world.joined("one", 1), world.joined("two", 2));
    world.limit("limited", false, requests(9)).unwrap();
    world.beat_with_tenants(&one, vec![busy("greedy", 7), busy("polite", 1)]);
    world.beat_with_tenants(&two, vec![busy("greedy", 5)]);
    let row = |entry: TenantEntry| {
        (entry.tenant.to_string(), entry.in_use.requests, entry.servers, entry.limits.requests)
    };
    let list = |world: &mut World| world.tenants_page(None).tenants.into_iter().map(row).collect::<Vec<_>>();
    let limited = ("limited".to_owned(), 0, 0, Some(9));
    let polite = ("polite".to_owned(), 1, 1, None);
    assert_eq!(list(&mut world), [("greedy".to_owned(), 12, 2, None), limited.clone(), polite.clone()]);
    world.ask(leave(&two)).unwrap();
    assert_eq!(list(&mut world), [("greedy".to_owned(), 7, 1, None), limited.clone(), polite]);
    // The next process of the server has not reported yet, and a report is bounded.
    let next = log("one", 3);
    world.ask(join_after(&next, &one)).unwrap();
    assert_eq!(list(&mut world), [limited]);
    world.beat_with_tenants(&next, (0..1_000).map(|n| busy(&format!("t{n}"), n)).collect());
    assert_eq!(list(&mut world).len(), MAX_BUSY_TENANTS + 1);
}
