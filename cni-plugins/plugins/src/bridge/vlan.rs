//! VLANs: which pass at a container's port. Pure.

use serde::Deserialize;
use skiff_cni::{netlink::PortVlan, types::CniError};

/// The highest VLAN; 4095 is reserved.
const MAX_ID: i64 = 4094;
/// Untagged frames of a trunk without a VLAN of its own belong to this one.
const DEFAULT_NATIVE: u16 = 1;

/// An entry of `vlanTrunk`: one VLAN, a range, or both.
#[derive(Debug, Deserialize)]
pub(super) struct TrunkEntry {
    id: Option<i64>,
    #[serde(rename = "minID")]
    min_id: Option<i64>,
    #[serde(rename = "maxID")]
    max_id: Option<i64>,
}

/// The VLANs of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Vlans {
    /// The VLAN of untagged frames.
    pub(super) access: Option<u16>,
    /// VLANs that pass with their tags, in order, as ranges that do not touch.
    pub(super) trunk: Vec<(u16, u16)>,
    /// Whether `vlanTrunk` is there, be it empty.
    pub(super) is_trunk: bool,
    /// Whether a new port keeps the VLAN that the bridge gives it.
    pub(super) keeps_default: bool,
}

impl Vlans {
    /// Checks the three keys.
    pub(super) fn new(
        vlan: i64,
        trunk: Option<&[TrunkEntry]>,
        keeps_default: bool,
    ) -> Result<Self, CniError> {
        let access = match vlan {
            0 => None,
            id => Some(checked("vlan", id)?),
        };
        let mut ids = Vec::new();
        for entry in trunk.unwrap_or_default() {
            match (entry.min_id, entry.max_id) {
                (Some(min), Some(max)) => {
                    let range = (
                        checked("vlanTrunk.minID", min)?,
                        checked("vlanTrunk.maxID", max)?,
                    );
                    if range.0 > range.1 {
                        return Err(CniError::config(format!(
                            "vlanTrunk: minID {min} is greater than maxID {max}"
                        )));
                    }
                    ids.push(range);
                }
                (None, None) => {}
                _ => {
                    return Err(CniError::config(
                        "vlanTrunk: minID and maxID are given together or not at all",
                    ));
                }
            }
            if let Some(id) = entry.id {
                let id = checked("vlanTrunk.id", id)?;
                ids.push((id, id));
            }
        }
        Ok(Self {
            access,
            trunk: merged(ids),
            is_trunk: trunk.is_some(),
            keeps_default,
        })
    }

    /// The same without a trunk.
    pub(super) fn access_only(&self) -> Self {
        Self {
            trunk: Vec::new(),
            is_trunk: false,
            ..self.clone()
        }
    }

    /// Whether the bridge must keep VLANs apart.
    pub(super) fn are_filtered(&self) -> bool {
        self.access.is_some() || self.is_trunk
    }

    /// Whether the port has VLANs other than those that the bridge gives it.
    pub(super) fn are_set(&self) -> bool {
        self.native().is_some()
    }

    fn native(&self) -> Option<u16> {
        self.access
            .or_else(|| (!self.trunk.is_empty()).then_some(DEFAULT_NATIVE))
    }

    /// What passes at the container's port.
    pub(super) fn plan_port(&self) -> Vec<PortVlan> {
        let native = self.native();
        let mut vlans: Vec<_> = native.map(PortVlan::native).into_iter().collect();
        // A VLAN is tagged or not: the native one is not, also if the trunk names it.
        vlans.extend(
            without(&self.trunk, |id| Some(id) == native)
                .into_iter()
                .map(|(first, last)| PortVlan::tagged(first, last)),
        );
        vlans
    }

    /// What the bridge has given the port and it must not keep.
    pub(super) fn plan_removal(&self, default_vlan: Option<u16>) -> Vec<PortVlan> {
        let removed = default_vlan.filter(|id| {
            self.are_set()
                && !self.keeps_default
                && !self
                    .plan_port()
                    .iter()
                    .any(|vlan| (vlan.first..=vlan.last).contains(id))
        });
        removed
            .map(|id| PortVlan::tagged(id, id))
            .into_iter()
            .collect()
    }

    /// What the uplink must let pass besides what it does, with its tags.
    pub(super) fn plan_uplink(&self, existing: &[PortVlan]) -> Vec<PortVlan> {
        let mut ids = self.trunk.clone();
        ids.extend(self.access.map(|id| (id, id)));
        let passes = |id| {
            existing
                .iter()
                .any(|vlan| (vlan.first..=vlan.last).contains(&id))
        };
        without(&merged(ids), passes)
            .into_iter()
            .map(|(first, last)| PortVlan::tagged(first, last))
            .collect()
    }
}

fn checked(key: &str, id: i64) -> Result<u16, CniError> {
    u16::try_from(id)
        .ok()
        .filter(|_| (1..=MAX_ID).contains(&id))
        .ok_or_else(|| CniError::config(format!("{key}: {id} is not between 1 and {MAX_ID}")))
}

fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// The ranges less the ids for which `is_left_out` holds.
fn without(ranges: &[(u16, u16)], is_left_out: impl Fn(u16) -> bool) -> Vec<(u16, u16)> {
    let ids = ranges
        .iter()
        .flat_map(|(first, last)| *first..=*last)
        .filter(|id| !is_left_out(*id));
    merged(ids.map(|id| (id, id)).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn vlans(vlan: i64, trunk: &Value, keeps_default: bool) -> Result<Vlans, CniError> {
        let trunk: Option<Vec<TrunkEntry>> = serde_json::from_value(trunk.clone()).unwrap();
        Vlans::new(vlan, trunk.as_deref(), keeps_default)
    }

    #[test]
    fn an_access_port_has_its_vlan_and_no_other() {
        let access = vlans(100, &Value::Null, false).unwrap();
        assert_eq!(access.plan_port(), [PortVlan::native(100)]);
        assert_eq!(access.plan_removal(Some(1)), [PortVlan::tagged(1, 1)]);
        assert_eq!(access.plan_removal(Some(100)), []);
        assert_eq!(access.plan_removal(None), []);
        let keeping = vlans(100, &Value::Null, true).unwrap();
        assert_eq!(keeping.plan_removal(Some(1)), []);
    }

    #[test]
    fn a_trunk_has_ranges_and_a_native_vlan() {
        let trunk = json!([{"id": 5}, {"minID": 10, "maxID": 12}, {"id": 13}, {}]);
        let without_vlan = vlans(0, &trunk, false).unwrap();
        let ranges = [PortVlan::tagged(5, 5), PortVlan::tagged(10, 13)];
        assert_eq!(without_vlan.plan_port()[0], PortVlan::native(1));
        assert_eq!(without_vlan.plan_port()[1..], ranges);
        assert_eq!(without_vlan.plan_removal(Some(1)), []);
        let with_vlan = vlans(11, &trunk, false).unwrap();
        assert_eq!(
            with_vlan.plan_port(),
            [
                PortVlan::native(11),
                PortVlan::tagged(5, 5),
                PortVlan::tagged(10, 10),
                PortVlan::tagged(12, 13)
            ]
        );
        assert_eq!(with_vlan.plan_removal(Some(1)), [PortVlan::tagged(1, 1)]);
    }

    #[test]
    fn no_vlan_leaves_the_port_alone() {
        for (trunk, is_filtered) in [(Value::Null, false), (json!([]), true), (json!([{}]), true)] {
            let none = vlans(0, &trunk, false).unwrap();
            assert_eq!(
                (none.plan_port(), none.plan_removal(Some(1))),
                (vec![], vec![])
            );
            assert_eq!(none.are_filtered(), is_filtered, "{trunk}");
        }
    }

    #[test]
    fn an_uplink_gets_what_it_lacks() {
        let trunk = vlans(7, &json!([{"minID": 5, "maxID": 9}]), false).unwrap();
        let existing = [PortVlan::native(1), PortVlan::tagged(6, 6)];
        assert_eq!(
            trunk.plan_uplink(&existing),
            [PortVlan::tagged(5, 5), PortVlan::tagged(7, 9)]
        );
        assert_eq!(
            vlans(1, &Value::Null, false)
                .unwrap()
                .plan_uplink(&existing),
            []
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for (vlan, trunk) in [
            (-1, Value::Null),
            (4095, Value::Null),
            (0, json!([{"id": 0}])),
            (0, json!([{"id": 4095}])),
            (0, json!([{"minID": 5}])),
            (0, json!([{"maxID": 5}])),
            (0, json!([{"minID": 6, "maxID": 5}])),
            (0, json!([{"minID": 0, "maxID": 5}])),
            (0, json!([{"minID": 1, "maxID": 70000}])),
        ] {
            assert!(vlans(vlan, &trunk, false).is_err(), "{vlan} {trunk}");
        }
    }
}
