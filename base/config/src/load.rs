//! From the sources to a [`Config`], or to everything that is wrong with them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use crate::document::{Document, is_roots_own, tables};
use crate::environments::{self, Draft};
use crate::keys::Section;
use crate::layers::{self, CONFIG, Variables};
use crate::problem::{ConfigErrors, Place, Report};
use crate::profiles;
use crate::review::review;
use crate::section::Table;
use crate::store::{self, StoreConfig};
use crate::types::{Config, Environment, Limits, Pool, Tenancy};

/// What flags set. It overrides variables and the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The file to read; without it see [`Sources`].
    pub config: Option<PathBuf>,
    pub data: Option<PathBuf>,
    pub images: Option<PathBuf>,
    pub user: Option<u32>,
    pub worker_id: Option<String>,
}

/// Where a configuration comes from.
///
/// The file is the one named by a flag or `SINEW_CONFIG`, which must exist; else `sinew.toml` in
/// the data directory; else, where no data directory is named either, `/etc/sinew/sinew.toml`.
/// None of them has to exist.
pub struct Sources {
    overrides: Overrides,
    variables: Variables,
    root: bool,
    roots_own_file: bool,
}

const SYSTEM_FILE: &str = "/etc/sinew/sinew.toml";

impl Sources {
    /// `root` says for whom the default directories are.
    pub fn new(
        overrides: Overrides,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        root: bool,
    ) -> Sources {
        let variables: BTreeMap<String, String> = variables
            .into_iter()
            .map(|(name, value)| {
                (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
            })
            .collect();
        let variables = Variables::new(variables);
        Sources { overrides, variables, root, roots_own_file: false }
    }

    /// Refuses a file that anybody but root could have written: for the launcher, whose answers
    /// `serve` must not be able to change.
    pub fn only_roots_own_file(mut self) -> Sources {
        self.roots_own_file = true;
        self
    }

    /// The data directory as flags and variables name it.
    fn named_data(&self) -> Option<PathBuf> {
        let variable = || self.variables.get("SINEW_DATA").map(PathBuf::from);
        self.overrides.data.clone().or_else(variable)
    }

    fn default_data(&self) -> Option<PathBuf> {
        if self.root {
            return Some("/var/lib/sinew".into());
        }
        let data_home = self.variables.get("XDG_DATA_HOME").map(PathBuf::from);
        let home = || Some(Path::new(self.variables.get("HOME")?).join(".local/share"));
        Some(data_home.filter(|path| path.is_absolute()).or_else(home)?.join("sinew"))
    }
}

/// The two directories that every command needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    pub file: Option<PathBuf>,
    pub data: PathBuf,
    pub images: PathBuf,
}

/// Everything, keys included.
pub fn load(sources: &Sources) -> Result<Config, ConfigErrors> {
    load_with(sources, true)
}

/// Everything but the environments, which are checked as far as that needs no key:
/// [`Config::environments`] is empty. For who has no business with keys.
pub fn load_without_environments(sources: &Sources) -> Result<Config, ConfigErrors> {
    load_with(sources, false)
}

/// The journal's place alone, with its password.
pub fn load_store(sources: &Sources) -> Result<StoreConfig, ConfigErrors> {
    let mut report = Report::default();
    let document = find_file(sources, &mut report);
    let text = document.readable(&mut report);
    let tables = tables(&text);
    let top = top_table(&document, tables.get_ref(), sources, &mut report);
    let table = single(&document, &top, Section::Store, sources, &mut report);
    let store = store::read(&table, &sources.variables, true, &mut report);
    report.into_result(store).map(|(store, _)| store)
}

/// The directories alone. Other mistakes in the configuration do not matter to who asks this.
pub fn paths(sources: &Sources) -> Result<Paths, ConfigErrors> {
    let mut report = Report::default();
    let document = find_file(sources, &mut report);
    let mut ignored = Report::default();
    let text = document.readable(&mut ignored);
    let tables = tables(&text);
    let top = top_table(&document, tables.get_ref(), sources, &mut ignored);
    let paths = directories(sources, &document, &top, &mut report);
    let of_directories = ["data", "images"].map(|name| top.place_of(name).clone());
    let syntax_matters = sources.named_data().is_none() && ignored.has_syntax_errors();
    report.problems.extend(ignored.problems.into_iter().filter(|problem| {
        syntax_matters || (of_directories.contains(&problem.place) && problem.place != top.place)
    }));
    report.into_result(paths).map(|(paths, _)| paths)
}

fn load_with(sources: &Sources, keys: bool) -> Result<Config, ConfigErrors> {
    let mut report = Report::default();
    let document = find_file(sources, &mut report);
    let text = document.readable(&mut report);
    let tables = tables(&text);
    let top = top_table(&document, tables.get_ref(), sources, &mut report);
    let paths = directories(sources, &document, &top, &mut report);
    let limits = limits(&single(&document, &top, Section::Limits, sources, &mut report));
    let pool = pool(&single(&document, &top, Section::Pool, sources, &mut report), &mut report);
    let store = single(&document, &top, Section::Store, sources, &mut report);
    let store = store::read(&store, &sources.variables, keys, &mut report);
    let drafts = environments::read(&document, &top, &sources.variables, &mut report);
    let tenancies: Vec<Tenancy> = drafts.iter().map(Draft::tenancy).collect();
    let profiles = profiles::read(&document, &top, &pool, &mut report);
    report.warnings.extend(review(&profiles, &tenancies).into_iter().map(|found| found.problem));
    let environments: Vec<Environment> = match keys {
        true => drafts
            .into_iter()
            .filter_map(|draft| draft.open(&sources.variables, &mut report))
            .collect(),
        false => Vec::new(),
    };
    layers::slips(&sources.variables, &mut report);
    let config = Config {
        file: paths.file,
        data: paths.data,
        images: paths.images,
        user: top.get_or_default("user"),
        worker_id: top.get("worker_id"),
        environments,
        tenancies,
        profiles,
        limits,
        pool,
        store,
        warnings: Vec::new(),
    };
    let (config, warnings) = report.into_result(config)?;
    Ok(Config { warnings, ..config })
}

/// The file to read; an empty one without a path where there is none.
fn find_file(sources: &Sources, report: &mut Report) -> Document {
    let variable = sources.variables.get(CONFIG).map(PathBuf::from);
    let named = match (&sources.overrides.config, variable) {
        (Some(path), _) => Some((path.clone(), Place::Flag("--config"))),
        (None, Some(path)) => Some((path, Place::Variable(CONFIG.into()))),
        (None, None) => None,
    };
    let in_data = |data: PathBuf| data.join("sinew.toml");
    let candidates = match (&named, sources.named_data()) {
        (Some((path, _)), _) => vec![path.clone()],
        (None, Some(data)) => vec![in_data(data)],
        (None, None) => {
            let own = sources.default_data().map(in_data);
            own.into_iter().chain([PathBuf::from(SYSTEM_FILE)]).collect()
        }
    };
    for path in candidates {
        match Document::read(&path) {
            Ok(document) => {
                check_owner(sources, &path, report);
                return document;
            }
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let place = named.as_ref().map_or(Place::File(path.clone()), |(_, by)| by.clone());
                let what = format!("configuration {} cannot be read ({error})", path.display());
                report.problem(&place, what, "");
            }
        }
    }
    Document::default()
}

fn check_owner(sources: &Sources, path: &Path, report: &mut Report) {
    if !sources.roots_own_file || is_roots_own(path).unwrap_or(false) {
        return;
    }
    let fix = format!("chown root {0} && chmod go-w {0}", path.display());
    report.problem(&Place::File(path.to_owned()), "others than root may write it", fix);
}

fn top_table<'a>(
    document: &Document,
    tables: &'a DeTable<'a>,
    sources: &Sources,
    report: &mut Report,
) -> Table<'a> {
    let place = match document.path.as_os_str().is_empty() {
        true => Place::Nowhere,
        false => Place::File(document.path.clone()),
    };
    let mut top = Table::read(document, Section::Top, tables, place, report);
    layers::variables(&mut top, &sources.variables, report);
    layers::flags(&mut top, &sources.overrides, report);
    top
}

/// A section that stands at most once, with the variables over it.
fn single<'a>(
    document: &Document,
    top: &Table<'a>,
    section: Section,
    sources: &Sources,
    report: &mut Report,
) -> Table<'a> {
    let mut table = match top.tables(section).next() {
        Some((table, place)) => Table::read(document, section, table, place.clone(), report),
        None => Table::empty(section, top.place.clone()),
    };
    layers::variables(&mut table, &sources.variables, report);
    table
}

fn directories(
    sources: &Sources,
    document: &Document,
    top: &Table<'_>,
    report: &mut Report,
) -> Paths {
    let data = top.get("data").or_else(|| sources.default_data()).unwrap_or_else(|| {
        let what = "no data directory: there is neither a home directory nor a flag";
        report.problem(&Place::Nowhere, what, "name one with --data or SINEW_DATA");
        PathBuf::new()
    });
    let images = top.get("images").unwrap_or_else(|| data.join("images"));
    let file = Some(document.path.clone()).filter(|path| !path.as_os_str().is_empty());
    // Fails for an empty path only, which has been reported.
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    Paths { file, data: absolute(data), images: absolute(images) }
}

fn limits(table: &Table<'_>) -> Limits {
    Limits {
        agent_silence: table.get_or_default("agent_silence"),
        idle: table.get_or_default("idle"),
        shutdown_drain: table.get_or_default("shutdown_drain"),
        log_retention: table.get_or_default("log_retention"),
        node_ttl: table.get_or_default("node_ttl"),
        brain_connect: table.get_or_default("brain_connect"),
        brain_request: table.get_or_default("brain_request"),
        beat_attempt: table.get_or_default("beat_attempt"),
        stream_silence: table.get_or_default("stream_silence"),
        starts_ahead: table.get_or_default("starts_ahead"),
    }
}

fn pool(table: &Table<'_>, report: &mut Report) -> Pool {
    let pool = Pool {
        initial: table.get_or_default("initial"),
        step: table.get_or_default("step"),
        max: table.get_or_default("max"),
        reserve: table.get_or_default("reserve"),
    };
    let mut below = |small, large: base_types::ByteSize, text: [&'static str; 2]| {
        if small > large {
            let [name, bound] = text;
            let what = format!("`{name}` ({small}) is larger than `{bound}` ({large})");
            let place = table.place_of(if table.is_set(name) { name } else { bound });
            report.problem(place, what, format!("make it smaller, or set `{bound}`"));
        }
    };
    below(pool.initial, pool.max, ["initial", "max"]);
    below(pool.step, pool.max, ["step", "max"]);
    below(pool.reserve, pool.initial, ["reserve", "initial"]);
    pool
}
