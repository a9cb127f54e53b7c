//! What is shown of an image.

use base_types::{ImageId, Timestamp};
use sandbox_image::{Image, ImageConfig, ImageSource, ImageStore, LeftOut, Users};
use serde::Serialize;

use crate::output;

/// What `--json` prints of an image.
#[derive(Serialize)]
pub struct ImageView<'a> {
    id: &'a ImageId,
    name: &'a str,
    /// All names, the first one included.
    names: Vec<&'a str>,
    checksum: &'a str,
    size_bytes: u64,
    entries: u64,
    built_at: Timestamp,
    packages: usize,
    /// `null`: built here.
    source: Option<&'a ImageSource>,
}

/// What `inspect --json` prints.
#[derive(Serialize)]
pub struct Details<'a> {
    #[serde(flatten)]
    view: ImageView<'a>,
    config: Option<&'a ImageConfig>,
    /// `null`: only root can tell.
    in_use: Option<bool>,
    used_by: Vec<UserView>,
}

#[derive(Serialize)]
struct UserView {
    pid: u32,
    command: String,
}

impl<'a> ImageView<'a> {
    pub fn of(image: &'a Image) -> Self {
        let manifest = &image.manifest;
        Self {
            id: &manifest.id,
            name: &manifest.name,
            names: manifest.names().collect(),
            checksum: &manifest.checksum,
            size_bytes: manifest.size_bytes,
            entries: manifest.entries,
            built_at: manifest.built_at,
            packages: manifest.packages.len(),
            source: manifest.source.as_ref(),
        }
    }
}

impl<'a> Details<'a> {
    pub fn of(store: &ImageStore, image: &'a Image) -> Self {
        let users = store.users(image.id()).ok();
        let named = users.iter().flatten().flat_map(Users::iter);
        let view =
            |user: &sandbox_image::User| UserView { pid: user.pid, command: user.command.clone() };
        Self {
            view: ImageView::of(image),
            config: image.manifest.config.as_ref(),
            used_by: named.map(view).collect(),
            in_use: users.map(|users| users.is_some()),
        }
    }

    pub fn text(&self) -> String {
        let view = &self.view;
        let mut lines = Lines(String::new());
        lines.add("image", view.id.as_str());
        lines.add("names", &view.names.join(", "));
        lines.add("size", &output::bytes(view.size_bytes));
        lines.add("entries", &view.entries.to_string());
        lines.add("packages", &view.packages.to_string());
        lines.add("checksum", view.checksum);
        match view.source {
            None => lines.add("source", "built here"),
            Some(source) => lines.source(source),
        }
        if let Some(config) = self.config {
            lines.config(config);
        }
        let used_by = |user: &UserView| format!("process {} ({})", user.pid, user.command);
        let users: Vec<_> = self.used_by.iter().map(used_by).collect();
        let in_use = match (self.in_use, users.is_empty()) {
            (None, _) => "unknown: only root can tell".to_owned(),
            (Some(false), _) => "no".to_owned(),
            (Some(true), true) => "yes".to_owned(),
            (Some(true), false) => users.join(", "),
        };
        lines.add("in use", &in_use);
        lines.0.trim_end().to_owned()
    }
}

/// `NAME  value`, one a line. What an image says of itself is kept to its line.
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: &str) {
        let value = output::one_line(value, VALUE_CHARS_MAX);
        self.0.push_str(&format!("{name:<12} {value}\n"));
    }

    fn source(&mut self, source: &ImageSource) {
        self.add("source", &format!("{} {}", source.kind, source.from));
        if let Some(reference) = &source.reference {
            self.add("reference", reference);
        }
        self.add("digest", &source.digest);
        let left_out = left_out(&source.left_out);
        if !left_out.is_empty() {
            self.add("left out", &left_out);
        }
    }

    fn config(&mut self, config: &ImageConfig) {
        if let Some(user) = &config.user {
            self.add("user", &format!("{} ({}:{})", user.name, user.uid, user.gid));
        }
        if let Some(workdir) = &config.workdir {
            self.add("work dir", workdir);
        }
        for (name, value) in &config.env {
            self.add("variable", &format!("{name}={value}"));
        }
        for (name, words) in [("entrypoint", &config.entrypoint), ("cmd", &config.cmd)] {
            if !words.is_empty() {
                self.add(name, &serde_json::json!(words).to_string());
            }
        }
        for (name, value) in &config.labels {
            self.add("label", &format!("{name}={value}"));
        }
    }
}

const VALUE_CHARS_MAX: usize = 300;

pub fn names(image: &Image) -> String {
    image.manifest.names().collect::<Vec<_>>().join(", ")
}

pub fn source(image: &Image) -> String {
    image.manifest.source.as_ref().map_or_else(|| "built".to_owned(), |it| it.kind.to_string())
}

/// Empty where nothing was.
pub fn left_out(left_out: &LeftOut) -> String {
    let mut parts = Vec::new();
    let mut part = |count: u64, what: &str| {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    };
    part(left_out.devices, "device nodes (a sandbox has its own /dev)");
    part(left_out.attributes, "extended attributes that no sandbox honours");
    parts.join(", ")
}
