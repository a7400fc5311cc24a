//! The requests of an S3 client, and the faults that a proxy can inject into them.

use std::time::Duration;

use hyper::{Method, Uri};

/// The operation of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3Operation {
    /// Reading an object or a range of it.
    Get,
    /// Reading the size of an object.
    Head,
    /// Writing an object in one piece.
    Put,
    /// Deleting an object.
    Delete,
    /// Listing.
    List,
    /// Beginning a multipart upload.
    BeginUpload,
    /// Sending a part.
    PutPart,
    /// Completing a multipart upload.
    CompleteUpload,
    /// Aborting a multipart upload.
    AbortUpload,
    /// Any other request.
    Other,
}

/// A fault of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3Fault {
    /// No fault.
    None,
    /// The server never gets the request, and no answer comes until the client closes the connection.
    RequestLost,
    /// The server carries out the request, and no answer comes until the client closes the connection.
    AnswerLost,
    /// The server carries out the request, and its answer begins after this delay.
    AnswerLate(Duration),
    /// The server carries out the request. The connection breaks after this many bytes of the answer's body.
    AnswerCut(u64),
    /// The store refuses the request with `503 SlowDown`.
    SlowDown,
}

/// A request that came in completely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Request {
    /// Its operation.
    pub operation: S3Operation,
    /// Its path and query.
    pub path: String,
    /// Size of its body in bytes.
    pub body_bytes: u64,
    /// The fault that was injected into it, by a plan or by the rate limit.
    pub fault: S3Fault,
}

impl S3Operation {
    /// The operation of a request to an address of the form `/BUCKET/KEY`.
    pub(super) fn of(method: &Method, uri: &Uri) -> Self {
        let query = uri.query().unwrap_or_default();
        let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
        let is_object = uri.path().trim_matches('/').contains('/');
        match (method, is_object) {
            (&Method::GET, false) if has("list-type") => Self::List,
            (&Method::GET, true) => Self::Get,
            (&Method::HEAD, true) => Self::Head,
            (&Method::PUT, true) if has("partNumber") => Self::PutPart,
            (&Method::PUT, true) => Self::Put,
            (&Method::POST, true) if has("uploads") => Self::BeginUpload,
            (&Method::POST, true) if has("uploadId") => Self::CompleteUpload,
            (&Method::DELETE, true) if has("uploadId") => Self::AbortUpload,
            (&Method::DELETE, true) => Self::Delete,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The method, the path and the query of a request determine its operation.
    #[test]
    fn s3_request_has_one_operation() {
        for (method, uri, operation) in [
            ("GET", "/bucket/logs/1", S3Operation::Get),
            ("GET", "/bucket?list-type=2&prefix=logs%2F", S3Operation::List),
            ("HEAD", "/bucket/logs/1", S3Operation::Head),
            ("PUT", "/bucket/logs/1", S3Operation::Put),
            ("PUT", "/bucket/logs/1?partNumber=1&uploadId=x", S3Operation::PutPart),
            ("POST", "/bucket/logs/1?uploads=", S3Operation::BeginUpload),
            ("POST", "/bucket/logs/1?uploads", S3Operation::BeginUpload),
            ("POST", "/bucket/logs/1?uploadId=x", S3Operation::CompleteUpload),
            ("DELETE", "/bucket/logs/1?uploadId=x", S3Operation::AbortUpload),
            ("DELETE", "/bucket/logs/1", S3Operation::Delete),
            ("PUT", "/bucket", S3Operation::Other),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(S3Operation::of(&method, &uri.parse().unwrap()), operation, "{method} {uri}");
        }
    }
}
