use std::collections::BTreeSet;

use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{ErrorCode, OverloadCause, ValueDigest};
use proptest::prelude::*;

use super::*;

/// One subject may have five uploads and 1,000 bytes, and each upload reserves 200 bytes at its begin.
const LIMITS: SpoolLimits = SpoolLimits { uploads: 10, bytes: 2_000 };

fn key(number: u128) -> UploadKey {
    of("app.a", number)
}

fn of(subject: &str, number: u128) -> UploadKey {
    UploadKey { subject: subject.to_owned(), upload: UploadId::new(number.into()) }
}

fn of_size(size: Option<u64>) -> UploadBegin {
    UploadBegin { size, ..UploadBegin::default() }
}

fn free() -> UploadQuota {
    UploadQuota::default()
}

fn value(size: u64) -> UploadedValue {
    UploadedValue { upload: key(1).upload, size, digest: ValueDigest::new(7) }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn term(number: u64) -> Term {
    Term::new(number)
}

fn begun(size: Option<u64>) -> UploadTable {
    let mut uploads = UploadTable::new(LIMITS);
    uploads.begin(key(1), of_size(size), at(0)).unwrap();
    uploads
}

/// Sends a chunk and writes all chunks that can be written.
fn send_and_write(uploads: &mut UploadTable, offset: u64, length: u64) -> u64 {
    let _ = uploads.chunk(&key(1), offset, length, at(0)).unwrap();
    write_all(uploads, offset, length)
}

fn write_all(uploads: &mut UploadTable, offset: u64, length: u64) -> u64 {
    while let Some(write) = uploads.write(&key(1)) {
        // The test's chunks have one length each.
        assert_eq!((write.offset, write.skip), (offset, 0));
        uploads.written(&key(1), write.generation, length).unwrap();
    }
    received(uploads)
}

fn received(uploads: &mut UploadTable) -> u64 {
    uploads.begin(key(1), of_size(None), at(0)).unwrap().received
}

fn code<T: std::fmt::Debug>(result: Result<T, ErrorReply>) -> ErrorCode {
    result.unwrap_err().code
}

/// An upload counts each byte once and only up to the first gap; chunks after the gap wait.
#[test]
fn upload_counts_contiguous_bytes_once() {
    let mut uploads = begun(None);
    assert_eq!(send_and_write(&mut uploads, 0, 10), 10);
    // Again.
    let known = uploads.chunk(&key(1), 0, 10, at(0)).unwrap();
    assert_eq!(known, ChunkOutcome::Known(UploadReply { received: 10, stored: false }));
    // A chunk after a gap waits.
    assert_eq!(uploads.chunk(&key(1), 20, 10, at(0)), Ok(ChunkOutcome::Held));
    assert_eq!(uploads.write(&key(1)), None);
    // The chunk in the gap overlaps both.
    assert_eq!(uploads.chunk(&key(1), 5, 18, at(0)), Ok(ChunkOutcome::Held));
    let write = uploads.write(&key(1)).unwrap();
    assert_eq!((write.offset, write.skip), (5, 5));
    // One write at a time.
    assert_eq!(uploads.write(&key(1)), None);
    uploads.written(&key(1), write.generation, 13).unwrap();
    let write = uploads.write(&key(1)).unwrap();
    assert_eq!((write.offset, write.skip), (20, 3));
    let (reply, known) = uploads.written(&key(1), write.generation, 7).unwrap();
    assert_eq!((reply.received, known), (30, vec![]));
}

/// If a chunk arrives again during its write, the write answers both and the bytes are written once.
#[test]
fn upload_chunk_sent_twice_is_known_after_one_write() {
    let mut uploads = begun(None);
    uploads.chunk(&key(1), 0, 10, at(0)).unwrap();
    let write = uploads.write(&key(1)).unwrap();
    assert_eq!(uploads.chunk(&key(1), 0, 10, at(0)), Ok(ChunkOutcome::Held));
    assert_eq!(uploads.written(&key(1), write.generation, 10).unwrap().1, [0]);
    assert_eq!(uploads.write(&key(1)), None);
}

/// An upload rejects invalid offsets, sizes and digests, and requests for an unknown upload.
#[test]
fn upload_invalid_request_is_rejected() {
    let mut uploads = begun(Some(100));
    assert_eq!(code(uploads.chunk(&key(1), 0, 0, at(0))), ErrorCode::BadRequest);
    assert_eq!(code(uploads.chunk(&key(1), u64::MAX, 2, at(0))), ErrorCode::BadRequest);
    assert_eq!(code(uploads.chunk(&key(1), 95, 10, at(0))), ErrorCode::BadRequest);
    assert_eq!(code(uploads.chunk(&key(1), 0, 1_001, at(0))), ErrorCode::TooLarge);
    assert_eq!(code(uploads.chunk(&key(2), 0, 10, at(0))), ErrorCode::UnknownUpload);
    assert_eq!(code(uploads.finish(&key(2), value(1), term(1), &free(), at(0))), ErrorCode::UnknownUpload);
    assert_eq!(code(uploads.begin(key(2), of_size(Some(1_001)), at(0))), ErrorCode::TooLarge);
    send_and_write(&mut uploads, 0, 100);
    assert_eq!(code(uploads.finish(&key(1), value(99), term(1), &free(), at(0))), ErrorCode::BadRequest);
    assert_eq!(
        uploads.finish(&key(1), value(100), term(1), &free(), at(0)),
        Ok(FinishOutcome::Store(UploadGeneration(1)))
    );
    let other = UploadedValue { digest: ValueDigest::new(8), ..value(100) };
    assert_eq!(code(uploads.finish(&key(1), other, term(1), &free(), at(0))), ErrorCode::BadRequest);
}

/// A chunk beyond the window shows that earlier bytes are lost, so the reply is `unknown_upload`.
#[test]
fn upload_chunk_beyond_window_gets_unknown_upload() {
    let mut uploads = UploadTable::new(SpoolLimits { uploads: 1, bytes: u64::MAX / 2 });
    uploads.begin(key(1), of_size(None), at(0)).unwrap();
    assert_eq!(uploads.chunk(&key(1), UPLOAD_WINDOW_BYTES - 1, 1, at(0)), Ok(ChunkOutcome::Held));
    assert_eq!(code(uploads.chunk(&key(1), UPLOAD_WINDOW_BYTES, 1, at(0))), ErrorCode::UnknownUpload);
}

/// The number and bytes of a subject's uploads are bounded, and an ended upload releases its share.
#[test]
fn upload_count_and_bytes_are_bounded_and_released() {
    let mut uploads = UploadTable::new(LIMITS);
    for number in 1..=5 {
        uploads.begin(key(number), of_size(None), at(0)).unwrap();
    }
    let refused = uploads.begin(key(6), of_size(None), at(0)).unwrap_err();
    assert_eq!(
        (refused.code, refused.retry_after_ms),
        (ErrorCode::Overloaded, Some(OverloadCause::Uploads.retry_after_ms()))
    );
    // A known upload is not a new one, and uploads of other subjects do not count.
    uploads.begin(key(5), of_size(None), at(0)).unwrap();
    uploads.begin(of("app.b", 1), of_size(Some(100)), at(0)).unwrap();
    // Of 1,900 bytes it may have 950.
    assert_eq!(uploads.chunk(&key(1), 0, 600, at(0)), Ok(ChunkOutcome::Held));
    assert_eq!(code(uploads.chunk(&key(2), 0, 351, at(0))), ErrorCode::Overloaded);
    assert_eq!(uploads.chunk(&key(2), 0, 350, at(0)), Ok(ChunkOutcome::Held));
    assert_eq!(code(uploads.chunk(&key(3), 0, 1, at(0))), ErrorCode::Overloaded);
    assert_eq!(uploads.usage(), (6, 1_050));
    assert!(uploads.end(&key(2)));
    assert!(!uploads.end(&key(2)));
    assert_eq!(uploads.chunk(&key(3), 0, 350, at(0)), Ok(ChunkOutcome::Held));
    // Of nine slots that app.b leaves it may have four.
    assert_eq!(code(uploads.begin(key(6), of_size(None), at(0))), ErrorCode::Overloaded);
    uploads.end(&key(4));
    uploads.begin(key(6), of_size(None), at(0)).unwrap();
    for number in [1, 3, 5, 6] {
        uploads.end(&key(number));
    }
    uploads.end(&of("app.b", 1));
    assert_eq!(uploads.usage(), (0, 0));
}

/// A declared size reserves only the first bytes of an upload, and chunks within the reserved bytes are never rejected.
#[test]
fn upload_declared_size_reserves_no_space() {
    let mut uploads = UploadTable::new(LIMITS);
    assert_eq!(code(uploads.begin(key(1), of_size(Some(1_001)), at(0))), ErrorCode::TooLarge);
    uploads.begin(key(1), of_size(Some(1_000)), at(0)).unwrap();
    uploads.begin(key(2), of_size(Some(800)), at(0)).unwrap();
    uploads.begin(key(3), of_size(Some(200)), at(0)).unwrap();
    uploads.begin(key(4), of_size(Some(200)), at(0)).unwrap();
    assert_eq!(uploads.usage(), (4, 800), "the first 200 bytes of each upload");
    uploads.begin(of("app.b", 1), of_size(Some(600)), at(0)).unwrap();
    // An upload that does not fit now is refused.
    assert_eq!(code(uploads.begin(of("app.c", 1), of_size(Some(501)), at(0))), ErrorCode::Overloaded);
    assert_eq!(uploads.chunk(&of("app.b", 1), 0, 600, at(0)), Ok(ChunkOutcome::Held));
    // Only reserved bytes are left, and they are available.
    assert_eq!(code(uploads.chunk(&key(1), 0, 201, at(0))), ErrorCode::Overloaded);
    for number in 1..=4 {
        assert_eq!(uploads.chunk(&key(number), 0, 200, at(0)), Ok(ChunkOutcome::Held));
    }
}

/// An upload over the subject's limit is rejected at its begin, at a chunk, at a resume and at its finish.
#[test]
fn upload_over_subject_limit_rejected_at_each_step() {
    let quota = |most| {
        let config = SubjectConfig { max_msg_size: Some(most), ..SubjectConfig::default() };
        UploadQuota::without_place(&config)
    };
    let limit = |error: ErrorReply| (error.code, error.limit.unwrap());
    let met = (ErrorCode::TooLarge, "max_msg_size".to_owned());
    let mut uploads = UploadTable::new(LIMITS);
    let params = |size, most| UploadBegin { size, quota: quota(most), ..UploadBegin::default() };
    assert_eq!(limit(uploads.begin(key(1), params(Some(101), 100), at(0)).unwrap_err()), met);
    assert_eq!(uploads.usage(), (0, 0));
    uploads.begin(key(1), params(None, 100), at(0)).unwrap();
    assert_eq!(limit(uploads.chunk(&key(1), 0, 101, at(0)).unwrap_err()), met);
    assert_eq!(send_and_write(&mut uploads, 0, 100), 100);
    // The owner has lowered the limit.
    assert_eq!(limit(uploads.begin(key(1), params(None, 99), at(0)).unwrap_err()), met);
    assert_eq!(limit(uploads.finish(&key(1), value(100), term(1), &quota(99), at(0)).unwrap_err()), met);
    assert!(matches!(
        uploads.finish(&key(1), value(100), term(1), &quota(100), at(0)),
        Ok(FinishOutcome::Store(_))
    ));
}

/// An idle upload expires after 30 seconds, an accepted request extends it, and a rejected chunk does not.
#[test]
fn upload_expires_when_idle_and_activity_extends_time() {
    let mut uploads = begun(None);
    uploads.begin(key(2), of_size(None), at(10)).unwrap();
    assert_eq!(uploads.chunk(&key(2), 0, 1_000, at(10)), Ok(ChunkOutcome::Held));
    assert_eq!(uploads.next_sweep(), Some(at(30)));
    assert_eq!(uploads.sweep(at(29)), []);
    // The chunk is refused for lack of capacity, so it does not extend the upload.
    assert_eq!(code(uploads.chunk(&key(1), 0, 1, at(29))), ErrorCode::Overloaded);
    assert_eq!(uploads.sweep(at(30)), [key(1)]);
    assert_eq!(uploads.chunk(&key(2), 10, 1, at(39)), Ok(ChunkOutcome::Held));
    assert_eq!(uploads.sweep(at(68)), []);
    assert_eq!(uploads.sweep(at(69)), [key(2)]);
    assert_eq!((uploads.next_sweep(), uploads.usage()), (None, (0, 0)));
}

/// An upload does not expire during a write or while its value is being stored.
#[test]
fn upload_during_write_or_store_does_not_expire() {
    let mut uploads = begun(None);
    uploads.chunk(&key(1), 0, 10, at(0)).unwrap();
    let write = uploads.write(&key(1)).unwrap();
    assert_eq!(uploads.sweep(at(100)), []);
    uploads.written(&key(1), write.generation, 10).unwrap();
    let Ok(FinishOutcome::Store(generation)) = uploads.finish(&key(1), value(10), term(1), &free(), at(100))
    else {
        panic!()
    };
    assert_eq!(uploads.sweep(at(200)), []);
    assert!(uploads.stored(&key(1), generation, true, at(200)));
    assert_eq!(uploads.sweep(at(229)), []);
    assert_eq!(uploads.sweep(at(230)), [key(1)]);
    assert!(!uploads.stored(&key(1), generation, true, at(230)));
}

/// An upload does not expire until every set that uses it has its reply.
#[test]
fn upload_used_by_pending_set_does_not_expire() {
    let mut uploads = begun(None);
    let (one, two) = (uploads.commit_begins(&key(1)).unwrap(), uploads.commit_begins(&key(1)).unwrap());
    assert_eq!(uploads.commit_begins(&key(2)), None);
    assert_eq!(uploads.sweep(at(100)), []);
    uploads.commit_ended(&key(1), one, at(100));
    assert_eq!((uploads.sweep(at(200)), uploads.next_sweep()), (vec![], None));
    uploads.commit_ended(&key(1), two, at(200));
    assert_eq!(uploads.sweep(at(229)), []);
    assert_eq!(uploads.sweep(at(230)), [key(1)]);
    // The end of a commit from an earlier generation has no effect.
    uploads.begin(key(1), of_size(None), at(230)).unwrap();
    uploads.commit_begins(&key(1)).unwrap();
    uploads.commit_ended(&key(1), two, at(230));
    assert_eq!(uploads.sweep(at(300)), []);
}

/// An uploaded value is stored once per term, and one set can use it once; a new term stores it again.
#[test]
fn upload_value_is_stored_once_per_term_and_used_once() {
    let mut uploads = begun(None);
    assert_eq!(
        uploads.finish(&key(1), value(10), term(1), &free(), at(0)),
        Ok(FinishOutcome::Reply(UploadReply { received: 0, stored: false }))
    );
    send_and_write(&mut uploads, 0, 10);
    let Ok(FinishOutcome::Store(generation)) = uploads.finish(&key(1), value(10), term(1), &free(), at(0))
    else {
        panic!()
    };
    assert!(!uploads.take_stored(&key(1), value(10), term(1)));
    assert_eq!(code(uploads.chunk(&key(1), 10, 1, at(0))), ErrorCode::BadRequest);
    assert!(uploads.stored(&key(1), generation, true, at(0)));
    let stored = Ok(FinishOutcome::Reply(UploadReply { received: 10, stored: true }));
    assert_eq!(uploads.finish(&key(1), value(10), term(1), &free(), at(0)), stored);
    // After a new claim, the object of an earlier term may be collected.
    assert!(!uploads.take_stored(&key(1), value(10), term(2)));
    assert_eq!(
        uploads.finish(&key(1), value(10), term(2), &free(), at(0)),
        Ok(FinishOutcome::StoreAgain(generation))
    );
    assert!(uploads.stored(&key(1), generation, true, at(0)));
    let other = UploadedValue { digest: ValueDigest::new(8), ..value(10) };
    assert!(!uploads.take_stored(&key(1), other, term(2)));
    assert!(uploads.take_stored(&key(1), value(10), term(2)));
    assert!(!uploads.take_stored(&key(1), value(10), term(2)));
    assert_eq!(
        uploads.finish(&key(1), value(10), term(2), &free(), at(0)),
        Ok(FinishOutcome::Store(generation))
    );
    assert!(uploads.stored(&key(1), generation, false, at(0)));
    assert!(!uploads.take_stored(&key(1), value(10), term(2)));
}

/// Results that belong to an ended upload do not change a new upload with the same id.
#[test]
fn upload_ignores_results_of_earlier_generation() {
    let mut uploads = begun(None);
    uploads.chunk(&key(1), 0, 10, at(0)).unwrap();
    let write = uploads.write(&key(1)).unwrap();
    uploads.end(&key(1));
    uploads.begin(key(1), of_size(None), at(0)).unwrap();
    assert_eq!(uploads.written(&key(1), write.generation, 10), None);
    assert!(!uploads.stored(&key(1), write.generation, true, at(0)));
    assert_eq!(received(&mut uploads), 0);
}

/// After a failed write, the upload drops its waiting chunks and accepts the same bytes again.
#[test]
fn upload_accepts_same_bytes_after_failed_write() {
    let mut uploads = begun(None);
    uploads.chunk(&key(1), 0, 10, at(0)).unwrap();
    uploads.chunk(&key(1), 10, 10, at(0)).unwrap();
    let write = uploads.write(&key(1)).unwrap();
    uploads.fail(&key(1), write.generation);
    assert_eq!((received(&mut uploads), uploads.write(&key(1))), (0, None));
    assert_eq!(send_and_write(&mut uploads, 0, 10), 10);
}

/// A restart resumes found uploads as far as the total and per-subject limits allow, and further bytes count against
/// the fair share.
#[test]
fn upload_found_at_restart_resumes_within_limits() {
    let mut uploads = UploadTable::new(LIMITS);
    assert!(uploads.resume(key(1), 600, at(5)));
    assert!(!uploads.resume(key(2), 401, at(5)), "more than the largest share of one subject");
    assert!(uploads.resume(key(3), 400, at(5)));
    assert_eq!(uploads.usage(), (2, 1_000), "an upload that was not resumed leaves nothing");
    // The largest number of uploads of one subject.
    assert_eq!((4..=9).map(|number| uploads.resume(key(number), 0, at(5))).filter(|taken| *taken).count(), 3);
    assert!(uploads.resume(of("app.b", 1), 900, at(5)));
    assert!(!uploads.resume(of("app.c", 1), 101, at(5)));
    assert_eq!(received(&mut uploads), 600);
    // It may continue within its share only.
    assert_eq!(code(uploads.begin(key(10), of_size(None), at(5))), ErrorCode::Overloaded);
    assert_eq!(code(uploads.chunk(&key(1), 600, 1, at(5))), ErrorCode::Overloaded);
}

proptest! {
    /// For chunks in any order, repeated or missing, the received count is the length of the contiguous bytes from the
    /// first on. Each byte is written once, at its offset.
    #[test]
    fn upload_chunks_in_any_order_fill_file_without_gap(
        chunks in proptest::collection::vec((0u64..40, 1u64..20, any::<bool>()), 1..60)
    ) {
        let mut uploads = begun(None);
        let (mut sent, mut file) = (BTreeSet::new(), 0u64);
        let mut lengths: BTreeMap<u64, u64> = BTreeMap::new();
        for (offset, length, write_now) in chunks {
            if uploads.chunk(&key(1), offset, length, at(0)).unwrap() == ChunkOutcome::Held {
                let longest = lengths.entry(offset).or_default();
                *longest = length.max(*longest);
            }
            sent.extend(offset..offset + length);
            while write_now && let Some(write) = uploads.write(&key(1)) {
                prop_assert_eq!(write.offset + write.skip, file);
                let length = lengths.remove(&write.offset).unwrap() - write.skip;
                file += length;
                let (reply, known) = uploads.written(&key(1), write.generation, length).unwrap();
                prop_assert_eq!(reply.received, file);
                lengths.retain(|at, _| !known.contains(at));
            }
            if write_now {
                prop_assert_eq!(file, (0..).find(|at| !sent.contains(at)).unwrap());
            }
        }
    }
}

/// Overlapping chunks that wait hold at most one window per upload, and one subject's uploads leave half of the total
/// to others.
#[test]
fn upload_waiting_chunks_hold_at_most_one_window() {
    let mut uploads = UploadTable::new(SpoolLimits { uploads: 300, bytes: u64::MAX });
    let piece = UPLOAD_WINDOW_BYTES / 16;
    let held = |uploads: &mut UploadTable, key: UploadKey| {
        uploads.begin(key.clone(), of_size(None), at(0)).unwrap();
        // None of them is the first, so none can be written.
        (1..200).take_while(|offset| uploads.chunk(&key, *offset, piece, at(0)).is_ok()).count()
    };
    assert_eq!(held(&mut uploads, key(1)), 16);
    assert_eq!(code(uploads.chunk(&key(1), 100, piece, at(0))), ErrorCode::Overloaded);
    // The next bytes are still accepted, because they are written at once.
    assert_eq!(uploads.chunk(&key(1), 0, piece, at(0)), Ok(ChunkOutcome::Held));
    // All uploads of a subject together hold at most half of a few windows, so the other half is left to other
    // subjects.
    let of_subject: usize = (2..10).map(|number| held(&mut uploads, key(number))).sum();
    assert_eq!(of_subject, 15);
    assert_eq!(held(&mut uploads, of("app.b", 1)), 16);
}

/// Chunks that arrive during a write wait within the window of the upload.
#[test]
fn upload_chunks_during_write_wait_within_window() {
    let mut uploads = UploadTable::new(SpoolLimits { uploads: 300, bytes: u64::MAX });
    uploads.begin(key(1), of_size(None), at(0)).unwrap();
    let piece = UPLOAD_WINDOW_BYTES / 16;
    send_and_write(&mut uploads, 0, piece);
    assert_eq!(uploads.chunk(&key(1), piece, piece, at(0)), Ok(ChunkOutcome::Held));
    uploads.write(&key(1)).unwrap();
    // Each chunk ends shortly after the received bytes, and none can be written before the disk has answered.
    let taken = (1..200).filter(|less| uploads.chunk(&key(1), piece - less, piece, at(0)).is_ok()).count();
    assert_eq!(taken, 16);
}

const SUBJECTS: [&str; 4] = ["app.a", "app.b", "app.c", "app.d"];

/// Actions of greedy, failing and hostile callers.
#[derive(Debug, Clone)]
enum Step {
    Begin(Option<u64>),
    Chunk(u64, u64),
    Write,
    Fail,
    Finish,
    End,
    Wait(u64),
    Sweep,
    /// Another process resumes the files.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => proptest::option::of(0..1_200_u64).prop_map(Step::Begin),
        8 => (0..800_u64, 1..600_u64).prop_map(|(offset, length)| Step::Chunk(offset, length)),
        6 => Just(Step::Write),
        1 => Just(Step::Fail),
        1 => Just(Step::Finish),
        2 => Just(Step::End),
        1 => (0..40_u64).prop_map(Step::Wait),
        1 => Just(Step::Sweep),
        1 => Just(Step::Restart),
    ]
}

/// The number of uploads and reserved bytes of one subject.
fn holding(uploads: &UploadTable, subject: &str) -> (u64, u64) {
    let own = uploads.uploads.iter().filter(|(key, _)| key.subject == subject);
    own.fold((0, 0), |(slots, bytes), (_, upload)| (slots + 1, bytes + upload.reserved))
}

proptest! {
    /// After any sequence of actions, a new subject may begin an upload and declare half of the free bytes. A growing
    /// subject stays within half of the capacity that others leave free, and reserved bytes of a small upload are
    /// available.
    #[test]
    fn upload_quota_is_shared_fairly(
        steps in proptest::collection::vec((0..4_usize, 1..5_u128, step()), 1..120)
    ) {
        let (mut uploads, mut now) = (UploadTable::new(LIMITS), 0);
        for (subject, number, step) in steps {
            let key = of(SUBJECTS[subject], number);
            let before: Vec<_> = SUBJECTS.iter().map(|subject| holding(&uploads, subject)).collect();
            match step {
                Step::Begin(size) => drop(uploads.begin(key, of_size(size), at(now))),
                Step::Chunk(offset, length) => {
                    let reserved = uploads.uploads.get(&key).map_or(0, |upload| upload.reserved);
                    let answer = uploads.chunk(&key, offset, length, at(now));
                    let is_full = answer.is_err_and(|error| error.message == too_many_bytes().message);
                    prop_assert!(!is_full || offset + length > reserved);
                }
                Step::Write => {
                    if let Some(write) = uploads.write(&key) {
                        uploads.written(&key, write.generation, 100).unwrap();
                    }
                }
                Step::Fail => {
                    if let Some(write) = uploads.write(&key) {
                        uploads.fail(&key, write.generation);
                    }
                }
                Step::Finish => drop(uploads.finish(&key, UploadedValue { upload: key.upload, ..value(100) }, term(1), &free(), at(now))),
                Step::End => drop(uploads.end(&key)),
                Step::Wait(seconds) => now += seconds,
                Step::Sweep => drop(uploads.sweep(at(now))),
                Step::Restart => {
                    let mut found = UploadTable::new(LIMITS);
                    for (key, upload) in &uploads.uploads {
                        prop_assert!(found.resume(key.clone(), upload.received.min(upload.reserved), at(now)));
                    }
                    uploads = found;
                }
            }
            let holdings: Vec<_> = SUBJECTS.iter().map(|subject| holding(&uploads, subject)).collect();
            let slots: u64 = holdings.iter().map(|held| held.0).sum();
            let bytes: u64 = holdings.iter().map(|held| held.1).sum();
            prop_assert_eq!(uploads.usage(), (slots as usize, bytes));
            prop_assert!(slots <= 10 && bytes <= 2_000);
            for (held, before) in holdings.iter().zip(before) {
                prop_assert!(held.0 <= before.0 || held.0 <= ((10 - (slots - held.0)) / 2).max(1));
                prop_assert!(held.1 <= before.1 || held.1 <= (2_000 - (bytes - held.1)) / 2);
            }
            if slots < 10 {
                let newcomer = of("app.new", 1);
                let size = Some((2_000 - bytes) / 2);
                let params = UploadBegin { tenant: TenantId::new(2), ..of_size(size) };
                prop_assert!(uploads.begin(newcomer.clone(), params, at(now)).is_ok());
                prop_assert!(uploads.end(&newcomer));
            }
        }
    }
}

/// The last eighth of the uploads is for tenants below their share, however many subjects another tenant uses; and an
/// operator's limit applies.
#[test]
fn upload_reserve_is_kept_for_other_tenants() {
    let mut uploads = UploadTable::new(SpoolLimits { uploads: 16, bytes: u64::MAX });
    let mut begin = |tenant, subject: String, max_of_tenant| {
        let params = UploadBegin { tenant: TenantId::new(tenant), max_of_tenant, ..UploadBegin::default() };
        uploads.begin(of(&subject, 1), params, Duration::ZERO).is_ok()
    };
    let greedy = (0..20).filter(|number| begin(1, format!("greedy{number}"), None)).count();
    assert_eq!(greedy, 14);
    assert!(!begin(2, "limited".to_owned(), Some(0)));
    assert!(begin(2, "polite".to_owned(), Some(1)) && !begin(2, "other".to_owned(), Some(1)));
    assert!(uploads.end(&of("greedy0", 1)));
    assert_eq!(uploads.by_tenant()[&TenantId::new(1)], 13);
}
