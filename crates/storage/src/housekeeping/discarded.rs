//! Subjects' files of an earlier run of the machine go.

use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;

use crate::engine::Shared;

/// Removes what was [set aside](crate::data_dir::DataDir::set_aside_unsynced). What is left of it, the next process removes.
pub(super) async fn remove(shared: Arc<Shared>) {
    let folder = shared.data.discarded_dir();
    let gone = folder.clone();
    match shared.env.blocking(move || fs::remove_dir_all(gone)).await {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "files that nobody uses any more cannot be removed");
        }
        _ => {}
    }
}
