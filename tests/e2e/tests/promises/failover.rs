//! Processes that die, pause, stop and come back.

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

/// A machine that is busy for more than a second may lose a short lease by accident. That costs time and nothing else,
/// which is what these tests hold.
const LEASE_LOST: &str = "the lease ran out";

/// What everybody says during an outage of NATS.
const CONNECTION_LOST: &str = "the connection to NATS is lost";

/// What a server says, and for minutes after that also in its health, when NATS went away between a write and the
/// event of it. Events are at most once, and whoever missed one notices.
const EVENTS_LOST: &str = "events were dropped";

/// Writes until one write is acknowledged. A write whose fate is not known is written again: it is the same.
async fn write_until_acknowledged(store: &Kv, number: usize) -> anyhow::Result<()> {
    until("a write is acknowledged", async || Ok(store.put(key(number), value(number)).await.ok()))
        .await
        .map(drop)
}

#[tokio::test]
async fn what_was_flushed_survives_the_kill_of_its_server_and_the_client_carries_on() -> anyhow::Result<()> {
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

            // The dead one comes back and does not take anything away.
            fleet.restart(&owner).await?;
            write(&store, 400..450).await?;
            check(&store, 0..450).await
        })
        .await
}

#[tokio::test]
async fn every_acknowledged_write_survives_a_kill_and_a_restart_on_the_same_data_directory()
-> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = filled(&client, "app.restarted").await?;
            // Never flushed: what is read afterwards comes from the data directory.
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

#[tokio::test]
async fn a_graceful_stop_hands_everything_over_and_loses_nothing() -> anyhow::Result<()> {
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

#[tokio::test]
async fn assignments_and_members_survive_the_kill_of_the_coordinator() -> anyhow::Result<()> {
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

/// For so long the coordinator is gone: twenty leases.
const LONG: Duration = Duration::from_secs(10);

/// Reads and writes what is assigned, until told to stop. Not one call may fail.
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

#[tokio::test]
async fn without_a_coordinator_assigned_subjects_are_used_without_one_error_and_new_ones_wait()
-> anyhow::Result<()> {
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
                let error = error.expect_err("nobody serves the subject");
                assert_eq!(error.happened(), dormouse_client::Happened::No, "{error:?}");
                assert_eq!(error.retry(), dormouse_client::Retry::AfterBackoff, "{error:?}");
                let said = format!("{:#}", anyhow::Error::from(error));
                assert!(said.contains("within 1000 ms") && said.contains("persist.coord.locate"), "{said}");
                tokio::time::sleep(LONG).await;
                stop.set(true);
                anyhow::Ok(())
            };
            let (rounds, ()) = futures::try_join!(use_all(&stores, &stop), outage)?;
            anyhow::ensure!(rounds > 0, "nobody used what is assigned");

            // Whoever has patience is served as soon as there is a coordinator again.
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

#[tokio::test]
async fn writes_during_a_graceful_stop_are_all_acknowledged_and_all_kept() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = client.kv("app.stopping")?;
            store.put("first", "v").await?;
            let owner = fleet.owner(&client, "app.stopping").await?;
            let (written, stop) = (Cell::new(0), Cell::new(false));
            let writers = (0..WRITERS).map(|writer| {
                // Not one may fail, and of not one may the fate be unknown.
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

#[tokio::test]
async fn writes_that_are_acknowledged_around_an_outage_of_nats_are_all_kept() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            fleet.expect_warning(CONNECTION_LOST);
            fleet.expect_warning(EVENTS_LOST);
            let client = fleet.client().await?;
            // The answer to a write in flight may be lost for good: its writer waits for no longer than this.
            let store = client.kv("app.outage")?.with_deadline(Duration::from_secs(2));
            let (written, stop) = (Cell::new(0), Cell::new(false));
            let writers = (0..WRITERS).map(|writer| {
                // Those in flight may be lost, and nobody says otherwise.
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

#[tokio::test]
async fn a_server_whose_events_were_lost_in_an_outage_of_nats_says_so_and_serves() -> anyhow::Result<()> {
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
                // They reach a process that stands still, so they are carried out when NATS is away already.
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
                // What nats-server had not passed on yet is lost, and in the worst case that is everything.
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

#[tokio::test]
async fn a_nats_server_that_goes_away_and_comes_back_costs_nothing() -> anyhow::Result<()> {
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

#[tokio::test]
async fn a_server_that_was_paused_beyond_its_lease_serves_nothing_stale() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .coordinator_args(SHORT_LEASE)
        .run(async |fleet| {
            fleet.expect_warning(LEASE_LOST);
            let client = fleet.client().await?;
            let store = filled(&client, "app.paused").await?;
            // In a directory a deletion excludes listings, so a process that stands still in the middle of one holds
            // up every claim of its subject: this test is not about that.
            until("nobody deletes", async || {
                let mut nobody_deletes = true;
                for lock in std::fs::read_dir(fleet.bucket_dir().join("dormouse.locks"))? {
                    nobody_deletes &= File::open(lock?.path())?.try_lock_shared().is_ok();
                }
                Ok(nobody_deletes.then_some(()))
            })
            .await?;
            let owner = fleet.owner(&client, "app.paused").await?;
            fleet.expect_warning("declared dead");
            fleet.expect_warning("another process has ended this log");
            fleet.expect_warning("going on with a fresh one");
            fleet.pause(&owner).await?;
            write_until_acknowledged(&store, 300).await?;
            store.put(key(0), "overtaken").await?;

            // Asked directly, in the very moment it wakes up: what it says is an error or what is true now.
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
            assert!(!stale, "a stale value was served: {answer:?}");

            fleet.wait_ready(&owner).await?;
            assert_eq!(store.get(key(0)).await?.as_deref(), Some(&b"overtaken"[..]));
            check(&store, 1..301).await
        })
        .await
}
