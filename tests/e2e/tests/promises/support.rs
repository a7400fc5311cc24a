//! Words that several tests use.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use bytes::Bytes;
use dormouse_client::{Client, Error, Kv};
use dormouse_e2e::until;

/// The value that stands under the key of a number.
pub fn value(number: usize) -> Bytes {
    format!("value {number} {}", "x".repeat(number % 97)).into()
}

/// The key of a number.
pub fn key(number: usize) -> String {
    format!("key-{number:05}")
}

/// Writes the entries of these numbers; every one must be acknowledged.
pub async fn write(store: &Kv, numbers: std::ops::Range<usize>) -> anyhow::Result<()> {
    for result in store.put_many(numbers.map(|number| (key(number), value(number)))).await {
        result?;
    }
    Ok(())
}

/// Every entry of these numbers is there as it was written.
pub async fn check(store: &Kv, numbers: std::ops::Range<usize>) -> anyhow::Result<()> {
    check_numbers(store, numbers).await
}

/// Every entry of these numbers is there as it was written.
pub async fn check_numbers(store: &Kv, numbers: impl Iterator<Item = usize>) -> anyhow::Result<()> {
    let entries = store.entries("").all().await?;
    let by_key: HashMap<_, _> = entries.iter().map(|entry| (entry.key.as_deref(), entry)).collect();
    for number in numbers {
        let wanted = key(number);
        let entry = by_key
            .get(&Some(wanted.as_str()))
            .with_context(|| format!("{wanted} is gone; {} entries are left", entries.len()))?;
        ensure!(entry.value.as_ref() == Some(&value(number)), "{wanted} has another value");
    }
    Ok(())
}

/// A store in which the entries 0 to 299 are.
pub async fn filled(client: &Client, subject: &str) -> anyhow::Result<Kv> {
    let store = client.kv(subject)?;
    write(&store, 0..300).await?;
    Ok(store)
}

/// The files below a folder whose names end so.
pub fn files_ending(folder: &Path, ending: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// How many writers write at the same time.
pub const WRITERS: usize = 8;

/// Writes one entry after the other, each under a key of its own, until told to stop. The numbers of those that were
/// acknowledged; what is not goes to `refused`.
pub async fn keep_writing(
    store: &Kv,
    writer: usize,
    written: &Cell<usize>,
    stop: &Cell<bool>,
    refused: impl Fn(Error) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<usize>> {
    let mut acknowledged = Vec::new();
    for number in (writer..).step_by(WRITERS) {
        if stop.get() {
            break;
        }
        match store.put(key(number), value(number)).await {
            Ok(_) => {
                acknowledged.push(number);
                written.set(written.get() + 1);
            }
            Err(error) => refused(error)?,
        }
    }
    Ok(acknowledged)
}

/// Waits until this many more writes are acknowledged.
pub async fn more_written(written: &Cell<usize>) -> anyhow::Result<()> {
    let enough = written.get() + 10 * WRITERS;
    until("writes go on", async || Ok((written.get() >= enough).then_some(()))).await
}
