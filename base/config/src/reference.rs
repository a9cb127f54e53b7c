//! The reference for operators, made from the table that the parser reads.

use std::fmt::Write;

use crate::keys::{Fallback, Key, Section};

const INTRODUCTION: &str = "\
# Configuration reference

Generated from the program (`base/config/src/keys.rs`); do not edit it by hand.

Every key is optional unless it says otherwise, and so is the file. It is the one that `--config` or
`SINEW_CONFIG` names; else `sinew.toml` in the data directory; else, where no data directory is
named either, `/etc/sinew/sinew.toml`. Variables override the file and flags override variables.
A configuration with a mistake is refused as a whole, with every mistake and its place.

Sizes and durations are texts with a unit: `\"512MiB\"`, `\"2GiB\"`; `\"250ms\"`, `\"90s\"`, `\"10min\"`,
`\"12h\"`, `\"7d\"`. Relative paths in the file are relative to it.

## The official worker's variables

`ANTHROPIC_ENVIRONMENT_ID` and `ANTHROPIC_ENVIRONMENT_KEY` name an environment to serve without any
file. `ANTHROPIC_BASE_URL` is its brain, and the brain of every `[[environment]]` without a
`base_url`. If the id stands in the file too, the variables replace that environment's key and base
URL. `ANTHROPIC_WORKER_ID` is `worker_id`.

## Which profile a session gets

The first `[[profile]]`, in the order of the file, one of whose `[[profile.match]]` holds: everything
that it names is so. A profile without a match holds for every session and stands last. A session
that no profile matches gets `default`, which is built in; a profile of that name replaces it. The
choice is made when a session is first seen, recorded with it and kept.

## What an image says, and what a profile says

An imported image names a user, a work directory, variables, an entrypoint and a command
(`sinew image inspect NAME`); one that `sinew image build` made names nothing. What the profile sets
counts before what the image says:

| of the sandbox | the profile's key | else the image's | else |
|---|---|---|---|
| tools run as | `tools_as` | user; uid 0 is root of the sandbox | `agent`, uid 1000 |
| tools work in | `workdir` | work directory, unless it is `/` | `/workspace` |
| variables | `env`, over the image's | variables, `PATH` among them | – |
| runs beside the tools | `entrypoint`, words | with `entrypoint = true`: entrypoint and command | nothing |

`HOME` and `USER` are those of the image's user where tools run as it, and `agent`'s otherwise.
`/workspace`, `/tmp`, `/etc/resolv.conf` and the rest of what tools count on are made where an image
lacks them. A work directory that the image brings belongs to whom the image says: where that is
root, set `tools_as = \"root\"`, or `workdir = \"/workspace\"`. An image without `bash` is served:
the `bash` tool then answers that there is none, and the others work.

The entrypoint is started by the guest agent, never as process 1, as the tools' user, in the work
directory, with nothing to read. It shares the sandbox's limits and ends with the sandbox. It is not
started again when it ends: the session's log and `sinew session show` say how it ended, and its
last output is in `/run/sinew/output/entrypoint.log`. A session does not wait for it, and does not
fail with it.
";

/// `docs/user/config.md`.
pub fn reference() -> String {
    let mut text = INTRODUCTION.to_owned();
    for section in Section::ALL {
        let title = match section {
            Section::Top => "Top of the file".to_owned(),
            section => format!("`{}`", section.header()),
        };
        // Writing to a `String` cannot fail.
        let _ = write!(text, "\n## {title}\n\n{}", table_head(section));
        section.keys().for_each(|key| text.push_str(&row(key)));
    }
    text
}

fn table_head(section: Section) -> &'static str {
    match has_variables(section) {
        true => "| key | value | default | variable | meaning |\n|---|---|---|---|---|\n",
        false => "| key | value | default | meaning |\n|---|---|---|---|\n",
    }
}

fn has_variables(section: Section) -> bool {
    section.keys().any(|key| key.variable().is_some())
}

fn row(key: &Key) -> String {
    let default = match key.default {
        Fallback::Is(value) => format!("`{value}`"),
        Fallback::Computed(how) => how.to_owned(),
        Fallback::None => "–".to_owned(),
        Fallback::Required => "required".to_owned(),
    };
    let variable = match (has_variables(key.section), key.variable()) {
        (false, _) => String::new(),
        (true, Some(name)) => format!(" `{name}` |"),
        (true, None) => " – |".to_owned(),
    };
    format!("| `{}` | {} | {default} |{variable} {} |\n", key.name, key.kind, key.doc)
}
