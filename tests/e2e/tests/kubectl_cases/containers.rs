//! Into containers and out of them: logs, exec, attach, cp, run, expose.

use crate::Step;

const TWO: &str = r#"k apply -f - <<'E'
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: two}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: a
    image: mcr.microsoft.com/oss/bitnami/redis:6.0.8
    command: [sh, -c, "echo first; echo second; until [ -e /tmp/go ]; do sleep 0.1; done; echo third; sleep 1000"]
  - name: b
    image: mcr.microsoft.com/azuredocs/azure-vote-front:v1
    command: [sh, -c, "echo to-stderr >&2; while true; do echo tick; sleep 0.2; done"]
---
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: a
    image: mcr.microsoft.com/oss/bitnami/redis:6.0.8
    command: [sh, -c, "echo about to fail; exit 3"]
E
"#;

/// Asks the Service until its program listens.
const FETCH: &str = r#"k exec web -- python3 -c "
import time, urllib.request
for i in range(100):
    try: print(urllib.request.urlopen('http://web:8080/').status); break
    except OSError: time.sleep(0.1)""#;

/// A server on the pod's loopback, which listens when this has ended.
const SERVE_A_PAGE: &str = r#"k exec two -c b -- python3 -c "
import http.server, os
os.chdir('/tmp')
open('page', 'w').write('over the port\n')
server = http.server.HTTPServer(('127.0.0.1', 8099), http.server.SimpleHTTPRequestHandler)
if os.fork() == 0:
    for fd in range(3): os.dup2(os.open('/dev/null', os.O_RDWR), fd)
    server.serve_forever()
""#;

pub(crate) const LOGS_EXEC_ATTACH_CP: &[Step] = &[
    (TWO, 0, &["pod/two created", "pod/crash created"]),
    (
        "k wait --for=condition=Ready pod/two --timeout=90s; for i in $(seq 100); do k logs two -c a | grep -q second && break; sleep 0.1; done",
        0,
        &["condition met"],
    ),
    (
        "k logs two",
        0,
        &["Defaulted container \"a\" out of: a, b", "first\nsecond\n"],
    ),
    ("k logs two -c a --tail=1", 0, &["second", "!first"]),
    (
        "k logs two -c a --limit-bytes=8",
        0,
        &["first\nse", "!second"],
    ),
    (
        "k logs two -c a --timestamps | grep -Ec '^20[0-9-]+T[0-9:.]+Z (first|second)$'",
        0,
        &["2"],
    ),
    ("k logs two -c a --since=1h", 0, &["first"]),
    (
        "k logs two -c a --since-time=2100-01-01T00:00:00Z",
        0,
        &["!first"],
    ),
    (
        "k logs two --all-containers --prefix --tail=1",
        0,
        &["[pod/two/a] second", "[pod/two/b] tick"],
    ),
    (
        "k logs -l app=two --all-containers --tail=-1",
        0,
        &["to-stderr"],
    ),
    (
        "k logs two -c nope",
        1,
        &["container nope is not valid for pod two"],
    ),
    ("k logs nope", 1, &["pods \"nope\" not found"]),
    (
        "k logs two -c a --previous",
        1,
        &["previous terminated container \"a\" in pod \"two\" not found"],
    ),
    (
        "k wait pod/crash --for=jsonpath='{.status.containerStatuses[0].lastState.terminated.exitCode}'=3 --timeout=90s; k logs crash --previous",
        0,
        &["about to fail"],
    ),
    (
        "k wait pod/crash --for=jsonpath='{.status.containerStatuses[0].state.waiting.reason}'=CrashLoopBackOff --timeout=90s; k get pod crash; k describe pod crash",
        0,
        &[
            "crash   0/1     CrashLoopBackOff",
            "Last State:",
            "Terminated",
            "Reason:       Error",
            "Exit Code:    3",
            "Back-off restarting failed container a in pod crash_",
        ],
    ),
    // A log that is followed ends with its reader, and goes on while the container does.
    (
        "k logs -f two -c a > $DIR/followed & k exec two -c a -- touch /tmp/go; for i in $(seq 100); do grep -q third $DIR/followed && break; sleep 0.1; done; kill %1; cat $DIR/followed",
        0,
        &["first", "second", "third"],
    ),
    ("echo hello | k exec -i two -c a -- cat", 0, &["hello"]),
    (
        "k exec two -c a -- sh -c 'echo out; echo err >&2; exit 5'",
        5,
        &["command terminated with exit code 5"],
    ),
    (
        "k exec two -c a -- sh -c 'echo err >&2' 2> /dev/null",
        0,
        &["!err"],
    ),
    (
        "k exec two -c nope -- true",
        1,
        &["container nope is not valid for pod two"],
    ),
    ("k exec nope -- true", 1, &["pods \"nope\" not found"]),
    (
        "k exec two -c a -- nosuchcommand",
        1,
        &["exec: \"nosuchcommand\": executable file not found in $PATH"],
    ),
    (
        "head -c 3000000 /dev/zero | k exec -i two -c a -- wc -c",
        0,
        &["3000000"],
    ),
    (
        "k exec two -c a -- head -c 3000000 /dev/zero | wc -c",
        0,
        &["3000000"],
    ),
    ("k exec deploy/nope -- true", 1, &["not found"]),
    // A terminal, of the size that it has here.
    (
        "export -f k; SHELL=/bin/bash timeout 20 script -qec \"stty rows 33 cols 77; k exec -it two -c b -- python3 -c 'import os, time; time.sleep(1); print(os.isatty(0), os.get_terminal_size())'\" /dev/null < /dev/null",
        0,
        &["True", "columns=77, lines=33"],
    ),
    (
        "k attach two -c b > $DIR/attached 2> /dev/null & for i in $(seq 100); do [ \"$(grep -c tick $DIR/attached)\" -ge 2 ] && break; sleep 0.1; done; kill %1; cat $DIR/attached",
        0,
        &["tick\ntick"],
    ),
    (
        "echo content > $DIR/file; k cp $DIR/file two:/tmp/copied -c b; k exec two -c b -- cat /tmp/copied; k cp two:/tmp/copied $DIR/back -c b; cat $DIR/back",
        0,
        &["content", "content"],
    ),
    (
        "mkdir -p $DIR/tree/sub; echo deep > $DIR/tree/sub/leaf; k cp $DIR/tree two:/tmp/ -c b; k cp two:/tmp/tree $DIR/tree-back -c b; cat $DIR/tree-back/sub/leaf",
        0,
        &["deep"],
    ),
    (SERVE_A_PAGE, 0, &[]),
    (
        "k port-forward pod/two :8099 > $DIR/forwarded & for i in $(seq 100); do grep -q Forwarding $DIR/forwarded && break; sleep 0.1; done; P=$(sed -n 's/.*127.0.0.1:\\([0-9]*\\) -> 8099/\\1/p' $DIR/forwarded); curl -sf --parallel http://127.0.0.1:$P/page http://127.0.0.1:$P/page; curl -sf http://127.0.0.1:$P/page; kill %1",
        0,
        &["over the port", "over the port", "over the port"],
    ),
    (
        "k port-forward pod/two :1 > $DIR/forwarded & for i in $(seq 100); do grep -q Forwarding $DIR/forwarded && break; sleep 0.1; done; P=$(sed -n 's/.*127.0.0.1:\\([0-9]*\\) -> 1$/\\1/p' $DIR/forwarded); curl -s http://127.0.0.1:$P/; wait %1",
        1,
        &[
            "error forwarding port 1 to pod two",
            "lost connection to pod",
        ],
    ),
    (
        "k delete pod two crash --now --timeout=60s",
        0,
        &["pod \"two\" deleted", "pod \"crash\" deleted"],
    ),
];

pub(crate) const RUN_AND_EXPOSE: &[Step] = &[
    (
        "k run once --image=$PYTHON --restart=Never --env=X=1 --labels=l=1 --command -- sh -c 'echo X is $X; exit 4'",
        0,
        &["pod/once created"],
    ),
    (
        "k wait --for=jsonpath='{.status.phase}'=Failed pod -l l=1 --timeout=90s; k logs once; k get pod once",
        0,
        &["pod/once condition met", "X is 1", "once   0/1     Error"],
    ),
    // Input goes to the container, whose end is kubectl's.
    (
        "echo hello | k run -i --rm piped --image=$PYTHON --restart=Never --command -- cat",
        0,
        &["hello", "pod \"piped\" deleted"],
    ),
    (
        "echo now | k run -i --rm code --image=$PYTHON --restart=Never --command -- sh -c 'read when; echo $when; exit 5'",
        5,
        &["now", "pod \"code\" deleted"],
    ),
    (
        "export -f k; echo skiff | SHELL=/bin/bash timeout 60 script -qec \"k run -it --rm asks --image=$PYTHON --restart=Never --command -- python3 -c 'import os; print(os.isatty(0), input().upper())'\" /dev/null",
        0,
        &["True SKIFF", "pod \"asks\" deleted"],
    ),
    (
        "k run stays --image=$PYTHON --restart=Never -i --attach=false --command -- sh -c 'while read line; do echo got $line; [ $line = end ] && exit; done' && k wait --for=condition=Ready pod/stays --timeout=60s && (echo one; echo end) | k attach -i stays",
        0,
        &["pod/stays created", "condition met", "got one", "got end"],
    ),
    (
        "k run fine --image=$PYTHON --restart=Never --command -- true; k wait --for=jsonpath='{.status.phase}'=Succeeded pod/fine --timeout=90s; k get pod fine",
        0,
        &["fine   0/1     Completed"],
    ),
    (
        "k run dry --image=x --dry-run=client -o yaml",
        0,
        &["kind: Pod", "run: dry", "image: x"],
    ),
    (
        "k run web --image=$PYTHON --port=8080 --expose --command -- python3 -m http.server 8080",
        0,
        &["service/web created", "pod/web created"],
    ),
    (
        "k wait --for=condition=Ready pod/web --timeout=90s",
        0,
        &["condition met"],
    ),
    (FETCH, 0, &["200"]),
    (
        "k expose pod web --name=web-port --type=NodePort --port=80 --target-port=8080; k get svc web-port",
        0,
        &["service/web-port exposed", "web-port   NodePort", "80:3"],
    ),
    (
        "k describe svc web-port",
        0,
        &[
            "Selector:                 run=web",
            "Type:                     NodePort",
            "NodePort:                 <unset>  3",
            "Endpoints:                10.244.",
        ],
    ),
    (
        "k describe endpoints web; k describe endpointslices -l kubernetes.io/service-name=web",
        0,
        &[
            "Subsets:",
            "Addresses:          10.244.",
            "8080",
            "AddressType:",
            "Ready: true",
        ],
    ),
    (
        "k create deploy d --image=$PYTHON --port=8080 -- sleep 1000; k expose deploy d; k get svc d -o jsonpath='{.spec.ports[0].port} {.spec.selector}'",
        0,
        &["service/d exposed", r#"8080 {"app":"d"}"#],
    ),
    ("k expose deploy d", 1, &["services \"d\" already exists"]),
    (
        "k delete pod,svc,deploy --all --now --timeout=60s",
        0,
        &[
            "pod \"once\" deleted",
            "pod \"stays\" deleted",
            "service \"web\" deleted",
            "deployment.apps \"d\" deleted",
        ],
    ),
];
