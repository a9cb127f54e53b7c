//! `sinew image import`: Ctrl-C ends it soon and leaves nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use sandbox_image::{
    Image, ImageStore, ImportFrom, ImportImageError, ImportLimits, ImportOptions, UnpackHelper,
};
use tokio::signal::unix::{SignalKind, signal};

use super::show::Show;
use crate::args::ImageImportArgs;
use crate::cmd::block_on_threads;
use crate::exit::{Exit, UsageError};
use crate::installation::images;

pub fn run(args: ImageImportArgs) -> anyhow::Result<Exit> {
    let store = ImageStore::open(&images(&args.data, &args.images)?)?;
    let from = match args.source.as_path() {
        path if path == Path::new("-") => ImportFrom::Stdin,
        path => ImportFrom::Path(path.to_owned()),
    };
    let options = ImportOptions {
        from,
        name: args.name,
        reference: args.reference.filter(|reference| !reference.is_empty()),
        limits: ImportLimits { bytes: args.max_size.0, entries: args.max_entries },
        interrupt: Arc::new(AtomicBool::new(false)),
    };
    let image = block_on_threads(import(store, options))?;
    if !args.json.json
        && let Some(source) = &image.manifest.source
    {
        let left_out = super::view::left_out(&source.left_out);
        if !left_out.is_empty() {
            eprintln!("image: left out: {left_out}");
        }
    }
    super::done(&image, args.json.json)
}

async fn import(store: ImageStore, options: ImportOptions) -> anyhow::Result<Image> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let interrupt = Arc::clone(&options.interrupt);
    let mut work = std::pin::pin!(base_tasks::blocking(move || {
        let mut show = Show::new();
        let image = store.import(&options, &helper(), &mut |progress| show.step(&progress));
        show.end();
        image
    }));
    let mut stopped = async move || {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
            _ = hung_up.recv() => {}
        }
    };
    let image = tokio::select! {
        image = &mut work => image,
        () = stopped() => {
            interrupt.store(true, Ordering::Relaxed);
            // It tidies up. Only a file that cannot be opened, a pipe without a writer, holds it.
            tokio::select! {
                image = &mut work => image,
                () = stopped() => bail!("interrupted twice: the next import removes what is left"),
            }
        }
    };
    match image {
        Err(error @ ImportImageError::Name { .. }) => Err(UsageError(error.to_string()).into()),
        image => image.context("import an image"),
    }
}

/// This program again, as its hidden command `unpack`.
fn helper() -> UnpackHelper {
    UnpackHelper {
        program: "/proc/self/exe".into(),
        args: vec!["unpack".into()],
        map_ids: sandbox_container::map_ids,
    }
}
