//! A real S3 server on a free port of its choice.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{Process, ProcessSpec, s3_server_python, tail};

/// The time limit for the start, for the creation of a bucket, or for the end.
const DEADLINE: Duration = Duration::from_secs(30);

/// moto, configured to serve one request at a time.
const PROGRAM: &str = include_str!("s3_server.py");

/// The region of all data. Clients must name one; a bucket without a region is created here.
const REGION: &str = "us-east-1";

/// The defects of an S3 server that exist in practice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3Flaw {
    /// Nothing.
    None,
    /// A conditional create overwrites without an error.
    IgnoresConditions,
    /// A conditional create checks and writes in two steps, so that several concurrent creates succeed.
    ChecksThenWrites,
}

/// A running S3 server that keeps the contract of a bucket, including conditional creates. It is killed when dropped;
/// its contents are in memory and are then gone.
///
/// It chooses a free port and writes the port to a file, so that no two tests can use the same one.
#[derive(Debug)]
pub struct S3Server {
    folder: TempDir,
    process: Process,
    port: u16,
}

impl S3Server {
    /// Starts a server and waits until it listens. Needs a tokio runtime.
    ///
    /// Cancelling the call leaves no server.
    ///
    /// # Errors
    /// If the server is not installed or does not start; the error contains its log.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(S3Flaw::None).await
    }

    /// Starts a server with a defect.
    ///
    /// Cancelling the call leaves no server.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(flaw: S3Flaw) -> anyhow::Result<Self> {
        let flaw = match flaw {
            S3Flaw::None => "none",
            S3Flaw::IgnoresConditions => "ignores-conditions",
            S3Flaw::ChecksThenWrites => "checks-then-writes",
        };
        let folder = tempfile::tempdir().context("cannot create a folder for the S3 server")?;
        let port_file = folder.path().join("port");
        let spec = ProcessSpec::new("s3-server", s3_server_python()?, folder.path())
            .args(["-c", PROGRAM, "0"])
            .args([port_file.as_os_str(), flaw.as_ref()]);
        let mut process = spec.start()?;
        match tokio::time::timeout(DEADLINE, listening(&mut process, &port_file)).await {
            Ok(Ok(port)) => Ok(Self { folder, process, port }),
            Ok(Err(error)) => Err(error.context(logged(&spec.log))),
            Err(_) => {
                bail!("the S3 server does not listen after {} s: {}", DEADLINE.as_secs(), logged(&spec.log))
            }
        }
    }

    /// Creates a bucket (3 to 63 of `a-z 0-9 -`).
    ///
    /// If the call is cancelled, the bucket may or may not exist.
    ///
    /// # Errors
    /// If the server rejects the request or does not answer.
    pub async fn create_bucket(&self, name: &str) -> anyhow::Result<()> {
        // The server checks no signature, but requires one.
        let request = format!(
            "PUT /{name} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: 0\r\nConnection: close\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=test/20200101/{REGION}/s3/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n",
            self.port
        );
        let answer = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = tokio::time::timeout(DEADLINE, answer)
            .await
            .with_context(|| format!("the S3 server does not answer: {}", logged(&self.process.spec().log)))?
            .with_context(|| format!("cannot reach the S3 server: {}", logged(&self.process.spec().log)))?;
        let status = answer.split_whitespace().nth(1);
        if status != Some("200") {
            bail!("the S3 server does not create the bucket {name}: {answer}");
        }
        Ok(())
    }

    /// Returns the environment variables for a client.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, String)> {
        Self::variables_through(self.port)
    }

    /// Returns the same through a proxy with this port.
    #[must_use]
    pub fn variables_through(port: u16) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{port}");
        [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// Returns its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Returns the folder of its log, which is removed with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Waits until the server has written its port. It reports the port in no other way, so the file is polled.
async fn listening(process: &mut Process, port_file: &Path) -> anyhow::Result<u16> {
    loop {
        // The file appears with its content.
        if let Ok(port) = std::fs::read_to_string(port_file) {
            return port.parse().with_context(|| format!("no port: {port:?}"));
        }
        if let Some(status) = process.ended()? {
            bail!("the S3 server ended at once: {status}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn logged(log: &Path) -> String {
    format!("the S3 server logged:\n{}", tail(log, 30))
}
