//! `skiff policy`.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use skiff_ebpf_loader::{
    AllowedPorts, PolicyDirection, PolicyInspector, PolicyLink, PolicyTables, PolicyVerdict,
    Prefix, SeenRule,
};

use super::{
    bpffs_dir,
    names::Names,
    number,
    policies::{Policies, directions},
    protocol_name, say, table,
};
use crate::cli::{OutputFormat, PolicyArgs, PolicyPort, PolicyVerb};

const BOTH: [PolicyDirection; 2] = [PolicyDirection::Ingress, PolicyDirection::Egress];

/// Prints what was asked for.
pub(crate) async fn run(args: &PolicyArgs) -> Result<()> {
    let inspector = PolicyInspector::open(&bpffs_dir(&args.look))
        .context("no datapath here; --run-dir says where the node is")?;
    let (names, policies) = super::names_and_policies(&args.look).await;
    let view = View {
        tables: inspector.tables()?,
        links: inspector.links()?,
        names,
        policies,
    };
    let output = match &args.verb {
        PolicyVerb::List => view.list(),
        PolicyVerb::Identities => view.identities(),
        PolicyVerb::Show { pod } => view.show(pod)?,
        PolicyVerb::Check { from, to, port } => view.check(from, to, *port)?,
    };
    say(&match args.output {
        OutputFormat::Json => format!("{:#}", output.value),
        OutputFormat::Table => output.text,
    })
    .map(drop)
}

/// What is printed, in both forms.
struct Output {
    text: String,
    value: Value,
}

impl Output {
    /// The same rows as columns and as objects.
    fn table(headings: &[&str], keys: &[&str], rows: &[Vec<String>]) -> Self {
        let object = |row: &Vec<String>| {
            let pairs = keys.iter().zip(row);
            pairs
                .map(|(key, cell)| ((*key).to_owned(), json!(cell)))
                .collect::<Value>()
        };
        Self {
            text: table::render(headings, rows),
            value: rows.iter().map(object).collect(),
        }
    }
}

struct View {
    tables: PolicyTables,
    links: Vec<PolicyLink>,
    names: Names,
    policies: Policies,
}

impl View {
    fn list(&self) -> Output {
        let row = |(name, policy): (&String, _)| {
            let pods: Vec<&str> = self.policies.selected(policy).collect();
            vec![name.clone(), directions(policy), or_dash(&pods.join(","))]
        };
        let rows: Vec<_> = self.policies.all.iter().map(row).collect();
        let (headings, keys) = (
            ["POLICY", "ISOLATES", "PODS"],
            ["policy", "isolates", "pods"],
        );
        Output::table(&headings, &keys, &rows)
    }

    fn identities(&self) -> Output {
        let rows = self.tables.identities().into_iter().map(|id| {
            let isolated = BOTH.map(|direction| direction.isolates(id));
            let rules = |direction| {
                let rules = self.tables.rules.iter().map(SeenRule::of);
                let about = rules.filter(|rule| rule.subject == id && rule.direction == direction);
                about.count()
            };
            let rules = BOTH.map(|direction| rules(direction).to_string());
            let [ingress, egress] = isolated;
            let [rules_in, rules_out] = rules;
            let cell = |isolated, rules| if isolated { rules } else { "open".to_owned() };
            vec![
                number(id),
                cell(ingress, rules_in),
                cell(egress, rules_out),
                self.members(id).join(","),
            ]
        });
        Output::table(
            &["IDENTITY", "INGRESS RULES", "EGRESS RULES", "WHO"],
            &["identity", "ingressRules", "egressRules", "who"],
            &rows.collect::<Vec<_>>(),
        )
    }

    /// Who has an identity: names of pods, addresses without one, prefixes.
    fn members(&self, id: u32) -> Vec<String> {
        let mut pods: BTreeMap<String, ()> = BTreeMap::new();
        for (addr, _) in self.tables.ids.iter().filter(|(_, of)| **of == id) {
            let name = self.names.pod(*addr);
            pods.insert(name.map_or_else(|| addr.to_string(), str::to_owned), ());
        }
        let prefixes = self.tables.cidrs.iter().filter(|(_, of)| **of == id);
        let prefixes = prefixes.map(|(prefix, _)| text_of(*prefix));
        pods.into_keys().chain(prefixes).collect()
    }

    /// Who has an identity, in a few words.
    fn who(&self, id: Option<u32>) -> String {
        const SHOWN: usize = 3;
        let Some(id) = id else {
            return "anybody".to_owned();
        };
        let mut members = self.members(id);
        let more = members.len().saturating_sub(SHOWN);
        members.truncate(SHOWN);
        let more = if more == 0 {
            String::new()
        } else {
            format!(" and {more} more")
        };
        format!("{}{more} ({})", members.join(","), number(id))
    }

    fn show(&self, pod: &str) -> Result<Output> {
        let addrs = self.resolve(pod)?;
        let name = self.name(pod, &addrs);
        let policies = self.policies.selecting(&name);
        let policies: Vec<&str> = policies.map(|(policy, _)| policy).collect();
        let ids: BTreeMap<u32, Vec<IpAddr>> =
            addrs.iter().fold(BTreeMap::new(), |mut all, addr| {
                all.entry(self.tables.id(*addr)).or_default().push(*addr);
                all
            });
        let mut rows = Vec::new();
        for (id, direction) in ids.keys().flat_map(|id| BOTH.map(|way| (*id, way))) {
            let way = word(direction).to_owned();
            if !direction.isolates(id) {
                let words = [number(id), way, "anybody".to_owned(), "all".to_owned()];
                rows.push(Vec::from(words));
                continue;
            }
            let rules = self.tables.rules.iter().map(SeenRule::of);
            let about = rules.filter(|rule| rule.subject == id && rule.direction == direction);
            let before = rows.len();
            rows.extend(about.map(|rule| {
                let cells = [
                    number(id),
                    way.clone(),
                    self.who(rule.peer),
                    ports(rule.ports),
                ];
                Vec::from(cells)
            }));
            if rows.len() == before {
                rows.push(Vec::from([
                    number(id),
                    way,
                    "nobody".to_owned(),
                    "-".to_owned(),
                ]));
            }
        }
        let addrs: Vec<String> = addrs.iter().map(IpAddr::to_string).collect();
        let state = self.state(&addrs);
        let rules = Output::table(
            &["IDENTITY", "DIRECTION", "PEER", "PORTS"],
            &["identity", "direction", "peer", "ports"],
            &rows,
        );
        let text = format!(
            "pod:       {name}\naddresses: {}\npolicies:  {}\nthis node: {state}\n\n{}",
            addrs.join(", "),
            or_dash(&policies.join(", ")),
            rules.text
        );
        let value = json!({
            "pod": name, "addresses": addrs, "policies": policies, "node": state, "allowed": rules.value,
        });
        Ok(Output { text, value })
    }

    /// What the programs at a pod's link do.
    fn state(&self, addrs: &[String]) -> &'static str {
        let is_at = |link: &&PolicyLink| link.addrs.iter().any(|a| addrs.contains(&a.to_string()));
        let isolates = |addr: &IpAddr| BOTH.iter().any(|way| way.isolates(self.tables.id(*addr)));
        match self.links.iter().find(is_at) {
            None => "not a pod of this node",
            Some(link) if !link.asks => "no policies to enforce",
            Some(link) if link.addrs.iter().any(isolates) => "policies are enforced",
            Some(_) => "closed: its policies are not known yet",
        }
    }

    fn check(&self, from: &str, to: &str, port: PolicyPort) -> Result<Output> {
        let (sources, targets) = (self.resolve(from)?, self.resolve(to)?);
        let pairs = sources.iter().flat_map(|source| {
            let alike = targets.iter().filter(|t| t.is_ipv4() == source.is_ipv4());
            alike.map(|target| (*source, *target))
        });
        let mut rows = Vec::new();
        let mut is_allowed = true;
        for (source, target) in pairs {
            anyhow::ensure!(
                self.names.service_at(target).is_none(),
                "{target} is an address of Service {}: policies judge what goes to its backends (`skiff service backends`)",
                self.names.service_at(target).unwrap_or_default()
            );
            for (direction, subject, peer) in [
                (PolicyDirection::Egress, source, target),
                (PolicyDirection::Ingress, target, source),
            ] {
                let at = (port.protocol, port.port);
                let verdict = self.tables.judge(direction, subject, peer, at);
                is_allowed &= verdict != PolicyVerdict::Denied;
                rows.push(self.judged(direction, subject, verdict));
            }
        }
        anyhow::ensure!(!rows.is_empty(), "{from} and {to} have no family in common");
        let steps = Output::table(
            &["ADDRESS", "DIRECTION", "VERDICT", "RULE"],
            &["address", "direction", "verdict", "rule"],
            &rows,
        );
        let verdict = if is_allowed { "allowed" } else { "denied" };
        Ok(Output {
            text: format!("{}\n\n{verdict}", steps.text),
            value: json!({"verdict": verdict, "steps": steps.value}),
        })
    }

    fn judged(
        &self,
        direction: PolicyDirection,
        subject: IpAddr,
        verdict: PolicyVerdict,
    ) -> Vec<String> {
        let (verdict, rule) = match verdict {
            PolicyVerdict::NotIsolated => ("allowed", "no policy is about it".to_owned()),
            PolicyVerdict::Itself => ("allowed", "a pod reaches itself".to_owned()),
            PolicyVerdict::Denied => ("denied", "no rule allows it".to_owned()),
            PolicyVerdict::Allowed(rule) => {
                let (peer, ports) = (self.who(rule.peer), ports(rule.ports));
                (
                    "allowed",
                    format!("{} {ports}: {peer}", number(rule.subject)),
                )
            }
        };
        let name = self.names.pod(subject);
        let name = name.map_or_else(String::new, |name| format!(" ({name})"));
        vec![
            format!("{subject}{name}"),
            word(direction).to_owned(),
            verdict.to_owned(),
            rule,
        ]
    }

    /// The addresses that are meant: of a pod, or one by itself.
    fn resolve(&self, text: &str) -> Result<Vec<IpAddr>> {
        if let Ok(addr) = text.parse() {
            return Ok(vec![addr]);
        }
        let addrs = self.policies.addrs(text);
        anyhow::ensure!(
            !addrs.is_empty(),
            "{text:?} is no address, and the API knows no pod of this name (NAMESPACE/NAME) with addresses of its own"
        );
        Ok(addrs.to_vec())
    }

    fn name(&self, text: &str, addrs: &[IpAddr]) -> String {
        let known = addrs.iter().find_map(|addr| self.names.pod(*addr));
        known.unwrap_or(text).to_owned()
    }
}

fn word(direction: PolicyDirection) -> &'static str {
    match direction {
        PolicyDirection::Ingress => "ingress",
        PolicyDirection::Egress => "egress",
    }
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

fn text_of(prefix: Prefix) -> String {
    format!("{}/{}", prefix.addr(), prefix.len())
}

fn ports(ports: AllowedPorts) -> String {
    match ports {
        AllowedPorts::All => "all".to_owned(),
        AllowedPorts::Protocol(of) => protocol_name(of),
        AllowedPorts::Range {
            protocol: of,
            first,
            last,
        } if first == last => format!("{first}/{}", protocol_name(of)),
        AllowedPorts::Range {
            protocol: of,
            first,
            last,
        } => format!("{first}-{last}/{}", protocol_name(of)),
    }
}
