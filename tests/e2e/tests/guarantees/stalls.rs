//! Servers whose data side hangs: they lose their lease, say so, and end. Their control side still works.

use anyhow::{Context, ensure};
use dormouse_e2e::greedy::Flood;
use dormouse_e2e::{Fleet, until};
use dormouse_harness::ProxyMode;
use dormouse_protocol::data::{SetItem, SetRequest};
use dormouse_protocol::health::HealthStatus;
use dormouse_protocol::{Op, Prefix, ServerName, encode};
use dormouse_runtime::Env;

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

/// The control thread takes the signals: the second one ends a process whose data side hangs and cannot shut down.
#[tokio::test]
async fn second_signal_ends_server_whose_data_thread_hangs() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(1)
        // The process ends by itself only after three lease times.
        .coordinator_args(["--lease-ttl", "20s"])
        .run(async |fleet| {
            fleet.stop(NAME).await?;
            let armed = fleet.folder().join("armed");
            let environment = [
                ("DORMOUSE_FAIL_POINTS", "data-pass=1:hang".to_owned()),
                ("DORMOUSE_FAIL_SEED", "1".to_owned()),
                ("DORMOUSE_FAIL_WHILE", armed.display().to_string()),
                // The only worker hangs, and with it all tasks of the data side.
                ("TOKIO_WORKER_THREADS", "1".to_owned()),
            ];
            fleet.start_with(NAME, &environment)?;
            fleet.wait_serving(NAME).await?;
            fleet.expect_warning("fail points are armed");
            fleet.expect_warning("second signal received");
            std::fs::write(&armed, "")?;
            for line in ["thread blocked", "stop signal received signal=\"SIGINT\""] {
                until(line, async || Ok(fleet.log(NAME)?.contains(line).then_some(()))).await?;
                fleet.process(NAME)?.interrupt()?;
            }
            let status = until("the process ends", async || fleet.ended(NAME)).await?;
            ensure!(status.code() == Some(130), "{status}");
            Ok(())
        })
        .await
}

/// If the data connection alone is cut, the lease lapses and health is critical, over the control connection. A connection
/// that returns in time is used again; one that stays away ends the process.
#[tokio::test]
async fn lease_lapses_when_data_connection_is_cut() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(1)
        .proxied()
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = client.kv("app.orders")?;
            store.put("before", "1").await?;
            fleet.expect_warning("data side stalled");
            fleet.expect_warning("lease expired");
            fleet.expect_warning("NATS connection lost");
            fleet.expect_warning("connection closed unexpectedly");
            fleet.expect_warning("events dropped");
            let data_connection = format!("dormouse-persist-server {NAME}");
            for returns in [true, false] {
                fleet.proxies().set_nats_connection(NAME, &data_connection, ProxyMode::Stalled);
                until("health is critical", async || {
                    let health = fleet.health(NAME).await?;
                    Ok(health.filter(|health| health.status == HealthStatus::Critical))
                })
                .await?;
                if returns {
                    fleet.proxies().set_nats_connection(NAME, &data_connection, ProxyMode::Forward);
                    fleet.wait_serving(NAME).await?;
                    store.put("between", "1").await?;
                } else {
                    // A connection that cannot be made again is no better than one that is silent.
                    fleet.proxies().set_nats_connection(NAME, &data_connection, ProxyMode::Cut);
                }
            }
            let status = until("the process ends", async || fleet.ended(NAME)).await?;
            ensure!(status.code() == Some(1), "{status}");
            let log = fleet.log(NAME)?;
            let line = log.lines().find(|line| line.contains("data side stalled, ending process"));
            ensure!(line.context("no last line")?.contains("data connection"), "{line:?}");
            fleet.proxies().set_nats(NAME, ProxyMode::Forward);
            fleet.restart(NAME).await?;
            for key in ["before", "between"] {
                ensure!(store.get(key).await?.as_deref() == Some(b"1"), "{key}");
            }
            Ok(())
        })
        .await
}

/// A server that has more requests than it can answer, for several lease times, keeps its lease: saturation is no hang.
#[tokio::test]
async fn lease_survives_saturated_data_thread() -> anyhow::Result<()> {
    const TTLS: u64 = 3;
    const TTL_MS: u64 = 3_000;
    Fleet::builder()
        .servers(1)
        .in_memory()
        .run(async |fleet| {
            let server = ServerName::new(NAME)?;
            let subjects: Vec<_> =
                (0..32).map(|number| format!("app.s{number}").parse()).collect::<Result<_, _>>()?;
            let set = SetItem { key: Some("k".to_owned()), value: Some("v".into()), ..SetItem::default() };
            let body = encode(&SetRequest { sets: vec![set], ..SetRequest::default() })?;
            let request = |number: u64| {
                let subject = &subjects[(number % 32) as usize];
                (Prefix::default().server(&server, Op::Set, subject), body.clone())
            };
            let flood = Flood { per_second: 1_000_000, window: 16_384, total: u64::MAX };
            let raw = fleet.raw().await?;
            let flooding = async {
                let figures = flood.run(raw, "_INBOX.flood", &Env::system(), request).await?;
                anyhow::bail!("the flood ended: {figures}")
            };
            let watching = async {
                let (mut first, mut saturated) = (None, 0);
                until("the server has been saturated for several lease times", async || {
                    let health =
                        fleet.health(NAME).await?.context("a saturated server reports its health")?;
                    ensure!(health.status != HealthStatus::Critical, "{health:?}");
                    let figure = |name: &str| health.figures.get(name).copied().unwrap_or_default();
                    let begin = *first.get_or_insert((health.uptime_ms, figure("lease_generation")));
                    ensure!(figure("lease_generation") == begin.1, "the lease lapsed: {health:?}");
                    saturated += u64::from(figure("requests_in_flight") > 1_000);
                    let is_long = health.uptime_ms - begin.0 >= TTLS * TTL_MS;
                    Ok((is_long && saturated >= TTLS).then_some(()))
                })
                .await
            };
            tokio::select! {
                ended = flooding => ended,
                watched = watching => watched,
            }
        })
        .await
}
