//! `sinew reference PAGE`: pages of docs/user that are made from the code, so that they cannot be
//! wrong about it. CI compares them with what is committed.

use control_server::api::{FaultCode, ROUTES};

use crate::args::{ReferenceArgs, ReferencePage, visible_command};
use crate::cmd::manual;
use crate::exit::{CODES, Exit};
use crate::output;

pub fn run(args: ReferenceArgs) -> anyhow::Result<Exit> {
    let page = match args.page {
        ReferencePage::Man => return manual::run(args.dir),
        ReferencePage::Config => base_config::reference(),
        ReferencePage::Cli => cli_page(),
        ReferencePage::Api => api_page(),
        ReferencePage::Errors => errors_page(),
        ReferencePage::Policy => egress_policy::reference(),
    };
    output::line(page.trim_end())?;
    Ok(Exit::Ok)
}

fn cli_page() -> String {
    let command = visible_command();
    let mut page = String::from(
        "# The command line\n\nMade by `sinew reference cli`.\n\n\
         Sizes are written like `512MiB`, durations like `90s`, `10min` or `7d`. Where a command \
         takes `--json`, its keys are stable. Log lines go to stderr; the variable `SINEW_LOG` \
         says which (`info`, `debug`, `brain_http=trace`).\n",
    );
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        section(&mut page, sub.clone(), "sinew");
    }
    page.push_str("\n## Exit codes\n\n| code | meaning |\n|---|---|\n");
    for (exit, meaning) in CODES {
        page.push_str(&format!("| {} | {meaning} |\n", exit.number()));
    }
    page
}

fn section(page: &mut String, command: clap::Command, parent: &str) {
    let name = format!("{parent} {}", command.get_name());
    let subs = command.get_subcommands().filter(|sub| sub.get_name() != "help");
    let subs: Vec<clap::Command> = subs.cloned().collect();
    if !subs.is_empty() {
        subs.into_iter().for_each(|sub| section(page, sub, &name));
        return;
    }
    // The width of a page, whatever terminal this runs in.
    let mut command = command.term_width(92).bin_name(name.clone());
    let help = command.render_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    page.push_str(&format!("\n## {name}\n\n```text\n{}\n```\n", lines.join("\n").trim_end()));
}

fn api_page() -> String {
    let mut page = String::from(
        "# The API\n\nMade by `sinew reference api`.\n\n\
         `sinew serve` answers HTTP/1.1 on the unix socket `serve.sock` in its data directory, \
         which only its owner and root may use (mode 0600; `--socket-group` opens it to a group). \
         Bodies are JSON; times are milliseconds since 1970. Try it:\n\n\
         ```sh\ncurl --unix-socket /var/lib/sinew/serve.sock http://sinew/api/v1/status\n```\n\n\
         | method | path | what |\n|---|---|---|\n",
    );
    for (method, path, what) in ROUTES {
        page.push_str(&format!("| {method} | `{path}` | {what} |\n"));
    }
    page.push_str(
        "\n## Pages\n\nLists answer `next_after` while there is more: pass it as `after`.\n\n\
         ## Running a program\n\n\
         `POST /api/v1/sessions/{id}/exec` takes `{\"argv\": [\"ls\"], \"env\": [[\"NAME\", \
         \"VALUE\"]], \"cwd\": null, \"root\": false, \"tty\": null, \"stdin\": false, \
         \"timeout_ms\": null}` with the headers `Connection: upgrade` and `Upgrade: \
         sinew-exec/1`, and answers 101. Then both sides send frames: one byte for the kind, four \
         for the payload's length (big endian, at most 65,536), the payload.\n\n\
         | kind | from | payload |\n|---|---|---|\n\
         | 1 | client | input of the program |\n\
         | 2 | client | none: the input ends |\n\
         | 3 | client | `{\"rows\": 24, \"columns\": 80}`: the terminal has another size |\n\
         | 4 | client | a number: send this signal |\n\
         | 16 | server | output, stdout and stderr as they were written |\n\
         | 17 | server, last | `{\"code\": 0, \"note\": null, \"epoch\": 1}`: the program ended |\n\
         | 18 | server, last | `{\"code\", \"message\", \"hint\"}`: its end is not known |\n\n\
         A client that closes the connection kills the program. Each run is a line of the \
         session's log.\n",
    );
    page
}

fn errors_page() -> String {
    let mut page = String::from(
        "# Errors of the API\n\nMade by `sinew reference errors`.\n\n\
         Every refusal has the body `{\"error\": {\"code\", \"message\", \"hint\"}}`. Codes are \
         stable: branch on them, show the message.\n\n\
         | code | status | what to do |\n|---|---|---|\n",
    );
    for code in FaultCode::ALL {
        page.push_str(&format!("| `{code}` | {} | {} |\n", code.status(), code.hint()));
    }
    page
}
