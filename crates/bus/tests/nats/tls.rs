//! TLS connections. These tests select no cryptography provider: connecting does.

use std::path::{Path, PathBuf};

use dormouse_bus::nats::{ClientCertificate, NatsConnectError, NatsOptions, Tls};
use dormouse_harness::{NatsServer, NatsServerOptions};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::{assert_works, connect, options, server, within};

/// Certificates of a server and a client, and the CA that signed them.
struct TestCertificates {
    folder: tempfile::TempDir,
}

impl TestCertificates {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        write("ca.pem", &authority.self_signed(&authority_key).unwrap().pem());
        let issuer = Issuer::new(authority, authority_key);
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
            write(&format!("{name}.pem"), &certificate.pem());
            write(&format!("{name}.key"), &key.serialize_pem());
        }
        Self { folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn client(&self) -> ClientCertificate {
        ClientCertificate { cert_file: self.file("client.pem"), key_file: self.file("client.key") }
    }
}

async fn strict_server(certificates: &TestCertificates) -> NatsServer {
    let quoted = |name: &str| format!("\"{}\"", Path::display(&certificates.file(name)));
    let config = format!(
        "tls {{ cert_file: {}, key_file: {}, ca_file: {}, verify: true }}\n",
        quoted("server.pem"),
        quoted("server.key"),
        quoted("ca.pem")
    );
    NatsServer::start(NatsServerOptions { config, tls: true, ..NatsServerOptions::default() }).await.unwrap()
}

/// A client with a valid certificate connects over TLS.
#[tokio::test]
async fn tls_client_certificate_connects() {
    let certificates = TestCertificates::new();
    let server = strict_server(&certificates).await;
    let tls = Tls {
        required: true,
        ca_file: Some(certificates.file("ca.pem")),
        client: Some(certificates.client()),
    };
    for url in [server.url(), server.url().replace("tls://", "nats://")] {
        let bus = connect(NatsOptions { tls: tls.clone(), ..options(&url) }).await.unwrap();
        assert_works(&bus).await;
    }
}

/// A missing or foreign certificate or authority is rejected, and a missing file is named.
#[tokio::test]
async fn tls_invalid_certificate_is_rejected() {
    let (certificates, others) = (TestCertificates::new(), TestCertificates::new());
    let server = strict_server(&certificates).await;
    let good = Tls {
        required: true,
        ca_file: Some(certificates.file("ca.pem")),
        client: Some(certificates.client()),
    };
    for (case, tls) in [
        ("no client certificate", Tls { client: None, ..good.clone() }),
        ("a certificate of another CA", Tls { client: Some(others.client()), ..good.clone() }),
        ("another CA", Tls { ca_file: Some(others.file("ca.pem")), ..good.clone() }),
    ] {
        let error = within(connect(NatsOptions { tls, ..options(&server.url()) })).await.unwrap_err();
        assert!(matches!(error, NatsConnectError::Refused { .. }), "{case}: {error}");
    }
    let missing = Tls { ca_file: Some(certificates.file("missing.pem")), ..good };
    let error = connect(NatsOptions { tls: missing, ..options(&server.url()) }).await.unwrap_err();
    assert!(
        matches!(&error, NatsConnectError::File { file, .. } if file.ends_with("missing.pem")),
        "{error}"
    );
}

/// If TLS is required, the client rejects a server without TLS.
#[tokio::test]
async fn tls_required_rejects_server_without_tls() {
    let certificates = TestCertificates::new();
    let server = server("").await;
    let tls = Tls { required: true, ca_file: Some(certificates.file("ca.pem")), client: None };
    let error = within(connect(NatsOptions { tls, ..options(&server.url()) })).await.unwrap_err();
    assert!(matches!(error, NatsConnectError::Refused { .. }), "{error}");
}
