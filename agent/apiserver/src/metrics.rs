//! `/metrics`: what upstream's dashboards ask for first, under upstream's names.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use skiff_api::resource::{Registry, Resource};

use crate::server::Core;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RequestKey {
    verb: &'static str,
    resource: &'static str,
    code: u16,
}

/// Counters. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    requests: Arc<Mutex<BTreeMap<RequestKey, u64>>>,
    watches: Arc<Mutex<BTreeMap<&'static str, u64>>>,
}

/// A watch that is counted as long as this lives.
#[derive(Debug)]
pub(crate) struct WatchGuard {
    metrics: Metrics,
    resource: &'static str,
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        if let Some(count) = self.metrics.watches.lock().get_mut(self.resource) {
            *count -= 1;
        }
    }
}

impl Metrics {
    /// Counts a finished request.
    pub(crate) fn request(&self, verb: &'static str, resource: &'static str, code: u16) {
        *self
            .requests
            .lock()
            .entry(RequestKey {
                verb,
                resource,
                code,
            })
            .or_default() += 1;
    }

    /// Counts a watch until the guard is dropped.
    pub(crate) fn watch(&self, resource: &'static Resource) -> WatchGuard {
        *self.watches.lock().entry(resource.plural).or_default() += 1;
        WatchGuard {
            metrics: self.clone(),
            resource: resource.plural,
        }
    }
}

/// The page, in Prometheus' text format.
pub(crate) fn render(core: &Core) -> String {
    let mut page = Page::default();
    page.head(
        "apiserver_request_total",
        "counter",
        "Requests by verb, resource and code.",
    );
    for (key, count) in core.metrics.requests.lock().iter() {
        let RequestKey {
            verb,
            resource,
            code,
        } = key;
        let verb = verb.to_ascii_uppercase();
        let labels = format!("{{verb={verb:?},resource={resource:?},code=\"{code}\"}}");
        page.line("apiserver_request_total", &labels, *count);
    }
    page.head(
        "apiserver_longrunning_requests",
        "gauge",
        "Watches being served.",
    );
    for (resource, count) in core.metrics.watches.lock().iter() {
        let labels = format!("{{verb=\"WATCH\",resource={resource:?}}}");
        page.line("apiserver_longrunning_requests", &labels, *count);
    }
    page.head(
        "apiserver_resource_objects",
        "gauge",
        "Stored objects by resource.",
    );
    for resource in Registry::iter() {
        let cache = core.cache.resource(resource.storage_prefix);
        let count = cache.map_or(0, |cache| cache.len()) as u64;
        let (group, plural) = (resource.group, resource.plural);
        let labels = format!("{{group={group:?},resource={plural:?}}}");
        page.line("apiserver_resource_objects", &labels, count);
    }
    let revision = "apiserver_watch_cache_resource_version";
    page.head(revision, "gauge", "How far the watch cache is.");
    page.line(revision, "", core.cache.reached().0);
    if let Some(bytes) = resident_bytes() {
        let resident = "process_resident_memory_bytes";
        page.head(resident, "gauge", "Resident memory size in bytes.");
        page.line(resident, "", bytes);
    }
    page.0
}

/// Text being written.
#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.0
            .push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn line(&mut self, name: &str, labels: &str, value: u64) {
        self.0.push_str(&format!("{name}{labels} {value}\n"));
    }
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kibibytes * 1024)
}
