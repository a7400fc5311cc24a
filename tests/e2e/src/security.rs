//! A nats-server with users: one of the configurations of `deploy/nats`, with passwords drawn for this run.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, ensure};
use dormouse_bus::nats::{Authentication, NatsOptions, Secret};
use dormouse_harness::{NatsServerOptions, workspace_root};

/// Who may do what in a fleet.
#[derive(Debug, Clone)]
pub struct Security {
    /// The text of nats-server's configuration.
    pub config: String,
    /// What reply addresses begin with, `{}` being the user.
    pub inbox: String,
    passwords: BTreeMap<String, String>,
}

impl Security {
    /// The configuration `deploy/nats/<file>`, with passwords by the script beside it.
    ///
    /// # Errors
    /// When either does not do.
    pub fn shipped(file: &str) -> anyhow::Result<Self> {
        let folder = workspace_root().join("deploy/nats");
        let config = std::fs::read_to_string(folder.join(file)).with_context(|| file.to_owned())?;
        let drawn = Command::new(folder.join("make-passwords")).output().context("make-passwords")?;
        ensure!(drawn.status.success(), "make-passwords: {}", String::from_utf8_lossy(&drawn.stderr));
        let drawn = String::from_utf8(drawn.stdout)?;
        let passwords = drawn.lines().filter_map(|line| line.split_once('='));
        let passwords = passwords.map(|(name, password)| (name.to_owned(), password.to_owned())).collect();
        Ok(Self { config, inbox: "_INBOX.{}".to_owned(), passwords })
    }

    /// The password of a user.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn password(&self, user: &str) -> anyhow::Result<&str> {
        let name = format!("{}_PASSWORD", user.to_uppercase().replace('-', "_"));
        Ok(self.passwords.get(&name).with_context(|| format!("{name} was not drawn"))?)
    }

    /// What the reply addresses of a user begin with.
    #[must_use]
    pub fn inbox_of(&self, user: &str) -> String {
        self.inbox.replace("{}", user)
    }

    pub(crate) fn nats(&self) -> NatsServerOptions {
        let environment = self.passwords.clone().into_iter().collect();
        NatsServerOptions { config: self.config.clone(), environment, ..NatsServerOptions::default() }
    }

    /// The same options, as this user.
    pub(crate) fn apply(&self, user: &str, options: NatsOptions) -> anyhow::Result<NatsOptions> {
        let password = Secret::new(self.password(user)?);
        let authentication = Authentication::UserPassword { user: user.to_owned(), password };
        Ok(NatsOptions { authentication, inbox_prefix: self.inbox_of(user).parse()?, ..options })
    }

    /// What a program of ours finds in its environment to connect as this user.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn variables(&self, user: &str) -> anyhow::Result<Vec<(String, String)>> {
        let pairs = [
            ("DORMOUSE_NATS_USER", user.to_owned()),
            ("DORMOUSE_NATS_PASSWORD", self.password(user)?.to_owned()),
            ("DORMOUSE_NATS_INBOX_PREFIX", self.inbox_of(user)),
        ];
        Ok(pairs.map(|(name, value)| (name.to_owned(), value)).to_vec())
    }
}
