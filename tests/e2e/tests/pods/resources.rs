//! Limits of memory and CPU.

use anyhow::{Result, ensure};
use serde_json::json;
use skiff_test_harness::scene::{Case, Scene, container, pod, runs};

pub(crate) const CASES: &[Case] = &[
    ("oom", a_memory_limit_is_a_limit),
    ("cpu", a_cpu_limit_is_in_the_cgroup),
];

fn a_memory_limit_is_a_limit(scene: &Scene<'_>) -> Result<()> {
    let limits = json!({"resources": {"limits": {"memory": "32Mi"}}});
    let greedy = runs(
        "c",
        &["python3", "-c", "x = bytearray(200 << 20)"],
        limits.clone(),
    );
    let child = "import os\nif os.fork() == 0: x = bytearray(200 << 20)\nelse: print(os.waitstatus_to_exitcode(os.wait()[1]))";
    let parent = runs("c", &["python3", "-c", child], limits.clone());
    let modest = runs("c", &["python3", "-c", "x = bytearray(2 << 20)"], limits);
    for (name, main) in [("greedy", greedy), ("parent", parent), ("modest", modest)] {
        scene.apply(&pod(
            name,
            json!({"restartPolicy": "Never", "containers": [main]}),
        ))?;
    }
    let ended = scene.phase("greedy", "Failed")?;
    let state = &container(&ended, "c")["state"]["terminated"];
    ensure!(
        state["exitCode"] == 137 && state["reason"] == "OOMKilled",
        "{ended:#}"
    );
    scene.phase("modest", "Succeeded")?;
    // The kernel kills the child alone or, if told so, the whole container (as upstream tells it on cgroup v2).
    scene.pod("parent", "its end", |pod| {
        container(pod, "c")["state"]["terminated"].is_object()
    })?;
    Ok(())
}

fn a_cpu_limit_is_in_the_cgroup(scene: &Scene<'_>) -> Result<()> {
    let resources = json!({"resources": {
        "requests": {"cpu": "100m", "memory": "16Mi"}, "limits": {"cpu": "250m", "memory": "64Mi"},
    }});
    scene.apply(&pod(
        "p",
        json!({"containers": [runs("c", &["sleep", "infinity"], resources)]}),
    ))?;
    scene.ready("p")?;
    // cgroup v2 has one file, v1 two.
    let read = "cd /sys/fs/cgroup; if test -e cpu.max; then cat cpu.max memory.max; \
                else cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us memory/memory.limit_in_bytes cpu/cpu.shares; fi";
    let found = scene.sh("p", read)?;
    let words: Vec<_> = found.split_whitespace().take(3).collect();
    ensure!(words == ["25000", "100000", "67108864"], "{found}");
    let shares = found.split_whitespace().nth(3);
    ensure!(shares.is_none_or(|shares| shares == "102"), "{found}");
    Ok(())
}
