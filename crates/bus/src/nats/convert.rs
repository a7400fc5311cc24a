//! Conversion between the messages of the port and of the NATS library.

use async_nats::header::{HeaderName, HeaderValue};
use async_nats::{HeaderMap, Message};
use dormouse_protocol::{Headers, Route};

use crate::{Delivery, Reply};

/// Headers in the library's form; `None` for none. Invalid headers are left out: [`crate::validate`] has rejected them
/// before.
pub(super) fn headers_out(headers: &Headers) -> Option<HeaderMap> {
    if headers.is_empty() {
        return None;
    }
    let mut map = HeaderMap::new();
    for (name, value) in &headers.0 {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            map.append(name, value);
        }
    }
    Some(map)
}

/// The library keeps headers by name. Values of one name keep their order; this function sorts the names.
fn headers_in(map: Option<HeaderMap>) -> Headers {
    let Some(map) = map else { return Headers::default() };
    let mut headers: Vec<(String, String)> = map
        .iter()
        .flat_map(|(name, values)| {
            values.iter().map(move |value| (name.to_string(), value.as_str().to_owned()))
        })
        .collect();
    // A stable sort: values of one name stay in order.
    headers.sort_by(|one, other| one.0.cmp(&other.0));
    Headers(headers)
}

pub(super) fn delivery(message: Message) -> Delivery {
    Delivery {
        route: Route::new(message.subject.as_str()),
        reply_to: message.reply.map(|reply| Route::new(reply.as_str())),
        headers: headers_in(message.headers),
        payload: message.payload,
    }
}

pub(super) fn reply(message: Message) -> Reply {
    Reply { headers: headers_in(message.headers), payload: message.payload }
}
