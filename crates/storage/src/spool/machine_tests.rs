use std::collections::BTreeSet;

use dormouse_protocol::{ErrorCode, ValueDigest};
use proptest::prelude::*;

use super::*;

const LIMITS: SpoolLimits = SpoolLimits { uploads: 3, bytes: 1_000 };

fn key(number: u128) -> UploadKey {
    UploadKey { subject: "app.a".to_owned(), upload: UploadId::new(number.into()) }
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

fn begun(size: Option<u64>) -> Uploads {
    let mut uploads = Uploads::new(LIMITS);
    uploads.begin(key(1), size, at(0)).unwrap();
    uploads
}

/// Brings a chunk and writes all that can be written.
fn bring(uploads: &mut Uploads, offset: u64, length: u64) -> u64 {
    let _ = uploads.chunk(&key(1), offset, length, at(0)).unwrap();
    write_all(uploads, offset, length)
}

fn write_all(uploads: &mut Uploads, offset: u64, length: u64) -> u64 {
    while let Some(write) = uploads.write(&key(1)) {
        // The test's chunks have one length each.
        assert_eq!((write.offset, write.skip), (offset, 0));
        uploads.written(&key(1), write.life, length).unwrap();
    }
    received(uploads)
}

fn received(uploads: &mut Uploads) -> u64 {
    uploads.begin(key(1), None, at(0)).unwrap().received
}

fn code<T: std::fmt::Debug>(result: Result<T, ErrorReply>) -> ErrorCode {
    result.unwrap_err().code
}

#[test]
fn chunks_count_once_and_only_without_a_hole() {
    let mut uploads = begun(None);
    assert_eq!(bring(&mut uploads, 0, 10), 10);
    // Again.
    let known = uploads.chunk(&key(1), 0, 10, at(0)).unwrap();
    assert_eq!(known, Taken::Known(UploadReply { received: 10, stored: false }));
    // Ahead: it waits.
    assert_eq!(uploads.chunk(&key(1), 20, 10, at(0)), Ok(Taken::Held));
    assert_eq!(uploads.write(&key(1)), None);
    // The one between, which overlaps both.
    assert_eq!(uploads.chunk(&key(1), 5, 18, at(0)), Ok(Taken::Held));
    let write = uploads.write(&key(1)).unwrap();
    assert_eq!((write.offset, write.skip), (5, 5));
    // One write at a time.
    assert_eq!(uploads.write(&key(1)), None);
    uploads.written(&key(1), write.life, 13).unwrap();
    let write = uploads.write(&key(1)).unwrap();
    assert_eq!((write.offset, write.skip), (20, 3));
    let (reply, known) = uploads.written(&key(1), write.life, 7).unwrap();
    assert_eq!((reply.received, known), (30, vec![]));
}

#[test]
fn what_was_brought_twice_at_once_is_known_once_it_is_written() {
    let mut uploads = begun(None);
    uploads.chunk(&key(1), 0, 10, at(0)).unwrap();
    let write = uploads.write(&key(1)).unwrap();
    assert_eq!(uploads.chunk(&key(1), 0, 10, at(0)), Ok(Taken::Held));
    assert_eq!(uploads.written(&key(1), write.life, 10).unwrap().1, [0]);
    assert_eq!(uploads.write(&key(1)), None);
}

#[test]
fn nonsense_is_refused() {
    let mut uploads = begun(Some(100));
    assert_eq!(code(uploads.chunk(&key(1), 0, 0, at(0))), ErrorCode::BadRequest);
    assert_eq!(code(uploads.chunk(&key(1), u64::MAX, 2, at(0))), ErrorCode::BadRequest);
    assert_eq!(code(uploads.chunk(&key(1), 95, 10, at(0))), ErrorCode::BadRequest);
    assert_eq!(code(uploads.chunk(&key(1), 0, 1_001, at(0))), ErrorCode::TooLarge);
    assert_eq!(code(uploads.chunk(&key(2), 0, 10, at(0))), ErrorCode::UnknownUpload);
    assert_eq!(code(uploads.finish(&key(2), value(1), term(1), at(0))), ErrorCode::UnknownUpload);
    assert_eq!(code(uploads.begin(key(2), Some(1_001), at(0))), ErrorCode::TooLarge);
    bring(&mut uploads, 0, 100);
    assert_eq!(code(uploads.finish(&key(1), value(99), term(1), at(0))), ErrorCode::BadRequest);
    assert_eq!(uploads.finish(&key(1), value(100), term(1), at(0)), Ok(Finishing::Begin(Life(1))));
    let other = UploadedValue { digest: ValueDigest::new(8), ..value(100) };
    assert_eq!(code(uploads.finish(&key(1), other, term(1), at(0))), ErrorCode::BadRequest);
}

#[test]
fn a_chunk_far_ahead_of_what_is_here_says_that_something_was_lost() {
    let mut uploads = Uploads::new(SpoolLimits { uploads: 1, bytes: u64::MAX / 2 });
    uploads.begin(key(1), None, at(0)).unwrap();
    assert_eq!(uploads.chunk(&key(1), UPLOAD_WINDOW_BYTES - 1, 1, at(0)), Ok(Taken::Held));
    assert_eq!(code(uploads.chunk(&key(1), UPLOAD_WINDOW_BYTES, 1, at(0))), ErrorCode::UnknownUpload);
}

#[test]
fn uploads_and_their_bytes_are_bounded_and_room_comes_back() {
    let mut uploads = Uploads::new(LIMITS);
    uploads.begin(key(1), Some(600), at(0)).unwrap();
    assert_eq!(code(uploads.begin(key(2), Some(401), at(0))), ErrorCode::Overloaded);
    uploads.begin(key(2), Some(400), at(0)).unwrap();
    uploads.begin(key(3), None, at(0)).unwrap();
    let refused = uploads.begin(key(4), None, at(0)).unwrap_err();
    assert_eq!((refused.code, refused.retry_after_ms), (ErrorCode::Overloaded, Some(RETRY_AFTER_MS)));
    // One that is known is no new one.
    uploads.begin(key(3), None, at(0)).unwrap();
    assert_eq!(code(uploads.chunk(&key(3), 0, 1, at(0))), ErrorCode::Overloaded);
    // What was announced needs no further room.
    assert_eq!(uploads.chunk(&key(1), 0, 600, at(0)), Ok(Taken::Held));
    assert_eq!(uploads.figures(), (3, 1_000));
    assert!(uploads.end(&key(2)));
    assert!(!uploads.end(&key(2)));
    assert_eq!(uploads.chunk(&key(3), 0, 400, at(0)), Ok(Taken::Held));
    uploads.end(&key(1));
    uploads.end(&key(3));
    assert_eq!(uploads.figures(), (0, 0));
}

#[test]
fn silence_ends_an_upload_and_a_word_keeps_it() {
    let mut uploads = begun(None);
    uploads.begin(key(2), Some(1_000), at(10)).unwrap();
    assert_eq!(uploads.next_sweep(), Some(at(30)));
    assert_eq!(uploads.sweep(at(29)), []);
    // It finds no room, and is not heard.
    assert_eq!(code(uploads.chunk(&key(1), 0, 1, at(29))), ErrorCode::Overloaded);
    assert_eq!(uploads.sweep(at(30)), [key(1)]);
    assert_eq!(uploads.chunk(&key(2), 10, 1, at(39)), Ok(Taken::Held));
    assert_eq!(uploads.sweep(at(68)), []);
    assert_eq!(uploads.sweep(at(69)), [key(2)]);
    assert_eq!((uploads.next_sweep(), uploads.figures()), (None, (0, 0)));
}

#[test]
fn an_upload_at_work_is_not_swept() {
    let mut uploads = begun(None);
    uploads.chunk(&key(1), 0, 10, at(0)).unwrap();
    let write = uploads.write(&key(1)).unwrap();
    assert_eq!(uploads.sweep(at(100)), []);
    uploads.written(&key(1), write.life, 10).unwrap();
    let Ok(Finishing::Begin(life)) = uploads.finish(&key(1), value(10), term(1), at(100)) else { panic!() };
    assert_eq!(uploads.sweep(at(200)), []);
    assert!(uploads.stored(&key(1), life, true, at(200)));
    assert_eq!(uploads.sweep(at(229)), []);
    assert_eq!(uploads.sweep(at(230)), [key(1)]);
    assert!(!uploads.stored(&key(1), life, true, at(230)));
}

#[test]
fn a_value_is_stored_once_for_a_term_and_used_once() {
    let mut uploads = begun(None);
    assert_eq!(
        uploads.finish(&key(1), value(10), term(1), at(0)),
        Ok(Finishing::Answer(UploadReply { received: 0, stored: false }))
    );
    bring(&mut uploads, 0, 10);
    let Ok(Finishing::Begin(life)) = uploads.finish(&key(1), value(10), term(1), at(0)) else { panic!() };
    assert!(!uploads.use_up(&key(1), value(10), term(1)));
    assert_eq!(code(uploads.chunk(&key(1), 10, 1, at(0))), ErrorCode::BadRequest);
    assert!(uploads.stored(&key(1), life, true, at(0)));
    let there = Ok(Finishing::Answer(UploadReply { received: 10, stored: true }));
    assert_eq!(uploads.finish(&key(1), value(10), term(1), at(0)), there);
    // The subject was claimed anew: what lies there under an earlier term may be taken for garbage.
    assert!(!uploads.use_up(&key(1), value(10), term(2)));
    assert_eq!(uploads.finish(&key(1), value(10), term(2), at(0)), Ok(Finishing::BeginAnew(life)));
    assert!(uploads.stored(&key(1), life, true, at(0)));
    let other = UploadedValue { digest: ValueDigest::new(8), ..value(10) };
    assert!(!uploads.use_up(&key(1), other, term(2)));
    assert!(uploads.use_up(&key(1), value(10), term(2)));
    assert!(!uploads.use_up(&key(1), value(10), term(2)));
    assert_eq!(uploads.finish(&key(1), value(10), term(2), at(0)), Ok(Finishing::Begin(life)));
    assert!(uploads.stored(&key(1), life, false, at(0)));
    assert!(!uploads.use_up(&key(1), value(10), term(2)));
}

#[test]
fn what_an_earlier_life_was_about_does_not_touch_a_later_one() {
    let mut uploads = begun(None);
    uploads.chunk(&key(1), 0, 10, at(0)).unwrap();
    let write = uploads.write(&key(1)).unwrap();
    uploads.end(&key(1));
    uploads.begin(key(1), None, at(0)).unwrap();
    assert_eq!(uploads.written(&key(1), write.life, 10), None);
    assert!(!uploads.stored(&key(1), write.life, true, at(0)));
    assert_eq!(received(&mut uploads), 0);
}

#[test]
fn after_a_write_that_failed_the_same_bytes_are_taken_again() {
    let mut uploads = begun(None);
    uploads.chunk(&key(1), 0, 10, at(0)).unwrap();
    uploads.chunk(&key(1), 10, 10, at(0)).unwrap();
    let write = uploads.write(&key(1)).unwrap();
    uploads.fail(&key(1), write.life);
    assert_eq!((received(&mut uploads), uploads.write(&key(1))), (0, None));
    assert_eq!(bring(&mut uploads, 0, 10), 10);
}

#[test]
fn what_a_restart_finds_is_taken_up_as_far_as_there_is_room() {
    let mut uploads = Uploads::new(LIMITS);
    assert!(uploads.take_up(key(1), 600, at(5)));
    assert!(!uploads.take_up(key(2), 401, at(5)));
    assert!(uploads.take_up(key(3), 400, at(5)));
    assert!(uploads.take_up(key(4), 0, at(5)));
    assert!(!uploads.take_up(key(5), 0, at(5)));
    assert_eq!(received(&mut uploads), 600);
}

proptest! {
    /// Whatever is brought in whatever order, twice or not at all: what counts is exactly what is there from the first
    /// byte on, and each byte is written once, at its place.
    #[test]
    fn any_order_of_any_chunks_fills_the_file_without_a_hole(
        chunks in proptest::collection::vec((0u64..40, 1u64..20, any::<bool>()), 1..60)
    ) {
        let mut uploads = begun(None);
        let (mut brought, mut file) = (BTreeSet::new(), 0u64);
        let mut lengths: BTreeMap<u64, u64> = BTreeMap::new();
        for (offset, length, write_now) in chunks {
            if uploads.chunk(&key(1), offset, length, at(0)).unwrap() == Taken::Held {
                let longest = lengths.entry(offset).or_default();
                *longest = length.max(*longest);
            }
            brought.extend(offset..offset + length);
            while write_now && let Some(write) = uploads.write(&key(1)) {
                prop_assert_eq!(write.offset + write.skip, file);
                let length = lengths.remove(&write.offset).unwrap() - write.skip;
                file += length;
                let (reply, known) = uploads.written(&key(1), write.life, length).unwrap();
                prop_assert_eq!(reply.received, file);
                lengths.retain(|at, _| !known.contains(at));
            }
            if write_now {
                prop_assert_eq!(file, (0..).find(|at| !brought.contains(at)).unwrap());
            }
        }
    }
}

#[test]
fn chunks_that_wait_hold_no_more_than_a_window_however_they_overlap() {
    let mut uploads = Uploads::new(SpoolLimits { uploads: 300, bytes: u64::MAX });
    let piece = UPLOAD_WINDOW_BYTES / 16;
    let held = |uploads: &mut Uploads, number| {
        uploads.begin(key(number), None, at(0)).unwrap();
        // None of them is the first, so none can be written.
        (1..200).take_while(|offset| uploads.chunk(&key(number), *offset, piece, at(0)).is_ok()).count()
    };
    assert_eq!(held(&mut uploads, 1), 16);
    assert_eq!(code(uploads.chunk(&key(1), 100, piece, at(0))), ErrorCode::Overloaded);
    // The next bytes are taken all the same: they are written at once.
    assert_eq!(uploads.chunk(&key(1), 0, piece, at(0)), Ok(Taken::Held));
    // And all uploads together hold no more than a few windows.
    let of_others: usize = (2..10).map(|number| held(&mut uploads, number)).sum();
    assert!(of_others <= 3 * 16, "{of_others}");
}
