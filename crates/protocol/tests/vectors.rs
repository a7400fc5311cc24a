//! The exact bytes of every message on the wire, frozen in `vectors/*.json`.
//!
//! Each vector is `{name, type, hex, value}`: `hex` are the bytes, `value` the same as JSON, with byte strings as
//! `{"$bytes": "<hex>"}`. The test checks both directions: our samples encode to these bytes, and these bytes decode
//! to our samples and to `value`. An author of a client in another language can check against the files alone.
//!
//! A vector that must change means that the wire changes: think first, then
//! `DORMOUSE_WRITE_VECTORS=1 cargo test -p dormouse-protocol --test vectors`.

mod diagnostic;
mod samples;

use std::path::{Path, PathBuf};

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

#[test]
fn every_message_has_exactly_these_bytes() {
    for (file, samples) in samples() {
        let path = folder().join(file).with_extension("json");
        let ours = vectors(&samples);
        if std::env::var_os("DORMOUSE_WRITE_VECTORS").is_some() {
            std::fs::write(&path, format!("{ours:#}\n")).unwrap();
        }
        let frozen: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(ours, frozen, "{}: the wire has changed", path.display());
    }
}

#[test]
fn the_frozen_bytes_decode_to_the_samples() {
    for (file, samples) in samples() {
        let frozen = std::fs::read_to_string(folder().join(file).with_extension("json")).unwrap();
        let vectors: Vec<serde_json::Value> = serde_json::from_str(&frozen).unwrap();
        assert_eq!(vectors.len(), samples.len(), "{file}");
        for (vector, sample) in vectors.iter().zip(&samples) {
            let bytes = hex::decode(vector["hex"].as_str().unwrap()).unwrap();
            (sample.decodes_to_itself)(&bytes);
        }
    }
}

#[test]
fn no_vector_file_is_forgotten() {
    let expected: Vec<String> = samples().into_iter().map(|(file, _)| format!("{file}.json")).collect();
    let mut found: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    let mut sorted = expected;
    sorted.sort();
    assert_eq!(found, sorted);
}

#[test]
fn fields_of_the_future_are_ignored_and_missing_ones_defaulted() {
    use dormouse_protocol::data::{GetAllRequest, SetRequest};
    use dormouse_protocol::{decode, encode};
    let newer =
        encode(&serde_json::json!({"v": 1, "sets": [{"key": "k", "shade": "blue"}], "mood": 7})).unwrap();
    let request: SetRequest = decode(&newer).unwrap();
    assert_eq!(request.sets[0].key.as_deref(), Some("k"));
    // A bare map is a request with every field at its default.
    assert_eq!(decode::<GetAllRequest>(&[0x80]).unwrap(), GetAllRequest::default());
}
