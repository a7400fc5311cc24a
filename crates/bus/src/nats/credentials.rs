//! Credentials, read again for each connection, because such files can be replaced while the process runs.

use std::path::Path;

use async_nats::{Auth, AuthError};
use dormouse_runtime::Env;
use nkeys::KeyPair;

use super::options::{Authentication, NatsConnectError};

/// Key and JWT for the server's challenge.
struct Proof {
    key: KeyPair,
    jwt: Option<String>,
}

/// Checks the files before the connect, with better errors than those of the library.
pub(super) async fn check(authentication: &Authentication, env: &Env) -> Result<(), NatsConnectError> {
    let authentication = authentication.clone();
    env.blocking(move || read(&authentication).map(|_| ())).await
}

/// Answers the challenge `nonce` with the current content of the files.
pub(super) async fn answer(
    authentication: Authentication,
    env: Env,
    nonce: Vec<u8>,
) -> Result<Auth, AuthError> {
    let proof = env.blocking(move || read(&authentication)).await.map_err(AuthError::new)?;
    let mut auth = Auth::new();
    if let Some(Proof { key, jwt }) = proof {
        auth.signature = Some(key.sign(&nonce).map_err(AuthError::new)?);
        // A JWT contains the key.
        auth.nkey = jwt.is_none().then(|| key.public_key());
        auth.jwt = jwt;
    }
    Ok(auth)
}

fn read(authentication: &Authentication) -> Result<Option<Proof>, NatsConnectError> {
    match authentication {
        Authentication::None | Authentication::UserPassword { .. } | Authentication::Token(_) => Ok(None),
        Authentication::NkeyFile(file) => {
            let text = text(file)?;
            let seed = text.lines().map(str::trim).find(|line| line.starts_with('S'));
            let key = key(file, seed.ok_or_else(|| fault(file, "it has no nkey seed"))?)?;
            Ok(Some(Proof { key, jwt: None }))
        }
        Authentication::CredentialsFile(file) => {
            let text = text(file)?;
            let jwt = section(&text, "NATS USER JWT").ok_or_else(|| fault(file, "it has no user JWT"))?;
            let seed = section(&text, "USER NKEY SEED").ok_or_else(|| fault(file, "it has no nkey seed"))?;
            Ok(Some(Proof { key: key(file, seed)?, jwt: Some(jwt.to_owned()) }))
        }
    }
}

fn text(file: &Path) -> Result<String, NatsConnectError> {
    std::fs::read_to_string(file).map_err(|error| fault(file, &error.to_string()))
}

fn key(file: &Path, seed: &str) -> Result<KeyPair, NatsConnectError> {
    // The error text of the library could contain the seed.
    KeyPair::from_seed(seed).map_err(|_| fault(file, "its nkey seed is invalid"))
}

fn fault(file: &Path, reason: &str) -> NatsConnectError {
    NatsConnectError::File { file: file.to_owned(), reason: reason.to_owned() }
}

/// The first line after `-----BEGIN <title>-----`.
fn section<'t>(text: &'t str, title: &str) -> Option<&'t str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.starts_with("---") && line.contains(&format!("BEGIN {title}")))?;
    lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with("---"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section of a credentials file is the line after its title.
    #[test]
    fn credentials_section_is_line_after_title() {
        let text = "-----BEGIN NATS USER JWT-----\r\nabc\r\n------END NATS USER JWT------\r\n\r\n\
                    -----BEGIN USER NKEY SEED-----\nSU\n------END USER NKEY SEED------\n";
        assert_eq!(section(text, "NATS USER JWT"), Some("abc"));
        assert_eq!(section(text, "USER NKEY SEED"), Some("SU"));
        assert_eq!(section("-----BEGIN NATS USER JWT-----\n---END", "NATS USER JWT"), None);
        assert_eq!(section("", "NATS USER JWT"), None);
    }
}
