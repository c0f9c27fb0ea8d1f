//! Plans against tables as `iptables-save` prints them.

use skiff_cni::types::ContainerId;

use super::*;

const OWNER: &str = "name:net id:c1";

fn layout(policy: Option<bool>) -> Layout {
    Layout {
        admin_chain: Some("CNI-ADMIN".to_owned()),
        isolation: policy.map(|isolated| ("br0".parse().unwrap(), isolated)),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Carries a batch out on a table, as far as these tests need it.
fn apply(table: &str, batch: &Batch) -> String {
    let mut lines: Vec<String> = table.lines().map(str::to_owned).collect();
    let commit = |lines: &Vec<String>| lines.iter().position(|l| l == "COMMIT").unwrap();
    for line in batch.script().lines() {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let chain = rest.split(' ').next().unwrap_or_default();
        match verb {
            "-N" => {
                let declared = format!(":{chain} - [0:0]");
                assert!(!lines.contains(&declared), "{line}");
                lines.insert(1, declared);
            }
            "-A" => {
                let at = commit(&lines);
                lines.insert(at, line.to_owned());
            }
            "-I" => {
                let rule = format!("-A {}", rest.replacen(" 1 ", " ", 1));
                let start = format!("-A {chain} ");
                let at = lines.iter().position(|l| l.starts_with(&start));
                let at = at.unwrap_or_else(|| commit(&lines));
                lines.insert(at, rule);
            }
            "-D" => {
                let rule = format!("-A {rest}");
                let at = lines.iter().position(|l| *l == rule);
                lines.remove(at.unwrap_or_else(|| panic!("{line}")));
            }
            "-X" => {
                let start = format!("-A {chain} ");
                assert!(!lines.iter().any(|l| l.starts_with(&start)), "{line}");
                lines.retain(|l| !l.starts_with(&format!(":{chain} ")));
            }
            _ => {}
        }
    }
    lines.join("\n")
}

const EMPTY: &str =
    "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT";

#[test]
fn adding_twice_changes_nothing_and_deleting_leaves_the_shared_chains() {
    let layout = layout(None);
    let addresses = [ip("10.0.0.2")];
    let first = apply(
        EMPTY,
        &layout.plan_add(&Table::parse(EMPTY, TABLE), &addresses, OWNER),
    );
    let table = Table::parse(&first, TABLE);
    assert_eq!(layout.missing(&table, &addresses), None);
    assert!(layout.plan_add(&table, &addresses, OWNER).is_empty());

    let network = "net".parse().unwrap();
    let container: ContainerId = "c1".parse().unwrap();
    let is_ours = |owner: &Owner<'_>| owner.is_network(&network) && owner.is_container(&container);
    // With and without knowing the address.
    for known in [&addresses[..], &[]] {
        let deleted = apply(&first, &plan_delete(&table, known, is_ours));
        let table = Table::parse(&deleted, TABLE);
        assert_eq!(table.rules(FORWARD_CHAIN).len(), 1, "{deleted}");
        assert!(!table.has_chain(OWNERS_CHAIN) && table.has_chain("CNI-ADMIN"));
        assert!(plan_delete(&table, known, is_ours).is_empty());
    }
}

#[test]
fn an_address_that_somebody_else_has_by_now_stays() {
    let layout = layout(None);
    let addresses = [ip("10.0.0.2")];
    let theirs = "name:net id:c2";
    let added = apply(
        EMPTY,
        &layout.plan_add(&Table::parse(EMPTY, TABLE), &addresses, theirs),
    );
    let container: ContainerId = "c1".parse().unwrap();
    let table = Table::parse(&added, TABLE);
    let batch = plan_delete(&table, &addresses, |owner| owner.is_container(&container));
    assert!(batch.is_empty(), "{}", batch.script());
    // Rules without a record are the reference plugin's.
    let foreign: String = added
        .lines()
        .filter(|line| !line.contains(OWNERS_CHAIN))
        .collect::<Vec<_>>()
        .join("\n");
    let table = Table::parse(&foreign, TABLE);
    let batch = plan_delete(&table, &addresses, |_| false);
    assert_eq!(batch.script().matches("-D CNI-FORWARD").count(), 2);
}

#[test]
fn isolation_comes_before_what_lets_packets_through() {
    let addresses = [ip("fd00::2")];
    let order = |text: &str| -> Vec<String> {
        let table = Table::parse(text, TABLE);
        let targets = table.rules(PARENT).iter().filter_map(Rule::target);
        targets.map(str::to_owned).collect()
    };
    let empty = Table::parse(EMPTY, TABLE);
    let isolated = apply(
        EMPTY,
        &layout(Some(true)).plan_add(&empty, &addresses, OWNER),
    );
    assert_eq!(order(&isolated), [STAGE_1, FORWARD_CHAIN]);
    let table = Table::parse(&isolated, TABLE);
    let stage: Vec<_> = table
        .rules(STAGE_1)
        .iter()
        .filter_map(Rule::target)
        .collect();
    assert_eq!(stage, ["DROP", STAGE_2, "RETURN"]);
    let stage: Vec<_> = table
        .rules(STAGE_2)
        .iter()
        .filter_map(Rule::target)
        .collect();
    assert_eq!(stage, ["DROP", "RETURN"]);

    // Open first, isolated later; and the way for packets lost meanwhile.
    let open = apply(EMPTY, &layout(None).plan_add(&empty, &addresses, OWNER));
    let both = apply(
        &open,
        &layout(Some(false)).plan_add(&Table::parse(&open, TABLE), &addresses, OWNER),
    );
    assert_eq!(order(&both), [STAGE_1, FORWARD_CHAIN]);
    let jump = format!("-A FORWARD {}\n", Layout::jump());
    let lost = both.replace(&jump, "");
    assert_eq!(order(&lost), [STAGE_1]);
    let found = apply(
        &lost,
        &layout(None).plan_add(&Table::parse(&lost, TABLE), &addresses, OWNER),
    );
    assert_eq!(order(&found), [STAGE_1, FORWARD_CHAIN]);
}

#[test]
fn a_policy_alone_lets_nothing_through() {
    let layout = layout(Some(false)).policy_only();
    let batch = layout.plan_add(&Table::parse(EMPTY, TABLE), &[ip("10.0.0.2")], OWNER);
    let script = batch.script();
    assert!(
        script.contains(STAGE_1) && !script.contains("ACCEPT"),
        "{script}"
    );
}
