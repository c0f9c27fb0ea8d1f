use jiff::SignedDuration;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::rolling::{fenceposts, max_unavailable};
use super::sets::{HASH_LABEL, REVISION_HISTORY, available, revision};
use super::*;

fn deployment(replicas: i32, strategy: &Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": strategy,
            "template": template("v1"),
        },
    }))
    .unwrap()
}

fn template(image: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": image}]},
    })
}

fn rs(name: &str, age: i64, image: &str, replicas: i32, available: i32) -> ReplicaSet {
    let created = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(age);
    serde_json::from_value(json!({
        "metadata": {
            "name": name, "uid": name, "creationTimestamp": created.to_string(),
            "annotations": {REVISION: age.to_string()},
        },
        "spec": {"replicas": replicas, "selector": {}, "template": template(image)},
        "status": {
            "replicas": replicas, "availableReplicas": available, "readyReplicas": available,
        },
    }))
    .unwrap()
}

fn sets(d: &Deployment, all: &[ReplicaSet]) -> Sets {
    Sets::of(d, all.iter().cloned().map(Arc::new).collect())
}

fn rolling(surge: &Value, unavailable: &Value) -> Value {
    json!({
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable},
    })
}

#[test]
fn surge_rounds_up_and_unavailable_down() {
    let table = [
        (10, json!("25%"), json!("25%"), (3, 2)),
        (1, json!("25%"), json!("25%"), (1, 0)),
        (3, json!(0), json!("10%"), (0, 1)),
        (4, json!("0%"), json!("0%"), (0, 1)),
        (5, json!(2), json!(1), (2, 1)),
        (0, json!("25%"), json!("25%"), (0, 1)),
    ];
    for (replicas, surge, unavailable, expected) in table {
        let d = deployment(replicas, &rolling(&surge, &unavailable));
        assert_eq!(fenceposts(&d), expected, "{replicas} {surge} {unavailable}");
    }
    assert_eq!(
        max_unavailable(&deployment(0, &rolling(&json!(0), &json!(5)))),
        0
    );
    assert_eq!(
        fenceposts(&deployment(10, &json!({"type": "Recreate"}))),
        (0, 0)
    );
    assert_eq!(
        fenceposts(&deployment(10, &json!({"type": "RollingUpdate"}))),
        (3, 2)
    );
}

#[test]
fn the_hash_is_stable_and_follows_the_template() {
    let hash = |image: &str, collisions| {
        template_hash(
            &serde_json::from_value(template(image)).unwrap(),
            collisions,
        )
        .unwrap()
    };
    assert_eq!(hash("v1", None), hash("v1", None));
    assert_ne!(hash("v1", None), hash("v2", None));
    assert_ne!(hash("v1", None), hash("v1", Some(1)));
    assert!(hash("v1", None).len() <= 10);
}

#[test]
fn a_new_set_carries_hash_and_revision_and_is_recognised() {
    let mut d = deployment(3, &rolling(&json!(1), &json!(0)));
    d.metadata.annotations = Some(
        [
            ("note", "x"),
            ("kubectl.kubernetes.io/last-applied-configuration", "{}"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into(),
    );
    let new = build_new(&d, "abc", 4, 3, 4);
    let meta = &new.metadata;
    assert_eq!(meta.name.as_deref(), Some("web-abc"));
    assert_eq!(meta.labels.as_ref().unwrap()[HASH_LABEL], "abc");
    let spec = new.spec.as_ref().unwrap();
    assert_eq!(
        spec.selector.match_labels.as_ref().unwrap()[HASH_LABEL],
        "abc"
    );
    assert_eq!(
        (
            revision(meta),
            annotation(meta, DESIRED),
            annotation(meta, MAX)
        ),
        (4, Some("3"), Some("4"))
    );
    assert_eq!(annotation(meta, "note"), Some("x"));
    assert_eq!(
        annotation(meta, "kubectl.kubernetes.io/last-applied-configuration"),
        None
    );
    assert!(sets(&d, &[new]).new.is_some());
}

#[test]
fn rolling_back_raises_the_revision_and_keeps_its_history() {
    let d = deployment(1, &json!({}));
    let s = sets(&d, &[rs("a", 1, "v1", 0, 0), rs("b", 2, "v2", 1, 1)]);
    let new = s.new.clone().unwrap();
    assert_eq!(new.metadata.name.as_deref(), Some("a"));
    assert_eq!(next_revision(&s.old), 3);
    let annotations = plan_annotations(&d, &new.metadata, 3);
    assert_eq!(
        (
            annotations[REVISION].as_str(),
            annotations[REVISION_HISTORY].as_str()
        ),
        ("3", "1")
    );
    let mut again = new.metadata.clone();
    again.annotations = Some(annotations.clone());
    assert_eq!(plan_annotations(&d, &again, 3), annotations, "settles");
}

#[test]
fn scaling_in_the_middle_of_a_rollout_keeps_the_shares() {
    let d = deployment(20, &rolling(&json!(2), &json!(1)));
    let mut old = rs("old", 1, "v0", 8, 8);
    let mut new = rs("new", 2, "v1", 4, 4);
    for set in [&mut old, &mut new] {
        let annotations = set.metadata.annotations.as_mut().unwrap();
        annotations.insert(DESIRED.to_owned(), "10".to_owned());
        annotations.insert(MAX.to_owned(), "12".to_owned());
    }
    let s = sets(&d, &[old, new]);
    assert!(is_scaling(&d, &s));
    let sizes: Vec<_> = plan_scaling(&d, &s)
        .into_iter()
        .map(|(rs, size)| (rs.metadata.name.clone().unwrap(), size))
        .collect();
    assert_eq!(sizes, [("old".to_owned(), 15), ("new".to_owned(), 7)]);
}

#[test]
fn clean_up_takes_the_oldest_empty_revisions() {
    let mut d = deployment(1, &json!({}));
    if let Some(spec) = &mut d.spec {
        spec.revision_history_limit = Some(1);
    }
    let all = [
        rs("r1", 1, "a", 0, 0),
        rs("r2", 2, "b", 1, 0),
        rs("r3", 3, "c", 0, 0),
        rs("r4", 4, "v1", 1, 1),
    ];
    let doomed = plan_clean_up(&d, &sets(&d, &all));
    let names: Vec<_> = doomed
        .iter()
        .filter_map(|rs| rs.metadata.name.as_deref())
        .collect();
    assert_eq!(names, ["r1"], "r2 still has pods, r3 is within the limit");
}

fn progressing(d: &Deployment) -> (String, String) {
    let conditions = d
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    let c = conditions
        .into_iter()
        .find(|c| c.type_ == "Progressing")
        .unwrap();
    (c.status, c.reason.unwrap_or_default())
}

#[test]
fn progress_is_told_and_times_out() {
    let mut d = deployment(2, &rolling(&json!(1), &json!(0)));
    let start = Timestamp::UNIX_EPOCH;
    let s = sets(&d, &[rs("new", 1, "v1", 2, 0)]);
    let (status, wake) = plan_status(&d, &s, true, start);
    assert_eq!(status.unavailable_replicas, Some(2));
    assert_eq!(wake, Some(Duration::from_secs(601)));
    d.status = Some(status);
    assert_eq!(
        progressing(&d),
        ("True".to_owned(), "NewReplicaSetCreated".to_owned())
    );

    let (again, _) = plan_status(&d, &s, false, start + SignedDuration::from_secs(5));
    assert!(
        !status_differs(d.status.as_ref(), &again),
        "nothing happened"
    );

    let half = sets(&d, &[rs("new", 1, "v1", 2, 1)]);
    let at = start + SignedDuration::from_secs(100);
    d.status = Some(plan_status(&d, &half, false, at).0);
    assert_eq!(progressing(&d).1, "ReplicaSetUpdated");

    let late = at + SignedDuration::from_secs(601);
    let mut stuck = d.clone();
    stuck.status = Some(plan_status(&d, &half, false, late).0);
    assert_eq!(
        progressing(&stuck),
        ("False".to_owned(), "ProgressDeadlineExceeded".to_owned())
    );

    let done = sets(&d, &[rs("new", 1, "v1", 2, 2)]);
    for from in [&d, &stuck] {
        let mut finished = from.clone();
        finished.status = Some(plan_status(from, &done, false, late).0);
        assert_eq!(
            progressing(&finished),
            ("True".to_owned(), "NewReplicaSetAvailable".to_owned())
        );
        let status = finished.status.as_ref().unwrap();
        assert!(is_complete(&finished, status));
        let available = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == "Available");
        assert_eq!(available.unwrap().status, "True");
    }
}

/// A cluster in which pods become available, or fail, one at a time.
struct World {
    d: Deployment,
    sets: Vec<ReplicaSet>,
}

impl World {
    fn step(&mut self) -> bool {
        let s = sets(&self.d, &self.sets);
        let size = new_set_size(&self.d, &s);
        let new = s.new.clone().unwrap();
        let resizes = if spec_replicas(&new) == size {
            plan_shrink_old(&self.d, &s)
        } else {
            vec![(new, size)]
        };
        for (rs, size) in &resizes {
            let target = self
                .sets
                .iter_mut()
                .find(|t| t.metadata.name == rs.metadata.name)
                .unwrap();
            target.spec.as_mut().unwrap().replicas = Some(*size);
            let status = target.status.as_mut().unwrap();
            status.replicas = *size;
            // Not ready pods are deleted first.
            let left = status.available_replicas.unwrap_or(0).min(*size);
            status.available_replicas = Some(left);
        }
        !resizes.is_empty()
    }

    fn available(&self) -> i32 {
        self.sets.iter().map(available).sum()
    }

    fn total(&self) -> i32 {
        self.sets.iter().map(spec_replicas).sum()
    }

    fn become_available(&mut self, index: usize, change: i32) {
        let index = index % self.sets.len();
        let set = &mut self.sets[index];
        let most = spec_replicas(set);
        let status = set.status.as_mut().unwrap();
        let now = (status.available_replicas.unwrap_or(0) + change).clamp(0, most);
        status.available_replicas = Some(now);
    }
}

proptest! {
    #[test]
    fn prop_rolling_update_stays_between_min_available_and_max_surge(
        replicas in 1i32..30,
        surge in 0i32..100,
        unavailable in 0i32..100,
        percent in any::<bool>(),
        old_split in 0i32..30,
        arrivals in proptest::collection::vec((0usize..3, 1i32..4), 0..60),
    ) {
        let value = |n: i32| if percent { json!(format!("{n}%")) } else { json!(n % 10) };
        let d = deployment(replicas, &rolling(&value(surge), &value(unavailable)));
        let split = old_split.min(replicas);
        let mut world = World {
            sets: vec![
                rs("o1", 1, "old1", split, split),
                rs("o2", 2, "old2", replicas - split, replicas - split),
                rs("new", 3, "v1", 0, 0),
            ],
            d,
        };
        let floor = replicas - max_unavailable(&world.d);
        let ceiling = max_total(&world.d);
        let mut arrivals = arrivals.into_iter();
        let mut idle = 0;
        for _ in 0..2000 {
            let moved = world.step();
            prop_assert!(world.total() <= ceiling, "{} > {ceiling}", world.total());
            prop_assert!(world.available() >= floor, "{} < {floor}", world.available());
            match arrivals.next() {
                Some((index, n)) => world.become_available(index, n),
                None => world.become_available(2, 1),
            }
            idle = if moved { 0 } else { idle + 1 };
            if idle > 70 {
                break;
            }
        }
        let sizes: Vec<_> = world.sets.iter().map(spec_replicas).collect();
        prop_assert_eq!(sizes, vec![0, 0, replicas], "the rollout ends");
    }

    #[test]
    fn prop_scaling_hits_the_allowed_total(
        replicas in 0i32..50,
        sizes in proptest::collection::vec(1i32..20, 2..5),
    ) {
        let d = deployment(replicas, &rolling(&json!("25%"), &json!("25%")));
        let all: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(i, n)| {
                let age = i64::try_from(i).unwrap();
                let image = if i == 0 { "v1".to_owned() } else { format!("o{i}") };
                let mut set = rs(&format!("r{i}"), age, &image, *n, 0);
                let total: i32 = sizes.iter().sum();
                let annotations = set.metadata.annotations.as_mut().unwrap();
                annotations.insert(MAX.to_owned(), total.to_string());
                set
            })
            .collect();
        let plan = plan_scaling(&d, &sets(&d, &all));
        let allowed = if replicas > 0 { max_total(&d) } else { 0 };
        let total: i32 = plan.iter().map(|(_, size)| size).sum();
        prop_assert!(plan.iter().all(|(_, size)| *size >= 0));
        prop_assert_eq!(total, allowed);
    }
}
