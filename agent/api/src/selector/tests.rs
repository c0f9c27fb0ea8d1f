//! Tests of selectors.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::resource::{Kind, Registry};

fn labelled(labels: Value) -> Value {
    json!({"metadata": {"labels": labels}})
}

#[test]
fn label_selectors_match() {
    let object = labelled(json!({"app": "web", "tier": "front", "n": "5", "empty": ""}));
    let cases = [
        ("", true),
        ("app=web", true),
        ("app==web", true),
        (" app = web , tier=front ", true),
        ("app=api", false),
        ("app!=api", true),
        ("app!=web", false),
        ("missing!=x", true),
        ("app in (api,web)", true),
        ("app in (api)", false),
        ("app notin (api)", true),
        ("app notin (web)", false),
        ("missing notin (x)", true),
        ("app", true),
        ("!app", false),
        ("missing", false),
        ("!missing", true),
        ("n>4", true),
        ("n<5", false),
        ("app>4", false),
        ("missing<4", false),
        ("empty=", true),
        ("empty", true),
        ("app=", false),
        ("empty in ()", true),
        ("app in (web,)", true),
        ("app=web,!missing,tier in (front)", true),
        ("app=web,tier=back", false),
    ];
    for (text, expected) in cases {
        let selector = LabelSelector::parse(text).unwrap();
        assert_eq!(selector.matches(&object), expected, "{text}");
    }
    assert!(LabelSelector::parse("!a").unwrap().matches(&json!({})));
    assert!(
        LabelSelector::parse("in in (in,notin)")
            .unwrap()
            .matches(&labelled(json!({"in": "in"})))
    );
}

#[test]
fn label_selectors_print_as_upstream() {
    let cases = [
        ("b=1,a==2", "a=2,b=1"),
        ("x in (c,a,b,a)", "x in (a,b,c)"),
        ("x notin (b , a)", "x notin (a,b)"),
        ("!x", "!x"),
        ("x", "x"),
        ("x>1,y<2,z!=3", "x>1,y<2,z!=3"),
    ];
    for (text, expected) in cases {
        assert_eq!(LabelSelector::parse(text).unwrap().to_string(), expected);
    }
}

#[test]
fn bad_label_selectors_are_refused() {
    let cases = [
        (
            "=a",
            "unable to parse requirement: found '=', expected: !, identifier, or 'end of string'",
        ),
        (
            "a b",
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
        ),
        (
            "a=b,",
            "unable to parse requirement: found '', expected: identifier after ','",
        ),
        (
            "a=b c",
            "unable to parse requirement: found 'c', expected: ',' or 'end of string'",
        ),
        (
            "a in b",
            "unable to parse requirement: found 'b', expected: '('",
        ),
        (
            "a in (b",
            "unable to parse requirement: found '', expected: ',' or ')'",
        ),
        (
            "!",
            "unable to parse requirement: found '', expected: identifier",
        ),
        (
            "a=)",
            "unable to parse requirement: found ')', expected: identifier",
        ),
        (
            "a>x",
            "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(
            LabelSelector::parse(text).unwrap_err().message,
            message,
            "{text}"
        );
    }
    for text in [
        "a===b", "-a=b", "a=-b", "a/b/c", "a=b/c", "a>", "a!b", "(a)", "ä=1", "a=ä",
    ] {
        assert!(LabelSelector::parse(text).is_err(), "{text}");
    }
}

#[test]
fn selector_objects() {
    let selector = LabelSelector::from_object(&json!({
        "matchLabels": {"app": "web"},
        "matchExpressions": [
            {"key": "tier", "operator": "NotIn", "values": ["back"]},
            {"key": "old", "operator": "DoesNotExist"},
        ],
    }))
    .unwrap();
    assert_eq!(selector.to_string(), "app=web,!old,tier notin (back)");
    assert!(selector.matches(&labelled(json!({"app": "web"}))));
    assert!(!selector.matches(&labelled(json!({"app": "web", "old": ""}))));
    let typed = [("app".to_owned(), "web".to_owned())].into();
    assert!(selector.matches_labels(Some(&typed)));
    assert!(!selector.matches_labels(None));
    assert!(LabelSelector::from_object(&json!({})).unwrap().is_empty());
    let bad = json!({"matchExpressions": [{"key": "a", "operator": "Like"}]});
    assert!(LabelSelector::from_object(&bad).is_err());
}

fn field(kind: Kind, text: &str) -> Result<FieldSelector, SelectorError> {
    FieldSelector::parse(Registry::of(kind).unwrap(), text)
}

#[test]
fn field_selectors_match() {
    let pod = json!({
        "metadata": {"name": "web", "namespace": "dev"},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
    });
    let cases = [
        ("", true),
        ("metadata.name=web", true),
        ("metadata.name==web,spec.nodeName=n1", true),
        ("metadata.name!=web", false),
        ("spec.nodeName=", false),
        ("spec.nodeName!=", true),
        ("status.phase!=Running", false),
        ("status.phase!=Failed,status.phase!=Succeeded", true),
        ("status.podIP=10.0.0.1", true),
        ("spec.hostNetwork=false", true),
        ("spec.schedulerName=", true),
    ];
    for (text, expected) in cases {
        assert_eq!(
            field(Kind::Pod, text).unwrap().matches(&pod),
            expected,
            "{text}"
        );
    }
    assert_eq!(
        field(Kind::Pod, "metadata.name=web")
            .unwrap()
            .required("metadata.name"),
        Some("web")
    );
    assert_eq!(
        field(Kind::Pod, "metadata.name!=web")
            .unwrap()
            .required("metadata.name"),
        None
    );
    assert!(
        field(Kind::Node, "spec.unschedulable=false")
            .unwrap()
            .matches(&json!({}))
    );
    assert!(
        !field(Kind::Node, "spec.unschedulable=false")
            .unwrap()
            .matches(&json!({"spec": {"unschedulable": true}}))
    );
    assert!(
        field(Kind::ReplicaSet, "status.replicas=0")
            .unwrap()
            .matches(&json!({}))
    );
    assert!(
        field(Kind::Secret, "type=Opaque")
            .unwrap()
            .matches(&json!({"type": "Opaque"}))
    );
    let event = json!({"involvedObject": {"kind": "Pod", "name": "web", "uid": "u"}, "source": {"component": "kubelet"}});
    let text =
        "involvedObject.kind=Pod,involvedObject.name=web,involvedObject.uid=u,source=kubelet";
    assert!(field(Kind::CoreEvent, text).unwrap().matches(&event));
    assert!(
        field(Kind::Namespace, "name=dev")
            .unwrap()
            .matches(&json!({"metadata": {"name": "dev"}}))
    );
}

#[test]
fn bad_field_selectors_are_refused() {
    let error = field(Kind::Pod, "spec.color=red").unwrap_err();
    assert_eq!(error.message, "field label not supported: spec.color");
    let error = field(Kind::Pod, "metadata.name").unwrap_err();
    assert_eq!(
        error.message,
        "invalid selector: 'metadata.name'; can't understand 'metadata.name'"
    );
    assert!(field(Kind::Node, "metadata.namespace=x").is_err());
    for text in [
        "metadata.name=a=b",
        "metadata.name=a\\",
        "metadata.name=\\n",
    ] {
        assert!(field(Kind::Pod, text).is_err(), "{text}");
    }
    let escaped = field(Kind::Pod, "metadata.name=a\\,b\\=c\\\\").unwrap();
    assert_eq!(escaped.required("metadata.name"), Some("a,b=c\\"));
}

proptest! {
    #[test]
    fn prop_label_selectors_survive_printing(terms in prop::collection::vec(term(), 0..6)) {
        let text = terms.join(",");
        let parsed = LabelSelector::parse(&text).unwrap();
        let printed = parsed.to_string();
        prop_assert_eq!(&LabelSelector::parse(&printed).unwrap(), &parsed, "{} -> {}", text, printed);
    }

    #[test]
    fn prop_any_text_is_an_answer(text in "\\PC{0,40}", symbols in "[a!=<>(), in]{0,20}") {
        for text in [text, symbols] {
            if let Ok(selector) = LabelSelector::parse(&text) {
                prop_assert_eq!(LabelSelector::parse(&selector.to_string()), Ok(selector));
            }
            if let Ok(selector) = field(Kind::Pod, &text) {
                prop_assert!(field(Kind::Pod, &selector.to_string()).is_ok());
            }
        }
    }

    #[test]
    fn prop_field_values_survive_printing(value in "[a-z,=\\\\]{0,12}") {
        let escaped = value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
        let text = format!("metadata.name={escaped}");
        let parsed = field(Kind::Pod, &text).unwrap();
        prop_assert_eq!(parsed.required("metadata.name"), Some(value.as_str()));
        prop_assert_eq!(parsed.to_string(), text);
    }
}

fn term() -> impl Strategy<Value = String> {
    let key = "(example\\.com/)?[a-z]([a-z._-]{0,8}[a-z])?";
    let value = "[A-Za-z0-9]{0,8}";
    (
        key,
        prop::collection::vec(value, 1..4),
        0..8_u8,
        any::<i32>(),
    )
        .prop_map(|(key, values, kind, number)| {
            let (first, all) = (&values[0], values.join(", "));
            match kind {
                0 => format!("{key}={first}"),
                1 => format!("{key}!={first}"),
                2 => format!("{key} in ({all})"),
                3 => format!("{key} notin ({all})"),
                4 => key,
                5 => format!("!{key}"),
                6 => format!("{key}>{number}"),
                _ => format!("{key} < {number}"),
            }
        })
}
