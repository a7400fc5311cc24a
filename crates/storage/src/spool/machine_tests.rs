use std::collections::BTreeSet;

use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{ErrorCode, ValueDigest};
use proptest::prelude::*;

use super::*;

/// One subject may have five uploads and 1,000 bytes, and 200 bytes of each are kept for it.
const LIMITS: SpoolLimits = SpoolLimits { uploads: 10, bytes: 2_000 };

fn key(number: u128) -> UploadKey {
    of("app.a", number)
}

fn of(subject: &str, number: u128) -> UploadKey {
    UploadKey { subject: subject.to_owned(), upload: UploadId::new(number.into()) }
}

fn of_size(size: Option<u64>) -> Beginning {
    Beginning { size, ..Beginning::default() }
}

fn free() -> UploadRoom {
    UploadRoom::default()
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
    uploads.begin(key(1), of_size(size), at(0)).unwrap();
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
    uploads.begin(key(1), of_size(None), at(0)).unwrap().received
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
    assert_eq!(code(uploads.finish(&key(2), value(1), term(1), &free(), at(0))), ErrorCode::UnknownUpload);
    assert_eq!(code(uploads.begin(key(2), of_size(Some(1_001)), at(0))), ErrorCode::TooLarge);
    bring(&mut uploads, 0, 100);
    assert_eq!(code(uploads.finish(&key(1), value(99), term(1), &free(), at(0))), ErrorCode::BadRequest);
    assert_eq!(uploads.finish(&key(1), value(100), term(1), &free(), at(0)), Ok(Finishing::Begin(Life(1))));
    let other = UploadedValue { digest: ValueDigest::new(8), ..value(100) };
    assert_eq!(code(uploads.finish(&key(1), other, term(1), &free(), at(0))), ErrorCode::BadRequest);
}

#[test]
fn a_chunk_far_ahead_of_what_is_here_says_that_something_was_lost() {
    let mut uploads = Uploads::new(SpoolLimits { uploads: 1, bytes: u64::MAX / 2 });
    uploads.begin(key(1), of_size(None), at(0)).unwrap();
    assert_eq!(uploads.chunk(&key(1), UPLOAD_WINDOW_BYTES - 1, 1, at(0)), Ok(Taken::Held));
    assert_eq!(code(uploads.chunk(&key(1), UPLOAD_WINDOW_BYTES, 1, at(0))), ErrorCode::UnknownUpload);
}

#[test]
fn uploads_and_their_bytes_are_bounded_and_room_comes_back() {
    let mut uploads = Uploads::new(LIMITS);
    for number in 1..=5 {
        uploads.begin(key(number), of_size(None), at(0)).unwrap();
    }
    let refused = uploads.begin(key(6), of_size(None), at(0)).unwrap_err();
    assert_eq!((refused.code, refused.retry_after_ms), (ErrorCode::Overloaded, Some(RETRY_AFTER_MS)));
    // One that is known is no new one, and others are none of the subject's.
    uploads.begin(key(5), of_size(None), at(0)).unwrap();
    uploads.begin(of("app.b", 1), of_size(Some(100)), at(0)).unwrap();
    // Of 1,900 bytes it may have 950.
    assert_eq!(uploads.chunk(&key(1), 0, 600, at(0)), Ok(Taken::Held));
    assert_eq!(code(uploads.chunk(&key(2), 0, 351, at(0))), ErrorCode::Overloaded);
    assert_eq!(uploads.chunk(&key(2), 0, 350, at(0)), Ok(Taken::Held));
    assert_eq!(code(uploads.chunk(&key(3), 0, 1, at(0))), ErrorCode::Overloaded);
    assert_eq!(uploads.figures(), (6, 1_050));
    assert!(uploads.end(&key(2)));
    assert!(!uploads.end(&key(2)));
    assert_eq!(uploads.chunk(&key(3), 0, 350, at(0)), Ok(Taken::Held));
    // Of nine slots that app.b leaves it may have four.
    assert_eq!(code(uploads.begin(key(6), of_size(None), at(0))), ErrorCode::Overloaded);
    uploads.end(&key(4));
    uploads.begin(key(6), of_size(None), at(0)).unwrap();
    for number in [1, 3, 5, 6] {
        uploads.end(&key(number));
    }
    uploads.end(&of("app.b", 1));
    assert_eq!(uploads.figures(), (0, 0));
}

#[test]
fn who_announces_much_takes_nobodys_room_and_what_was_begun_small_is_not_refused_halfway() {
    let mut uploads = Uploads::new(LIMITS);
    assert_eq!(code(uploads.begin(key(1), of_size(Some(1_001)), at(0))), ErrorCode::TooLarge);
    uploads.begin(key(1), of_size(Some(1_000)), at(0)).unwrap();
    uploads.begin(key(2), of_size(Some(800)), at(0)).unwrap();
    uploads.begin(key(3), of_size(Some(200)), at(0)).unwrap();
    uploads.begin(key(4), of_size(Some(200)), at(0)).unwrap();
    assert_eq!(uploads.figures(), (4, 800), "of each the first 200 bytes");
    uploads.begin(of("app.b", 1), of_size(Some(600)), at(0)).unwrap();
    // What does not fit now is refused now.
    assert_eq!(code(uploads.begin(of("app.c", 1), of_size(Some(501)), at(0))), ErrorCode::Overloaded);
    assert_eq!(uploads.chunk(&of("app.b", 1), 0, 600, at(0)), Ok(Taken::Held));
    // Nothing is left beyond what is kept, and that is there.
    assert_eq!(code(uploads.chunk(&key(1), 0, 201, at(0))), ErrorCode::Overloaded);
    for number in 1..=4 {
        assert_eq!(uploads.chunk(&key(number), 0, 200, at(0)), Ok(Taken::Held));
    }
}

#[test]
fn what_the_subject_will_not_take_is_refused_when_it_is_announced_when_it_comes_and_before_it_goes_on() {
    let room = |most| {
        let config = SubjectConfig { max_msg_size: Some(most), ..SubjectConfig::default() };
        let mut memory = crate::plan::tests::InMemory::default();
        memory.state.config = config;
        UploadRoom::of(&memory, None).unwrap()
    };
    let limit = |error: ErrorReply| (error.code, error.limit.unwrap());
    let met = (ErrorCode::TooLarge, "max_msg_size".to_owned());
    let mut uploads = Uploads::new(LIMITS);
    let beginning = |size, most| Beginning { size, room: room(most), ..Beginning::default() };
    assert_eq!(limit(uploads.begin(key(1), beginning(Some(101), 100), at(0)).unwrap_err()), met);
    assert_eq!(uploads.figures(), (0, 0));
    uploads.begin(key(1), beginning(None, 100), at(0)).unwrap();
    assert_eq!(limit(uploads.chunk(&key(1), 0, 101, at(0)).unwrap_err()), met);
    assert_eq!(bring(&mut uploads, 0, 100), 100);
    // The owner has lowered the limit.
    assert_eq!(limit(uploads.begin(key(1), beginning(None, 99), at(0)).unwrap_err()), met);
    assert_eq!(limit(uploads.finish(&key(1), value(100), term(1), &room(99), at(0)).unwrap_err()), met);
    assert!(matches!(
        uploads.finish(&key(1), value(100), term(1), &room(100), at(0)),
        Ok(Finishing::Begin(_))
    ));
}

#[test]
fn silence_ends_an_upload_and_a_word_keeps_it() {
    let mut uploads = begun(None);
    uploads.begin(key(2), of_size(None), at(10)).unwrap();
    assert_eq!(uploads.chunk(&key(2), 0, 1_000, at(10)), Ok(Taken::Held));
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
    let Ok(Finishing::Begin(life)) = uploads.finish(&key(1), value(10), term(1), &free(), at(100)) else {
        panic!()
    };
    assert_eq!(uploads.sweep(at(200)), []);
    assert!(uploads.stored(&key(1), life, true, at(200)));
    assert_eq!(uploads.sweep(at(229)), []);
    assert_eq!(uploads.sweep(at(230)), [key(1)]);
    assert!(!uploads.stored(&key(1), life, true, at(230)));
}

#[test]
fn an_upload_that_a_set_would_have_is_not_swept_before_the_set_is_answered() {
    let mut uploads = begun(None);
    let (one, two) = (uploads.commit_begins(&key(1)).unwrap(), uploads.commit_begins(&key(1)).unwrap());
    assert_eq!(uploads.commit_begins(&key(2)), None);
    assert_eq!(uploads.sweep(at(100)), []);
    uploads.commit_ended(&key(1), one, at(100));
    assert_eq!((uploads.sweep(at(200)), uploads.next_sweep()), (vec![], None));
    uploads.commit_ended(&key(1), two, at(200));
    assert_eq!(uploads.sweep(at(229)), []);
    assert_eq!(uploads.sweep(at(230)), [key(1)]);
    // Of another life it knows nothing.
    uploads.begin(key(1), of_size(None), at(230)).unwrap();
    uploads.commit_begins(&key(1)).unwrap();
    uploads.commit_ended(&key(1), two, at(230));
    assert_eq!(uploads.sweep(at(300)), []);
}

#[test]
fn a_value_is_stored_once_for_a_term_and_used_once() {
    let mut uploads = begun(None);
    assert_eq!(
        uploads.finish(&key(1), value(10), term(1), &free(), at(0)),
        Ok(Finishing::Answer(UploadReply { received: 0, stored: false }))
    );
    bring(&mut uploads, 0, 10);
    let Ok(Finishing::Begin(life)) = uploads.finish(&key(1), value(10), term(1), &free(), at(0)) else {
        panic!()
    };
    assert!(!uploads.use_up(&key(1), value(10), term(1)));
    assert_eq!(code(uploads.chunk(&key(1), 10, 1, at(0))), ErrorCode::BadRequest);
    assert!(uploads.stored(&key(1), life, true, at(0)));
    let there = Ok(Finishing::Answer(UploadReply { received: 10, stored: true }));
    assert_eq!(uploads.finish(&key(1), value(10), term(1), &free(), at(0)), there);
    // The subject was claimed anew: what lies there under an earlier term may be taken for garbage.
    assert!(!uploads.use_up(&key(1), value(10), term(2)));
    assert_eq!(uploads.finish(&key(1), value(10), term(2), &free(), at(0)), Ok(Finishing::BeginAnew(life)));
    assert!(uploads.stored(&key(1), life, true, at(0)));
    let other = UploadedValue { digest: ValueDigest::new(8), ..value(10) };
    assert!(!uploads.use_up(&key(1), other, term(2)));
    assert!(uploads.use_up(&key(1), value(10), term(2)));
    assert!(!uploads.use_up(&key(1), value(10), term(2)));
    assert_eq!(uploads.finish(&key(1), value(10), term(2), &free(), at(0)), Ok(Finishing::Begin(life)));
    assert!(uploads.stored(&key(1), life, false, at(0)));
    assert!(!uploads.use_up(&key(1), value(10), term(2)));
}

#[test]
fn what_an_earlier_life_was_about_does_not_touch_a_later_one() {
    let mut uploads = begun(None);
    uploads.chunk(&key(1), 0, 10, at(0)).unwrap();
    let write = uploads.write(&key(1)).unwrap();
    uploads.end(&key(1));
    uploads.begin(key(1), of_size(None), at(0)).unwrap();
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
fn what_a_restart_finds_is_taken_up_as_far_as_there_is_room_and_its_subject_may_have_it() {
    let mut uploads = Uploads::new(LIMITS);
    assert!(uploads.take_up(key(1), 600, at(5)));
    assert!(!uploads.take_up(key(2), 401, at(5)), "more than one subject ever has");
    assert!(uploads.take_up(key(3), 400, at(5)));
    assert_eq!(uploads.figures(), (2, 1_000), "what was not taken up left nothing behind");
    // As many as one subject ever has.
    assert_eq!(
        (4..=9).map(|number| uploads.take_up(key(number), 0, at(5))).filter(|taken| *taken).count(),
        3
    );
    assert!(uploads.take_up(of("app.b", 1), 900, at(5)));
    assert!(!uploads.take_up(of("app.c", 1), 101, at(5)));
    assert_eq!(received(&mut uploads), 600);
    // It may go on within its share only.
    assert_eq!(code(uploads.begin(key(10), of_size(None), at(5))), ErrorCode::Overloaded);
    assert_eq!(code(uploads.chunk(&key(1), 600, 1, at(5))), ErrorCode::Overloaded);
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
    let held = |uploads: &mut Uploads, key: UploadKey| {
        uploads.begin(key.clone(), of_size(None), at(0)).unwrap();
        // None of them is the first, so none can be written.
        (1..200).take_while(|offset| uploads.chunk(&key, *offset, piece, at(0)).is_ok()).count()
    };
    assert_eq!(held(&mut uploads, key(1)), 16);
    assert_eq!(code(uploads.chunk(&key(1), 100, piece, at(0))), ErrorCode::Overloaded);
    // The next bytes are taken all the same: they are written at once.
    assert_eq!(uploads.chunk(&key(1), 0, piece, at(0)), Ok(Taken::Held));
    // And all uploads of a subject together hold no more than half of a few windows, which leaves the other half to others.
    let of_subject: usize = (2..10).map(|number| held(&mut uploads, key(number))).sum();
    assert_eq!(of_subject, 15);
    assert_eq!(held(&mut uploads, of("app.b", 1)), 16);
}

#[test]
fn while_a_piece_is_written_what_comes_behind_it_waits_within_the_window() {
    let mut uploads = Uploads::new(SpoolLimits { uploads: 300, bytes: u64::MAX });
    uploads.begin(key(1), of_size(None), at(0)).unwrap();
    let piece = UPLOAD_WINDOW_BYTES / 16;
    bring(&mut uploads, 0, piece);
    assert_eq!(uploads.chunk(&key(1), piece, piece, at(0)), Ok(Taken::Held));
    uploads.write(&key(1)).unwrap();
    // Each ends a little behind what is there, and none can be written before the disk has answered.
    let taken = (1..200).filter(|less| uploads.chunk(&key(1), piece - less, piece, at(0)).is_ok()).count();
    assert_eq!(taken, 16);
}

const SUBJECTS: [&str; 4] = ["app.a", "app.b", "app.c", "app.d"];

/// What greedy, unlucky and hostile callers do.
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
    /// Another process finds the files.
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

/// What one subject holds.
fn holding(uploads: &Uploads, subject: &str) -> (u64, u64) {
    let own = uploads.uploads.iter().filter(|(key, _)| key.subject == subject);
    own.fold((0, 0), |(slots, bytes), (_, upload)| (slots + 1, bytes + upload.reserved))
}

proptest! {
    /// Whatever anybody does, nobody is shut out: a subject that has nothing may begin, and bring half of what is left;
    /// who grows stays within half of what the others leave; and what was promised to a small upload is there.
    #[test]
    fn nobody_shuts_anybody_out(
        steps in proptest::collection::vec((0..4_usize, 1..5_u128, step()), 1..120)
    ) {
        let (mut uploads, mut now) = (Uploads::new(LIMITS), 0);
        for (subject, number, step) in steps {
            let key = of(SUBJECTS[subject], number);
            let before: Vec<_> = SUBJECTS.iter().map(|subject| holding(&uploads, subject)).collect();
            match step {
                Step::Begin(size) => drop(uploads.begin(key, of_size(size), at(now))),
                Step::Chunk(offset, length) => {
                    let promised = uploads.uploads.get(&key).map_or(0, |upload| upload.reserved);
                    let answer = uploads.chunk(&key, offset, length, at(now));
                    let is_full = answer.is_err_and(|error| error.message == no_room().message);
                    prop_assert!(!is_full || offset + length > promised);
                }
                Step::Write => {
                    if let Some(write) = uploads.write(&key) {
                        uploads.written(&key, write.life, 100).unwrap();
                    }
                }
                Step::Fail => {
                    if let Some(write) = uploads.write(&key) {
                        uploads.fail(&key, write.life);
                    }
                }
                Step::Finish => drop(uploads.finish(&key, UploadedValue { upload: key.upload, ..value(100) }, term(1), &free(), at(now))),
                Step::End => drop(uploads.end(&key)),
                Step::Wait(seconds) => now += seconds,
                Step::Sweep => drop(uploads.sweep(at(now))),
                Step::Restart => {
                    let mut found = Uploads::new(LIMITS);
                    for (key, upload) in &uploads.uploads {
                        prop_assert!(found.take_up(key.clone(), upload.received.min(upload.reserved), at(now)));
                    }
                    uploads = found;
                }
            }
            let holdings: Vec<_> = SUBJECTS.iter().map(|subject| holding(&uploads, subject)).collect();
            let slots: u64 = holdings.iter().map(|held| held.0).sum();
            let bytes: u64 = holdings.iter().map(|held| held.1).sum();
            prop_assert_eq!(uploads.figures(), (slots as usize, bytes));
            prop_assert!(slots <= 10 && bytes <= 2_000);
            for (held, before) in holdings.iter().zip(before) {
                prop_assert!(held.0 <= before.0 || held.0 <= ((10 - (slots - held.0)) / 2).max(1));
                prop_assert!(held.1 <= before.1 || held.1 <= (2_000 - (bytes - held.1)) / 2);
            }
            if slots < 10 {
                let newcomer = of("app.new", 1);
                prop_assert!(uploads.begin(newcomer.clone(), of_size(Some((2_000 - bytes) / 2)), at(now)).is_ok());
                prop_assert!(uploads.end(&newcomer));
            }
        }
    }
}
