//! How many pods each ReplicaSet is to have: rolling update and proportional scaling. Pure.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::sets::{
    Sets, age_key, available, desired_annotation, max_annotation, spec_replicas, wanted,
};

/// A ReplicaSet and the size it is to have.
pub(crate) type Resize = (Arc<ReplicaSet>, i32);

pub(crate) fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) != Some("Recreate")
}

fn resolve(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        None => resolve(
            Some(&IntOrString::String("25%".to_owned())),
            total,
            round_up,
        ),
        Some(IntOrString::Int(n)) => (*n).max(0),
        Some(IntOrString::String(text)) => {
            let percent = text
                .strip_suffix('%')
                .and_then(|p| p.parse::<i64>().ok())
                .unwrap_or(0);
            let parts = percent.max(0) * i64::from(total);
            let whole = if round_up {
                (parts + 99) / 100
            } else {
                parts / 100
            };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

/// `(maxSurge, maxUnavailable)`: surge rounds up, unavailable down; were both zero nothing could
/// ever move, so then one may be unavailable.
pub(crate) fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    if !is_rolling(deployment) {
        return (0, 0);
    }
    let rolling = deployment
        .spec
        .as_ref()
        .and_then(|s| s.strategy.as_ref())
        .and_then(|s| s.rolling_update.as_ref());
    let total = wanted(deployment);
    let surge = resolve(rolling.and_then(|r| r.max_surge.as_ref()), total, true);
    let unavailable = resolve(
        rolling.and_then(|r| r.max_unavailable.as_ref()),
        total,
        false,
    );
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

/// The most that may be missing; never more than there are to be.
pub(crate) fn max_unavailable(deployment: &Deployment) -> i32 {
    let (_, unavailable) = fenceposts(deployment);
    if wanted(deployment) == 0 {
        0
    } else {
        unavailable.min(wanted(deployment))
    }
}

/// `spec.replicas` plus `maxSurge`.
pub(crate) fn max_total(deployment: &Deployment) -> i32 {
    wanted(deployment).saturating_add(fenceposts(deployment).0)
}

/// The size of the new set, given its present one (zero if it is still to be made).
pub(crate) fn new_set_size(deployment: &Deployment, sets: &Sets) -> i32 {
    let current = sets.new.as_deref().map_or(0, spec_replicas);
    let target = wanted(deployment);
    if current >= target || !is_rolling(deployment) {
        return target;
    }
    let total: i32 = sets.all().map(|rs| spec_replicas(rs)).sum();
    let room = max_total(deployment) - total;
    if room <= 0 {
        current
    } else {
        current + room.min(target - current)
    }
}

/// Which old sets shrink in a rolling update: first their unhealthy pods, then as many as the
/// available ones beyond the minimum.
pub(crate) fn plan_shrink_old(deployment: &Deployment, sets: &Sets) -> Vec<Resize> {
    let Some(new) = &sets.new else {
        return Vec::new();
    };
    let all: i32 = sets.all().map(|rs| spec_replicas(rs)).sum();
    let min_available = wanted(deployment) - max_unavailable(deployment);
    let new_unavailable = spec_replicas(new) - available(new);
    let max_scaled_down = all - min_available - new_unavailable;
    if max_scaled_down <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<i32> = sets.old.iter().map(|rs| spec_replicas(rs)).collect();
    let mut cleaned = 0;
    for (size, rs) in sizes.iter_mut().zip(&sets.old) {
        let unhealthy = (*size - available(rs)).clamp(0, max_scaled_down - cleaned);
        *size -= unhealthy;
        cleaned += unhealthy;
    }
    let available_now: i32 = sets.all().map(|rs| available(rs)).sum();
    let mut surplus = (available_now - min_available).max(0);
    for size in &mut sizes {
        let down = (*size).min(surplus);
        *size -= down;
        surplus -= down;
    }
    let resized = sets
        .old
        .iter()
        .zip(sizes)
        .filter(|(rs, size)| spec_replicas(rs) != *size);
    resized.map(|(rs, size)| (Arc::clone(rs), size)).collect()
}

/// Whether `spec.replicas` changed since the sets were last sized.
pub(crate) fn is_scaling(deployment: &Deployment, sets: &Sets) -> bool {
    let wanted = wanted(deployment);
    sets.all()
        .filter(|rs| spec_replicas(rs) > 0)
        .any(|rs| desired_annotation(rs).is_some_and(|desired| desired != wanted))
}

/// The sizes after `spec.replicas` changed, also while a rollout is under way or paused: each
/// active set keeps its share. Sets whose size stays are named too, for their annotations.
pub(crate) fn plan_scaling(deployment: &Deployment, sets: &Sets) -> Vec<Resize> {
    let target = wanted(deployment);
    let mut active: Vec<_> = sets
        .all()
        .filter(|rs| spec_replicas(rs) > 0)
        .cloned()
        .collect();
    match active.as_slice() {
        [] => {
            let latest = sets.new.as_ref().or(sets.old.last());
            return latest
                .map(|rs| (Arc::clone(rs), target))
                .into_iter()
                .collect();
        }
        [only] => return vec![(Arc::clone(only), target)],
        _ => {}
    }
    if let Some(new) = &sets.new
        && spec_replicas(new) == target
        && desired_annotation(new) == Some(target)
        && available(new) == target
    {
        let rest = sets.old.iter().filter(|rs| spec_replicas(rs) > 0);
        return rest.map(|rs| (Arc::clone(rs), 0)).collect();
    }
    if !is_rolling(deployment) {
        return Vec::new();
    }
    let total: i32 = active.iter().map(|rs| spec_replicas(rs)).sum();
    let allowed = if target > 0 { max_total(deployment) } else { 0 };
    let to_add = allowed - total;
    // The largest first; of equals the newer one when growing, the older one when shrinking.
    active.sort_by_key(|rs| age_key(rs));
    if to_add > 0 {
        active.reverse();
    }
    active.sort_by_key(|rs| Reverse(spec_replicas(rs)));
    let mut added = 0;
    let mut sizes = Vec::with_capacity(active.len());
    for rs in &active {
        let share = share_of(deployment, rs, to_add, added);
        added += share;
        sizes.push((Arc::clone(rs), spec_replicas(rs) + share));
    }
    if let Some((_, size)) = sizes.first_mut() {
        *size = (*size + to_add - added).max(0);
    }
    sizes
}

fn share_of(deployment: &Deployment, rs: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    let size = spec_replicas(rs);
    let left = to_add - added;
    if size == 0 || left == 0 {
        return 0;
    }
    let fraction = if wanted(deployment) == 0 {
        -size
    } else {
        let before = max_annotation(rs)
            .filter(|max| *max > 0)
            .unwrap_or_else(|| {
                deployment
                    .status
                    .as_ref()
                    .and_then(|s| s.replicas)
                    .unwrap_or(0)
                    .max(1)
            });
        let (scaled, before) = (
            i64::from(size) * i64::from(max_total(deployment)),
            i64::from(before),
        );
        let rounded = (2 * scaled + before) / (2 * before);
        i32::try_from(rounded).unwrap_or(i32::MAX) - size
    };
    if to_add > 0 {
        fraction.clamp(0, left)
    } else {
        fraction.clamp(left, 0)
    }
}
