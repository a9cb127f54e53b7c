//! Whatever happens, the machine is afterwards as it was.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sandbox_container::{StartError, Step, sealed_agent};

use crate::support::{ID_BASE, LIMITS, Machine};

/// What a start could leave behind.
#[derive(Debug, PartialEq)]
pub struct Traces {
    mounts: BTreeSet<String>,
    pub groups: Vec<PathBuf>,
    guest_processes: Vec<String>,
    children: usize,
    descriptors: usize,
}

pub fn traces(machine: &Machine) -> Traces {
    let numeric = |entry: &fs::DirEntry| {
        entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok())
    };
    let processes: Vec<_> = fs::read_dir("/proc").unwrap().flatten().filter(numeric).collect();
    let me = format!("PPid:\t{}\n", std::process::id());
    let is_guest = |entry: &&fs::DirEntry| {
        fs::metadata(entry.path())
            .is_ok_and(|meta| (ID_BASE..ID_BASE + 65_536).contains(&meta.uid()))
            && fs::read_to_string(entry.path().join("cgroup"))
                .is_ok_and(|text| text.contains(&machine.prefix))
    };
    Traces {
        mounts: fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .lines()
            .filter(|line| {
                line.contains(machine.dir().to_str().unwrap()) || line.contains("overlay")
            })
            .map(str::to_owned)
            .collect(),
        groups: groups(&machine.prefix),
        guest_processes: processes
            .iter()
            .filter(is_guest)
            .map(|entry| entry.path().display().to_string())
            .collect(),
        children: processes
            .iter()
            .filter(|entry| {
                fs::read_to_string(entry.path().join("status"))
                    .is_ok_and(|status| status.contains(&me))
            })
            .count(),
        descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
    }
}

fn groups(prefix: &str) -> Vec<PathBuf> {
    let roots = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    let roots = roots.chain([Path::new("/sys/fs/cgroup").to_path_buf()]);
    let inside = roots.filter_map(|root| fs::read_dir(root.join(prefix)).ok());
    let paths = inside.flatten().flatten().map(|entry| entry.path());
    paths.filter(|path| path.is_dir()).collect()
}

#[test]
fn nothing_is_left_of_a_container_that_was_killed() {
    let Some(machine) = Machine::new("nothing_is_left") else { return };
    let mut sandbox = machine.prepare(LIMITS);
    let before = traces(&machine);
    for _ in 0..3 {
        machine.restart(&mut sandbox);
        // Everything that could resist: double forks, sessions of their own, ignored signals.
        sandbox
            .user(
                "exec > /dev/null 2>&1; trap '' TERM HUP; (setsid sleep 600 &) ; nohup sleep 600 &",
            )
            .ok();
        assert_ne!(traces(&machine), before);
        machine.kill(&mut sandbox);
        assert_eq!(traces(&machine), before);
    }
    // Once more, with nothing there.
    machine.containers.kill(&sandbox.id, None).unwrap();
    machine.containers.cgroups().close().unwrap();
    machine.restart(&mut sandbox);
    machine.kill(&mut sandbox);
}

#[test]
fn a_sweep_ends_what_is_not_kept_and_nothing_else() {
    let Some(machine) = Machine::new("a_sweep") else { return };
    let mut kept = machine.start();
    let mut orphan = machine.start();
    let lost = orphan.started.take().unwrap();
    let swept = machine.containers.sweep(&BTreeSet::from([kept.id.clone()])).unwrap();
    assert_eq!(swept, std::slice::from_ref(&orphan.id));
    kept.user("true").ok();
    machine.containers.kill(&orphan.id, Some(lost.pidfd.as_fd())).unwrap();
    machine.kill(&mut kept);
}

#[test]
fn a_start_that_fails_leaves_nothing_and_says_where() {
    let Some(machine) = Machine::new("a_start_that_fails") else { return };
    let mut sandbox = machine.prepare(LIMITS);
    // For ever, so that any specification may borrow them.
    let not_a_program: &'static _ = Box::leak(Box::new(sealed_agent(b"no program").unwrap()));
    let before = traces(&machine);
    let volume = sandbox.volume.path().to_path_buf();

    type Change = Box<dyn FnOnce(&mut sandbox_container::ContainerSpec<'_>)>;
    type Check = Box<dyn Fn(&StartError) -> bool>;
    let step = |step: Step| {
        Box::new(move |error: &StartError| matches!(error, StartError::Child(at, _) if *at == step))
            as Check
    };
    let path = || Box::new(|error: &StartError| matches!(error, StartError::Path { .. })) as Box<_>;
    let spec = || Box::new(|error: &StartError| matches!(error, StartError::BadSpec(_))) as Box<_>;
    // (before the child, in the child one step after another, at its very end)
    let attempts: Vec<(&str, Change, Check)> = vec![
        ("host name", Box::new(|s| s.hostname = "a b".into()), spec()),
        ("environment", Box::new(|s| s.env.push(("A=B".into(), "c".into()))), spec()),
        ("no image", Box::new(|s| s.image_root = "/nonexistent".into()), path()),
        ("no volume", Box::new(|s| s.volume = "/nonexistent".into()), path()),
        (
            "image on a file system without id maps",
            Box::new(|s| s.image_root = "/proc".into()),
            path(),
        ),
        ("image is a file", Box::new(|s| s.image_root = "/etc/passwd".into()), step(Step::Layers)),
        ("agent", Box::new(|s| s.agent = not_a_program.as_fd()), step(Step::Exec)),
    ];
    for (what, change, expected) in attempts {
        let error = machine.try_start(&sandbox, change).unwrap_err();
        assert!(expected(&error), "{what}: {error:?}");
        assert_eq!(traces(&machine), before, "after: {what}");
    }
    for base in [0, u32::MAX] {
        let refused = machine.containers.prepare(base).map(drop);
        assert!(matches!(refused, Err(StartError::BadSpec(_))), "{refused:?}");
    }
    // A volume without its work directory: the overlay itself refuses.
    fs::rename(volume.join("w"), volume.join("elsewhere")).unwrap();
    let error = machine.try_start(&sandbox, |_| ()).unwrap_err();
    assert!(matches!(error, StartError::Child(Step::Overlay, _)), "{error:?}");
    assert_eq!(traces(&machine), before);
    fs::rename(volume.join("elsewhere"), volume.join("w")).unwrap();

    machine.restart(&mut sandbox);
    let twice = machine.try_start(&sandbox, |_| ());
    assert!(matches!(twice, Err(StartError::StillRunning(_))), "{twice:?}");
    machine.kill(&mut sandbox);
    machine.restart(&mut sandbox);
    sandbox.user("true").ok();
    machine.kill(&mut sandbox);
    assert_eq!(traces(&machine), before);
}
