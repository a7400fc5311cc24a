//! `PROTOCOL.md` must list the error codes, operations and limits of the code.

use dormouse_protocol::{ErrorCode, Executed, Op, RetryAdvice, limits};

fn document() -> &'static str {
    include_str!("../../../PROTOCOL.md")
}

/// The error table of `PROTOCOL.md` matches the status, retry advice and execution state of each error code.
#[test]
fn protocol_document_error_table_matches_code() {
    for code in ErrorCode::KNOWN {
        let row = document()
            .lines()
            .find(|line| line.starts_with(&format!("| `{code}` |")))
            .unwrap_or_else(|| panic!("{code} is missing"));
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells[2], code.status().to_string(), "{code}");
        let retry = match code.retry() {
            RetryAdvice::Never => "never",
            RetryAdvice::SameServer => "same server",
            RetryAdvice::AskCoordinator => "after asking the coordinator",
            RetryAdvice::AfterBackoff => "after ",
        };
        assert!(cells[3].starts_with(retry), "{code}: {}", cells[3]);
        let executed = match code.executed() {
            Executed::No => "no",
            Executed::Unknown => "unknown",
            Executed::Yes => "yes",
        };
        assert_eq!(cells[4], executed, "{code}");
    }
}

/// The document `PROTOCOL.md` describes all ops and limits.
#[test]
fn protocol_document_describes_all_ops_and_limits() {
    for op in Op::ALL {
        assert!(document().contains(&format!("\n### {op}\n")), "{op}");
    }
    let grouped = |number: usize| match number {
        0..1_000 => number.to_string(),
        _ => format!("{},{:03}", number / 1_000, number % 1_000),
    };
    for limit in [
        format!("| subject | {} bytes |", grouped(limits::MAX_SUBJECT_BYTES)),
        format!("| key | {} bytes of UTF-8 |", grouped(limits::MAX_KEY_BYTES)),
        format!("together | {} KiB |", limits::MAX_HEADERS_BYTES / 1_024),
        format!("in one request | {} |", grouped(limits::MAX_ITEMS_PER_REQUEST)),
        format!("on one page | {} |", grouped(limits::MAX_PAGE_ITEMS)),
        format!("metadata of a subject | {} KiB |", limits::MAX_METADATA_BYTES / 1_024),
        format!("request `get` or `delete`, encoded | {} KiB |", limits::MAX_QUERY_BYTES / 1_024),
        format!("request `configure`, encoded | {} KiB |", limits::MAX_CONFIGURE_BYTES / 1_024),
        format!("any other request to a server, encoded | {} KiB |", limits::MAX_SMALL_REQUEST_BYTES / 1_024),
        format!("inline in an event | {} KiB |", limits::EVENT_INLINE_LIMIT_BYTES / 1_024),
    ] {
        assert!(document().contains(&limit), "{limit}");
    }
}
