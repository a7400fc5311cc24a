//! The requirements of a server's start, and its errors if one is missing.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use anyhow::{Context, ensure};
use dormouse_e2e::{Fleet, until};
use dormouse_harness::{NatsServer, NatsServerOptions, ProcessSpec, log_problems};
use dormouse_runtime::Tasks;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Checks that the process ended with this code, and that one of its warnings or errors contains these words.
fn check_rejected(
    ended: &(std::process::ExitStatus, String),
    code: i32,
    words: &[&str],
) -> anyhow::Result<()> {
    let (status, log) = ended;
    ensure!(status.code() == Some(code), "ended with {status} instead of code {code}:\n{log}");
    let is_reported = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
    ensure!(is_reported, "no line says {words:?}:\n{log}");
    Ok(())
}

/// A second server with the same name exits with 5, and the first server keeps serving.
#[tokio::test]
async fn server_with_a_used_name_is_rejected() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let store = fleet.client().await?.kv("app.named")?;
            store.put("k", "v").await?;
            let mut second = fleet.server_spec("persist-1")?;
            second.log.set_file_name("second.log");
            // The same name with another data directory, as on another machine.
            let other = fleet.folder().join("data/second");
            let position = second.arguments.iter().position(|argument| argument == "--data-dir");
            second.arguments[position.expect("the argument is there") + 1] = other.into();
            check_rejected(&fleet.run_to_end(&second).await?, 5, &["name", "persist-1"])?;
            assert_eq!(store.get("k").await?.as_deref(), Some(&b"v"[..]));
            Ok(())
        })
        .await
}

/// A server on a data directory in use exits with 4, and the first server keeps serving.
#[tokio::test]
async fn data_directory_in_use_is_rejected() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let mut second = fleet.server_spec("persist-1")?;
            second.log.set_file_name("second.log");
            check_rejected(&fleet.run_to_end(&second).await?, 4, &["data directory", "in use"])?;
            fleet.wait_ready("persist-1").await
        })
        .await
}

/// A server whose data directory is not writable exits with 4.
#[tokio::test]
async fn data_directory_without_write_access_is_rejected() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let file = fleet.folder().join("not-a-directory");
            std::fs::write(&file, "")?;
            let mut spec = fleet.server_spec("second")?.args(["--data-dir".into(), file.join("data")]);
            spec.arguments.drain(6..8);
            check_rejected(&fleet.run_to_end(&spec).await?, 4, &["data directory"])?;

            // Root may write anywhere, so this is a check only for other users.
            let locked = fleet.data_dir("third");
            std::fs::create_dir(&locked)?;
            std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o500))?;
            if std::fs::write(locked.join("try"), "").is_err() {
                check_rejected(
                    &fleet.run_to_end(&fleet.server_spec("third")?).await?,
                    4,
                    &["data directory"],
                )?;
            }
            Ok(())
        })
        .await
}

/// A server whose bucket directory is missing exits with 3 and does not create it.
#[tokio::test]
async fn bucket_missing_is_rejected_and_not_created() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let missing = fleet.folder().join("no-such-bucket");
            let mut spec = fleet.server_spec("second")?;
            spec.arguments[5] = format!("file://{}", missing.display()).into();
            check_rejected(&fleet.run_to_end(&spec).await?, 3, &["bucket", "no-such-bucket"])?;
            assert!(!missing.exists(), "an unmounted bucket must not look like an empty one");
            Ok(())
        })
        .await
}

/// A server whose bucket does not answer exits with 3, names the bucket and logs no secret.
#[tokio::test]
async fn bucket_unreachable_is_named_in_the_error() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            // A port that was free a moment ago, so no server listens on it.
            let endpoint = format!("http://{}", TcpListener::bind("127.0.0.1:0").await?.local_addr()?);
            let ended = fleet.run_to_end(&on_s3(fleet.server_spec("second")?, "away", &endpoint)).await?;
            check_rejected(&ended, 3, &["bucket", "cannot be"])?;
            ensure!(!ended.1.contains("secret"), "the log holds a secret:\n{}", ended.1);
            fleet.wait_ready("persist-1").await
        })
        .await
}

/// Returns the spec of the server on a bucket with an S3 endpoint.
fn on_s3(mut spec: ProcessSpec, bucket: &str, endpoint: &str) -> ProcessSpec {
    spec.arguments[5] = format!("s3://{bucket}").into();
    for (name, value) in [
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ] {
        spec.environment.push((name.into(), value.into()));
    }
    spec
}

/// Some stores speak S3 but overwrite an object on a conditional create. On such a store two servers could own a
/// subject at the same time.
#[tokio::test]
async fn bucket_without_conditional_create_is_rejected() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let endpoint = format!("http://{}", listener.local_addr()?);
            let store = Tasks::new();
            store.spawn("store", serve_unconditional_store(listener, store.clone()));
            let spec = on_s3(fleet.server_spec("second")?, "careless", &endpoint);
            let ended = fleet.run_to_end(&spec).await?;
            store.stop().request();
            check_rejected(&ended, 3, &["bucket", "create", "exist"])?;
            ensure!(!ended.1.contains("secret"), "the log holds a secret:\n{}", ended.1);
            Ok(())
        })
        .await
}

/// The objects of the unconditional store, by path.
type Objects = Arc<Mutex<HashMap<String, Vec<u8>>>>;

/// Stores every object that is put and returns it, without regard to conditions.
async fn serve_unconditional_store(listener: TcpListener, tasks: Tasks) {
    let objects = Objects::default();
    let stop = tasks.stop().clone();
    loop {
        let connection = tokio::select! {
            () = stop.requested() => return,
            connection = listener.accept() => connection,
        };
        let Ok((connection, _)) = connection else { return };
        let (stop, objects) = (stop.clone(), Arc::clone(&objects));
        tasks.spawn("connection", async move {
            tokio::select! {
                () = stop.requested() => {}
                // The client closes the connection when it has its reply.
                _ = serve_connection(connection, &objects) => {}
            }
        });
    }
}

async fn serve_connection(connection: TcpStream, objects: &Objects) -> anyhow::Result<()> {
    let mut connection = BufReader::new(connection);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            ensure!(connection.read_line(&mut line).await? > 0, "hung up");
            if line.trim_end().is_empty() {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        let length = head.iter().find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok()
        });
        let mut body = vec![0; length.unwrap_or(0)];
        connection.read_exact(&mut body).await?;
        let mut words = head.first().map(String::as_str).unwrap_or_default().split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
        let answer = {
            let mut objects = objects.lock().expect("the lock is not poisoned");
            match method {
                "GET" => objects.get(&path).cloned().unwrap_or_default(),
                _ => {
                    objects.insert(path, body);
                    Vec::new()
                }
            }
        };
        let headers = "ETag: \"same\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT";
        let head = format!("HTTP/1.1 200 OK\r\n{headers}\r\nContent-Length: {}\r\n\r\n", answer.len());
        connection.write_all(&[head.as_bytes(), &answer].concat()).await?;
    }
}

/// A server with several wrong settings exits with 2 and reports all of them.
#[tokio::test]
async fn settings_errors_are_all_reported_at_once() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let spec = fleet.server_spec("Not A Name")?.args(["--level", "often", "--capacity", "none"]);
            let ended = fleet.run_to_end(&spec).await?;
            for words in [["Not A Name"], ["level"], ["capacity"]] {
                check_rejected(&ended, 2, &words)?;
            }
            Ok(())
        })
        .await
}

/// A server that starts before its nats-server waits and then connects.
#[tokio::test]
async fn server_waits_for_an_absent_nats_server() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let mut later = NatsServer::start(NatsServerOptions::default()).await?;
            later.stop().await?;
            let mut spec = fleet.server_spec("patient")?;
            spec.arguments[1] = later.url().into();
            let mut process = spec.start()?;
            until("the server has tried", async || {
                ensure!(process.ended()?.is_none(), "the server ended");
                Ok(std::fs::read_to_string(&spec.log)?.contains("starting").then_some(()))
            })
            .await?;
            later.restart().await?;
            let mut raw = dormouse_e2e::RawNats::connect(&later.url()).await?;
            until("the server answers", async || {
                ensure!(process.ended()?.is_none(), "the server ended");
                let answer = raw.request("persist.health.patient", b"").await?;
                Ok(answer.headers.is_empty().then_some(()))
            })
            .await?;
            process.kill9().await
        })
        .await
}

/// Neither the memory nor the work at the start is proportional to the number of subjects.
#[tokio::test]
async fn dormant_subjects_use_no_memory_or_fds() -> anyhow::Result<()> {
    const DORMANT: usize = 20_000;
    Fleet::builder()
        .in_memory()
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = client.kv("app.sleeper.0")?;
            store.put("k", "v").await?;
            fleet.stop("persist-1").await?;
            fleet.restart("persist-1").await?;
            let before = fleet.process("persist-1")?.resident_bytes()?;
            fleet.stop("persist-1").await?;

            // The folder of the one subject is copied 19,999 times.
            let subjects = fleet.bucket_dir().join("subjects");
            let folder = std::fs::read_dir(&subjects)?.next().expect("the subject has a folder")?.path();
            let objects: Vec<_> = std::fs::read_dir(&folder)?.collect::<Result<_, _>>()?;
            for number in 1..DORMANT {
                let copy = subjects.join(format!("app.sleeper.{number}"));
                std::fs::create_dir(&copy)?;
                for object in &objects {
                    std::fs::hard_link(object.path(), copy.join(object.file_name()))?;
                }
            }
            fleet.restart("persist-1").await?;
            let with = fleet.process("persist-1")?.resident_bytes()?;
            ensure!(
                with < before + 8 * 1_024 * 1_024,
                "{before} bytes resident before, {with} with dormant subjects"
            );
            let health = fleet.health("persist-1").await?.expect("the server answers");
            for (name, figure) in &health.figures {
                ensure!(
                    *figure < 10_000 || name.ends_with("bytes") || name.ends_with("limit"),
                    "{name}: {figure}"
                );
            }
            assert_eq!(log_problems(&fleet.log("persist-1")?), Vec::<&str>::new());
            assert_eq!(client.kv("app.sleeper.0")?.get("k").await?.as_deref(), Some(&b"v"[..]));
            Ok(())
        })
        .await
}

/// A server with few file descriptors limits its open subjects and still serves 300 subjects.
#[tokio::test]
async fn server_with_few_descriptors_limits_open_subjects() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let original = fleet.server_spec("persist-1")?.args(["--max-open", "10000"]);
            fleet.expect_warning("too few file descriptors for --max-open");
            fleet.stop("persist-1").await?;
            let mut limited = original.clone();
            limited.program = "/bin/sh".into();
            // Of 400 descriptors, 144 are left for subjects, two for each.
            limited.arguments = ["-c", "ulimit -n 400 && exec \"$0\" \"$@\""].map(Into::into).into();
            limited.arguments.push(original.program.into());
            limited.arguments.extend(original.arguments);
            fleet.add(limited)?;
            let client = fleet.client().await?;
            let stores: Vec<_> =
                (0..300).map(|number| client.kv(&format!("app.many.{number}"))).collect::<Result<_, _>>()?;
            let written: Vec<_> =
                stores.iter().map(|store| store.put("k", store.subject().to_string())).collect();
            for write in written {
                write.await?;
            }
            for store in &stores {
                let read = store.get("k").await?;
                ensure!(read.as_deref() == Some(store.subject().as_str().as_bytes()), "{}", store.subject());
            }
            let open = fleet.health("persist-1").await?.context("no health reply")?.figures["open_subjects"];
            ensure!(open <= 72, "{open} subjects are open");
            Ok(())
        })
        .await
}
