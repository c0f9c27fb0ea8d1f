//! Objects that are there: change them, delete them.

use crate::Step;

pub(crate) const PATCH_LABEL_EDIT_REPLACE: &[Step] = &[
    (
        "k create deploy d --image=x --replicas=0; k patch deploy d -p '{\"metadata\":{\"labels\":{\"p\":\"1\"}}}'",
        0,
        &["deployment.apps/d patched"],
    ),
    (
        "k patch deploy d -p '{\"metadata\":{\"labels\":{\"p\":\"1\"}}}'",
        0,
        &["patched (no change)"],
    ),
    (
        "k patch deploy d --type=json -p '[{\"op\":\"test\",\"path\":\"/spec/replicas\",\"value\":0},{\"op\":\"add\",\"path\":\"/metadata/labels/q\",\"value\":\"2\"}]'; k get deploy d -o jsonpath='{.metadata.labels}'",
        0,
        &[r#"{"app":"d","p":"1","q":"2"}"#],
    ),
    (
        "k patch deploy d --type=json -p '[{\"op\":\"test\",\"path\":\"/spec/replicas\",\"value\":7}]'",
        1,
        &["the server rejected our request due to an error in our request"],
    ),
    (
        "k patch deploy d --type=merge -p '{\"metadata\":{\"labels\":{\"q\":null}}}'; k get deploy d -o jsonpath='{.metadata.labels}'",
        0,
        &[r#"{"app":"d","p":"1"}"#],
    ),
    // Lists of containers merge by name.
    (
        "k patch deploy d -p '{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"x\",\"env\":[{\"name\":\"A\",\"value\":\"1\"}]},{\"name\":\"y\",\"image\":\"y\"}]}}}}'; k get deploy d -o jsonpath='{.spec.template.spec.containers[*].name} {..env}'",
        0,
        &["x y", r#"[{"name":"A","value":"1"}]"#],
    ),
    (
        "k patch deploy d -p '{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"y\",\"$patch\":\"delete\"}]}}}}'; k get deploy d -o jsonpath='{.spec.template.spec.containers[*].name}'",
        0,
        &["x", "!x y"],
    ),
    (
        "k patch deploy d --subresource=scale --type=merge -p '{\"spec\":{\"replicas\":0}}'",
        0,
        &["scale.autoscaling/d patched"],
    ),
    (
        "k patch deploy d -p '{\"spec\":{\"selector\":{\"matchLabels\":{\"x\":\"y\"}}}}'",
        1,
        &["spec.selector: Invalid value", "field is immutable"],
    ),
    (
        "k patch deploy d -p '{\"spec\":{\"nosuch\":1}}'",
        0,
        &["unknown field \"spec.nosuch\""],
    ),
    (
        "k patch deploy nope -p '{}'",
        1,
        &["deployments.apps \"nope\" not found"],
    ),
    (
        "k create cm c; k label cm c a=b; k label cm c a=c",
        1,
        &[
            "configmap/c labeled",
            "'a' already has a value (b), and --overwrite is false",
        ],
    ),
    (
        "k label cm c a=c --overwrite; k label cm c --list; k label cm c a-; k label cm --all all=yes",
        0,
        &[
            "labeled",
            "a=c",
            "unlabeled",
            "configmap/kube-root-ca.crt labeled",
        ],
    ),
    (
        "k label cm c 'bad key=1'",
        1,
        &["metadata.labels: Invalid value: \"bad key\""],
    ),
    (
        "k label cm c a=b --resource-version=1",
        1,
        &[
            "Error from server (Conflict)",
            "the object has been modified",
        ],
    ),
    (
        "k annotate cm c n=1 m=2; k annotate cm c n-; k annotate cm c --list",
        0,
        &["annotated", "m=2", "!n=1"],
    ),
    (
        "KUBE_EDITOR='sed -i /m:/s/2/3/' k edit cm c; k get cm c -o jsonpath='{.metadata.annotations.m}'",
        0,
        &["configmap/c edited", "3"],
    ),
    (
        "KUBE_EDITOR=true k edit cm c",
        0,
        &["Edit cancelled, no changes made."],
    ),
    (
        "KUBE_EDITOR='sed -i s/replicas:.0/replicas:\\ -5/' k edit deploy d",
        1,
        &["is invalid", "no valid changes were saved"],
    ),
    (
        "k get cm c -o json | sed 's/\"m\": \"3\"/\"m\": \"4\"/' > $DIR/c.json; k replace -f $DIR/c.json",
        0,
        &["configmap/c replaced"],
    ),
    (
        "k replace -f $DIR/c.json",
        1,
        &[
            "Error from server (Conflict)",
            "Operation cannot be fulfilled on configmaps \"c\": the object has been modified",
        ],
    ),
    (
        "k replace -f - <<< '{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"nope\"}}'",
        1,
        &["configmaps \"nope\" not found"],
    ),
    (
        "k replace --force -f $DIR/c.json; k get cm c -o jsonpath='{.metadata.annotations.m}'",
        0,
        &["configmap \"c\" deleted", "configmap/c replaced", "4"],
    ),
    (
        "k create service clusterip s --tcp=80; k set selector svc/s a=b; k get svc s -o jsonpath='{.spec.selector}'",
        0,
        &[r#"{"a":"b"}"#],
    ),
    (
        "k patch svc s --type=merge -p '{\"spec\":{\"clusterIP\":\"10.96.1.2\"}}'",
        1,
        &[
            "spec.clusterIPs[0]: Invalid value",
            "may not change once set",
        ],
    ),
    (
        "k set serviceaccount deploy/d default; k set env deploy/d FOO=bar --containers=x; k set env deploy/d --list; k set env deploy/d FOO-",
        0,
        &["serviceaccount updated", "FOO=bar", "env updated"],
    ),
    (
        "k scale deploy d --replicas=-1",
        1,
        &["The --replicas=COUNT flag is required, and COUNT must be greater than or equal to 0"],
    ),
];

pub(crate) const DELETE_IN_EVERY_WAY: &[Step] = &[
    (
        "for i in 1 2 3 4; do k create cm c$i; done; k delete cm/c1 cm/nope; k delete cm c1 nope",
        1,
        &[
            "configmap \"c1\" deleted",
            "configmaps \"nope\" not found",
            "configmaps \"c1\" not found",
            "configmaps \"nope\" not found",
        ],
    ),
    (
        "k label cm c2 x=y; k delete cm -l x=y; k delete cm -l x=y",
        0,
        &["configmap \"c2\" deleted", "No resources found"],
    ),
    (
        "k delete cm c3 --dry-run=server; k get cm c3 -o name; k delete cm/c3 -o name",
        0,
        &["deleted (server dry run)", "configmap/c3", "configmap/c3"],
    ),
    (
        "k delete cm --field-selector metadata.name=c4",
        0,
        &["configmap \"c4\" deleted"],
    ),
    // A finalizer holds an object until it is taken off.
    (
        "k create cm held; k patch cm held -p '{\"metadata\":{\"finalizers\":[\"example.com/x\"]}}'; k delete cm held --timeout=1s",
        1,
        &["timed out waiting for the condition on configmaps/held"],
    ),
    (
        "k get cm held -o jsonpath='{.metadata.deletionTimestamp}'; k patch cm held -p '{\"metadata\":{\"finalizers\":[\"example.com/y\"]}}'",
        1,
        &[
            "20",
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted",
        ],
    ),
    (
        "k patch cm held --type=json -p '[{\"op\":\"remove\",\"path\":\"/metadata/finalizers\"}]'; k get cm held",
        1,
        &["patched", "not found"],
    ),
    // Dependents: left alone, waited for, or gone after.
    (
        "k apply -f $DIR/web.yaml; k rollout status deploy/web --timeout=90s",
        0,
        &["successfully rolled out"],
    ),
    (
        "k delete deploy web --cascade=orphan; k get rs -l app=web -o jsonpath='{.items[*].metadata.ownerReferences}'; k get pods -l app=web --no-headers | wc -l",
        0,
        &["deployment.apps \"web\" deleted", "3"],
    ),
    // A new Deployment adopts what it finds.
    (
        "k apply -f $DIR/web.yaml; k rollout status deploy/web --timeout=90s; k get rs -l app=web --no-headers | wc -l",
        0,
        &["created", "1"],
    ),
    (
        "k delete deploy web --cascade=foreground --timeout=90s; k get rs,pods -l app=web",
        0,
        &["deployment.apps \"web\" deleted", "No resources found"],
    ),
    (
        "k apply -f $DIR/web.yaml; k rollout status deploy/web --timeout=90s; k delete deploy web; k wait --for=delete pod -l app=web --timeout=90s; k get rs -l app=web",
        0,
        &["deleted", "No resources found"],
    ),
    (
        "k run p --image=$PYTHON --command -- sleep 1000; k wait --for=condition=Ready pod/p --timeout=90s; k delete pod p --grace-period=0 --force; k get pod p",
        1,
        &[
            "Warning: Immediate deletion does not wait",
            "pod \"p\" force deleted",
            "not found",
        ],
    ),
    (
        "k create ns $NS-sub; k create cm x -n $NS-sub; k delete ns $NS-sub --timeout=60s; k get cm -n $NS-sub x",
        1,
        &["namespace \"delete-sub\" deleted", "not found"],
    ),
    (
        "k delete ns default",
        1,
        &["namespaces \"default\" is forbidden: this namespace may not be deleted"],
    ),
    (
        "k delete -f $DIR/web.yaml",
        1,
        &["deployments.apps \"web\" not found"],
    ),
    (
        "k delete cm",
        1,
        &["resource(s) were provided, but no name was specified"],
    ),
];
