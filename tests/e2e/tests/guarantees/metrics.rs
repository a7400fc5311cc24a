//! The metrics of running programs, as a scraper and an operator read them.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use dormouse_e2e::{Fleet, until};
use dormouse_harness::{Samples, read_exposition};
use futures::TryStreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SERVER: &str = "persist-1";
const COORDINATOR: &str = "coordinator";

/// Scrapes a program at the address that its log names.
async fn scrape(fleet: &Fleet, name: &str) -> anyhow::Result<Samples> {
    let log = fleet.log(name)?;
    let line = log.lines().find(|line| line.contains("metrics listener ready")).context("no listener")?;
    let address = line.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next());
    let mut stream = TcpStream::connect(address.context("no address")?).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: metrics\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    read_exposition(body)
}

/// The names of the samples, without their values and labels, and without those that only busy tenants have.
fn names(samples: &Samples) -> BTreeSet<&str> {
    let names = samples.keys().map(|series| series.split('{').next().unwrap_or(series));
    names.filter(|name| !name.starts_with("dormouse_tenant_")).collect()
}

/// The sum of all series of a name.
fn total(samples: &Samples, name: &str) -> f64 {
    samples.iter().filter(|(series, _)| series.split('{').next() == Some(name)).map(|(_, value)| value).sum()
}

/// Both programs serve metrics in the text format. They count the work, and each way to read them has the same ones.
#[tokio::test]
async fn metrics_of_both_programs_count_their_work() -> anyhow::Result<()> {
    let listen = ["--metrics-listen", "127.0.0.1:0"];
    Fleet::builder()
        .servers(1)
        .server_args(listen)
        .coordinator_args(listen)
        .run(async |fleet| {
            let (server_before, coordinator_before) =
                (scrape(fleet, SERVER).await?, scrape(fleet, COORDINATOR).await?);
            let client = fleet.client().await?;
            for subject in ["app.one", "app.two"] {
                let store = client.kv(subject)?;
                for number in 0..20 {
                    store.put(format!("k{number}"), "v").await?;
                }
                ensure!(store.get("k1").await?.is_some());
                let entries: Vec<_> = store.entries("").try_collect().await?;
                ensure!(entries.len() == 20);
            }
            // Each counts something that the work above consists of.
            let counted = [
                ("dormouse_acknowledge_seconds_count", 40.0),
                ("dormouse_request_duration_seconds_count", 44.0),
                ("dormouse_queue_wait_seconds_count", 44.0),
                ("dormouse_open_seconds_count", 2.0),
                ("dormouse_claims_total", 2.0),
                ("dormouse_bucket_call_seconds_count", 4.0),
            ];
            // Some figures are copies, which are replaced once a second.
            let server = until("the metrics count the work", async || {
                let server = scrape(fleet, SERVER).await?;
                let grown = |name| total(&server, name) - total(&server_before, name);
                let missing = counted.iter().find(|(name, least)| grown(name) < *least);
                Ok(missing.is_none().then_some(server))
            })
            .await?;
            ensure!(names(&server) == names(&server_before), "families are there from the start");
            let coordinator = scrape(fleet, COORDINATOR).await?;
            let lookups = |samples| total(samples, "dormouse_request_duration_seconds_count");
            ensure!(lookups(&coordinator) > lookups(&coordinator_before));
            for (name, scraped) in [(SERVER, &server), (COORDINATOR, &coordinator)] {
                let printed = until("the tool prints the metrics", async || {
                    Ok(fleet.cli_ok(&["server", "metrics", name]).await.ok())
                })
                .await?;
                let printed = read_exposition(&printed)?;
                ensure!(names(&printed) == names(scraped), "{name}: the tool prints other metrics");
            }
            Ok(())
        })
        .await
}
