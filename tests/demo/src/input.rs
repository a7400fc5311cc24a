//! Real input from this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use bytes::Bytes;

/// The stream that gets the log lines.
pub const LOG_SUBJECT: &str = "demo.log.dpkg";

/// The largest number of log lines, the newest ones: the demo must stay short on old machines too.
const MOST_LINES: usize = 50_000;

/// The data to store.
#[derive(Debug)]
pub struct DemoInput {
    /// Subject → key → value: a store for each section, an entry for each package.
    pub stores: BTreeMap<String, BTreeMap<String, Bytes>>,
    /// The lines of the log. At least 20.
    pub lines: Vec<Bytes>,
    /// The source of the lines.
    pub log: PathBuf,
}

impl DemoInput {
    /// Reads the package database and a log.
    ///
    /// # Errors
    /// If there is no package database, or no log with enough lines.
    pub fn read(packages: &Path, log: Option<&Path>) -> anyhow::Result<Self> {
        let database = std::fs::read(packages)
            .with_context(|| format!("cannot read the package database {}", packages.display()))?;
        let stores = stores(&database);
        ensure!(!stores.is_empty(), "{} lists no installed package", packages.display());
        let (log, lines) = match log {
            Some(log) => (log.to_path_buf(), read_lines(log)?),
            // If there is no log, the database itself has enough lines.
            None => find_log().unwrap_or_else(|| (packages.to_path_buf(), lines(&database))),
        };
        ensure!(lines.len() >= 20, "{} has fewer than 20 lines", log.display());
        Ok(Self { stores, lines, log })
    }

    /// Returns the number of packages.
    pub fn packages(&self) -> usize {
        self.stores.values().map(BTreeMap::len).sum()
    }

    /// Returns the total size of all values in bytes.
    pub fn bytes(&self) -> usize {
        let packages = self.stores.values().flat_map(BTreeMap::values).map(Bytes::len);
        packages.chain(self.lines.iter().map(Bytes::len)).sum()
    }
}

/// One store per section of the stanzas in a package database.
fn stores(database: &[u8]) -> BTreeMap<String, BTreeMap<String, Bytes>> {
    let mut stores: BTreeMap<String, BTreeMap<String, Bytes>> = BTreeMap::new();
    for stanza in split(database, b"\n\n") {
        let Some(name) = field(stanza, "Package") else { continue };
        let architecture = field(stanza, "Architecture").unwrap_or_else(|| "none".to_owned());
        let section = field(stanza, "Section").unwrap_or_else(|| "unsorted".to_owned());
        stores
            .entry(format!("demo.packages.{}", tokens(&section)))
            .or_default()
            .insert(format!("{name}:{architecture}"), Bytes::copy_from_slice(stanza));
    }
    stores
}

/// A section as tokens of a subject: `non-free/utils` becomes `non-free.utils`.
fn tokens(section: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    let tokens: Vec<String> = section
        .split('/')
        .filter(|token| !token.is_empty())
        .map(|token| token.chars().map(legal).collect())
        .collect();
    if tokens.is_empty() { "unsorted".to_owned() } else { tokens.join(".") }
}

fn field(stanza: &[u8], name: &str) -> Option<String> {
    split(stanza, b"\n").find_map(|line| {
        let value = line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
        Some(String::from_utf8_lossy(value).trim().to_owned())
    })
}

/// Returns the non-empty parts between separators.
fn split<'t>(text: &'t [u8], separator: &'t [u8]) -> impl Iterator<Item = &'t [u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.windows(separator.len()).position(|window| window == separator);
        let part = &rest[..end.unwrap_or(rest.len())];
        rest = end.map_or(&[], |end| &rest[end + separator.len()..]);
        Some(part)
    })
    .filter(|part| !part.is_empty())
}

/// Returns `/var/log/dpkg.log`, or else the largest readable log of this machine.
fn find_log() -> Option<(PathBuf, Vec<Bytes>)> {
    let dpkg = PathBuf::from("/var/log/dpkg.log");
    let mut logs: Vec<PathBuf> = std::fs::read_dir("/var/log")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    logs.sort_by_key(|path| {
        (*path != dpkg, std::cmp::Reverse(std::fs::metadata(path).map_or(0, |data| data.len())))
    });
    logs.into_iter().find_map(|log| {
        let lines = read_lines(&log).ok()?;
        (lines.len() >= 20).then_some((log, lines))
    })
}

fn read_lines(log: &Path) -> anyhow::Result<Vec<Bytes>> {
    let text = std::fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    Ok(lines(&text))
}

fn lines(text: &[u8]) -> Vec<Bytes> {
    let mut lines: Vec<Bytes> = split(text, b"\n").map(Bytes::copy_from_slice).collect();
    lines.drain(..lines.len().saturating_sub(MOST_LINES));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The demo turns each package stanza into one entry of its section's store, and unsorted packages into a default
    /// store.
    #[test]
    fn package_stanza_becomes_an_entry_of_the_section_store() {
        let database = b"Package: a\nSection: net\nArchitecture: all\nDescription: x\n Section: no\n\n\
            Package: a\nSection: net\nArchitecture: amd64\n\nPackage: b\nSection: non-free/utils\n\nPackage: c\n";
        let stores = stores(database);
        let names: Vec<_> = stores.keys().map(String::as_str).collect();
        assert_eq!(names, ["demo.packages.net", "demo.packages.non-free.utils", "demo.packages.unsorted"]);
        assert_eq!(stores["demo.packages.net"].len(), 2);
        let c = &stores["demo.packages.unsorted"]["c:none"];
        assert_eq!(&c[..], b"Package: c\n");
    }
}
