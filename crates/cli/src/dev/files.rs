//! The data directory of a local fleet: who may use it, and the file that tells others about the fleet.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::{ErrorKind, Failure};

/// What a running local fleet says about itself in `<data-dir>/fleet.json`. It is there while the fleet is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetFile {
    /// The address of the nats-server.
    pub url: String,
    /// First tokens of the fleet's routes.
    pub prefix: String,
    /// The bucket, as a URL.
    pub bucket: String,
    /// The data directory of the whole fleet.
    pub data_dir: PathBuf,
    /// The process of `dormouse dev` itself.
    pub pid: u32,
    /// The processes that are alive, by name: `nats`, `coordinator`, and the servers.
    pub pids: BTreeMap<String, u32>,
    /// The data directories of the processes that have one, by name.
    pub data_dirs: BTreeMap<String, PathBuf>,
}

impl FleetFile {
    /// The file in a data directory.
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("fleet.json")
    }

    /// Writes the file in one step: a reader sees all of it or the one before.
    ///
    /// # Errors
    /// [`Failure`] when the directory cannot be written.
    pub fn write(&self) -> Result<(), Failure> {
        let path = Self::path(&self.data_dir);
        let staged = self.data_dir.join("fleet.json.new");
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| cannot("write", &path, &error))?;
        text.push(b'\n');
        fs::write(&staged, text)
            .and_then(|()| fs::rename(&staged, &path))
            .map_err(|error| cannot("write", &path, &error))
    }

    /// Removes the file of a fleet that is gone.
    pub fn remove(data_dir: &Path) {
        // What is not there need not go; a directory that cannot be written has failed before.
        let _ = fs::remove_file(Self::path(data_dir));
    }

    /// Reads the file of the fleet that runs on `data_dir`.
    ///
    /// # Errors
    /// [`Failure`]: `unavailable` when there is no such file, so no fleet is ready there.
    pub fn read(data_dir: &Path) -> Result<Self, Failure> {
        let path = Self::path(data_dir);
        let text = fs::read(&path).map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                Failure::of(
                    ErrorKind::Unavailable,
                    format!(
                        "no fleet of `dormouse dev` is ready on {}: {} is missing",
                        data_dir.display(),
                        path.display()
                    ),
                )
            } else {
                cannot("read", &path, &error)
            }
        })?;
        serde_json::from_slice(&text).map_err(|error| cannot("read", &path, &error))
    }
}

/// The data directory, ours alone as long as this value lives.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the directory where it is missing and takes it.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be used, or another `dormouse dev` uses it.
    pub fn take(path: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(path).map_err(|error| cannot("create", path, &error))?;
        let root = fs::canonicalize(path).map_err(|error| cannot("use", path, &error))?;
        let lock_path = root.join("dev.lock");
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(|error| cannot("open", &lock_path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                return Err(Failure::new(format!(
                    "another `dormouse dev` (process {}) runs on {}: stop it, or choose another --data-dir",
                    holder.trim(),
                    root.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(cannot("lock", &lock_path, &error)),
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(|error| cannot("write", &lock_path, &error))?;
        let directory = Self { root, _lock: lock };
        // What a fleet left behind that was killed.
        FleetFile::remove(&directory.root);
        directory.create("bucket")?;
        Ok(directory)
    }

    /// The directory itself, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A directory in it, created where it is missing.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be created.
    pub fn create(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).map_err(|error| cannot("create", &path, &error))?;
        Ok(path)
    }

    /// The bucket in it, as a URL.
    ///
    /// # Errors
    /// [`Failure`] when the path cannot be written as one.
    pub fn bucket_url(&self) -> Result<String, Failure> {
        let bucket = self.root.join("bucket");
        Url::from_file_path(&bucket)
            .map(String::from)
            .map_err(|()| Failure::new(format!("{} cannot be written as a URL", bucket.display())))
    }
}

fn cannot(what: &str, path: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::new(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_serves_one_fleet_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a b/fleet");
        let first = DataDir::take(&path).unwrap();
        let refused = DataDir::take(&path).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        assert!(refused.contains("--data-dir"), "{refused}");
        drop(first);
        let again = DataDir::take(&path).unwrap();
        assert!(again.root().join("bucket").is_dir());
        assert!(again.bucket_url().unwrap().ends_with("/a%20b/fleet/bucket"));
    }

    #[test]
    fn the_fleet_file_is_read_as_it_was_written_and_missing_when_nothing_runs() {
        let root = tempfile::tempdir().unwrap();
        let data_dir = DataDir::take(root.path()).unwrap();
        let missing = FleetFile::read(data_dir.root()).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::Unavailable);
        let file = FleetFile {
            url: "nats://127.0.0.1:4222".to_owned(),
            prefix: "persist".to_owned(),
            bucket: data_dir.bucket_url().unwrap(),
            data_dir: data_dir.root().to_owned(),
            pid: 1,
            pids: BTreeMap::from([("nats".to_owned(), 2)]),
            data_dirs: BTreeMap::new(),
        };
        file.write().unwrap();
        assert_eq!(FleetFile::read(data_dir.root()).unwrap(), file);
        // A later fleet does not inherit the promises of one that was killed.
        drop(data_dir);
        let _later = DataDir::take(root.path()).unwrap();
        assert!(FleetFile::read(root.path()).is_err());
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DataDir::take(&file).unwrap_err().to_string();
        assert!(error.contains("cannot create") && error.contains("file"), "{error}");
    }
}
