//! A network configuration list from a runtime's folder.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skiff_cni::libcni::Conflist;

fuzz_target!(|data: &[u8]| {
    let Ok(list) = Conflist::parse(data) else {
        return;
    };
    assert!(!list.plugins.is_empty() && list.versions.contains(&list.version));
    let told = list.to_json().to_string();
    let again = Conflist::parse(told.as_bytes()).expect("a list that was told by us");
    assert_eq!(again.plugins, list.plugins);
    assert_eq!((again.name, again.version), (list.name, list.version));
});
