//! What runs inside a sandbox: the profile's words over the image's.
//!
//! **Invariant:** what an image says was resolved to numbers and texts when it was imported; here
//! it only chooses among what any guest may be. Nothing of it is a path on the host, and whatever
//! does not fit is left out, so that an odd image starts all the same.

use sandbox_api::guest::boot;

use crate::parts::{Entrypoint, Shape, ToolsAs};

/// Where tools work unless somebody says otherwise.
const WORKDIR: &str = "/workspace";
/// Directories deep, and bytes, that an image's work directory may be; a container takes no more.
const WORKDIR_DEPTH_MAX: usize = 64;
const WORKDIR_BYTES_MAX: usize = 4095;
const NAME_BYTES_MAX: usize = 255;
/// Variables of an image that are taken: far over what any names.
const IMAGE_VARIABLES_MAX: usize = 512;
/// All of them together; a program gets no more than two MiB of arguments and variables.
const IMAGE_ENV_BYTES_MAX: usize = 256 << 10;
/// The kernel's own for one, `=` and NUL included: with a longer one no program starts at all.
const VARIABLE_BYTES_MAX: usize = 128 << 10;
/// Variables that say who runs. An image's are meant for its own user.
const OF_THE_USER: [&str; 3] = ["HOME", "USER", "LOGNAME"];
/// The control plane's own, which no guest gets.
const RESERVED: [&str; 2] = ["ANTHROPIC_", "SINEW_"];

/// What the configuration of an image says of what runs in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageWords {
    pub user: Option<User>,
    pub workdir: Option<String>,
    pub env: Vec<(String, String)>,
    /// Entrypoint and command, in this order.
    pub command: Vec<String>,
}

/// A user by canonical ids, which are the same in image, volume and sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub name: String,
    pub home: String,
}

/// What is started in the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    pub tools_as: ToolsAs,
    /// Whom the work directory belongs to; tools run as it unless they are root.
    pub user: User,
    pub workdir: String,
    pub env: Vec<(String, String)>,
    /// Without a word it was asked for, and the image names none.
    pub entrypoint: Option<Vec<String>>,
}

impl User {
    /// The user of images that name none.
    pub fn agent() -> Self {
        Self {
            uid: 1000,
            gid: 1000,
            groups: Vec::new(),
            name: "agent".to_owned(),
            home: "/home/agent".to_owned(),
        }
    }

    /// Without what a container would refuse.
    fn fitting(&self) -> Self {
        let mut user = self.clone();
        user.groups.truncate(boot::TOOL_GROUPS_MAX);
        let odd = |text: &str| text.contains(char::is_control) || text.len() > NAME_BYTES_MAX;
        if odd(&user.name) {
            user.name = user.uid.to_string();
        }
        if odd(&user.home) || !user.home.starts_with('/') {
            user.home = Self::agent().home;
        }
        user
    }
}

impl Guest {
    pub fn of(shape: &Shape, image: &ImageWords) -> Self {
        let images_user = image.user.as_ref().filter(|_| shape.tools_as.is_none());
        let user = images_user.map_or_else(User::agent, User::fitting);
        let tools_as = match (shape.tools_as, user.uid) {
            (Some(tools_as), _) => tools_as,
            (None, 0) => ToolsAs::Root,
            (None, _) => ToolsAs::User,
        };
        let images_workdir = image.workdir.as_ref().filter(|path| is_workdir(path));
        let workdir = shape.workdir.as_ref().or(images_workdir);
        Self {
            tools_as,
            user,
            workdir: workdir.cloned().unwrap_or_else(|| WORKDIR.to_owned()),
            env: env(shape, image, images_user.is_some()),
            entrypoint: match &shape.entrypoint {
                Entrypoint::None => None,
                Entrypoint::OfImage if boot::entrypoint_fits(&image.command) => {
                    Some(image.command.clone())
                }
                Entrypoint::OfImage => Some(Vec::new()),
                Entrypoint::Command(words) => Some(words.clone()),
            },
        }
    }
}

/// The root directory is what builders write where nobody chose one, and no place to work in.
fn is_workdir(path: &str) -> bool {
    let names = path.split('/').filter(|name| !matches!(*name, "" | "."));
    let names: Vec<&str> = names.collect();
    let fits = |name: &&str| *name != ".." && name.len() <= NAME_BYTES_MAX;
    path.starts_with('/')
        && path.len() <= WORKDIR_BYTES_MAX
        && (1..=WORKDIR_DEPTH_MAX).contains(&names.len())
        && names.iter().all(fits)
        && !path.contains('\0')
}

fn env(shape: &Shape, image: &ImageWords, is_images_user: bool) -> Vec<(String, String)> {
    let is_passed = |name: &str, value: &str| {
        let of_another = OF_THE_USER.contains(&name) && !is_images_user;
        let reserved = RESERVED.iter().any(|prefix| name.starts_with(prefix));
        let overridden = shape.env.iter().any(|(own, _)| own == name);
        let odd = name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
        !of_another && !reserved && !overridden && !odd
    };
    let mut env = Vec::new();
    let mut room = IMAGE_ENV_BYTES_MAX;
    for (name, value) in image.env.iter().take(IMAGE_VARIABLES_MAX) {
        let bytes = name.len() + value.len();
        let fits = bytes <= room && bytes + 2 <= VARIABLE_BYTES_MAX;
        if is_passed(name, value) && fits {
            room -= bytes;
            env.push((name.clone(), value.clone()));
        }
    }
    env.extend(shape.env.iter().cloned());
    env
}

#[cfg(test)]
mod tests {
    use base_types::ByteSize;
    use sandbox_api::{Limits, Tier};

    use super::*;

    fn shape() -> Shape {
        let size = ByteSize::mib(64);
        Shape {
            tier: Tier::Container,
            limits: Limits { cpu_millis: 1000, memory: size, pids: 64, disk: size },
            tools_as: None,
            workdir: None,
            entrypoint: Entrypoint::None,
            env: Vec::new(),
        }
    }

    fn texts(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn image(uid: u32) -> ImageWords {
        let user = User {
            uid,
            gid: 34,
            groups: vec![35],
            name: "www".to_owned(),
            home: "/var/www".to_owned(),
        };
        ImageWords {
            user: Some(user),
            workdir: Some("/srv".to_owned()),
            env: texts(&[("PATH", "/app/bin"), ("A", "image"), ("HOME", "/srv/home")]),
            command: vec!["httpd".to_owned(), "-f".to_owned()],
        }
    }

    #[test]
    fn an_image_that_says_nothing_is_as_ever() {
        let guest = Guest::of(&shape(), &ImageWords::default());
        let expected = Guest {
            tools_as: ToolsAs::User,
            user: User::agent(),
            workdir: "/workspace".to_owned(),
            env: Vec::new(),
            entrypoint: None,
        };
        assert_eq!(guest, expected);
        let root = Shape { tools_as: Some(ToolsAs::Root), ..shape() };
        let root = Guest::of(&root, &ImageWords::default());
        assert_eq!(root, Guest { tools_as: ToolsAs::Root, ..expected });
    }

    #[test]
    fn an_image_is_believed_where_the_profile_says_nothing() {
        let guest = Guest::of(&shape(), &image(33));
        assert_eq!((guest.tools_as, guest.user), (ToolsAs::User, image(33).user.unwrap()));
        assert_eq!(guest.workdir, "/srv");
        assert_eq!(guest.env, image(33).env);
        assert_eq!(guest.entrypoint, None, "only where the profile asks for it");
        let of_image = Shape { entrypoint: Entrypoint::OfImage, ..shape() };
        assert_eq!(Guest::of(&of_image, &image(33)).entrypoint, Some(image(33).command));
        assert_eq!(Guest::of(&of_image, &ImageWords::default()).entrypoint, Some(Vec::new()));
        let root = Guest::of(&shape(), &image(0));
        assert_eq!(
            (root.tools_as, root.user.uid, root.user.name.as_str()),
            (ToolsAs::Root, 0, "www")
        );
    }

    #[test]
    fn the_profile_counts_before_the_image() {
        let own = vec!["sleep".to_owned(), "9".to_owned()];
        let shape = Shape {
            tools_as: Some(ToolsAs::User),
            workdir: Some("/w".to_owned()),
            entrypoint: Entrypoint::Command(own.clone()),
            env: texts(&[("A", "profile"), ("B", "2")]),
            ..shape()
        };
        let guest = Guest::of(&shape, &image(0));
        assert_eq!((guest.tools_as, guest.user), (ToolsAs::User, User::agent()));
        assert_eq!((guest.workdir.as_str(), guest.entrypoint), ("/w", Some(own)));
        let env = texts(&[("PATH", "/app/bin"), ("A", "profile"), ("B", "2")]);
        assert_eq!(guest.env, env, "and HOME is the agent's own, not that of the image's user");
    }

    #[test]
    fn what_of_an_image_does_not_fit_is_left_out() {
        let deep = "/a".repeat(WORKDIR_DEPTH_MAX + 1);
        for workdir in ["/", "//./", "srv", "", "/srv/../../etc", "..", "/a\0", &deep] {
            let odd = ImageWords { workdir: Some(workdir.to_owned()), ..image(33) };
            assert_eq!(Guest::of(&shape(), &odd).workdir, "/workspace", "{workdir}");
        }
        let mut odd = image(33);
        let user = odd.user.as_mut().unwrap();
        (user.name, user.home) = ("a\nb".to_owned(), "home".to_owned());
        user.groups = vec![1; 100];
        let user = Guest::of(&shape(), &odd).user;
        let fitting = (user.name.as_str(), user.home.as_str(), user.groups.len());
        assert_eq!(fitting, ("33", "/home/agent", 64));
        let long = ImageWords { command: vec!["x".to_owned(); 257], ..image(33) };
        let of_image = Shape { entrypoint: Entrypoint::OfImage, ..shape() };
        assert_eq!(Guest::of(&of_image, &long).entrypoint, Some(Vec::new()));
        let mut odd = image(33);
        odd.env = texts(&[
            ("", "x"),
            ("A=B", "x"),
            ("N", "a\0b"),
            ("ANTHROPIC_API_KEY", "x"),
            ("SINEW_DATA", "x"),
            ("BIG", &"x".repeat(IMAGE_ENV_BYTES_MAX)),
            ("TOO_LONG_FOR_EXEC", &"x".repeat((128 << 10) - 18)),
            ("KEPT", "x"),
            ("LONG", &"x".repeat((128 << 10) - 6)),
        ]);
        let kept: Vec<_> =
            Guest::of(&shape(), &odd).env.into_iter().map(|(name, _)| name).collect();
        assert_eq!(kept, ["KEPT", "LONG"]);
        odd.env = (0..IMAGE_VARIABLES_MAX * 2).map(|n| (format!("V{n}"), String::new())).collect();
        assert_eq!(Guest::of(&shape(), &odd).env.len(), IMAGE_VARIABLES_MAX);
    }
}
