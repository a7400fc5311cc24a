use std::sync::mpsc;

use dormouse_protocol::{ErrorCode, ProtocolVersion, UploadId};
use dormouse_runtime::{SeededEntropy, VirtualClock};
use tempfile::TempDir;

use super::*;

const V: ProtocolVersion = ProtocolVersion::CURRENT;
const LIMITS: SpoolLimits = SpoolLimits { uploads: 64, bytes: 1 << 20 };

/// A disk that can be told to be full.
#[derive(Debug, Default)]
struct Fills {
    /// How many bytes still fit.
    room: Mutex<Option<usize>>,
}

impl SpoolDisk for Fills {
    fn append(&self, path: &std::path::Path, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut room = self.room.lock().unwrap();
        let Some(left) = &mut *room else { return SpoolFiles.append(path, at, bytes) };
        let fits = &bytes[..bytes.len().min(*left)];
        *left -= fits.len();
        // As a real one does, it takes what fits before it fails.
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
    disk: Arc<Fills>,
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
        let disk = Arc::new(Fills::default());
        let port = Arc::clone(&disk) as Arc<dyn SpoolDisk>;
        let spool = Spool::open(folder.path().join("uploads"), LIMITS, port, env.clone()).unwrap();
        Self { folder, disk, env, tasks: Tasks::new(), spool: Arc::new(spool) }
    }

    fn begin(&self, number: u128, size: Option<u64>) -> Result<UploadReply, ErrorReply> {
        self.spool.begin(
            &app(),
            &UploadBeginRequest { v: V, upload: upload(number), size, place: None },
            UploadRoom::default(),
        )
    }

    fn send(
        &self,
        number: u128,
        offset: u64,
        bytes: &'static [u8],
    ) -> mpsc::Receiver<Result<Reply, ErrorReply>> {
        let (sender, answer) = mpsc::channel();
        let bytes = Bytes::from_static(bytes);
        let request = UploadChunkRequest { v: V, upload: upload(number), offset, bytes };
        let respond = Box::new(move |answer| drop(sender.send(answer)));
        self.spool.chunk(&self.tasks, &app(), request, respond);
        answer
    }

    /// Brings a chunk and waits for the answer.
    async fn bring(&self, number: u128, offset: u64, bytes: &'static [u8]) -> Result<u64, ErrorReply> {
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

fn received(reply: Reply) -> u64 {
    match reply {
        Reply::Upload(reply) => reply.received,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn chunks_in_any_order_become_one_file_and_each_is_answered_when_it_is_there() {
    let world = World::new();
    assert_eq!(world.begin(1, None).unwrap(), UploadReply::default());
    let last = world.send(1, 6, b"world");
    let again = world.send(1, 6, b"world");
    assert!(last.try_recv().is_err(), "what stands before it is missing");
    assert_eq!(world.bring(1, 0, b"hello ").await, Ok(6));
    while world.begin(1, None).unwrap().received < 11 {
        tokio::task::yield_now().await;
    }
    assert_eq!(last.recv().unwrap().map(received), Ok(11));
    assert_eq!(again.recv().unwrap().map(received), Ok(11));
    assert_eq!(world.bring(1, 0, b"HELLO").await, Ok(11));
    assert_eq!(world.file(1), b"hello world");
}

#[tokio::test(start_paused = true)]
async fn on_a_full_disk_chunks_fail_and_with_room_again_the_upload_goes_on() {
    let world = World::new();
    world.begin(1, None).unwrap();
    assert_eq!(world.bring(1, 0, b"hello ").await, Ok(6));
    *world.disk.room.lock().unwrap() = Some(2);
    let behind = world.send(1, 11, b"!");
    let error = world.bring(1, 6, b"world").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.message.contains("disk"), "{error}");
    assert_eq!(behind.recv().unwrap().unwrap_err().code, ErrorCode::Unavailable);
    assert_eq!(world.begin(1, None).unwrap().received, 6);
    *world.disk.room.lock().unwrap() = None;
    assert_eq!(world.bring(1, 6, b"world").await, Ok(11));
    assert_eq!(world.bring(1, 11, b"!").await, Ok(12));
    assert_eq!(world.file(1), b"hello world!");
}

#[tokio::test(start_paused = true)]
async fn of_two_thousand_that_begin_at_once_as_many_as_may_are_taken_and_the_rest_is_told_when_to_come() {
    let world = World::new();
    let begun: Vec<_> = (1..=2_000).map(|number| world.begin(number, None)).collect();
    // Half of all there are: others come, too.
    let of_one = LIMITS.uploads / 2;
    assert_eq!(begun.iter().filter(|begun| begun.is_ok()).count(), of_one);
    for error in begun.into_iter().filter_map(Result::err) {
        assert_eq!(error.code, ErrorCode::Overloaded);
        assert!(error.retry_after_ms.is_some());
    }
    assert_eq!(world.spool.figures().0, of_one);
    // Those who were turned away leave nothing behind, and one that ends makes room.
    assert!(world.files().is_empty());
    world.spool.cancel(&world.tasks, &app(), UploadCancelRequest { v: V, upload: upload(1) });
    world.begin(2_000, None).unwrap();
    let request = UploadBeginRequest { v: V, upload: upload(1), size: Some(1 << 18), place: None };
    world.spool.begin(&"app.b".parse().unwrap(), &request, UploadRoom::default()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_nobody_speaks_of_goes_after_half_a_minute() {
    let world = World::new();
    let spool = Arc::clone(&world.spool);
    world.tasks.spawn("sweep", async move { spool.sweep().await });
    world.begin(1, None).unwrap();
    world.begin(2, None).unwrap();
    world.bring(1, 0, b"hello").await.unwrap();
    let waiting = world.send(1, 7, b"never written");
    tokio::time::sleep(Duration::from_secs(29)).await;
    world.begin(2, None).unwrap();
    assert_eq!(world.files().len(), 1);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(world.files().len(), 0);
    assert_eq!(world.spool.figures().0, 1);
    assert_eq!(waiting.recv().unwrap().unwrap_err().code, ErrorCode::UnknownUpload);
    assert_eq!(world.bring(1, 5, b"!").await.unwrap_err().code, ErrorCode::UnknownUpload);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(world.spool.figures(), (0, 0));
    assert!(world.env.boot() < Duration::from_secs(65));
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_process_left_is_gone_on_with_and_what_is_no_upload_goes() {
    let world = World::new();
    world.begin(1, None).unwrap();
    world.bring(1, 0, b"hello ").await.unwrap();
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
    assert_eq!(world.bring(1, 6, b"world").await, Ok(11));
    assert_eq!(world.file(1), b"hello world");
    // Another subject's upload of the same name is another.
    let request = UploadBeginRequest { v: V, upload: upload(1), size: None, place: None };
    assert_eq!(
        world.spool.begin(&"app.b".parse().unwrap(), &request, UploadRoom::default()).unwrap().received,
        0
    );
}

#[test]
fn files_are_named_so_that_a_restart_knows_whose_they_are() {
    for subject in ["app.a", "a b c".replace(' ', ".").as_str(), &"é".repeat(200), "A.b", "=.x"] {
        let key = key(&subject.parse().unwrap(), upload(7));
        assert_eq!(key_of(&name_of(&key)), Some(key.clone()));
        assert!(name_of(&key).len() <= 255);
    }
}
