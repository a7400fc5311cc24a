//! How durable a change must be before it is acknowledged.

use dormouse_protocol::Level;
use dormouse_protocol::message::SubjectConfig;

use crate::request::SubjectRequest;

/// The level that a changing request has to reach: the subject's, or else the server's; the request can only
/// raise it. A configure is always acknowledged at `bucket`, because it may lower the level of later changes.
#[must_use]
pub fn required(request: &SubjectRequest, config: &SubjectConfig, server_default: Level) -> Level {
    let asked = match request {
        SubjectRequest::Set(request) => request.level,
        SubjectRequest::Delete(request) => request.level,
        SubjectRequest::DeleteAll(request) => request.level,
        SubjectRequest::Configure(_) | SubjectRequest::Destroy(_) => return Level::Bucket,
        SubjectRequest::Get(_)
        | SubjectRequest::GetAll(_)
        | SubjectRequest::Keys(_)
        | SubjectRequest::Changes(_)
        | SubjectRequest::Info
        | SubjectRequest::Flush
        | SubjectRequest::Compact
        | SubjectRequest::HandOver
        | SubjectRequest::UploadBegin(_)
        | SubjectRequest::UploadChunk(_)
        | SubjectRequest::UploadFinish(_)
        | SubjectRequest::UploadCancel(_)
        | SubjectRequest::GetChunk(_) => None,
    };
    let own = config.level.unwrap_or(server_default);
    asked.map_or(own, |asked| asked.max(own))
}

#[cfg(test)]
mod tests {
    use dormouse_protocol::data::{ConfigureRequest, DeleteAllRequest, DeleteRequest, SetRequest};

    use super::*;

    /// A request can only raise the level, and a configure always requires level `bucket`.
    #[test]
    fn level_is_only_raised_by_request_and_configure_is_bucket() {
        for own in Level::ALL {
            let config = SubjectConfig { level: Some(own), ..SubjectConfig::default() };
            for asked in Level::ALL {
                let level = Some(asked);
                let requests = [
                    SubjectRequest::Set(SetRequest { level, ..SetRequest::default() }),
                    SubjectRequest::Delete(DeleteRequest { level, ..DeleteRequest::default() }),
                    SubjectRequest::DeleteAll(DeleteAllRequest { level, ..DeleteAllRequest::default() }),
                ];
                for request in requests {
                    assert_eq!(required(&request, &config, Level::Bucket), own.max(asked));
                    assert_eq!(required(&request, &SubjectConfig::default(), own), own.max(asked));
                }
            }
            let weakened =
                SubjectRequest::Configure(ConfigureRequest { config, ..ConfigureRequest::default() });
            assert_eq!(required(&weakened, &SubjectConfig::default(), Level::Memory), Level::Bucket);
        }
    }
}
