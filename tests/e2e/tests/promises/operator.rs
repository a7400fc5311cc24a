//! What operators order: draining, moving, rebalancing, and the lists by which they see it.

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

/// Every subject has its entry.
async fn check_filled(client: &Client, names: &[String]) -> anyhow::Result<()> {
    for name in names {
        let found = client.kv(name)?.get("name").await?;
        ensure!(found.as_deref() == Some(name.as_bytes()), "{name} holds {found:?}");
    }
    Ok(())
}

/// Who has what, as the tool lists it, which must be in order.
async fn listed(fleet: &Fleet, arguments: &[&str]) -> anyhow::Result<BTreeMap<String, String>> {
    let text = fleet.cli_ok(&[&["--json", "subjects", "ls"], arguments].concat()).await?;
    let mut found = BTreeMap::new();
    let mut last = String::new();
    for line in documents(&text)? {
        let subject = line["subject"].as_str().context("no subject")?.to_owned();
        ensure!(last < subject, "{subject} stands after {last}");
        last.clone_from(&subject);
        found.insert(subject, line["server"].as_str().context("no server")?.to_owned());
    }
    Ok(found)
}

/// Keeps writing to a subject, without an error, while `work` is done and for some time before and after; then every
/// write that was acknowledged is there.
async fn written_during<T>(store: &Kv, work: impl AsyncFnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
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

#[tokio::test]
async fn a_new_server_gets_its_share_of_new_subjects_and_of_the_others_what_a_rebalance_moves()
-> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            let old = fill(&client, (0..40).map(|number| format!("app.old.{number:02}"))).await?;
            let before = listed(fleet, &[]).await?;
            fleet.add(fleet.server_spec("persist-3")?)?;
            fleet.wait_ready("persist-3").await?;
            let new = fill(&client, (0..60).map(|number| format!("app.new.{number:02}"))).await?;
            // Twenty are its fair share; who falls four deviations short of it falls short on purpose.
            let share = listed(fleet, &["app.new.*", "--server", "persist-3"]).await?.len();
            ensure!((6..=34).contains(&share), "{share} of 60");
            assert_eq!(listed(fleet, &["app.old.>"]).await?, before, "what is there stays where it is");

            let dry = documents(&fleet.cli_ok(&["--json", "rebalance", "--dry-run"]).await?)?;
            let planned = dry[0]["moves"].as_array().context("no plan")?.len();
            ensure!(planned > 0, "{dry:?}");
            ensure!(fleet.cli_ok(&["rebalance", "--dry-run"]).await?.contains("persist-3"));
            assert_eq!(listed(fleet, &["app.old.>"]).await?, before, "a dry run moves nothing");
            let bounded = ["--json", "rebalance", "--dry-run", "--most-moves", "1"];
            let bounded = documents(&fleet.cli_ok(&bounded).await?)?;
            assert_eq!(bounded[0]["moves"].as_array().map(Vec::len), Some(1));

            let store = client.kv("app.old.00")?;
            let carried_out =
                written_during(&store, async || documents(&fleet.cli_ok(&["--json", "rebalance"]).await?))
                    .await?;
            let plan = carried_out[0]["moves"].as_array().context("no plan")?;
            assert_eq!(carried_out[1], serde_json::json!({ "done": plan.len(), "given_up": 0 }));
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

#[tokio::test]
async fn a_drained_server_hands_its_subjects_over_while_clients_go_on_and_takes_some_when_it_may()
-> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            let names = fill(&client, (0..30).map(|number| format!("app.drained.{number}"))).await?;
            let (written, owner) = (client.kv(&names[0])?, fleet.owner(&client, &names[0]).await?);
            let drained = written_during(&written, async || {
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

            // It goes and comes back: the order stands.
            fleet.stop(&owner).await?;
            fleet.start_with(&owner, &[])?;
            fleet.wait_serving(&owner).await?;
            let info = documents(&fleet.cli_ok(&["--json", "server", "info", &owner]).await?)?;
            ensure!(info[0]["state"] == "drained" && info[0]["health"].is_object(), "{info:?}");
            let undrained = documents(&fleet.cli_ok(&["--json", "server", "undrain", &owner]).await?)?;
            assert_eq!(undrained[0]["state"], "alive");
            // It hears with its next heartbeat that it may, and hands over what comes before that.
            let later = Cell::new(0);
            until("it takes subjects again", async || {
                let name = format!("app.later.{}", later.replace(later.get() + 1));
                fill(&client, std::iter::once(name)).await?;
                let taken = listed(fleet, &["app.later.*", "--server", &owner]).await?;
                Ok((!taken.is_empty()).then_some(()))
            })
            .await
        })
        .await
}

#[tokio::test]
async fn a_subject_moves_where_the_operator_says_while_it_is_written() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = client.kv("app.moved")?;
            store.put("first", "v").await?;
            let owner = fleet.owner(&client, "app.moved").await?;
            let other = if owner == "persist-1" { "persist-2" } else { "persist-1" };
            // There and back, since who had it once may have it again.
            let moved = written_during(&store, async || {
                let there = fleet.cli_ok(&["--json", "subject", "move", "app.moved", "--to", other]).await?;
                let back = fleet.cli_ok(&["--json", "subject", "move", "app.moved", "--to", &owner]).await?;
                let again = fleet.cli_ok(&["--json", "subject", "move", "app.moved", "--to", &owner]).await?;
                documents(&(there + &back + &again))
            })
            .await?;
            ensure!(moved.iter().all(|moved| moved["done"] == true), "{moved:?}");
            assert_eq!(moved[0]["to"], *other);
            assert_eq!(fleet.owner(&client, "app.moved").await?, owner);
            let nobody = fleet.cli(&["subject", "move", "app.moved", "--to", "nobody"]).await?;
            assert_eq!(nobody.status.code(), Some(3));
            Ok(())
        })
        .await
}

#[tokio::test]
async fn subjects_are_listed_by_pattern_and_server_and_a_reader_may_leave_early() -> anyhow::Result<()> {
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
