//! Processes that are killed, paused, stopped and restarted.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::time::Duration;

use dormouse_client::Kv;
use dormouse_e2e::{Fleet, until};
use dormouse_protocol::data::{GetRequest, SetItem, SetRequest};
use dormouse_protocol::health::{Health, HealthStatus};
use dormouse_protocol::{Op, Prefix, ServerName, Subject, encode};

use crate::support::{WRITERS, check, check_numbers, filled, keep_writing, key, more_written, value, write};

/// A short lease, so that a takeover does not take long.
const SHORT_LEASE: [&str; 2] = ["--lease-ttl", "2s"];

/// A machine that is busy for more than a second may lose a short lease by accident. That costs only time, as these
/// tests show. The text ends with a field of the server's message, so that it does not match the coordinator's
/// "lease expired, server declared dead".
const LEASE_LOST: &str = "lease expired impact=";

/// The log message of every process during an outage of NATS.
const CONNECTION_LOST: &str = "NATS connection lost";

/// The message of a server, in its log and for minutes also in its health, if NATS stopped between a write and its
/// event. Events are delivered at most once, and clients detect a missed one.
const EVENTS_LOST: &str = "events dropped";

/// Writes until one write is acknowledged. An indeterminate write is repeated: the repeat is identical.
async fn write_until_acknowledged(store: &Kv, number: usize) -> anyhow::Result<()> {
    until("a write is acknowledged", async || Ok(store.put(key(number), value(number)).await.ok()))
        .await
        .map(drop)
}

/// Flushed writes survive the kill of their server, the client continues elsewhere, and the restarted server loses
/// nothing.
#[tokio::test]
async fn flushed_writes_survive_a_server_kill_and_failover() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .coordinator_args(SHORT_LEASE)
        .run(async |fleet| {
            fleet.expect_warning(LEASE_LOST);
            let client = fleet.client().await?;
            let store = filled(&client, "app.failover").await?;
            store.flush().await?;
            let owner = fleet.owner(&client, "app.failover").await?;
            fleet.expect_warning("declared dead");
            fleet.kill9(&owner).await?;

            write_until_acknowledged(&store, 300).await?;
            let successor = fleet.owner(&client, "app.failover").await?;
            assert_ne!(successor, owner);
            write(&store, 301..400).await?;
            check(&store, 0..400).await?;

            // The killed server restarts and takes nothing away.
            fleet.restart(&owner).await?;
            write(&store, 400..450).await?;
            check(&store, 0..450).await
        })
        .await
}

/// Acknowledged writes that were never flushed survive repeated kills and restarts on the same data directory.
#[tokio::test]
async fn acked_writes_survive_kill_and_restart_on_one_disk() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = filled(&client, "app.restarted").await?;
            // The writes are not flushed, so later reads come from the data directory.
            for round in 1..4 {
                fleet.kill9("persist-1").await?;
                fleet.restart("persist-1").await?;
                check(&store, 0..300 * round).await?;
                write(&store, 300 * round..300 * (round + 1)).await?;
            }
            check(&store, 0..1_200).await
        })
        .await
}

/// A graceful stop hands every subject over, so the other server serves all entries.
#[tokio::test]
async fn graceful_stop_hands_over_subjects_without_loss() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            let mut stores = Vec::new();
            for number in 0..10 {
                stores.push(filled(&client, &format!("app.handover.{number}")).await?);
            }
            fleet.stop("persist-1").await?;
            for store in &stores {
                check(store, 0..300).await?;
                write(store, 300..310).await?;
            }
            fleet.restart("persist-1").await?;
            fleet.stop("persist-2").await?;
            for store in &stores {
                check(store, 0..310).await?;
            }
            Ok(())
        })
        .await
}

/// After a kill and restart, the coordinator still knows all assignments and members.
#[tokio::test]
async fn coordinator_kill_keeps_assignments_and_members() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .coordinator_args(SHORT_LEASE)
        .run(async |fleet| {
            fleet.expect_warning(LEASE_LOST);
            let client = fleet.client().await?;
            let mut before = BTreeMap::new();
            for number in 0..20 {
                let subject = format!("app.assigned.{number}");
                client.kv(&subject)?.put("k", number.to_string()).await?;
                before.insert(subject.clone(), fleet.owner(&client, &subject).await?);
            }
            fleet.kill9("coordinator").await?;
            fleet.restart("coordinator").await?;
            for name in ["persist-1", "persist-2"] {
                fleet.wait_ready(name).await?;
            }
            let fresh = fleet.client().await?;
            for (number, (subject, owner)) in before.iter().enumerate() {
                assert_eq!(&fleet.owner(&fresh, subject).await?, owner, "{subject}");
                let _ = number;
                assert!(fresh.kv(subject)?.get("k").await?.is_some(), "{subject}");
            }
            let members = client.servers().await?.servers;
            let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
            assert_eq!(names, ["persist-1", "persist-2"]);
            Ok(())
        })
        .await
}

/// The length of the coordinator's outage: twenty leases.
const LONG: Duration = Duration::from_secs(10);

/// Reads and writes assigned subjects until `stop` is set. No call may fail.
async fn use_all(stores: &[Kv], stop: &Cell<bool>) -> anyhow::Result<usize> {
    let mut rounds = 0;
    while !stop.get() {
        for store in stores {
            let value = rounds.to_string();
            store.put("k", value.clone()).await?;
            assert_eq!(store.get("k").await?.as_deref(), Some(value.as_bytes()), "{}", store.subject());
        }
        rounds += 1;
    }
    Ok(rounds)
}

/// Without a coordinator, no call on an assigned subject fails, and a call on a new subject waits for its return.
#[tokio::test]
async fn coordinator_outage_delays_only_new_subjects() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .coordinator_args(["--lease-ttl", "500ms"])
        .run(async |fleet| {
            fleet.expect_warning(LEASE_LOST);
            let client = fleet.client().await?;
            let (mut stores, mut owners) = (Vec::new(), Vec::new());
            for number in 0..6 {
                let subject = format!("app.orphan.{number}");
                stores.push(filled(&client, &subject).await?);
                owners.push(fleet.owner(&client, &subject).await?);
            }
            fleet.kill9("coordinator").await?;

            let stop = Cell::new(false);
            let fresh = client.kv("app.unassigned")?;
            let outage = async {
                let error = fresh.clone().with_deadline(Duration::from_secs(1)).put("k", "v").await;
                let error = error.expect_err("the subject has no server");
                assert_eq!(error.executed(), dormouse_client::Executed::No, "{error:?}");
                assert_eq!(error.retry(), dormouse_client::RetryAdvice::AfterBackoff, "{error:?}");
                let text = format!("{:#}", anyhow::Error::from(error));
                assert!(
                    text.contains("deadline of 1000 ms exceeded") && text.contains("persist.coord.locate"),
                    "{text}"
                );
                tokio::time::sleep(LONG).await;
                stop.set(true);
                anyhow::Ok(())
            };
            let (rounds, ()) = futures::try_join!(use_all(&stores, &stop), outage)?;
            anyhow::ensure!(rounds > 0, "no call on an assigned subject was made");

            // A call with a long deadline succeeds as soon as a coordinator runs again.
            let back = async {
                fleet.restart("coordinator").await?;
                for name in ["persist-1", "persist-2"] {
                    fleet.wait_ready(name).await?;
                }
                anyhow::Ok(())
            };
            let waiting = async { anyhow::Ok(fresh.put("k", "v").await?) };
            futures::try_join!(back, waiting)?;
            for (store, owner) in stores.iter().zip(&owners) {
                check(store, 0..300).await?;
                assert_eq!(
                    &fleet.owner(&client, store.subject().as_str()).await?,
                    owner,
                    "{}",
                    store.subject()
                );
            }
            Ok(())
        })
        .await
}

/// Every write during a graceful stop is acknowledged and kept.
#[tokio::test]
async fn graceful_stop_acks_and_keeps_concurrent_writes() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = client.kv("app.stopping")?;
            store.put("first", "v").await?;
            let owner = fleet.owner(&client, "app.stopping").await?;
            let (written, stop) = (Cell::new(0), Cell::new(false));
            let writers = (0..WRITERS).map(|writer| {
                // No write may fail, and none may be indeterminate.
                keep_writing(&store, writer, &written, &stop, |error| Err(error.into()))
            });
            let stopping = async {
                more_written(&written).await?;
                fleet.stop(&owner).await?;
                more_written(&written).await?;
                stop.set(true);
                anyhow::Ok(())
            };
            let (acknowledged, ()) = futures::try_join!(futures::future::try_join_all(writers), stopping)?;
            check_numbers(&store, acknowledged.into_iter().flatten()).await?;
            assert_ne!(fleet.owner(&client, "app.stopping").await?, owner);
            Ok(())
        })
        .await
}

/// Every write acknowledged before, during or after a NATS outage is kept.
#[tokio::test]
async fn acked_writes_around_a_nats_outage_are_kept() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            fleet.expect_warning(CONNECTION_LOST);
            fleet.expect_warning(EVENTS_LOST);
            let client = fleet.client().await?;
            // The reply to a write in flight may be lost for good: this is the longest wait of its writer.
            let store = client.kv("app.outage")?.with_deadline(Duration::from_secs(2));
            let (written, stop) = (Cell::new(0), Cell::new(false));
            let writers = (0..WRITERS).map(|writer| {
                // Writes in flight may be lost without an error.
                keep_writing(&store, writer, &written, &stop, |_| Ok(()))
            });
            let outage = async {
                for _ in 0..2 {
                    more_written(&written).await?;
                    fleet.nats().stop().await?;
                    fleet.nats().restart().await?;
                }
                more_written(&written).await?;
                stop.set(true);
                anyhow::Ok(())
            };
            let (acknowledged, ()) = futures::try_join!(futures::future::try_join_all(writers), outage)?;
            for name in ["coordinator", "persist-1", "persist-2"] {
                fleet.wait_serving(name).await?;
            }
            check_numbers(&store, acknowledged.into_iter().flatten()).await
        })
        .await
}

/// After a NATS outage drops events, the server reports `degraded` and serves every write.
#[tokio::test]
async fn server_with_dropped_events_is_degraded_and_serves() -> anyhow::Result<()> {
    Fleet::builder()
        .coordinator_args(["--lease-ttl", "10s"])
        .run(async |fleet| {
            fleet.expect_warning(CONNECTION_LOST);
            fleet.expect_warning(EVENTS_LOST);
            let client = fleet.client().await?;
            let store = client.kv("app.unheard")?;
            write(&store, 0..1).await?;
            let route = Prefix::default().server(
                &ServerName::new("persist-1")?,
                Op::Set,
                &Subject::new("app.unheard")?,
            );
            let mut written = 1;
            let health = loop {
                // The messages reach a paused process, so it executes them when NATS is already gone.
                fleet.pause("persist-1").await?;
                let mut raw = fleet.raw().await?;
                for number in written..written + 300 {
                    let (key, value) = (Some(key(number)), Some(value(number)));
                    let item = SetItem { key, value, ..SetItem::default() };
                    let set = SetRequest { sets: vec![item], ..SetRequest::default() };
                    raw.publish(route.as_str(), Some("_INBOX.unheard"), &encode(&set)?).await?;
                }
                raw.flush().await?;
                written += 300;
                fleet.nats().stop().await?;
                fleet.resume("persist-1")?;
                fleet.nats().restart().await?;
                for name in ["coordinator", "persist-1"] {
                    fleet.wait_serving(name).await?;
                }
                // Messages that nats-server had not forwarded are lost; in the worst case that is all of them.
                match fleet.health("persist-1").await? {
                    Some(health) if health.figures["events_dropped"] > 0 => break health,
                    _ => {}
                }
            };
            let Health { status, problems, .. } = health;
            assert_eq!(status, HealthStatus::Degraded);
            assert!(problems.iter().any(|problem| problem.contains(EVENTS_LOST)), "{problems:?}");
            write(&store, 0..written).await?;
            check(&store, 0..written).await
        })
        .await
}

/// A restart of the nats-server loses no write, and all processes serve again.
#[tokio::test]
async fn nats_server_restart_loses_no_write() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = filled(&client, "app.reconnect").await?;
            fleet.expect_warning(CONNECTION_LOST);
            fleet.expect_warning(EVENTS_LOST);
            for round in 1..3 {
                fleet.nats().stop().await?;
                fleet.nats().restart().await?;
                for name in ["coordinator", "persist-1", "persist-2"] {
                    fleet.wait_serving(name).await?;
                }
                check(&store, 0..300 * round).await?;
                write_until_acknowledged(&store, 0).await?;
                write(&store, 300 * round..300 * (round + 1)).await?;
            }
            check(&store, 0..900).await
        })
        .await
}

/// A server that is paused beyond its lease returns an error or the current value when it resumes.
#[tokio::test]
async fn server_paused_past_lease_serves_no_stale_read() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .coordinator_args(SHORT_LEASE)
        .run(async |fleet| {
            fleet.expect_warning(LEASE_LOST);
            let client = fleet.client().await?;
            let store = filled(&client, "app.paused").await?;
            // In a directory bucket, a deletion excludes listings. A process that is paused during one blocks every
            // claim of its subject, which is not the subject of this test.
            until("no deletion runs", async || {
                let mut is_idle = true;
                for lock in std::fs::read_dir(fleet.bucket_dir().join("dormouse.locks"))? {
                    is_idle &= File::open(lock?.path())?.try_lock_shared().is_ok();
                }
                Ok(is_idle.then_some(()))
            })
            .await?;
            let owner = fleet.owner(&client, "app.paused").await?;
            fleet.expect_warning("declared dead");
            fleet.expect_warning("log fenced, closing all subjects");
            fleet.expect_warning("log fenced, restarting with new log");
            fleet.pause(&owner).await?;
            write_until_acknowledged(&store, 300).await?;
            store.put(key(0), "overtaken").await?;

            // The request waits at the server when it resumes: the reply must be an error or the current value.
            let route =
                Prefix::default().server(&ServerName::new(&owner)?, Op::Get, &Subject::new("app.paused")?);
            let request = encode(&GetRequest::key(key(0)))?;
            let mut raw = fleet.raw().await?;
            raw.subscribe("_INBOX.paused").await?;
            raw.publish(route.as_str(), Some("_INBOX.paused"), &request).await?;
            raw.flush().await?;
            fleet.resume(&owner)?;
            let answer = raw.next_on("_INBOX.paused").await?;
            let stale = answer.payload.windows(7).any(|bytes| bytes == b"value 0");
            assert!(!stale, "stale reply: {answer:?}");

            fleet.wait_ready(&owner).await?;
            assert_eq!(store.get(key(0)).await?.as_deref(), Some(&b"overtaken"[..]));
            check(&store, 1..301).await
        })
        .await
}
