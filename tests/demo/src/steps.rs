//! The steps of the demo.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use dormouse_client::{Client, Error, Message, MessageId, NewMessage, Seq, Subject};
use futures::{StreamExt, TryStreamExt, stream};

use crate::fleet::DevFleet;
use crate::input::{DemoInput, LOG_SUBJECT};
use crate::report::{DemoStep, Stopwatch};

/// The number of lines that are published in one call.
const BATCH: usize = 250;

/// The time limit of the failover.
const FAILOVER_DEADLINE: Duration = Duration::from_secs(30);

/// Puts every package under its key, one request each, with many in flight.
pub async fn put_packages(client: &Client, input: &DemoInput, in_flight: usize) -> anyhow::Result<()> {
    let step = DemoStep::begin("storing the packages", input.packages());
    let mut entries = Vec::with_capacity(input.packages());
    for (subject, packages) in &input.stores {
        let store = client.kv(subject)?;
        entries.extend(packages.iter().map(|(key, value)| (store.clone(), key.clone(), value.clone())));
    }
    stream::iter(entries)
        .map(Ok)
        .try_for_each_concurrent(in_flight.max(1), async |(store, key, value)| {
            store.put(key.clone(), value).await.with_context(|| format!("cannot store {key}"))?;
            step.advance(1);
            anyhow::Ok(())
        })
        .await?;
    step.done(&format!("{} puts, {in_flight} in flight", input.packages()));
    Ok(())
}

/// Appends lines to the stream, in order; returns the id of the last message.
pub async fn publish_lines(client: &Client, lines: &[Bytes]) -> anyhow::Result<MessageId> {
    let step = DemoStep::begin("appending to the log", lines.len());
    let log = client.stream(LOG_SUBJECT)?;
    let mut last = None;
    for batch in lines.chunks(BATCH) {
        for result in log.publish_batch(batch.iter().cloned()).await {
            last = Some(result.context("cannot append to the log")?.id());
        }
        step.advance(batch.len());
    }
    step.done(&format!("{} lines", lines.len()));
    last.context("no lines")
}

/// Checks that every package is stored as it was put, and nothing else.
pub async fn check_packages(client: &Client, input: &DemoInput, what: &str) -> anyhow::Result<()> {
    let step = DemoStep::begin(what, input.packages());
    for (subject, packages) in &input.stores {
        let mut left: BTreeMap<&str, &Bytes> =
            packages.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let mut entries = client.kv(subject)?.entries("");
        while let Some(entry) = entries.next().await {
            let entry = entry.with_context(|| format!("cannot read {subject}"))?;
            let key = entry.key.as_deref().unwrap_or_default();
            let wanted =
                left.remove(key).with_context(|| format!("{subject} has {key}, which was not put"))?;
            ensure!(
                entry.value.as_ref() == Some(wanted),
                "{subject}: {key} differs from the value that was put"
            );
            step.advance(1);
        }
        ensure!(left.is_empty(), "{subject} lacks {} of {} packages", left.len(), packages.len());
    }
    step.done("every byte matches");
    Ok(())
}

/// Checks that the stream has exactly these lines in this order.
pub async fn check_lines(client: &Client, lines: &[Bytes], what: &str) -> anyhow::Result<()> {
    let step = DemoStep::begin(what, lines.len());
    let mut messages = client.stream(LOG_SUBJECT)?.get_all(..);
    let mut wanted = lines.iter();
    while let Some(message) = messages.next().await {
        let message: Message = message.context("cannot read the log")?;
        let line = wanted.next().with_context(|| format!("{} was not appended", message.seq))?;
        ensure!(
            message.value.as_ref() == Some(line),
            "{} differs from the line that was appended",
            message.seq
        );
        step.advance(1);
    }
    ensure!(wanted.len() == 0, "the log lacks {} of {} lines", wanted.len(), lines.len());
    step.done("every byte, in order");
    Ok(())
}

/// Kills the server that owns the log, and appends a line through the client until that succeeds. Returns the seconds
/// in between.
///
/// An indeterminate write is not repeated blindly: it is conditional on the message before it, so the repeat of an
/// executed write is rejected.
pub async fn failover(
    client: &Client,
    fleet: &mut DevFleet,
    line: &Bytes,
    last: MessageId,
) -> anyhow::Result<f64> {
    let subject = Subject::new(LOG_SUBJECT)?;
    let owner = client.locate(&subject).await?;
    let step = DemoStep::begin("killing the owner of the log", 1);
    fleet.kill9(owner.as_str())?;
    let clock = Stopwatch::start();
    let log = client.stream(LOG_SUBJECT)?.with_deadline(FAILOVER_DEADLINE);
    let appended = loop {
        match log.publish_with(NewMessage::new(line.clone()).expect_last(Some(last))).await {
            Ok(ack) => break ack.seq,
            Err(Error::WrongLast { actual: Some(actual) }) if actual.seq == last.seq.next() => {
                break actual.seq;
            }
            Err(error) if clock.seconds() > FAILOVER_DEADLINE.as_secs_f64() => {
                return Err(error).context("the client did not recover");
            }
            // The server is gone and the result is unknown: retry, based on the current state.
            Err(Error::Indeterminate { .. }) => {}
            Err(error) => return Err(error).context("the client did not recover"),
        }
    };
    let seconds = clock.seconds();
    check_successor(client, &subject, owner.as_str(), appended, line).await?;
    step.done(&format!("kill -9 {owner}: the next write after {seconds:.2} s"));
    Ok(seconds)
}

async fn check_successor(
    client: &Client,
    subject: &Subject,
    killed: &str,
    appended: Seq,
    line: &Bytes,
) -> anyhow::Result<()> {
    let successor = client.locate(subject).await?;
    if successor.as_str() == killed {
        bail!("the killed server is still reported as the owner of the log");
    }
    let read = client.stream(LOG_SUBJECT)?.get(appended).await?.context("the appended line is gone")?;
    ensure!(read.value.as_ref() == Some(line), "the appended line differs");
    Ok(())
}
