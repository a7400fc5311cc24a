//! Lookup of the programs of a local fleet.

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
pub struct ProgramPaths {
    /// The nats-server.
    pub nats_server: PathBuf,
    /// The coordinator.
    pub coordinator: PathBuf,
    /// The persistence server.
    pub persist_server: PathBuf,
}

impl ProgramPaths {
    /// Searches the programs as `dormouse dev --help` describes.
    ///
    /// # Errors
    /// [`Failure`] with the name of the missing program and how to get it.
    pub fn find() -> Result<Self, Failure> {
        let places = SearchPaths {
            nats_server: env::var_os(NATS_SERVER_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from),
            path: env::var_os("PATH").iter().flat_map(env::split_paths).collect(),
            executable: env::current_exe().and_then(std::fs::canonicalize).ok(),
            working_directory: env::current_dir().ok(),
        };
        places.find()
    }
}

/// The places to search.
#[derive(Debug, Default)]
struct SearchPaths {
    nats_server: Option<PathBuf>,
    path: Vec<PathBuf>,
    executable: Option<PathBuf>,
    working_directory: Option<PathBuf>,
}

impl SearchPaths {
    fn find(&self) -> Result<ProgramPaths, Failure> {
        Ok(ProgramPaths {
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
        // `make tools` puts it into `.tools/bin` at the top of the project. This binary is in `target/<profile>`.
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
    // An empty entry of PATH means the working directory. The lookup ignores it: programs there may be untrusted.
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

    /// Program lookup prefers siblings of the executable, then `PATH`, then the tools directory; a variable overrides
    /// all for `nats-server`.
    #[test]
    fn program_lookup_prefers_siblings_then_path_then_tools() {
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
        let mut places = SearchPaths {
            executable: Some(root.join("target/debug/dormouse")),
            path: vec![root.join("usr/bin")],
            ..SearchPaths::default()
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

    /// The error for a missing program names it and says how to get it.
    #[test]
    fn program_missing_error_says_how_to_get_it() {
        let places = SearchPaths::default();
        let error = places.nats_server().unwrap_err().to_string();
        assert!(error.contains("make tools") && error.contains("PATH"), "{error}");
        let error = places.sibling("dormouse-coordinator").unwrap_err().to_string();
        assert!(error.contains("cargo build"), "{error}");
    }

    /// Program lookup skips files that are not executable.
    #[test]
    fn program_lookup_skips_non_executable_files() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("nats-server"), "").unwrap();
        let places = SearchPaths { path: vec![root.path().to_owned()], ..SearchPaths::default() };
        assert!(places.nats_server().is_err());
    }
}
