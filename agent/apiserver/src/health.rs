//! `/healthz`, `/livez`, `/readyz` and `/version`.

use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use crate::query::Query;
use crate::respond;
use crate::server::Core;

/// One check.
type Check = (&'static str, fn(&Core) -> bool);

const LIVE: &[Check] = &[("ping", |_| true)];
const READY: &[Check] = &[
    ("ping", |_| true),
    ("informer-sync", |core| core.cache.is_filled()),
    (
        "poststarthook/start-system-namespaces-controller",
        Core::is_ready,
    ),
    ("shutdown", |core| !core.shutdown.is_cancelled()),
];

/// Answers a health path; `None` if it is none.
pub(crate) fn serve(core: &Core, path: &str, query: &Query) -> Option<Response> {
    let mut segments = path.trim_matches('/').splitn(2, '/');
    let probe = segments.next().unwrap_or_default();
    let checks = match probe {
        "healthz" | "livez" => LIVE,
        "readyz" => READY,
        _ => return None,
    };
    if let Some(name) = segments.next() {
        let (_, check) = checks.iter().find(|(known, _)| *known == name)?;
        return Some(if check(core) {
            respond::text(StatusCode::OK, "ok")
        } else {
            respond::text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal server error: check failed\n",
            )
        });
    }
    let mut page = String::new();
    let mut all = true;
    for (name, check) in checks {
        let passed = check(core);
        all &= passed;
        page.push_str(&match passed {
            true => format!("[+]{name} ok\n"),
            false => format!("[-]{name} failed: reason withheld\n"),
        });
    }
    page.push_str(&format!(
        "{probe} check {}\n",
        if all { "passed" } else { "failed" }
    ));
    Some(match (all, query.flag("verbose")) {
        (true, false) => respond::text(StatusCode::OK, "ok"),
        (true, true) => respond::text(StatusCode::OK, page),
        (false, _) => respond::text(StatusCode::INTERNAL_SERVER_ERROR, page),
    })
}

/// `/version`.
pub(crate) fn version() -> Response {
    respond::json_value(
        StatusCode::OK,
        &json!({
            "major": "1",
            "minor": "36",
            "gitVersion": "v1.36.0+skiff",
            "gitCommit": "",
            "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "",
            "compiler": "rustc",
            "platform": format!("{}/{}", std::env::consts::OS, platform()),
        }),
    )
}

/// The architecture as Kubernetes names it.
fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
