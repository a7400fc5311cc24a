//! Properties of the shares.

use dormouse_protocol::ErrorCode;
use dormouse_protocol::tenant::{TenantLimits, TenantName};
use proptest::prelude::*;

use super::shares::{Amount, Charge, RequestKind, Shares, SharesSettings};
use super::*;

const NOW: Duration = Duration::from_secs(1);

fn subject(tenant: usize, number: usize) -> Subject {
    Subject::new(&format!("t{tenant}.s{number}")).unwrap()
}

fn shares(requests: u64) -> Shares {
    let whole = Amount { requests, bytes: requests * 1_000, items: requests * 100 };
    Shares::new(SharesSettings { whole, max_tenants: 100 })
}

fn charge(
    shares: &mut Shares,
    tenant: usize,
    number: usize,
    op: Op,
    bytes: u64,
) -> Result<Charge, OverloadCause> {
    let id = shares.arrived(&format!("t{tenant}"), NOW);
    shares.charge(id, &subject(tenant, number), op, bytes, NOW)
}

/// Charges gets until one is refused, and returns the charges.
fn take_all(shares: &mut Shares, tenant: usize, number: usize) -> Vec<Charge> {
    std::iter::from_fn(|| charge(shares, tenant, number, Op::Get, 1).ok()).collect()
}

/// A tenant holds half of what others leave free, and one of its subjects half of that.
#[test]
fn tenant_share_is_half_of_what_others_leave() {
    let mut shares = shares(2 * 1_600);
    let first = take_all(&mut shares, 1, 1);
    assert_eq!(first.len(), 375, "half of the half of 1,600 without its reserve");
    let second = take_all(&mut shares, 1, 2);
    assert_eq!(second.len(), 187);
    let other = take_all(&mut shares, 2, 1);
    assert_eq!(other.len(), (1_500 - 375 - 187) / 4);
    assert!(matches!(charge(&mut shares, 1, 1, Op::Get, 1), Err(OverloadCause::TenantShare)));
    for held in first.iter().chain(&second).chain(&other) {
        shares.release(held);
    }
    assert_eq!(shares.in_flight(), 0);
    assert_eq!(take_all(&mut shares, 2, 1).len(), 375);
}

/// A tenant without unanswered requests is admitted, however many others hold all that they can.
#[test]
fn tenant_without_requests_is_admitted_beside_any_flood() {
    let mut shares = shares(2 * 1_600);
    let flood: Vec<_> = (0..80).flat_map(|tenant| take_all(&mut shares, tenant, 1)).collect();
    assert!(flood.len() > 1_400, "{}", flood.len());
    assert!(charge(&mut shares, 90, 1, Op::Get, 1_000).is_ok());
    assert!(charge(&mut shares, 91, 1, Op::Set, 1_000).is_ok(), "reads do not use the half of the changes");
}

/// An operator's limit replaces the share, half of it for each kind, and never exceeds what is free.
#[test]
fn tenant_limit_replaces_share() {
    let mut shares = shares(2 * 1_600);
    let limits = |requests| {
        let limits = TenantLimits { requests: Some(requests), ..TenantLimits::NONE };
        [(TenantName::new("t1").unwrap(), limits)]
    };
    shares.set_limits(limits(40));
    let held = take_all(&mut shares, 1, 1);
    assert_eq!(held.len() + take_all(&mut shares, 1, 2).len(), 15, "20 for reads, half of it for a subject");
    shares.set_limits(limits(1_000_000));
    let more: usize = (3..40).map(|number| take_all(&mut shares, 1, number).len()).sum();
    assert!((1_000..=1_500).contains(&(more + 15)), "{more}");
}

/// Above its configured messages per second, a tenant's sets are refused until the next second; its gets are not.
#[test]
fn tenant_message_rate_limits_sets_only() {
    let mut shares = shares(2 * 1_600);
    let limits = TenantLimits { messages_per_second: Some(10), ..TenantLimits::NONE };
    shares.set_limits([(TenantName::new("t1").unwrap(), limits)]);
    let mut first = charge(&mut shares, 1, 1, Op::Set, 1).unwrap();
    assert_eq!(shares.charge_items(&mut first, 9, NOW), Ok(()));
    assert!(matches!(charge(&mut shares, 1, 1, Op::Set, 1), Err(OverloadCause::TenantShare)));
    assert!(charge(&mut shares, 1, 1, Op::Get, 1).is_ok());
    let id = shares.arrived("t1", NOW);
    assert!(shares.charge(id, &subject(1, 1), Op::Set, 1, 2 * NOW).is_ok());
    shares.release(&first);
    assert_eq!(shares.busiest(1, &BTreeMap::new(), 2 * NOW)[0].in_use.messages_per_second, 10);
}

/// A set with more messages than the tenant's limit passes once a second, and a refused one counts nothing.
#[test]
fn tenant_message_rate_lets_large_set_pass_once_a_second() {
    let mut shares = shares(2 * 1_600);
    let limits = TenantLimits { messages_per_second: Some(10), ..TenantLimits::NONE };
    shares.set_limits([(TenantName::new("t1").unwrap(), limits)]);
    let mut large = charge(&mut shares, 1, 1, Op::Set, 1).unwrap();
    assert_eq!(shares.charge_items(&mut large, 99, NOW), Ok(()));
    assert!(charge(&mut shares, 1, 2, Op::Set, 1).is_err());
    let (id, later) = (shares.arrived("t1", NOW), 2 * NOW);
    let _small = shares.charge(id, &subject(1, 2), Op::Set, 1, later).unwrap();
    let mut second = shares.charge(id, &subject(1, 3), Op::Set, 1, later).unwrap();
    assert_eq!(shares.charge_items(&mut second, 99, later), Err(OverloadCause::TenantShare));
    let mut third = shares.charge(id, &subject(1, 4), Op::Set, 1, later).unwrap();
    assert_eq!(shares.charge_items(&mut third, 8, later), Ok(()), "1 + 9 of 10");
}

/// The items of a tenant's only request fit, however many items other tenants hold.
#[test]
fn tenant_without_other_requests_gets_items_beside_any_flood() {
    let mut shares = shares(2 * 1_600);
    let mut flood = Vec::new();
    for tenant in 0..40 {
        let mut request = charge(&mut shares, tenant, 1, Op::Set, 1).unwrap();
        while shares.charge_items(&mut request, 1, NOW).is_ok() {
            let Ok(next) = charge(&mut shares, tenant, 1, Op::Set, 1) else { break };
            flood.push(std::mem::replace(&mut request, next));
        }
        flood.push(request);
    }
    let mut polite = charge(&mut shares, 50, 1, Op::Set, 1).unwrap();
    assert_eq!(shares.charge_items(&mut polite, 200, NOW), Ok(()));
    shares.check();
}

#[derive(Debug, Clone)]
enum Step {
    Charge { tenant: usize, subject: usize, is_read: bool, bytes: u64, items: u64 },
    Release(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let charge = (0..6_usize, 0..3_usize, any::<bool>(), 0..3_000_u64, 0..200_u64).prop_map(
        |(tenant, subject, is_read, bytes, items)| Step::Charge { tenant, subject, is_read, bytes, items },
    );
    prop_oneof![3 => charge, 2 => (0..100_usize).prop_map(Step::Release)]
}

/// Runs the steps; `only` skips the charges of the other kind. Returns the decisions about the charges.
fn run(steps: &[Step], only: Option<RequestKind>) -> Vec<(RequestKind, Option<OverloadCause>)> {
    let mut machine = shares(80);
    let mut held: Vec<(RequestKind, Charge)> = Vec::new();
    let mut decisions = Vec::new();
    for step in steps {
        match step {
            Step::Charge { tenant, subject, is_read, bytes, items } => {
                let op = if *is_read { Op::Get } else { Op::Set };
                let kind = RequestKind::of(op);
                if only.is_some_and(|only| only != kind) {
                    continue;
                }
                let charged = charge(&mut machine, *tenant, *subject, op, *bytes).and_then(|mut charge| {
                    let more = machine.charge_items(&mut charge, *items, NOW);
                    if more.is_err() {
                        machine.release(&charge);
                    }
                    more.map(|()| charge)
                });
                decisions.push((kind, charged.as_ref().err().copied()));
                held.extend(charged.ok().map(|charge| (kind, charge)));
            }
            Step::Release(position) => {
                // The kinds release independently, so that one kind alone makes the same steps.
                for kind in [RequestKind::Read, RequestKind::Change] {
                    let of_kind: Vec<usize> = held
                        .iter()
                        .enumerate()
                        .filter(|(_, held)| held.0 == kind)
                        .map(|(at, _)| at)
                        .collect();
                    if let Some(at) = of_kind.get(position % of_kind.len().max(1)) {
                        machine.release(&held.remove(*at).1);
                    }
                }
            }
        }
        machine.check();
    }
    for (_, charge) in held {
        machine.release(&charge);
        machine.check();
    }
    assert_eq!(machine.in_flight(), 0);
    decisions
}

/// The control side reads figures and sets limits while the data side holds the machine, without waiting for it. The limits
/// hold from the next pass on.
#[test]
fn admission_serves_control_side_while_machine_is_held() {
    let admission = Admission::new(TenantRule::default(), Env::system());
    let admit = |op| admission.admit(&Caller::Permitted, &subject(1, 1), op, 1, NOW);
    let permit = admit(Op::Get).unwrap();
    {
        let _held = admission.shares.lock();
        assert_eq!((admission.in_flight(), admission.tenants()), (1, 1));
        let limits = TenantLimits { messages_per_second: Some(0), ..TenantLimits::NONE };
        admission.set_limits(vec![LimitedTenant { tenant: TenantName::new("t1").unwrap(), limits }]);
    }
    drop(admit(Op::Set).unwrap());
    admission.apply_limits();
    assert!(matches!(admit(Op::Set), Err(Refusal::Reply(error)) if error.code == ErrorCode::Overloaded));
    drop(permit);
    assert_eq!(admission.in_flight(), 0);
}

proptest! {
    /// The charges never exceed the limits and return to zero; equal steps give equal decisions; and neither kind
    /// depends on the other.
    #[test]
    fn shares_stay_within_limits_and_return_to_zero(steps in prop::collection::vec(step(), 1..150)) {
        let all = run(&steps, None);
        prop_assert_eq!(&run(&steps, None), &all);
        for kind in [RequestKind::Read, RequestKind::Change] {
            let alone = run(&steps, Some(kind));
            let beside: Vec<_> = all.iter().copied().filter(|decision| decision.0 == kind).collect();
            prop_assert_eq!(alone, beside);
        }
    }
}
