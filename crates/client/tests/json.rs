//! Values as JSON.

mod support;

use dormouse_client::{JsonError, JsonValue};
use dormouse_protocol::data::{GetRequest, SetRequest};
use dormouse_protocol::{Op, decode};
use serde::{Deserialize, Serialize};

use support::{Fleet, at, done, found, message, nothing};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Settings {
    colour: String,
    sizes: Vec<u32>,
}

/// The client writes and reads values as JSON, keeps null and absent apart, and reports invalid JSON.
#[tokio::test(start_paused = true)]
async fn values_are_written_and_read_as_json() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet
        .server("a", |op, payload, _| match op {
            Op::Set => done(payload),
            _ => match decode::<GetRequest>(payload).unwrap().key.as_deref() {
                Some("settings") => {
                    found(message(1, Some("settings"), Some(r#"{"colour":"green","sizes":[1,2]}"#)))
                }
                Some("null") => found(message(2, Some("null"), None)),
                Some("text") => found(message(3, Some("text"), Some("no JSON"))),
                _ => nothing(),
            },
        })
        .await;
    let client = fleet.client().await;
    let (kv, stream) = (client.kv("app.x").unwrap(), client.stream("app.x").unwrap());
    let settings = || Settings { colour: "green".to_owned(), sizes: vec![1, 2] };
    assert_eq!(kv.get_json("settings").await.unwrap(), Some(settings()));
    assert_eq!(kv.get_json::<Settings>("absent").await.unwrap(), None);
    assert_eq!(kv.entry("settings").await.unwrap().unwrap().json::<Settings>().unwrap(), settings());
    // The null value is JSON's `null`, which differs from an absent value.
    assert_eq!(kv.get_json::<Option<Settings>>("null").await.unwrap(), Some(None));
    let wrong = kv.get_json::<Settings>("text").await.unwrap_err();
    assert!(matches!(wrong, JsonError::Json(_)), "{wrong:?}");

    let first = kv.put_json("a", &settings()).unwrap().await.unwrap();
    kv.create_json("b", &1).unwrap().await.unwrap();
    kv.update_json("a", &[1, 2], first.id()).unwrap().await.unwrap();
    stream.publish_json("text").unwrap().await.unwrap();
    let sent: Vec<SetRequest> =
        fleet.arrivals.payloads("a set").iter().map(|sent| decode(sent).unwrap()).collect();
    let values: Vec<_> = sent.iter().map(|request| request.sets[0].value.clone().unwrap()).collect();
    assert_eq!(values, [&br#"{"colour":"green","sizes":[1,2]}"#[..], b"1", b"[1,2]", br#""text""#]);
    assert!(sent[1].sets[0].expect.is_some() && sent[2].sets[0].expect.is_some());
}
