//! Outages of a server or the coordinator under load: calls are delayed at most.

use std::time::Duration;

use anyhow::{Context, ensure};
use dormouse_client::{Error, Level};
use dormouse_e2e::{Fleet, until};

use crate::load::{SUBJECTS, more_written, name, under_load};

/// The shortest lease that is supported.
const SHORTEST_LEASE: [&str; 2] = ["--lease-ttl", "500ms"];

/// A machine that is busy for longer than a short lease may lose it by accident. That costs only time, as these tests
/// show.
const LEASE_LOSS_WARNINGS: [&str; 4] = [
    "lease expired",
    "declared dead",
    "log fenced, closing all subjects",
    "log fenced, restarting with new log",
];

/// Servers that are killed under load delay calls and fail none.
#[tokio::test]
async fn server_kills_under_load_fail_no_call() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(3)
        .coordinator_args(SHORTEST_LEASE)
        .run(async |fleet| {
            LEASE_LOSS_WARNINGS.iter().for_each(|warning| fleet.expect_warning(warning));
            // Writes that a killed server had not acknowledged; its writers repeated them.
            fleet.expect_warning("stranded writes found, deferred to next claim");
            fleet.expect_warning("diverged writes saved to lost/");
            let client = fleet.client().await?;
            // Writes acknowledged below this level may be lost with their server.
            under_load(&client, &[Level::Bucket], async |written| {
                for number in 0..3 {
                    let owner = fleet.owner(&client, &name(number)).await?;
                    fleet.kill9(&owner).await?;
                    more_written(written).await?;
                    until("its subjects are served elsewhere", async || {
                        let now = fleet.owner(&client, &name(number)).await?;
                        Ok((now != owner).then_some(()))
                    })
                    .await?;
                    fleet.restart(&owner).await?;
                }
                Ok(())
            })
            .await
        })
        .await
}

/// With the coordinator down and all leases expired, assigned subjects keep serving, and only a new subject waits.
#[tokio::test]
async fn coordinator_down_assigned_subjects_keep_serving() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .coordinator_args(SHORTEST_LEASE)
        .run(async |fleet| {
            LEASE_LOSS_WARNINGS.iter().for_each(|warning| fleet.expect_warning(warning));
            let client = fleet.client().await?;
            let new_subject = client.kv("app.new")?;
            under_load(&client, &crate::load::LEVELS, async |written| {
                fleet.kill9("coordinator").await?;
                for server in ["persist-1", "persist-2"] {
                    until("the lease is expired", async || {
                        let health = fleet.health(server).await?.context("no health reply")?;
                        Ok((health.figures["lease_generation"] == 0).then_some(()))
                    })
                    .await?;
                }
                // Many times the length of a lease.
                for _ in 0..5 {
                    more_written(written).await?;
                }
                let error = new_subject.clone().with_deadline(Duration::from_secs(2)).put("k", "v").await;
                let error = error.err().context("the new subject got a server without a coordinator")?;
                ensure!(matches!(error, Error::Deadline { last: Some(_), .. }), "{error:?}");
                let waiting = new_subject.put("k", "v");
                let back = async {
                    fleet.restart("coordinator").await?;
                    anyhow::Ok(())
                };
                let (put, back) = futures::join!(waiting, back);
                back?;
                put.context("the call did not wait for the coordinator within its deadline")?;
                for server in ["persist-1", "persist-2"] {
                    fleet.wait_serving(server).await?;
                }
                for number in 0..SUBJECTS {
                    fleet.owner(&client, &name(number)).await?;
                }
                Ok(())
            })
            .await
        })
        .await
}
