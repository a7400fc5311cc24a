//! The orders of operators: drains, moves, rebalancing, and the lists that show them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::process::Stdio;

use anyhow::{Context, ensure};
use dormouse_client::{Client, Kv};
use dormouse_e2e::{Fleet, until};
use futures::future::try_join_all;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{WRITERS, check_numbers, keep_writing, more_written};

fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}

/// Writes one entry to each of these subjects.
async fn fill(client: &Client, names: impl Iterator<Item = String>) -> anyhow::Result<Vec<String>> {
    let mut filled = Vec::new();
    for name in names {
        client.kv(&name)?.put("name", name.clone()).await?;
        filled.push(name);
    }
    Ok(filled)
}

/// Checks that every subject has its entry.
async fn check_filled(client: &Client, names: &[String]) -> anyhow::Result<()> {
    for name in names {
        let found = client.kv(name)?.get("name").await?;
        ensure!(found.as_deref() == Some(name.as_bytes()), "{name} has {found:?}");
    }
    Ok(())
}

/// Returns the server of each subject, as the tool lists them; the list must be in order.
async fn listed(fleet: &Fleet, arguments: &[&str]) -> anyhow::Result<BTreeMap<String, String>> {
    let text = fleet.cli_ok(&[&["--json", "subjects", "ls"], arguments].concat()).await?;
    let mut found = BTreeMap::new();
    let mut last = String::new();
    for line in documents(&text)? {
        let subject = line["subject"].as_str().context("no subject")?.to_owned();
        ensure!(last < subject, "{subject} is listed after {last}");
        last.clone_from(&subject);
        found.insert(subject, line["server"].as_str().context("no server")?.to_owned());
    }
    Ok(found)
}

/// Writes to a subject without an error before, during and after `work`. Then every acknowledged write must exist.
async fn with_concurrent_writes<T>(
    store: &Kv,
    work: impl AsyncFnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let (written, stop) = (Cell::new(0), Cell::new(false));
    let writers =
        (0..WRITERS).map(|writer| keep_writing(store, writer, &written, &stop, |error| Err(error.into())));
    let working = async {
        more_written(&written).await?;
        let done = work().await?;
        more_written(&written).await?;
        stop.set(true);
        anyhow::Ok(done)
    };
    let (acknowledged, done) = futures::try_join!(try_join_all(writers), working)?;
    check_numbers(store, acknowledged.into_iter().flatten()).await?;
    Ok(done)
}

/// An added server gets its share of new subjects, a dry run moves nothing, and a rebalance carries out its plan.
#[tokio::test]
async fn server_added_gets_new_and_rebalanced_subjects() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            let old = fill(&client, (0..40).map(|number| format!("app.old.{number:02}"))).await?;
            let before = listed(fleet, &[]).await?;
            fleet.add(fleet.server_spec("persist-3")?)?;
            fleet.wait_ready("persist-3").await?;
            let new = fill(&client, (0..60).map(|number| format!("app.new.{number:02}"))).await?;
            // The fair share is twenty. The allowed range is four deviations wide, so random assignment stays within
            // it.
            let share = listed(fleet, &["app.new.*", "--server", "persist-3"]).await?.len();
            ensure!((6..=34).contains(&share), "{share} of 60");
            assert_eq!(listed(fleet, &["app.old.>"]).await?, before, "existing subjects must not move");

            let dry = documents(&fleet.cli_ok(&["--json", "rebalance", "--dry-run"]).await?)?;
            let planned = dry[0]["moves"].as_array().context("no plan")?.len();
            ensure!(planned > 0, "{dry:?}");
            ensure!(fleet.cli_ok(&["rebalance", "--dry-run"]).await?.contains("persist-3"));
            assert_eq!(listed(fleet, &["app.old.>"]).await?, before, "a dry run moves nothing");
            let bounded = ["--json", "rebalance", "--dry-run", "--most-moves", "1"];
            let bounded = documents(&fleet.cli_ok(&bounded).await?)?;
            assert_eq!(bounded[0]["moves"].as_array().map(Vec::len), Some(1));

            let store = client.kv("app.old.00")?;
            let executed = with_concurrent_writes(&store, async || {
                documents(&fleet.cli_ok(&["--json", "rebalance"]).await?)
            })
            .await?;
            let plan = executed[0]["moves"].as_array().context("no plan")?;
            assert_eq!(executed[1], serde_json::json!({ "done": plan.len(), "given_up": 0 }));
            let after = listed(fleet, &[]).await?;
            for planned in plan {
                let subject = planned["subject"].as_str().context("no subject")?;
                assert_eq!(after.get(subject).map(String::as_str), planned["to"].as_str(), "{subject}");
            }
            check_filled(&client, &old).await?;
            check_filled(&client, &new).await
        })
        .await
}

/// A drained server hands over all subjects under writes, stays drained over a restart, and takes subjects after
/// undrain.
#[tokio::test]
async fn server_drained_hands_over_and_undrained_takes_again() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            let names = fill(&client, (0..30).map(|number| format!("app.drained.{number}"))).await?;
            let (written, owner) = (client.kv(&names[0])?, fleet.owner(&client, &names[0]).await?);
            let drained = with_concurrent_writes(&written, async || {
                documents(&fleet.cli_ok(&["--json", "server", "drain", &owner]).await?)
            })
            .await?;
            assert_eq!(drained[0]["state"], "drained");
            ensure!(fleet.cli_ok(&["server", "ls"]).await?.contains("drained"));
            check_filled(&client, &names).await?;
            for name in &names {
                assert_ne!(fleet.owner(&client, name).await?, owner, "{name}");
            }
            fill(&client, (0..20).map(|number| format!("app.meanwhile.{number}"))).await?;
            assert_eq!(listed(fleet, &["app.meanwhile.*", "--server", &owner]).await?.len(), 0);

            // The order also holds after a restart.
            fleet.stop(&owner).await?;
            fleet.start_with(&owner, &[])?;
            fleet.wait_serving(&owner).await?;
            let info = documents(&fleet.cli_ok(&["--json", "server", "info", &owner]).await?)?;
            ensure!(info[0]["state"] == "drained" && info[0]["health"].is_object(), "{info:?}");
            let undrained = documents(&fleet.cli_ok(&["--json", "server", "undrain", &owner]).await?)?;
            assert_eq!(undrained[0]["state"], "alive");
            // The server gets the undrain with its next heartbeat. Subjects that it gets before that are handed over.
            let later = Cell::new(0);
            until("the server takes subjects again", async || {
                let name = format!("app.later.{}", later.replace(later.get() + 1));
                fill(&client, std::iter::once(name)).await?;
                let taken = listed(fleet, &["app.later.*", "--server", &owner]).await?;
                Ok((!taken.is_empty()).then_some(()))
            })
            .await
        })
        .await
}

/// A subject moves to the ordered server and back during writes, and a move to an unknown server fails.
#[tokio::test]
async fn subject_moves_to_the_ordered_server_during_writes() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = client.kv("app.moved")?;
            store.put("first", "v").await?;
            let owner = fleet.owner(&client, "app.moved").await?;
            let other = if owner == "persist-1" { "persist-2" } else { "persist-1" };
            // The subject moves forward and back, because an earlier owner may own a subject again.
            let moved = with_concurrent_writes(&store, async || {
                let forward =
                    fleet.cli_ok(&["--json", "subject", "move", "app.moved", "--to", other]).await?;
                let back = fleet.cli_ok(&["--json", "subject", "move", "app.moved", "--to", &owner]).await?;
                let again = fleet.cli_ok(&["--json", "subject", "move", "app.moved", "--to", &owner]).await?;
                documents(&(forward + &back + &again))
            })
            .await?;
            ensure!(moved.iter().all(|moved| moved["done"] == true), "{moved:?}");
            assert_eq!(moved[0]["to"], *other);
            assert_eq!(fleet.owner(&client, "app.moved").await?, owner);
            let to_unknown = fleet.cli(&["subject", "move", "app.moved", "--to", "unknown"]).await?;
            assert_eq!(to_unknown.status.code(), Some(3));
            Ok(())
        })
        .await
}

/// The limits of a tenant reach the servers, hold back this tenant alone, and are cleared again.
#[tokio::test]
async fn tenant_limits_reach_servers_and_are_listed() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            let (limited, other) = (client.kv("limited.kv")?, client.kv("other.kv")?);
            fleet.cli_ok(&["tenant", "limit", "limited", "--requests", "2"]).await?;
            let row = async |tenant: &str| -> anyhow::Result<Option<Value>> {
                let rows = documents(&fleet.cli_ok(&["--json", "tenant", "ls"]).await?)?;
                Ok(rows.into_iter().find(|row| row["tenant"] == tenant))
            };
            until("the servers enforce the limit", async || {
                let keys: Vec<_> = (0..16).map(|number| format!("k{number}")).collect();
                // The client repeats refused calls, so all of them succeed.
                try_join_all(keys.iter().map(|key| limited.get(key))).await?;
                try_join_all(keys.iter().map(|key| other.get(key))).await?;
                let listed = row("limited").await?;
                Ok(listed.filter(|row| row["use"]["refused"].as_u64() > Some(0)))
            })
            .await?;
            let listed = row("limited").await?.context("the tenant has limits")?;
            assert_eq!(listed["limits"], serde_json::json!({ "requests": 2 }));
            assert!(row("other").await?.is_none_or(|row| row["use"]["refused"] == 0));
            let cleared = fleet.cli_ok(&["tenant", "limit", "limited", "--clear"]).await?;
            assert_eq!(cleared, "limited has no limits\n");
            Ok(())
        })
        .await
}

/// The subject list filters by pattern, server and limit, and exits cleanly if its reader closes the pipe.
#[tokio::test]
async fn subject_list_filters_and_tolerates_a_closed_pipe() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            let names = (0..100).map(|number| format!("app.{}.{number:02}", number % 2));
            let names = fill(&client, names).await?;
            let all = listed(fleet, &[]).await?;
            assert_eq!(all.len(), 100);
            for name in &names {
                assert_eq!(all.get(name), Some(&fleet.owner(&client, name).await?), "{name}");
            }
            assert_eq!(listed(fleet, &["app.1.*"]).await?.len(), 50);
            assert_eq!(listed(fleet, &["app.*.07"]).await?.len(), 1);
            assert_eq!(listed(fleet, &["app.*"]).await?.len(), 0);
            assert_eq!(listed(fleet, &["app.>", "--limit", "7"]).await?.len(), 7);
            let first = listed(fleet, &["--server", "persist-1"]).await?;
            assert_eq!(first.len(), all.values().filter(|server| *server == "persist-1").count());

            let mut listing = fleet.tool()?;
            listing.args(["--nats", &fleet.url(), "--json", "subjects", "ls"]);
            let mut listing = listing.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            let mut lines = BufReader::new(listing.stdout.take().context("no output")?).lines();
            ensure!(lines.next_line().await?.is_some());
            drop(lines);
            let ended = listing.wait_with_output().await?;
            assert_eq!((ended.status.code(), String::from_utf8(ended.stderr)?), (Some(0), String::new()));
            Ok(())
        })
        .await
}
