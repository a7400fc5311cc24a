//! Values of any size, through a nats-server with messages of at most 1 MiB.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{self, Poll};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use dormouse_client::{Error, Executed, ValueSource};
use dormouse_e2e::{Fleet, until};
use dormouse_harness::peak_resident_bytes;
use dormouse_protocol::transfer::{UploadBeginRequest, UploadChunkRequest};
use dormouse_protocol::{ErrorCode, Op, ProtocolVersion, encode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;

use crate::support::files_ending;
use crate::wire::refusal;

const MIB: u64 = 1_024 * 1_024;

/// The allowed extra memory of a transfer on either side, compared to the same process without one.
const MAX_EXTRA_BYTES: u64 = 64 * MIB;

/// A source of bytes that can be read once; no two positions are equal.
struct PatternSource {
    at: u64,
    size: u64,
}

impl PatternSource {
    fn of(size: u64) -> Self {
        Self { at: 0, size }
    }

    fn bytes_at(at: u64, into: &mut [u8]) {
        for (number, byte) in into.iter_mut().enumerate() {
            let place = at + number as u64;
            *byte = (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ (place >> 20) as u8;
        }
    }
}

impl AsyncRead for PatternSource {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX);
        let count = buffer.remaining().min(left).min(256 * 1_024);
        Self::bytes_at(self.at, buffer.initialize_unfilled_to(count));
        buffer.advance(count);
        self.at += count as u64;
        Poll::Ready(Ok(()))
    }
}

/// Reads to the end, and compares every byte with the source.
async fn check(mut reader: impl AsyncRead + Unpin, size: u64) -> anyhow::Result<()> {
    let (mut at, mut read, mut wanted) = (0, vec![0; MIB as usize], vec![0; MIB as usize]);
    loop {
        let count = reader.read(&mut read).await?;
        if count == 0 {
            ensure!(at == size, "{at} bytes of {size}");
            return Ok(());
        }
        PatternSource::bytes_at(at, &mut wanted[..count]);
        ensure!(read[..count] == wanted[..count], "different bytes at {at}");
        at += count as u64;
    }
}

/// Runs `dormouse` to its end, and returns its peak memory.
async fn peak_of_tool(fleet: &Fleet, arguments: &[&str]) -> anyhow::Result<u64> {
    let mut command = fleet.tool()?;
    command.args(["--nats", &fleet.url(), "--deadline", "60s"]).args(arguments);
    let mut tool = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
    let pid = tool.id().context("no process id")?;
    let mut peak = 0;
    loop {
        // After its end, the process has no entry in `/proc`.
        peak = peak.max(peak_resident_bytes(pid).unwrap_or(0));
        if let Ok(status) = tokio::time::timeout(Duration::from_millis(10), tool.wait()).await {
            let status = status?;
            ensure!(status.success(), "`dormouse {}`: {status}", arguments.join(" "));
            return Ok(peak);
        }
    }
}

/// Uploads and downloads a value of this size with the tool, and prints and checks the memory of both sides.
async fn transfer_both_ways(fleet: &mut Fleet, size: u64) -> anyhow::Result<()> {
    let (up, down) = (fleet.folder().join("up"), fleet.folder().join("down"));
    let [up, down] = [&up, &down].map(|path| path.display().to_string());
    let mut file = tokio::fs::File::create(&up).await?;
    tokio::io::copy(&mut PatternSource::of(size), &mut file).await?;
    file.flush().await?;

    let set = ["set", "app.films", "--key", "film", "--file", &up];
    let get = ["get", "app.films", "--key", "film", "--output", &down, "--force"];
    // A value of message size, to exclude the memory that any use needs.
    fleet.cli_ok(&["set", "app.films", "--key", "small", "v"]).await?;
    let server = fleet.process("persist-1")?.pid().context("no process id")?;
    let tool_before = peak_of_tool(fleet, &["get", "app.films", "--key", "small"]).await?;
    let server_before = peak_resident_bytes(server)?;
    let tool_up = peak_of_tool(fleet, &set).await?;
    let server_up = peak_resident_bytes(server)?;
    let tool_down = peak_of_tool(fleet, &get).await?;
    let server_down = peak_resident_bytes(server)?;

    check(tokio::fs::File::open(&down).await?, size).await?;
    ensure!(files_ending(fleet.folder(), ".partial")?.is_empty());
    println!("a value of {} MiB; peak memory in MiB, before | up | down:", size / MIB);
    println!("  client {:4} | {:4} | {:4}", tool_before / MIB, tool_up / MIB, tool_down / MIB);
    println!("  server {:4} | {:4} | {:4}", server_before / MIB, server_up / MIB, server_down / MIB);
    let tool = tool_up.max(tool_down).saturating_sub(tool_before);
    let server = server_down.saturating_sub(server_before);
    ensure!(tool < MAX_EXTRA_BYTES, "the client took {} MiB more", tool / MIB);
    ensure!(server < MAX_EXTRA_BYTES, "the server took {} MiB more", server / MIB);
    Ok(())
}

/// A value of 256 MiB is uploaded and downloaded with at most 64 MiB of extra memory on either side.
#[tokio::test]
async fn value_of_256_mib_transfers_in_bounded_memory() -> anyhow::Result<()> {
    Fleet::builder().run(async |fleet| transfer_both_ways(fleet, 256 * MIB).await).await
}

/// A value of 1 GiB is uploaded and downloaded with at most 64 MiB of extra memory on either side.
#[tokio::test]
#[ignore = "moves 1 GiB up and down; docs/benchmarks/long.md has what it prints"]
async fn value_of_1_gib_transfers_in_bounded_memory() -> anyhow::Result<()> {
    Fleet::builder().run(async |fleet| transfer_both_ways(fleet, 1_024 * MIB).await).await
}

/// Returns a source, and a receiver for the number of bytes that were read from it.
fn watched(size: u64) -> (ValueSource<'static>, watch::Receiver<u64>) {
    let (progress, arrived) = watch::channel(0);
    (
        ValueSource::once(PatternSource::of(size)).on_progress(move |bytes| {
            let _ = progress.send(bytes);
        }),
        arrived,
    )
}

/// An upload and a download resume after their server is killed and restarted, and no upload file remains.
#[tokio::test]
async fn upload_and_download_resume_after_a_server_restart() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let films = fleet.client().await?.kv("app.films")?.with_deadline(Duration::from_secs(30));
            let size = 96 * MIB;
            let (source, mut arrived) = watched(size);
            let upload = films.put_reader("film", source);
            let killed = async {
                arrived.wait_for(|bytes| *bytes > 16 * MIB).await?;
                fleet.kill9("persist-1").await?;
                fleet.restart("persist-1").await
            };
            // The source can be read only once: the upload was continued, not restarted.
            let (written, restarted) = tokio::join!(upload, killed);
            restarted?;
            written?;
            let mut reader = films.get_reader("film").await?.context("the value exists")?;
            let mut first = vec![0; 8 * MIB as usize];
            reader.read_exact(&mut first).await?;
            fleet.kill9("persist-1").await?;
            fleet.restart("persist-1").await?;
            check(io::Cursor::new(first).chain(reader), size).await?;
            let left = || async {
                Ok(files_ending(&fleet.data_dir("persist-1").join("uploads"), "")?.is_empty().then_some(()))
            };
            until("no file of the upload is left", left).await
        })
        .await
}

/// After a takeover, an upload restarts if its source is seekable; otherwise it fails without effect.
#[tokio::test]
async fn takeover_during_upload_restarts_or_fails() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            let films = client.kv("app.films")?.with_deadline(Duration::from_secs(30));
            films.put("other", "v").await?;
            let owner = fleet.owner(&client, "app.films").await?;
            fleet.expect_warning("declared dead");
            let size = 96 * MIB;
            let (source, mut arrived) = watched(size);
            let file = fleet.folder().join("film");
            let mut written = tokio::fs::File::create(&file).await?;
            tokio::io::copy(&mut PatternSource::of(size), &mut written).await?;
            written.flush().await?;
            let again = tokio::fs::File::open(&file).await?;
            let killed = async {
                arrived.wait_for(|bytes| *bytes > 16 * MIB).await?;
                fleet.kill9(&owner).await
            };
            let once = films.put_reader("once", source);
            let again = films.put_reader("again", ValueSource::seekable(again));
            let (once, again, killed) = tokio::join!(once, again, killed);
            killed?;
            let error = once.err().context("a source that can be read once")?;
            ensure!(matches!(error, Error::UploadLost), "{error:?}");
            assert_eq!(error.executed(), Executed::No);
            again?;
            ensure!(films.entry("once").await?.is_none());
            check(films.get_reader("again").await?.context("the value exists")?, size).await?;
            fleet.restart(&owner).await
        })
        .await
}

/// Malformed upload requests and excess uploads get typed errors, and other clients are served.
#[tokio::test]
async fn upload_requests_that_are_hostile_get_typed_errors() -> anyhow::Result<()> {
    Fleet::builder()
        .server_args(["--max-uploads", "8"])
        .run(async |fleet| {
            let mut raw = fleet.raw().await?;
            let client = fleet.client().await?;
            let films = client.kv("app.films")?;
            films.put("k", "v").await?;
            let v = ProtocolVersion::CURRENT;
            let upload = "01J9Z5ABCDEFGHJKMNPQRSTVWX".parse()?;
            let chunk = |offset, bytes| encode(&UploadChunkRequest { v, upload, offset, bytes });
            let begin = encode(&UploadBeginRequest { v, upload, size: None, place: None })?;
            let on = |op: Op| format!("persist.server.persist-1.{op}.app.films");
            let uploads =
                [Op::UploadBegin, Op::UploadChunk, Op::UploadFinish, Op::UploadCommit, Op::UploadCancel];
            for op in uploads.into_iter().chain([Op::GetChunk]) {
                for payload in
                    [&[0xc1; 64][..], &[], &[0x80], &[0xdf, 255, 255, 255, 255], &begin[..begin.len() - 1]]
                {
                    let error = refusal(&raw.request(&on(op), payload).await?)?;
                    assert_eq!(error.code, ErrorCode::BadRequest, "{op}: {error}");
                }
            }
            ensure!(refusal(&raw.request(&on(Op::UploadBegin), &begin).await?).is_err(), "the upload began");
            let cases = [
                (chunk(0, Bytes::new())?, ErrorCode::BadRequest),
                (chunk(u64::MAX, Bytes::from_static(b"x"))?, ErrorCode::BadRequest),
                (chunk(1 << 40, Bytes::from_static(b"x"))?, ErrorCode::TooLarge),
                (chunk(1 << 30, Bytes::from_static(b"x"))?, ErrorCode::UnknownUpload),
            ];
            for (payload, code) in cases {
                assert_eq!(refusal(&raw.request(&on(Op::UploadChunk), &payload).await?)?.code, code);
            }
            // More uploads than the limit begin.
            let many = (0..100).map(|_| films.clone().with_deadline(Duration::from_secs(4)));
            let many =
                many.map(|films| async move { films.put_reader("k", PatternSource::of(2 * MIB)).await });
            let ends = futures::future::join_all(many).await;
            ensure!(ends.iter().any(Result::is_ok));
            for error in ends.into_iter().filter_map(Result::err) {
                assert_eq!(error.executed(), Executed::No, "{error:?}");
            }
            films.put("k", "v").await?;
            assert_eq!(films.get("k").await?.as_deref(), Some(&b"v"[..]));
            Ok(())
        })
        .await
}

/// Returns the names of unfinished files of the command line tool.
fn partial_files(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name.ends_with(".partial"));
    Ok(names)
}

/// The CLI never overwrites a file unasked; if interrupted, it leaves no file, no partial file and no value.
#[tokio::test]
async fn cli_writes_a_whole_file_or_none() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let films = fleet.client().await?.kv("app.films")?;
            films.put_reader("film", PatternSource::of(40 * MIB)).await?;
            let file = fleet.folder().join("film");
            let path = file.display().to_string();
            fleet.cli_ok(&["get", "app.films", "--key", "film", "--output", &path]).await?;
            check(tokio::fs::File::open(&file).await?, 40 * MIB).await?;
            // An existing file is replaced only on request.
            let refused = fleet.cli(&["get", "app.films", "--key", "film", "--output", &path]).await?;
            assert_eq!(refused.status.code(), Some(4));
            // After an interrupt, neither the file nor a part of it exists, and nothing was set.
            let other = fleet.folder().join("other").display().to_string();
            let bucket = format!("file://{}", fleet.bucket_dir().display());
            // An export embeds the value, which is larger than one read of the bucket.
            let whole = fleet.folder().join("whole").display().to_string();
            fleet.cli_ok(&["subject", "export", "app.films", "--bucket", &bucket, &whole]).await?;
            assert!(std::fs::metadata(&whole)?.len() > 40 * MIB);
            for arguments in [
                &["get", "app.films", "--key", "film", "--output", &other][..],
                &["subject", "export", "app.films", "--bucket", &bucket, &other],
                &["set", "app.films", "--key", "endless", "--file", "/dev/zero"],
            ] {
                let uploads = fleet.data_dir("persist-1").join("uploads");
                // If a command ends before the signal reaches it, it runs again.
                loop {
                    let mut command = fleet.tool()?;
                    command.args(["--nats", &fleet.url()]).args(arguments);
                    let messages = fleet.folder().join("messages");
                    let stderr = std::fs::File::create(&messages)?;
                    let mut tool = command.stdout(Stdio::null()).stderr(stderr).spawn()?;
                    let pid = tool.id().context("no process id")?;
                    let done = until("the command is running or has ended", async || {
                        if let Some(done) = tool.try_wait()? {
                            return Ok(Some(Some(done)));
                        }
                        let begun = !partial_files(fleet.folder())?.is_empty()
                            || !files_ending(&uploads, "")?.is_empty();
                        Ok(begun.then_some(None))
                    })
                    .await?;
                    let ended = match done {
                        Some(done) => done,
                        None => {
                            dormouse_harness::interrupt_pid(pid)?;
                            tool.wait().await?
                        }
                    };
                    if !ended.success() {
                        let messages = std::fs::read_to_string(&messages)?;
                        ensure!(done.is_none(), "{arguments:?} ended with {ended}: {messages}");
                        break;
                    }
                    tokio::fs::remove_file(&other).await?;
                }
                ensure!(!Path::new(&other).exists(), "{arguments:?} left a file");
                assert_eq!(partial_files(fleet.folder())?, Vec::<String>::new());
            }
            ensure!(films.entry("endless").await?.is_none());
            Ok(())
        })
        .await
}
