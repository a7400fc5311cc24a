use std::sync::mpsc;

use dormouse_protocol::{ErrorCode, ProtocolVersion, UploadId};
use dormouse_runtime::{SeededEntropy, VirtualClock};
use tempfile::TempDir;

use super::*;

const V: ProtocolVersion = ProtocolVersion::CURRENT;
const LIMITS: SpoolLimits = SpoolLimits { uploads: 64, bytes: 1 << 20 };

/// A disk with limited space.
#[derive(Debug, Default)]
struct LimitedDisk {
    /// Free bytes; `None`: no limit.
    free: Lock<Option<usize>>,
}

impl SpoolDisk for LimitedDisk {
    fn append(&self, path: &std::path::Path, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut free = self.free.lock();
        let Some(left) = &mut *free else { return SpoolFiles.append(path, at, bytes) };
        let fits = &bytes[..bytes.len().min(*left)];
        *left -= fits.len();
        // Like a real disk, it writes the bytes that fit before it fails.
        SpoolFiles.append(path, at, fits)?;
        if fits.len() < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn remove(&self, path: &std::path::Path) -> io::Result<()> {
        SpoolFiles.remove(path)
    }

    fn list(&self, folder: &std::path::Path) -> io::Result<Vec<(String, u64)>> {
        SpoolFiles.list(folder)
    }
}

struct World {
    folder: TempDir,
    disk: Arc<LimitedDisk>,
    env: Env,
    tasks: Tasks,
    spool: Arc<Spool>,
}

impl World {
    fn new() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap())
    }

    fn in_folder(folder: TempDir) -> Self {
        let clock = Arc::new(VirtualClock::starting_at(Duration::from_secs(1_000)));
        let env = Env::simulated(clock, Arc::new(SeededEntropy::new(1)));
        let disk = Arc::new(LimitedDisk::default());
        let port = Arc::clone(&disk) as Arc<dyn SpoolDisk>;
        let spool = Spool::open(folder.path().join("uploads"), LIMITS, port, env.clone()).unwrap();
        Self { folder, disk, env, tasks: Tasks::new(), spool: Arc::new(spool) }
    }

    fn begin(&self, number: u128, size: Option<u64>) -> Result<UploadReply, ErrorReply> {
        self.spool.begin(
            &app(),
            &UploadBeginRequest { v: V, upload: upload(number), size, place: None },
            UploadQuota::default(),
            TenantId::SHARED,
            None,
        )
    }

    fn send(
        &self,
        number: u128,
        offset: u64,
        bytes: &'static [u8],
    ) -> mpsc::Receiver<Result<SubjectReply, ErrorReply>> {
        let (sender, answer) = mpsc::channel();
        let bytes = Bytes::from_static(bytes);
        let request = UploadChunkRequest { v: V, upload: upload(number), offset, bytes };
        let respond = Box::new(move |answer| drop(sender.send(answer)));
        self.spool.chunk(&self.tasks, &app(), request, respond);
        answer
    }

    /// Sends a chunk and waits for the reply.
    async fn send_and_wait(
        &self,
        number: u128,
        offset: u64,
        bytes: &'static [u8],
    ) -> Result<u64, ErrorReply> {
        let answer = self.send(number, offset, bytes);
        loop {
            if let Ok(answer) = answer.try_recv() {
                return answer.map(received);
            }
            tokio::task::yield_now().await;
        }
    }

    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = std::fs::read_dir(self.folder.path().join("uploads"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    }

    fn file(&self, number: u128) -> Vec<u8> {
        let name = name_of(&key(&app(), upload(number)));
        self.files().into_iter().find(|(found, _)| *found == name).unwrap().1
    }
}

fn app() -> Subject {
    "app.a".parse().unwrap()
}

fn upload(number: u128) -> UploadId {
    UploadId::new(number.into())
}

fn received(reply: SubjectReply) -> u64 {
    match reply {
        SubjectReply::Upload(reply) => reply.received,
        other => panic!("{other:?}"),
    }
}

/// Chunks in any order form one file, and each chunk gets its reply once its bytes are contiguous in the file.
#[tokio::test(start_paused = true)]
async fn upload_chunks_in_any_order_form_one_file() {
    let world = World::new();
    assert_eq!(world.begin(1, None).unwrap(), UploadReply::default());
    let last = world.send(1, 6, b"world");
    let again = world.send(1, 6, b"world");
    assert!(last.try_recv().is_err(), "the bytes before it are missing");
    assert_eq!(world.send_and_wait(1, 0, b"hello ").await, Ok(6));
    while world.begin(1, None).unwrap().received < 11 {
        tokio::task::yield_now().await;
    }
    assert_eq!(last.recv().unwrap().map(received), Ok(11));
    assert_eq!(again.recv().unwrap().map(received), Ok(11));
    assert_eq!(world.send_and_wait(1, 0, b"HELLO").await, Ok(11));
    assert_eq!(world.file(1), b"hello world");
}

/// On a full disk, chunks fail with `unavailable`; once space is free, the upload resumes.
#[tokio::test(start_paused = true)]
async fn upload_on_full_disk_fails_chunks_and_resumes_later() {
    let world = World::new();
    world.begin(1, None).unwrap();
    assert_eq!(world.send_and_wait(1, 0, b"hello ").await, Ok(6));
    *world.disk.free.lock() = Some(2);
    let later = world.send(1, 11, b"!");
    let error = world.send_and_wait(1, 6, b"world").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.message.contains("disk"), "{error}");
    assert_eq!(later.recv().unwrap().unwrap_err().code, ErrorCode::Unavailable);
    assert_eq!(world.begin(1, None).unwrap().received, 6);
    *world.disk.free.lock() = None;
    assert_eq!(world.send_and_wait(1, 6, b"world").await, Ok(11));
    assert_eq!(world.send_and_wait(1, 11, b"!").await, Ok(12));
    assert_eq!(world.file(1), b"hello world!");
}

/// Of 2,000 uploads of one subject, half of all slots are granted and the rest get `overloaded` with a retry delay.
#[tokio::test(start_paused = true)]
async fn uploads_over_limit_get_overloaded_with_retry_after() {
    let world = World::new();
    let begun: Vec<_> = (1..=2_000).map(|number| world.begin(number, None)).collect();
    // Half of all uploads, because the other half is left to other subjects.
    let of_one = LIMITS.uploads / 2;
    assert_eq!(begun.iter().filter(|begun| begun.is_ok()).count(), of_one);
    for error in begun.into_iter().filter_map(Result::err) {
        assert_eq!(error.code, ErrorCode::Overloaded);
        assert!(error.retry_after_ms.is_some());
    }
    assert_eq!(world.spool.usage().0, of_one);
    // Refused uploads leave no files, and an ended upload makes a new one possible.
    assert!(world.files().is_empty());
    world.spool.cancel(&world.tasks, &app(), UploadCancelRequest { v: V, upload: upload(1) });
    world.begin(2_000, None).unwrap();
    let request = UploadBeginRequest { v: V, upload: upload(1), size: Some(1 << 18), place: None };
    world
        .spool
        .begin(&"app.b".parse().unwrap(), &request, UploadQuota::default(), TenantId::SHARED, None)
        .unwrap();
}

/// An upload that is idle for half a minute is removed with its file, and its waiting chunk gets `unknown_upload`.
#[tokio::test(start_paused = true)]
async fn upload_idle_for_half_a_minute_is_removed() {
    let world = World::new();
    let spool = Arc::clone(&world.spool);
    world.tasks.spawn("sweep", async move { spool.sweep().await });
    world.begin(1, None).unwrap();
    world.begin(2, None).unwrap();
    world.send_and_wait(1, 0, b"hello").await.unwrap();
    let waiting = world.send(1, 7, b"never written");
    tokio::time::sleep(Duration::from_secs(29)).await;
    world.begin(2, None).unwrap();
    assert_eq!(world.files().len(), 1);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(world.files().len(), 0);
    assert_eq!(world.spool.usage().0, 1);
    assert_eq!(waiting.recv().unwrap().unwrap_err().code, ErrorCode::UnknownUpload);
    assert_eq!(world.send_and_wait(1, 5, b"!").await.unwrap_err().code, ErrorCode::UnknownUpload);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(world.spool.usage(), (0, 0));
    assert!(world.env.boot() < Duration::from_secs(65));
}

/// After a restart, the spool resumes the uploads of the earlier process and removes all other files.
#[tokio::test(start_paused = true)]
async fn spool_restart_resumes_uploads_and_removes_other_files() {
    let world = World::new();
    world.begin(1, None).unwrap();
    world.send_and_wait(1, 0, b"hello ").await.unwrap();
    let World { folder, .. } = world;
    let uploads = folder.path().join("uploads");
    for garbage in ["", "app.a", "app.a.", "app.a.01J", "x=y.01J9Z5ABCDEFGHJKMNPQRSTVWX", "core"] {
        if !garbage.is_empty() {
            std::fs::write(uploads.join(garbage), "garbage").unwrap();
        }
    }
    let world = World::in_folder(folder);
    assert_eq!(world.files().len(), 1);
    assert_eq!(world.begin(1, None).unwrap().received, 6);
    assert_eq!(world.send_and_wait(1, 6, b"world").await, Ok(11));
    assert_eq!(world.file(1), b"hello world");
    // An upload of another subject with the same id is a different upload.
    let request = UploadBeginRequest { v: V, upload: upload(1), size: None, place: None };
    assert_eq!(
        world
            .spool
            .begin(&"app.b".parse().unwrap(), &request, UploadQuota::default(), TenantId::SHARED, None)
            .unwrap()
            .received,
        0
    );
}

/// A spool file name is at most 255 bytes long and gives back its subject and upload.
#[test]
fn spool_file_name_identifies_subject_and_upload() {
    for subject in ["app.a", "a b c".replace(' ', ".").as_str(), &"é".repeat(200), "A.b", "=.x"] {
        let key = key(&subject.parse().unwrap(), upload(7));
        assert_eq!(key_of(&name_of(&key)), Some(key.clone()));
        assert!(name_of(&key).len() <= 255);
    }
}
