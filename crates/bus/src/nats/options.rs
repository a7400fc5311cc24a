//! What it takes to connect.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use url::Url;

use crate::InboxPrefix;

/// Text that must not be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` from being printed.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, to be handed to whom it is meant for.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// The address of a nats-server. Printed without the user, password or token it may hold.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsUrl(Url);

impl NatsUrl {
    /// Who the address says we are: a user and a password or, as NATS has it, a token where there is no password.
    #[must_use]
    pub fn authentication(&self) -> Authentication {
        let decoded = |text: &str| {
            let pair = format!("x={}", text.replace('+', "%2B"));
            url::form_urlencoded::parse(pair.as_bytes()).map(|(_, value)| value.into_owned()).next()
        };
        let Some(user) = decoded(self.0.username()).filter(|user| !user.is_empty()) else {
            return Authentication::None;
        };
        match self.0.password().and_then(decoded) {
            Some(password) => Authentication::UserPassword { user, password: Secret(password) },
            None => Authentication::Token(Secret(user)),
        }
    }

    /// The address alone.
    pub(super) fn without_user(&self) -> Url {
        let mut url = self.0.clone();
        // A URL with a host takes both.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url
    }
}

/// A text that is not the address of a nats-server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the address of a nats-server, such as nats://host:4222: {0}")]
pub struct InvalidNatsUrl(&'static str);

impl FromStr for NatsUrl {
    type Err = InvalidNatsUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let full = if text.contains("://") { text.to_owned() } else { format!("nats://{text}") };
        let url = Url::parse(&full).map_err(|_| InvalidNatsUrl("it is no URL"))?;
        if !matches!(url.scheme(), "nats" | "tls") {
            return Err(InvalidNatsUrl("its scheme must be nats or tls"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(InvalidNatsUrl("it names no host"));
        }
        Ok(Self(url))
    }
}

impl fmt::Display for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.without_user();
        if url != self.0 {
            // A user alone may be a token. A URL with a host takes one.
            let _ = url.set_username("***");
        }
        f.write_str(url.as_str())
    }
}

impl fmt::Debug for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who we say we are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Authentication {
    /// Nobody in particular; or whom the first address says that holds a user and a password, or a token.
    #[default]
    None,
    /// A user and a password.
    UserPassword {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A token.
    Token(Secret),
    /// The seed of an nkey in this file, read anew at each connection.
    NkeyFile(PathBuf),
    /// A credentials file (JWT and seed), read anew at each connection: it may be replaced while we run.
    CredentialsFile(PathBuf),
}

/// How the connection is encrypted. Without any of this it is when the server demands it or the address begins with
/// `tls://`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// Refuse a connection without it.
    pub required: bool,
    /// Certificates (PEM) of the authorities to trust, instead of the operating system's.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate and its key (PEM).
    pub client: Option<ClientCertificate>,
}

/// Files of a client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, PEM.
    pub cert_file: PathBuf,
    /// Its key, PEM.
    pub key_file: PathBuf,
}

/// Everything a connection to NATS can need. Printing it shows no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsOptions {
    /// Servers, any of which will do.
    pub urls: Vec<NatsUrl>,
    /// Who we say we are.
    pub authentication: Authentication,
    /// How the connection is encrypted.
    pub tls: Tls,
    /// The first tokens of our reply addresses.
    pub inbox_prefix: InboxPrefix,
    /// The name under which the server lists the connection.
    pub connection_name: String,
    /// How long connecting may take before it fails. Each of the servers has an equal share of it, also when the
    /// connection is made anew.
    pub connect_deadline: Duration,
    /// Whether the first connection is tried again and again, without end, where the servers cannot be reached. A
    /// refusal (wrong password, unreadable certificate) still fails at once.
    pub retry_on_first_connect: bool,
}

impl NatsOptions {
    /// The address unless configured otherwise.
    pub const DEFAULT_URL: &'static str = "nats://127.0.0.1:4222";
    /// The connect deadline unless configured otherwise.
    pub const DEFAULT_CONNECT_DEADLINE: Duration = Duration::from_secs(5);

    /// Servers at `urls`, everything else as it is unless configured otherwise.
    #[must_use]
    pub fn new(urls: Vec<NatsUrl>) -> Self {
        Self {
            urls,
            authentication: Authentication::None,
            tls: Tls::default(),
            inbox_prefix: InboxPrefix::default(),
            connection_name: "dormouse".to_owned(),
            connect_deadline: Self::DEFAULT_CONNECT_DEADLINE,
            retry_on_first_connect: false,
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No server could be reached in time.
    #[error("cannot connect to NATS at {urls}: {reason}")]
    Unreachable {
        /// The servers.
        urls: String,
        /// What came of the last attempt.
        reason: String,
    },
    /// The server refuses who we say we are.
    #[error("NATS at {urls} refuses the connection: {reason}")]
    Refused {
        /// The servers.
        urls: String,
        /// What the server or the library says.
        reason: String,
    },
    /// A connection came about but no message from us to ourselves got through: the reply addresses are forbidden.
    #[error("NATS does not let us subscribe to {inbox}: permit it, or choose another inbox prefix")]
    InboxDenied {
        /// What we tried to subscribe to.
        inbox: String,
    },
    /// A file cannot be used.
    #[error("cannot use {}: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting cannot be used.
    #[error("{0}")]
    Setting(&'static str),
    /// The connection came about and broke again before it was of use.
    #[error("the connection to NATS at {urls} broke before it was ready")]
    Broke {
        /// The servers.
        urls: String,
    },
}

/// Chooses the one cryptography for all TLS connections of the process: two libraries bring one each, and without a
/// choice the first connection panics. [`NatsOptions::connect`] calls it; who opens other TLS connections before that calls
/// it first. Calling it again does nothing.
pub fn install_tls_provider() {
    // An error means that one is installed.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
