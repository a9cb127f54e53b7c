//! Which rules may be about a request: by its host, below that by a segment of the path, and of
//! those the ones whose outline fits.
//!
//! **Invariant:** a rule that is left out could not have held. Which rules those are never changes
//! an answer (`the_index_changes_no_answer` compares with asking every rule).

use std::borrow::Cow;
use std::collections::HashMap;

use crate::host::{Host, HostPattern, Name};
use crate::model::Conditions;
use crate::outline::Outline;

/// Places in the engine's list of rules, in order.
type Places = Vec<u32>;

/// A path with more is not looked up by its segments: every rule about its host is asked.
const SEGMENTS_MAX: usize = 32;

#[derive(Debug, Default)]
pub(crate) struct Index {
    exact: HashMap<Host, Bucket>,
    /// Patterns for what is below a name, by that name.
    below: HashMap<Box<str>, Bucket>,
    every_name: Bucket,
    /// Rules without a host.
    every_host: Bucket,
    /// No name in `below` has more dots than this.
    dots_max: usize,
    /// Of each rule, by its place.
    outlines: Vec<Outline>,
}

/// Rules about the same hosts.
#[derive(Debug, Default)]
struct Bucket {
    all: Places,
    /// Those for which no segment can be told that the path must have.
    any_path: Places,
    /// The others, by that segment in lower case.
    by_segment: HashMap<Box<str>, Places>,
}

impl Index {
    /// Rules get their places in the order in which they come.
    pub fn add(&mut self, conditions: &Conditions) {
        let place = u32::try_from(self.outlines.len()).unwrap_or(u32::MAX);
        self.outlines.push(Outline::of_rule(conditions));
        if conditions.hosts.is_empty() {
            return self.every_host.add(place, conditions);
        }
        for pattern in &conditions.hosts {
            let bucket = match pattern {
                HostPattern::EveryName => &mut self.every_name,
                HostPattern::Exact(host) => self.exact.entry(host.clone()).or_default(),
                HostPattern::OneBelow { parent, .. } | HostPattern::Below { parent, .. } => {
                    self.dots_max = self.dots_max.max(dots(parent));
                    self.below.entry(parent.as_str().into()).or_default()
                }
            };
            bucket.add(place, conditions);
        }
    }

    /// A rule that is never looked up takes its place, too.
    pub fn skip(&mut self) {
        self.outlines.push(Outline::EVERYTHING);
    }

    /// In order, each once. `path` is decoded; `None` when it is not known or in doubt.
    pub fn candidates(&self, host: &Host, path: Option<&str>, asked: Outline) -> Places {
        let path = path.map(lower_case);
        let segments = path.as_deref().and_then(segments);
        let outlines = &self.outlines;
        let mut found = Found { outlines, asked, segments, places: Places::new() };
        found.take(&self.every_host);
        if let Some(bucket) = self.exact.get(host) {
            found.take(bucket);
        }
        if let Host::Name(name) = host {
            found.take(&self.every_name);
            self.take_below(name, &mut found);
        }
        found.in_order()
    }

    /// Rules without a host, which alone cover another one without.
    pub fn for_every_host(&self) -> &[u32] {
        &self.every_host.all
    }

    fn take_below(&self, name: &Name, found: &mut Found<'_>) {
        if self.below.is_empty() {
            return;
        }
        let own = (dots(name), name.as_str());
        let parents = name.parents().enumerate().map(|(above, parent)| (own.0 - above - 1, parent));
        for (dots, parent) in std::iter::once(own).chain(parents) {
            if dots <= self.dots_max
                && let Some(bucket) = self.below.get(parent)
            {
                found.take(bucket);
            }
        }
    }
}

fn dots(name: &Name) -> usize {
    name.as_str().bytes().filter(|byte| *byte == b'.').count()
}

/// Rules that close compare without regard to case, so that the index does.
fn lower_case(path: &str) -> Cow<'_, str> {
    match path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(path.to_ascii_lowercase()),
        false => Cow::Borrowed(path),
    }
}

fn segments(path: &str) -> Option<Vec<&str>> {
    let segments = path.strip_prefix('/').unwrap_or(path).split('/');
    let segments: Vec<&str> = segments.take(SEGMENTS_MAX + 1).collect();
    (segments.len() <= SEGMENTS_MAX).then_some(segments)
}

impl Bucket {
    fn add(&mut self, place: u32, conditions: &Conditions) {
        // A rule with two patterns for the same name comes twice.
        if self.all.last() == Some(&place) {
            return;
        }
        self.all.push(place);
        let literals: Option<Vec<&str>> =
            conditions.paths.iter().map(|path| path.literal()).collect();
        match literals {
            Some(segments) if !segments.is_empty() => {
                for segment in segments {
                    let places = self.by_segment.entry(segment.to_ascii_lowercase().into());
                    places.or_default().push(place);
                }
            }
            _ => self.any_path.push(place),
        }
    }
}

/// Places that are found for what is asked.
struct Found<'i> {
    outlines: &'i [Outline],
    asked: Outline,
    segments: Option<Vec<&'i str>>,
    places: Places,
}

impl Found<'_> {
    fn take(&mut self, bucket: &Bucket) {
        let Some(segments) = self.segments.take() else { return self.add(&bucket.all) };
        self.add(&bucket.any_path);
        if !bucket.by_segment.is_empty() {
            for places in segments.iter().filter_map(|segment| bucket.by_segment.get(*segment)) {
                self.add(places);
            }
        }
        self.segments = Some(segments);
    }

    fn add(&mut self, places: &[u32]) {
        let Found { outlines, asked, .. } = self;
        let outline = |place: &u32| outlines.get(*place as usize);
        let meets = |place: &&u32| outline(place).is_some_and(|outline| outline.meets(asked));
        self.places.extend(places.iter().filter(meets));
    }

    fn in_order(mut self) -> Places {
        // Runs that are in order already are merged in linear time.
        self.places.sort();
        self.places.dedup();
        self.places
    }
}
