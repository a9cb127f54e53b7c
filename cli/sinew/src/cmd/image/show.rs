//! How far a build or an import is: a bar on a terminal, a line per stage elsewhere.

use std::io::IsTerminal;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use sandbox_image::{BuildOptions, Image, ImageStore, Progress, Recipe, Stage};

use crate::output;

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

pub enum Show {
    Bar(ProgressBar),
    Lines { stage: Option<Stage> },
}

impl Show {
    pub fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Show::Lines { stage: None };
        }
        let bar = ProgressBar::new(100);
        let style = ProgressStyle::with_template("{bar:30} {percent:>3} % {elapsed} {msg}");
        // The template is a constant; a default bar is no reason to fail a build.
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Show::Bar(bar)
    }

    pub fn step(&mut self, progress: &Progress) {
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

    pub fn end(self) {
        if let Show::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
