//! The names of the specification, asked for one by one.

use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::*;

/// Objects in vectors.
#[derive(Default)]
pub(crate) struct FakeDirectory {
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) slices: Vec<Arc<EndpointSlice>>,
}

impl Directory for FakeDirectory {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        let is = |s: &&Arc<Service>| {
            s.metadata.namespace.as_deref() == Some(namespace)
                && s.metadata.name.as_deref() == Some(name)
        };
        self.services.iter().find(is).cloned()
    }
    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        let wanted = vec![format!("{namespace}/{service}")];
        let of = |s: &&Arc<EndpointSlice>| crate::directory::service_of(s) == wanted;
        self.slices.iter().filter(of).cloned().collect()
    }
    fn service_by_ip(&self, address: IpAddr) -> Option<Arc<Service>> {
        let text = address.to_string();
        self.services
            .iter()
            .find(|s| crate::directory::cluster_ips(s).contains(&text))
            .cloned()
    }
    fn slices_by_ip(&self, address: IpAddr) -> Vec<Arc<EndpointSlice>> {
        let text = address.to_string();
        let holds = |s: &&Arc<EndpointSlice>| crate::directory::addresses_of(s).contains(&text);
        self.slices.iter().filter(holds).cloned().collect()
    }
    fn has_namespace(&self, namespace: &str) -> bool {
        self.services
            .iter()
            .any(|s| s.metadata.namespace.as_deref() == Some(namespace))
    }
}

const OBJECTS: &str = r#"[
    {"kind": "Service", "metadata": {"namespace": "dev", "name": "web"}, "spec": {
        "clusterIP": "10.96.0.5", "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}},
    {"kind": "Service", "metadata": {"namespace": "dev", "name": "db"}, "spec": {"clusterIP": "None"}},
    {"kind": "Service", "metadata": {"namespace": "dev", "name": "early"}, "spec": {
        "clusterIP": "None", "publishNotReadyAddresses": true}},
    {"kind": "Service", "metadata": {"namespace": "dev", "name": "out"}, "spec": {
        "type": "ExternalName", "externalName": "example.org"}},
    {"kind": "Service", "metadata": {"namespace": "dev", "name": "alias"}, "spec": {
        "type": "ExternalName", "externalName": "web.dev.svc.cluster.local"}},
    {"kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "dev", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
        "ports": [{"name": "redis", "port": 6379, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": ["10.244.0.7"], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": ["10.244.0.8"], "conditions": {}},
            {"addresses": ["10.244.0.9"], "conditions": {"ready": false}}]},
    {"kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "dev", "name": "early-1", "labels": {"kubernetes.io/service-name": "early"}},
        "ports": [],
        "endpoints": [{"addresses": ["10.244.0.10"], "conditions": {"ready": false}}]}
]"#;

fn zone() -> Zone {
    let objects: Vec<serde_json::Value> = serde_json::from_str(OBJECTS).unwrap();
    let mut directory = FakeDirectory::default();
    for object in objects {
        if object["kind"] == "Service" {
            directory
                .services
                .push(Arc::new(serde_json::from_value(object).unwrap()));
        } else {
            directory
                .slices
                .push(Arc::new(serde_json::from_value(object).unwrap()));
        }
    }
    Zone::new(parse_domain("cluster.local").unwrap(), Box::new(directory))
}

fn ask(name: &str, kind: RecordType) -> String {
    match zone().answer(&Name::from_ascii(name).unwrap(), kind) {
        Answer::Records(records) => {
            let mut shown: Vec<_> = records
                .iter()
                .map(|r| format!("{} {}", r.record_type(), r.data))
                .collect();
            shown.sort();
            shown.join(", ")
        }
        Answer::NoData(soa) => format!("no data, {}", soa.name),
        Answer::NoName(soa) => format!("no name, {}", soa.name),
        Answer::NotOurs => "not ours".to_owned(),
    }
}

#[test]
fn names_mean_what_the_specification_says() {
    use RecordType::{A, AAAA, CNAME, PTR, SRV, TXT};
    let no_data = "no data, cluster.local.";
    let no_name = "no name, cluster.local.";
    let cases = [
        ("web.dev.svc.cluster.local.", A, "A 10.96.0.5"),
        ("WEB.dev.SVC.cluster.local.", A, "A 10.96.0.5"),
        ("web.dev.svc.cluster.local.", AAAA, no_data),
        ("web.prod.svc.cluster.local.", A, no_name),
        ("none.dev.svc.cluster.local.", A, no_name),
        ("x.web.dev.svc.cluster.local.", A, no_name),
        ("dev.svc.cluster.local.", A, no_data),
        ("prod.svc.cluster.local.", A, no_name),
        ("svc.cluster.local.", A, no_data),
        ("cluster.local.", A, no_data),
        ("web.cluster.local.", A, no_name),
        ("db.dev.svc.cluster.local.", A, "A 10.244.0.7, A 10.244.0.8"),
        ("db-0.db.dev.svc.cluster.local.", A, "A 10.244.0.7"),
        ("10-244-0-8.db.dev.svc.cluster.local.", A, "A 10.244.0.8"),
        ("10-244-0-9.db.dev.svc.cluster.local.", A, no_name),
        ("early.dev.svc.cluster.local.", A, "A 10.244.0.10"),
        (
            "_http._tcp.web.dev.svc.cluster.local.",
            SRV,
            "SRV 0 100 80 web.dev.svc.cluster.local.",
        ),
        (
            "_dns._udp.web.dev.svc.cluster.local.",
            SRV,
            "SRV 0 100 53 web.dev.svc.cluster.local.",
        ),
        ("_dns._tcp.web.dev.svc.cluster.local.", SRV, no_name),
        (
            "_redis._tcp.db.dev.svc.cluster.local.",
            SRV,
            "SRV 0 100 6379 10-244-0-8.db.dev.svc.cluster.local., SRV 0 100 6379 db-0.db.dev.svc.cluster.local.",
        ),
        ("out.dev.svc.cluster.local.", A, "CNAME example.org."),
        ("out.dev.svc.cluster.local.", CNAME, "CNAME example.org."),
        (
            "alias.dev.svc.cluster.local.",
            A,
            "A 10.96.0.5, CNAME web.dev.svc.cluster.local.",
        ),
        ("10-244-0-7.dev.pod.cluster.local.", A, "A 10.244.0.7"),
        ("nonsense.dev.pod.cluster.local.", A, no_name),
        ("dns-version.cluster.local.", TXT, "TXT 1.1.0"),
        (
            "5.0.96.10.in-addr.arpa.",
            PTR,
            "PTR web.dev.svc.cluster.local.",
        ),
        (
            "7.0.244.10.in-addr.arpa.",
            PTR,
            "PTR db-0.db.dev.svc.cluster.local.",
        ),
        ("1.1.1.1.in-addr.arpa.", PTR, "not ours"),
        ("example.org.", A, "not ours"),
        ("notcluster.local.", A, "not ours"),
    ];
    for (name, kind, expected) in cases {
        assert_eq!(ask(name, kind), expected, "{name} {kind}");
    }
}
