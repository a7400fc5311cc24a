//! How durable a change must be before it is acknowledged.

use dormouse_protocol::Level;
use dormouse_protocol::message::SubjectConfig;

use crate::api::EngineRequest;

/// The level that a changing request has to reach: the subject's, or else the server's; the request can only
/// raise it. A configure is always acknowledged at `bucket`, because it may lower the level of later changes.
#[must_use]
pub fn required(request: &EngineRequest, config: &SubjectConfig, server_default: Level) -> Level {
    let asked = match request {
        EngineRequest::Set(request) => request.level,
        EngineRequest::Delete(request) => request.level,
        EngineRequest::DeleteAll(request) => request.level,
        EngineRequest::Configure(_) | EngineRequest::Destroy(_) => return Level::Bucket,
        EngineRequest::Get(_)
        | EngineRequest::GetAll(_)
        | EngineRequest::Keys(_)
        | EngineRequest::Changes(_)
        | EngineRequest::Info
        | EngineRequest::Flush
        | EngineRequest::Compact
        | EngineRequest::HandOver
        | EngineRequest::UploadBegin(_)
        | EngineRequest::UploadChunk(_)
        | EngineRequest::UploadFinish(_)
        | EngineRequest::UploadCancel(_)
        | EngineRequest::GetChunk(_) => None,
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
                    EngineRequest::Set(SetRequest { level, ..SetRequest::default() }),
                    EngineRequest::Delete(DeleteRequest { level, ..DeleteRequest::default() }),
                    EngineRequest::DeleteAll(DeleteAllRequest { level, ..DeleteAllRequest::default() }),
                ];
                for request in requests {
                    assert_eq!(required(&request, &config, Level::Bucket), own.max(asked));
                    assert_eq!(required(&request, &SubjectConfig::default(), own), own.max(asked));
                }
            }
            let weakened =
                EngineRequest::Configure(ConfigureRequest { config, ..ConfigureRequest::default() });
            assert_eq!(required(&weakened, &SubjectConfig::default(), Level::Memory), Level::Bucket);
        }
    }
}
