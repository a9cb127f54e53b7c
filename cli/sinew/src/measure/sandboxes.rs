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
use crate::scratch::{Scratch, end_launcher};

/// Not measured: the first ones load code and fill caches.
const WARM_UP: usize = 10;
/// Between two starts, so that each finds the pool full: it is filled while nothing starts.
const REFILL: Duration = Duration::from_millis(100);
pub(super) const PROGRAM: &str = "/bin/true";
const PROGRAM_WAIT: Duration = Duration::from_secs(30);
/// The launcher serves root here; `serve` is not part of these measurements.
const SERVE_UID: u32 = 64_500;

/// Both ways, one launcher after the other: with parts made ahead, and making all of them itself.
pub async fn container_start(scratch: &mut Scratch, runs: usize) -> anyhow::Result<Report> {
    let ready = starts(scratch, runs, REFILL).await.context("from the pool")?;
    end_launcher(&scratch.data()).await?;
    scratch.configure("[limits]\nstarts_ahead = 0\n")?;
    let empty = starts(scratch, runs, Duration::ZERO).await.context("with an empty pool")?;
    let mut results = vec![
        ms("create to first exec, from the pool of prepared parts", ready.start),
        ms("create to first exec, with the pool empty", empty.start),
        ms("destroy", empty.end),
    ];
    if let Some(figures) = empty.peer {
        let name = "run the program in a new container, to its removal";
        let peer = Some("runc, without user namespace, quota and limits".to_owned());
        results.push(Measurement { name, unit: Unit::Ms, figures, peer });
    }
    let goal = |name, limit, measured| Goal::at_most(name, limit, Some(measured));
    Ok(Report {
        bench: "container-start",
        machine: Machine::this(),
        results,
        goals: vec![
            goal("create to first exec, from the pool, p50 ms", 15.0, ready.start.p50),
            goal("create to first exec, from the pool, p99 ms", 40.0, ready.start.p99),
            goal("create to first exec, empty pool, p50 ms", 60.0, empty.start.p50),
        ],
    })
}

struct Starts {
    start: Figures,
    end: Figures,
    peer: Option<Figures>,
}

async fn starts(scratch: &Scratch, runs: usize, pause: Duration) -> anyhow::Result<Starts> {
    let (driver, image) = driver(scratch).await?;
    // `runc spec` writes into an empty directory only.
    let bundle = scratch.path().join(format!("runc-{}", pause.as_millis()));
    let rootfs = ImageStore::open(scratch.images())?.get(image.id.as_str())?.rootfs();
    let mut runc = Runc::prepare(&bundle, &rootfs)?;
    let (mut starts, mut ends, mut peer) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..WARM_UP + runs {
        tokio::time::sleep(pause).await;
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
    Ok(Starts {
        start: Figures::of_durations(&starts)?,
        end: Figures::of_durations(&ends)?,
        peer: Figures::of_durations(&peer).ok(),
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

pub(super) async fn driver(scratch: &Scratch) -> anyhow::Result<(LauncherDriver, Image)> {
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

pub(super) fn spec(image: &Image) -> SandboxSpec {
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
pub(super) async fn run_program(guest: &GuestClient) -> anyhow::Result<CallId> {
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
    let outcome = guest.run(&call, &spec).await?;
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
