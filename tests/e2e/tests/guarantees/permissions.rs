//! Permissions of users, with the configuration for one account that is shipped in `deploy/nats`.

use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use dormouse_client::{Client, Error, Feed, Kv, SubjectConfig, Update};
use dormouse_e2e::{Fleet, RawNats, Security, TIMEOUT};
use dormouse_protocol::data::GetRequest;
use dormouse_protocol::{Op, encode};

/// So long that a call which waits for its deadline hangs the test: forbidden calls must fail with an error, not by a
/// timeout.
const UNLIMITED: Duration = Duration::from_secs(24 * 60 * 60);

pub async fn client_of(fleet: &Fleet, user: &str) -> anyhow::Result<Client> {
    Ok(Client::builder().deadline(UNLIMITED).connect(fleet.nats_options_as(user)?).await?)
}

pub fn denied<T: std::fmt::Debug>(what: &str, outcome: Result<T, Error>) -> anyhow::Result<()> {
    match outcome {
        Err(Error::PermissionDenied { .. }) => Ok(()),
        other => anyhow::bail!("{what}: {other:?}"),
    }
}

/// Checks that every reading call is denied.
pub async fn cannot_read(store: &Kv) -> anyhow::Result<()> {
    denied("get", store.get("k").await)?;
    denied("keys", store.keys("").all().await)?;
    denied("entries", store.entries("").all().await)?;
    denied("info", store.info().await)?;
    denied("watch", store.watch_all().await)
}

/// Checks that every changing call is denied.
pub async fn cannot_write(store: &Kv) -> anyhow::Result<()> {
    denied("put", store.put("k", "forged").await)?;
    denied("create", store.create("new", "forged").await)?;
    denied("delete", store.delete("k").await)?;
    denied("clear", store.clear().await)?;
    denied("configure", store.configure(SubjectConfig::default()).await)?;
    denied("flush", store.flush().await)?;
    denied("destroy", store.destroy().await)
}

pub async fn next_set(watch: &mut Feed) -> anyhow::Result<Bytes> {
    loop {
        match tokio::time::timeout(TIMEOUT, watch.next()).await?.transpose()? {
            Some(Update::Set { message, .. }) => return message.value.context("a value"),
            Some(Update::CaughtUp(_)) => {}
            other => anyhow::bail!("{other:?}"),
        }
    }
}

/// Checks that nats-server denies each of these, in its own words.
async fn cannot_publish(raw: &mut RawNats, routes: &[&str], payload: &[u8]) -> anyhow::Result<()> {
    for route in routes {
        raw.publish(route, None, payload).await?;
        let denied = raw.denied().await?;
        ensure!(
            denied.len() == 1 && denied[0].contains(&format!("Publish to \"{route}\"")),
            "{route}: {denied:?}"
        );
    }
    Ok(())
}

async fn cannot_subscribe(raw: &mut RawNats, patterns: &[&str]) -> anyhow::Result<()> {
    for pattern in patterns {
        raw.subscribe(pattern).await?;
        let denied = raw.denied().await?;
        let words = format!("Subscription to \"{pattern}\"");
        ensure!(denied.len() == 1 && denied[0].contains(&words), "{pattern}: {denied:?}");
    }
    Ok(())
}

/// Every operation on a foreign subject fails at once with `permission_denied`, and the connection stays usable.
#[tokio::test]
async fn user_access_to_foreign_subjects_is_denied_at_once() -> anyhow::Result<()> {
    Fleet::builder()
        .secured(Security::shipped("one-account.conf")?)
        .run(async |fleet| {
            let (alice, bob) = (client_of(fleet, "alice").await?, client_of(fleet, "bob").await?);
            let notes = alice.kv("user.alice.notes")?;
            let mut watch = notes.watch_all().await?;
            notes.put("k", "hers").await?;
            assert_eq!(next_set(&mut watch).await?, "hers");
            bob.kv("user.bob.notes")?.put("k", "his").await?;

            for foreign in ["user.alice.notes", "user.alice.new", "user.bobby.notes", "user", "app.orders"] {
                let foreign = bob.kv(foreign)?;
                cannot_read(&foreign).await?;
                cannot_write(&foreign).await?;
            }
            denied("servers", bob.servers().await)?;

            // The connection stays usable for permitted calls.
            assert_eq!(bob.kv("user.bob.notes")?.get("k").await?.as_deref(), Some(&b"his"[..]));
            assert_eq!(notes.get("k").await?.as_deref(), Some(&b"hers"[..]));
            assert_eq!(notes.info().await?.position.rev.get(), 1, "the subject was changed");
            fleet.cli_ok(&["server", "ls"]).await?;
            let listed = fleet.cli_ok(&["subjects", "ls"]).await?;
            ensure!(listed.contains("user.alice.notes"), "{listed}");
            Ok(())
        })
        .await
}

/// No user can publish as the service, subscribe to its requests or read foreign events, except the auditor's events.
#[tokio::test]
async fn user_cannot_spoof_or_overhear_the_service() -> anyhow::Result<()> {
    Fleet::builder()
        .secured(Security::shipped("one-account.conf")?)
        .run(async |fleet| {
            let notes = client_of(fleet, "alice").await?.kv("user.alice.notes")?;
            notes.put("k", "1").await?;
            let mut watch = notes.watch_all().await?;
            for user in ["bob", "auditor", "operator"] {
                let mut raw = fleet.raw_as(user).await?;
                let payload = encode(&GetRequest::key("k"))?;
                let spoofed = [
                    "persist.events.user.alice.notes",
                    "persist.server.persist-1.set.user.alice.notes",
                    "persist.server.persist-1.destroy.user.alice.notes",
                    "persist.coord.gone",
                    "persist.coord.order.persist-1",
                    "persist.coord.active",
                    "persist.coord.presence",
                    "persist.fleet.join",
                    "persist.fleet.heartbeat",
                    "persist.fleet.leave",
                    "persist.fleet.claim.user.alice.notes",
                    "persist.fleet.release.user.alice.notes",
                    "_INBOX.alice.1.1",
                    "_INBOX.persist-server.1.1",
                ];
                cannot_publish(&mut raw, &spoofed, &payload).await.context(user)?;
                if user != "operator" {
                    let orders = ["persist.admin.servers", "persist.admin.drain.persist-1"];
                    cannot_publish(&mut raw, &orders, &payload).await.context(user)?;
                }
                let overheard = [
                    "persist.server.>",
                    "persist.server.persist-1.>",
                    "persist.server.*.set.user.alice.>",
                    "persist.coord.locate.>",
                    "persist.fleet.>",
                    "persist.admin.>",
                    "persist.events.>",
                    "_INBOX.>",
                    "_INBOX.alice.>",
                    "$SRV.>",
                    ">",
                ];
                cannot_subscribe(&mut raw, &overheard).await.context(user)?;
            }
            // Bob and the operator receive no events of Alice's subjects; the auditor does.
            for (user, receives) in [("bob", false), ("operator", false), ("auditor", true)] {
                let mut raw = fleet.raw_as(user).await?;
                raw.subscribe("persist.events.user.alice.>").await?;
                assert_eq!(raw.denied().await?.is_empty(), receives, "{user}");
            }
            notes.put("k", "2").await?;
            assert_eq!(next_set(&mut watch).await?, "2", "another event was received before");
            Ok(())
        })
        .await
}

/// A user with read permissions reads and watches a subject, and every change is denied.
#[tokio::test]
async fn reader_reads_and_watches_but_cannot_write() -> anyhow::Result<()> {
    Fleet::builder()
        .secured(Security::shipped("one-account.conf")?)
        .run(async |fleet| {
            let notes = client_of(fleet, "alice").await?.kv("user.alice.notes")?;
            notes.put("k", "1").await?;
            let reader = client_of(fleet, "auditor").await?.kv("user.alice.notes")?;
            let mut watch = reader.watch_all().await?;
            cannot_write(&reader).await?;
            assert_eq!(reader.get("k").await?.as_deref(), Some(&b"1"[..]));
            assert_eq!(reader.keys("").all().await?, ["k"]);
            assert_eq!(reader.entries("").all().await?.len(), 1);
            assert_eq!(reader.info().await?.count, 1);
            notes.put("k", "2").await?;
            assert_eq!(next_set(&mut watch).await?, "2");
            Ok(())
        })
        .await
}

/// A new operation needs a decision about its permissions.
#[test]
fn reader_permissions_cover_all_reading_operations() -> anyhow::Result<()> {
    for (file, subjects) in [("one-account.conf", "user.alice"), ("tenants.conf", "orders")] {
        let config = Security::shipped(file)?.config;
        for op in Op::ALL {
            let line = format!("\"persist.server.*.{op}.{subjects}.>\"");
            // A flush changes no stored data, but it costs, and only writers need it.
            let reads = !op.changes() && *op != Op::Flush;
            assert_eq!(config.contains(&line), reads, "{file}: {op}");
        }
    }
    Ok(())
}

/// Sends requests subjects replies would go to routes that are not inboxes, and checks that they have no effect.
async fn crafted_reply_addresses_trigger_nothing(fleet: &mut Fleet, crafted: &[&str]) -> anyhow::Result<()> {
    let inbox = fleet.security()?.inbox_of("alice");
    let mut alice = fleet.raw_as("alice").await?;
    let mut bob = fleet.raw_as("bob").await?;
    // These connections receive every possible effect.
    let (mut coordinator, mut server) =
        (fleet.raw_as("coordinator").await?, fleet.raw_as("persist-server").await?);
    alice.subscribe("persist.events.user.alice.>").await?;
    alice.subscribe("persist.coord.gone").await?;
    bob.subscribe("persist.events.user.bob.>").await?;
    coordinator.subscribe("persist.admin.>").await?;
    server.subscribe("persist.server.persist-2.>").await?;
    server.subscribe("persist.coord.order.*").await?;
    let get = encode(&GetRequest::key("k"))?;
    let routes = ["persist.server.persist-1.get.user.alice.notes", "persist.coord.locate.user.alice.notes"];
    for reply in crafted {
        for route in routes {
            alice.publish(route, Some(reply), &get).await?;
        }
    }
    // Requests of one connection are answered in order: after the replies to these, the earlier ones would have been
    // answered.
    alice.subscribe(&format!("{inbox}.>")).await?;
    for route in routes {
        let reply = format!("{inbox}.{}", route.len());
        alice.publish(route, Some(&reply), &get).await?;
        alice.next_on(&reply).await.context(route)?;
    }
    let refused = alice.denied().await?;
    ensure!(refused.is_empty(), "{refused:?}");
    for (who, raw) in
        [("alice", &mut alice), ("bob", &mut bob), ("coordinator", &mut coordinator), ("server", &mut server)]
    {
        raw.flush().await?;
        ensure!(raw.arrived().is_empty(), "{who} received {:?}", raw.arrived());
    }
    Ok(())
}

const CRAFTED: [&str; 7] = [
    "persist.events.user.alice.notes",
    "persist.events.user.bob.notes",
    "persist.coord.gone",
    "persist.coord.order.persist-1",
    "persist.admin.drain.persist-1",
    "persist.server.persist-2.destroy.user.bob.notes",
    "_INBOXES.alice.x",
];

/// A request with a reply address outside the inboxes makes the service publish nothing.
#[tokio::test]
async fn reply_address_outside_inboxes_triggers_no_publish() -> anyhow::Result<()> {
    Fleet::builder()
        .secured(Security::shipped("one-account.conf")?)
        .run(async |fleet| {
            fleet.expect_warning("reply address is not an inbox");
            client_of(fleet, "alice").await?.kv("user.alice.notes")?.put("k", "1").await?;
            crafted_reply_addresses_trigger_nothing(fleet, &CRAFTED).await
        })
        .await
}

/// If inboxes have names without a common prefix, each is configured; other inboxes get no replies.
#[tokio::test]
async fn inbox_prefixes_restrict_replies_to_those_configured() -> anyhow::Result<()> {
    let mut security = Security::shipped("one-account.conf")?;
    // As with `nats --inbox-prefix=_INBOX_alice`.
    let answers =
        "\"_INBOX_alice.>\", \"_INBOX_operator.>\", \"_INBOX_coordinator.>\", \"_INBOX_persist-server.>\"";
    security.config = security.config.replace("\"_INBOX.>\"", answers).replace("_INBOX.", "_INBOX_");
    security.inbox = "_INBOX_{}".to_owned();
    let flags = [
        "--inbox-prefix",
        "_INBOX_alice",
        "--inbox-prefix",
        "_INBOX_operator.,_INBOX_coordinator",
        "--inbox-prefix",
        "_INBOX_persist-server",
    ];
    Fleet::builder()
        .secured(security)
        .coordinator_args(flags)
        .server_args(flags)
        .run(async |fleet| {
            fleet.expect_warning("reply address is not an inbox");
            let notes = client_of(fleet, "alice").await?.kv("user.alice.notes")?;
            notes.put("k", "1").await?;
            assert_eq!(notes.get("k").await?.as_deref(), Some(&b"1"[..]));
            let crafted = [&CRAFTED[..], &["_INBOX_bob.x", "_INBOX.x", "_INBOX_alicent.x"]].concat();
            crafted_reply_addresses_trigger_nothing(fleet, &crafted).await
        })
        .await
}
