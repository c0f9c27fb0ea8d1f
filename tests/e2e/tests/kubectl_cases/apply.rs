//! apply, diff, prune, kustomize.

use crate::Step;

const FILES: &str = r#"
cat > $DIR/list.yaml <<'E'
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: one, labels: {set: p}}, data: {a: b}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: two, labels: {set: p}}, data: {a: b}}
---
apiVersion: v1
kind: Service
metadata: {name: three, labels: {set: p}}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
E
grep -v 'name: two' $DIR/list.yaml > $DIR/less.yaml
mkdir -p $DIR/kz
cp $DIR/web.yaml $DIR/kz
cat > $DIR/kz/kustomization.yaml <<'E'
namePrefix: kz-
labels: [{pairs: {from: kz}, includeSelectors: true}]
resources: [web.yaml]
replicas: [{name: web, count: 0}]
configMapGenerator: [{name: settings, literals: [a=b]}]
E
"#;

pub(crate) const APPLY_AND_DIFF: &[Step] = &[
    (
        "k diff -f $DIR/web.yaml",
        1,
        &["+kind: Deployment", "+  name: web"],
    ),
    (
        "k apply -f $DIR/web.yaml --dry-run=server",
        0,
        &["deployment.apps/web created (server dry run)"],
    ),
    (
        "k get deploy web",
        1,
        &["Error from server (NotFound): deployments.apps \"web\" not found"],
    ),
    (
        "k apply -f $DIR/web.yaml",
        0,
        &["deployment.apps/web created"],
    ),
    (
        "k apply -f $DIR/web.yaml",
        0,
        &["deployment.apps/web unchanged"],
    ),
    ("k diff -f $DIR/web.yaml", 0, &["!kind"]),
    (
        "sed 's/value: \"1\"/value: \"3\"/' $DIR/web.yaml > $DIR/web2.yaml; k diff -f $DIR/web2.yaml",
        1,
        &[
            "-  generation:",
            "+  generation:",
            "-          value: \"1\"",
            "+          value: \"3\"",
        ],
    ),
    (
        "k apply -f $DIR/web2.yaml --dry-run=client",
        0,
        &["configured (dry run)"],
    ),
    (
        "k apply -f $DIR/web2.yaml",
        0,
        &["deployment.apps/web configured"],
    ),
    // What a manifest no longer says is taken away; what others said stays.
    (
        "k label deploy web mine=1; k apply -f $DIR/web2.yaml",
        0,
        &["unchanged"],
    ),
    (
        "sed '/name: B/d; /name: other/d; s/, gone: soon//' $DIR/web2.yaml > $DIR/web3.yaml; k apply -f $DIR/web3.yaml",
        0,
        &["configured"],
    ),
    (
        "k get deploy web -o jsonpath='{.spec.template.spec.containers[0].env} {.spec.template.spec.containers[0].ports} {.metadata.labels}'",
        0,
        &[
            r#"[{"name":"A","value":"3"}] [{"containerPort":8080,"name":"http","protocol":"TCP"}] {"mine":"1","tier":"web"}"#,
        ],
    ),
    (
        "k apply view-last-applied deploy/web",
        0,
        &["kind: Deployment", "!mine"],
    ),
    (
        "k apply set-last-applied -f $DIR/web.yaml; k apply view-last-applied deploy/web",
        0,
        &["configured", "gone: soon"],
    ),
    // Created without apply: kubectl says so and goes on.
    (
        "k create cm plain --from-literal=a=b; k get cm plain -o yaml > $DIR/plain.yaml; k apply -f $DIR/plain.yaml",
        0,
        &[
            "Warning: resource configmaps/plain is missing the kubectl.kubernetes.io/last-applied-configuration annotation",
        ],
    ),
    (
        "k apply -f - <<< '{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"bad\"},\"daata\":{}}'",
        1,
        &["strict decoding error: unknown field \"daata\""],
    ),
    (
        "k apply --validate=false -f - <<< '{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"bad\"},\"daata\":{}}'",
        0,
        &["configmap/bad created"],
    ),
    (
        "k apply -f - <<< '{\"apiVersion\":\"v1\",\"kind\":\"ConfigMop\",\"metadata\":{\"name\":\"x\"}}'",
        1,
        &["no matches for kind \"ConfigMop\" in version \"v1\""],
    ),
    ("k apply -f $DIR/nope.yaml", 1, &["does not exist"]),
    // Not there yet: it says so, and nothing happens.
    (
        "k apply --server-side -f $DIR/web.yaml",
        1,
        &["Server-side apply not available on the server"],
    ),
];

pub(crate) const LISTS_FOLDERS_PRUNE: &[Step] = &[
    (FILES, 0, &[]),
    (
        "cat $DIR/list.yaml | k apply -f -",
        0,
        &[
            "configmap/one created",
            "configmap/two created",
            "service/three created",
        ],
    ),
    (
        "k apply -f $DIR/list.yaml",
        0,
        &[
            "configmap/one unchanged",
            "configmap/two unchanged",
            "service/three unchanged",
        ],
    ),
    (
        "k apply -f $DIR/less.yaml --prune -l set=p --prune-allowlist=core/v1/ConfigMap",
        0,
        &["one unchanged", "three unchanged", "configmap/two pruned"],
    ),
    (
        "k get cm,svc -l set=p -o name",
        0,
        &["configmap/one", "service/three", "!two"],
    ),
    (
        "k delete -f $DIR/list.yaml --ignore-not-found",
        0,
        &["configmap \"one\" deleted", "service \"three\" deleted"],
    ),
    (
        "mkdir -p $DIR/many; for i in 1 2 3; do k create cm m$i --dry-run=client -o yaml > $DIR/many/$i.yaml; done; k apply -f $DIR/many",
        0,
        &["m1 created", "m2 created", "m3 created"],
    ),
    (
        "k apply -k $DIR/kz",
        0,
        &[
            "configmap/kz-settings-",
            "created",
            "deployment.apps/kz-web created",
        ],
    ),
    ("k apply -k $DIR/kz", 0, &["unchanged", "unchanged"]),
    ("k diff -k $DIR/kz", 0, &[]),
    (
        "k get deploy,cm -l from=kz -o name",
        0,
        &["deployment.apps/kz-web", "configmap/kz-settings-"],
    ),
    (
        "k delete -k $DIR/kz --timeout=60s",
        0,
        &[
            "configmap \"kz-settings-",
            "deployment.apps \"kz-web\" deleted",
        ],
    ),
];
