use super::*;

/// Uploads full segments over a link with this rate and latency, and returns the sizes.
fn upload_full(rate: &mut UploadRate, link: u64, latency: Duration, count: usize) -> Vec<u64> {
    let upload = |_| {
        let bytes = rate.segment_bytes();
        rate.uploaded(bytes, latency + Duration::from_micros(bytes * 1_000_000 / link));
        bytes
    };
    (0..count).map(upload).collect()
}

/// On a slow link, segments reach four seconds of its rate and never exceed it.
#[test]
fn segment_size_follows_the_link() {
    for link in [40_000, 200 << 10, 1 << 20] {
        let mut rate = UploadRate::new();
        let sizes = upload_full(&mut rate, link, Duration::from_millis(50), 12);
        let most = sizes.iter().skip(1).copied().max().unwrap();
        assert!(most <= link * 4, "{link}: {sizes:?}");
        assert!(*sizes.last().unwrap() >= link * 36 / 10, "{link}: {sizes:?}");
    }
}

/// On a fast link, segments grow to their limit within a few uploads, by at most four times each.
#[test]
fn segment_size_grows_to_the_limit_on_a_fast_link() {
    let mut rate = UploadRate::new();
    let sizes = upload_full(&mut rate, 1 << 30, Duration::from_millis(20), 6);
    assert_eq!(sizes, [256 << 10, 1 << 20, 4 << 20, 16 << 20, 24 << 20, 24 << 20]);
}

/// Small segments with a long latency leave the estimate as it is, and large ones lower it.
#[test]
fn small_segments_never_lower_the_estimate() {
    let mut rate = UploadRate::new();
    upload_full(&mut rate, 1 << 20, Duration::ZERO, 6);
    let before = rate.clone();
    rate.uploaded(500, Duration::from_secs(3));
    assert_eq!(rate, before);
    rate.uploaded(4 << 20, Duration::from_secs(40));
    assert!(rate.segment_bytes() < before.segment_bytes() / 9);
}

/// The time limit is a few times the expected duration, and time-outs make it longer: a link that became slow still
/// carries the segment.
#[test]
fn create_timeout_grows_with_each_timeout() {
    let mut rate = UploadRate::new();
    upload_full(&mut rate, 1 << 20, Duration::ZERO, 6);
    let bytes = rate.segment_bytes();
    assert_eq!(rate.create_timeout(bytes), Duration::from_secs(26));
    assert_eq!(rate.create_timeout(0), Duration::from_secs(10));
    let mut last = rate.create_timeout(bytes);
    for _ in 0..3 {
        rate.timed_out();
        assert!(rate.create_timeout(bytes) > last);
        last = rate.create_timeout(bytes);
    }
    for _ in 0..100 {
        rate.timed_out();
    }
    assert_eq!(rate.segment_bytes(), MIN_SEGMENT_BYTES);
}
