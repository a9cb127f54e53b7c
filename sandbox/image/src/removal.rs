//! Removing a half-built tree. It may still hold mounts of a build that was killed, and deleting
//! through one of those would delete from the host.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

/// Unmounts what is mounted below `dir`, then removes it without leaving its file system.
pub(crate) fn remove_tree(dir: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(dir) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for mount in mounts_below(dir)? {
        unmount(&mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    if !metadata.is_dir() {
        return fs::remove_file(dir);
    }
    flatten(dir, metadata.dev())?;
    fs::remove_dir(dir)
}

/// Deepest first, so that each can be unmounted.
fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    // The path itself may be a link: it is removed, so it is not followed either.
    let dir = match (dir.parent(), dir.file_name()) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => {
            parent.canonicalize()?.join(name)
        }
        _ => dir.canonicalize()?,
    };
    let mut mounts: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|mount| mount.starts_with(&dir))
        .collect();
    mounts.reverse();
    Ok(mounts)
}

/// The kernel writes blanks and backslashes of a path as three octal digits.
fn unescape(field: &str) -> String {
    let mut text = field.to_owned();
    for (escaped, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(escaped, plain);
    }
    text
}

/// Empties `dir` level by level: what lies deeper is moved up, next to it. Neither a path too long
/// for the kernel nor a stack too short for the depth stops it, and an unpacker that was taken over
/// can leave a tree of any depth.
fn flatten(dir: &Path, device: u64) -> io::Result<()> {
    let mut number = 0;
    loop {
        let mut found_any = false;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            found_any = true;
            if !fs::symlink_metadata(&path)?.is_dir() {
                fs::remove_file(&path)?;
                continue;
            }
            refuse_other_device(&path, device)?;
            for inner in fs::read_dir(&path)? {
                let inner = inner?;
                match inner.file_type()?.is_dir() {
                    true => move_up(&inner.path(), dir, &mut number)?,
                    false => fs::remove_file(inner.path())?,
                }
            }
            fs::remove_dir(&path)?;
        }
        if !found_any {
            return Ok(());
        }
    }
}

/// To a name that nothing has.
fn move_up(from: &Path, dir: &Path, number: &mut u64) -> io::Result<()> {
    loop {
        *number += 1;
        let to = dir.join(format!(".moved-{number}"));
        match fs::symlink_metadata(&to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return fs::rename(from, to),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
}

/// A second look, for a mount that the table did not show.
fn refuse_other_device(path: &Path, device: u64) -> io::Result<()> {
    match fs::symlink_metadata(path)?.dev() == device {
        true => Ok(()),
        false => Err(io::Error::other(format!("{} is a mount point", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_of_any_depth_is_removed() {
        use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut deepest = openat(CWD, &tree, OFlags::PATH, Mode::empty()).unwrap();
        // Longer than any path, and deeper than a process may have directories open.
        for level in 0..3_000 {
            // Names that the removal itself would choose, too.
            let name = format!(".moved-{}", level % 7);
            mkdirat(&deepest, &name, Mode::RWXU).unwrap();
            deepest = openat(&deepest, &name, OFlags::PATH, Mode::empty()).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn what_is_mounted_in_a_tree_survives_its_removal() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP what_is_mounted_in_a_tree_survives_its_removal: needs root to mount");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        let tree = dir.path().join("a tree");
        let inner = tree.join("mounted");
        fs::create_dir_all(&outside).unwrap();
        fs::create_dir_all(&inner).unwrap();
        fs::write(outside.join("keep"), "kept").unwrap();
        std::os::unix::fs::symlink("/nowhere", tree.join("dangling")).unwrap();
        remove_tree(&tree.join("dangling")).unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        if let Err(error) = rustix::mount::mount_bind(&outside, &inner) {
            eprintln!("SKIP what_is_mounted_in_a_tree_survives_its_removal: bind mount: {error}");
            return;
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(outside.join("keep")).unwrap(), "kept");
        remove_tree(&tree).unwrap();
    }
}
