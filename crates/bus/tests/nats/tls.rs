//! Nothing here chooses a cryptography: connecting does.

use std::path::{Path, PathBuf};

use dormouse_bus::nats::{ClientCertificate, ConnectError, NatsOptions, Tls};
use dormouse_harness::{NatsServer, NatsServerOptions};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::{assert_works, connect, options, server, within};

/// Certificates of a server and a client, and of the authority that signed them.
struct Papers {
    folder: tempfile::TempDir,
}

impl Papers {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        write("ca.pem", &authority.self_signed(&authority_key).unwrap().pem());
        let issuer = Issuer::new(authority, authority_key);
        for who in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
            write(&format!("{who}.pem"), &certificate.pem());
            write(&format!("{who}.key"), &key.serialize_pem());
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

async fn strict_server(papers: &Papers) -> NatsServer {
    let quoted = |name: &str| format!("\"{}\"", Path::display(&papers.file(name)));
    let config = format!(
        "tls {{ cert_file: {}, key_file: {}, ca_file: {}, verify: true }}\n",
        quoted("server.pem"),
        quoted("server.key"),
        quoted("ca.pem")
    );
    NatsServer::start(NatsServerOptions { config, tls: true, ..NatsServerOptions::default() }).await.unwrap()
}

#[tokio::test]
async fn with_a_client_certificate() {
    let papers = Papers::new();
    let server = strict_server(&papers).await;
    let tls = Tls { required: true, ca_file: Some(papers.file("ca.pem")), client: Some(papers.client()) };
    for url in [server.url(), server.url().replace("tls://", "nats://")] {
        let bus = connect(NatsOptions { tls: tls.clone(), ..options(&url) }).await.unwrap();
        assert_works(&bus).await;
    }
}

#[tokio::test]
async fn what_does_not_hold_is_refused() {
    let (papers, others) = (Papers::new(), Papers::new());
    let server = strict_server(&papers).await;
    let good = Tls { required: true, ca_file: Some(papers.file("ca.pem")), client: Some(papers.client()) };
    for (what, tls) in [
        ("no client certificate", Tls { client: None, ..good.clone() }),
        ("a stranger's certificate", Tls { client: Some(others.client()), ..good.clone() }),
        ("another authority", Tls { ca_file: Some(others.file("ca.pem")), ..good.clone() }),
    ] {
        let error = within(connect(NatsOptions { tls, ..options(&server.url()) })).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused { .. }), "{what}: {error}");
    }
    let missing = Tls { ca_file: Some(papers.file("missing.pem")), ..good };
    let error = connect(NatsOptions { tls: missing, ..options(&server.url()) }).await.unwrap_err();
    assert!(matches!(&error, ConnectError::File { file, .. } if file.ends_with("missing.pem")), "{error}");
}

#[tokio::test]
async fn a_server_without_tls_is_not_talked_to_when_tls_is_required() {
    let papers = Papers::new();
    let server = server("").await;
    let tls = Tls { required: true, ca_file: Some(papers.file("ca.pem")), client: None };
    let error = within(connect(NatsOptions { tls, ..options(&server.url()) })).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
}
