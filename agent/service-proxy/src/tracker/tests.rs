use std::{collections::BTreeMap, net::IpAddr};

use proptest::prelude::*;
use skiff_ebpf_loader::Protocol;

use super::*;
use crate::{
    objects::{EndpointInfo, Hints, PortInfo, SlicePort},
    plan::plan_tables,
};

/// Tables in memory: what the loader's mirror is in earnest.
impl TableView for DesiredTables {
    fn frontend(&self, frontend: &Frontend) -> Option<FrontendSpec> {
        self.frontends.get(frontend).cloned()
    }

    fn set_is(&self, id: SetId, members: &[Backend]) -> bool {
        self.sets.get(&id).is_some_and(|have| have == members)
    }

    fn frontends(&self) -> Vec<Frontend> {
        self.frontends.keys().copied().collect()
    }

    fn sets(&self) -> Vec<SetId> {
        self.sets.keys().copied().collect()
    }
}

fn apply(tables: &mut DesiredTables, diff: &TableDiff) {
    tables.sets.extend(diff.publish.iter().cloned());
    for (frontend, spec) in &diff.upsert {
        assert!(
            tables.sets.contains_key(&spec.inside),
            "{frontend} refers to nothing"
        );
        tables.frontends.insert(*frontend, spec.clone());
    }
    for frontend in &diff.remove_frontends {
        assert!(
            tables.frontends.remove(frontend).is_some(),
            "{frontend} was not there"
        );
    }
    for id in &diff.remove_sets {
        assert!(tables.sets.remove(id).is_some());
        assert!(
            tables
                .frontends
                .values()
                .all(|spec| spec.inside != *id && spec.outside != Some(*id))
        );
    }
}

fn catch_up(tracker: &mut Tracker, tables: &mut DesiredTables) {
    let diff = tracker.diff(tables);
    apply(tables, &diff);
}

fn name(number: u8) -> ServiceName {
    ServiceName::new("dev", &format!("s{number}"))
}

fn service(created: u8, ip: u8, ports: u8, local: bool) -> ServiceInfo {
    let port = |number| PortInfo {
        name: format!("p{number}"),
        port: 80 + u16::from(number),
        protocol: Protocol::Tcp,
        node_port: None,
    };
    ServiceInfo {
        created: created.into(),
        cluster_ips: vec![IpAddr::from([10, 96, 0, ip])],
        // Few addresses: Services claim each other's.
        external_ips: vec![IpAddr::from([198, 51, 100, ip % 2])],
        balancer_ips: Vec::new(),
        source_ranges: Box::default(),
        ports: (0..ports).map(port).collect(),
        affinity_seconds: 0,
        internal_local: local,
        external_local: false,
        ends_streams: false,
        health_port: None,
    }
}

fn slice(of: u8, endpoints: u8) -> SliceInfo {
    let endpoint = |number| EndpointInfo {
        addr: IpAddr::from([10, 244, 0, number]),
        ready: true,
        serving: true,
        terminating: false,
        local: number == 1,
        hints: Hints {
            this_node: None,
            zones: Box::from([format!("z{}", number % 2).into()]),
        },
    };
    let port = |number| SlicePort {
        name: format!("p{number}"),
        port: 8080,
        protocol: Protocol::Tcp,
    };
    SliceInfo {
        service: name(of),
        ports: (0..2).map(port).collect(),
        endpoints: (1..=endpoints).map(endpoint).collect(),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Service(u8, Option<(u8, u8, u8, bool)>),
    Slice(u8, Option<(u8, u8)>),
    Diff,
    Full,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..4, prop::option::weighted(0.7, (0_u8..3, 1_u8..4, 0_u8..3, any::<bool>())))
            .prop_map(|(number, service)| Step::Service(number, service)),
        4 => (0_u8..5, prop::option::weighted(0.7, (0_u8..4, 0_u8..4)))
            .prop_map(|(number, slice)| Step::Slice(number, slice)),
        3 => Just(Step::Diff),
        1 => Just(Step::Full),
    ]
}

proptest! {
    /// However changes are cut into diffs, the tables end up as if planned from the last state alone.
    #[test]
    fn prop_diffs_lead_to_what_is_planned_from_nothing(steps in prop::collection::vec(step(), 1..60)) {
        let mut tracker = Tracker::default();
        let mut tables = DesiredTables::default();
        let mut services = BTreeMap::new();
        let mut slices = BTreeMap::new();
        for step in steps.into_iter().chain([Step::Diff]) {
            match step {
                Step::Service(number, info) => {
                    let info = info.map(|(created, ip, ports, local)| service(created, ip, ports, local));
                    tracker.set_service(name(number), info.clone());
                    services.insert(name(number), info);
                }
                Step::Slice(number, info) => {
                    let info = info.map(|(of, endpoints)| slice(of, endpoints));
                    let key = format!("slice{number}");
                    tracker.set_slice("dev", &key, info.clone());
                    slices.insert(key, info);
                }
                Step::Diff => {
                    let diff = tracker.diff(&tables);
                    apply(&mut tables, &diff);
                    let expected = plan_tables(
                        services.iter().filter_map(|(name, info)| Some((name, info.as_ref()?))),
                        slices.iter().filter_map(|(name, info)| Some((name.as_str(), info.as_ref()?))),
                    );
                    prop_assert_eq!(&tables, &expected);
                    prop_assert!(tracker.diff(&tables).is_empty());
                    prop_assert!(tracker.full_diff(&tables).is_empty());
                }
                Step::Full => {
                    let diff = tracker.full_diff(&tables);
                    apply(&mut tables, &diff);
                }
            }
        }
    }
}

#[test]
fn a_changed_endpoint_touches_its_sets_only() {
    let mut tracker = Tracker::default();
    for number in 0..3 {
        tracker.set_service(name(number), Some(service(0, number, 1, false)));
        tracker.set_slice("dev", &format!("slice{number}"), Some(slice(number, 2)));
    }
    let mut tables = DesiredTables::default();
    catch_up(&mut tracker, &mut tables);
    tracker.set_slice("dev", "slice1", Some(slice(1, 3)));
    let diff = tracker.diff(&tables);
    // Those for clients on the node and outside.
    assert_eq!((diff.publish.len(), diff.upsert.len()), (2, 0));
    assert!(diff.remove_frontends.is_empty() && diff.remove_sets.is_empty());
    tracker.set_slice("dev", "slice1", Some(slice(1, 3)));
    assert!(!tracker.is_dirty());
}

#[test]
fn the_older_service_has_a_contested_frontend_and_leaves_it_to_the_next() {
    let mut tracker = Tracker::default();
    let mut tables = DesiredTables::default();
    let external = Frontend::Address {
        addr: IpAddr::from([198, 51, 100, 1]),
        port: 80,
        protocol: Protocol::Tcp,
    };
    tracker.set_service(name(1), Some(service(5, 1, 1, false)));
    catch_up(&mut tracker, &mut tables);
    let young = tables.frontends[&external].clone();
    tracker.set_service(name(2), Some(service(3, 3, 1, false)));
    catch_up(&mut tracker, &mut tables);
    assert_ne!(tables.frontends[&external], young);
    assert_eq!(tracker.conflicts(), 1);
    tracker.set_service(name(2), None);
    catch_up(&mut tracker, &mut tables);
    assert_eq!(tables.frontends[&external], young);
    assert_eq!(tracker.conflicts(), 0);
}

#[test]
fn what_a_complete_list_does_not_name_is_gone() {
    let mut tracker = Tracker::default();
    let mut tables = DesiredTables::default();
    for number in 0..2 {
        tracker.set_service(name(number), Some(service(0, number, 1, false)));
        tracker.set_slice("dev", &format!("slice{number}"), Some(slice(number, 2)));
    }
    catch_up(&mut tracker, &mut tables);
    tracker.retain_services(&[name(0)].into());
    tracker.retain_slices(&[("dev".to_owned(), "slice1".to_owned())].into());
    catch_up(&mut tracker, &mut tables);
    assert_eq!(
        tables.sets.values().collect::<Vec<_>>(),
        [&Vec::<Backend>::new(); 2]
    );
}

#[test]
fn a_node_that_learns_its_zone_uses_the_endpoints_meant_for_it() {
    let mut tracker = Tracker::default();
    let mut tables = DesiredTables::default();
    tracker.set_service(name(1), Some(service(0, 1, 1, false)));
    tracker.set_slice("dev", "slice1", Some(slice(1, 3)));
    catch_up(&mut tracker, &mut tables);
    let members = |tables: &DesiredTables| tables.sets.values().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(members(&tables), [3, 3]);
    tracker.set_zone(Some("z1".to_owned()));
    catch_up(&mut tracker, &mut tables);
    assert_eq!(members(&tables), [2, 2]);
    tracker.set_zone(Some("z1".to_owned()));
    assert!(!tracker.is_dirty());
    tracker.set_zone(None);
    catch_up(&mut tracker, &mut tables);
    assert_eq!(members(&tables), [3, 3]);
}
