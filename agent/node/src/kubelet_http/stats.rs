//! `GET /stats/summary`: resource use of pods and their containers.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use skiff_runtime::ContainerState;

use super::Context;

pub(super) async fn summary(State(ctx): State<Context>) -> Json<Value> {
    let now = ctx.clock.now().to_string();
    let mut pods = Vec::new();
    let (mut node_cpu, mut node_memory) = (0_u64, 0_u64);
    for record in ctx.runtime.list().await.unwrap_or_default() {
        let sandbox = &record.sandbox.config;
        let mut containers = Vec::new();
        let (mut cpu, mut memory, mut processes) = (0_u64, 0_u64, 0_u64);
        for instance in &record.containers {
            let ContainerState::Running { started_at, .. } = instance.state else {
                continue;
            };
            let Ok(stats) = ctx.runtime.stats(&instance.id).await else {
                continue;
            };
            cpu += stats.cpu_usage_nanos;
            memory += stats.memory_working_set_bytes;
            processes += stats.pids;
            containers.push(json!({
                "name": instance.name,
                "startTime": started_at.to_string(),
                "cpu": { "time": now, "usageCoreNanoSeconds": stats.cpu_usage_nanos },
                "memory": { "time": now, "workingSetBytes": stats.memory_working_set_bytes },
            }));
        }
        node_cpu += cpu;
        node_memory += memory;
        pods.push(json!({
            "podRef": {
                "name": sandbox.name,
                "namespace": sandbox.namespace,
                "uid": sandbox.pod_uid,
            },
            "startTime": record.sandbox.created_at.to_string(),
            "containers": containers,
            "cpu": { "time": now, "usageCoreNanoSeconds": cpu },
            "memory": { "time": now, "workingSetBytes": memory },
            "process_stats": { "process_count": processes },
        }));
    }
    Json(json!({
        "node": {
            "nodeName": ctx.config.node_name,
            "cpu": { "time": now, "usageCoreNanoSeconds": node_cpu },
            "memory": { "time": now, "workingSetBytes": node_memory },
        },
        "pods": pods,
    }))
}
