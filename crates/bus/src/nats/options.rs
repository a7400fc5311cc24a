//! Options of a connection to NATS.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use url::Url;

use crate::InboxPrefix;

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret with this text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, only for its intended use.
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

/// The address of a nats-server. It is printed without its user, password or token.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsUrl(Url);

impl NatsUrl {
    /// The authentication in the address: a user and a password, or without a password a token, as in NATS.
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
        // The setters cannot fail for a URL with a host.
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
            // A user without a password may be a token. The setter cannot fail for a URL with a host.
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

/// The authentication of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Authentication {
    /// No authentication, or that of the first address with a user and a password, or a token.
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
    /// A file with the seed of an nkey, read again for each connection.
    NkeyFile(PathBuf),
    /// A credentials file (JWT and seed), read again for each connection: it can be replaced while the process runs.
    CredentialsFile(PathBuf),
}

/// Encryption of the connection. By default, TLS is used if the server requires it or the address begins with `tls://`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// Require TLS.
    pub required: bool,
    /// The trusted CA certificates (PEM), instead of those of the operating system.
    pub ca_file: Option<PathBuf>,
    /// The client certificate and its key (PEM).
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

/// Options of a connection to NATS. Printing them shows no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsOptions {
    /// The servers; one is used.
    pub urls: Vec<NatsUrl>,
    /// The authentication.
    pub authentication: Authentication,
    /// The encryption.
    pub tls: Tls,
    /// The first tokens of the reply addresses.
    pub inbox_prefix: InboxPrefix,
    /// The name of the connection in the server's lists.
    pub connection_name: String,
    /// Deadline of a connect. Each server gets an equal share of it, also for a reconnect.
    pub connect_deadline: Duration,
    /// Whether the first connect is retried without end if the servers are not reachable. A refusal (wrong password,
    /// unreadable certificate) still fails at once.
    pub retry_on_first_connect: bool,
}

impl NatsOptions {
    /// The default address.
    pub const DEFAULT_URL: &'static str = "nats://127.0.0.1:4222";
    /// The default connect deadline.
    pub const DEFAULT_CONNECT_DEADLINE: Duration = Duration::from_secs(5);

    /// Options for servers at `urls`, with defaults for everything else.
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
pub enum NatsConnectError {
    /// No server was reachable in time.
    #[error("cannot connect to NATS at {urls}: {reason}")]
    Unreachable {
        /// The servers.
        urls: String,
        /// The result of the last attempt.
        reason: String,
    },
    /// The server refuses the connection.
    #[error("NATS at {urls} refuses the connection: {reason}")]
    Refused {
        /// The servers.
        urls: String,
        /// The reason of the server or the library.
        reason: String,
    },
    /// The server denies the subscription to the reply addresses.
    #[error("NATS denies the subscription to {inbox}: permit it, or use another inbox prefix")]
    InboxDenied {
        /// The pattern of the subscription.
        inbox: String,
    },
    /// A file is unusable.
    #[error("cannot use {}: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why it is unusable.
        reason: String,
    },
    /// A setting is invalid.
    #[error("{0}")]
    Setting(&'static str),
    /// The connection was lost before it was ready.
    #[error("the connection to NATS at {urls} was lost before it was ready")]
    Interrupted {
        /// The servers.
        urls: String,
    },
}

/// Selects the cryptography provider for all TLS connections of the process. Two libraries have one each, and without a
/// selection the first connection panics. [`NatsOptions::connect`] calls it. A program that opens other TLS connections
/// before that has to call it first. Further calls do nothing.
pub fn install_tls_provider() {
    // An error means that a provider is already installed.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
