//! `sinew image build|ls`

use std::io::IsTerminal;

use anyhow::Context;
use base_types::{Clock, SystemClock};
use indicatif::{ProgressBar, ProgressStyle};
use sandbox_image::{BuildOptions, Image, ImageStore, Progress, Recipe, Stage};
use serde::Serialize;

use crate::args::{ImageBuildArgs, ImageCommand, ImageLsArgs};
use crate::exit::Exit;
use crate::installation::images;
use crate::output;

/// What `--json` prints of an image.
#[derive(Serialize)]
struct ImageView<'a> {
    id: &'a base_types::ImageId,
    name: &'a str,
    checksum: &'a str,
    size_bytes: u64,
    entries: u64,
    built_at: base_types::Timestamp,
    packages: usize,
}

impl<'a> ImageView<'a> {
    fn of(image: &'a Image) -> Self {
        let manifest = &image.manifest;
        Self {
            id: &manifest.id,
            name: &manifest.name,
            checksum: &manifest.checksum,
            size_bytes: manifest.size_bytes,
            entries: manifest.entries,
            built_at: manifest.built_at,
            packages: manifest.packages.len(),
        }
    }
}

pub fn run(command: ImageCommand) -> anyhow::Result<Exit> {
    match command {
        ImageCommand::Build(args) => build(args),
        ImageCommand::Ls(args) => ls(args),
    }
}

fn build(args: ImageBuildArgs) -> anyhow::Result<Exit> {
    let images = images(&args.data, &args.images)?;
    let store = ImageStore::open(&images)?;
    let recipe = if args.minimal { Recipe::minimal() } else { Recipe::debian() };
    let options = BuildOptions { force: args.force, mirror: args.mirror };
    let image = build_shown(&store, &recipe, &options)?;
    if args.json.json {
        output::json(&ImageView::of(&image))?;
    } else {
        let size = output::bytes(image.manifest.size_bytes);
        output::line(&format!("image {} ({}, {size})", image.id(), image.manifest.name))?;
    }
    Ok(Exit::Ok)
}

/// Builds with a bar on a terminal, and with a line per stage elsewhere.
pub fn build_shown(
    store: &ImageStore,
    recipe: &Recipe,
    options: &BuildOptions,
) -> anyhow::Result<Image> {
    let mut show = Show::new();
    let image = store.build(recipe, options, &mut |progress| show.step(&progress));
    show.end();
    image.context("build an image")
}

enum Show {
    Bar(ProgressBar),
    Lines { stage: Option<Stage> },
}

impl Show {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Show::Lines { stage: None };
        }
        let bar = ProgressBar::new(100);
        let style = ProgressStyle::with_template("{bar:30} {percent:>3} % {elapsed} {msg}");
        // The template is a constant; a default bar is no reason to fail a build.
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Show::Bar(bar)
    }

    fn step(&mut self, progress: &Progress) {
        match self {
            Show::Bar(bar) => {
                bar.set_position(progress.percent.into());
                let detail = output::one_line(&progress.detail, 40);
                bar.set_message(format!("{} {detail}", progress.stage));
            }
            Show::Lines { stage } if *stage != Some(progress.stage) => {
                *stage = Some(progress.stage);
                eprintln!("image: {}", progress.stage);
            }
            Show::Lines { .. } => {}
        }
    }

    fn end(self) {
        if let Show::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn ls(args: ImageLsArgs) -> anyhow::Result<Exit> {
    let images = images(&args.data, &args.images)?;
    // Listing must not make a cache where there is none.
    let list = if images.exists() { ImageStore::open(&images)?.list()? } else { Vec::new() };
    if args.json.json {
        let views: Vec<_> = list.iter().map(ImageView::of).collect();
        output::json(&serde_json::json!({ "cache": images, "images": views }))?;
        return Ok(Exit::Ok);
    }
    let now = SystemClock.now();
    let row = |image: &Image| {
        let manifest = &image.manifest;
        vec![
            manifest.id.to_string(),
            manifest.name.clone(),
            output::bytes(manifest.size_bytes),
            manifest.packages.len().to_string(),
            output::ago(manifest.built_at, now),
        ]
    };
    output::table(&["image", "name", "size", "packages", "built"], list.iter().map(row).collect())?;
    Ok(Exit::Ok)
}
