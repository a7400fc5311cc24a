//! Servers whose data side hangs: they lose their lease, say so, and end. Their control side still works.

use anyhow::{Context, ensure};
use dormouse_e2e::{Fleet, until};
use dormouse_protocol::health::HealthStatus;

const NAME: &str = "persist-1";

/// Starts a fleet whose only server then blocks the thread that reaches `step`. Checks that it becomes critical and ends
/// with exit code 1, naming `cause`, and that the next process has all acknowledged writes.
async fn check_hang(step: &str, cause: &str) -> anyhow::Result<()> {
    Fleet::builder()
        .servers(1)
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = client.kv("app.orders")?;
            store.put("before", "1").await?;
            fleet.stop(NAME).await?;
            let armed = fleet.folder().join("armed");
            let environment = [
                ("DORMOUSE_FAIL_POINTS", format!("{step}=1:hang")),
                ("DORMOUSE_FAIL_SEED", "1".to_owned()),
                ("DORMOUSE_FAIL_WHILE", armed.display().to_string()),
            ];
            fleet.start_with(NAME, &environment)?;
            fleet.wait_serving(NAME).await?;
            store.put("alive", "1").await?;
            fleet.expect_warning("fail points are armed");
            fleet.expect_warning("data side stalled");
            fleet.expect_warning("lease expired");
            std::fs::write(&armed, "")?;
            // A write reaches the step; its outcome stays unknown.
            let writing = async {
                let _ = store.put("during", "1").await;
                std::future::pending::<()>().await;
            };
            let stalled = async {
                until("health is critical", async || {
                    let health = fleet.health(NAME).await?;
                    Ok(health.filter(|health| health.status == HealthStatus::Critical))
                })
                .await?;
                until("the process ends", async || fleet.ended(NAME)).await
            };
            let status = tokio::select! {
                status = stalled => status?,
                () = writing => unreachable!("it does not end"),
            };
            ensure!(status.code() == Some(1), "{status}");
            let log = fleet.log(NAME)?;
            let line = log.lines().find(|line| line.contains("data side stalled, ending process"));
            ensure!(line.context("no last line")?.contains(cause), "{line:?}");
            std::fs::remove_file(&armed)?;
            fleet.restart(NAME).await?;
            for key in ["before", "alive"] {
                ensure!(store.get(key).await?.as_deref() == Some(b"1"), "{key}");
            }
            Ok(())
        })
        .await
}

/// If the data side ends no pass any more, the lease lapses, health is critical, and the process ends.
#[tokio::test]
async fn lease_lapses_when_data_thread_stops() -> anyhow::Result<()> {
    check_hang("data-pass", "data thread").await
}

/// If a write of the WAL does not end, the lease lapses, health is critical, and the process ends.
#[tokio::test]
async fn lease_lapses_when_wal_write_blocks() -> anyhow::Result<()> {
    check_hang("wal-writing", "WAL write").await
}
