//! `gc`: deletes unneeded objects from a bucket.

use std::sync::Arc;

use dormouse_engine::gc::{GcReport, GcSettings, collect};
use dormouse_runtime::Env;
use serde_json::json;

use super::export::{bucket_url, open};
use crate::args::Gc;
use crate::error::{Failure, one_line};
use crate::output::Output;

/// `gc`.
///
/// If the call is cancelled, the next call can delete the rest.
///
/// # Errors
/// [`Failure`] if the bucket is unusable, or an object in it is unreadable.
pub async fn gc(output: &Output, arguments: &Gc) -> Result<(), Failure> {
    let url = bucket_url(arguments.bucket.as_deref(), &arguments.data_dir)?;
    let bucket = Arc::new(open(&url).await?);
    let settings = GcSettings::new(arguments.dry_run, arguments.per_second);
    let verb = if arguments.dry_run { "would delete" } else { "deleting" };
    let mut unwritten = None;
    let report = |key: &dormouse_format::keys::BucketKey| {
        let printed = if output.is_json() {
            output.json(&json!({ "object": key.as_str(), "dry_run": arguments.dry_run }))
        } else {
            output.line(format_args!("{verb} {key}"))
        };
        unwritten = printed.err().or(unwritten.take());
    };
    let collected = collect(bucket, &Env::system(), &settings, &arguments.subjects, report)
        .await
        .map_err(|error| Failure::new(one_line(&error)))?;
    if let Some(failure) = unwritten {
        return Err(failure);
    }
    let GcReport { logs, sealed, needing, subjects, deleted } = collected;
    if output.is_json() {
        output.json(&json!({
            "logs": logs, "sealed": sealed, "needing": needing, "subjects": subjects, "deleted": deleted,
        }))
    } else {
        let objects = if arguments.dry_run { "objects to delete" } else { "objects deleted" };
        output.line(format_args!(
            "{deleted} {objects}; {sealed} of {logs} logs are sealed, {needing} subjects still need one; {subjects} \
             subjects scanned"
        ))
    }
}
