//! Removal of subject files from an earlier boot of the machine.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::EngineShared;

/// Files removed in one step, and the pause after it, which leaves the disk's capacity to the subjects.
const AT_ONCE: usize = 500;
const PAUSE: Duration = Duration::from_millis(50);

/// Removes the files that [`DataDir::set_aside_unsynced`](crate::data_dir::DataDir::set_aside_unsynced) has discarded.
/// If some remain, the next process removes them.
pub(super) async fn remove(shared: Arc<EngineShared>) {
    let folder = shared.data.discarded_dir();
    loop {
        let from = folder.clone();
        match shared.env.blocking(move || remove_some(&from)).await {
            Ok(true) => return,
            Ok(false) => tokio::time::sleep(PAUSE).await,
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "discarded files not removed");
                return;
            }
        }
    }
}

/// Removes some files in the folders within `folder`. Returns `true` once everything is removed, including `folder`.
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
