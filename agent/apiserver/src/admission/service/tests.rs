use ipnetwork::IpNetwork;
use serde_json::json;

use super::*;

#[test]
fn a_service_holds_addresses_and_ports() {
    let service = json!({"spec": {
        "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5", "fd00::5"],
        "ports": [{"nodePort": 30001}, {"nodePort": 30001}, {"port": 80}],
        "healthCheckNodePort": 30002,
    }});
    let held = Held::by(&service);
    assert_eq!(held.ips.len(), 2);
    assert_eq!(held.ports, BTreeSet::from([30001, 30002]));
    assert_eq!(release_all(&service).len(), 4);
    assert_eq!(
        Held::by(&json!({"spec": {"clusterIP": "None"}})),
        Held::default()
    );
}

fn cluster(kind: &str) -> Vec<IpNetwork> {
    let ranges = match kind {
        "4" => &["10.96.0.0/16"][..],
        "6" => &["fd00::/112"],
        "46" => &["10.96.0.0/16", "fd00::/112"],
        _ => &["fd00::/112", "10.96.0.0/16"],
    };
    ranges.iter().map(|range| range.parse().unwrap()).collect()
}

/// Families and policy after creation, or the errors.
fn settled(kind: &str, spec: &Value, old: Option<&Value>) -> Result<String, String> {
    let mut service = json!({"spec": spec});
    let old = old.map(|spec| json!({"spec": spec}));
    let texts = |errors: Vec<FieldError>| {
        let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
        texts.join("; ")
    };
    families::settle(&cluster(kind), old.as_ref(), &mut service).map_err(texts)?;
    let families = families::of(&service).join(" ");
    Ok(format!(
        "{families} {}",
        text(&service, &["spec", "ipFamilyPolicy"])
    ))
}

#[test]
fn families_follow_policy_addresses_and_cluster() {
    let one = json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"]});
    let six = json!({"clusterIP": "fd00::7", "clusterIPs": ["fd00::7"]});
    let both = |policy: &str| json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"], "ipFamilyPolicy": policy});
    let policy = |policy: &str| json!({"ipFamilyPolicy": policy});
    let families =
        |list: &[&str], policy: &str| json!({"ipFamilies": list, "ipFamilyPolicy": policy});
    let headless = |policy: Value, selector: Value| json!({"clusterIP": "None", "clusterIPs": ["None"], "ipFamilyPolicy": policy, "selector": selector});
    let (none, web) = (Value::Null, json!({"app": "web"}));
    let ok = [
        ("4", json!({}), "IPv4 SingleStack"),
        ("64", json!({}), "IPv6 SingleStack"),
        ("46", policy("SingleStack"), "IPv4 SingleStack"),
        ("4", policy("PreferDualStack"), "IPv4 PreferDualStack"),
        ("46", policy("PreferDualStack"), "IPv4 IPv6 PreferDualStack"),
        (
            "64",
            policy("RequireDualStack"),
            "IPv6 IPv4 RequireDualStack",
        ),
        ("46", families(&["IPv6"], "SingleStack"), "IPv6 SingleStack"),
        (
            "46",
            families(&["IPv6"], "PreferDualStack"),
            "IPv6 IPv4 PreferDualStack",
        ),
        ("46", one, "IPv4 SingleStack"),
        ("46", six, "IPv6 SingleStack"),
        ("46", both("PreferDualStack"), "IPv4 IPv6 PreferDualStack"),
        (
            "46",
            headless(none.clone(), web.clone()),
            "IPv4 SingleStack",
        ),
        (
            "4",
            headless(none.clone(), none.clone()),
            "IPv4 IPv6 RequireDualStack",
        ),
        (
            "46",
            headless(json!("SingleStack"), none.clone()),
            "IPv4 SingleStack",
        ),
        (
            "46",
            headless(json!("PreferDualStack"), web),
            "IPv4 IPv6 PreferDualStack",
        ),
    ];
    for (cluster, spec, expected) in ok {
        assert_eq!(
            settled(cluster, &spec, None).as_deref(),
            Ok(expected),
            "{cluster} {spec}"
        );
    }
}

#[test]
fn families_that_do_not_fit_are_refused() {
    let six = json!({"clusterIP": "fd00::7", "clusterIPs": ["fd00::7"]});
    let both = json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
        "ipFamilyPolicy": "SingleStack"});
    let single = json!({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"});
    let require = json!({"ipFamilyPolicy": "RequireDualStack"});
    let refused = [
        (
            "4",
            require,
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
        ),
        (
            "4",
            single,
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
        (
            "4",
            six,
            "spec.clusterIPs[0]: Invalid value: [\"fd00::7\"]: IPv6 is not configured on this cluster",
        ),
        (
            "46",
            both,
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified",
        ),
        (
            "46",
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            "spec.ipFamilyPolicy: Invalid value: null: must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
        ),
    ];
    for (cluster, spec, expected) in refused {
        let errors = settled(cluster, &spec, None).unwrap_err();
        assert_eq!(errors, expected, "{cluster} {spec}");
    }
}

#[test]
fn a_service_that_prefers_two_families_gets_the_second_only_when_asked() {
    let old = json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
        "ipFamilies": ["IPv4"], "ipFamilyPolicy": "PreferDualStack"});
    let unchanged = settled("46", &old, Some(&old));
    assert_eq!(unchanged.as_deref(), Ok("IPv4 PreferDualStack"));
    let mut new = old.clone();
    new["ipFamilyPolicy"] = json!("RequireDualStack");
    let upgraded = settled("46", &new, Some(&old));
    assert_eq!(upgraded.as_deref(), Ok("IPv4 IPv6 RequireDualStack"));
    let mut single = old;
    single["ipFamilyPolicy"] = json!("SingleStack");
    let mut new = single.clone();
    new["ipFamilyPolicy"] = json!("PreferDualStack");
    let upgraded = settled("46", &new, Some(&single));
    assert_eq!(upgraded.as_deref(), Ok("IPv4 IPv6 PreferDualStack"));
}
