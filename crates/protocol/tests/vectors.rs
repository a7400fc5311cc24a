//! The exact bytes of every message on the wire, frozen in `vectors/*.json`.
//!
//! Each vector is `{name, type, hex, value}`: `hex` are the bytes, `value` the same as JSON, with byte strings as
//! `{"$bytes": "<hex>"}`. The tests check both directions: the samples encode to these bytes, and these bytes decode to the
//! samples and to `value`. Authors of clients in other languages can test against the files alone.
//!
//! `time_left.json` holds header blocks instead: `{time_left_ms, headers, hex}`.
//!
//! A changed vector is a change of the wire protocol. After review of the change, write the vectors with
//! `DORMOUSE_WRITE_VECTORS=1 cargo test -p dormouse-protocol --test vectors`.

mod diagnostic;
mod samples;

use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_protocol::deadline;
use serde_json::json;

use diagnostic::diagnose;
use samples::{Sample, samples};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

fn vectors(samples: &[Sample]) -> serde_json::Value {
    samples
        .iter()
        .map(|sample| {
            json!({
                "name": sample.name,
                "type": sample.type_name,
                "value": diagnose(&sample.bytes),
                "hex": hex::encode(&sample.bytes),
            })
        })
        .collect()
}

/// The encoded samples match the frozen vectors byte for byte.
#[test]
fn vectors_match_encoded_samples() {
    for (file, samples) in samples() {
        let path = folder().join(file).with_extension("json");
        let encoded = vectors(&samples);
        if std::env::var_os("DORMOUSE_WRITE_VECTORS").is_some() {
            std::fs::write(&path, format!("{encoded:#}\n")).unwrap();
        }
        let frozen: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(encoded, frozen, "{}: the wire format has changed", path.display());
    }
}

/// The frozen bytes decode to the samples.
#[test]
fn vectors_decode_to_samples() {
    for (file, samples) in samples() {
        let frozen = std::fs::read_to_string(folder().join(file).with_extension("json")).unwrap();
        let vectors: Vec<serde_json::Value> = serde_json::from_str(&frozen).unwrap();
        assert_eq!(vectors.len(), samples.len(), "{file}");
        for (vector, sample) in vectors.iter().zip(&samples) {
            let bytes = hex::decode(vector["hex"].as_str().unwrap()).unwrap();
            (sample.check_decode)(&bytes);
        }
    }
}

/// The header block of a request whose caller waits for `left`, as NATS carries it.
fn header_block(left: Duration) -> String {
    let headers = deadline::time_left_headers(left);
    let lines: String = headers.0.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    if lines.is_empty() { lines } else { format!("NATS/1.0\r\n{lines}\r\n") }
}

/// The header with the time left matches the frozen bytes, which `PROTOCOL.md` shows too.
#[test]
fn deadline_header_matches_frozen_bytes() {
    let path = folder().join("time_left.json");
    let vectors: Vec<serde_json::Value> = [2_500, 1, 0, 10_000, 3_600_000]
        .map(|millis| {
            let block = header_block(Duration::from_millis(millis));
            json!({ "time_left_ms": millis, "headers": block, "hex": hex::encode(&block) })
        })
        .into();
    let vectors = serde_json::Value::from(vectors);
    if std::env::var_os("DORMOUSE_WRITE_VECTORS").is_some() {
        std::fs::write(&path, format!("{vectors:#}\n")).unwrap();
    }
    let frozen: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(vectors, frozen, "{}: the wire format has changed", path.display());
    let shown = format!("`{}`", frozen[0]["hex"].as_str().unwrap());
    assert!(include_str!("../../../PROTOCOL.md").contains(&shown), "PROTOCOL.md shows {shown}");
}

/// The vector folder holds exactly the files of the samples.
#[test]
fn vector_files_match_sample_files() {
    let expected: Vec<String> = samples()
        .into_iter()
        .map(|(file, _)| file)
        .chain(["time_left"])
        .map(|file| format!("{file}.json"))
        .collect();
    let mut found: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    let mut sorted = expected;
    sorted.sort();
    assert_eq!(found, sorted);
}

/// The codec ignores unknown fields and uses defaults for missing ones.
#[test]
fn codec_ignores_unknown_fields_and_defaults_missing() {
    use dormouse_protocol::data::{GetAllRequest, SetRequest};
    use dormouse_protocol::{decode, encode};
    let newer =
        encode(&serde_json::json!({"v": 1, "sets": [{"key": "k", "shade": "blue"}], "mood": 7})).unwrap();
    let request: SetRequest = decode(&newer).unwrap();
    assert_eq!(request.sets[0].key.as_deref(), Some("k"));
    // An empty map is a request with every field at its default.
    assert_eq!(decode::<GetAllRequest>(&[0x80]).unwrap(), GetAllRequest::default());
}
