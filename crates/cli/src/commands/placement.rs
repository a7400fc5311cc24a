//! Assignments of subjects to servers: `subject ls`, `subject move` and `rebalance`.

use std::time::Duration;

use dormouse_protocol::admin::{Assigned, MoveReply, MovesReply, PlannedMove, RebalanceReply, ServerBalance};
use dormouse_protocol::fleet::ServerState;
use dormouse_protocol::{ServerName, Subject};
use serde_json::json;

use super::list::tables;
use super::server_list::{find_server, state_name};
use crate::args::{Move, Rebalance, SubjectLs};
use crate::error::{Failure, FailureKind};
use crate::progress::Progress;
use crate::session::Session;

/// Pause between two progress queries.
pub(super) const POLL_PAUSE: Duration = Duration::from_millis(100);

/// Maximum time without the end of a move. The coordinator gives each move up after 30 s.
const STALL_LIMIT: Duration = Duration::from_secs(120);

/// `subject ls`.
pub(super) async fn ls(session: &Session, arguments: SubjectLs) -> Result<(), Failure> {
    let mut pages = session.client().subjects(&arguments.pattern, arguments.server, arguments.limit);
    if session.output.is_json() {
        while let Some(assigned) = pages.next().await {
            session.output.json(&assigned?)?;
        }
        return Ok(());
    }
    let row = |assigned: &Assigned| vec![assigned.subject.to_string(), assigned.server.to_string()];
    tables(session, &["SUBJECT", "SERVER"], "no subjects", &mut pages, row).await
}

/// `subject move`.
pub(super) async fn move_subject(session: &Session, arguments: Move) -> Result<(), Failure> {
    let Move { subject, to, no_wait } = arguments;
    let target = find_server(session, &to).await?;
    match target.state {
        ServerState::Alive => {}
        ServerState::Draining | ServerState::Drained => {
            let state = state_name(target.state);
            let text =
                format!("{to} is {state} and takes no subjects; `server undrain {to}` cancels the drain");
            return Err(Failure::of(FailureKind::Conflict, text));
        }
        ServerState::Dead => {
            return Err(Failure::of(FailureKind::Unavailable, format!("{to} is dead and takes no subjects")));
        }
    }
    let ordered = session.client().move_subject(&subject, &to).await?;
    let ended = if no_wait || ordered.done {
        ordered
    } else {
        match tokio::time::timeout(session.deadline, until_moved(session, &subject, &to)).await {
            Ok(ended) => ended?,
            Err(_) => {
                let text = format!(
                    "not done within {} ms, still in progress: {}",
                    session.deadline.as_millis(),
                    describe_move(&ordered)
                );
                return Err(Failure::of(FailureKind::Indeterminate, text));
            }
        }
    };
    if session.output.is_json() {
        let MoveReply { from, to, done } = &ended;
        return session.output.json(&json!({ "subject": subject, "from": from, "to": to, "done": done }));
    }
    if ended.done {
        session.output.line(format_args!("{subject} is assigned to {to}"))
    } else {
        session.output.line(format_args!("{subject} is being moved: {}", describe_move(&ended)))
    }
}

async fn until_moved(session: &Session, subject: &Subject, to: &ServerName) -> Result<MoveReply, Failure> {
    loop {
        tokio::time::sleep(POLL_PAUSE).await;
        let reply = session.client().move_subject(subject, to).await?;
        if reply.done {
            return Ok(reply);
        }
    }
}

fn describe_move(reply: &MoveReply) -> String {
    match &reply.from {
        Some(from) => format!("from {from} to {}", reply.to),
        None => format!("to {}", reply.to),
    }
}

/// `rebalance`.
pub(super) async fn rebalance(session: &Session, arguments: Rebalance) -> Result<(), Failure> {
    let before = session.client().moves().await?;
    let plan = session.client().rebalance(arguments.dry_run, arguments.most_moves).await?;
    show_plan(session, &plan)?;
    if arguments.dry_run || plan.moves.is_empty() {
        return Ok(());
    }
    if arguments.no_wait {
        session.output.info_line("the moves are in progress");
        return Ok(());
    }
    // The user sees the plan while the command waits.
    session.output.flush()?;
    let stopped = tokio::select! {
        biased;
        ended = until_moves_end(session, &before, plan.moves.len()) => ended?,
        _ = tokio::signal::ctrl_c() => {
            session.output.info_line("the moves are still in progress");
            return Ok(());
        }
    };
    let done = stopped.done.saturating_sub(before.done);
    let given_up = stopped.given_up.saturating_sub(before.given_up);
    if session.output.is_json() {
        session.output.json(&json!({ "done": done, "given_up": given_up }))?;
    } else {
        session.output.line(format_args!("{done} moved, {given_up} given up"))?;
    }
    if given_up > 0 {
        return Err(Failure::new("some moves were given up: the servers did not complete them in time"));
    }
    if done < plan.moves.len() as u64 {
        return Err(Failure::new("the end of some moves is unknown: has the coordinator restarted?"));
    }
    Ok(())
}

async fn until_moves_end(
    session: &Session,
    before: &MovesReply,
    planned: usize,
) -> Result<MovesReply, Failure> {
    let progress = Progress::new(&session.output, planned as u64);
    let mut seen = None;
    loop {
        let change = async {
            loop {
                let now = session.client().moves().await?;
                if seen.as_ref() != Some(&now) {
                    return Ok::<_, Failure>(now);
                }
                tokio::time::sleep(POLL_PAUSE).await;
            }
        };
        let Ok(now) = tokio::time::timeout(STALL_LIMIT, change).await else {
            let text =
                format!("no move has ended for {} s; the moves are still in progress", STALL_LIMIT.as_secs());
            return Err(Failure::of(FailureKind::Indeterminate, text));
        };
        let now = now?;
        if now.pending == 0 {
            return Ok(now);
        }
        let done = now.done.saturating_sub(before.done);
        let given_up = now.given_up.saturating_sub(before.given_up);
        let label = if given_up == 0 { "moved".to_owned() } else { format!("moved, {given_up} given up") };
        progress.show(done, done + given_up + now.pending, label);
        seen = Some(now);
    }
}

fn show_plan(session: &Session, plan: &RebalanceReply) -> Result<(), Failure> {
    if session.output.is_json() {
        return session.output.json(plan);
    }
    if plan.moves.is_empty() {
        session.output.info_line("nothing to move");
    } else {
        let titles = ["SUBJECT", "FROM", "TO", "REQUESTS/S", "BYTES"];
        session.output.table(&titles, plan.moves.iter().map(move_row))?;
    }
    let titles = ["SERVER", "CAPACITY", "SUBJECTS", "AFTER", "REQUESTS/S", "AFTER"];
    session.output.table(&titles, plan.servers.iter().map(balance_row))
}

fn move_row(planned: &PlannedMove) -> Vec<String> {
    vec![
        planned.subject.to_string(),
        planned.from.to_string(),
        planned.to.to_string(),
        planned.requests_per_second.to_string(),
        planned.bytes.to_string(),
    ]
}

fn balance_row(server: &ServerBalance) -> Vec<String> {
    vec![
        server.name.to_string(),
        server.capacity.to_string(),
        server.assigned_subjects.to_string(),
        server.assigned_subjects_after.to_string(),
        server.requests_per_second.to_string(),
        server.requests_per_second_after.to_string(),
    ]
}
