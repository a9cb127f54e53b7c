//! `idle-memory`: how much less memory is available for each sandbox that is there and idle.
//!
//! The kernel's own figure (`MemAvailable`) before and after, so that page tables, namespaces,
//! mounts and cgroups count, and what several sandboxes share counts once.

use std::time::Duration;

use anyhow::Context;
use bench::{Figures, Goal, Machine, Measurement, Report, Unit};
use sandbox_api::SandboxDriver;

use super::sandboxes::{driver, run_program, spec};
use crate::scratch::Scratch;

/// Enough that one process more or less elsewhere does not show.
const SANDBOXES: usize = 200;
const ROUNDS: usize = 3;
/// Not measured: what the first ones load stays loaded.
const WARM_UP: usize = 5;
/// What was started last settles, and what was freed is really free.
const SETTLE: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOKS: usize = 11;

pub async fn idle_memory(scratch: &mut Scratch) -> anyhow::Result<Report> {
    let (driver, image) = driver(scratch).await?;
    let mut rounds = Vec::with_capacity(ROUNDS);
    begin_and_end(&driver, &image, WARM_UP).await?;
    for _ in 0..ROUNDS {
        rounds.push(begin_and_end(&driver, &image, SANDBOXES).await?);
    }
    let figures = Figures::of(&rounds)?;
    let name = "memory of an idle container, all-in";
    Ok(Report {
        bench: "idle-memory",
        machine: Machine::this(),
        results: vec![Measurement { name, unit: Unit::Mib, figures, peer: None }],
        goals: vec![Goal::at_most("memory of an idle container, MiB", 3.0, Some(figures.p50))],
    })
}

/// MiB for each of `count` sandboxes, each of which has run a program and waits for the next.
async fn begin_and_end(
    driver: &impl SandboxDriver,
    image: &sandbox_api::Image,
    count: usize,
) -> anyhow::Result<f64> {
    let before = available_mib().await?;
    let mut sandboxes = Vec::with_capacity(count);
    for _ in 0..count {
        let spec = spec(image);
        driver.create(&spec).await.context("create a sandbox")?;
        let guest = driver.connect(&spec.sandbox, spec.epoch).await?;
        let call = run_program(&guest).await?;
        guest.ack(&call).await?;
        sandboxes.push((spec, guest));
    }
    let with_them = available_mib().await?;
    for (spec, guest) in sandboxes {
        drop(guest);
        driver.destroy(&spec.sandbox, &spec.volume).await.context("remove a sandbox")?;
    }
    Ok((before - with_them) / count as f64)
}

/// The median of a second, after a moment of rest.
async fn available_mib() -> anyhow::Result<f64> {
    tokio::time::sleep(SETTLE).await;
    let mut looks = Vec::with_capacity(LOOKS);
    for _ in 0..LOOKS {
        tokio::time::sleep(LOOK_EVERY).await;
        let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
        let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        let kib = kib.and_then(|text| text.trim().trim_end_matches(" kB").parse::<f64>().ok());
        looks.push(kib.context("/proc/meminfo does not say what is available")? / 1024.0);
    }
    Ok(Figures::of(&looks)?.p50)
}
