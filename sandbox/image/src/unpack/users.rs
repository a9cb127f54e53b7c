//! What an image's configuration means, with the help of the image's own files: users become
//! numbers here, in the jail.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use crate::config::{ImageConfig, ResolvedUser};
use crate::unpack::documents::Config;
use crate::unpack::error::{UnpackError, shown};
use crate::unpack::limits::{
    CONFIG_BYTES_MAX, CONFIG_WORDS_MAX, GROUPS_MAX, LABEL_BYTES_MAX, LABELS_MAX,
    USER_FILE_BYTES_MAX,
};
use crate::unpack::place::EntryPath;

const ID_MAX: u32 = 65_535;

/// A file of the image by the path a program in it would use: links lead round inside the root.
/// `None`: there is none, it is no regular file, or it is larger than `bytes_max`.
pub fn image_file(root: BorrowedFd<'_>, path: &str, bytes_max: usize) -> Option<Vec<u8>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // Without waiting: it may be a pipe.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut bytes = Vec::new();
    let limit = u64::try_from(bytes_max).ok()?;
    File::from(file).take(limit + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() <= bytes_max).then_some(bytes)
}

pub fn image_config(root: BorrowedFd<'_>, config: Config) -> Result<ImageConfig, UnpackError> {
    let execution = config.config;
    check(&[&execution.entrypoint, &execution.cmd, &execution.env])?;
    let user = match execution.user.as_str() {
        "" => None,
        user => Some(Users::of(root).resolve(user)?),
    };
    let some = |text: String| (!text.is_empty()).then_some(text);
    Ok(ImageConfig {
        user,
        workdir: workdir(&execution.working_dir)?,
        env: variables(&execution.env)?,
        entrypoint: execution.entrypoint,
        cmd: execution.cmd,
        stop_signal: some(execution.stop_signal).map(|text| shown(text.as_bytes())),
        architecture: config.architecture.and_then(some).map(|text| shown(text.as_bytes())),
        os: config.os.and_then(some).map(|text| shown(text.as_bytes())),
        labels: labels(execution.labels),
    })
}

fn refuse(reason: impl ToString) -> UnpackError {
    UnpackError::document("the configuration", reason)
}

fn check(lists: &[&[String]]) -> Result<(), UnpackError> {
    let words = || lists.iter().flat_map(|list| list.iter());
    if words().count() > CONFIG_WORDS_MAX {
        return Err(refuse(format!("it holds more than {CONFIG_WORDS_MAX} words and variables")));
    }
    if words().map(String::len).sum::<usize>() > CONFIG_BYTES_MAX {
        return Err(refuse(format!(
            "its words and variables take more than {CONFIG_BYTES_MAX} bytes"
        )));
    }
    match words().any(|word| word.contains('\0')) {
        true => Err(refuse("a word of it holds a NUL")),
        false => Ok(()),
    }
}

/// Absolute and without detours; docker takes a relative one as one below the root.
fn workdir(text: &str) -> Result<Option<String>, UnpackError> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.contains('\0') {
        return Err(refuse("its work directory holds a NUL"));
    }
    let path = EntryPath::parse(text.as_bytes())
        .map_err(|_| refuse(format!("its work directory `{text}` is no plain path")))?;
    let joined = super::place::joined(path.components());
    let joined = String::from_utf8(joined).map_err(refuse)?;
    Ok(Some(format!("/{joined}")))
}

fn variables(list: &[String]) -> Result<Vec<(String, String)>, UnpackError> {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(refuse(format!("its variable `{text}` has no name or no value"))),
    };
    list.iter().map(pair).collect()
}

/// Labels are for people: those beyond the limits are left out.
fn labels(all: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut bytes = 0;
    let fits = |(name, value): &(String, String)| {
        bytes += name.len() + value.len();
        bytes <= LABEL_BYTES_MAX
    };
    all.into_iter().take(LABELS_MAX).take_while(fits).collect()
}

/// The image's `/etc/passwd` and `/etc/group`.
pub struct Users {
    passwd: Vec<u8>,
    group: Vec<u8>,
}

impl Users {
    pub fn new(passwd: Vec<u8>, group: Vec<u8>) -> Self {
        Self { passwd, group }
    }

    fn of(root: BorrowedFd<'_>) -> Self {
        let file = |path| image_file(root, path, USER_FILE_BYTES_MAX).unwrap_or_default();
        Self::new(file("etc/passwd"), file("etc/group"))
    }

    /// `user`, `uid`, and either with `:group` or `:gid`, as the specification has it.
    pub fn resolve(&self, text: &str) -> Result<ResolvedUser, UnpackError> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (text, None),
        };
        let nobody = |kind: &str| UnpackError::NoUser {
            user: shown(text.as_bytes()),
            kind: kind.to_owned(),
        };
        let line = self.user_line(user);
        let uid = match (&line, user.parse()) {
            (Some(line), _) => line.uid,
            (None, Ok(uid)) => uid,
            (None, Err(_)) => return Err(nobody("user")),
        };
        let gid = match group {
            Some(group) => self.group_id(group).ok_or_else(|| nobody("group"))?,
            None => line.as_ref().map_or(0, |line| line.gid),
        };
        if uid > ID_MAX || gid > ID_MAX {
            return Err(refuse(format!("its user `{text}` has an id beyond {ID_MAX}")));
        }
        let groups = match (&line, group) {
            (Some(line), None) => self.groups_with(&line.name, gid),
            _ => Vec::new(),
        };
        let home = line.and_then(|line| line.home);
        Ok(ResolvedUser { name: shown(text.as_bytes()), uid, gid, groups, home })
    }

    /// A name before a number: a user may be called `1000`.
    fn user_line(&self, user: &str) -> Option<UserLine> {
        let lines = || lines(&self.passwd).filter_map(|fields| UserLine::of(&fields));
        let by_number = || {
            let uid: u32 = user.parse().ok()?;
            lines().find(|line| line.uid == uid)
        };
        lines().find(|line| line.name == user).or_else(by_number)
    }

    fn group_id(&self, group: &str) -> Option<u32> {
        let named = lines(&self.group).find(|fields| fields.first() == Some(&group));
        match named {
            Some(fields) => fields.get(2)?.parse().ok(),
            None => group.parse().ok(),
        }
    }

    fn groups_with(&self, user: &str, gid: u32) -> Vec<u32> {
        let has = |fields: &Vec<&str>| {
            fields.get(3).is_some_and(|members| members.split(',').any(|member| member == user))
        };
        let id = |fields: Vec<&str>| fields.get(2)?.parse().ok();
        let mut ids: Vec<u32> = lines(&self.group).filter(has).filter_map(id).collect();
        ids.retain(|id| *id <= ID_MAX && *id != gid);
        ids.sort_unstable();
        ids.dedup();
        ids.truncate(GROUPS_MAX);
        ids
    }
}

struct UserLine {
    name: String,
    uid: u32,
    gid: u32,
    home: Option<String>,
}

impl UserLine {
    fn of(fields: &[&str]) -> Option<Self> {
        let home = fields.get(5).filter(|home| home.starts_with('/') && !home.contains('\0'));
        Some(Self {
            name: (*fields.first()?).to_owned(),
            uid: fields.get(2)?.parse().ok()?,
            gid: fields.get(3)?.parse().ok()?,
            home: home.map(|home| (*home).to_owned()),
        })
    }
}

/// Lines that are text, in fields.
fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&str>> {
    let texts = file.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    texts.map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        Users {
            passwd: b"root:x:0:0::/root:/bin/sh\napp:x:101:102::/srv/app:/bin/sh\n\xff\xfe:x:1:1\n\
                1000:x:7:7::relative:/bin/sh\nhuge:x:70000:1::/:/bin/sh\nbroken:x:\n"
                .to_vec(),
            group: b"root:x:0:\napp:x:102:\nmail:x:8:app,other\nvideo:x:44:app\nbig:x:70000:app\n"
                .to_vec(),
        }
    }

    #[test]
    fn a_user_becomes_numbers() {
        let user = users().resolve("app").unwrap();
        assert_eq!((user.uid, user.gid, user.groups.as_slice()), (101, 102, &[8, 44][..]));
        assert_eq!(user.home.as_deref(), Some("/srv/app"));
        let user = users().resolve("101:mail").unwrap();
        assert_eq!((user.uid, user.gid, user.groups.len()), (101, 8, 0));
        let user = users().resolve("5000:6000").unwrap();
        assert_eq!((user.uid, user.gid, user.home), (5000, 6000, None));
        assert_eq!(users().resolve("5000").unwrap().gid, 0);
        // A name comes before a number, and a home that is no absolute path is none.
        let user = users().resolve("1000").unwrap();
        assert_eq!((user.uid, user.home), (7, None));
        assert_eq!(users().resolve("root:").unwrap().uid, 0);
    }

    #[test]
    fn users_that_are_not_there_or_do_not_fit_are_errors() {
        for bad in
            ["nobody-here", "app:no-group", "huge", "70000", "1:70000", "broken", "-1", ":app"]
        {
            let error = users().resolve(bad).unwrap_err();
            assert!(error.to_string().contains(bad.trim_matches(':')), "{bad}: {error}");
        }
    }

    #[test]
    fn a_work_directory_is_absolute_and_plain() {
        assert_eq!(workdir("").unwrap(), None);
        assert_eq!(workdir("/").unwrap().as_deref(), Some("/"));
        assert_eq!(workdir("app/./src/").unwrap().as_deref(), Some("/app/src"));
        workdir("/app/../..").unwrap_err();
        workdir("/a\0b").unwrap_err();
    }

    #[test]
    fn a_file_of_the_image_is_never_one_of_the_hosts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.path().join("secret"), "of the host").unwrap();
        std::os::unix::fs::symlink("../../secret", root.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", root.join("etc/group")).unwrap();
        let open = rustix::fs::open(&root, OFlags::PATH, Mode::empty()).unwrap();
        use std::os::fd::AsFd;
        assert_eq!(image_file(open.as_fd(), "etc/passwd", 100), None);
        assert_eq!(image_file(open.as_fd(), "etc/group", 100), None);
        std::fs::write(root.join("secret"), "of the image").unwrap();
        assert_eq!(image_file(open.as_fd(), "etc/passwd", 100).unwrap(), b"of the image");
        assert_eq!(image_file(open.as_fd(), "etc/passwd", 3), None);
        let pipe = root.join("etc/pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(image_file(open.as_fd(), "etc/pipe", 100), None);
    }
}
