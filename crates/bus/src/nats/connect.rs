//! Connecting: who we say we are, how long it may take, when it is tried again.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectErrorKind, ConnectOptions, ServerAddr};
use dormouse_runtime::{Env, Tasks};
use tokio::time::timeout;

use super::bus::NatsBus;
use super::credentials;
use super::link::Shared;
use super::options::{Authentication, ConnectError, NatsOptions, NatsUrl, install_tls_provider};

/// How often the server is asked whether it is still there. Two silent ones and the connection is given up.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// The longest pause before the next attempt to connect.
const MAX_RECONNECT_PAUSE: Duration = Duration::from_secs(1);

impl NatsOptions {
    /// Connects. When the call returns, messages get through to the server and back.
    ///
    /// The tasks of the bus run in `tasks` until the bus is closed or dropped; they heed no stop signal, so that others
    /// can still use the bus while they stop. So give it [`Tasks`] that are finished last.
    ///
    /// Cancelling the call leaves no connection.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(&self, env: Env, tasks: &Tasks) -> Result<NatsBus, ConnectError> {
        // Also without a word of TLS in the options: the server may demand it.
        install_tls_provider();
        let mut failures = 0;
        let mut last_reason = String::new();
        loop {
            let error = match self.attempt(&env, tasks).await {
                Ok(bus) => return Ok(bus),
                Err(error) => error,
            };
            let passing = matches!(error, ConnectError::Unreachable { .. } | ConnectError::Broke { .. });
            if !self.retry_on_first_connect || !passing {
                return Err(error);
            }
            let reason = error.to_string();
            if reason != last_reason {
                tracing::warn!(%error, "waiting for NATS");
                last_reason = reason;
            }
            failures += 1;
            tokio::time::sleep(reconnect_pause(&env, failures)).await;
        }
    }

    async fn attempt(&self, env: &Env, tasks: &Tasks) -> Result<NatsBus, ConnectError> {
        match timeout(self.connect_deadline, Box::pin(self.connect_once(env, tasks))).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ConnectError::Unreachable {
                urls: self.url_list(),
                reason: format!("no answer within {} ms", self.connect_deadline.as_millis()),
            }),
        }
    }

    async fn connect_once(&self, env: &Env, tasks: &Tasks) -> Result<NatsBus, ConnectError> {
        let addresses = self.addresses()?;
        credentials::check(&self.authentication, env).await?;
        self.check_tls_files(env).await?;
        let inbox = format!("{}.{}", self.inbox_prefix, env.ulid());
        let shared = Arc::new(Shared::new(&inbox));
        let client = self
            .library_options(env, &shared)
            .connect(addresses)
            .await
            .map_err(|error| self.connect_error(&error))?;
        // From here on dropping the bus ends the connection.
        let bus = NatsBus::start(Arc::clone(&shared), client, tasks).await.ok_or_else(|| self.broke())?;
        let mut socket = shared.socket.subscribe();
        tokio::select! {
            biased;
            // Says more than that the connection broke.
            _ = socket.wait_for(|socket| socket.inbox_denied) => {
                Err(ConnectError::InboxDenied { inbox: shared.inbox().to_owned() })
            }
            up = shared.up() => if up { Ok(bus) } else { Err(self.broke()) },
        }
    }

    fn library_options(&self, env: &Env, shared: &Arc<Shared>) -> ConnectOptions {
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

    /// Who we say we are, also where only an address tells.
    fn identity(&self) -> Authentication {
        let mut told = self.urls.iter().map(NatsUrl::authentication);
        match &self.authentication {
            Authentication::None => {
                told.find(|told| *told != Authentication::None).unwrap_or(Authentication::None)
            }
            given => given.clone(),
        }
    }

    /// A server that takes the connection and says nothing must leave time for the others.
    fn attempt_deadline(&self) -> Duration {
        self.connect_deadline / u32::try_from(self.urls.len().max(1)).unwrap_or(u32::MAX)
    }

    fn addresses(&self) -> Result<Vec<ServerAddr>, ConnectError> {
        if self.urls.is_empty() {
            return Err(ConnectError::Setting("no address of a nats-server is given"));
        }
        // The library logs addresses, and has been told otherwise who we are.
        let addresses = self.urls.iter().map(|url| ServerAddr::from_url(url.without_user()));
        addresses
            .collect::<Result<_, _>>()
            .map_err(|_| ConnectError::Setting("an address is not one of NATS"))
    }

    /// What is wrong with a file is said better here than by the library.
    async fn check_tls_files(&self, env: &Env) -> Result<(), ConnectError> {
        let client = self.tls.client.iter().flat_map(|client| [&client.cert_file, &client.key_file]);
        let files: Vec<_> = self.tls.ca_file.iter().chain(client).cloned().collect();
        env.blocking(move || {
            for file in files {
                if let Err(error) = std::fs::File::open(&file) {
                    return Err(ConnectError::File { file, reason: error.to_string() });
                }
            }
            Ok(())
        })
        .await
    }

    fn connect_error(&self, error: &async_nats::ConnectError) -> ConnectError {
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
            ConnectErrorKind::Io if failed_handshake => ConnectError::Refused { urls, reason },
            ConnectErrorKind::Authentication
            | ConnectErrorKind::AuthorizationViolation
            | ConnectErrorKind::Tls
            | ConnectErrorKind::ServerParse => ConnectError::Refused { urls, reason },
            ConnectErrorKind::Dns
            | ConnectErrorKind::TimedOut
            | ConnectErrorKind::Io
            | ConnectErrorKind::MaxReconnects => ConnectError::Unreachable { urls, reason },
        }
    }

    fn broke(&self) -> ConnectError {
        ConnectError::Broke { urls: self.url_list() }
    }

    fn url_list(&self) -> String {
        let urls: Vec<String> = self.urls.iter().map(ToString::to_string).collect();
        urls.join(",")
    }
}

/// Whether one of the two refused the other's certificate or way to speak TLS. The library calls it an I/O error.
fn is_handshake_failure(error: &(dyn std::error::Error + 'static)) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref)
        .is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
}

/// The pause before attempt `attempts` (from 1): doubling from 25 ms, at most a second, and somewhere in its upper
/// half, so that not everybody returns at the same moment.
fn reconnect_pause(env: &Env, attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
    let longest = Duration::from_millis(25 << doublings).min(MAX_RECONNECT_PAUSE);
    let half_micros = u64::try_from(longest.as_micros() / 2).unwrap_or(u64::MAX);
    Duration::from_micros(half_micros + env.random_u64() % half_micros.max(1))
}

fn pause_before_attempt(env: &Env, shared: &Shared, attempts: usize) -> Duration {
    if shared.closed.is_given() {
        // The library tries for ever, also when nobody is left to use the connection. This is the only way to end it.
        return Duration::from_secs(365 * 24 * 60 * 60);
    }
    if shared.socket.borrow().generation == 0 { Duration::ZERO } else { reconnect_pause(env, attempts) }
}
