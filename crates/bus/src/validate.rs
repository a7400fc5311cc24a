//! Checks of messages before they reach a transport: both adapters reject the same messages, and no text of a caller
//! can break the framing of a protocol.

use bytes::Bytes;
use dormouse_protocol::{Headers, Route, RoutePattern};

use crate::errors::{PublishError, RequestError};
use crate::messages::Outgoing;

/// Why a message cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsendable {
    TooLarge { size_bytes: usize, limit_bytes: usize },
    Invalid(&'static str),
}

impl Unsendable {
    pub(crate) fn into_request_error(self, route: &Route) -> RequestError {
        match self {
            Self::TooLarge { size_bytes, limit_bytes } => RequestError::TooLarge { size_bytes, limit_bytes },
            Self::Invalid(reason) => RequestError::Invalid { route: route.clone(), reason },
        }
    }

    pub(crate) fn into_publish_error(self, route: &Route) -> PublishError {
        match self {
            Self::TooLarge { size_bytes, limit_bytes } => PublishError::TooLarge { size_bytes, limit_bytes },
            Self::Invalid(reason) => PublishError::Invalid { route: route.clone(), reason },
        }
    }
}

/// Checks whether a message can be sent with the maximum payload `limit_bytes`.
pub(crate) fn message(message: &Outgoing, limit_bytes: usize) -> Result<(), Unsendable> {
    if !is_address(message.route.as_str()) {
        return Err(Unsendable::Invalid("not a route"));
    }
    headers(&message.headers)?;
    let size_bytes = size_bytes(&message.headers, &message.payload);
    if size_bytes > limit_bytes {
        return Err(Unsendable::TooLarge { size_bytes, limit_bytes });
    }
    Ok(())
}

/// Whether `address` is one route: tokens joined by dots, without white space and wildcards.
pub(crate) fn is_address(address: &str) -> bool {
    is_framed(address) && address.split('.').all(|token| !token.is_empty() && token != "*" && token != ">")
}

/// Whether `pattern` can be subscribed to.
pub(crate) fn is_pattern(pattern: &RoutePattern) -> bool {
    let mut tokens = pattern.as_str().split('.').peekable();
    let mut well_formed = is_framed(pattern.as_str());
    while let Some(token) = tokens.next() {
        well_formed &= !token.is_empty() && (token != ">" || tokens.peek().is_none());
    }
    well_formed
}

/// Whether `name` can be the name of a queue group.
pub(crate) fn is_queue(name: &str) -> bool {
    !name.is_empty() && is_framed(name)
}

/// Whether `text` has no character that ends a word or a line of the protocol.
fn is_framed(text: &str) -> bool {
    !text.bytes().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control())
}

fn headers(headers: &Headers) -> Result<(), Unsendable> {
    for (name, value) in &headers.0 {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
            return Err(Unsendable::Invalid("a header's name must be visible ASCII without a colon"));
        }
        if value.bytes().any(|byte| byte == b'\r' || byte == b'\n') {
            return Err(Unsendable::Invalid("a header's value must be one line"));
        }
    }
    Ok(())
}

/// Bytes that count toward the maximum payload: the content, and the headers in the format of NATS.
pub(crate) fn size_bytes(headers: &Headers, payload: &Bytes) -> usize {
    if headers.is_empty() {
        return payload.len();
    }
    let lines: usize = headers.0.iter().map(|(name, value)| name.len() + value.len() + ": \r\n".len()).sum();
    "NATS/1.0\r\n".len() + lines + "\r\n".len() + payload.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A route is invalid if it has a wildcard, an empty token, white space or a control character.
    #[test]
    fn route_with_wildcard_or_empty_token_is_invalid() {
        for good in ["a", "a.b", "$SRV.PING", "a*b.c>d", "é.ü"] {
            assert!(is_address(good), "{good:?}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a\tb", "a\r\nPUB x 0", "*", "a.*", ">", "a.>", "a\0"]
        {
            assert!(!is_address(bad), "{bad:?}");
        }
    }

    /// A pattern allows `>` only as its last token.
    #[test]
    fn pattern_allows_open_wildcard_only_at_end() {
        for (pattern, good) in [
            ("a", true),
            ("*", true),
            (">", true),
            ("a.*.b.>", true),
            ("a.>.b", false),
            ("", false),
            ("a..b", false),
        ] {
            assert_eq!(is_pattern(&RoutePattern::new(pattern)), good, "{pattern:?}");
        }
    }

    /// Headers with line breaks or invalid names are rejected.
    #[test]
    fn headers_with_line_breaks_or_bad_names_are_rejected() {
        let with = |name: &str, value: &str| Outgoing {
            route: Route::new("a"),
            headers: Headers(vec![(name.to_owned(), value.to_owned())]),
            payload: Bytes::new(),
        };
        assert_eq!(message(&with("Name", "a value: with colon"), 100), Ok(()));
        for (name, value) in
            [("", "v"), ("a b", "v"), ("a:", "v"), ("é", "v"), ("n", "v\r\nother: w"), ("n\n", "v")]
        {
            assert!(
                matches!(message(&with(name, value), 100), Err(Unsendable::Invalid(_))),
                "{name:?} {value:?}"
            );
        }
    }

    /// Headers count toward the size of a message.
    #[test]
    fn headers_count_toward_the_size() {
        let mut outgoing = Outgoing::new(Route::new("a"), Bytes::from_static(b"12345"));
        assert_eq!(message(&outgoing, 5), Ok(()));
        assert_eq!(message(&outgoing, 4), Err(Unsendable::TooLarge { size_bytes: 5, limit_bytes: 4 }));
        outgoing.headers.0.push(("n".to_owned(), "v".to_owned()));
        // "NATS/1.0\r\n" + "n: v\r\n" + "\r\n" + 5
        assert_eq!(size_bytes(&outgoing.headers, &outgoing.payload), 10 + 6 + 2 + 5);
    }
}
