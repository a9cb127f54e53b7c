//! The static agent as PID 1 over a writable copy of this machine's own root, with `/workspace`
//! and `/run/sinew/output` where a real sandbox has them.

use std::fs::{self, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base_types::{CallId, Epoch, SessionId};
use brain_api::Block;
use guest_protocol::GuestClient;
use guest_protocol::boot::BootArgs;
use serde_json::Value;
use tools_api::{ToolAnswer, ToolContext, ToolLimits};

const LIMITS: ToolLimits = ToolLimits {
    bash: Duration::from_secs(20),
    bash_max: Duration::from_secs(60),
    other: Duration::from_secs(20),
};

/// The upper layer lies on a file system of its own: it must not be inside the lower one. `/run` is
/// fresh, because this machine may have a `/run/sinew` of its own that the guest cannot enter.
const SCRIPT: &str = r#"
set -e
cd "$1"
mount -t tmpfs -o mode=0755 tmpfs scratch
mkdir scratch/upper scratch/work
mount -t overlay -o "lowerdir=/,upperdir=$1/scratch/upper,workdir=$1/scratch/work" overlay root
mount -t tmpfs -o mode=0755 tmpfs root/run
mkdir -p root/workspace root/run/sinew/output root/home/agent
chown 1000:1000 root/workspace root/home/agent
mount --bind out root/run/sinew/output
mount -o remount,bind,ro root/run/sinew/output
mount -t proc proc root/proc
mount --rbind /dev root/dev
cp agent root/sinew-guest-agent
shift
exec chroot root /sinew-guest-agent "$@" 7<&0 8<&1 </dev/null >&2
"#;

pub struct Sandbox {
    _directory: tempfile::TempDir,
    init: Child,
    pub client: GuestClient,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // `unshare --kill-child` takes the whole namespace with it.
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}

/// A started sandbox, or `None` with a loud reason.
pub async fn sandbox(test: &str) -> Option<Sandbox> {
    let unshared = Command::new("unshare")
        .args(["--pid", "--fork", "--mount", "--mount-proc", "true"])
        .stderr(Stdio::null())
        .status();
    if !unshared.is_ok_and(|status| status.success()) {
        eprintln!("SKIP {test}: cannot make a PID namespace (needs root and util-linux)");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    for name in ["scratch", "root", "out"] {
        fs::create_dir(directory.path().join(name)).unwrap();
    }
    let agent = directory.path().join("agent");
    fs::write(&agent, guest_embed::AGENT).unwrap();
    fs::set_permissions(&agent, Permissions::from_mode(0o755)).unwrap();
    let socket = directory.path().join("agent.sock");
    let init = start(directory.path(), &socket);
    let stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    let (client, driver) = GuestClient::connect(stream, "test").await.unwrap();
    tokio::spawn(driver);
    Some(Sandbox { _directory: directory, init, client })
}

/// The listener and the directory of outputs are inherited as standard streams, and moved to the
/// numbers that the agent is told by the script.
fn start(directory: &Path, socket: &Path) -> Child {
    let listener: OwnedFd = UnixListener::bind(socket).unwrap().into();
    let outputs: OwnedFd = File::open(directory.join("out")).unwrap().into();
    Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount", "--", "/bin/sh", "-c", SCRIPT, "sh"])
        .arg(directory)
        .args(BootArgs::new(7, 8, 1).to_args())
        .stdin(listener)
        .stdout(outputs)
        .spawn()
        .unwrap()
}

impl Sandbox {
    pub async fn call(&self, tool: &str, input: Value) -> ToolAnswer {
        self.call_as(&CallId::generate(), tool, input).await
    }

    /// With the ack that the session's driver sends when the answer is posted.
    pub async fn call_as(&self, call: &CallId, tool: &str, input: Value) -> ToolAnswer {
        let answer = self.call_without_ack(call, tool, input).await;
        self.client.ack(call).await.unwrap();
        answer
    }

    pub async fn call_without_ack(&self, call: &CallId, tool: &str, input: Value) -> ToolAnswer {
        let tools = tools_builtin::builtin_tools();
        let tool = tools.iter().find(|t| t.name() == tool).unwrap();
        let session = SessionId::new("sesn_1");
        let context = ToolContext {
            session: &session,
            call,
            epoch: Epoch(1),
            guest: &self.client,
            limits: LIMITS,
            notice: None,
        };
        tool.run(&context, &input).await.unwrap()
    }

    pub async fn bash(&self, command: &str) -> String {
        text(&self.call("bash", serde_json::json!({"command": command})).await)
    }
}

#[track_caller]
pub fn text(answer: &ToolAnswer) -> String {
    let [Block::Text { text }] = answer.content.as_slice() else { panic!("{answer:?}") };
    text.clone()
}
