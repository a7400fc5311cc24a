//! Subjects' files of an earlier run of the machine go.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::Shared;

/// So many files go at once, and then the disk is left to others for a while.
const AT_ONCE: usize = 500;
const PAUSE: Duration = Duration::from_millis(50);

/// Removes what was [set aside](crate::data_dir::DataDir::set_aside_unsynced). What is left of it, the next process removes.
pub(super) async fn remove(shared: Arc<Shared>) {
    let folder = shared.data.discarded_dir();
    loop {
        let some = folder.clone();
        match shared.env.blocking(move || remove_some(&some)).await {
            Ok(true) => return,
            Ok(false) => tokio::time::sleep(PAUSE).await,
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "files that nobody uses any more cannot be removed");
                return;
            }
        }
    }
}

/// Removes some of what is in the folders within `folder`. Returns whether nothing is left, not even `folder`.
fn remove_some(folder: &Path) -> io::Result<bool> {
    let Some(folders) = entries(folder)? else { return Ok(true) };
    let mut left = AT_ONCE;
    for inner in folders {
        let inner = inner?.path();
        for file in entries(&inner)?.into_iter().flatten().take(left) {
            fs::remove_file(file?.path())?;
            left -= 1;
        }
        if left == 0 {
            return Ok(false);
        }
        fs::remove_dir(inner)?;
    }
    fs::remove_dir(folder).map(|()| true)
}

fn entries(folder: &Path) -> io::Result<Option<fs::ReadDir>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(Some(entries)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
