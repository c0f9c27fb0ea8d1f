use super::*;

const CHAIN: &str = "SKIFF-MASQ-";

fn network() -> NetworkName {
    "net".parse().unwrap()
}

fn container(name: &str) -> ContainerId {
    name.parse().unwrap()
}

fn lines(batch: &Batch) -> Vec<String> {
    let script = batch.script();
    let lines = script.lines().filter(|line| !line.starts_with(['*', 'C']));
    lines.map(str::to_owned).collect()
}

/// A table as it is after the pods were added, and what else is in it.
fn table(pods: &[(&str, &str)], more: &str) -> Table {
    let network = network();
    let layout = Layout::new(Family::V4, &network);
    let mut text = format!("*nat\n:POSTROUTING ACCEPT [0:0]\n{more}");
    for (index, (name, address)) in pods.iter().enumerate() {
        let wanted = layout.wanted(address.parse().unwrap(), &container(name));
        if index == 0 {
            text += &format!(":{} - [0:0]\n", wanted.chain);
            text += &format!("-A {PARENT} {}\n", wanted.jump);
            text += &format!("-A {} {}\n", wanted.chain, wanted.inside);
        }
        text += &format!("-A {} {}\n", wanted.chain, wanted.pod);
    }
    Table::parse(&(text + "COMMIT\n"), TABLE)
}

fn plan_ensure(table: &Table, name: &str, address: &str) -> Vec<String> {
    let network = network();
    let layout = Layout::new(Family::V4, &network);
    let wanted = layout.all_wanted(&[address.parse().unwrap()], &container(name));
    lines(&layout.plan_ensure(table, &wanted))
}

fn plan_remove(table: &Table, name: &str) -> Vec<String> {
    let (network, container) = (network(), container(name));
    let removal = Removal {
        network: &network,
        doomed: &|owner, _| owner.is_container(&container),
        container: Some(&container),
    };
    lines(&Layout::new(Family::V4, &network).plan_remove(table, &removal))
}

#[test]
fn the_first_pod_brings_the_chain() {
    let chain =
        format!("{CHAIN}{}", fingerprint(&["net"], 4)) + &fingerprint(&["net", "10.0.0.0/24"], 12);
    assert_eq!(
        plan_ensure(&Table::default(), "a", "10.0.0.2/24"),
        [
            format!("-N {chain}"),
            format!("-I {chain} 1 -d 10.0.0.0/24 -j ACCEPT"),
            format!(
                "-A {chain} -s 10.0.0.2/32 ! -d 224.0.0.0/4 -m comment --comment \"name:net id:a\" -j MASQUERADE"
            ),
            format!("-A POSTROUTING -s 10.0.0.0/24 -j {chain}"),
        ]
    );
    assert!(chain.len() <= 28, "{chain}");
}

#[test]
fn what_is_there_is_not_made_again_and_what_is_missing_is() {
    let there = table(&[("a", "10.0.0.2/24")], "");
    assert!(plan_ensure(&there, "a", "10.0.0.2/24").is_empty());
    let plan = plan_ensure(&there, "b", "10.0.0.3/24");
    assert!(
        plan.len() == 1 && plan[0].contains("10.0.0.3/32"),
        "{plan:?}"
    );
    // The address had another owner.
    let plan = plan_ensure(&there, "b", "10.0.0.2/24");
    assert_eq!(plan.len(), 2, "{plan:?}");
    assert!(plan[0].starts_with("-D") && plan[0].contains("id:a"));
    assert!(plan[1].starts_with("-A") && plan[1].contains("id:b"));
    // Somebody flushed the table.
    let chain = there.chains().find(|name| name.starts_with(CHAIN)).unwrap();
    let flushed = Table::parse(&format!("*nat\n:POSTROUTING ACCEPT\n:{chain} -\n"), TABLE);
    assert_eq!(plan_ensure(&flushed, "a", "10.0.0.2/24").len(), 3);
}

#[test]
fn a_pod_goes_alone_and_the_last_one_takes_the_chain_along() {
    let two = table(&[("a", "10.0.0.2/24"), ("b", "10.0.0.3/24")], "");
    let plan = plan_remove(&two, "a");
    assert!(plan.len() == 1 && plan[0].contains("id:a"), "{plan:?}");
    let plan = plan_remove(&table(&[("a", "10.0.0.2/24")], ""), "a");
    let verbs: Vec<&str> = plan.iter().map(|line| &line[..2]).collect();
    assert_eq!(verbs, ["-F", "-D", "-X"], "{plan:?}");
    assert!(plan_remove(&two, "c").is_empty());
    assert!(plan_remove(&Table::default(), "a").is_empty());
}

#[test]
fn a_rule_that_is_there_twice_goes_twice() {
    let twice = table(
        &[
            ("a", "10.0.0.2/24"),
            ("a", "10.0.0.2/24"),
            ("b", "10.0.0.3/24"),
        ],
        "",
    );
    assert_eq!(plan_remove(&twice, "a").len(), 2);
}

#[test]
fn what_the_reference_plugin_made_goes_too() {
    let chain = reference_chain("", &network(), &container("a"));
    let more = format!(
        ":{chain} - [0:0]\n\
         -A POSTROUTING -s 10.0.0.2/32 -m comment --comment \"name: \\\"net\\\" id: \\\"a\\\"\" -j {chain}\n\
         -A {chain} -d 10.0.0.0/24 -j ACCEPT\n"
    );
    let found = table(&[("b", "10.0.0.3/24")], &more);
    let plan = plan_remove(&found, "a");
    assert_eq!(plan.len(), 3, "{plan:?}");
    assert!(plan[1].starts_with("-D POSTROUTING") && plan[2] == format!("-X {chain}"));
    // A sweep knows it by its comment.
    let network = network();
    let removal = Removal {
        network: &network,
        doomed: &|owner, _| !owner.is_container(&container("b")),
        container: None,
    };
    let swept = lines(&Layout::new(Family::V4, &network).plan_remove(&found, &removal));
    assert_eq!(swept, plan);
    let other = "other".parse().unwrap();
    let elsewhere = Removal {
        network: &other,
        ..removal
    };
    assert!(
        Layout::new(Family::V4, &other)
            .plan_remove(&found, &elsewhere)
            .is_empty()
    );
}

#[test]
fn the_common_cases_expect_what_they_rely_on() {
    let network = network();
    let layout = Layout::new(Family::V6, &network);
    let wanted = layout.all_wanted(&["fd00::2/64".parse().unwrap()], &container("a"));
    let verbs = |batch: &Batch| {
        let all = lines(batch);
        all.iter()
            .map(|line| line[..2].to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(verbs(&plan_join(&wanted)), ["-C", "-C", "-A"]);
    let release = plan_release(&wanted).unwrap();
    assert_eq!(verbs(&release.own), ["-D"]);
    assert_eq!(verbs(&release.shared), ["-D", "-D", "-X"]);
    let same = ["fd00::2/64", "fd00::3/64"].map(|text| text.parse().unwrap());
    let release = plan_release(&layout.all_wanted(&same, &container("a"))).unwrap();
    assert_eq!(verbs(&release.own), ["-D", "-D"]);
    let two = ["fd00::2/64", "fd01::2/64"].map(|text| text.parse().unwrap());
    assert_eq!(
        plan_release(&layout.all_wanted(&two, &container("a"))),
        None
    );
    assert!(wanted[0].pod.contains("-s fd00::2/128 ! -d ff00::/8"));
}
