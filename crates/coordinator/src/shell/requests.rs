//! From what arrives on a route to an input of the machine, or a typed refusal.

use dormouse_bus::Incoming;
use dormouse_protocol::admin::{DrainRequest, MovesRequest, RebalanceRequest, SubjectsRequest};
use dormouse_protocol::fleet::{JoinRequest, LocateRequest, ServersRequest};
use dormouse_protocol::route::{AdminRoute, FleetRoute, InvalidRoute};
use dormouse_protocol::{ErrorReply, Prefix, Subject, decode_request};

use crate::machine::Input;

/// What an operator may want.
pub(super) enum Wish {
    /// A decision.
    Decide(Input),
    /// A page of assignments.
    Page(SubjectsRequest),
    /// A decision for which some assignments have to be looked up.
    Rebalance(RebalanceRequest),
}

/// Longest version of a server's software, in bytes: it is remembered.
const MAX_VERSION_BYTES: usize = 256;

pub(super) fn locate(prefix: &Prefix, incoming: &Incoming) -> Result<Input, ErrorReply> {
    let subject = prefix.parse_locate(incoming.route.as_str()).map_err(|error| refuse(&error))?;
    incoming.caller.may_use(&subject)?;
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

pub(super) fn admin(prefix: &Prefix, incoming: &Incoming) -> Result<Wish, ErrorReply> {
    let payload = &incoming.payload;
    let input = match prefix.parse_admin(incoming.route.as_str()).map_err(|error| refuse(&error))? {
        AdminRoute::Subjects => return Ok(Wish::Page(check_page(decode_request(payload)?)?)),
        AdminRoute::Rebalance => return Ok(Wish::Rebalance(decode_request(payload)?)),
        AdminRoute::Servers => {
            let ServersRequest { v: _ } = decode_request(payload)?;
            Input::Servers
        }
        AdminRoute::Drain(server) => {
            let DrainRequest { v: _ } = decode_request(payload)?;
            Input::Drain(server)
        }
        AdminRoute::Undrain(server) => {
            let DrainRequest { v: _ } = decode_request(payload)?;
            Input::Undrain(server)
        }
        AdminRoute::Move(subject) => Input::Move(subject, decode_request(payload)?),
        AdminRoute::Moves => {
            let MovesRequest { v: _ } = decode_request(payload)?;
            Input::Moves
        }
    };
    Ok(Wish::Decide(input))
}

/// A pattern is what becomes a subject when its wildcards become names.
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
        Err(error) => Err(ErrorReply::bad_request(format!("the pattern stands for no subject: {error}"))),
    }
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
