//! How durable a change must be before it is acknowledged.

use dormouse_protocol::Level;
use dormouse_protocol::message::SubjectConfig;

use crate::request::{ChangeRequest, SubjectRequest};

/// The level that a changing request has to reach: the subject's, or else the server's; the request can only
/// raise it. A configure is always acknowledged at `bucket`, because it may lower the level of later changes.
#[must_use]
pub fn required(request: &SubjectRequest, config: &SubjectConfig, server_default: Level) -> Level {
    let asked = match request.as_change() {
        Some(ChangeRequest::Set(request)) => request.level,
        Some(ChangeRequest::Delete(request)) => request.level,
        Some(ChangeRequest::DeleteAll(request)) => request.level,
        Some(ChangeRequest::Configure(_) | ChangeRequest::Destroy(_)) => return Level::Bucket,
        None => None,
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
