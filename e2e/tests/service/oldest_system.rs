//! The installed service on Debian 12 as it is, kernel and systemd included, with cgroup v2: in a
//! virtual machine without hardware help, so that it runs anywhere, and takes minutes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::{can_run_sandboxes, sinew_binary, skip};

const CACHE: &str = "/var/cache/sinew-test";
const SCENE: &str = include_str!("oldest_system.sh");
/// Set by `cargo xtask soak`: these minutes are not for every run.
const SOAK: &str = "SINEW_SOAK";
const TIMEOUT_SECONDS: &str = "900";

/// What the machine starts, instead of everything that a machine with devices and a network does.
const UNIT: &str = "[Unit]\nAfter=basic.target\n[Service]\nType=oneshot\nTimeoutStartSec=infinity\n\
                    ExecStart=/bin/bash -c 'mount -o ro /dev/nvme0n2 /mnt && exec bash /mnt/scene.sh'\n";
const MASKED: [&str; 9] = [
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-resolved.service",
    "systemd-networkd.service",
    "systemd-timesyncd.service",
    "systemd-logind.service",
    "getty.target",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
];

#[test]
fn restarts_leave_sandboxes_alone_on_cgroup_v2() {
    let test = "restarts_leave_sandboxes_alone_on_cgroup_v2";
    if std::env::var_os(SOAK).is_none() {
        return skip(test, "it takes minutes: `make soak` runs it");
    }
    let Some(images) = can_run_sandboxes(test) else { return };
    let dir = tempfile::Builder::new().prefix("sinew-vm-").tempdir_in("/var/tmp").unwrap();
    let console = match prepare(dir.path(), &images).and_then(|kernel| boot(dir.path(), &kernel)) {
        Ok(console) => console,
        Err(reason) => return skip(test, &reason),
    };
    assert!(console.contains("scene: over"), "{console}");
    let checks: Vec<&str> = console.lines().filter(|line| line.starts_with("check ")).collect();
    assert!(checks.len() > 15, "{console}");
    assert!(checks.iter().all(|check| check.trim_end().ends_with(": ok")), "{console}");
    assert!(console.contains("\"passed\":true"), "{console}");
}

/// Two disks: Debian, and what is ours. Answers the kernel.
fn prepare(dir: &Path, images: &Path) -> Result<PathBuf, String> {
    run(Command::new("qemu-system-x86_64").arg("--version"))?;
    let packages = Path::new(CACHE).join("oldest-kernel");
    let kernel = fs::read_dir(packages.join("boot")).into_iter().flatten().flatten();
    let kernel =
        kernel.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("vmlinuz"));
    let kernel = kernel.ok_or("no kernel: the tests of sandbox/container fetch it")?;
    let root = system(&packages)?;
    disk(&root, &dir.join("root.ext4"), "3G")?;

    let extras = dir.join("extras");
    fs::create_dir_all(extras.join("scenarios")).map_err(|error| error.to_string())?;
    fs::create_dir_all(extras.join("images")).map_err(|error| error.to_string())?;
    run(Command::new("strip").arg("-o").arg(extras.join("sinew")).arg(sinew_binary()))?;
    fs::write(extras.join("scene.sh"), SCENE).map_err(|error| error.to_string())?;
    fs::write(extras.join("scenarios/keeps.toml"), crate::KEEPS)
        .map_err(|error| error.to_string())?;
    copy_minimal(images, &extras.join("images"))?;
    disk(&extras, &dir.join("extras.ext4"), "700M")?;
    Ok(kernel)
}

/// The smallest image of the cache: a real one, which a slow machine can copy.
fn copy_minimal(images: &Path, into: &Path) -> Result<(), String> {
    let name = "debian-minimal";
    let is_it = |path: &PathBuf| {
        let manifest = fs::read_to_string(path.join("manifest.json")).unwrap_or_default();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap_or_default();
        manifest["name"] == name
    };
    let entries = fs::read_dir(images).map_err(|error| error.to_string())?.flatten();
    let image = entries.map(|entry| entry.path()).find(is_it);
    let image =
        image.ok_or_else(|| format!("no image {name}: run `sinew image build --minimal`"))?;
    let lock = image.with_extension("json");
    run(Command::new("cp").arg("-a").arg(&image).args(lock.exists().then_some(&lock)).arg(into))?;
    Ok(())
}

/// Debian with systemd, made once, from the package sources of this machine.
fn system(packages: &Path) -> Result<PathBuf, String> {
    let made = Path::new(CACHE).join("oldest-system");
    if made.is_dir() {
        return Ok(made);
    }
    let work = tempfile::tempdir_in(CACHE).map_err(|error| error.to_string())?;
    // The package manager's own user reads in it.
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(work.path(), open).map_err(|error| error.to_string())?;
    let root = work.path().join("root");
    let wanted = "systemd-sysv,dbus,passwd,btrfs-progs,kmod,iproute2,procps,util-linux,mount";
    run(Command::new("mmdebstrap")
        .args(["--mode=root", "--variant=minbase", "--quiet", "--include", wanted, "bookworm"])
        .arg(&root))?;
    run(Command::new("cp").arg("-a").arg(packages.join("lib/modules")).arg(root.join("lib")))?;
    let version = fs::read_dir(root.join("lib/modules")).into_iter().flatten().flatten().next();
    let version = version.ok_or("the kernel package has no modules")?.file_name();
    run(Command::new("chroot").arg(&root).arg("depmod").arg(version))?;
    let units = root.join("etc/systemd/system");
    fs::write(units.join("scene.service"), UNIT).map_err(|error| error.to_string())?;
    let link = |to: &str, name: &Path| {
        fs::create_dir_all(name.parent().unwrap_or(name))
            .and_then(|()| std::os::unix::fs::symlink(to, name))
    };
    link("../scene.service", &units.join("multi-user.target.wants/scene.service"))
        .map_err(|error| error.to_string())?;
    for masked in MASKED {
        link("/dev/null", &units.join(masked)).map_err(|error| error.to_string())?;
    }
    // Another process may have been faster.
    let _ = fs::rename(&root, &made);
    Ok(made)
}

/// Everything that the machine printed.
fn boot(dir: &Path, kernel: &Path) -> Result<String, String> {
    let mut qemu = Command::new("timeout");
    qemu.args([TIMEOUT_SECONDS, "qemu-system-x86_64"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1500"])
        .args(["-smp", "2", "-serial", "stdio", "-kernel"])
        .arg(kernel)
        .args([
            "-append",
            "console=ttyS0 root=/dev/nvme0n1 rw quiet panic=-1 systemd.show_status=false",
        ])
        .args(["-device", "nvme,id=nvme,serial=sinew"]);
    for (id, number) in [("root", 1), ("extras", 2)] {
        let file = dir.join(id).with_extension("ext4");
        qemu.args(["-drive", &format!("if=none,id={id},format=raw,file={}", file.display())]);
        qemu.args(["-device", &format!("nvme-ns,bus=nvme,drive={id},nsid={number}")]);
    }
    let output = qemu.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let console = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    Ok(format!("{console}\n{errors}"))
}

fn disk(content: &Path, image: &Path, size: &str) -> Result<(), String> {
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-t", "ext4", "-m", "0", "-d"]).arg(content).arg(image).arg(size);
    run(&mut make).map(drop)
}

fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
