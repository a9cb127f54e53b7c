//! What is made ahead of a start holds nothing, serves one sandbox, and is gone otherwise.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sandbox_container::{Prepared, Started};

use crate::leftovers::traces;
use crate::support::{ID_BASE, LIMITS, Machine, Sandbox};

fn inode(fd: BorrowedFd<'_>) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

/// Which processes are in this network namespace.
fn inhabitants(network: u64) -> Vec<String> {
    let name = format!("net:[{network}]");
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let is_in = |path: &std::path::PathBuf| {
        fs::read_link(path.join("ns/net")).is_ok_and(|link| link.to_str() == Some(&name))
    };
    processes.filter(is_in).map(|path| path.display().to_string()).collect()
}

/// The names of the interfaces in it.
fn interfaces(prepared: &Prepared) -> Vec<String> {
    let network = prepared.network();
    let look = || {
        move_into_link_name_space(network, Some(LinkNameSpaceType::Network)).unwrap();
        fs::read_to_string("/proc/thread-self/net/dev").unwrap()
    };
    // Of a thread of its own: it stays there.
    let table = std::thread::scope(|scope| scope.spawn(look).join().unwrap());
    let names = table.lines().skip(2).filter_map(|line| line.split(':').next());
    names.map(|name| name.trim().to_owned()).collect()
}

#[test]
fn what_is_prepared_holds_nothing_and_leaves_nothing() {
    let Some(machine) = Machine::new("what_is_prepared_holds_nothing") else { return };
    let before = traces(&machine);
    let prepared = machine.containers.prepare(ID_BASE).unwrap();
    assert_eq!(inhabitants(inode(prepared.network())), Vec::<String>::new());
    assert_eq!(interfaces(&prepared), ["lo"]);
    let cgroups = machine.containers.cgroups();
    assert_eq!(cgroups.parts().unwrap().len(), 1);
    assert_eq!(cgroups.list().unwrap(), [], "it is no sandbox");
    for group in &traces(&machine).groups {
        let members = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert_eq!(members, "", "{}", group.display());
    }
    drop(prepared);
    assert_eq!(traces(&machine), before);
}

#[test]
fn what_a_killed_process_had_prepared_is_swept() {
    let Some(machine) = Machine::new("what_a_killed_process_had_prepared") else { return };
    let mut kept = machine.start();
    let before = traces(&machine).groups;
    // A killed process drops nothing; its descriptors are closed, here at the end of the test.
    std::mem::forget(machine.containers.prepare(2 * ID_BASE).unwrap());
    assert_ne!(traces(&machine).groups, before);
    let swept = machine.containers.sweep(&BTreeSet::from([kept.id.clone()])).unwrap();
    assert_eq!(swept, [], "no sandbox was");
    assert_eq!(traces(&machine).groups, before);
    kept.user("true").ok();
    machine.kill(&mut kept);
}

#[test]
fn two_sandboxes_share_nothing_that_was_prepared() {
    let Some(machine) = Machine::new("two_sandboxes_share_nothing") else { return };
    let mut seen = BTreeSet::new();
    // Held, so that the kernel does not give a number again.
    let mut namespaces = Vec::new();
    // The second one begins when the first has ended, with the same ids.
    for _ in 0..2 {
        let mut sandbox = machine.prepare(LIMITS);
        let prepared = machine.containers.prepare(ID_BASE).unwrap();
        let network = inode(prepared.network());
        let started = machine.try_start_from(prepared, &sandbox, |_| ()).unwrap();
        assert_eq!(namespace(&started, "net"), format!("net:[{network}]"), "what was prepared");
        let open = |kind| fs::File::open(namespace_path(&started, kind)).unwrap();
        namespaces.extend(NAMESPACES.map(open));
        sandbox.started = Some(started);
        for part in parts(&machine, &sandbox) {
            assert!(seen.insert(part.clone()), "{part} is that of another sandbox");
        }
        assert_eq!(machine.containers.cgroups().parts().unwrap(), []);
        // What the first leaves must not be there for the second.
        let left = sandbox.root("ss -lHnt 2>/dev/null | wc -l; ls -A /workspace /dev/shm").ok();
        assert!(!left.contains("left-behind"), "{left}");
        sandbox.root("touch /workspace/left-behind /dev/shm/left-behind").ok();
        machine.kill(&mut sandbox);
    }
}

const NAMESPACES: [&str; 7] = ["net", "user", "mnt", "pid", "ipc", "uts", "cgroup"];

fn namespace_path(started: &Started, kind: &str) -> String {
    format!("/proc/{}/ns/{kind}", started.init.as_raw_nonzero())
}

fn namespace(started: &Started, kind: &str) -> String {
    fs::read_link(namespace_path(started, kind)).unwrap().display().to_string()
}

/// Names of what this sandbox has, as the kernel tells them apart.
fn parts(machine: &Machine, sandbox: &Sandbox) -> Vec<String> {
    let started = sandbox.started.as_ref().unwrap();
    let mut parts: Vec<_> = NAMESPACES.map(|kind| namespace(started, kind)).into();
    let group = machine.containers.cgroups().payload_memory(&sandbox.id);
    parts.push(format!("cgroup {}", fs::metadata(group).unwrap().ino()));
    let volume = fs::metadata(sandbox.volume.path()).unwrap();
    parts.push(format!("subvolume {}", volume.dev()));
    parts
}
