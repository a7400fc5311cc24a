//! A server or the coordinator is gone, under load: a short delay, or nothing at all.

use std::time::Duration;

use anyhow::{Context, ensure};
use dormouse_client::{Error, Level};
use dormouse_e2e::{Fleet, until};

use crate::load::{SUBJECTS, more_written, name, under_load};

/// The shortest lease that is promised to work.
const SHORTEST_LEASE: [&str; 2] = ["--lease-ttl", "500ms"];

/// A machine that is busy for longer than a short lease is trusted loses it by accident. That costs time and nothing
/// else, which is what these tests hold.
const BY_ACCIDENT: [&str; 4] =
    ["the lease ran out", "declared dead", "another process has ended this log", "going on with a fresh one"];

#[tokio::test]
async fn servers_that_are_killed_under_load_are_a_pause_and_no_call_fails() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(3)
        .coordinator_args(SHORTEST_LEASE)
        .run(async |fleet| {
            BY_ACCIDENT.iter().for_each(|warning| fleet.expect_warning(warning));
            // What a killed server had not acknowledged yet; its writers wrote it again.
            fleet.expect_warning("somebody ended the log of an earlier process");
            fleet.expect_warning("changes accepted here never reached the bucket");
            let client = fleet.client().await?;
            // What is acknowledged below this level may be lost with its server.
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

#[tokio::test]
async fn without_the_coordinator_everything_that_is_assigned_is_written_and_read_and_only_what_is_new_waits()
-> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .coordinator_args(SHORTEST_LEASE)
        .run(async |fleet| {
            BY_ACCIDENT.iter().for_each(|warning| fleet.expect_warning(warning));
            let client = fleet.client().await?;
            let stranger = client.kv("app.new")?;
            under_load(&client, &crate::load::LEVELS, async |written| {
                fleet.kill9("coordinator").await?;
                for server in ["persist-1", "persist-2"] {
                    until("no lease is left", async || {
                        let health = fleet.health(server).await?.context("it answers")?;
                        Ok((health.figures["lease_generation"] == 0).then_some(()))
                    })
                    .await?;
                }
                // Many times as long as any lease.
                for _ in 0..5 {
                    more_written(written).await?;
                }
                let error = stranger.clone().with_deadline(Duration::from_secs(2)).put("k", "v").await;
                let error = error.err().context("nobody can say who shall have it")?;
                ensure!(matches!(error, Error::Deadline { last: Some(_), .. }), "{error:?}");
                let waiting = stranger.put("k", "v");
                let back = async {
                    fleet.restart("coordinator").await?;
                    anyhow::Ok(())
                };
                let (put, back) = futures::join!(waiting, back);
                back?;
                put.context("it waits for the coordinator, within its deadline")?;
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
