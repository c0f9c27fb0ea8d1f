//! Tests against bodies put together by hand.

use super::*;

fn bytes(number: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(value.len()).unwrap()];
    out.extend_from_slice(value);
    out
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let type_meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    let envelope = [
        bytes(1, &type_meta),
        bytes(2, raw),
        bytes(3, b""),
        bytes(4, b""),
    ]
    .concat();
    [MAGIC, &envelope].concat()
}

#[test]
fn a_namespace_as_kubectl_writes_it() {
    // Empty strings and an empty time are what Go writes for what is not given.
    let label = [bytes(1, b"a"), bytes(2, b"b")].concat();
    let metadata = [
        bytes(1, b"dev"),
        bytes(2, b""),
        bytes(8, b""),
        bytes(11, &label),
    ]
    .concat();
    let raw = [bytes(1, &metadata), bytes(2, b""), bytes(3, &bytes(1, b""))].concat();
    let expected = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "dev", "labels": {"a": "b"}}, "spec": {},
    });
    assert_eq!(decode(&body("v1", "Namespace", &raw)).unwrap(), expected);
}

#[test]
fn zero_is_a_value_where_go_has_a_pointer() {
    let port = [
        bytes(1, b""),
        vec![3 << 3, 80],
        bytes(4, &[1 << 3, 1, 3 << 3 | 2, 1, b'x']),
        vec![5 << 3, 0],
    ];
    let raw = bytes(2, &bytes(1, &port.concat()));
    let service = decode(&body("v1", "Service", &raw)).unwrap();
    assert_eq!(
        service["spec"]["ports"],
        json!([{"port": 80, "targetPort": "x"}])
    );
    let raw = bytes(2, &[1 << 3, 0]);
    let deployment = decode(&body("apps/v1", "Deployment", &raw)).unwrap();
    assert_eq!(deployment["spec"]["replicas"], 0);
}

#[test]
fn questions_about_oneself_are_read() {
    let asked = [bytes(2, b"get"), bytes(5, b"pods")].concat();
    let raw = [bytes(1, b""), bytes(2, &bytes(1, &asked)), bytes(3, b"")].concat();
    let kind = "SelfSubjectAccessReview";
    let review = decode(&body("authorization.k8s.io/v1", kind, &raw)).unwrap();
    assert_eq!(
        review["spec"],
        json!({"resourceAttributes": {"verb": "get", "resource": "pods"}})
    );
}

#[test]
fn secrets_stay_bytes() {
    let raw = bytes(2, &[bytes(1, b"k"), bytes(2, &[0xff, 0])].concat());
    let secret = decode(&body("v1", "Secret", &raw)).unwrap();
    assert_eq!(secret["data"]["k"], "/wA=");
}

#[test]
fn what_is_not_known_is_refused() {
    let unknown = decode(&body("v1", "Namespace", &bytes(9, b"x"))).unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "field 9 of NAMESPACE is not read from protobuf, send JSON"
    );
    assert!(matches!(
        decode(&body("v1", "Pod", b"")),
        Err(ProtobufError::UnknownKind { .. })
    ));
    for bad in [&b""[..], b"k8s", b"k8s\0\xff", b"k8s\0\x0a\x7f"] {
        assert!(
            matches!(decode(bad), Err(ProtobufError::Malformed(_))),
            "{bad:?}"
        );
    }
}

#[test]
fn cut_bodies_never_panic() {
    let metadata = bytes(1, &[bytes(1, b"dev"), bytes(8, &[8, 0x80, 1])].concat());
    let whole = body("v1", "Namespace", &metadata);
    for end in 0..whole.len() {
        drop(decode(&whole[..end]));
    }
    assert!(decode(&whole).is_ok());
}
