//! How a call ends: by itself, by its time, by a kill, or because what ran it died.

use std::time::{Duration, Instant};

use guest_protocol::{Block, CallId, Exit, KillScope, Note};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::call::{Call, End, Flow, Phase, Running, Work, now_ticks};
use crate::report::{Order, Report};
use crate::server::Agent;
use crate::shell::Shell;
use crate::spool::file_name;
use crate::supervisor::take_report;
use crate::tree;

/// How long a supervisor has for killing; it gives up before.
pub const TREE_TIME: Duration = Duration::from_secs(6);
/// How long the supervisor has for killing a shell and its command before the whole tree dies; it
/// gives up before.
const FOREGROUND_TIME: Duration = Duration::from_secs(5);
/// How long the agent itself sweeps what a killed supervisor left; nothing else runs meanwhile.
const ORPHAN_TIME: Duration = Duration::from_secs(1);

impl Agent {
    /// Ends the call with what is known. Its output up to now is taken first.
    pub(crate) fn finish(&mut self, id: &CallId, exit: Exit, block: Block) {
        let Some(call) = self.calls.get_mut(id) else { return };
        call.drain();
        let Phase::Running(running) = &mut call.phase else { return };
        let notes = std::mem::take(&mut running.notes);
        let terminal = matches!(
            &running.work, Work::Exec { input: Some(input), .. } if input.terminal
        );
        let ended = match &mut call.tap {
            // The session of a terminal ends with its program, as a hangup.
            Some(_) if terminal => true,
            Some(tap) => tap.probe(&mut call.spool) == Flow::Ended,
            None => false,
        };
        let released = if ended { call.tap.take() } else { None };
        let mut outcome = call.outcome(exit, block, notes);
        if outcome.output_path.is_some() {
            outcome.output_path = Some(format!("{}/{}", self.boot.output_path, file_name(id)));
        }
        let phase = std::mem::replace(&mut call.phase, Phase::Finished(Box::new(outcome)));
        self.release(released);
        let Phase::Running(Running { work: Work::Exec { supervisor, input }, .. }) = phase else {
            return;
        };
        self.leftovers.push(supervisor);
        for pending in input.into_iter().flat_map(|input| input.queue) {
            let done = guest_protocol::wire::ResponseBody::Done(guest_protocol::wire::Empty {});
            self.send(pending.connection, pending.request, done);
        }
    }

    /// A call that has ended, or is being killed, stays as it is.
    pub(crate) fn kill(&mut self, id: &CallId, scope: KillScope) {
        let Some(running) = self.calls.get(id).and_then(|call| match &call.phase {
            Phase::Running(running) => Some(running),
            Phase::Finished(_) => None,
        }) else {
            return;
        };
        let shell = matches!(running.work, Work::Shell);
        match (&running.end, scope) {
            (End::ByItself, KillScope::Foreground) if shell => self.kill_foreground(id),
            (End::ByItself, _) | (End::Foreground { .. }, KillScope::Tree) => {
                self.kill_tree(id, Exit::Killed);
            }
            _ => {}
        }
    }

    fn kill_foreground(&mut self, id: &CallId) {
        let Some(running) = self.calls.get_mut(id).and_then(Call::running) else { return };
        let ticks = running.started_ticks;
        let until = Instant::now() + FOREGROUND_TIME;
        running.end = End::Foreground { cause: Exit::Killed, until };
        if let Some(shell) = &mut self.shell {
            shell.interrupt(ticks);
        }
    }

    fn kill_tree(&mut self, id: &CallId, cause: Exit) {
        let Some(running) = self.calls.get_mut(id).and_then(Call::running) else { return };
        running.end = End::Tree { cause, until: Instant::now() + TREE_TIME };
        let ticks = running.started_ticks;
        match &running.work {
            Work::Exec { supervisor, .. } => supervisor.order(Order::KillTree { ticks }),
            Work::File { pid, .. } => tree::signal(pid.as_raw(), Signal::SIGKILL),
            Work::Shell => {
                if let Some(shell) = &mut self.shell {
                    shell.kill(ticks);
                }
            }
        }
    }

    pub(crate) fn check_deadlines(&mut self, now: Instant) {
        let due: Vec<CallId> = self
            .calls
            .iter()
            .filter(|(_, call)| is_due(call, now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            let Some(running) = self.calls.get_mut(&id).and_then(Call::running) else { continue };
            match running.end.clone() {
                End::ByItself => self.kill_tree(&id, Exit::TimedOut),
                End::Foreground { cause, .. } => self.kill_tree(&id, cause),
                End::Tree { cause, .. } => self.give_up(&id, cause),
            }
        }
    }

    /// The supervisor did not do it in time: it may be stopped, or its tree cannot die.
    fn give_up(&mut self, id: &CallId, cause: Exit) {
        let Some(running) = self.calls.get_mut(id).and_then(Call::running) else { return };
        let supervisor = match &running.work {
            Work::Exec { supervisor, .. } => Some(supervisor.pid),
            Work::File { pid, .. } => Some(*pid),
            Work::Shell => self.shell.as_ref().map(|shell| shell.supervisor.pid),
        };
        let shell = matches!(running.work, Work::Shell);
        if let Some(pid) = supervisor {
            tree::signal(pid.as_raw(), Signal::SIGKILL);
            let processes = self.sweep_orphans(pid) as u64;
            if let Some(running) = self.calls.get_mut(id).and_then(Call::running)
                && processes > 0
            {
                running.notes.push(Note::Unkillable { processes });
            }
        }
        if shell {
            self.drop_shell();
        }
        self.finish(id, cause, Block::Text);
        if shell {
            self.continue_restart_unless(id);
        }
    }

    /// A restart that waited for the shell goes on, unless it is the call that was given up.
    fn continue_restart_unless(&mut self, given_up: &CallId) {
        if self.restart.as_ref().is_some_and(|(id, _)| id == given_up) {
            self.restart = None;
        }
        self.continue_restart();
    }

    fn drop_shell(&mut self) -> Option<Shell> {
        let shell = self.shell.take();
        self.shell_lost |= shell.is_some();
        shell
    }

    // === programs ===

    pub(crate) fn exec_reports(&mut self, id: &CallId) {
        loop {
            let Some(running) = self.calls.get_mut(id).and_then(Call::running) else { return };
            let Work::Exec { supervisor, input } = &mut running.work else { return };
            let pid = supervisor.pid;
            let killed = match &running.end {
                End::Tree { cause, .. } => Some(cause.clone()),
                _ => None,
            };
            match take_report(&supervisor.control) {
                Ok(None) => return,
                Ok(Some(Report::Started { .. })) => {
                    if let Some(input) = input {
                        input.ready = true;
                    }
                    self.pump_input(id);
                }
                Ok(Some(Report::FailedToStart { reason, .. })) => {
                    self.finish(id, Exit::FailedToStart(reason), Block::Text);
                }
                Ok(Some(Report::Exited { code })) if killed.is_none() => {
                    self.finish(id, Exit::Code(code), Block::Text);
                }
                Ok(Some(Report::Signaled { signal })) if killed.is_none() => {
                    self.finish(id, Exit::Signal(signal), Block::Text);
                }
                Ok(Some(Report::Swept { left, .. })) => {
                    note_left(running, left);
                    self.finish(id, killed.unwrap_or(Exit::Killed), Block::Text);
                }
                Ok(Some(_)) => {}
                Err(_) => {
                    // Killed by guest root, and so is, now, whatever it had below it.
                    self.sweep_orphans(pid);
                    let exit = killed.unwrap_or(Exit::Signal(Signal::SIGKILL as i32));
                    self.finish(id, exit, Block::Text);
                }
            }
        }
    }

    pub(crate) fn leftover_reports(&mut self, pid: Pid) {
        let Some(at) = self.leftovers.iter().position(|left| left.pid == pid) else { return };
        loop {
            match take_report(&self.leftovers[at].control) {
                Ok(None) => return,
                Ok(Some(_)) => {}
                Err(_) => {
                    self.leftovers.swap_remove(at);
                    self.interrupted.retain(|interrupted| *interrupted != pid);
                    return;
                }
            }
        }
    }

    /// What a dead supervisor adopted is now a child of PID 1, like nothing else that lives.
    /// Answers how many could not be killed.
    pub(crate) fn sweep_orphans(&mut self, dead: Pid) -> usize {
        let mut spared: Vec<i32> = self.leftovers.iter().map(|left| left.pid.as_raw()).collect();
        spared.extend(self.shell.as_ref().map(|shell| shell.supervisor.pid.as_raw()));
        let entrypoint = self.entrypoint.as_ref().and_then(|of| of.supervisor.as_ref());
        spared.extend(entrypoint.map(|supervisor| supervisor.pid.as_raw()));
        spared.extend(self.terminals.supervisors());
        for call in self.calls.values() {
            let Phase::Running(running) = &call.phase else { continue };
            match &running.work {
                Work::Exec { supervisor, .. } => spared.push(supervisor.pid.as_raw()),
                Work::File { pid, .. } => spared.push(pid.as_raw()),
                Work::Shell => {}
            }
        }
        spared.retain(|pid| *pid != dead.as_raw());
        tree::kill_below(std::process::id() as i32, &spared, ORPHAN_TIME, || {})
    }

    pub(crate) fn kill_everything(&mut self) {
        tree::kill_below(std::process::id() as i32, &[], ORPHAN_TIME, || {
            while nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
                .is_ok_and(|status| status != nix::sys::wait::WaitStatus::StillAlive)
            {}
        });
    }

    // === file tools ===

    pub(crate) fn file_ended(&mut self, pid: Pid, exit: Exit) {
        let is_it = |call: &Call| {
            matches!(&call.phase,
                Phase::Running(Running { work: Work::File { pid: its, .. }, .. }) if *its == pid)
        };
        let Some(id) = self.calls.iter().find(|(_, call)| is_it(call)).map(|(id, _)| id.clone())
        else {
            return;
        };
        let Some(running) = self.calls.get_mut(&id).and_then(Call::running) else { return };
        let Work::File { control, .. } = &running.work else { return };
        let report = take_report(control).ok().flatten();
        match (report, running.end.clone()) {
            (Some(Report::FileDone { failed, block }), _) => {
                self.finish(&id, Exit::Code(i32::from(failed)), block);
            }
            (_, End::Tree { cause, .. }) => self.finish(&id, cause, Block::Text),
            _ => self.finish(&id, exit, Block::Text),
        }
    }

    // === the shell ===

    pub(crate) fn shell_status(&mut self) {
        let Some(shell) = &mut self.shell else { return };
        let Some(code) = shell.take_status() else { return };
        let Some(id) = shell.current.clone() else { return };
        let Some(running) = self.calls.get_mut(&id).and_then(Call::running) else { return };
        if running.end != End::ByItself {
            // The shell is being killed; that is how the call ends.
            return;
        }
        self.shell_out();
        if let Some(shell) = &mut self.shell {
            shell.current = None;
        }
        self.finish(&id, Exit::Code(code), Block::Text);
    }

    /// What bash writes outside of a call's own pipe: a failure to start, or everything, where a
    /// pipe could not be made. Takes what is there at this moment; between calls it is dropped.
    pub(crate) fn shell_out(&mut self) {
        let Some(shell) = &self.shell else { return };
        let mut call = shell.current.as_ref().and_then(|id| self.calls.get_mut(id));
        let mut left = rustix::io::ioctl_fionread(&shell.out).unwrap_or(0) as usize;
        let mut buffer = [0; 64 << 10];
        while left > 0 {
            let want = left.min(buffer.len());
            let Ok(length @ 1..) = rustix::io::read(&shell.out, &mut buffer[..want]) else {
                return;
            };
            left -= length;
            if let Some(call) = &mut call {
                call.spool.push(&buffer[..length]);
            }
        }
    }

    pub(crate) fn shell_reports(&mut self) {
        loop {
            let Some(shell) = &mut self.shell else { return };
            match take_report(&shell.supervisor.control) {
                Ok(None) => return,
                Ok(Some(Report::FailedToStart { reason, missing })) => {
                    let id = shell.current.take();
                    self.shell = None;
                    return self.shell_did_not_start(id, reason, missing);
                }
                Ok(Some(report @ (Report::Exited { .. } | Report::Signaled { .. }))) => {
                    shell.exit = Some(report);
                    if shell.interrupted && !shell.ending {
                        return self.shell_interrupted();
                    }
                    if !shell.ending {
                        // Whatever is still there are jobs; they die with their shell.
                        shell.kill(now_ticks() + 1);
                    }
                }
                Ok(Some(Report::Swept { left, jobs })) => {
                    shell.jobs_killed += jobs;
                    let current = shell.current.clone();
                    if let Some(running) =
                        current.and_then(|id| self.calls.get_mut(&id)).and_then(Call::running)
                    {
                        note_left(running, left);
                    }
                    if left > 0 {
                        self.shell_ended();
                    }
                }
                Ok(Some(_)) => {}
                Err(_) => self.shell_ended(),
            }
        }
    }

    fn shell_did_not_start(&mut self, id: Option<CallId>, reason: String, no_bash: bool) {
        let Some(id) = id else { return };
        if let Some(running) = self.calls.get_mut(&id).and_then(Call::running)
            && no_bash
        {
            running.notes.push(Note::NoBash);
        }
        let reason = format!("{reason} (the shell needs /bin/bash in the image)");
        self.finish(&id, Exit::FailedToStart(reason), Block::Text);
    }

    /// The supervisor is gone, or has given up on what cannot be killed.
    fn shell_ended(&mut self) {
        // The last words of a shell that ended by itself are its status.
        self.shell_status();
        self.shell_out();
        let Some(shell) = self.drop_shell() else { return };
        if shell.exit.is_none() && !shell.ending {
            self.sweep_orphans(shell.supervisor.pid);
        }
        if let Some(id) = shell.current.clone() {
            self.end_with_shell(&id, &shell);
        }
        self.leftovers.push(shell.supervisor);
        self.continue_restart();
    }

    /// Its supervisor stays for the jobs that it left.
    fn shell_interrupted(&mut self) {
        self.shell_out();
        let Some(shell) = self.drop_shell() else { return };
        if let Some(id) = shell.current.clone() {
            self.end_with_shell(&id, &shell);
        }
        self.interrupted.push(shell.supervisor.pid);
        self.leftovers.push(shell.supervisor);
        self.continue_restart();
    }

    /// A restart of the shell ends the jobs of interrupted ones too.
    pub(crate) fn kill_jobs_of_interrupted(&mut self) {
        let ticks = now_ticks();
        for left in self.leftovers.iter().filter(|left| self.interrupted.contains(&left.pid)) {
            left.order(Order::KillTree { ticks });
        }
    }

    fn end_with_shell(&mut self, id: &CallId, shell: &Shell) {
        let Some(running) = self.calls.get_mut(id).and_then(Call::running) else { return };
        let exit = match (&running.end, &shell.exit) {
            (End::Tree { cause, .. } | End::Foreground { cause, .. }, _) => cause.clone(),
            (End::ByItself, Some(Report::Exited { code })) => Exit::Code(*code),
            (End::ByItself, Some(Report::Signaled { signal })) => {
                Exit::ShellDied(format!("the shell was killed by signal {signal}"))
            }
            (End::ByItself, _) => Exit::ShellDied("the shell's supervisor was killed".to_owned()),
        };
        running.notes.push(Note::ShellEnded);
        if shell.jobs_killed > 0 {
            running.notes.push(Note::JobsKilled);
        }
        self.finish(id, exit, Block::Text);
    }
}

fn is_due(call: &Call, now: Instant) -> bool {
    let Phase::Running(running) = &call.phase else { return false };
    now >= match &running.end {
        End::ByItself => running.deadline,
        End::Foreground { until, .. } | End::Tree { until, .. } => *until,
    }
}

fn note_left(running: &mut Running, left: u32) {
    if left > 0 {
        running.notes.push(Note::Unkillable { processes: left.into() });
    }
}
