//! The same tests on the oldest supported system: Debian 12's kernel with cgroup v2, in a virtual
//! machine without hardware help (QEMU TCG), so that it runs anywhere.
//!
//! The machine's root is the test image, which is also the image of its containers. A second disk
//! brings this very test binary and what the image lacks.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{self, CACHE};

/// On the kernel's command line of the virtual machine.
const INSIDE: &str = "sinew.test-machine";
/// What runs inside: every limit, what the kernel itself must hold, and one whole life.
const INSIDE_TESTS: &[&str] = &[
    "limits::",
    "walls::proc",
    "walls::links",
    "life::files_outlive",
    "prepared::",
    "real_agent::the_shipped",
];
const MODULES: &[&str] = &["overlay", "crc32c_generic", "btrfs", "loop"];
/// Far beyond what it takes on a busy machine with two cores.
const TIMEOUT_SECONDS: &str = "280";

const INIT: &str = "sinew-init";

#[test]
fn limits_and_walls_hold_on_cgroup_v2() {
    const TEST: &str = "limits_and_walls_hold_on_cgroup_v2";
    if fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.contains(INSIDE)) {
        eprintln!("SKIP {TEST}: this is the machine inside");
        return;
    }
    let parts = match Parts::prepare() {
        Ok(parts) => parts,
        Err(reason) => {
            eprintln!("SKIP {TEST}: {reason}");
            return;
        }
    };
    let console = parts.boot().unwrap();
    assert!(console.contains("cgroup v2: yes"), "{console}");
    assert!(console.contains("inside: 0"), "{console}");
    assert!(!console.contains("SKIP "), "{console}");
    // `limits::open_files_and_cores` has a guest crash.
    assert!(console.contains("crash handler: runs for the host"), "{console}");
    assert!(!console.contains("crash handler: ran for a guest"), "{console}");
    let result = console.lines().find(|line| line.contains("test result: ok.")).unwrap_or("");
    println!("{result}");
    assert!(!result.contains(" 0 passed"), "{console}");
}

struct Parts {
    kernel: PathBuf,
    root: PathBuf,
    extras: PathBuf,
    _dir: tempfile::TempDir,
}

impl Parts {
    fn prepare() -> Result<Self, String> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err("the virtual machine is for x86_64".into());
        }
        run(Command::new("qemu-system-x86_64").arg("--version"))?;
        support::image()?;
        support::stand_in_agent()?;
        let packages = packages()?;
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let root = dir.path().join("root.ext4");
        disk(Path::new(&format!("{CACHE}/rootfs")), &root, "1300M")?;
        let init = dir.path().join(INIT);
        fs::write(&init, init_script()).map_err(|error| error.to_string())?;
        let write = format!("write {} {INIT}", init.display());
        run(Command::new("debugfs").args(["-w", "-R", &write]).arg(&root))?;

        let staging = dir.path().join("extras");
        stage(&packages, &staging)?;
        let extras = dir.path().join("extras.ext4");
        disk(&staging, &extras, "400M")?;
        let kernel = find(&packages.join("boot"), |name| name.starts_with("vmlinuz"))
            .ok_or("the kernel package has no kernel")?;
        Ok(Self { kernel, root, extras, _dir: dir })
    }

    /// Everything that the machine printed.
    fn boot(&self) -> Result<String, String> {
        let mut qemu = Command::new("timeout");
        qemu.args([TIMEOUT_SECONDS, "qemu-system-x86_64"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1200"])
            .args(["-smp", "2", "-serial", "stdio", "-kernel"])
            .arg(&self.kernel)
            .arg("-append")
            .arg(format!(
                "console=ttyS0 root=/dev/nvme0n1 rw quiet panic=-1 {INSIDE} init=/bin/sh -- /{INIT}"
            ));
        // Two namespaces of one controller: two controllers would be numbered by chance.
        qemu.args(["-device", "nvme,id=nvme,serial=sinew"]);
        for (id, number, file) in [("root", 1, &self.root), ("extras", 2, &self.extras)] {
            let drive = format!("if=none,id={id},format=raw,file={}", file.display());
            qemu.args(["-drive", &drive]);
            qemu.args(["-device", &format!("nvme-ns,bus=nvme,drive={id},nsid={number}")]);
        }
        let output = qemu.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        let errors = String::from_utf8_lossy(&output.stderr);
        Ok(format!("{}\n{errors}", String::from_utf8_lossy(&output.stdout)))
    }
}

fn init_script() -> String {
    let tests = INSIDE_TESTS.join(" ");
    let target = env!("CARGO_TARGET_TMPDIR");
    format!(
        "export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
while ! test -e /dev/nvme0n2; do :; done
mount -o ro /dev/nvme0n2 /mnt
for module in $(cat /mnt/modules); do /mnt/busybox insmod /mnt/$module; done
test -e /sys/fs/cgroup/cgroup.controllers && echo cgroup v2: yes
uname -r
/mnt/busybox ip link set lo up
mkdir -p {CACHE}/rootfs {target}
cp /mnt/stand-in-agent {target}/
cp /mnt/mkfs.btrfs /usr/sbin/
mount --bind / {CACHE}/rootfs
export RUST_BACKTRACE=0
echo '|/mnt/busybox touch /run/crash-handler-ran' > /proc/sys/kernel/core_pattern
/mnt/tests --test-threads=1 --color=never {tests}
echo inside: $?
test -e /run/crash-handler-ran && echo crash handler: ran for a guest
sh -c 'kill -SEGV $$'
until test -e /run/crash-handler-ran; do :; done
echo crash handler: runs for the host
/mnt/busybox poweroff -f
"
    )
}

/// This binary, and what the image lacks.
fn stage(packages: &Path, staging: &Path) -> Result<(), String> {
    let copy = |from: &Path, name: &str| {
        fs::copy(from, staging.join(name))
            .map(drop)
            .map_err(|error| format!("{}: {error}", from.display()))
    };
    fs::create_dir(staging).map_err(|error| error.to_string())?;
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    run(Command::new("strip").arg("-o").arg(staging.join("tests")).arg(own))?;
    copy(&packages.join("bin/busybox"), "busybox")?;
    copy(Path::new("/usr/sbin/mkfs.btrfs"), "mkfs.btrfs")?;
    copy(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("stand-in-agent"), "stand-in-agent")?;
    let mut modules = Modules { found: Vec::new(), seen: BTreeSet::new(), root: packages.into() };
    MODULES.iter().try_for_each(|name| modules.add(name))?;
    let mut order = String::new();
    for path in &modules.found {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        copy(path, &name)?;
        order.push_str(&name);
        order.push('\n');
    }
    fs::write(staging.join("modules"), order).map_err(|error| error.to_string())
}

/// Kernel modules in the order in which they can be loaded.
struct Modules {
    root: PathBuf,
    found: Vec<PathBuf>,
    seen: BTreeSet<String>,
}

impl Modules {
    fn add(&mut self, name: &str) -> Result<(), String> {
        let plain = |text: &str| text.replace('-', "_");
        if !self.seen.insert(plain(name)) {
            return Ok(());
        }
        let wanted = format!("{}.ko", plain(name));
        let Some(path) = find(&self.root.join("lib/modules"), |file| plain(file) == wanted) else {
            // Built into the kernel.
            return Ok(());
        };
        let bytes = fs::read(&path).map_err(|error| error.to_string())?;
        for needed in depends(&bytes) {
            self.add(&needed)?;
        }
        self.found.push(path);
        Ok(())
    }
}

/// The `depends=` line of a module's information section.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let text = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn find(directory: &Path, matches: impl Fn(&str) -> bool + Copy) -> Option<PathBuf> {
    fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        match path.is_dir() {
            true => find(&path, matches),
            false => matches(&entry.file_name().to_string_lossy()).then_some(path),
        }
    })
}

fn disk(content: &Path, image: &Path, size: &str) -> Result<(), String> {
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-m", "0", "-d"])
        .arg(content)
        .arg(image)
        .arg(size))
    .map(drop)
}

/// Debian's kernel and busybox, unpacked once, from the package sources of this machine.
fn packages() -> Result<PathBuf, String> {
    let unpacked = Path::new(CACHE).join("oldest-kernel");
    if unpacked.is_dir() {
        return Ok(unpacked);
    }
    let work = tempfile::tempdir_in(CACHE).map_err(|error| error.to_string())?;
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))
        .map_err(|error| error.to_string())?;
    let meta = run(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
    let kernel = meta.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let kernel = kernel.ok_or("apt knows no package linux-image-cloud-amd64")?;
    run(Command::new("apt-get")
        .args(["download", kernel, "busybox-static"])
        .current_dir(work.path()))?;
    let tree = work.path().join("tree");
    for entry in fs::read_dir(work.path()).map_err(|error| error.to_string())?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg").arg("-x").arg(entry.path()).arg(&tree))?;
        }
    }
    // Another process may have been faster.
    let _ = fs::rename(&tree, &unpacked);
    Ok(unpacked)
}

fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
