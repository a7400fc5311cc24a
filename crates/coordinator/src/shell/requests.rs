//! Decoding: from an incoming message to an input of the machine, or an error reply.

use dormouse_bus::{Incoming, Responder};
use dormouse_protocol::admin::{DrainRequest, MovesRequest, RebalanceRequest, SubjectsRequest};
use dormouse_protocol::fleet::{JoinRequest, LocateRequest, ServersRequest};
use dormouse_protocol::route::{AdminRoute, FleetRoute, InvalidRoute};
use dormouse_protocol::{ErrorReply, Prefix, Subject, decode_request};

use crate::machine::CoordinatorInput;

/// A request of an operator.
pub(super) enum AdminRequest {
    /// A decision of the machine.
    Decide(CoordinatorInput),
    /// A page of assignments.
    Page(SubjectsRequest),
    /// A decision that needs a lookup of assignments first.
    Rebalance(RebalanceRequest),
}

/// A decoded request with its responder.
pub(super) struct DecodedRequest<T> {
    pub(super) input: T,
    pub(super) responder: Responder,
}

/// A request for the machine.
pub(super) type MachineRequest = DecodedRequest<CoordinatorInput>;

/// The limit for the version text of a server, in bytes: the store keeps it.
const MAX_VERSION_BYTES: usize = 256;

/// The limit for the body of a look-up, in bytes: it has only a version.
const MAX_LOCATE_BYTES: usize = 4_096;

/// Checks and decodes a look-up of `subject`.
pub(super) fn locate(subject: Subject, incoming: &Incoming) -> Result<CoordinatorInput, ErrorReply> {
    incoming.caller.may_use(&subject)?;
    if incoming.payload.len() > MAX_LOCATE_BYTES {
        return Err(ErrorReply::too_large("locate", incoming.payload.len(), MAX_LOCATE_BYTES));
    }
    let LocateRequest { v: _ } = decode_request(&incoming.payload)?;
    Ok(CoordinatorInput::Locate(subject))
}

pub(super) fn fleet(prefix: &Prefix, incoming: &Incoming) -> Result<CoordinatorInput, ErrorReply> {
    let payload = &incoming.payload;
    Ok(match prefix.parse_fleet(incoming.route.as_str()).map_err(|error| refuse(&error))? {
        FleetRoute::Join => CoordinatorInput::Join(check_join(decode_request(payload)?)?),
        FleetRoute::Heartbeat => CoordinatorInput::Heartbeat(decode_request(payload)?),
        FleetRoute::Claim(subject) => CoordinatorInput::Claim(subject, decode_request(payload)?),
        FleetRoute::Release(subject) => CoordinatorInput::Release(subject, decode_request(payload)?),
        FleetRoute::Leave => CoordinatorInput::Leave(decode_request(payload)?),
        FleetRoute::Limits => CoordinatorInput::Limits(decode_request(payload)?),
    })
}

pub(super) fn admin(prefix: &Prefix, incoming: &Incoming) -> Result<AdminRequest, ErrorReply> {
    let payload = &incoming.payload;
    let input = match prefix.parse_admin(incoming.route.as_str()).map_err(|error| refuse(&error))? {
        AdminRoute::Subjects => return Ok(AdminRequest::Page(check_page(decode_request(payload)?)?)),
        AdminRoute::Rebalance => return Ok(AdminRequest::Rebalance(decode_request(payload)?)),
        AdminRoute::Servers => {
            let ServersRequest { v: _ } = decode_request(payload)?;
            CoordinatorInput::Servers
        }
        AdminRoute::Drain(server) => {
            let DrainRequest { v: _ } = decode_request(payload)?;
            CoordinatorInput::Drain(server)
        }
        AdminRoute::Undrain(server) => {
            let DrainRequest { v: _ } = decode_request(payload)?;
            CoordinatorInput::Undrain(server)
        }
        AdminRoute::Move(subject) => CoordinatorInput::Move(subject, decode_request(payload)?),
        AdminRoute::Tenants => CoordinatorInput::Tenants(decode_request(payload)?),
        AdminRoute::TenantLimit => CoordinatorInput::LimitTenant(decode_request(payload)?),
        AdminRoute::Moves => {
            let MovesRequest { v: _ } = decode_request(payload)?;
            CoordinatorInput::Moves
        }
    };
    Ok(AdminRequest::Decide(input))
}

/// A pattern is valid if it becomes a subject when names replace its wildcards.
fn check_page(request: SubjectsRequest) -> Result<SubjectsRequest, ErrorReply> {
    let tokens: Vec<_> = request.pattern.split('.').collect();
    let name = |(position, token): (usize, &&str)| match *token {
        "*" => "x".to_owned(),
        ">" if position + 1 == tokens.len() => "x".to_owned(),
        token => token.to_owned(),
    };
    let names: Vec<_> = tokens.iter().enumerate().map(name).collect();
    match Subject::new(&names.join(".")) {
        Ok(_) => Ok(request),
        Err(error) => Err(ErrorReply::bad_request(format!("the pattern matches no subject: {error}"))),
    }
}

fn check_join(request: JoinRequest) -> Result<JoinRequest, ErrorReply> {
    if request.version.len() > MAX_VERSION_BYTES {
        return Err(ErrorReply::too_large("version", request.version.len(), MAX_VERSION_BYTES));
    }
    match &request.predecessor {
        Some(predecessor) if predecessor.server() != request.log.server() => Err(ErrorReply::bad_request(
            format!("predecessor {predecessor} is not a log of server {}", request.log.server()),
        )),
        Some(_) | None => Ok(request),
    }
}

/// The reply to a request on an invalid route.
pub(super) fn refuse(error: &InvalidRoute) -> ErrorReply {
    ErrorReply::bad_request(error.to_string())
}
