//! Rollouts: new ReplicaSets, revisions, back again, paused, without a gap.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use skiff_test_harness::scene::Scene;

use crate::{Step, out};

const STATUS: &str = "k rollout status deploy/web --timeout=90s";
const ROLLED_OUT: &[&str] = &["successfully rolled out"];

pub(crate) const ROLLS_OUT_AND_BACK: &[Step] = &[
    (
        "k apply -f $DIR/web.yaml",
        0,
        &["deployment.apps/web created"],
    ),
    (STATUS, 0, ROLLED_OUT),
    (
        "k set env deploy/web A=3",
        0,
        &["deployment.apps/web env updated"],
    ),
    (STATUS, 0, ROLLED_OUT),
    (
        "k annotate deploy/web kubernetes.io/change-cause=third; k set env deploy/web A=4",
        0,
        &[],
    ),
    (STATUS, 0, ROLLED_OUT),
    (
        "k rollout history deploy/web",
        0,
        &[
            "REVISION  CHANGE-CAUSE",
            "1         <none>",
            "3         third",
        ],
    ),
    (
        "k rollout history deploy/web --revision=2",
        0,
        &["revision #2", "A:\t3"],
    ),
    (
        "k rollout undo deploy/web --to-revision=9",
        1,
        &["unable to find specified revision 9 in history"],
    ),
    (
        "k rollout undo deploy/web --to-revision=1",
        0,
        &["deployment.apps/web rolled back"],
    ),
    (STATUS, 0, ROLLED_OUT),
    ("k set env deploy/web --list", 0, &["A=1", "B=2"]),
    (
        "k rollout history deploy/web",
        0,
        &["!\n1 ", "2 ", "3 ", "4 "],
    ),
    (
        "k get rs -l app=web -o custom-columns=R:.spec.replicas --no-headers | sort | tr '\\n' ' '",
        0,
        &["0 0 3 "],
    ),
    (
        "k rollout restart deploy/web",
        0,
        &["deployment.apps/web restarted"],
    ),
    (STATUS, 0, ROLLED_OUT),
    (
        "k rollout pause deploy/web",
        0,
        &["deployment.apps/web paused"],
    ),
    ("k rollout pause deploy/web", 1, &["already paused"]),
    (
        "k rollout restart deploy/web",
        1,
        &["can't restart paused deployment"],
    ),
    (
        "k set image deploy/web c=$REDIS",
        0,
        &["deployment.apps/web image updated"],
    ),
    (
        "k rollout undo deploy/web",
        1,
        &["cannot rollback a paused deployment"],
    ),
    // Scaled while paused: nothing new is rolled out.
    (
        "k scale deploy/web --replicas=2; k wait deploy/web --for=jsonpath='{.status.replicas}'=2 --timeout=60s",
        0,
        &["scaled", "condition met"],
    ),
    (
        "k get pods -l app=web -o jsonpath='{.items[*].spec.containers[0].image}'",
        0,
        &["azure-vote-front", "!redis"],
    ),
    (
        "k rollout undo deploy/web; k set image deploy/web c=$PYTHON; k rollout resume deploy/web",
        0,
        &["deployment.apps/web resumed"],
    ),
    (STATUS, 0, ROLLED_OUT),
    (
        "k set resources deploy/web --limits=cpu=200m,memory=64Mi",
        0,
        &["resource requirements updated"],
    ),
    (STATUS, 0, ROLLED_OUT),
    (
        "k get pods -l app=web -o jsonpath='{.items[*].spec.containers[0].resources.limits}'",
        0,
        &[r#"{"cpu":"200m","memory":"64Mi"}"#],
    ),
    (
        "k scale deploy/web --current-replicas=7 --replicas=5",
        1,
        &["Expected replicas to be 7, was 2"],
    ),
    (
        "k scale deploy/web --current-replicas=2 --replicas=1",
        0,
        &["deployment.apps/web scaled"],
    ),
    (
        "k get deploy web --subresource=scale",
        0,
        &["NAME   DESIRED   AVAILABLE   AGE", "web    1 "],
    ),
    (
        "k describe deploy web",
        0,
        &[
            "Replicas:",
            "1 desired",
            "StrategyType:           RollingUpdate",
            "Conditions:",
            "Progressing    True    NewReplicaSetAvailable",
            "NewReplicaSet:",
            "ScalingReplicaSet",
        ],
    ),
    (
        "k describe rs -l app=web",
        0,
        &[
            "Controlled By:",
            "Deployment/web",
            "Replicas:",
            "SuccessfulCreate",
        ],
    ),
    // A rollout that cannot succeed: the old pods stay, and kubectl says that it waits.
    ("k scale deploy web --replicas=3", 0, &["scaled"]),
    (STATUS, 0, ROLLED_OUT),
    (
        "k patch deploy web -p '{\"spec\":{\"progressDeadlineSeconds\":5}}'; k set image deploy/web c=mcr.microsoft.com/no/such:image",
        0,
        &[],
    ),
    (
        STATUS,
        1,
        &["error: deployment \"web\" exceeded its progress deadline"],
    ),
    (
        "k get deploy web -o jsonpath='{.status.availableReplicas} {.status.updatedReplicas}'",
        0,
        &["2 2"],
    ),
    (
        "k patch deploy web -p '{\"spec\":{\"progressDeadlineSeconds\":600}}'; k rollout undo deploy/web",
        0,
        &["rolled back"],
    ),
    (STATUS, 0, ROLLED_OUT),
];

/// Every state that a watch shows during a rollout has at least `replicas - maxUnavailable` pods.
pub(crate) fn keeps_enough_available(scene: &Scene<'_>) -> Result<()> {
    let rollout = r#"
        k apply -f $DIR/web.yaml; k rollout status deploy/web --timeout=90s
        k get deploy web -w -o jsonpath='{.status.availableReplicas}/{.status.replicas}{"\n"}' > $DIR/seen &
        watcher=$!
        k get rs -l app=web -w -o jsonpath='{.metadata.name}/{.spec.replicas}{"\n"}' > $DIR/sets &
        sets=$!
        for i in $(seq 100); do [ -s $DIR/sets ] && break; sleep 0.1; done
        k set env deploy/web A=9
        k rollout status deploy/web --timeout=90s
        k annotate deploy/web done=1
        # The watch has told all when it has told of the mark's status.
        for i in $(seq 50); do [ "$(tail -n1 $DIR/seen)" = 3/3 ] && break; sleep 0.1; done
        kill $watcher $sets; wait $watcher $sets 2> /dev/null
        sort -u $DIR/seen | sed 's/^/seen /'
        sed 's/^/set /' $DIR/sets
    "#;
    let seen = out(scene, rollout)?;
    let mut states = Vec::new();
    for line in seen.lines().filter_map(|line| line.strip_prefix("seen ")) {
        let (available, all) = line.split_once('/').context("a state")?;
        let number = |text: &str| text.parse::<u32>().unwrap_or(0);
        states.push((number(available), number(all)));
    }
    ensure!(states.len() > 1, "nothing was seen of the rollout: {seen}");
    ensure!(
        states.iter().all(|(available, _)| *available >= 2),
        "available and all pods: {states:?}"
    );
    // How many pods are wanted at a time is what the ReplicaSets say; the Deployment's count of all lags behind.
    let mut wanted = BTreeMap::new();
    for line in seen.lines().filter_map(|line| line.strip_prefix("set ")) {
        let (set, replicas) = line.split_once('/').context("a set")?;
        wanted.insert(set, replicas.parse::<u32>()?);
        let total: u32 = wanted.values().sum();
        ensure!(total <= 4, "{total} pods are wanted: {wanted:?}");
    }
    ensure!(wanted.len() == 2, "the sets of the rollout: {wanted:?}");
    Ok(())
}
