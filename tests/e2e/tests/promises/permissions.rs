//! Who may do what, with the configuration for one account that is shipped in `deploy/nats`.

use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use dormouse_client::{Client, Error, Feed, Kv, SubjectConfig, Update};
use dormouse_e2e::{Fleet, PATIENCE, RawNats, Security};
use dormouse_protocol::data::GetRequest;
use dormouse_protocol::{Op, encode};

/// So long that a call which waits for it hangs the test: what is forbidden must be said, not found out by silence.
const FOR_EVER: Duration = Duration::from_secs(24 * 60 * 60);

pub async fn client_of(fleet: &Fleet, user: &str) -> anyhow::Result<Client> {
    Ok(Client::builder().deadline(FOR_EVER).connect(fleet.nats_options_as(user)?).await?)
}

pub fn denied<T: std::fmt::Debug>(what: &str, outcome: Result<T, Error>) -> anyhow::Result<()> {
    match outcome {
        Err(Error::PermissionDenied { .. }) => Ok(()),
        other => anyhow::bail!("{what}: {other:?}"),
    }
}

/// None of what reads is let through.
pub async fn cannot_read(store: &Kv) -> anyhow::Result<()> {
    denied("get", store.get("k").await)?;
    denied("keys", store.keys("").all().await)?;
    denied("entries", store.entries("").all().await)?;
    denied("info", store.info().await)?;
    denied("watch", store.watch_all().await)
}

/// None of what changes is let through.
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
        match tokio::time::timeout(PATIENCE, watch.next()).await?.transpose()? {
            Some(Update::Set { message, .. }) => return message.value.context("a value"),
            Some(Update::CaughtUp(_)) => {}
            other => anyhow::bail!("{other:?}"),
        }
    }
}

/// Each of these is refused by nats-server, in its own words.
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
        let whole = format!("Subscription to \"{pattern}\"");
        ensure!(denied.len() == 1 && denied[0].contains(&whole), "{pattern}: {denied:?}");
    }
    Ok(())
}

#[tokio::test]
async fn nobody_reads_writes_watches_or_destroys_what_is_anothers_and_all_are_told_at_once()
-> anyhow::Result<()> {
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

            // The one connection goes on being of use for what is allowed.
            assert_eq!(bob.kv("user.bob.notes")?.get("k").await?.as_deref(), Some(&b"his"[..]));
            assert_eq!(notes.get("k").await?.as_deref(), Some(&b"hers"[..]));
            assert_eq!(notes.info().await?.position.rev.get(), 1, "something was changed");
            fleet.cli_ok(&["server", "ls"]).await?;
            let listed = fleet.cli_ok(&["subjects", "ls"]).await?;
            ensure!(listed.contains("user.alice.notes"), "{listed}");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn nobody_speaks_for_the_service_or_listens_to_what_it_is_told() -> anyhow::Result<()> {
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
            // Bob and the operator do not even hear what happens to hers; the auditor does.
            for (user, hears) in [("bob", false), ("operator", false), ("auditor", true)] {
                let mut raw = fleet.raw_as(user).await?;
                raw.subscribe("persist.events.user.alice.>").await?;
                assert_eq!(raw.denied().await?.is_empty(), hears, "{user}");
            }
            notes.put("k", "2").await?;
            assert_eq!(next_set(&mut watch).await?, "2", "something else was heard before");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn a_reader_reads_and_follows_and_cannot_write() -> anyhow::Result<()> {
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

/// Whoever adds an operation decides who may use it.
#[test]
fn a_reader_may_use_each_operation_that_changes_nothing() -> anyhow::Result<()> {
    for (file, whose) in [("one-account.conf", "user.alice"), ("tenants.conf", "orders")] {
        let config = Security::shipped(file)?.config;
        for op in Op::ALL {
            let line = format!("\"persist.server.*.{op}.{whose}.>\"");
            // Nothing of what is stored is changed by a flush, but it costs, and only writers need it.
            let reads = !op.changes() && *op != Op::Flush;
            assert_eq!(config.contains(&line), reads, "{file}: {op}");
        }
    }
    Ok(())
}

/// Sends requests whose answers would go where no inbox is, and looks whether anything came of it.
async fn nothing_comes_of_crafted_addresses(fleet: &mut Fleet, crafted: &[&str]) -> anyhow::Result<()> {
    let inbox = fleet.security()?.inbox_of("alice");
    let mut alice = fleet.raw_as("alice").await?;
    let mut bob = fleet.raw_as("bob").await?;
    // These hear all that could come of it.
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
    // Requests of one connection are answered in order: when these have their answers, the others would have had theirs.
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
        ensure!(raw.arrived().is_empty(), "{who} heard {:?}", raw.arrived());
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

#[tokio::test]
async fn a_crafted_reply_address_makes_the_service_publish_nothing() -> anyhow::Result<()> {
    Fleet::builder()
        .secured(Security::shipped("one-account.conf")?)
        .run(async |fleet| {
            fleet.expect_warning("reply address is not an inbox");
            client_of(fleet, "alice").await?.kv("user.alice.notes")?.put("k", "1").await?;
            nothing_comes_of_crafted_addresses(fleet, &CRAFTED).await
        })
        .await
}

/// Where inboxes have names that no common prefix covers, each is named; and nobody else's are answered.
#[tokio::test]
async fn inboxes_of_other_names_are_answered_where_they_are_configured_and_nowhere_else() -> anyhow::Result<()>
{
    let mut security = Security::shipped("one-account.conf")?;
    // As `nats --inbox-prefix=_INBOX_alice` has it.
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
            nothing_comes_of_crafted_addresses(fleet, &crafted).await
        })
        .await
}
