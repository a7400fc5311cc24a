//! The permissions of the files that a daemon creates.

use rustix::fs::Mode;

/// Closes all files and folders that this process creates to other users: their data directory, their objects in a
/// local directory, and their lock files, which another user could otherwise lock.
pub fn restrict_new_files() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

#[cfg(test)]
mod tests {
    use std::fs::{self, DirBuilder};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// New files and folders are closed to other users.
    #[test]
    fn new_files_are_closed_to_other_users() {
        restrict_new_files();
        let folder = std::env::temp_dir().join(format!("dormouse-umask-{}", std::process::id()));
        DirBuilder::new().create(&folder).unwrap();
        fs::write(folder.join("file"), "").unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let modes = (mode(folder.clone()), mode(folder.join("file")));
        fs::remove_dir_all(folder).unwrap();
        assert_eq!(modes, (0o700, 0o600));
    }
}
