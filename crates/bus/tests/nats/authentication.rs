use std::path::PathBuf;

use dormouse_bus::nats::{Authentication, NatsConnectError, NatsOptions, Secret};
use dormouse_bus::{Bus, BusEvent};
use dormouse_harness::NatsServer;
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::{assert_works, connect, options, server, wait_for};

/// Returns the connection options for this server and authentication.
fn with_authentication(server: &NatsServer, authentication: Authentication) -> NatsOptions {
    NatsOptions { authentication, ..options(&server.url()) }
}

fn file(server: &NatsServer, name: &str, text: &str) -> PathBuf {
    let file = server.folder().join(name);
    std::fs::write(&file, text).unwrap();
    file
}

/// A user with the right password connects; a wrong password is final and is not retried.
#[tokio::test]
async fn user_and_password_authenticate() {
    let server = server("authorization { user: alice, password: \"p@ss/word\" }").await;
    let login = |password: &str| Authentication::UserPassword {
        user: "alice".to_owned(),
        password: Secret::new(password),
    };
    assert_works(&connect(with_authentication(&server, login("p@ss/word"))).await.unwrap()).await;
    // A refusal is final, also with `retry_on_first_connect`.
    for (authentication, retry_on_first_connect) in [(login("wrong"), false), (login("wrong"), true)] {
        let options = NatsOptions { retry_on_first_connect, ..with_authentication(&server, authentication) };
        let error = connect(options).await.unwrap_err();
        assert!(matches!(error, NatsConnectError::Refused { .. }), "{error}");
    }
    let in_address = server.url().replace("://", "://alice:p%40ss%2Fword@");
    assert_works(&connect(options(&in_address)).await.unwrap()).await;
}

/// The right token connects, and the error for a wrong token does not print it.
#[tokio::test]
async fn token_authenticates() {
    let server = server("authorization { token: \"t0ken\" }").await;
    let with = |token: &str| with_authentication(&server, Authentication::Token(Secret::new(token)));
    assert_works(&connect(with("t0ken")).await.unwrap()).await;
    let in_address = |token: &str| options(&server.url().replace("://", &format!("://{token}@")));
    assert_works(&connect(in_address("t0ken")).await.unwrap()).await;
    for refused in [with("other"), in_address("other")] {
        let error = connect(refused).await.unwrap_err();
        assert!(matches!(error, NatsConnectError::Refused { .. }));
        assert!(!format!("{error} {error:?}").contains("other"), "{error}");
    }
}

/// Returns a server configuration that accepts only this nkey user.
fn single_nkey_config(user: &KeyPair) -> String {
    format!("authorization {{ users: [ {{ nkey: {} }} ] }}", user.public_key())
}

/// After a reconnect, the client uses the nkey file that was replaced in the meantime.
#[tokio::test]
async fn nkey_file_replaced_while_connected_is_reread() {
    let (first, second) = (KeyPair::new_user(), KeyPair::new_user());
    let mut server = server(single_nkey_config(&first)).await;
    let seed = file(&server, "user.nk", &format!("# a comment\n{}\n", first.seed().unwrap()));
    let bus = connect(with_authentication(&server, Authentication::NkeyFile(seed.clone()))).await.unwrap();
    assert_works(&bus).await;

    let mut events = bus.events();
    std::fs::write(&seed, second.seed().unwrap()).unwrap();
    server.set_config(single_nkey_config(&second));
    server.restart().await.unwrap();
    wait_for(&mut events, BusEvent::Connected).await;
    assert_works(&bus).await;
}

/// A credentials file connects, and a foreign key in it is rejected.
#[tokio::test]
async fn credentials_file_authenticates() {
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let unlimited = json!({ "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
        "wildcards": true, "conn": -1, "leaf": -1 });
    let operator_jwt = jwt(&operator, &operator, &json!({ "type": "operator", "version": 2 }));
    let account_jwt =
        jwt(&operator, &account, &json!({ "type": "account", "version": 2, "limits": unlimited }));
    let user_jwt = jwt(
        &account,
        &user,
        &json!({ "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 }),
    );
    let config = format!(
        "operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload: {{ {}: {account_jwt} }}\n",
        account.public_key()
    );
    let server = server(config).await;
    let text = |seed: &str| {
        format!(
            "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    };
    let with = |name: &str, text: &str| {
        with_authentication(&server, Authentication::CredentialsFile(file(&server, name, text)))
    };
    assert_works(&connect(with("good.creds", &text(&user.seed().unwrap()))).await.unwrap()).await;

    let stranger = KeyPair::new_user().seed().unwrap();
    let error = connect(with("stranger.creds", &text(&stranger))).await.unwrap_err();
    assert!(matches!(error, NatsConnectError::Refused { .. }), "{error}");
}

/// The error for an unusable credential file names the file and the reason, and not the secret.
#[tokio::test]
async fn credential_file_error_names_file_but_no_secret() {
    let server = server("").await;
    let mut damaged = KeyPair::new_user().seed().unwrap();
    damaged.replace_range(10..12, "AA");
    let creds = |jwt: &str| {
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\
             -----BEGIN USER NKEY SEED-----\n{damaged}\n------END USER NKEY SEED------\n"
        )
    };
    for (name, text, reason) in [
        ("missing", None, "No such file"),
        ("empty", Some(String::new()), "it has no"),
        ("damaged.nk", Some(damaged.clone()), "seed is invalid"),
        ("damaged.creds", Some(creds("ey.ey.x")), "seed is invalid"),
        ("no-jwt.creds", Some(creds("")), "no user JWT"),
    ] {
        let path = server.folder().join(name);
        if let Some(text) = &text {
            std::fs::write(&path, text).unwrap();
        }
        let mut methods = vec![Authentication::NkeyFile(path.clone()), Authentication::CredentialsFile(path)];
        methods.retain(|method| match method {
            Authentication::NkeyFile(_) => !name.ends_with(".creds"),
            _ => !name.ends_with(".nk"),
        });
        for authentication in methods {
            let error = connect(with_authentication(&server, authentication)).await.unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, NatsConnectError::File { .. }), "{text}");
            assert!(text.contains(name) && text.contains(reason) && !text.contains(&damaged), "{text}");
        }
    }
}

/// A JWT in the form of NATS: signed by `issuer`, about `subject`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: &Value) -> String {
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let claims = json!({ "jti": subject.public_key(), "iat": 1_700_000_000, "iss": issuer.public_key(),
        "name": "test", "sub": subject.public_key(), "nats": nats });
    let signed =
        format!("{}.{}", base64(header.to_string().as_bytes()), base64(claims.to_string().as_bytes()));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", base64(&signature))
}

/// Base 64 for URLs, without padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let number =
            (0..3).fold(0_usize, |number, at| number << 8 | usize::from(*chunk.get(at).unwrap_or(&0)));
        for digit in 0..=chunk.len() {
            text.push(char::from(LETTERS[number >> (18 - 6 * digit) & 63]));
        }
    }
    text
}
