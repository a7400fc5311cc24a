//! Lists the bucket's contents: plain SQLite files.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::input::DemoInput;

/// The number of files that are listed by name.
const SHOWN: usize = 5;

/// The SQLite files in a bucket.
#[derive(Debug, Default)]
pub struct Files {
    /// The number of files.
    pub count: usize,
    /// The total size in bytes.
    pub bytes: u64,
}

/// Lists the SQLite files in the bucket of a stopped fleet and checks the first bytes of each. If the `sqlite3` tool is
/// installed, it queries the largest file.
pub async fn list(bucket: &Path, input: &DemoInput) -> anyhow::Result<Files> {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    let mut folders = vec![bucket.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "sqlite3") {
                // A file that was replaced in the meantime may be gone.
                let Ok(bytes) = std::fs::read(&path) else { continue };
                ensure!(bytes.starts_with(b"SQLite format 3\0"), "{} is not an SQLite file", path.display());
                found.push((bytes.len() as u64, path));
            }
        }
    }
    found.sort_by(|one, other| other.cmp(one));
    let subjects = input.stores.len() + 1;
    ensure!(found.len() >= subjects, "{} SQLite files in the bucket for {subjects} subjects", found.len());
    println!("\nIn the bucket, plain SQLite files:");
    for (bytes, path) in found.iter().take(SHOWN) {
        println!("  {bytes:>9} bytes  {}", path.strip_prefix(bucket).unwrap_or(path).display());
    }
    println!("  … and {} more", found.len().saturating_sub(SHOWN));
    if let Some((_, largest)) = found.first() {
        ask_sqlite3(largest).await?;
    }
    Ok(Files { count: found.len(), bytes: found.iter().map(|(bytes, _)| bytes).sum() })
}

async fn ask_sqlite3(file: &Path) -> anyhow::Result<()> {
    let question = "SELECT count(*) || ' messages, ' || sum(size) || ' bytes' FROM messages";
    let asked =
        tokio::process::Command::new("sqlite3").arg("-readonly").arg(file).arg(question).output().await;
    let Ok(output) = asked else {
        println!("  (sqlite3 is not installed, so no file is queried)");
        return Ok(());
    };
    let answer = String::from_utf8(output.stdout)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "sqlite3 cannot open {}: {error}", file.display());
    println!("  sqlite3 on the first: {}", answer.lines().next().context("sqlite3 printed nothing")?);
    Ok(())
}
