//! A polite tenant beside each aggressor of a second tenant: no polite call fails, no lease lapses, and an aggressor that
//! exceeds its share gets `overloaded`. No test depends on a duration.

use dormouse_e2e::greedy::{Aggressor, Scale, Trial};

/// Runs the attack of one aggressor at the scale of a test, and judges it.
async fn leaves_polite_tenant_alone(aggressor: Aggressor) -> anyhow::Result<()> {
    let outcome = Trial { aggressor, scale: Scale::Test }.run().await?;
    outcome.judge(aggressor.refusal())
}

/// Generates one test for each aggressor.
macro_rules! greedy {
    ($($(#[$doc:meta])* $name:ident: $aggressor:ident,)*) => {
        $($(#[$doc])* #[tokio::test]
        async fn $name() -> anyhow::Result<()> {
            leaves_polite_tenant_alone(Aggressor::$aggressor).await
        })*

        /// Every aggressor has a test.
        #[test]
        fn greedy_tests_cover_all_aggressors() {
            assert_eq!([$(Aggressor::$aggressor),*], Aggressor::ALL);
        }
    };
}

greedy! {
    /// A reader who pages through a large subject delays no other tenant beyond its deadline.
    greedy_get_all_flood_leaves_polite_tenant_alone: GetAllFlood,
    /// Sixteen legal batches of 9,000 messages at a time cost the server no lease.
    greedy_atomic_batches_leave_polite_tenant_alone: AtomicBatches,
    /// The expiry of 30,000 messages at once delays no other tenant beyond its deadline.
    greedy_short_ttl_leaves_polite_tenant_alone: ShortTtl,
    /// A flood of small gets leaves answers for other tenants.
    greedy_small_gets_leave_polite_tenant_alone: SmallGets,
    /// A flood of small sets leaves room in the log for other tenants.
    greedy_small_sets_leave_polite_tenant_alone: SmallSets,
    /// Gets of 900 kB are refused by their size.
    greedy_garbage_gets_leave_polite_tenant_alone: GarbageGets,
    /// Two deletions of many messages cost the server no lease.
    greedy_delete_all_leaves_polite_tenant_alone: DeleteAll,
    /// A flood of look-ups leaves heartbeats, and requests of other tenants, alone.
    greedy_unknown_lookups_leave_polite_tenant_alone: UnknownLookups,
    /// 2,000 uploads that begin and never end leave requests of other tenants alone.
    greedy_uploads_leave_polite_tenant_alone: Uploads,
    /// Reads of a thousand dormant subjects leave requests of other tenants alone.
    greedy_dormant_reads_leave_polite_tenant_alone: DormantReads,
    /// Writers that wait for a hanging bucket leave room for writes of other tenants below level `bucket`.
    greedy_hanging_bucket_leaves_polite_tenant_alone: HangingBucket,
    /// 33,000 sets of as many sessions leave room for requests of other tenants.
    greedy_sessions_leave_polite_tenant_alone: Sessions,
}
