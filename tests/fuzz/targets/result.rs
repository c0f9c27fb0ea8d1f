//! A result that another plugin printed, or that a runtime hands back as `prevResult`.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use serde_json::{Value, json};
use skiff_cni::types::{CniResult, CniVersion, NetConf};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(json) = serde_json::from_slice::<Value>(data) else {
        return Corpus::Reject;
    };
    let direct = CniResult::from_json(&json);
    let within = json!({"name": "net", "type": "bridge", "prevResult": json});
    let Value::Object(within) = within else {
        unreachable!()
    };
    let conf = NetConf::from_value(CniVersion::LATEST, within);
    let Ok(result) = direct else {
        return Corpus::Keep;
    };
    assert!(result.container_ips().count() <= result.ips.len());
    // What is null counts as absent within a configuration: then there may be less, but never an error.
    let previous = conf.expect("a result that can be read alone").prev_result;
    assert!(previous.is_some());
    for version in CniVersion::ALL {
        let told = result.to_json(version);
        assert_eq!(told["cniVersion"], version.as_str());
        let again = CniResult::from_json(&told).expect("a result that was told by us");
        assert_eq!(again.to_json(version), told, "{version}");
        if version == CniVersion::LATEST {
            assert_eq!(again, result);
        }
    }
    Corpus::Keep
});
