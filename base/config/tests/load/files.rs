//! Where the file, the data directory and the images are found.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use base_config::{Overrides, Sources, load, paths};

use crate::setup::{Setup, refused_for};

#[test]
fn a_named_file_must_exist_and_another_need_not() {
    let mut setup = Setup::without_file();
    setup.overrides.config = Some(setup.path("none.toml"));
    let [problem] = &setup.refused()[..] else { panic!("one problem") };
    assert!(problem.starts_with("--config: configuration none.toml cannot be read"), "{problem}");

    let other = Setup::without_file().file("other.toml", "user = 5", 0o644);
    let path = other.path("other.toml").display().to_string();
    let other = other.variable("SINEW_CONFIG", path);
    assert_eq!(other.accepted().user, 5);

    let folder = Setup::without_file();
    fs::create_dir(folder.path("sinew.toml")).expect("make a folder");
    assert!(folder.refused()[0].contains("it is not a file"));
    let binary = Setup::without_file();
    fs::write(binary.path("sinew.toml"), [0xff, 0xfe]).expect("write");
    assert!(binary.refused()[0].contains("it is not UTF-8"));
    let large = Setup::new(&"#".repeat((1 << 20) + 1));
    assert!(large.refused()[0].contains("larger than 1 MiB"));
}

/// A command that only looks for the socket is not kept from it by a mistake elsewhere.
#[test]
fn the_directories_are_found_in_a_wrong_file() {
    let setup = Setup::new("images = \"cache\"\nusr = 1\n[limits]\nidle = 5\n");
    let found = paths(&setup.sources()).expect("the directories are right");
    assert_eq!((found.data.as_path(), found.images), (setup.folder.path(), setup.path("cache")));
    assert_eq!(found.file, Some(setup.path("sinew.toml")));
    let wrong = Setup::new("images = 5\n");
    assert_eq!(paths(&wrong.sources()).expect_err("wrong images").problems.len(), 1);

    // Where the file itself would say which directory, a line that cannot be read matters.
    let broken = Setup::new("data = \"open\n");
    assert!(paths(&broken.sources()).is_ok());
    let elsewhere = Setup {
        overrides: Overrides { config: Some(broken.path("sinew.toml")), ..Overrides::default() },
        ..Setup::without_file()
    };
    assert!(paths(&elsewhere.sources()).is_err());
}

#[test]
fn default_directories_are_the_users_own() {
    let of = |root, variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        let sources = Sources::new(Overrides::default(), variables, root);
        paths(&sources).map(|paths| paths.data)
    };
    assert_eq!(of(true, &[]).as_deref(), Ok(Path::new("/var/lib/sinew")));
    let home = ("HOME", "/nobody/here");
    let expected = Path::new("/nobody/here/.local/share/sinew");
    assert_eq!(of(false, &[home]).as_deref(), Ok(expected));
    let xdg = ("XDG_DATA_HOME", "/nobody/data");
    assert_eq!(of(false, &[home, xdg]).as_deref(), Ok(Path::new("/nobody/data/sinew")));
    assert_eq!(of(false, &[("SINEW_DATA", "/else")]).as_deref(), Ok(Path::new("/else")));
    assert!(of(false, &[]).is_err());
}

#[test]
fn paths_are_taken_as_they_are() {
    use std::os::unix::ffi::OsStringExt;
    let mut setup = Setup::without_file();
    let odd = PathBuf::from(OsString::from_vec(b"/images/\xff".to_vec()));
    setup.overrides.images = Some(odd.clone());
    assert_eq!(setup.accepted().images, odd);
    setup.overrides.images = Some("relative".into());
    assert!(setup.accepted().images.is_absolute());
    setup.overrides.images = Some("".into());
    assert_eq!(setup.refused(), ["--images: is empty: write a path"]);
    refused_for(
        "images = \"~/images\"\n",
        "1:10: `images` begins with `~`, which only a shell knows: write the path out",
    );
}

#[test]
fn the_launcher_takes_no_file_that_others_can_write() {
    let setup = Setup::new("user = 5\n").file("sinew.toml", "user = 5\n", 0o644);
    if fs::metadata(setup.path("sinew.toml")).map(|m| std::os::unix::fs::MetadataExt::uid(&m)).ok()
        != Some(0)
    {
        eprintln!("SKIP the_launcher_takes_no_file_that_others_can_write: needs root");
        return;
    }
    assert_eq!(load(&setup.sources().only_roots_own_file()).map(|config| config.user), Ok(5));
    for mode in [0o664, 0o646] {
        let setup = setup_with_mode(mode);
        let errors = load(&setup.sources().only_roots_own_file()).expect_err("others may write");
        assert!(errors.to_string().contains("others than root may write it: chown root"));
        assert!(load(&setup.sources()).is_ok());
    }
    std::os::unix::fs::chown(setup.path("sinew.toml"), Some(1000), None).expect("chown");
    assert!(load(&setup.sources().only_roots_own_file()).is_err());
}

fn setup_with_mode(mode: u32) -> Setup {
    Setup::without_file().file("sinew.toml", "user = 5\n", mode)
}
