//! The time left of a request: how long its caller still waits for the reply.
//!
//! It is a header of the transport, so a server reads it before it decodes the body. It is relative, so the clocks of client
//! and server need not agree; the server counts it from the receipt of the request.

use std::time::Duration;

use crate::error::{ErrorCode, ErrorReply};
use crate::message::Headers;

/// The header that contains the time left, in milliseconds, as decimal digits.
pub const TIME_LEFT_HEADER: &str = "Dormouse-Time-Left-Ms";

/// The time left of a request without the header.
pub const DEFAULT_TIME_LEFT: Duration = Duration::from_secs(10);

/// The longest time left that a server grants. It grants this time if a request names more.
pub const MAX_TIME_LEFT: Duration = Duration::from_secs(60 * 60);

/// A time left within this distance of the default needs no header.
const TOLERANCE: Duration = Duration::from_millis(100);

/// The time left of a request with these headers, counted from its receipt.
///
/// # Errors
/// `bad_request` if the value of the header is not a number. The text names the header.
pub fn time_left(headers: &Headers) -> Result<Duration, ErrorReply> {
    let Some(text) = headers.get(TIME_LEFT_HEADER) else { return Ok(DEFAULT_TIME_LEFT) };
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        return Err(ErrorReply::bad_request(format!("{TIME_LEFT_HEADER} is not a number of milliseconds")));
    }
    // A number that does not fit is above the maximum.
    Ok(Duration::from_millis(text.parse().unwrap_or(u64::MAX)).min(MAX_TIME_LEFT))
}

/// The headers of a request whose caller waits for `left`: none if the time left is the default, or at most 100 ms less.
#[must_use]
pub fn time_left_headers(left: Duration) -> Headers {
    if left <= DEFAULT_TIME_LEFT && left + TOLERANCE >= DEFAULT_TIME_LEFT {
        return Headers::default();
    }
    // Rounded up, so that a server never gives up before the caller does.
    let millis = left.min(MAX_TIME_LEFT).as_micros().div_ceil(1_000);
    Headers(vec![(TIME_LEFT_HEADER.to_owned(), millis.to_string())])
}

/// The reply to a request whose time ran out before it was executed: `unavailable`. It concerns only this copy of the
/// request.
#[must_use]
pub fn time_ran_out() -> ErrorReply {
    ErrorReply::new(ErrorCode::Unavailable, "the time of the request ran out before the server began it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Duration, ErrorReply> {
        time_left(&Headers(vec![(TIME_LEFT_HEADER.to_owned(), text.to_owned())]))
    }

    /// The time left is a decimal number of milliseconds, at most an hour; without the header it is 10 s.
    #[test]
    fn deadline_header_is_number_of_milliseconds() {
        assert_eq!(time_left(&Headers::default()), Ok(Duration::from_secs(10)));
        assert_eq!(parse("0"), Ok(Duration::ZERO));
        assert_eq!(parse("2500"), Ok(Duration::from_millis(2_500)));
        for more in ["3600001", "99999999999999999999999999"] {
            assert_eq!(parse(more), Ok(MAX_TIME_LEFT), "{more}");
        }
        for wrong in ["", "-1", "+1", "1.5", " 1", "1 ", "0x10", "ten"] {
            let error = parse(wrong).unwrap_err();
            assert_eq!(error.code, ErrorCode::BadRequest, "{wrong:?}");
            assert!(error.message.contains(TIME_LEFT_HEADER), "{error}");
        }
    }

    /// A request carries its time left, rounded up, unless it is about the default.
    #[test]
    fn deadline_header_is_left_out_for_default() {
        for (left_us, text) in [
            (10_000_000, None),
            (9_900_000, None),
            (9_899_999, Some("9900")),
            (10_000_001, Some("10001")),
            (1, Some("1")),
            (0, Some("0")),
            (2_500_000, Some("2500")),
        ] {
            let headers = time_left_headers(Duration::from_micros(left_us));
            assert_eq!(headers.get(TIME_LEFT_HEADER), text, "{left_us}");
            assert!(time_left(&headers).unwrap() >= Duration::from_micros(left_us));
        }
        assert_eq!(time_left_headers(Duration::MAX).get(TIME_LEFT_HEADER), Some("3600000"));
    }
}
