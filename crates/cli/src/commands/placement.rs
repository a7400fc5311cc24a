//! Where subjects are served: `subject ls`, `subject move` and `rebalance`.

use std::time::Duration;

use dormouse_protocol::admin::{Assigned, MoveReply, MovesReply, PlannedMove, RebalanceReply, ServerBalance};
use dormouse_protocol::fleet::ServerState;
use dormouse_protocol::{ServerName, Subject};
use serde_json::json;

use super::list::tables;
use super::server::{known, state_name};
use crate::args::{Move, Rebalance, SubjectLs};
use crate::error::{ErrorKind, Failure};
use crate::progress::Progress;
use crate::session::Session;

/// How long to wait before asking again how far something has come.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(100);

/// How long moves may go without one of them ending. The coordinator gives each up after 30 s.
const STANDSTILL: Duration = Duration::from_secs(120);

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
    let target = known(session, &to).await?;
    match target.state {
        ServerState::Alive => {}
        ServerState::Draining | ServerState::Drained => {
            let state = state_name(target.state);
            let text = format!("{to} is {state} and takes no subjects; `server undrain {to}` changes that");
            return Err(Failure::of(ErrorKind::Conflict, text));
        }
        ServerState::Dead => {
            return Err(Failure::of(ErrorKind::Unavailable, format!("{to} is dead and takes no subjects")));
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
                    "not done within {} ms and still under way: {}",
                    session.deadline.as_millis(),
                    way(&ordered)
                );
                return Err(Failure::of(ErrorKind::Indeterminate, text));
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
        session.output.line(format_args!("{subject} is being moved: {}", way(&ended)))
    }
}

async fn until_moved(session: &Session, subject: &Subject, to: &ServerName) -> Result<MoveReply, Failure> {
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        let reply = session.client().move_subject(subject, to).await?;
        if reply.done {
            return Ok(reply);
        }
    }
}

fn way(reply: &MoveReply) -> String {
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
        session.output.note("the plan is under way");
        return Ok(());
    }
    // Whoever waits wants to see now what is being waited for.
    session.output.flush()?;
    let stopped = tokio::select! {
        biased;
        ended = until_nothing_moves(session, &before, plan.moves.len()) => ended?,
        _ = tokio::signal::ctrl_c() => {
            session.output.note("the plan is still being carried out");
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
        return Err(Failure::new("some moves were given up: the servers did not carry them out in time"));
    }
    if done < plan.moves.len() as u64 {
        return Err(Failure::new("not every move was seen to end: has the coordinator been started again?"));
    }
    Ok(())
}

async fn until_nothing_moves(
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
                tokio::time::sleep(ASK_AGAIN).await;
            }
        };
        let Ok(now) = tokio::time::timeout(STANDSTILL, change).await else {
            let text =
                format!("no move has ended for {} s; the plan is still under way", STANDSTILL.as_secs());
            return Err(Failure::of(ErrorKind::Indeterminate, text));
        };
        let now = now?;
        if now.pending == 0 {
            return Ok(now);
        }
        let done = now.done.saturating_sub(before.done);
        let given_up = now.given_up.saturating_sub(before.given_up);
        let what = if given_up == 0 { "moved".to_owned() } else { format!("moved, {given_up} given up") };
        progress.show(done, done + given_up + now.pending, what);
        seen = Some(now);
    }
}

fn show_plan(session: &Session, plan: &RebalanceReply) -> Result<(), Failure> {
    if session.output.is_json() {
        return session.output.json(plan);
    }
    if plan.moves.is_empty() {
        session.output.note("nothing to move");
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
