//! What developers do all day works in a sandbox of the default image, without a network: version
//! control, Python and Node packages from local files, a compiler, a pager on a terminal, and the
//! package manager as root.

use std::process::Output;

use testkit::{Installation, Options, can_run_sandboxes};

use crate::SCENE;

/// Installs as guest root: a package whose script creates a user, one with a setuid file, and one
/// that depends on both. As an operator would bring them: from local files.
const PACKAGES: &str = r#"
set -e
rm -rf /tmp/debs && mkdir -p /tmp/debs && cd /tmp/debs
package() { # name, depends
  mkdir -p "$1/DEBIAN"
  printf 'Package: %s\nVersion: 1.0\nArchitecture: all\nMaintainer: Test <t@example.org>\nDescription: test\n' "$1" > "$1/DEBIAN/control"
  if [ -n "$2" ]; then printf 'Depends: %s\n' "$2" >> "$1/DEBIAN/control"; fi
}
package with-user ''
printf '#!/bin/sh\nset -e\nuseradd --system --create-home servant\n' > with-user/DEBIAN/postinst
chmod 755 with-user/DEBIAN/postinst
package with-setuid ''
mkdir -p with-setuid/usr/bin && cp /bin/true with-setuid/usr/bin/raised && chmod 4755 with-setuid/usr/bin/raised
package with-needs 'with-user, with-setuid'
for p in with-user with-setuid with-needs; do dpkg-deb --root-owner-group --build $p >/dev/null; done
apt-get install -y --no-install-recommends ./with-needs.deb ./with-user.deb ./with-setuid.deb 2>&1 | tail -3
dpkg -s with-needs | grep '^Status: install ok installed'
getent passwd servant
stat -c '%a %U' /usr/bin/raised
"#;

const GIT: &str = r#"
set -e
git config --global user.email a@example.org && git config --global user.name A
rm -rf repo && git init -q -b main repo && cd repo
echo one > f && git add f && git commit -qm one
git checkout -qb side && echo side > s && git add s && git commit -qm side
git checkout -q main && echo two >> f && git commit -qam two
git checkout -q side && git rebase -q main
git log --format=%s | tr '\n' ' '
"#;

/// A wheel is a zip with a name; this one is made by hand so that nothing is downloaded.
const PYTHON: &str = r#"
set -e
rm -rf wheel venv && mkdir wheel && cd wheel
python3 - <<'PY'
import zipfile
info = 'hello_local-1.0.dist-info/'
with zipfile.ZipFile('hello_local-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('hello_local.py', 'greeting = "from a local wheel"\n')
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\nName: hello-local\nVersion: 1.0\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    wheel.writestr(info + 'RECORD', '')
PY
cd .. && python3 -m venv venv
venv/bin/pip install --quiet --no-index wheel/hello_local-1.0-py3-none-any.whl
venv/bin/python -c 'import hello_local; print(hello_local.greeting)'
"#;

const NODE: &str = r#"
set -e
rm -rf pack app && mkdir -p pack/package app
printf '{"name":"hello-local","version":"1.0.0","main":"index.js"}' > pack/package/package.json
printf 'module.exports = "from a local tarball";' > pack/package/index.js
tar -C pack -czf hello-local.tgz package
cd app && printf '{"name":"app","version":"1.0.0"}' > package.json
npm install --offline --no-audit --no-fund --silent ../hello-local.tgz
node -e 'console.log(require("hello-local"))'
"#;

const COMPILER: &str = r#"
set -e
printf '#include <stdio.h>\nint main(void) { printf("%%zu bytes\\n", sizeof(long)); return 0; }\n' > small.c
gcc -O2 -Wall -o small small.c && ./small
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_developers_do_works_in_a_sandbox() {
    let name = "what_developers_do_works_in_a_sandbox";
    let Some(images) = can_run_sandboxes(name) else { return };
    let installation = Installation::start(&images, Options::default());
    let session = installation.brain.start_session("six-tools", "Use every tool").await;
    installation.brain.wait_played(&session, 1, SCENE).await;
    let exec = |args: &[&str], script: &str| {
        let command = ["bash", "-c", script];
        let args = [&["exec"], args, &[session.as_str(), "--"], &command].concat();
        said(&installation.sinew(&args))
    };

    let git = exec(&[], GIT);
    assert!(git.ends_with("side two one "), "{git}");
    let python = exec(&[], PYTHON);
    assert!(python.contains("from a local wheel"), "{python}");
    let node = exec(&[], NODE);
    assert!(node.contains("from a local tarball"), "{node}");
    let compiler = exec(&[], COMPILER);
    assert!(compiler.contains("8 bytes"), "{compiler}");

    let packages = exec(&["--root"], PACKAGES);
    for expected in ["install ok installed", "servant:x:", "4755 root"] {
        assert!(packages.contains(expected), "{expected}: {packages}");
    }

    // A pager on a real terminal: it shows a screenful, takes a key and leaves.
    let pager = pager(&installation, session.as_str());
    assert!(pager.contains("line 1\r") && pager.contains("line 40"), "{pager:?}");
    assert!(!pager.contains("line 900"), "the end was not asked for: {pager:?}");
}

/// What a command printed, both streams; the test fails if the command did.
fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].map(|bytes| String::from_utf8_lossy(bytes));
    let text = text.concat();
    assert!(output.status.success(), "{}: {text}", output.status);
    text
}

/// `less` through `sinew exec -t`, with a terminal of ours at the other end.
fn pager(installation: &Installation, session: &str) -> String {
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::process::{Command, Stdio};

    use nix::pty::{Winsize, openpty};

    let size = Winsize { ws_row: 50, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).unwrap();
    let end = || Stdio::from(pty.slave.try_clone().unwrap());
    let script = "seq -f 'line %.0f' 1000 > long.txt; TERM=xterm exec less long.txt";
    let mut child = Command::new(testkit::sinew_binary())
        .args(["exec", "-t", session, "--", "bash", "-c", script])
        .env("SINEW_DATA", installation.data())
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .unwrap();
    drop(pty.slave);
    let master: OwnedFd = pty.master;
    let mut reader = std::fs::File::from(master.try_clone().unwrap());
    let mut writer = std::fs::File::from(master);
    let mut screen = Vec::new();
    let mut buffer = [0; 4096];
    let mut quit = false;
    // The read ends with an error when the last end of the terminal is closed.
    while let Ok(count @ 1..) = reader.read(&mut buffer) {
        screen.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&screen);
        if !quit && text.contains("line 49") {
            writer.write_all(b"q").unwrap();
            quit = true;
        }
        assert!(screen.len() < 1 << 20, "{text}");
    }
    assert!(child.wait().unwrap().success());
    String::from_utf8_lossy(&screen).into_owned()
}
