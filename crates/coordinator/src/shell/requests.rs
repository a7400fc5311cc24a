//! From what arrives on a route to an input of the machine, or a typed refusal.

use dormouse_bus::Incoming;
use dormouse_protocol::fleet::{JoinRequest, LocateRequest, ServersRequest};
use dormouse_protocol::route::{FleetRoute, InvalidRoute};
use dormouse_protocol::{ErrorReply, Prefix, decode_request};

use crate::machine::Input;

/// Longest version of a server's software, in bytes: it is remembered.
const MAX_VERSION_BYTES: usize = 256;

pub(super) fn locate(prefix: &Prefix, incoming: &Incoming) -> Result<Input, ErrorReply> {
    let subject = prefix.parse_locate(incoming.route.as_str()).map_err(|error| refuse(&error))?;
    let LocateRequest { v: _ } = decode_request(&incoming.payload)?;
    Ok(Input::Locate(subject))
}

pub(super) fn fleet(prefix: &Prefix, incoming: &Incoming) -> Result<Input, ErrorReply> {
    let payload = &incoming.payload;
    Ok(match prefix.parse_fleet(incoming.route.as_str()).map_err(|error| refuse(&error))? {
        FleetRoute::Join => Input::Join(check_join(decode_request(payload)?)?),
        FleetRoute::Heartbeat => Input::Heartbeat(decode_request(payload)?),
        FleetRoute::Claim(subject) => Input::Claim(subject, decode_request(payload)?),
        FleetRoute::Release(subject) => Input::Release(subject, decode_request(payload)?),
        FleetRoute::Leave => Input::Leave(decode_request(payload)?),
    })
}

pub(super) fn servers(_: &Prefix, incoming: &Incoming) -> Result<Input, ErrorReply> {
    let ServersRequest { v: _ } = decode_request(&incoming.payload)?;
    Ok(Input::Servers)
}

fn check_join(request: JoinRequest) -> Result<JoinRequest, ErrorReply> {
    if request.version.len() > MAX_VERSION_BYTES {
        return Err(ErrorReply::too_large("version", request.version.len(), MAX_VERSION_BYTES));
    }
    match &request.predecessor {
        Some(predecessor) if predecessor.server() != request.log.server() => Err(ErrorReply::bad_request(
            format!("{predecessor} is a log of another server than {}", request.log.server()),
        )),
        Some(_) | None => Ok(request),
    }
}

fn refuse(error: &InvalidRoute) -> ErrorReply {
    ErrorReply::bad_request(error.to_string())
}
