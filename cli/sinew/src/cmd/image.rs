//! `sinew image build|import|ls|inspect|rm`

mod import;
mod show;
mod view;

use base_types::{Clock, SystemClock};
use sandbox_image::{BuildOptions, Image, ImageStore, Recipe, Removed};

use crate::args::{ImageBuildArgs, ImageCommand, ImageInspectArgs, ImageLsArgs, ImageRmArgs};
use crate::exit::Exit;
use crate::installation::images;
use crate::output;

pub use show::build_shown;
use view::{Details, ImageView};

pub fn run(command: ImageCommand) -> anyhow::Result<Exit> {
    match command {
        ImageCommand::Build(args) => build(args),
        ImageCommand::Import(args) => import::run(args),
        ImageCommand::Ls(args) => ls(args),
        ImageCommand::Inspect(args) => inspect(args),
        ImageCommand::Rm(args) => rm(args),
    }
}

fn build(args: ImageBuildArgs) -> anyhow::Result<Exit> {
    let images = images(&args.data, &args.images)?;
    let store = ImageStore::open(&images)?;
    let recipe = if args.minimal { Recipe::minimal() } else { Recipe::debian() };
    let options = BuildOptions { force: args.force, mirror: args.mirror };
    let image = build_shown(&store, &recipe, &options)?;
    done(&image, args.json.json)
}

fn done(image: &Image, json: bool) -> anyhow::Result<Exit> {
    if json {
        output::json(&ImageView::of(image))?;
    } else {
        let size = output::bytes(image.manifest.size_bytes);
        output::line(&format!("image {} ({}, {size})", image.id(), view::names(image)))?;
    }
    Ok(Exit::Ok)
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
            view::names(image),
            output::bytes(manifest.size_bytes),
            manifest.packages.len().to_string(),
            view::source(image),
            output::ago(manifest.built_at, now),
        ]
    };
    let head = ["image", "name", "size", "packages", "source", "made"];
    output::table(&head, list.iter().map(row).collect())?;
    Ok(Exit::Ok)
}

fn inspect(args: ImageInspectArgs) -> anyhow::Result<Exit> {
    let store = open(&images(&args.data, &args.images)?, &args.image)?;
    let image = store.get(&args.image)?;
    let details = Details::of(&store, &image);
    match args.json.json {
        true => output::json(&details)?,
        false => output::line(&details.text())?,
    }
    Ok(Exit::Ok)
}

fn rm(args: ImageRmArgs) -> anyhow::Result<Exit> {
    let store = open(&images(&args.data, &args.images)?, &args.image)?;
    let id = store.get(&args.image)?.id().clone();
    let removed = store.remove(&args.image)?;
    if args.json.json {
        let left: &[String] = match &removed {
            Removed::Image => &[],
            Removed::Name { left } => left,
        };
        let answer = serde_json::json!({
            "id": id, "removed": matches!(removed, Removed::Image), "names_left": left,
        });
        output::json(&answer)?;
        return Ok(Exit::Ok);
    }
    output::line(&match removed {
        Removed::Image => format!("removed image {id}"),
        Removed::Name { left } => {
            format!("removed the name {}; image {id} is still {}", args.image, left.join(", "))
        }
    })?;
    Ok(Exit::Ok)
}

/// Asking for an image must not make a cache where there is none.
fn open(images: &std::path::Path, wanted: &str) -> anyhow::Result<ImageStore> {
    anyhow::ensure!(
        images.exists(),
        "there is no image `{wanted}`: {} does not exist",
        images.display()
    );
    Ok(ImageStore::open(images)?)
}
