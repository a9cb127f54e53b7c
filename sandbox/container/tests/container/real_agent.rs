//! The guest agent that is shipped, as PID 1 behind all the walls.

use std::time::Duration;

use guest_protocol::{
    CallId, CallSpec, ExecSpec, Exit, GuestClient, Outcome, OutputLimits, PtySize, RunAs,
    ShellSpec, Work,
};
use tokio::net::UnixStream;

use crate::support::{LIMITS, Machine, Sandbox};

pub struct Agent(GuestClient);

impl Agent {
    pub async fn of(sandbox: &Sandbox) -> Self {
        let stream = UnixStream::connect(&sandbox.socket).await.unwrap();
        let (client, driver) = GuestClient::connect(stream, "test").await.unwrap();
        tokio::spawn(driver);
        Self(client)
    }

    pub fn client(&self) -> &GuestClient {
        &self.0
    }

    pub async fn outcome(&self, work: Work) -> Outcome {
        let id = CallId::generate();
        let (timeout, limits) = (Duration::from_secs(30), OutputLimits::default());
        self.0.start(&id, &CallSpec { timeout, limits, work }).await.unwrap();
        let outcome = self.0.wait(&id).await.unwrap();
        self.0.ack(&id).await.unwrap();
        outcome
    }

    pub async fn run(&self, work: Work) -> (Exit, String) {
        let outcome = self.outcome(work).await;
        (outcome.exit, String::from_utf8_lossy(&outcome.head).into_owned())
    }

    /// A program as the tool's user.
    pub async fn exec(&self, argv: &[&str]) -> (Exit, String) {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        let (env, cwd, run_as) = (Vec::new(), None, RunAs::Tool);
        self.run(Work::Exec(ExecSpec { argv, env, cwd, run_as, stdin: false, pty: None })).await
    }

    /// In the persistent shell, as the tool's user.
    async fn shell(&self, command: &str) -> String {
        let (exit, output) = self.run(Work::Shell(ShellSpec::Command(command.into()))).await;
        assert_eq!(exit, Exit::Code(0), "{command}: {output}");
        output
    }

    pub async fn root(&self, command: &str, pty: Option<PtySize>) -> String {
        let argv = ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
        let (env, cwd, run_as) = (Vec::new(), None, RunAs::Root);
        let spec = ExecSpec { argv, env, cwd, run_as, stdin: false, pty };
        let (exit, output) = self.run(Work::Exec(spec)).await;
        assert_eq!(exit, Exit::Code(0), "{command}: {output}");
        output
    }
}

#[tokio::test]
async fn the_shipped_agent_works_behind_every_wall_and_hides_from_root() {
    let machine = Machine::with_agent("the_shipped_agent", guest_embed::AGENT);
    let Some(machine) = machine else { return };
    let mut sandbox = machine.start();
    let agent = Agent::of(&sandbox).await;
    assert_eq!(agent.shell("cd /tmp; x=1; id -u; echo $GREETING").await, "1000\nhello\n");
    assert_eq!(agent.shell("echo $x; pwd").await, "1\n/tmp\n");
    let size = PtySize { rows: 30, columns: 90 };
    assert!(agent.root("tty; stty size", Some(size)).await.contains("30 90"));
    agent.shell("seq 1 100000 > /dev/stdout").await;

    // Payload sits in its own leaf, in every hierarchy that limits it.
    let groups = agent.shell("cat /proc/self/cgroup").await;
    let limited = groups.lines().filter(|line| line.ends_with("/payload")).count();
    assert_eq!(
        limited,
        if machine.containers.cgroups().version() == 1 { 2 } else { 1 },
        "{groups}"
    );

    // Root of the sandbox has the agent's uid, and still cannot look into it.
    for attempt in [
        "cat /proc/1/environ",
        "cat /proc/1/mem",
        "readlink /proc/1/fd/3",
        "cat < /proc/1/fd/4",
        "readlink /proc/1/exe",
        "cp /proc/1/exe /tmp/agent",
        "echo x > /proc/1/exe",
        "perl -e 'exit(syscall(101, 0x4206, 1, 0, 0) < 0)'",
    ] {
        let said = agent.root(&format!("{attempt} 2>&1 && echo DONE; true"), None).await;
        assert!(!said.contains("DONE"), "{attempt}: {said}");
    }
    // Nor have it open something of root's choice, which might never come back.
    agent.root("ln -sf /nowhere /dev/ptmx", None).await;
    assert!(agent.root("stty size", Some(size)).await.contains("30 90"));
    agent.root("kill -9 1; kill -TERM 1; kill -STOP 1; true", None).await;
    agent.0.ping().await.unwrap();
    machine.kill(&mut sandbox);
}

/// What a session with root tools does: packages with users, setuid files and dependencies.
#[tokio::test]
async fn root_installs_packages_from_local_files() {
    let machine = Machine::with_agent("root_installs_packages", guest_embed::AGENT);
    let Some(machine) = machine else { return };
    let mut sandbox = machine.start();
    let agent = Agent::of(&sandbox).await;
    agent
        .root(
            r#"set -e; cd /tmp
            make() { mkdir -p $1/DEBIAN $1/usr/bin; printf "Package: $1\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n$2" > $1/DEBIAN/control; }
            make base-thing ""; cp /usr/bin/id base-thing/usr/bin/suid-id; chmod 4755 base-thing/usr/bin/suid-id
            make top-thing "Depends: base-thing\n"
            printf '#!/bin/sh\nset -e\nuseradd --system thing\nchown thing /usr/bin/top-file\n' > top-thing/DEBIAN/postinst
            chmod 755 top-thing/DEBIAN/postinst; echo x > top-thing/usr/bin/top-file
            for p in base-thing top-thing; do dpkg-deb --build --root-owner-group $p > /dev/null; done
            apt-get install -y --no-install-recommends -o APT::Sandbox::User=_apt ./top-thing.deb ./base-thing.deb 2>&1
            test "$(stat -c %a /usr/bin/suid-id)" = 4755; test "$(stat -c %U /usr/bin/top-file)" = thing"#,
            None,
        )
        .await;
    machine.kill(&mut sandbox);
}

#[tokio::test]
async fn a_bomb_in_the_payload_leaves_the_agent_answering() {
    let machine = Machine::with_agent("a_bomb_in_the_payload", guest_embed::AGENT);
    let Some(machine) = machine else { return };
    let mut sandbox = machine.start_with(sandbox_api::Limits { pids: 48, ..LIMITS });
    let agent = Agent::of(&sandbox).await;
    let command = ":(){ :|:& };: 2> /dev/null".to_owned();
    let id = CallId::generate();
    let (timeout, limits) = (Duration::from_secs(2), OutputLimits::default());
    let work = Work::Shell(ShellSpec::Command(command));
    agent.0.start(&id, &CallSpec { timeout, limits, work }).await.unwrap();
    for _ in 0..20 {
        let answered = tokio::time::timeout(Duration::from_secs(5), agent.0.ping()).await;
        answered.unwrap().unwrap();
    }
    machine.kill(&mut sandbox);
}
