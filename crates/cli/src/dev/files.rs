//! The data directory of a local fleet: its lock, and the file that describes the fleet to other programs.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::{Failure, FailureKind};

/// The content of `<data-dir>/fleet.json`, which describes a running local fleet. The file exists while the fleet is
/// ready.
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
    /// The path of the file in a data directory.
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("fleet.json")
    }

    /// Writes the file in one step: a reader sees the complete file or the previous one.
    ///
    /// # Errors
    /// [`Failure`] if the directory cannot be written.
    pub fn write(&self) -> Result<(), Failure> {
        let path = Self::path(&self.data_dir);
        let staged = self.data_dir.join("fleet.json.new");
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| cannot("write", &path, &error))?;
        text.push(b'\n');
        fs::write(&staged, text)
            .and_then(|()| fs::rename(&staged, &path))
            .map_err(|error| cannot("write", &path, &error))
    }

    /// Removes the file of a fleet that has ended.
    pub fn remove(data_dir: &Path) {
        // A missing file is fine, and an unwritable directory has already caused an error.
        let _ = fs::remove_file(Self::path(data_dir));
    }

    /// Reads the file of the fleet that runs on `data_dir`.
    ///
    /// # Errors
    /// [`Failure`]: `unavailable` if there is no such file, because then no fleet is ready.
    pub fn read(data_dir: &Path) -> Result<Self, Failure> {
        let path = Self::path(data_dir);
        let text = fs::read(&path).map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                Failure::of(
                    FailureKind::Unavailable,
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

/// The data directory, locked for this process until the value is dropped.
#[derive(Debug)]
pub struct DevDataDir {
    root: PathBuf,
    _lock: File,
}

impl DevDataDir {
    /// Creates the directory if it is missing, and locks it.
    ///
    /// # Errors
    /// [`Failure`] if the directory is unusable, or another `dormouse dev` uses it.
    pub fn lock(path: &Path) -> Result<Self, Failure> {
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
        // A killed fleet leaves its file.
        FleetFile::remove(&directory.root);
        directory.create("bucket")?;
        Ok(directory)
    }

    /// The directory itself, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A directory in it, created if it is missing.
    ///
    /// # Errors
    /// [`Failure`] if it cannot be created.
    pub fn create(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).map_err(|error| cannot("create", &path, &error))?;
        Ok(path)
    }

    /// The bucket in it, as a URL.
    ///
    /// # Errors
    /// [`Failure`] if the path has no URL form.
    pub fn bucket_url(&self) -> Result<String, Failure> {
        let bucket = self.root.join("bucket");
        Url::from_file_path(&bucket)
            .map(String::from)
            .map_err(|()| Failure::new(format!("{} cannot be written as a URL", bucket.display())))
    }
}

fn cannot(action: &str, path: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::new(format!("cannot {action} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data directory serves one fleet at a time, and the error names the process that uses it.
    #[test]
    fn data_dir_serves_one_fleet_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a b/fleet");
        let first = DevDataDir::lock(&path).unwrap();
        let refused = DevDataDir::lock(&path).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        assert!(refused.contains("--data-dir"), "{refused}");
        drop(first);
        let again = DevDataDir::lock(&path).unwrap();
        assert!(again.root().join("bucket").is_dir());
        assert!(again.bucket_url().unwrap().ends_with("/a%20b/fleet/bucket"));
    }

    /// A written fleet file reads back unchanged, and it is absent before a fleet writes its own.
    #[test]
    fn fleet_file_round_trips_and_is_absent_without_fleet() {
        let root = tempfile::tempdir().unwrap();
        let data_dir = DevDataDir::lock(root.path()).unwrap();
        let missing = FleetFile::read(data_dir.root()).unwrap_err();
        assert_eq!(missing.kind(), FailureKind::Unavailable);
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
        // A new fleet removes the file of a killed fleet.
        drop(data_dir);
        let _later = DevDataDir::lock(root.path()).unwrap();
        assert!(FleetFile::read(root.path()).is_err());
    }

    /// The error for an unusable data directory names its path.
    #[test]
    fn data_dir_not_usable_is_named_in_error() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DevDataDir::lock(&file).unwrap_err().to_string();
        assert!(error.contains("cannot create") && error.contains("file"), "{error}");
    }
}
