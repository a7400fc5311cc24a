//! Many requests in one transaction.

use std::collections::VecDeque;

use dormouse_protocol::data::InfoReply;
use dormouse_protocol::{ErrorReply, Level, LogId, Rev, Subject, Timestamp};

use crate::api::{Reply, Request, Submission};
use crate::database::{Database, DatabaseError};
use crate::plan::{self, Context, Planned, Record, size};

/// The most requests in one transaction.
pub(super) const MAX_REQUESTS: usize = 256;

/// At about this many bytes read and written the batch ends, and the rest of the queue goes into the next one: what is
/// written and the answers that wait for the commit are held in memory, and a batch keeps its thread to itself.
const MAX_BYTES: usize = 4 * 1_024 * 1_024;

/// What a read is told that is not in the file.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    pub(super) subject: Subject,
    pub(super) log: LogId,
    pub(super) level: Level,
    pub(super) bucket_rev: Rev,
    /// The server's clock.
    pub(super) now: Timestamp,
}

/// What a caller is told.
type Answer = Result<Reply, ErrorReply>;

/// Takes one answer.
pub(super) type Respond = Box<dyn FnOnce(Answer) + Send>;

/// A batch that has been committed, or has failed as a whole.
pub(super) struct Executed {
    /// What was changed, in order of rev. Empty when the batch failed.
    pub(super) records: Vec<Record>,
    /// Who is to be told what, once the changes are announced.
    pub(super) answers: Vec<(Respond, Answer)>,
    /// The smallest answer that any of the callers can take, in bytes: what the bus can carry.
    pub(super) max_bytes: usize,
    /// About how much was written.
    pub(super) written_bytes: usize,
    /// The file can be used no more.
    pub(super) broken: Option<DatabaseError>,
}

/// Whether `request` is carried out by [`execute`].
pub(super) const fn is_executable(request: &Request) -> bool {
    !matches!(request, Request::Flush | Request::Destroy)
}

/// Carries out requests from the front of `waiting` in one transaction: writes are planned against the state with
/// all earlier ones applied, reads see them too. Stops at a request that is not [executable](is_executable) and when
/// the batch is large enough. A read before the batch's first write is answered at once, everything else through
/// [`Executed::answers`].
///
/// If the transaction fails, every request in it that saw or made a change fails, and nothing has happened.
pub(super) fn execute(
    database: &mut Database,
    waiting: &mut VecDeque<Submission>,
    around: &Surroundings,
) -> Executed {
    let mut batch = Batch {
        executed: Executed {
            records: Vec::new(),
            answers: Vec::new(),
            max_bytes: usize::MAX,
            written_bytes: 0,
            broken: None,
        },
        bytes: 0,
        writing: false,
    };
    for _ in 0..MAX_REQUESTS {
        if batch.bytes > MAX_BYTES
            || !waiting.front().is_some_and(|submission| is_executable(&submission.request))
        {
            break;
        }
        let Some(submission) = waiting.pop_front() else { break };
        if let Err(error) = batch.take(database, submission, around) {
            return batch.fail(database, &error, around);
        }
    }
    if batch.writing
        && let Err(error) = database.commit()
    {
        return batch.fail(database, &error, around);
    }
    batch.executed
}

struct Batch {
    executed: Executed,
    bytes: usize,
    writing: bool,
}

impl Batch {
    fn take(
        &mut self,
        database: &mut Database,
        submission: Submission,
        around: &Surroundings,
    ) -> Result<(), DatabaseError> {
        let Submission { request, max_reply_bytes, respond } = submission;
        self.executed.max_bytes = self.executed.max_bytes.min(max_reply_bytes);
        if let Some(answer) = read(database, &request, max_reply_bytes, around) {
            self.bytes += answer.as_ref().map_or(0, reply_bytes);
            if self.writing {
                self.executed.answers.push((respond, answer));
            } else {
                respond(answer);
            }
            return Ok(());
        }
        // From here on the answer is on the list, so that a failure reaches it.
        let place = self.executed.answers.len();
        self.executed.answers.push((respond, Err(ErrorReply::internal("not carried out"))));
        if !self.writing {
            database.begin()?;
            self.writing = true;
        }
        self.executed.answers[place].1 = self.write(database, &request, max_reply_bytes, around)?;
        Ok(())
    }

    fn write(
        &mut self,
        database: &mut Database,
        request: &Request,
        max_reply_bytes: usize,
        around: &Surroundings,
    ) -> Result<Answer, DatabaseError> {
        let context = Context { accept_time: around.now, max_message_bytes: max_reply_bytes, blobs: &[] };
        let (entry, outcome) = match plan::plan(request, database, context) {
            Planned::Write { entry, outcome } => (entry, outcome),
            Planned::Answer(answer) | Planned::Settle(answer) => return Ok(answer),
            Planned::Later => return Ok(Err(ErrorReply::internal("a request that was not decided"))),
        };
        database.apply(&entry)?;
        for record in entry.records() {
            let bytes = size::of_record(&record);
            self.bytes += bytes;
            self.executed.written_bytes += bytes;
            self.executed.records.push(record);
        }
        Ok(outcome.answer())
    }

    fn fail(mut self, database: &mut Database, error: &DatabaseError, around: &Surroundings) -> Executed {
        tracing::error!(subject = %around.subject, %error, "a batch of requests could not be written");
        let reply = error.reply(&around.subject);
        for (_, answer) in &mut self.executed.answers {
            *answer = Err(reply.clone());
        }
        self.executed.records.clear();
        self.executed.broken = database.rollback().err();
        self.executed
    }
}

/// Answers a request that changes nothing; `None` for one that does.
fn read(
    database: &Database,
    request: &Request,
    max_reply_bytes: usize,
    around: &Surroundings,
) -> Option<Answer> {
    match request {
        Request::Get(request) => Some(database.get(request, max_reply_bytes).map(Reply::Get)),
        Request::GetAll(request) => Some(database.get_all(request, max_reply_bytes).map(Reply::GetAll)),
        Request::Keys(request) => Some(database.keys(request, max_reply_bytes).map(Reply::Keys)),
        Request::Info => Some(info(database, around).map(|info| Reply::Info(Box::new(info)))),
        Request::Set(_)
        | Request::Delete(_)
        | Request::DeleteAll(_)
        | Request::Configure(_)
        | Request::Flush
        | Request::Destroy => None,
    }
}

fn info(database: &Database, around: &Surroundings) -> Result<InfoReply, ErrorReply> {
    let range = database.seq_range()?;
    let state = database.state();
    Ok(InfoReply {
        position: state.position(),
        term_base: state.term_base,
        first_seq: range.map(|(first, _)| first),
        last_seq: range.map(|(_, last)| last),
        next_seq: state.next_seq,
        count: state.count,
        bytes: state.bytes,
        config: state.config.clone(),
        level: state.config.level.unwrap_or(around.level),
        server: around.log.server().clone(),
        log: around.log.clone(),
        bucket_rev: around.bucket_rev,
    })
}

/// About how much memory an answer holds, and so how much work it was.
fn reply_bytes(reply: &Reply) -> usize {
    match reply {
        Reply::Get(reply) => reply.messages.iter().map(size::of_message).sum(),
        Reply::GetAll(reply) => reply.messages.iter().map(size::of_message).sum(),
        Reply::Keys(reply) => reply.keys.iter().map(|key| size::of_key(key)).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
