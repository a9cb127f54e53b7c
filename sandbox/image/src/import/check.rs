//! A last look at what the unpacker reports. It read hostile bytes, so that it may have been taken
//! over; a manifest must not hold what those who start sandboxes do not expect.

use crate::config::{ImageConfig, ResolvedUser};
use crate::unpack::limits::{
    CONFIG_BYTES_MAX, CONFIG_WORDS_MAX, GROUPS_MAX, LABEL_BYTES_MAX, LABELS_MAX, LAYERS_MAX,
    PACKAGE_BYTES_MAX, PACKAGE_WORD_BYTES_MAX, PACKAGES_MAX,
};
use crate::wire::Report;

const ID_MAX: u32 = 65_535;
/// A name, a digest, an architecture.
const WORD_BYTES_MAX: usize = 1024;
const PATH_BYTES_MAX: usize = 4096;

pub fn report(report: &Report) -> Result<(), String> {
    let source = &report.source;
    short("its source", source.reference.iter().chain([&source.digest]).chain(&source.diff_ids))?;
    require("it has too many layers", source.diff_ids.len() <= LAYERS_MAX)?;
    let bytes = report.packages.iter().map(|it| it.name.len() + it.version.len()).sum::<usize>();
    let few = report.packages.len() <= PACKAGES_MAX && bytes <= PACKAGE_BYTES_MAX;
    require("it has too many packages", few)?;
    let plain =
        |text: &String| text.len() <= PACKAGE_WORD_BYTES_MAX && !text.chars().any(char::is_control);
    let packages = report.packages.iter().all(|it| plain(&it.name) && plain(&it.version));
    require("a package has no plain name", packages)?;
    report.config.as_ref().map_or(Ok(()), config)
}

fn config(config: &ImageConfig) -> Result<(), String> {
    let words = || config.entrypoint.iter().chain(&config.cmd);
    let variables = || config.env.iter();
    let count = words().count() + variables().count();
    let bytes = words().map(String::len).sum::<usize>()
        + variables().map(|(name, value)| name.len() + value.len() + 1).sum::<usize>();
    require(
        "its configuration is too large",
        count <= CONFIG_WORDS_MAX && bytes <= CONFIG_BYTES_MAX,
    )?;
    require("a word of it holds a NUL", !words().any(|word| word.contains('\0')))?;
    let named = variables().all(|(name, value)| {
        !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
    });
    require("a variable of it has no name or a NUL", named)?;
    short(
        "its configuration",
        [&config.stop_signal, &config.architecture, &config.os].into_iter().flatten(),
    )?;
    let labels = config.labels.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    require(
        "it has too many labels",
        config.labels.len() <= LABELS_MAX && labels <= LABEL_BYTES_MAX,
    )?;
    require(
        "its work directory is no plain path",
        config.workdir.iter().all(|path| is_plain(path)),
    )?;
    config.user.as_ref().map_or(Ok(()), user)
}

fn user(user: &ResolvedUser) -> Result<(), String> {
    short("its user", [&user.name].into_iter())?;
    let ids = [user.uid, user.gid].into_iter().chain(user.groups.iter().copied());
    require("its user has an id beyond 65535", ids.into_iter().all(|id| id <= ID_MAX))?;
    require("its user has too many groups", user.groups.len() <= GROUPS_MAX)?;
    let is_path = |home: &String| {
        home.starts_with('/') && home.len() <= PATH_BYTES_MAX && !home.contains('\0')
    };
    require("its user's home is no path", user.home.iter().all(is_path))
}

fn is_plain(path: &str) -> bool {
    let detour = |component: &str| matches!(component, "." | "..");
    path.starts_with('/')
        && path.len() <= PATH_BYTES_MAX
        && !path.contains('\0')
        && !path.split('/').any(detour)
}

fn short<'a>(what: &str, mut texts: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let fits = |text: &String| text.len() <= WORD_BYTES_MAX && !text.chars().any(char::is_control);
    require(&format!("{what} has a text that is no word"), texts.all(fits))
}

fn require(reason: &str, holds: bool) -> Result<(), String> {
    if holds { Ok(()) } else { Err(reason.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ImageSource, LeftOut, SourceKind};
    use crate::manifest::Package;

    fn good() -> Report {
        let user = ResolvedUser {
            name: "app".to_owned(),
            uid: 101,
            gid: 102,
            groups: vec![8],
            home: Some("/srv/app".to_owned()),
        };
        let config = ImageConfig {
            user: Some(user),
            workdir: Some("/srv/app".to_owned()),
            env: vec![("PATH".to_owned(), "/bin".to_owned())],
            cmd: vec!["sh".to_owned()],
            ..ImageConfig::default()
        };
        Report {
            source: ImageSource {
                kind: SourceKind::OciLayout,
                from: String::new(),
                reference: Some("app:1".to_owned()),
                digest: "sha256:00".to_owned(),
                diff_ids: Vec::new(),
                left_out: LeftOut::default(),
            },
            config: Some(config),
            packages: vec![Package { name: "bash".to_owned(), version: "5".to_owned() }],
        }
    }

    #[track_caller]
    fn refused(spoil: impl FnOnce(&mut ImageConfig)) {
        let mut bad = good();
        spoil(bad.config.as_mut().unwrap());
        report(&bad).unwrap_err();
    }

    #[test]
    fn what_a_taken_over_unpacker_would_say_is_refused() {
        report(&good()).unwrap();
        refused(|it| it.user.as_mut().unwrap().uid = 65_536);
        refused(|it| it.user.as_mut().unwrap().groups = vec![70_000]);
        refused(|it| it.user.as_mut().unwrap().home = Some("../..".to_owned()));
        refused(|it| it.workdir = Some("/a/../..".to_owned()));
        refused(|it| it.workdir = Some("relative".to_owned()));
        refused(|it| it.env = vec![("A=B".to_owned(), String::new())]);
        refused(|it| it.env = vec![("A".to_owned(), "x".repeat(CONFIG_BYTES_MAX))]);
        refused(|it| it.cmd = vec!["a\0b".to_owned()]);
        refused(|it| it.entrypoint = vec![String::new(); CONFIG_WORDS_MAX + 1]);
        refused(|it| it.os = Some("\u{1b}[2J".to_owned()));
        let mut bad = good();
        bad.packages = vec![bad.packages[0].clone(); PACKAGES_MAX + 1];
        report(&bad).unwrap_err();
    }
}
