//! Where the programs of a local fleet are.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::Failure;

const NATS_SERVER: &str = "nats-server";

/// The variable that names the nats-server to use.
pub const NATS_SERVER_VARIABLE: &str = "DORMOUSE_NATS_SERVER";

/// The programs of a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// The nats-server.
    pub nats_server: PathBuf,
    /// The coordinator.
    pub coordinator: PathBuf,
    /// The persistence server.
    pub persist_server: PathBuf,
}

impl Programs {
    /// Looks for them as `dormouse dev --help` says.
    ///
    /// # Errors
    /// [`Failure`] that says which one is missing and how to get it.
    pub fn find() -> Result<Self, Failure> {
        let places = Places {
            nats_server: env::var_os(NATS_SERVER_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from),
            path: env::var_os("PATH").iter().flat_map(env::split_paths).collect(),
            executable: env::current_exe().and_then(std::fs::canonicalize).ok(),
            working_directory: env::current_dir().ok(),
        };
        places.find()
    }
}

/// Where to look.
#[derive(Debug, Default)]
struct Places {
    nats_server: Option<PathBuf>,
    path: Vec<PathBuf>,
    executable: Option<PathBuf>,
    working_directory: Option<PathBuf>,
}

impl Places {
    fn find(&self) -> Result<Programs, Failure> {
        Ok(Programs {
            nats_server: self.nats_server()?,
            coordinator: self.sibling("dormouse-coordinator")?,
            persist_server: self.sibling("dormouse-persist-server")?,
        })
    }

    fn nats_server(&self) -> Result<PathBuf, Failure> {
        if let Some(named) = &self.nats_server {
            return if is_program(named) {
                Ok(named.clone())
            } else {
                Err(Failure::new(format!(
                    "{NATS_SERVER_VARIABLE} names {}, which is not a program",
                    named.display()
                )))
            };
        }
        // `make tools` puts it into `.tools/bin` at the top of the project; our own binary stands in `target/<profile>`.
        let beside = self.directory().into_iter().flat_map(|directory| {
            directory.ancestors().take(3).map(|above| above.join(".tools/bin")).collect::<Vec<_>>()
        });
        let in_tools =
            self.working_directory.iter().map(|directory| directory.join(".tools/bin")).chain(beside);
        self.path.iter().cloned().chain(in_tools).find_map(|directory| program_in(&directory, NATS_SERVER)).ok_or_else(
            || {
                Failure::new(format!(
                    "no nats-server found: put one on PATH (https://nats.io/download, or a package of your system), \
                     name one in {NATS_SERVER_VARIABLE}, or run `make tools` in the project, which puts one into \
                     .tools/bin"
                ))
            },
        )
    }

    fn directory(&self) -> Option<&Path> {
        self.executable.as_deref().and_then(Path::parent)
    }

    fn sibling(&self, name: &str) -> Result<PathBuf, Failure> {
        let beside = self.directory().map(Path::to_path_buf);
        beside.iter().chain(&self.path).find_map(|directory| program_in(directory, name)).ok_or_else(|| {
            Failure::new(format!(
                "{name} is neither beside this program nor on PATH: install the three programs together, or build \
                 them with `cargo build`"
            ))
        })
    }
}

fn program_in(directory: &Path, name: impl AsRef<OsStr>) -> Option<PathBuf> {
    // An empty entry of PATH means the working directory; we do not start programs from there unasked.
    let path = directory.join(name.as_ref());
    (directory.is_absolute() && is_program(&path)).then_some(path)
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn siblings_win_over_path_and_tools_come_last() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for file in [
            "target/debug/dormouse-coordinator",
            "usr/bin/dormouse-coordinator",
            "usr/bin/dormouse-persist-server",
            ".tools/bin/nats-server",
        ] {
            program(&root.join(file));
        }
        let mut places = Places {
            executable: Some(root.join("target/debug/dormouse")),
            path: vec![root.join("usr/bin")],
            ..Places::default()
        };
        let found = places.find().unwrap();
        assert_eq!(found.coordinator, root.join("target/debug/dormouse-coordinator"));
        assert_eq!(found.persist_server, root.join("usr/bin/dormouse-persist-server"));
        assert_eq!(found.nats_server, root.join(".tools/bin/nats-server"));

        program(&root.join("usr/bin/nats-server"));
        assert_eq!(places.nats_server().unwrap(), root.join("usr/bin/nats-server"));

        places.nats_server = Some(root.join("elsewhere"));
        assert!(places.nats_server().unwrap_err().to_string().contains("DORMOUSE_NATS_SERVER names"));
    }

    #[test]
    fn what_is_missing_is_named_with_a_way_to_get_it() {
        let places = Places::default();
        let error = places.nats_server().unwrap_err().to_string();
        assert!(error.contains("make tools") && error.contains("PATH"), "{error}");
        let error = places.sibling("dormouse-coordinator").unwrap_err().to_string();
        assert!(error.contains("cargo build"), "{error}");
    }

    #[test]
    fn what_cannot_be_run_is_no_program() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("nats-server"), "").unwrap();
        let places = Places { path: vec![root.path().to_owned()], ..Places::default() };
        assert!(places.nats_server().is_err());
    }
}
