//! Which package sources a build uses: those of the host, where it is the same Debian, so that a
//! mirror or proxy an operator has set up is used here too.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::recipe::SUITE;

const COMPONENT: &str = "main";

/// The host's sources for our suite as one-line entries; none on another distribution, and then
/// the bootstrap's own default is used.
pub(crate) fn host_sources(etc_apt: &Path) -> Vec<String> {
    let mut entries = Vec::new();
    let mut read = |path: &Path| {
        let Ok(text) = fs::read_to_string(path) else { return };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("list") => one_line_entries(&text, &mut entries),
            Some("sources") => stanzas(&text, &mut entries),
            _ => {}
        }
    };
    read(&etc_apt.join("sources.list"));
    let mut parts: Vec<_> = fs::read_dir(etc_apt.join("sources.list.d"))
        .map(|dir| dir.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    parts.sort();
    parts.iter().for_each(|path| read(path));
    entries
}

/// The host's proxies for apt, as lines of its configuration. They are for the build only: the
/// caller keeps them out of the image.
pub(crate) fn host_proxies() -> Vec<String> {
    let dump = Command::new("apt-config").args(["dump", "Acquire"]).output();
    // Without apt on the host there is no proxy of apt's either.
    let text = dump.map(|output| output.stdout).unwrap_or_default();
    proxies(&String::from_utf8_lossy(&text))
}

fn proxies(dump: &str) -> Vec<String> {
    let is_proxy = |line: &&str| {
        let key = line.split(' ').next().unwrap_or_default();
        key.starts_with("Acquire::") && key.split("::").any(|part| part == "Proxy")
    };
    dump.lines().filter(is_proxy).map(str::to_owned).collect()
}

/// Without the user and password that a private mirror's address may carry: no credential enters
/// a sandbox.
pub(crate) fn without_credentials(entry: &str) -> String {
    let Some((scheme, rest)) = entry.split_once("://") else { return entry.to_owned() };
    let authority_end = rest.find(['/', ' ']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(authority_end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{tail}")
}

fn wanted_suite(suite: &str) -> bool {
    let suffix = suite.strip_prefix(SUITE);
    matches!(suffix, Some("" | "-updates" | "-security")) || suite == format!("{SUITE}/updates")
}

fn one_line_entries(text: &str, entries: &mut Vec<String>) {
    for line in text.lines().map(str::trim) {
        let Some(rest) = line.strip_prefix("deb ") else { continue };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            Some((options, rest)) => (format!("[{}] ", options.trim()), rest),
            None => (String::new(), rest),
        };
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        if wanted_suite(suite) && words.any(|component| component == COMPONENT) {
            entries.push(format!("deb {options}{uri} {suite} {COMPONENT}"));
        }
    }
}

fn stanzas(text: &str, entries: &mut Vec<String>) {
    let without_comments: Vec<&str> =
        text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    for stanza in without_comments.join("\n").split("\n\n") {
        let field = |name: &str| {
            stanza.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let has = |name, word: &str| {
            field(name).is_some_and(|value| value.split_whitespace().any(|item| item == word))
        };
        let off = field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
        if off || !has("Types", "deb") || !has("Components", COMPONENT) {
            continue;
        }
        // A key that is written out in the file itself is left to apt's own trust.
        let signed_by = field("Signed-By").filter(|path| path.starts_with('/'));
        let options = signed_by.map(|path| format!("[signed-by={path}] ")).unwrap_or_default();
        for uri in field("URIs").unwrap_or_default().split_whitespace() {
            for suite in field("Suites").unwrap_or_default().split_whitespace() {
                if wanted_suite(suite) {
                    entries.push(format!("deb {options}{uri} {suite} {COMPONENT}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read_and_third_parties_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let parts = dir.path().join("sources.list.d");
        fs::create_dir(&parts).unwrap();
        fs::write(
            dir.path().join("sources.list"),
            "# comment\ndeb [arch=amd64] http://mirror/debian bookworm main contrib\n\
             deb-src http://mirror/debian bookworm main\n\
             deb http://other/ bookworm-vendor main\ndeb http://old/debian bullseye main\n",
        )
        .unwrap();
        fs::write(
            parts.join("debian.sources"),
            "Types: deb\n# a comment\nURIs: http://security/debian-security\n\
             Suites: bookworm-security\nComponents: main\nSigned-By: /usr/share/keyrings/k.gpg\n\n\
             Types: deb\nURIs: http://vendor\nSuites: nodistro\nComponents: main\n\n\
             Enabled: no\nTypes: deb\nURIs: http://off\nSuites: bookworm\nComponents: main\n",
        )
        .unwrap();
        fs::write(parts.join("ignored.bak"), "deb http://bak bookworm main\n").unwrap();
        assert_eq!(
            host_sources(dir.path()),
            [
                "deb [arch=amd64] http://mirror/debian bookworm main",
                "deb [signed-by=/usr/share/keyrings/k.gpg] http://security/debian-security \
                 bookworm-security main",
            ]
        );
    }

    #[test]
    fn only_proxies_are_taken_from_apts_configuration() {
        let dump = "Acquire \"\";\nAcquire::Retries \"3\";\n\
                    Acquire::http::Proxy \"http://proxy:3128\";\n\
                    Acquire::http::Proxy::mirror \"DIRECT\";\n";
        assert_eq!(
            proxies(dump),
            [
                "Acquire::http::Proxy \"http://proxy:3128\";",
                "Acquire::http::Proxy::mirror \"DIRECT\";"
            ]
        );
    }

    #[test]
    fn a_password_does_not_enter_the_image() {
        let entry = "deb https://user:pa@ss@mirror.example:8080/debian bookworm main";
        assert_eq!(
            without_credentials(entry),
            "deb https://mirror.example:8080/debian bookworm main"
        );
        let plain = "deb [signed-by=/k] http://mirror/debian bookworm main";
        assert_eq!(without_credentials(plain), plain);
    }
}
