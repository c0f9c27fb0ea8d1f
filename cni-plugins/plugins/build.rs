//! Links the plugins at a fixed address.
//!
//! A static executable that can lie anywhere relocates itself each time it starts: a third of what it takes to start at
//! all, for a process that lives for a few milliseconds and answers one question of its own runtime.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if features.split(',').any(|feature| feature == "crt-static") {
        // Both: without the first, the second would make it a dynamic one.
        println!("cargo::rustc-link-arg-bins=-static");
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
}
