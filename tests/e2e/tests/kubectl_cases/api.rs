//! What lies below the verbs: concurrency, watches, statuses, credentials, discovery.

use crate::Step;

/// Functions that ask the API without kubectl: with the administrator's certificate and without.
const CURL: &str = r#"
field() { grep "$1:" $KUBECONFIG | awk '{print $2}' | base64 -d > $DIR/$1; }
for f in certificate-authority-data client-certificate-data client-key-data; do field $f; done
cat > $DIR/curl.sh <<'E'
server=$(grep server: $KUBECONFIG | awk '{print $2}')
anonymous() { path=$1; shift; curl -sS --max-time 10 -w ' [%{http_code}]\n' --cacert $DIR/certificate-authority-data "$@" "$server$path"; }
admin() { anonymous "$@" --cert $DIR/client-certificate-data --key $DIR/client-key-data; }
E
"#;

pub(crate) const WRITERS_MEET: &[Step] = &[
    // Patches without a version never conflict, and none is lost.
    (
        "k create cm c; for i in $(seq 8); do k patch cm c -p '{\"data\":{\"k'$i'\":\"v\"}}' & done; wait",
        0,
        &["!rror"],
    ),
    ("k get cm c -o go-template='{{len .data}}'", 0, &["8"]),
    // Of those who replace the same version, one wins.
    (
        "k get cm c -o json > $DIR/c.json; for i in $(seq 6); do sed \"s/\\\"k1\\\": \\\"v\\\"/\\\"k1\\\": \\\"w$i\\\"/\" $DIR/c.json > $DIR/c$i.json; k replace -f $DIR/c$i.json > $DIR/o$i 2>&1 & done; wait; cat $DIR/o? | grep -c replaced; cat $DIR/o? | grep -c Conflict",
        0,
        &["1\n5"],
    ),
    (
        "for i in $(seq 4); do k create cm same > $DIR/s$i 2>&1 & done; wait; cat $DIR/s? | grep -c created; cat $DIR/s? | grep -c 'already exists'",
        0,
        &["1\n3"],
    ),
];

pub(crate) const WATCHES_MISS_NOTHING: &[Step] = &[
    (
        "k create cm c; k get cm c -o jsonpath='{.metadata.resourceVersion}' > $DIR/rv; for i in $(seq 10); do k annotate cm c n=$i --overwrite; done; k delete cm c",
        0,
        &["annotated", "deleted"],
    ),
    (
        "k get --raw \"/api/v1/namespaces/$NS/configmaps?watch=1&resourceVersion=$(cat $DIR/rv)&timeoutSeconds=1\" > $DIR/w; grep -c MODIFIED $DIR/w; grep -c '\"DELETED\"' $DIR/w; wc -l < $DIR/w; grep -o '\"n\":\"[0-9]*\"' $DIR/w | tr -d '\"n:' | tr '\\n' ' '",
        0,
        &["10\n1\n11\n", "1 2 3 4 5 6 7 8 9 10"],
    ),
    (
        "k get --raw \"/api/v1/namespaces/$NS/configmaps?watch=1&resourceVersion=99999999&timeoutSeconds=1\"",
        1,
        &["Too large resource version"],
    ),
    (
        "k get --raw \"/api/v1/namespaces/$NS/configmaps?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1\"",
        0,
        &["ADDED", "BOOKMARK", "k8s.io/initial-events-end"],
    ),
];

pub(crate) const STATUSES_AND_CREDENTIALS: &[Step] = &[
    (CURL, 0, &[]),
    (
        ". $DIR/curl.sh; for p in /healthz /livez /readyz /version /api /apis /api/v1/pods /metrics; do anonymous $p; done",
        0,
        &[
            "ok [200]",
            "ok [200]",
            "ok [200]",
            "\"gitVersion\"",
            "[200]",
            "\"reason\":\"Unauthorized\"",
            "[401]",
            "[401]",
            "[401]",
            "[401]",
        ],
    ),
    (
        ". $DIR/curl.sh; admin /api/v1/namespaces/$NS/pods/nope; admin /nope; admin /apis/nope/v1",
        0,
        &[
            r#""details":{"kind":"pods","name":"nope"}"#,
            r#""kind":"Status""#,
            r#""reason":"NotFound","status":"Failure"} [404]"#,
            "the server could not find the requested resource",
            "[404]",
            "[404]",
        ],
    ),
    (
        ". $DIR/curl.sh; admin '/api/v1/pods?resourceVersion=x'; admin '/api/v1/pods?continue=x'; admin '/api/v1/pods?limit=x'; admin /api/v1/pods -H 'Accept: text/html'",
        0,
        &[
            "[400]",
            "continue key is not valid",
            "[400]",
            "[400]",
            "[406]",
        ],
    ),
    (
        ". $DIR/curl.sh; c=/api/v1/namespaces/$NS/configmaps; j='content-type: application/json'; admin $c -H \"$j\" -d '{'; admin $c -H \"$j\" -d '{\"kind\":\"Pod\",\"apiVersion\":\"v1\"}'; admin $c -H 'content-type: text/plain' -d x; admin $c -X PUT; admin $c/x -X PATCH -H \"$j\" -d '{}'",
        0,
        &["[400]", "[400]", "[415]", "[405]", "[415]"],
    ),
    (
        ". $DIR/curl.sh; admin /api/v1/namespaces/none/configmaps -H 'content-type: application/json' -d '{\"metadata\":{\"name\":\"x\"}}'",
        0,
        &["namespaces \\\"none\\\" not found", "[404]"],
    ),
    (
        "k get --raw /api/v1/namespaces/$NS/pods/nope",
        1,
        &["Error from server (NotFound): pods \"nope\" not found"],
    ),
    (
        "k get --raw '/readyz?verbose'",
        0,
        &["[+]ping ok", "readyz check passed"],
    ),
    (
        "k get --raw /metrics",
        0,
        &["# TYPE apiserver_request_total counter"],
    ),
    (
        "k create --raw /api/v1/namespaces/$NS/configmaps -f - <<< '{\"metadata\":{\"name\":\"raw\"}}'; k delete --raw /api/v1/namespaces/$NS/configmaps/raw",
        0,
        &["\"name\":\"raw\"", "\"status\":\"Success\""],
    ),
    (
        "k proxy --port=0 > $DIR/proxy & for i in $(seq 50); do grep -q 127 $DIR/proxy && break; sleep 0.1; done; curl -sS http://$(grep -o '127.*' $DIR/proxy)/api/v1/namespaces/$NS; kill %1",
        0,
        &["\"name\":\"raw\""],
    ),
];

pub(crate) const WHO_MAY_WHAT: &[Step] = &[
    (
        "k auth whoami",
        0,
        &[
            "Username    kubernetes-admin",
            "Groups      [system:masters system:authenticated]",
        ],
    ),
    (
        "k auth can-i create pods; k auth can-i '*' '*'; k auth can-i get /metrics",
        0,
        &["yes", "yes", "yes"],
    ),
    ("k auth can-i --list", 0, &["*.*", "[*]"]),
    ("k auth can-i get pods --as=bob", 1, &["no"]),
    (
        "k auth whoami --as=bob --as-group=dev",
        0,
        &["Username    bob", "Groups      [dev system:authenticated]"],
    ),
    (
        "k get pods --as=bob",
        1,
        &[
            "Error from server (Forbidden): pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" in the namespace \"identity\"",
        ],
    ),
    (
        "k get pods --as=bob --as-group=system:masters",
        0,
        &["No resources found"],
    ),
];

pub(crate) const DISCOVERY_AND_EXPLAIN: &[Step] = &[
    (
        "k version",
        0,
        &["Client Version: v1.32", "Server Version: v1."],
    ),
    (
        "k cluster-info; k cluster-info dump -o json | head -n 3",
        0,
        &["Kubernetes control plane", "https://127.0.0.1:", "NodeList"],
    ),
    (
        "k api-versions",
        0,
        &[
            "apps/v1",
            "authorization.k8s.io/v1",
            "coordination.k8s.io/v1",
            "discovery.k8s.io/v1",
            "events.k8s.io/v1",
            "networking.k8s.io/v1",
            "\nv1",
        ],
    ),
    (
        "k api-resources",
        0,
        &["configmaps ", "cm ", "pods ", "deployments "],
    ),
    (
        "k api-resources --namespaced=false -o name; k api-resources --verbs=list --api-group=apps -o name",
        0,
        &["namespaces", "nodes", "deployments.apps\nreplicasets.apps"],
    ),
    (
        "k explain pod.spec.containers.image",
        0,
        &["FIELD: image <string>", "Container image name"],
    ),
    (
        "k explain deploy.spec.strategy --recursive",
        0,
        &[
            "rollingUpdate\t<RollingUpdateDeployment>",
            "maxSurge\t<IntOrString>",
        ],
    ),
    (
        "for kind in ns no po svc ep cm secret sa ev deploy rs lease endpointslices; do k explain $kind > /dev/null || echo $kind; done",
        0,
        &["!error"],
    ),
    ("k explain pod.nope", 1, &["field \"nope\" does not exist"]),
    (
        "k get componentstatuses",
        1,
        &["the server doesn't have a resource type"],
    ),
];
