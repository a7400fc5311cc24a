//! Command-line arguments of the programs that connect to NATS, and the rule for their environment variables.

use std::path::PathBuf;

use clap::builder::Resettable;

use crate::InboxPrefix;
use crate::nats::{Authentication, ClientCertificate, NatsOptions, NatsUrl, Secret, Tls};

/// Arguments for a connection to NATS, for `flatten` in a program's arguments. Printing them shows no secret.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "NATS")]
pub struct NatsArgs {
    /// Addresses of nats-servers; one is used [env: DORMOUSE_NATS, else NATS_URL] [default: nats://127.0.0.1:4222]
    // Text until it is resolved, so all errors are reported together. It may contain a password.
    #[arg(
        long = "nats",
        value_name = "URL[,URL]",
        env = "DORMOUSE_NATS",
        hide_env = true,
        value_delimiter = ','
    )]
    pub nats: Vec<Secret>,

    /// User to connect as; default: none
    #[arg(long, value_name = "USER", env = "DORMOUSE_NATS_USER")]
    pub nats_user: Option<String>,

    /// Password of the user; default: none
    #[arg(long, value_name = "PASSWORD", env = "DORMOUSE_NATS_PASSWORD", hide_env_values = true)]
    pub nats_password: Option<Secret>,

    /// Token to connect with; default: none
    #[arg(long, value_name = "TOKEN", env = "DORMOUSE_NATS_TOKEN", hide_env_values = true)]
    pub nats_token: Option<Secret>,

    /// File with the seed of an nkey, read again for each connection; default: none
    #[arg(long, value_name = "FILE", env = "DORMOUSE_NATS_NKEY")]
    pub nats_nkey: Option<PathBuf>,

    /// Credentials file (JWT and seed), read again for each connection; default: none
    #[arg(long, value_name = "FILE", env = "DORMOUSE_NATS_CREDS")]
    pub nats_creds: Option<PathBuf>,

    /// Require TLS; default: TLS only if the server requires it or the address begins with tls://
    #[arg(long, env = "DORMOUSE_NATS_TLS", value_parser = clap::builder::FalseyValueParser::new())]
    pub nats_tls: bool,

    /// File with the trusted CA certificates (PEM); default: those of the operating system
    #[arg(long, value_name = "FILE", env = "DORMOUSE_NATS_CA")]
    pub nats_ca: Option<PathBuf>,

    /// File with the client certificate (PEM); default: none
    #[arg(long, value_name = "FILE", env = "DORMOUSE_NATS_CERT")]
    pub nats_cert: Option<PathBuf>,

    /// File with the key of the client certificate (PEM); default: none
    #[arg(long, value_name = "FILE", env = "DORMOUSE_NATS_KEY")]
    pub nats_key: Option<PathBuf>,

    /// First tokens of the reply addresses [default: _INBOX]
    #[arg(long, value_name = "PREFIX", env = "DORMOUSE_NATS_INBOX_PREFIX")]
    pub nats_inbox_prefix: Option<String>,
}

/// The same command line, in which a variable without a value counts as unset: a file of settings can keep its line, and
/// a script can pass on a variable that it does not have.
#[must_use]
pub fn ignore_empty_variables(command: clap::Command) -> clap::Command {
    let unset = |argument: clap::Arg| {
        let is_empty = |name| std::env::var_os(name).is_some_and(|value| value.is_empty());
        if argument.get_env().is_some_and(is_empty) { argument.env(Resettable::Reset) } else { argument }
    };
    command.mut_args(unset).mut_subcommands(ignore_empty_variables)
}

/// All errors of the arguments, one sentence each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct InvalidNatsArgs(pub Vec<String>);

impl NatsArgs {
    /// Checks the arguments and converts them into options. Reads the environment variable `NATS_URL` if there is no
    /// other address.
    ///
    /// # Errors
    /// [`InvalidNatsArgs`] with all errors.
    pub fn resolve(&self) -> Result<NatsOptions, InvalidNatsArgs> {
        let nats_url = std::env::var("NATS_URL").ok().filter(|url| !url.is_empty());
        self.resolve_with(nats_url.as_deref())
    }

    fn resolve_with(&self, nats_url: Option<&str>) -> Result<NatsOptions, InvalidNatsArgs> {
        let mut faults = Vec::new();
        let urls = self.urls(nats_url, &mut faults);
        let authentication = self.authentication(&mut faults);
        let tls = self.tls(&mut faults);
        let inbox_prefix = match self.nats_inbox_prefix.as_deref().map(str::parse) {
            None => InboxPrefix::default(),
            Some(Ok(prefix)) => prefix,
            Some(Err(fault)) => {
                faults.push(format!("--nats-inbox-prefix: {fault}"));
                InboxPrefix::default()
            }
        };
        if !faults.is_empty() {
            return Err(InvalidNatsArgs(faults));
        }
        Ok(NatsOptions { authentication, tls, inbox_prefix, ..NatsOptions::new(urls) })
    }

    fn urls(&self, nats_url: Option<&str>, faults: &mut Vec<String>) -> Vec<NatsUrl> {
        let given: Vec<&str> = if self.nats.is_empty() {
            nats_url.unwrap_or(NatsOptions::DEFAULT_URL).split(',').collect()
        } else {
            self.nats.iter().map(Secret::reveal).collect()
        };
        let mut urls = Vec::new();
        for (position, text) in given.into_iter().map(str::trim).enumerate() {
            match text.parse() {
                Ok(url) => urls.push(url),
                // The error does not repeat the text, which may contain a password.
                Err(fault) => faults.push(format!("--nats, address {}: {fault}", position + 1)),
            }
        }
        urls
    }

    fn authentication(&self, faults: &mut Vec<String>) -> Authentication {
        let mut chosen: Vec<(&str, Authentication)> = Vec::new();
        match (&self.nats_user, &self.nats_password) {
            (Some(user), password) => {
                let password = password.clone().unwrap_or_else(|| Secret::new(""));
                chosen.push(("--nats-user", Authentication::UserPassword { user: user.clone(), password }));
            }
            (None, Some(_)) => faults.push("--nats-password needs --nats-user".to_owned()),
            (None, None) => {}
        }
        if let Some(token) = &self.nats_token {
            chosen.push(("--nats-token", Authentication::Token(token.clone())));
        }
        if let Some(file) = &self.nats_nkey {
            chosen.push(("--nats-nkey", Authentication::NkeyFile(file.clone())));
        }
        if let Some(file) = &self.nats_creds {
            chosen.push(("--nats-creds", Authentication::CredentialsFile(file.clone())));
        }
        if chosen.len() > 1 {
            let flags: Vec<&str> = chosen.iter().map(|(flag, _)| *flag).collect();
            faults.push(format!("only one of {} can be used", flags.join(", ")));
        }
        chosen.pop().map_or(Authentication::None, |(_, authentication)| authentication)
    }

    fn tls(&self, faults: &mut Vec<String>) -> Tls {
        let client = match (&self.nats_cert, &self.nats_key) {
            (Some(cert), Some(key)) => {
                Some(ClientCertificate { cert_file: cert.clone(), key_file: key.clone() })
            }
            (Some(_), None) => {
                faults.push("--nats-cert needs --nats-key".to_owned());
                None
            }
            (None, Some(_)) => {
                faults.push("--nats-key needs --nats-cert".to_owned());
                None
            }
            (None, None) => None,
        };
        // A CA or client certificate implies TLS: a fallback to plain text would be insecure.
        let required = self.nats_tls || self.nats_ca.is_some() || client.is_some();
        Tls { required, ca_file: self.nats_ca.clone(), client }
    }
}

#[cfg(test)]
mod tests;
