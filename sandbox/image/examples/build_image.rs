//! Fills an image cache without the command line: `build_image DIR [debian|debian-minimal]`.
//! For whoever works on images; `sinew image build` is the same for everybody else.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use base_types::Chain;
use sandbox_image::{BuildOptions, ImageStore, MINIMAL_IMAGE, Progress, Recipe};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(dir) = arguments.next() else {
        eprintln!("usage: build_image DIR [debian|debian-minimal]");
        return ExitCode::from(2);
    };
    let recipe = match arguments.next().as_deref() {
        Some(MINIMAL_IMAGE) => Recipe::minimal(),
        _ => Recipe::debian(),
    };
    let show = &mut |progress: Progress| {
        println!("{:3} % {} {}", progress.percent, progress.stage, progress.detail);
    };
    let store = match ImageStore::open(dir.as_ref()) {
        Ok(store) => store,
        Err(error) => return refuse(&error),
    };
    match store.build(&recipe, &BuildOptions::default(), show) {
        Ok(image) => println!("{} {}", image.id(), image.rootfs().display()),
        Err(error) => return refuse(&error),
    }
    ExitCode::SUCCESS
}

fn refuse(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("build_image: {}", Chain(error));
    ExitCode::FAILURE
}
