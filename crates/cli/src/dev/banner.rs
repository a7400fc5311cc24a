//! The message of `dormouse dev` when the fleet is ready.

use std::fmt::Write;

use dormouse_protocol::ServerName;

use super::files::FleetFile;
use crate::error::Failure;
use crate::output::Output;

/// Prints the addresses of the fleet and example commands, or with `--json` the fleet file as one document.
///
/// # Errors
/// [`Failure`] if standard output cannot be written.
pub fn print(output: &Output, file: &FleetFile) -> Result<(), Failure> {
    if output.is_json() {
        output.json(file)?;
        output.flush()
    } else {
        output.text(&text(file))
    }
}

fn text(file: &FleetFile) -> String {
    let mut text = String::from("\nThe fleet is ready.\n\n");
    let servers: Vec<&str> =
        file.data_dirs.keys().map(String::as_str).filter(|name| *name != ServerName::COORDINATOR).collect();
    // Commands need a flag for an address that is not the tool's default.
    let nats =
        if file.url.ends_with("127.0.0.1:4222") { String::new() } else { format!(" --nats {}", file.url) };
    let prefix = if file.prefix == "persist" { String::new() } else { format!(" --prefix {}", file.prefix) };
    let dormouse = format!("dormouse{nats}{prefix}");
    for (name, value) in [
        ("NATS", file.url.as_str()),
        ("servers", &servers.join(", ")),
        ("bucket", &file.bucket),
        ("fleet file", &FleetFile::path(&file.data_dir).display().to_string()),
    ] {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {name:<11}{value}");
    }
    let _ = write!(
        text,
        "\nTry, in another terminal:\n\n  {dormouse} set app.greeting --key hello world\n  {dormouse} get app.greeting \
         --key hello\n  {dormouse} watch app.greeting\n\nCtrl-C stops it.\n\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;

    /// The example commands of the banner contain the flags that reach the fleet.
    #[test]
    fn banner_examples_connect_to_its_fleet() {
        let data_dirs = ["coordinator", "persist-1"].map(|name| (name.to_owned(), PathBuf::from(name)));
        let mut file = FleetFile {
            url: "nats://127.0.0.1:4222".to_owned(),
            prefix: "persist".to_owned(),
            bucket: "file:///d/bucket".to_owned(),
            data_dir: PathBuf::from("/d"),
            pid: 1,
            pids: ["nats", "coordinator", "persist-1"].map(|name| (name.to_owned(), 2)).into(),
            data_dirs: BTreeMap::from(data_dirs),
        };
        assert!(text(&file).contains("  dormouse get app.greeting --key hello\n"), "{}", text(&file));
        file.url = "nats://127.0.0.1:37001".to_owned();
        file.prefix = "mine".to_owned();
        let text = text(&file);
        assert!(text.contains("dormouse --nats nats://127.0.0.1:37001 --prefix mine get "), "{text}");
        assert!(text.contains("/d/fleet.json") && text.contains("servers    persist-1\n"), "{text}");
    }
}
