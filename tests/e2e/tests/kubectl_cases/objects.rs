//! Objects of every kind: create, get, wait for, and the node's upkeep.

use crate::Step;

pub(crate) const CREATE_EVERYTHING: &[Step] = &[
    (
        "k create namespace $NS",
        1,
        &["Error from server (AlreadyExists): namespaces \"create\" already exists"],
    ),
    (
        "printf 'a=1\\nb=2\\n' > $DIR/app.properties; k create configmap c --from-literal=k=v --from-file=$DIR/app.properties; k create configmap e --from-env-file=$DIR/app.properties; k get cm e -o jsonpath='{.data}'",
        0,
        &["configmap/c created", r#"{"a":"1","b":"2"}"#],
    ),
    (
        "k describe cm c",
        0,
        &["Data", "app.properties:", "a=1", "BinaryData"],
    ),
    (
        "k create secret generic s --from-literal=password=hidden; k describe secret s",
        0,
        &[
            "secret/s created",
            "Type:  Opaque",
            "password:  6 bytes",
            "!hidden",
        ],
    ),
    (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout $DIR/k -out $DIR/c -days 1 -subj /CN=x 2> /dev/null; k create secret tls t --cert=$DIR/c --key=$DIR/k; k get secret t",
        0,
        &["secret/t created", "kubernetes.io/tls   2"],
    ),
    (
        "k create secret docker-registry r --docker-server=x --docker-username=u --docker-password=p; k get secret --field-selector type=kubernetes.io/dockerconfigjson -o name",
        0,
        &["secret/r created", "secret/r"],
    ),
    (
        "k create service clusterip cip --tcp=80:8080",
        0,
        &["service/cip created"],
    ),
    (
        "k create service clusterip headless --clusterip=None --tcp=80; k get svc headless",
        0,
        &["headless   ClusterIP   None "],
    ),
    (
        "k create service nodeport np --tcp=80 --node-port=31987; k create service nodeport np2 --tcp=80 --node-port=31987",
        1,
        &["service/np created", "provided port is already allocated"],
    ),
    (
        "k create service loadbalancer lb --tcp=80",
        0,
        &["service/lb created"],
    ),
    (
        "k create service externalname ext --external-name=example.com; k get svc ext",
        0,
        &["ext    ExternalName   <none>       example.com"],
    ),
    (
        "k create serviceaccount sa; k describe sa sa",
        0,
        &["serviceaccount/sa created", "Name:                sa"],
    ),
    (
        "k create deployment d --image=x --replicas=0 --port=80; k create deployment d --image=x",
        1,
        &[
            "deployment.apps/d created",
            "deployments.apps \"d\" already exists",
        ],
    ),
    (
        "k create deployment dry --image=x --dry-run=client -o yaml",
        0,
        &["kind: Deployment", "app: dry", "!uid"],
    ),
    (
        "k create deployment dry --image=x --dry-run=server -o yaml",
        0,
        &["progressDeadlineSeconds: 600", "imagePullPolicy: Always"],
    ),
    (
        "k create deployment dry --image=x --dry-run=server; k get deploy dry",
        1,
        &["created (server dry run)", "not found"],
    ),
    (
        "k create -f - <<< '{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"generateName\":\"gen-\"}}'",
        0,
        &["configmap/gen-"],
    ),
    (
        "k create -f $DIR/web.yaml --save-config; k apply -f $DIR/web.yaml; k scale deploy web --replicas=0",
        0,
        &["created", "unchanged", "scaled"],
    ),
    (
        "k create job j --image=x",
        1,
        &["the server could not find the requested resource"],
    ),
    (
        "k get all",
        0,
        &["service/cip", "deployment.apps/d", "replicaset.apps/d-"],
    ),
    (
        "k describe all > $DIR/told; grep -c '^Name:' $DIR/told",
        0,
        &[],
    ),
    (
        "k describe ns $NS",
        0,
        &["Name:         create", "Status:       Active"],
    ),
];

pub(crate) const GET_IN_EVERY_FORM: &[Step] = &[
    (
        "for i in 1 2 3 4 5; do k create cm c$i --from-literal=a=$i; k label cm c$i n=$i kind=$((i % 2)) set=s; done",
        0,
        &[],
    ),
    (
        "k get cm -l set=s -o name | tr '\\n' ' '",
        0,
        &["configmap/c1 configmap/c2 configmap/c3 configmap/c4 configmap/c5 "],
    ),
    (
        "k get cm -l set=s --no-headers --chunk-size=2 | wc -l",
        0,
        &["5"],
    ),
    (
        "k get cm -l 'kind=1,n!=3' -o name | tr '\\n' ' '",
        0,
        &["configmap/c1 configmap/c5 "],
    ),
    (
        "k get cm -l 'n in (1, 2)' -o name | tr '\\n' ' '",
        0,
        &["configmap/c1 configmap/c2 "],
    ),
    (
        "k get cm -l 'set,n notin (1,2,3,4)' -o name",
        0,
        &["configmap/c5"],
    ),
    (
        "k get cm -l '!set' -o name",
        0,
        &["configmap/kube-root-ca.crt", "!c1"],
    ),
    (
        "k get cm -l 'a=b=c'",
        1,
        &["unable to parse requirement: found '=', expected: ',' or 'end of string'"],
    ),
    (
        "k get cm --field-selector metadata.name=c3 -o name",
        0,
        &["configmap/c3", "!c1"],
    ),
    (
        "k get cm --field-selector metadata.name!=c3 -l set -o name",
        0,
        &["c2", "c4", "!c3"],
    ),
    (
        "k get pods --field-selector spec.bad=1",
        1,
        &["field label not supported: spec.bad"],
    ),
    (
        "k get cm -l set --sort-by=.data.a --show-labels -L n",
        0,
        &[
            "NAME   DATA   AGE",
            "N   LABELS",
            "c1 ",
            "kind=1,n=1,set=s",
            "c5 ",
        ],
    ),
    (
        "k get cm c1 -o json",
        0,
        &["\"apiVersion\": \"v1\"", "\"resourceVersion\": \""],
    ),
    (
        "k get cm c1 -o yaml",
        0,
        &["apiVersion: v1", "kind: ConfigMap", "uid: "],
    ),
    (
        "k get cm -l set -o jsonpath='{range .items[*]}{.metadata.name}={.data.a} {end}'",
        0,
        &["c1=1 c2=2 c3=3 c4=4 c5=5 "],
    ),
    (
        "k get cm -l set -o custom-columns=N:.metadata.name,A:.data.a",
        0,
        &["N    A\nc1   1\n"],
    ),
    ("k get cm -l set -o go-template='{{len .items}}'", 0, &["5"]),
    (
        "k get cm c1 c2 nope",
        1,
        &[
            "c1 ",
            "c2 ",
            "Error from server (NotFound): configmaps \"nope\" not found",
        ],
    ),
    (
        "k get cm/c1 svc,cm",
        1,
        &["there is no need to specify a resource type"],
    ),
    ("k get cm nope --ignore-not-found", 0, &[]),
    ("k get pods", 0, &["No resources found in get namespace."]),
    (
        "k get nonsense",
        1,
        &["the server doesn't have a resource type \"nonsense\""],
    ),
    (
        "k get cm -A -o custom-columns=NS:.metadata.namespace --no-headers | sort -u",
        0,
        &["get", "kube-system"],
    ),
    (
        "k get nodes -o wide",
        0,
        &["INTERNAL-IP", "CONTAINER-RUNTIME", "Ready", "skiff://"],
    ),
    (
        "k get --raw /api/v1/namespaces/$NS/configmaps?limit=1",
        0,
        &["\"continue\":\"", "\"remainingItemCount\":5"],
    ),
    (
        "k get leases -n kube-node-lease",
        0,
        &["NAME HOLDER AGE", "skiff-t-kubectl skiff-t-kubectl"],
    ),
    // Several changes, seen by a watch that began before them.
    (
        "k create cm w0; k label cm w0 set=w; k get cm -l set=w --watch --output-watch-events --no-headers > $DIR/w & for i in $(seq 50); do grep -q w0 $DIR/w && break; sleep 0.1; done; k create cm w1; k label cm w1 set=w; k annotate cm w1 x=y; k label cm w1 set-; for i in $(seq 50); do grep -q DELETED $DIR/w && break; sleep 0.1; done; cat $DIR/w",
        0,
        &["ADDED w0", "ADDED w1", "MODIFIED w1", "DELETED w1"],
    ),
    ("k get cm c1 --watch-only --request-timeout=1s", 0, &["!c1"]),
];

pub(crate) const WAIT_FOR_IT: &[Step] = &[
    (
        "k apply -f $DIR/web.yaml; k wait --for=condition=Available deploy/web --timeout=90s",
        0,
        &["deployment.apps/web condition met"],
    ),
    (
        "k wait --for=jsonpath='{.status.readyReplicas}'=3 deploy/web --timeout=90s",
        0,
        &["condition met"],
    ),
    (
        "k wait --for=condition=Ready pod -l app=web --timeout=10s",
        0,
        &["condition met", "condition met", "condition met"],
    ),
    (
        "k wait --for=condition=Nope deploy/web --timeout=1s",
        1,
        &["timed out waiting for the condition on deployments/web"],
    ),
    (
        "(sleep 1; k create cm late) & k wait --for=create cm/late --timeout=30s",
        0,
        &["configmap/late condition met"],
    ),
    (
        "(sleep 1; k delete cm late) & k wait --for=delete cm/late --timeout=30s",
        0,
        &["configmap/late condition met"],
    ),
    (
        "k wait --for=condition=Ready pod/nope --timeout=1s",
        1,
        &["pods \"nope\" not found"],
    ),
    (
        "k get pods -l app=web -o wide; k get ep,endpointslices",
        0,
        &["1/1     Running   0", "10.244.0."],
    ),
    (
        "k describe pod -l app=web",
        0,
        &[
            "Controlled By:  ReplicaSet/web-",
            "Readiness:",
            "http-get http://:http/ delay=0s timeout=1s period=1s",
            "QoS Class:                   Burstable",
            "Successfully assigned",
        ],
    ),
    (
        "k events --for deploy/web; k events --types=Warning > /dev/null; k get events --field-selector involvedObject.kind=Deployment",
        0,
        &["ScalingReplicaSet   Deployment/web", "deployment/web"],
    ),
    (
        "k events --for pod/nope",
        0,
        &["No events found in wait namespace."],
    ),
    ("k top pods", 1, &["Metrics API not available"]),
    (
        "k autoscale deploy web --max=2",
        1,
        &["the server could not find the requested resource"],
    ),
    ("k delete deploy web --timeout=60s", 0, &[]),
];

pub(crate) const NODE_MAINTENANCE: &[Step] = &[
    (
        "k apply -f $DIR/web.yaml; k run lone --image=$PYTHON --command -- sleep 1000; k rollout status deploy/web --timeout=90s; k wait --for=condition=Ready pod/lone --timeout=60s",
        0,
        &["successfully rolled out"],
    ),
    (
        "k cordon $NODE; k get nodes; k uncordon $NODE; k uncordon $NODE",
        0,
        &[
            "cordoned",
            "Ready,SchedulingDisabled",
            "uncordoned",
            "already uncordoned",
        ],
    ),
    (
        "k taint node $NODE k=v:NoSchedule; k describe node $NODE",
        0,
        &[
            "tainted",
            "Taints:             k=v:NoSchedule",
            "Capacity:",
            "PodCIDR:",
            "Non-terminated Pods:",
            "web-",
            "Allocated resources:",
        ],
    ),
    (
        "k taint node $NODE k=w:NoSchedule",
        1,
        &["--overwrite is false"],
    ),
    (
        "k taint node $NODE k-; k taint node $NODE k-",
        1,
        &["untainted", "taint \"k\" not found"],
    ),
    (
        "k drain $NODE --timeout=60s",
        1,
        &["cannot delete Pods that declare no controller"],
    ),
    (
        "k drain $NODE --force --grace-period=1 --timeout=90s",
        0,
        &["evicting pod drain/", "pod/lone evicted", "drained"],
    ),
    (
        "k get pods -l app=web -o jsonpath='{.items[*].status.phase}'",
        0,
        &["Pending Pending Pending"],
    ),
    (
        "k uncordon $NODE; k rollout status deploy/web --timeout=90s",
        0,
        &["uncordoned", "successfully rolled out"],
    ),
    (
        "k label node $NODE disk=ssd; k get node -l disk=ssd -o name; k label node $NODE disk-",
        0,
        &["labeled", "node/", "unlabeled"],
    ),
];
