//! How durable a change must be before it is acknowledged.

use dormouse_protocol::Level;
use dormouse_protocol::message::SubjectConfig;

use crate::api::Request;

/// The level that a changing request has to reach: the subject's, or else the server's; the request can only raise it.
/// A configuration is always acknowledged at `bucket`, for it may be the one that weakens what follows.
#[must_use]
pub fn required(request: &Request, config: &SubjectConfig, server_default: Level) -> Level {
    let asked = match request {
        Request::Set(request) => request.level,
        Request::Delete(request) => request.level,
        Request::DeleteAll(request) => request.level,
        Request::Configure(_) | Request::Destroy(_) => return Level::Bucket,
        Request::Get(_)
        | Request::GetAll(_)
        | Request::Keys(_)
        | Request::Changes(_)
        | Request::Info
        | Request::Flush
        | Request::Compact
        | Request::HandOver
        | Request::UploadBegin(_)
        | Request::UploadChunk(_)
        | Request::UploadFinish(_)
        | Request::UploadCancel(_)
        | Request::GetChunk(_) => None,
    };
    let own = config.level.unwrap_or(server_default);
    asked.map_or(own, |asked| asked.max(own))
}

#[cfg(test)]
mod tests {
    use dormouse_protocol::data::{ConfigureRequest, DeleteAllRequest, DeleteRequest, SetRequest};

    use super::*;

    #[test]
    fn a_request_only_raises_the_level_and_a_configuration_is_always_in_the_bucket() {
        for own in Level::ALL {
            let config = SubjectConfig { level: Some(own), ..SubjectConfig::default() };
            for asked in Level::ALL {
                let level = Some(asked);
                let requests = [
                    Request::Set(SetRequest { level, ..SetRequest::default() }),
                    Request::Delete(DeleteRequest { level, ..DeleteRequest::default() }),
                    Request::DeleteAll(DeleteAllRequest { level, ..DeleteAllRequest::default() }),
                ];
                for request in requests {
                    assert_eq!(required(&request, &config, Level::Bucket), own.max(asked));
                    assert_eq!(required(&request, &SubjectConfig::default(), own), own.max(asked));
                }
            }
            let weakened = Request::Configure(ConfigureRequest { config, ..ConfigureRequest::default() });
            assert_eq!(required(&weakened, &SubjectConfig::default(), Level::Memory), Level::Bucket);
        }
    }
}
