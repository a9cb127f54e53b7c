//! `sinew bench`: measures this machine, for real, on an installation that is gone afterwards.

use anyhow::{Context, bail};
use bench::{RUNS_MIN, Report, Unit};
use sandbox_image::{BuildOptions, ImageStore, Recipe};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{BenchArgs, LogFormat};
use crate::cmd::block_on_threads;
use crate::cmd::image::build_shown;
use crate::exit::{Exit, UsageError};
use crate::measure::Benchmark;
use crate::scratch::Scratch;
use crate::{logging, output};

pub fn run(args: BenchArgs) -> anyhow::Result<Exit> {
    logging::init(LogFormat::Text, "error");
    let benchmarks = chosen(&args.names)?;
    if args.runs < RUNS_MIN {
        return Err(UsageError(format!("--runs must be at least {RUNS_MIN}")).into());
    }
    block_on_threads(measure_all(args, benchmarks))
}

fn chosen(names: &[String]) -> anyhow::Result<Vec<Benchmark>> {
    if names.is_empty() {
        return Ok(Benchmark::ALL.to_vec());
    }
    let find = |name: &String| {
        Benchmark::ALL.into_iter().find(|bench| bench.name() == name).ok_or_else(|| {
            let known: Vec<_> = Benchmark::ALL.iter().map(|bench| bench.name()).collect();
            UsageError(format!("no benchmark `{name}`: there are {}", known.join(", "))).into()
        })
    };
    names.iter().map(find).collect()
}

async fn measure_all(args: BenchArgs, benchmarks: Vec<Benchmark>) -> anyhow::Result<Exit> {
    let images = std::path::absolute(&args.images)?;
    let store = ImageStore::open(&images)?;
    let build = move || build_shown(&store, &Recipe::debian(), &BuildOptions::default());
    base_tasks::blocking(build).await?;
    let mut all_met = true;
    let count = benchmarks.len();
    for (done, benchmark) in benchmarks.into_iter().enumerate() {
        eprintln!("bench: {} ({} of {count})", benchmark.name(), done + 1);
        let report = in_scratch(benchmark, &args).await?;
        all_met &= report.meets_its_goals();
        if args.json {
            output::json_line(&report)?;
        } else {
            show(&report)?;
        }
    }
    Ok(if args.strict && !all_met { Exit::GoalMissed } else { Exit::Ok })
}

/// Each benchmark has an installation of its own, so that none measures another's leftovers.
async fn in_scratch(benchmark: Benchmark, args: &BenchArgs) -> anyhow::Result<Report> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut scratch = Scratch::new("bench", &args.images)?;
    let measured = tokio::select! {
        measured = benchmark.measure(&mut scratch, args.runs) => measured,
        _ = interrupted.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminated.recv() => Err(anyhow::anyhow!("terminated")),
    };
    let logs = if measured.is_err() { scratch.log_tails() } else { String::new() };
    let cleaned = scratch.clean(false).await;
    match measured {
        Ok(report) => {
            cleaned.context("clean up after a benchmark")?;
            Ok(report)
        }
        Err(error) => {
            if !logs.is_empty() {
                eprintln!("{logs}");
            }
            if let Err(unclean) = cleaned {
                eprintln!("sinew: cleaning up: {unclean:#}");
            }
            Err(error.context(benchmark.name()))
        }
    }
}

fn show(report: &Report) -> anyhow::Result<()> {
    if report.results.is_empty() {
        bail!("{} measured nothing", report.bench);
    }
    output::line(&format!("{}:", report.bench))?;
    let rows = report.results.iter().map(|result| {
        let unit = match result.unit {
            Unit::Ms => "ms",
            Unit::Mib => "MiB",
        };
        let number = |value: f64| format!("{value:.3}");
        let figures = &result.figures;
        vec![
            result.name.to_owned(),
            unit.to_owned(),
            figures.n.to_string(),
            number(figures.p50),
            number(figures.p90),
            number(figures.p99),
            number(figures.max),
            result.peer.clone().unwrap_or_default(),
        ]
    });
    let head = ["what", "unit", "n", "p50", "p90", "p99", "max", "peer"];
    output::table(&head, rows.collect())?;
    for goal in &report.goals {
        let measured = output::or_dash(goal.measured.map(|value| format!("{value:.3}")));
        let verdict = if goal.met { "met" } else { "MISSED" };
        output::line(&format!(
            "goal {}: at most {}, measured {measured}: {verdict}",
            goal.name, goal.limit
        ))?;
    }
    output::line("")
}
