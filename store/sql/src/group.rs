//! Batches that wait for SQLite's one writer are committed together: one sync serves all of them.
//!
//! They are written by a task of their own, which ends when nobody waits: a caller that gives up
//! in the middle of a commit must not leave the others to wonder whether it happened. Each batch
//! is in a savepoint of its own, so that a refused one takes nothing with it and nothing of it
//! stays. PostgreSQL groups its commits by itself.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base_tasks::TaskKind;
use base_types::{Generation, SessionId};
use sqlx::{Acquire, SqlitePool};
use store_api::{Change, StoreError};
use tokio::sync::oneshot;

use crate::apply::{Incoming, apply};
use crate::database::Connection;
use crate::failure::failed;

/// Batches in one transaction: the first of them waits for the last.
const BATCHES_MAX: usize = 64;

/// A transaction ends with the batch that brings its results to this size: the write-ahead log
/// holds all of it before anything is done.
const BYTES_MAX: usize = 4 << 20;

const ACTION: &str = "apply changes";

#[derive(Debug, Default)]
pub(crate) struct Group {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// One for each caller that waits, so as many as there are sessions at work.
    waiting: VecDeque<Entry>,
    /// A task writes, and will look here again before it ends.
    written: bool,
}

/// A batch that waits.
#[derive(Debug)]
struct Entry {
    session: SessionId,
    generation: Generation,
    changes: Vec<Change>,
    answer: oneshot::Sender<Result<(), StoreError>>,
}

impl Group {
    pub async fn apply(
        self: &Arc<Self>,
        writer: &SqlitePool,
        incoming: &Incoming<'_>,
    ) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        let entry = Entry {
            session: incoming.session.clone(),
            generation: incoming.generation,
            changes: incoming.changes.to_vec(),
            answer,
        };
        if self.begins_with(entry) {
            let writing = Writing { group: self.clone(), writer: writer.clone(), ended: false };
            base_tasks::spawn(TaskKind::JournalWriter, writing.run());
        }
        let gone = |_| {
            let source = "the task that writes ended early".into();
            Err(StoreError::Database { action: ACTION, source })
        };
        answered.await.unwrap_or_else(gone)
    }

    /// Queues a batch; whether a task must be started for it.
    fn begins_with(&self, entry: Entry) -> bool {
        let mut queue = self.queue();
        queue.waiting.push_back(entry);
        !std::mem::replace(&mut queue.written, true)
    }

    /// What is written next; nothing, and the task is to end.
    fn next(&self) -> Vec<Entry> {
        let mut queue = self.queue();
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while entries.len() < BATCHES_MAX && bytes < BYTES_MAX {
            let Some(entry) = queue.waiting.pop_front() else { break };
            // Who does not wait any more may have gone on to something else.
            if !entry.answer.is_closed() {
                bytes += entry.bytes();
                entries.push(entry);
            }
        }
        if entries.is_empty() {
            queue.written = false;
        }
        entries
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // A panic while holding it leaves plain data behind.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that writes.
struct Writing {
    group: Arc<Group>,
    writer: SqlitePool,
    /// It found nothing more to write, and whatever waits now is another task's.
    ended: bool,
}

impl Writing {
    async fn run(mut self) {
        loop {
            let entries = self.group.next();
            if entries.is_empty() {
                self.ended = true;
                return;
            }
            let answers = write(&self.writer, &entries).await;
            for (entry, answer) in entries.into_iter().zip(answers) {
                // Who does not wait any more does not hear it.
                let _ = entry.answer.send(answer);
            }
        }
    }
}

impl Drop for Writing {
    /// When it ends in another way, those who wait are told, and the next batch starts a new one.
    fn drop(&mut self) {
        if !self.ended {
            let mut queue = self.group.queue();
            queue.waiting.clear();
            queue.written = false;
        }
    }
}

impl Entry {
    fn incoming(&self) -> Incoming<'_> {
        Incoming::new(&self.session, self.generation, &self.changes)
    }

    /// Roughly; results are what can be large.
    fn bytes(&self) -> usize {
        let of = |change: &Change| match change {
            Change::CallFinished { end, .. } => end.body.len(),
            Change::CallShortened { body, .. } => body.len(),
            _ => 0,
        };
        self.changes.iter().map(of).sum()
    }
}

/// The answer of each.
async fn write(writer: &SqlitePool, entries: &[Entry]) -> Vec<Result<(), StoreError>> {
    if entries.len() > 1
        && let Some(answers) = together(writer, entries).await
    {
        return answers;
    }
    // Alone; or all was taken back, and by itself each one gets its own error, or none.
    let mut answers = Vec::with_capacity(entries.len());
    for entry in entries {
        answers.push(alone(writer, &entry.incoming()).await);
    }
    answers
}

async fn alone(writer: &SqlitePool, incoming: &Incoming<'_>) -> Result<(), StoreError> {
    let mut transaction = writer.begin().await.map_err(failed(ACTION))?;
    match apply(&mut Connection::Sqlite(&mut transaction), incoming).await {
        Ok(()) => transaction.commit().await.map_err(failed(ACTION)),
        Err(error) => {
            // One that fails leaves its mark on the connection, which is then not used again.
            let _ = transaction.rollback().await;
            Err(error)
        }
    }
}

/// The answer of each, or `None` when the database failed and nothing was done.
async fn together(writer: &SqlitePool, entries: &[Entry]) -> Option<Vec<Result<(), StoreError>>> {
    let mut transaction = writer.begin().await.ok()?;
    let mut answers = Vec::with_capacity(entries.len());
    for entry in entries {
        let mut savepoint = transaction.begin().await.ok()?;
        let done = apply(&mut Connection::Sqlite(&mut savepoint), &entry.incoming()).await;
        match &done {
            Ok(()) => savepoint.commit().await.ok()?,
            Err(StoreError::Database { .. } | StoreError::Unavailable { .. }) => return None,
            Err(_) => savepoint.rollback().await.ok()?,
        }
        answers.push(done);
    }
    transaction.commit().await.ok()?;
    Some(answers)
}
