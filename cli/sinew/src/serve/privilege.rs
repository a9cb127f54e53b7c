//! Giving root up, for good.

use anyhow::{Context, bail};
use nix::unistd::{Gid, Uid, getresgid, getresuid, setgroups, setresgid, setresuid};
use rustix::thread::{capabilities, set_no_new_privs};

/// Becomes the user and the group of this number, without groups and capabilities, and makes sure
/// that there is no way back.
pub fn drop_to(user: u32) -> anyhow::Result<()> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    setgroups(&[]).context("leave all groups")?;
    setresgid(gid, gid, gid).context("change the group")?;
    setresuid(uid, uid, uid).context("change the user")?;
    set_no_new_privs(true).context("forbid new privileges")?;
    verify(uid, gid)
}

fn verify(uid: Uid, gid: Gid) -> anyhow::Result<()> {
    let users = getresuid().context("read our user")?;
    let groups = getresgid().context("read our group")?;
    if [users.real, users.effective, users.saved] != [uid; 3]
        || [groups.real, groups.effective, groups.saved] != [gid; 3]
    {
        bail!("still user {} and group {} after dropping root", users.effective, groups.effective);
    }
    let left = capabilities(None).context("read our capabilities")?;
    if !left.effective.is_empty() || !left.permitted.is_empty() {
        bail!("capabilities are left after dropping root: {:?}", left.permitted);
    }
    if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        bail!("could become root again after dropping it");
    }
    Ok(())
}
