//! A nats-server with users: one of the configurations in `deploy/nats`, with passwords generated for this run.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, ensure};
use dormouse_bus::nats::{Authentication, NatsOptions, Secret};
use dormouse_harness::{NatsServerOptions, workspace_root};

/// The users and permissions of a fleet.
#[derive(Debug, Clone)]
pub struct Security {
    /// The text of nats-server's configuration.
    pub config: String,
    /// The prefix of reply addresses; `{}` is the user.
    pub inbox: String,
    passwords: BTreeMap<String, String>,
}

impl Security {
    /// Reads the configuration `deploy/nats/<file>`, with passwords from the script beside it.
    ///
    /// # Errors
    /// If either fails.
    pub fn shipped(file: &str) -> anyhow::Result<Self> {
        let folder = workspace_root().join("deploy/nats");
        let config = std::fs::read_to_string(folder.join(file)).with_context(|| file.to_owned())?;
        let generated = Command::new(folder.join("make-passwords")).output().context("make-passwords")?;
        ensure!(generated.status.success(), "make-passwords: {}", String::from_utf8_lossy(&generated.stderr));
        let generated = String::from_utf8(generated.stdout)?;
        let passwords = generated.lines().filter_map(|line| line.split_once('='));
        let passwords = passwords.map(|(name, password)| (name.to_owned(), password.to_owned())).collect();
        Ok(Self { config, inbox: "_INBOX.{}".to_owned(), passwords })
    }

    /// Returns the password of a user.
    ///
    /// # Errors
    /// If there is no such user.
    pub fn password(&self, user: &str) -> anyhow::Result<&str> {
        let name = format!("{}_PASSWORD", user.to_uppercase().replace('-', "_"));
        Ok(self.passwords.get(&name).with_context(|| format!("{name} was not generated"))?)
    }

    /// Returns the prefix of a user's reply addresses.
    #[must_use]
    pub fn inbox_of(&self, user: &str) -> String {
        self.inbox.replace("{}", user)
    }

    pub(crate) fn nats(&self) -> NatsServerOptions {
        let environment = self.passwords.clone().into_iter().collect();
        NatsServerOptions { config: self.config.clone(), environment, ..NatsServerOptions::default() }
    }

    /// Returns the same options, as this user.
    pub(crate) fn apply(&self, user: &str, options: NatsOptions) -> anyhow::Result<NatsOptions> {
        let password = Secret::new(self.password(user)?);
        let authentication = Authentication::UserPassword { user: user.to_owned(), password };
        Ok(NatsOptions { authentication, inbox_prefix: self.inbox_of(user).parse()?, ..options })
    }

    /// Returns the environment of a Dormouse program that connects as this user.
    ///
    /// # Errors
    /// If there is no such user.
    pub fn variables(&self, user: &str) -> anyhow::Result<Vec<(String, String)>> {
        let pairs = [
            ("DORMOUSE_NATS_USER", user.to_owned()),
            ("DORMOUSE_NATS_PASSWORD", self.password(user)?.to_owned()),
            ("DORMOUSE_NATS_INBOX_PREFIX", self.inbox_of(user)),
        ];
        Ok(pairs.map(|(name, value)| (name.to_owned(), value)).to_vec())
    }
}
