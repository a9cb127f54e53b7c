//! What goes into an image. A change here is a change of the recipe's fingerprint, and a cached
//! image of the old fingerprint is then built again.

/// The image of a profile that names none.
pub const DEFAULT_IMAGE: &str = "debian";
/// A bare Debian, built in seconds: for tests of what needs a root filesystem, not of what is in it.
pub const MINIMAL_IMAGE: &str = "debian-minimal";

/// The user that tools run as, by the number that SDKs and images agree on for a first user.
pub const AGENT_UID: u32 = 1000;
pub const AGENT_GID: u32 = 1000;

pub(crate) const SUITE: &str = "bookworm";

/// Raised when the finishing steps change what they leave in the tree.
const FINISH_VERSION: u32 = 1;

/// What an agent that writes and runs programs reaches for, and what the tools themselves call.
const DEFAULT_PACKAGES: &[&str] = &[
    "ca-certificates",
    "curl",
    "file",
    "gcc",
    "git",
    "iproute2",
    "jq",
    "less",
    "libc6-dev",
    "make",
    "nodejs",
    "npm",
    "patch",
    "procps",
    "python3",
    "python3-pip",
    "python3-venv",
    "ripgrep",
    "unzip",
    "vim",
    "xz-utils",
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    pub name: String,
    pub packages: Vec<String>,
}

impl Recipe {
    /// The image that agents get unless their profile says otherwise.
    pub fn debian() -> Self {
        Self {
            name: DEFAULT_IMAGE.to_owned(),
            packages: DEFAULT_PACKAGES.iter().map(|package| (*package).to_owned()).collect(),
        }
    }

    pub fn minimal() -> Self {
        Self { name: MINIMAL_IMAGE.to_owned(), packages: Vec::new() }
    }

    /// How many lines apt and dpkg print for it, for the bar: counted on real builds.
    pub(crate) fn lines_expected(&self) -> usize {
        if self.packages.is_empty() { 500 } else { 2_800 }
    }

    /// Tells whether a cached image was made from what this program would make it from now.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [SUITE, &FINISH_VERSION.to_string(), &self.name] {
            hasher.update(part.as_bytes()).update(b"\n");
        }
        for package in &self.packages {
            hasher.update(package.as_bytes()).update(b"\n");
        }
        hasher.finalize().to_hex().chars().take(16).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_follows_the_packages() {
        let mut recipe = Recipe::debian();
        let before = recipe.fingerprint();
        recipe.packages.push("ed".to_owned());
        assert_ne!(before, recipe.fingerprint());
        assert_ne!(Recipe::minimal().fingerprint(), Recipe::debian().fingerprint());
    }
}
