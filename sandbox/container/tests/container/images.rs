//! Images of all kinds: with nothing in them, without bash, with a user and a service of their
//! own, and made to lead the start astray.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use guest_protocol::boot::ToolsAs;
use guest_protocol::{
    EntrypointInfo, Exit, FileOp, FileSpec, Note, OUTPUT_PATH, Root, ShellSpec, Work,
};
use sandbox_container::{ContainerSpec, StartError, ToolUser};

use crate::real_agent::Agent;
use crate::support::{CACHE, LIMITS, Machine, Sandbox, image};

/// A root file system of this test's own; removed with it.
fn empty_image() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("image-").tempdir_in(CACHE).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Nothing but one static program, which complains and ends with 1.
fn scratch_image() -> tempfile::TempDir {
    let dir = empty_image();
    let program = dir.path().join("prog");
    fs::write(&program, guest_embed::AGENT).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Programs and libraries of the usual image, the files of which it shares, without any bash.
fn image_without_bash() -> tempfile::TempDir {
    let dir = empty_image();
    let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let parts = ["bin", "lib", "lib64", "etc", "usr/bin", "usr/lib64", &libraries];
    let is_there = |part: &&str| image().unwrap().join(part).exists();
    let copied = Command::new("cp")
        .args(["-al", "--parents"])
        .args(parts.into_iter().filter(is_there))
        .arg(dir.path())
        .current_dir(image().unwrap())
        .status()
        .unwrap();
    assert!(copied.success());
    for bash in ["bin/bash", "bin/rbash", "usr/bin/bash", "usr/bin/rbash"] {
        let _ = fs::remove_file(dir.path().join(bash));
    }
    dir
}

fn start(machine: &Machine, image: &Path, change: impl FnOnce(&mut ContainerSpec<'_>)) -> Sandbox {
    let mut sandbox = machine.prepare(LIMITS);
    restart(machine, &mut sandbox, image, change);
    sandbox
}

#[track_caller]
fn restart(
    machine: &Machine,
    sandbox: &mut Sandbox,
    image: &Path,
    change: impl FnOnce(&mut ContainerSpec<'_>),
) {
    let started = machine.try_start(sandbox, |spec| {
        spec.image_root = image.into();
        change(spec);
    });
    match started {
        Ok(started) => sandbox.started = Some(started),
        Err(error) => panic!("{}", base_types::Chain(&error)),
    }
}

fn file(op: FileOp) -> Work {
    let root = |path: &str, writable| Root { path: path.to_owned(), writable };
    let roots = vec![root("/workspace", true), root(OUTPUT_PATH, false), root("/etc", false)];
    Work::File(FileSpec { in_workdir: true, roots, op })
}

impl Agent {
    #[track_caller]
    fn answered(&self, answer: (Exit, String)) -> String {
        assert_eq!(answer.0, Exit::Code(0), "{}", answer.1);
        answer.1
    }

    async fn tool(&self, op: FileOp) -> String {
        self.answered(self.run(file(op)).await)
    }

    async fn write(&self, path: &str, content: &str) -> String {
        let (path, content) = (path.to_owned(), content.into());
        self.tool(FileOp::Write { path, content }).await
    }

    async fn read(&self, path: &str) -> String {
        self.tool(FileOp::Read { path: path.to_owned(), lines: None }).await
    }

    async fn entrypoint_end(&self) -> EntrypointInfo {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let info = self.client().info().await.unwrap().entrypoint.unwrap();
            if info.end.is_some() {
                return info;
            }
            assert!(Instant::now() < until, "the entrypoint does not end: {info:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn an_image_with_nothing_in_it_serves_files_and_its_own_program() {
    let machine = Machine::with_agent("an_image_with_nothing_in_it", guest_embed::AGENT);
    let Some(machine) = machine else { return };
    let image = scratch_image();
    let mut sandbox = start(&machine, image.path(), |_| {});
    let agent = Agent::of(&sandbox).await;
    assert_eq!(agent.write("d/a.txt", "alpha\nbeta\n").await, "wrote 11 bytes to d/a.txt");
    let edit = FileOp::Edit {
        path: "/workspace/d/a.txt".into(),
        old: "beta".into(),
        new: "gamma".into(),
        replace_all: false,
    };
    agent.tool(edit).await;
    assert_eq!(agent.read("d/a.txt").await, "alpha\ngamma\n");
    let glob = FileOp::Glob { pattern: "**/*.txt".into(), path: None };
    assert_eq!(agent.tool(glob).await, "/workspace/d/a.txt");
    let grep = FileOp::Grep { pattern: "^gam".into(), path: None };
    assert_eq!(agent.tool(grep).await, "/workspace/d/a.txt:2:gamma");
    assert!(agent.read("/etc/resolv.conf").await.contains("nameserver"));
    assert!(agent.read("/etc/hosts").await.contains("localhost"));

    let (exit, said) = agent.exec(&["/prog"]).await;
    assert_eq!(exit, Exit::Code(1), "{said}");
    assert!(said.contains("--listen-fd"), "{said}");
    let (exit, _) = agent.exec(&["ls"]).await;
    assert_eq!(exit, Exit::FailedToStart("ls: no such file or directory".into()));
    let begun = Instant::now();
    let outcome = agent.outcome(Work::Shell(ShellSpec::Command("echo hi".into()))).await;
    assert!(outcome.notes.contains(&Note::NoBash), "{outcome:?}");
    assert!(matches!(outcome.exit, Exit::FailedToStart(_)), "{outcome:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    machine.kill(&mut sandbox);

    // An operator may have tools work in the root itself.
    restart(&machine, &mut sandbox, image.path(), |spec| spec.workdir = "/".into());
    let agent = Agent::of(&sandbox).await;
    assert_eq!(agent.read("workspace/d/a.txt").await, "alpha\ngamma\n");
    agent.write("tmp/b", "x").await;
    let outputs = FileOp::Write { path: format!("{OUTPUT_PATH}/x"), content: vec![] };
    let (exit, said) = agent.run(file(outputs)).await;
    assert!(exit == Exit::Code(1) && said.contains("read-only"), "{said}");
    machine.kill(&mut sandbox);
}

#[tokio::test]
async fn an_image_without_bash_says_so_until_it_has_one() {
    let machine = Machine::with_agent("an_image_without_bash", guest_embed::AGENT);
    let Some(machine) = machine else { return };
    let image = image_without_bash();
    let mut sandbox = start(&machine, image.path(), |_| {});
    let agent = Agent::of(&sandbox).await;
    let shell = |command: &str| Work::Shell(ShellSpec::Command(command.into()));
    for _ in 0..3 {
        let outcome = agent.outcome(shell("echo hi")).await;
        assert!(outcome.notes.contains(&Note::NoBash), "{outcome:?}");
    }
    let restart = agent.outcome(Work::Shell(ShellSpec::Restart(Some("echo hi".into())))).await;
    assert!(restart.notes.contains(&Note::NoBash), "{restart:?}");
    assert_eq!(agent.root("echo $0; id -u", None).await, "/bin/sh\n0\n");
    agent.write("a", "still served").await;
    // An operator puts one there while the session lives.
    agent.root("mkdir -p /usr/local/bin", None).await;
    agent.root("printf '#!/bin/sh\\nexit 3' > /usr/local/bin/bash", None).await;
    let odd = agent.outcome(shell("echo hi")).await;
    assert!(!odd.notes.contains(&Note::NoBash), "one that may not be run is there: {odd:?}");
    machine.kill(&mut sandbox);
}

fn www() -> ToolUser {
    ToolUser {
        uid: 33,
        gid: 34,
        groups: vec![35, 36],
        name: "www".to_owned(),
        home: "/var/www".to_owned(),
    }
}

#[tokio::test]
async fn the_images_user_works_in_its_directory_with_its_variables() {
    let machine = Machine::with_agent("the_images_user", guest_embed::AGENT);
    let Some(machine) = machine else { return };
    let image = image_without_bash();
    fs::create_dir_all(image.path().join("opt/bin")).unwrap();
    fs::copy("/bin/true", image.path().join("opt/bin/own")).unwrap();
    let mut sandbox = start(&machine, image.path(), |spec| {
        spec.tool = www();
        spec.workdir = "/srv/deep/work".into();
        spec.env = vec![("PATH".into(), "/opt/bin:/usr/bin".into()), ("A".into(), "b".into())];
    });
    let agent = Agent::of(&sandbox).await;
    let script = "id -u; id -g; id -G; pwd; echo $HOME $USER $A; own && touch made && stat -c \
                  '%u:%g %n' . .. /srv /workspace";
    let (exit, said) = agent.exec(&["sh", "-c", script]).await;
    assert_eq!(exit, Exit::Code(0), "{said}");
    assert_eq!(
        said,
        "33\n34\n34 35 36\n/srv/deep/work\n/var/www www b\n33:34 .\n0:0 ..\n0:0 /srv\n33:34 \
         /workspace\n"
    );
    // File tools work there, as that user, and in the workspace.
    agent.write("b", "x").await;
    agent.write("/workspace/c", "x").await;
    let upper = sandbox.volume.upper();
    for made in ["srv/deep/work/b", "workspace/c"] {
        let of = fs::metadata(upper.join(made)).unwrap();
        assert_eq!((of.uid(), of.gid()), (33, 34), "{made}");
    }
    let plain = "id -u; id -G; grep -c ^CapEff:.*0000000000000000 /proc/self/status";
    assert_eq!(agent.exec(&["sh", "-c", plain]).await.1, "33\n34 35 36\n1\n");
    machine.kill(&mut sandbox);

    // Root by the image is root of the sandbox, with its own home.
    let root =
        ToolUser { uid: 0, gid: 0, groups: vec![], name: "root".into(), home: "/root".into() };
    restart(&machine, &mut sandbox, image.path(), |spec| {
        spec.tool = root;
        spec.tools_as = ToolsAs::Root;
        spec.workdir = "/run/new".into();
    });
    let agent = Agent::of(&sandbox).await;
    let script = "id -u; id -G; pwd; echo $HOME $USER; stat -c %u .; chown 5 .";
    let said = agent.exec(&["sh", "-c", script]).await.1;
    assert_eq!(said, "0\n0\n/run/new\n/root root\n0\n");
    machine.kill(&mut sandbox);
}

#[tokio::test]
async fn an_entrypoint_runs_beside_the_agent_and_not_as_process_1() {
    let machine = Machine::with_agent("an_entrypoint_runs", guest_embed::AGENT);
    let Some(machine) = machine else { return };
    let image = image_without_bash();
    let script = "test $$ -ne 1 && id -u && grep -o payload /proc/self/cgroup | sort -u; cat; \
                  echo $PWD; exit 7";
    let words = |script: &str| Some(["sh", "-c", script].map(str::to_owned).to_vec());
    let mut sandbox = start(&machine, image.path(), |spec| {
        spec.tool = www();
        spec.workdir = "/srv/work".into();
        spec.entrypoint = words(script);
    });
    let agent = Agent::of(&sandbox).await;
    assert_eq!(agent.entrypoint_end().await.end.unwrap().exit, Exit::Code(7));
    let log = format!("{OUTPUT_PATH}/entrypoint.log");
    assert_eq!(agent.read(&log).await, "33\npayload\n/srv/work\n");
    let (exit, _) = agent.exec(&["sh", "-c", &format!("echo x >> {log}")]).await;
    assert_ne!(exit, Exit::Code(0), "its log is the agent's");
    machine.kill(&mut sandbox);

    // The next epoch runs it again; a bomb costs its own sandbox's processes, not the agent.
    restart(&machine, &mut sandbox, image.path(), |spec| {
        spec.limits.pids = 32;
        spec.entrypoint = words("while :; do sleep 1000 & done");
    });
    let agent = Agent::of(&sandbox).await;
    for _ in 0..20 {
        let ping = tokio::time::timeout(Duration::from_secs(5), agent.client().ping());
        ping.await.unwrap().unwrap();
    }
    let none = restart_without(&machine, &mut sandbox, image.path()).await;
    assert_eq!(none, None);
    machine.kill(&mut sandbox);
}

async fn restart_without(
    machine: &Machine,
    sandbox: &mut Sandbox,
    image: &Path,
) -> Option<EntrypointInfo> {
    machine.kill(sandbox);
    restart(machine, sandbox, image, |_| {});
    Agent::of(sandbox).await.client().info().await.unwrap().entrypoint
}

/// Links and files where directories are due: of the image, and of a guest's earlier epoch.
#[tokio::test]
async fn links_in_an_image_or_a_volume_lead_no_start_astray() {
    let machine = Machine::with_agent("links_lead_no_start_astray", guest_embed::AGENT);
    let Some(machine) = machine else { return };
    let image = scratch_image();
    let at = |name: &str| image.path().join(name);
    let outside = tempfile::tempdir_in(CACHE).unwrap();
    for name in ["tmp", "workspace", "proc", "run", "dev"] {
        symlink(outside.path(), at(name)).unwrap();
    }
    fs::write(at("home"), "a file").unwrap();
    fs::create_dir_all(at("etc/hosts/kept")).unwrap();
    symlink("/prog", at("etc/resolv.conf")).unwrap();
    symlink(outside.path(), at("link")).unwrap();
    symlink("../../../../..", at("up")).unwrap();
    for workdir in ["/link/made", "/up/made", "/prog/made", "/proc/made", "/workspace/w"] {
        let mut sandbox = start(&machine, image.path(), |spec| spec.workdir = workdir.into());
        let agent = Agent::of(&sandbox).await;
        agent.write("/workspace/a", "x").await;
        assert!(agent.read("/etc/resolv.conf").await.contains("nameserver"), "{workdir}");
        machine.kill(&mut sandbox);
        assert!(!Path::new("/made").exists());
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "a start went outside");
    assert!(fs::read(at("prog")).unwrap() == guest_embed::AGENT, "the image is as it was");

    // The tool's user leaves a link where root would make a directory for it.
    let image = image_without_bash();
    let mut sandbox = start(&machine, image.path(), |_| {});
    let agent = Agent::of(&sandbox).await;
    let (exit, said) = agent.exec(&["ln", "-s", "/etc", "/workspace/link"]).await;
    assert_eq!(exit, Exit::Code(0), "{said}");
    machine.kill(&mut sandbox);
    restart(&machine, &mut sandbox, image.path(), |spec| {
        spec.workdir = "/workspace/link/made".into();
    });
    assert!(!sandbox.volume.upper().join("etc/made").exists());
    let agent = Agent::of(&sandbox).await;
    let (exit, _) = agent.exec(&["pwd"]).await;
    let missing = "/workspace/link/made: no such file or directory";
    assert_eq!(exit, Exit::FailedToStart(missing.into()));
    agent.write("/workspace/a", "served all the same").await;
    machine.kill(&mut sandbox);
}

#[test]
fn what_no_sandbox_can_be_is_refused() {
    let Some(machine) = Machine::new("what_no_sandbox_can_be") else { return };
    let sandbox = machine.prepare(LIMITS);
    type Change = fn(&mut ContainerSpec<'_>);
    let changes: [(&str, Change); 9] = [
        ("a uid of another range", |spec| spec.tool.uid = 65_536),
        ("a gid of another range", |spec| spec.tool.gid = u32::MAX),
        ("a group of another range", |spec| spec.tool.groups = vec![65_536]),
        ("many groups", |spec| spec.tool.groups = vec![1; 65]),
        ("a home that is no path", |spec| spec.tool.home = "home".into()),
        ("a work directory upwards", |spec| spec.workdir = "/a/../..".into()),
        ("a relative work directory", |spec| spec.workdir = "a".into()),
        ("a deep work directory", |spec| spec.workdir = "/a".repeat(65)),
        ("a NUL", |spec| spec.entrypoint = Some(vec!["a\0".into()])),
    ];
    for (what, change) in changes {
        let refused = machine.try_start(&sandbox, change);
        assert!(matches!(refused, Err(StartError::BadSpec(_))), "{what}: {refused:?}");
    }
}
