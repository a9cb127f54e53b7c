//! `container-start` and `exec`: the driver alone, without brain and journal.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base_types::{CallId, Epoch, SandboxId, VolumeId};
use bench::{Figures, Goal, Machine, Measurement, Report, Unit};
use sandbox_api::guest::call::{Exit, Work};
use sandbox_api::guest::{CallSpec, ExecSpec, GuestClient, OutputLimits, RunAs};
use sandbox_api::{Image, SandboxDriver, SandboxSpec};
use sandbox_image::{DEFAULT_IMAGE, ImageStore};
use sandbox_launcher::{EnsureRunning, LauncherDriver, ensure_running};

use super::peer::Runc;
use crate::scratch::Scratch;

/// Not measured: the first ones load code and fill caches.
const WARM_UP: usize = 10;
pub(super) const PROGRAM: &str = "/bin/true";
const PROGRAM_WAIT: Duration = Duration::from_secs(30);
/// The launcher serves root here; `serve` is not part of these measurements.
const SERVE_UID: u32 = 64_500;

pub async fn container_start(scratch: &mut Scratch, runs: usize) -> anyhow::Result<Report> {
    let (driver, image) = driver(scratch).await?;
    let bundle = scratch.path().join("runc");
    let rootfs = ImageStore::open(scratch.images())?.get(image.id.as_str())?.rootfs();
    let mut runc = Runc::prepare(&bundle, &rootfs)?;
    let (mut starts, mut ends, mut peer) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..WARM_UP + runs {
        let spec = spec(&image);
        let began = Instant::now();
        driver.create(&spec).await.context("create a sandbox")?;
        let guest = driver.connect(&spec.sandbox, spec.epoch).await?;
        let call = run_program(&guest).await?;
        let started = began.elapsed();
        guest.ack(&call).await?;
        let began = Instant::now();
        driver.destroy(&spec.sandbox, &spec.volume).await.context("remove a sandbox")?;
        let ended = began.elapsed();
        let of_peer = runc.as_mut().map(Runc::run).transpose()?;
        if run >= WARM_UP {
            starts.push(started);
            ends.push(ended);
            peer.extend(of_peer);
        }
    }
    let start = Figures::of_durations(&starts)?;
    let mut results = vec![
        ms("create to first exec, no pool of prepared parts", start),
        ms("destroy", Figures::of_durations(&ends)?),
    ];
    if !peer.is_empty() {
        let name = "run the program in a new container, to its removal";
        let figures = Figures::of_durations(&peer)?;
        let peer = Some("runc, without user namespace, quota and limits".to_owned());
        results.push(Measurement { name, unit: Unit::Ms, figures, peer });
    }
    Ok(Report {
        bench: "container-start",
        machine: Machine::this(),
        results,
        goals: vec![Goal::at_most(
            "create to first exec, empty pool, p50 ms",
            60.0,
            Some(start.p50),
        )],
    })
}

pub async fn exec(scratch: &mut Scratch, runs: usize) -> anyhow::Result<Report> {
    let (driver, image) = driver(scratch).await?;
    let spec = spec(&image);
    driver.create(&spec).await.context("create a sandbox")?;
    let guest = driver.connect(&spec.sandbox, spec.epoch).await?;
    let mut inside = Vec::with_capacity(runs);
    let mut outside = Vec::with_capacity(runs);
    // Taken in turns, so that a noisy moment disturbs both.
    for run in 0..WARM_UP + runs {
        let began = Instant::now();
        let call = run_program(&guest).await?;
        let in_guest = began.elapsed();
        guest.ack(&call).await?;
        let began = Instant::now();
        run_on_host()?;
        if run >= WARM_UP {
            inside.push(in_guest);
            outside.push(began.elapsed());
        }
    }
    driver.destroy(&spec.sandbox, &spec.volume).await.context("remove the sandbox")?;
    let (inside, outside) = (Figures::of_durations(&inside)?, Figures::of_durations(&outside)?);
    let beyond = |inside: f64, outside: f64| Some((inside - outside).max(0.0));
    Ok(Report {
        bench: "exec",
        machine: Machine::this(),
        results: vec![
            ms("start and wait for a program in a sandbox", inside),
            ms("fork, exec and wait for it on the host", outside),
        ],
        goals: vec![
            Goal::at_most("beyond fork and exec, p50 ms", 1.0, beyond(inside.p50, outside.p50)),
            Goal::at_most("beyond fork and exec, p99 ms", 3.0, beyond(inside.p99, outside.p99)),
        ],
    })
}

async fn driver(scratch: &Scratch) -> anyhow::Result<(LauncherDriver, Image)> {
    let (data, config) = (scratch.data(), scratch.config());
    let images = scratch.images().to_owned();
    let launched = base_tasks::blocking(move || {
        ensure_running(&EnsureRunning {
            data: &data,
            images: &images,
            config: Some(&config),
            serve_uid: SERVE_UID,
        })
    });
    launched.await.context("start a launcher")?;
    let driver = LauncherDriver::connect(&scratch.data()).await.context("reach the launcher")?;
    let image = driver.image(DEFAULT_IMAGE).await?;
    Ok((driver, image))
}

fn spec(image: &Image) -> SandboxSpec {
    SandboxSpec {
        sandbox: SandboxId::generate(),
        epoch: Epoch::FIRST,
        volume: VolumeId::generate(),
        volume_exists: false,
        image: image.id.clone(),
        profile: base_config::DEFAULT_PROFILE.into(),
        session: "bench".into(),
        tenant: "bench".into(),
    }
}

/// Until its outcome is known; the caller acks, which nobody waits for.
async fn run_program(guest: &GuestClient) -> anyhow::Result<CallId> {
    let call = CallId::generate();
    let spec = CallSpec {
        timeout: PROGRAM_WAIT,
        limits: OutputLimits::default(),
        work: Work::Exec(ExecSpec {
            argv: vec![PROGRAM.to_owned()],
            env: Vec::new(),
            cwd: None,
            run_as: RunAs::Tool,
            stdin: false,
            pty: None,
        }),
    };
    guest.start(&call, &spec).await?;
    let outcome = guest.wait(&call).await?;
    if outcome.exit != Exit::Code(0) {
        bail!("{PROGRAM} in the sandbox ended with {:?}", outcome.exit);
    }
    Ok(call)
}

fn run_on_host() -> anyhow::Result<()> {
    let mut command = Command::new(PROGRAM);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().context("run a program on the host")?;
    if !status.success() {
        bail!("{PROGRAM} on the host ended with {status}");
    }
    Ok(())
}

fn ms(name: &'static str, figures: Figures) -> Measurement {
    Measurement { name, unit: Unit::Ms, figures, peer: None }
}
