//! Helpers for several tests.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use bytes::Bytes;
use dormouse_client::{Client, Error, Kv};
use dormouse_e2e::until;

/// Returns the value for a number.
pub fn value(number: usize) -> Bytes {
    format!("value {number} {}", "x".repeat(number % 97)).into()
}

/// Returns the key for a number.
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

/// Checks that every entry of these numbers is stored as written.
pub async fn check(store: &Kv, numbers: std::ops::Range<usize>) -> anyhow::Result<()> {
    check_numbers(store, numbers).await
}

/// Checks that every entry of these numbers is stored as written.
pub async fn check_numbers(store: &Kv, numbers: impl Iterator<Item = usize>) -> anyhow::Result<()> {
    let entries = store.entries("").all().await?;
    let by_key: HashMap<_, _> = entries.iter().map(|entry| (entry.key.as_deref(), entry)).collect();
    for number in numbers {
        let wanted = key(number);
        let entry = by_key
            .get(&Some(wanted.as_str()))
            .with_context(|| format!("{wanted} is missing among {} entries", entries.len()))?;
        ensure!(entry.value.as_ref() == Some(&value(number)), "{wanted} has another value");
    }
    Ok(())
}

/// Returns a store with the entries 0 to 299.
pub async fn filled(client: &Client, subject: &str) -> anyhow::Result<Kv> {
    let store = client.kv(subject)?;
    write(&store, 0..300).await?;
    Ok(store)
}

/// Returns the files below a folder whose names have this ending.
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

/// The number of parallel writers.
pub const WRITERS: usize = 8;

/// Writes one entry after the other, each under its own key, until `stop` is set. Returns the numbers of the
/// acknowledged entries; errors go to `refused`.
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
    until("writes continue", async || Ok((written.get() >= enough).then_some(()))).await
}
