//! Connecting: authentication, deadlines and retries.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectErrorKind, ConnectOptions, ServerAddr};
use dormouse_runtime::{Env, Tasks};
use tokio::time::timeout;

use super::bus::NatsBus;
use super::credentials;
use super::link::LinkShared;
use super::options::{Authentication, NatsConnectError, NatsOptions, NatsUrl, install_tls_provider};

/// Interval of pings to the server. After two pings without a reply, the connection is closed.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// The longest pause before the next attempt to connect.
const MAX_RECONNECT_PAUSE: Duration = Duration::from_secs(1);

impl NatsOptions {
    /// Connects. When the call returns, messages reach the server and back.
    ///
    /// The tasks of the bus run in `tasks` until the bus is closed or dropped. They ignore the stop signal, so other
    /// tasks can still use the bus while they stop. Therefore pass [`Tasks`] that are finished last.
    ///
    /// If the call is cancelled, there is no connection.
    ///
    /// # Errors
    /// [`NatsConnectError`].
    pub async fn connect(&self, env: Env, tasks: &Tasks) -> Result<NatsBus, NatsConnectError> {
        // Also without TLS in the options, because the server may require TLS.
        install_tls_provider();
        let mut failures = 0;
        let mut last_reason = String::new();
        loop {
            let error = match self.attempt(&env, tasks).await {
                Ok(bus) => return Ok(bus),
                Err(error) => error,
            };
            let is_temporary =
                matches!(error, NatsConnectError::Unreachable { .. } | NatsConnectError::Interrupted { .. });
            if !self.retry_on_first_connect || !is_temporary {
                return Err(error);
            }
            let reason = error.to_string();
            if reason != last_reason {
                let connection = &self.connection_name;
                tracing::warn!(%error, connection, "NATS not available, retrying");
                last_reason = reason;
            }
            failures += 1;
            tokio::time::sleep(reconnect_pause(&env, failures)).await;
        }
    }

    async fn attempt(&self, env: &Env, tasks: &Tasks) -> Result<NatsBus, NatsConnectError> {
        match timeout(self.connect_deadline, Box::pin(self.connect_once(env, tasks))).await {
            Ok(outcome) => outcome,
            Err(_) => Err(NatsConnectError::Unreachable {
                urls: self.url_list(),
                reason: format!("no reply within {} ms", self.connect_deadline.as_millis()),
            }),
        }
    }

    async fn connect_once(&self, env: &Env, tasks: &Tasks) -> Result<NatsBus, NatsConnectError> {
        let addresses = self.addresses()?;
        credentials::check(&self.authentication, env).await?;
        self.check_tls_files(env).await?;
        let inbox = format!("{}.{}", self.inbox_prefix, env.ulid());
        let shared = Arc::new(LinkShared::new(&self.connection_name, &inbox));
        let client = self
            .library_options(env, &shared)
            .connect(addresses)
            .await
            .map_err(|error| self.connect_error(&error))?;
        // From here on, a drop of the bus ends the connection.
        let bus =
            NatsBus::start(Arc::clone(&shared), client, tasks).await.ok_or_else(|| self.interrupted())?;
        let mut socket = shared.socket.subscribe();
        tokio::select! {
            biased;
            // This error is more precise than a lost connection.
            _ = socket.wait_for(|socket| socket.inbox_denied) => {
                Err(NatsConnectError::InboxDenied { inbox: shared.inbox().to_owned() })
            }
            up = shared.up() => if up { Ok(bus) } else { Err(self.interrupted()) },
        }
    }

    fn library_options(&self, env: &Env, shared: &Arc<LinkShared>) -> ConnectOptions {
        let mut options = match &self.identity() {
            Authentication::None => ConnectOptions::new(),
            Authentication::UserPassword { user, password } => {
                ConnectOptions::with_user_and_password(user.clone(), password.reveal().to_owned())
            }
            Authentication::Token(token) => ConnectOptions::with_token(token.reveal().to_owned()),
            files @ (Authentication::NkeyFile(_) | Authentication::CredentialsFile(_)) => {
                let (files, env) = (files.clone(), env.clone());
                ConnectOptions::with_auth_callback(move |nonce| {
                    credentials::answer(files.clone(), env.clone(), nonce)
                })
            }
        };
        if let Some(file) = &self.tls.ca_file {
            options = options.add_root_certificates(file.clone());
        }
        if let Some(client) = &self.tls.client {
            options = options.add_client_certificate(client.cert_file.clone(), client.key_file.clone());
        }
        let observer = Arc::clone(shared);
        let (pause_env, pause_shared) = (env.clone(), Arc::clone(shared));
        options
            .require_tls(self.tls.required)
            .name(&self.connection_name)
            .connection_timeout(self.attempt_deadline())
            .ping_interval(PING_INTERVAL)
            .event_callback(move |event| {
                observer.observe(event);
                std::future::ready(())
            })
            .reconnect_delay_callback(move |attempts| {
                pause_before_attempt(&pause_env, &pause_shared, attempts)
            })
    }

    /// The authentication from the options, or from the first address that has one.
    fn identity(&self) -> Authentication {
        let mut from_urls = self.urls.iter().map(NatsUrl::authentication);
        match &self.authentication {
            Authentication::None => {
                from_urls.find(|one| *one != Authentication::None).unwrap_or(Authentication::None)
            }
            given => given.clone(),
        }
    }

    /// A server that accepts the connection and never replies must leave time for the other servers.
    fn attempt_deadline(&self) -> Duration {
        self.connect_deadline / u32::try_from(self.urls.len().max(1)).unwrap_or(u32::MAX)
    }

    fn addresses(&self) -> Result<Vec<ServerAddr>, NatsConnectError> {
        if self.urls.is_empty() {
            return Err(NatsConnectError::Setting("no address of a nats-server"));
        }
        // The library logs addresses, and gets the credentials separately.
        let addresses = self.urls.iter().map(|url| ServerAddr::from_url(url.without_user()));
        addresses.collect::<Result<_, _>>().map_err(|_| NatsConnectError::Setting("invalid NATS address"))
    }

    /// Checks that the TLS files are readable, with a better error than that of the library.
    async fn check_tls_files(&self, env: &Env) -> Result<(), NatsConnectError> {
        let client = self.tls.client.iter().flat_map(|client| [&client.cert_file, &client.key_file]);
        let files: Vec<_> = self.tls.ca_file.iter().chain(client).cloned().collect();
        env.blocking(move || {
            for file in files {
                if let Err(error) = std::fs::File::open(&file) {
                    return Err(NatsConnectError::File { file, reason: error.to_string() });
                }
            }
            Ok(())
        })
        .await
    }

    fn connect_error(&self, error: &async_nats::ConnectError) -> NatsConnectError {
        let urls = self.url_list();
        let mut reason = error.to_string();
        let mut failed_handshake = false;
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            let text = error.to_string();
            if !reason.contains(&text) {
                reason = format!("{reason}: {text}");
            }
            failed_handshake |= is_handshake_failure(error);
            cause = error.source();
        }
        match error.kind() {
            ConnectErrorKind::Io if failed_handshake => NatsConnectError::Refused { urls, reason },
            ConnectErrorKind::Authentication
            | ConnectErrorKind::AuthorizationViolation
            | ConnectErrorKind::Tls
            | ConnectErrorKind::ServerParse => NatsConnectError::Refused { urls, reason },
            ConnectErrorKind::Dns
            | ConnectErrorKind::TimedOut
            | ConnectErrorKind::Io
            | ConnectErrorKind::MaxReconnects => NatsConnectError::Unreachable { urls, reason },
        }
    }

    fn interrupted(&self) -> NatsConnectError {
        NatsConnectError::Interrupted { urls: self.url_list() }
    }

    fn url_list(&self) -> String {
        let urls: Vec<String> = self.urls.iter().map(ToString::to_string).collect();
        urls.join(",")
    }
}

/// Whether one side rejected the certificate or the TLS parameters of the other. The library reports an I/O error.
fn is_handshake_failure(error: &(dyn std::error::Error + 'static)) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref)
        .is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
}

/// The pause before attempt `attempts` (from 1). It doubles from 25 ms to at most one second, and is a random time in
/// the upper half, so clients do not all reconnect at the same moment.
fn reconnect_pause(env: &Env, attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
    let longest = Duration::from_millis(25 << doublings).min(MAX_RECONNECT_PAUSE);
    let half_micros = u64::try_from(longest.as_micros() / 2).unwrap_or(u64::MAX);
    Duration::from_micros(half_micros + env.random_u64() % half_micros.max(1))
}

fn pause_before_attempt(env: &Env, shared: &LinkShared, attempts: usize) -> Duration {
    if shared.closed.is_requested() {
        // The library retries without end, also after the close of the bus. This pause is the only way to stop it.
        return Duration::from_secs(365 * 24 * 60 * 60);
    }
    if shared.socket.borrow().generation == 0 { Duration::ZERO } else { reconnect_pause(env, attempts) }
}
